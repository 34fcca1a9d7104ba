"""Takes the trained weights from a checkpoint, where averaged ones may be stored in their place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_tracin.errors import TracInError

_AVERAGES = ("ema", "averag", "shadow", "swa")
_FLOATS_OF_HALF = (torch.float16, torch.bfloat16)


def trained_weights(path: Path, saved: Mapping[str, Any]) -> Mapping[str, Tensor]:
    """The weights that the optimizer trained.

    Args:
        path: the checkpoint's, for messages.
        saved: its content.

    Raises:
        TracInError: it holds only averaged weights, or weights in a lower precision than they were trained in.

    Example:
        >>> one, other = {"w": torch.zeros(1)}, {"w": torch.ones(1)}
        >>> trained_weights(Path("a.ckpt"), {"state_dict": one, "current_model_state": other})
        {'w': tensor([1.])}
    """
    weights: Mapping[str, Tensor] = saved.get("current_model_state", saved["state_dict"])
    if "current_model_state" not in saved:
        _refuse_averages(path, saved, weights)
    states = [values for state in saved.get("optimizer_states", ()) for values in state.get("state", {}).values()]
    moments = {
        values[name].dtype
        for values in states
        for name in ("exp_avg", "exp_avg_sq", "momentum_buffer", "square_avg", "sum")
        if isinstance(values.get(name), Tensor)
    }
    types = {tensor.dtype for tensor in weights.values() if tensor.is_floating_point()}
    if types and types <= set(_FLOATS_OF_HALF) and torch.float32 in moments:
        raise TracInError(
            f"{path} holds weights in {types.pop()}, but its optimizer trained them in torch.float32; give checkpoints of the "
            "trained weights, which were not converted."
        )
    return weights


def _refuse_averages(path: Path, saved: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    remedy = "give checkpoints that were saved during the fit and hold the trained weights"
    for key, state in saved.get("callbacks", {}).items():
        if isinstance(state, Mapping) and set(state) == {"latest_update_step"}:
            raise TracInError(f"{path} holds the weights that {key} averaged, not the trained ones; {remedy}.")
    others = {name: value for name, value in saved.items() if name not in ("state_dict", "optimizer_states", "loops")}
    for name, found in _tensors(others, ""):
        if any(word in name.lower() for word in _AVERAGES) and _same(found, weights):
            raise TracInError(f"{path} holds averaged weights, the same as in its {name}, not the trained ones; {remedy}.")


def _tensors(value: Any, name: str) -> Iterator[tuple[str, Mapping[str, Any] | list[Tensor]]]:
    """The mappings and the lists that hold tensors, with their names."""
    if isinstance(value, Mapping):
        if any(isinstance(one, Tensor) for one in value.values()):
            yield name, value
        for key, one in value.items():
            yield from _tensors(one, f"{name}.{key}".strip("."))
    elif isinstance(value, list | tuple) and value and all(isinstance(one, Tensor) for one in value):
        yield name, list(value)


def _same(found: Mapping[str, Any] | list[Tensor], weights: Mapping[str, Tensor]) -> bool:
    """Whether tensors are the weights, by their names, or in any order if they have none."""
    if isinstance(found, list):
        return all(any(one.shape == own.shape and torch.equal(one.to(own), own) for own in weights.values()) for one in found)
    plain = {str(name).removeprefix("module."): one for name, one in found.items() if isinstance(one, Tensor)}
    shared = [name for name in weights if name in plain]
    return len(shared) > 0 and all(
        plain[name].shape == weights[name].shape and torch.equal(plain[name].to(weights[name]), weights[name]) for name in shared
    )
