"""A few train samples' losses, taken with a snapshot and compared when its influence is computed.

A snapshot keeps weights, buffers, epoch and step. A loss that reads anything else that changes during a fit (an attribute of
the module, a frozen teacher that follows the weights, a schedule in a list) is another one when it is evaluated later. Then the
losses differ, and there is an error instead of scores of a loss that the fit never had.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from lightning_tracin.attribution.closeness import CLOSE, deviation
from lightning_tracin.attribution.losses import loss_named
from lightning_tracin.attribution.no_collectives import no_collectives
from lightning_tracin.attribution.samples import SampleSet
from lightning_tracin.errors import TracInError
from lightning_tracin.gradients.freezing import uncompiled

#: Samples whose losses are kept.
_SAMPLES = 4

#: Largest relative difference in float32 that another machine's rounding may cause: the stored losses cannot be recomputed in
#: float64.
_ROUGH = 1e-4


def witnesses_of(samples: SampleSet) -> list[int]:
    """The samples whose losses are kept: some, spread over the dataset."""
    last = len(samples) - 1
    return sorted({round(index * last / max(1, _SAMPLES - 1)) for index in range(min(_SAMPLES, len(samples)))})


@torch.no_grad()
@no_collectives()
def witness_losses(model: nn.Module, loss: str, samples: SampleSet, prepared: Callable[[Any], Any]) -> tuple[float, ...]:
    """The losses of the witnesses, each alone.

    Args:
        model: a copy in evaluation mode.
        loss: name of the loss.
        samples: the train samples.
        prepared: turns a collated batch into the input of a step.
    """
    of_one = loss_named(model, loss)
    with uncompiled(model):
        return tuple(float(of_one(prepared(samples.batch([index])), 1)) for index in witnesses_of(samples))


def require_same_losses(
    found: Sequence[float], kept: Sequence[float], samples: SampleSet, dtype: torch.dtype, snapshot: str
) -> None:
    """Compare the witnesses' losses with those of the moment of the snapshot.

    Args:
        found: with what the snapshot keeps.
        kept: taken with the snapshot; empty in runs that do not have them.
        samples: the train samples.
        dtype: in which the losses were computed.
        snapshot: its name.

    Raises:
        TracInError: one differs by more than rounding.
    """
    scale = max(map(abs, kept), default=0.0)
    for index, now, then in zip(witnesses_of(samples), found, kept, strict=False):
        most = _ROUGH if dtype == torch.float32 else CLOSE[dtype]
        if not deviation(now, then, scale) <= most:
            raise TracInError(
                f"The loss of train sample {index} is {now:.6g} with what snapshot {snapshot} keeps, but was {then:.6g} when it "
                "was taken: it depends on something that changes during the fit and is not in a snapshot (an attribute of the "
                "module, a frozen model that follows the weights, data that change). Compute influence at each snapshot "
                "(`when='snapshot'`), or let the loss read only weights, buffers, `self.current_epoch` and `self.global_step`."
            )
