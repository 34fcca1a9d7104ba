"""Finds checkpoints that cannot be of one fit, before they become one run."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_tracin.errors import TracInError
from lightning_tracin.trainer.checkpoints import Checkpoint

_REMEDY = "give the checkpoints of one fit"

#: What schedules of learning rates may change in an optimizer's group, and averaging of weights when it begins.
_SCHEDULED = {"lr", "initial_lr", "max_lr", "min_lr", "swa_lr", "betas", "momentum", "params"}

#: What stays the same in the state of torch's schedulers.
_CONSTANT = (
    "base_lrs",
    "step_size",
    "gamma",
    "T_max",
    "eta_min",
    "milestones",
    "total_steps",
    "total_iters",
    "factor",
    "patience",
)


def require_same_weights(one: Checkpoint, other: Checkpoint) -> None:
    """Check that two checkpoints of one step are duplicates, such as `last.ckpt`.

    Raises:
        TracInError: their weights differ.
    """
    if not _equal(one.weights, other.weights):
        raise TracInError(f"{one.path} and {other.path} are both of step {one.step}, with other weights; {_REMEDY}.")


class _Reason(NamedTuple):
    """Why two checkpoints are not of one unchanged fit."""

    text: str
    name: str | None = None  # of what a fit may change by itself
    remedy: str = _REMEDY


def require_one_fit(before: Checkpoint, after: Checkpoint, changed: Collection[str] = ()) -> None:
    """Check what must hold between two checkpoints of one fit.

    Args:
        before: the one with fewer steps.
        after: the next one.
        changed: names of what the fit changed by itself, such as `weight_decay`; it is not compared.

    Raises:
        TracInError: they are of two fits, or of one that changed its optimizer groups or hyperparameters.
    """
    for reason in _reasons(before, after):
        if reason.name is not None and reason.name in changed:
            continue
        instead = "" if reason.name is None else f", or, if the fit itself changed this, add `changed=[{reason.name!r}]`"
        raise TracInError(
            f"{before.path} and {after.path} are not of one unchanged fit: {reason.text}; {reason.remedy}{instead}."
        )


def _reasons(before: Checkpoint, after: Checkpoint) -> Iterator[_Reason]:
    steps = f"step {before.step} and step {after.step}"
    if after.epoch < before.epoch:
        yield _Reason(f"{steps} are of epochs {before.epoch} and {after.epoch}, which go back")
    if after.passed <= before.passed + 1e-9:
        yield _Reason(f"{steps} are after {before.passed:.3g} and {after.passed:.3g} passes over the train samples")
    for name, one, other in _changed(before.hyperparameters, after.hyperparameters):
        yield _Reason(f"the hyperparameter {name!r} changes from {one!r} to {other!r}", name)
    if before.groups != after.groups:
        yield _Reason(
            f"the optimizer groups change from {before.groups} to {after.groups} parameters",
            remedy=f"{_REMEDY}; if the fit itself changed its groups, give the checkpoints before and after as two runs, each "
            "with its `optimizers=[...]`",
        )
    for number, (group, later) in enumerate(zip(_groups(before), _groups(after), strict=False)):
        options = ({name: each[name] for name in each if name not in _SCHEDULED} for each in (group, later))
        for name, one, other in _changed(*options):
            yield _Reason(f"{name!r} of optimizer group {number} changes from {one!r} to {other!r}", name)
    for state, later in zip(before.schedulers, after.schedulers, strict=False):
        if state.keys() != later.keys():  # a scheduler of another kind, such as that of averaged weights
            continue
        for name, one, other in _changed(*({name: each[name] for name in _CONSTANT if name in each} for each in (state, later))):
            yield _Reason(f"{name!r} of the scheduler changes from {one!r} to {other!r}", name)
    for name, tensor in before.weights.items():
        there = after.weights.get(name)
        if there is None or there.shape != tensor.shape or there.dtype != tensor.dtype:
            kind = "nothing" if there is None else f"{there.dtype} {tuple(there.shape)}"
            yield _Reason(f"{name!r} changes from {tensor.dtype} {tuple(tensor.shape)} to {kind}")
    if before.history and [*map(_text, before.history)] != [*map(_text, after.history)][: len(before.history)]:
        yield _Reason(f"the log of {after.path.name} does not continue the log of {before.path.name}")
    yield from map(_Reason, _scores(before.callbacks, after.callbacks))
    yield from _moments(before, after)


def _groups(checkpoint: Checkpoint) -> list[Mapping[str, Any]]:
    return [group for state in checkpoint.optimizers for group in state["param_groups"]]


def _changed(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """The names whose values differ, with both values."""
    names = [*one, *(name for name in other if name not in one)]
    return [(name, one.get(name), other.get(name)) for name in names if not _equal(one.get(name), other.get(name))]


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_equal(one[name], other[name]) for name in one)
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        same = one.dtype == other.dtype and one.shape == other.shape
        return same and torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)
    return type(one) is type(other) and (one == other or one != one)


def _text(line: Mapping[str, Any]) -> str:
    return json.dumps(line, sort_keys=True)


def _scores(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    """The best score of ModelCheckpoint never gets worse in one fit, and the score of a file stays the same."""
    for key in before.keys() & after.keys():
        one, other = before[key], after[key]
        if not isinstance(one, Mapping) or not isinstance(other, Mapping):
            continue
        if one.get("dirpath") != other.get("dirpath"):  # resumed in another folder, where the scores begin anew
            continue
        known, later = one.get("best_k_models") or {}, other.get("best_k_models") or {}
        for path in known.keys() & later.keys():
            if float(known[path]) != float(later[path]):
                yield f"ModelCheckpoint knows {path} by the scores {float(known[path]):.6g} and {float(later[path]):.6g}"
        scores = one.get("best_model_score"), other.get("best_model_score")
        if isinstance(scores[0], Tensor) and isinstance(scores[1], Tensor) and "'mode': '" in key:
            sign = -1 if "'mode': 'max'" in key else 1
            if sign * float(scores[1]) > sign * float(scores[0]):
                yield f"the best score of ModelCheckpoint gets worse, from {float(scores[0]):.6g} to {float(scores[1]):.6g}"


def _moments(before: Checkpoint, after: Checkpoint) -> Iterator[_Reason]:
    """Adam's second moment shrinks by at most its decay in each step, so it bounds the later one from below in one fit."""
    for one, other in zip(before.optimizers, after.optimizers, strict=False):
        decays: dict[int, float] = {}
        for group, later in zip(one["param_groups"], other["param_groups"], strict=False):
            if "betas" in group and _equal(group["betas"][1], later["betas"][1]):  # else it is scheduled, and has no known bound
                decays |= dict.fromkeys(group["params"], float(group["betas"][1]))
        for index in one["state"].keys() & other["state"].keys():
            old, new = one["state"][index], other["state"][index]
            if "step" not in old or "step" not in new:
                continue
            count = float(new["step"]) - float(old["step"])
            if count < 0:
                yield _Reason(f"the optimizer has made {float(old['step']):g} and then {float(new['step']):g} steps", "step")
                return
            for name in ("exp_avg_sq", "sum"):
                if name not in old or name not in new or old[name].shape != new[name].shape:
                    continue
                kept = 1.0 if name == "sum" else float(decays.get(index, 0.0)) ** count
                precision = torch.finfo(old[name].dtype).eps * max(8.0, count)
                least = old[name].double() * kept * (1 - min(1.0, precision)) - 1e-30
                if bool((new[name].double() < least).any()):
                    yield _Reason(f"the optimizer's {name!r} falls faster than its decay allows in {count:g} steps", name)
                    return
