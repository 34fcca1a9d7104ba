"""Sentence representations of a model; their similarity is a baseline that uses no gradients."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from lightning_tracin.attribution.batching import batches_of
from lightning_tracin.attribution.losses import SummedLoss
from lightning_tracin.attribution.samples import SampleSet
from lightning_tracin.errors import TracInError

_Floats = npt.NDArray[np.float64]


@torch.no_grad()
def sentence_representations(
    module: nn.Module, samples: SampleSet, loss: SummedLoss, prepare: Callable[[Any], Any], batch_size: int = 32
) -> _Floats:
    """The mean of the last hidden states over a sample's positions, without padding: [samples, width].

    Args:
        module: a module in evaluation mode that contains one transformers model, which its loss calls once per batch.
        samples: the samples.
        loss: the module's loss, computed to run the model's forward pass.
        prepare: moves a batch to the module's device.
        batch_size: samples per forward pass.

    Raises:
        TracInError: there is no such model, or it returns no hidden states.
    """
    from transformers import PreTrainedModel  # slow to import

    models = [part for part in module.modules() if isinstance(part, PreTrainedModel)]
    if not models:
        raise TracInError("The module contains no transformers model, so there are no hidden states to use.")
    found: list[Tensor] = []

    def keep(called: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        states = getattr(output, "last_hidden_state", None)
        mask = inspect.signature(called.forward).bind_partial(*args, **kwargs).arguments.get("attention_mask")
        if states is None or (mask is not None and mask.shape != states.shape[:2]):
            raise TracInError(
                f"{type(called).__name__} returns no last hidden state with an attention mask of its positions, so there is no "
                "representation to use."
            )
        weights = torch.ones_like(states[:, :, :1]) if mask is None else mask.to(states.dtype)[:, :, None]
        found.append((states * weights).sum(1) / weights.sum(1).clamp(min=1))

    whole = np.zeros((0, 0))
    hook = models[0].base_model.register_forward_hook(keep, with_kwargs=True)
    try:
        for batch in batches_of(samples, batch_size):
            found.clear()
            loss(prepare(samples.batch(batch)), len(batch))
            if len(found) != 1 or len(found[0]) != len(batch):
                raise TracInError(
                    f"The loss of {len(batch)} samples calls {type(models[0].base_model).__name__} {len(found)} times, so it is "
                    "not known which hidden states are a sample's."
                )
            here = found[0].double().cpu().numpy()
            if not len(whole):
                whole = np.zeros((len(samples), here.shape[1]))
            whole[batch] = here
    finally:
        hook.remove()
    return whole
