"""Finds checkpoints that cannot be of one fit, before they become one run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_tracin.errors import TracInError
from lightning_tracin.trainer.checkpoints import Checkpoint

_REMEDY = "give the checkpoints of one fit"

#: What a schedule may change in an optimizer's group.
_SCHEDULED = {"lr", "betas", "momentum", "params"}

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


def require_one_fit(before: Checkpoint, after: Checkpoint) -> None:
    """Check what must hold between two checkpoints of one fit.

    Args:
        before: the one with fewer steps.
        after: the next one.

    Raises:
        TracInError: they are of two fits, or of one that changed its optimizer groups or hyperparameters.
    """
    reason = next(_reasons(before, after), None)
    if reason is not None:
        raise TracInError(f"{before.path} and {after.path} are not of one unchanged fit: {reason}; {_REMEDY}.")


def _reasons(before: Checkpoint, after: Checkpoint) -> Iterator[str]:
    steps = f"step {before.step} and step {after.step}"
    if after.epoch < before.epoch:
        yield f"{steps} are of epochs {before.epoch} and {after.epoch}, which go back"
    if after.passed <= before.passed + 1e-9:
        yield f"{steps} are after {before.passed:.3g} and {after.passed:.3g} passes over the train samples"
    changed = _changed(before.hyperparameters, after.hyperparameters)
    if changed:
        yield f"the hyperparameter {changed[0]!r} changes from {changed[1]!r} to {changed[2]!r}"
    if before.groups != after.groups:
        yield f"the optimizer groups change from {before.groups} to {after.groups} parameters"
    for number, (one, other) in enumerate(zip(_groups(before), _groups(after), strict=False)):
        changed = _changed(*({name: group[name] for name in group if name not in _SCHEDULED} for group in (one, other)))
        if changed:
            yield f"{changed[0]!r} of optimizer group {number} changes from {changed[1]!r} to {changed[2]!r}"
    for one, other in zip(before.schedulers, after.schedulers, strict=False):
        changed = _changed(*({name: state[name] for name in _CONSTANT if name in state} for state in (one, other)))
        if changed:
            yield f"{changed[0]!r} of the scheduler changes from {changed[1]!r} to {changed[2]!r}"
    for name, tensor in before.weights.items():
        there = after.weights.get(name)
        if there is None or there.shape != tensor.shape or there.dtype != tensor.dtype:
            kind = "nothing" if there is None else f"{there.dtype} {tuple(there.shape)}"
            yield f"{name!r} changes from {tensor.dtype} {tuple(tensor.shape)} to {kind}"
    if before.history and [*map(_text, before.history)] != [*map(_text, after.history)][: len(before.history)]:
        yield f"the log of {after.path.name} does not continue the log of {before.path.name}"
    yield from _scores(before.callbacks, after.callbacks)
    yield from _moments(before, after)


def _groups(checkpoint: Checkpoint) -> list[Mapping[str, Any]]:
    return [group for state in checkpoint.optimizers for group in state["param_groups"]]


def _changed(one: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    names = [*one, *(name for name in other if name not in one)]
    return next(((n, one.get(n), other.get(n)) for n in names if not _equal(one.get(n), other.get(n))), None)


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


def _moments(before: Checkpoint, after: Checkpoint) -> Iterator[str]:
    """Adam's second moment shrinks by at most its decay in each step, so it bounds the later one from below in one fit."""
    for one, other in zip(before.optimizers, after.optimizers, strict=False):
        decays = {index: group["betas"][1] for group in one["param_groups"] if "betas" in group for index in group["params"]}
        for index in one["state"].keys() & other["state"].keys():
            old, new = one["state"][index], other["state"][index]
            if "step" not in old or "step" not in new:
                continue
            count = float(new["step"]) - float(old["step"])
            if count < 0:
                yield f"the optimizer has made {float(old['step']):g} and then {float(new['step']):g} steps"
                return
            for name in ("exp_avg_sq", "sum"):
                if name not in old or name not in new or old[name].shape != new[name].shape:
                    continue
                kept = 1.0 if name == "sum" else float(decays.get(index, 0.0)) ** count
                precision = torch.finfo(old[name].dtype).eps * max(8.0, count)
                least = old[name].double() * kept * (1 - min(1.0, precision)) - 1e-30
                if bool((new[name].double() < least).any()):
                    yield f"the optimizer's {name!r} falls faster than its decay allows in {count:g} steps"
                    return
