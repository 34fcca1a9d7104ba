"""Every honest reduction gives the sum of the samples' losses; batches come from real samples."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_tracin import TracInError
from lightning_tracin.attribution.losses import Probed, StepLoss, find_loss, loss_named


class Linear(nn.Module):
    def __init__(self, reduction: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.reduction = nn.Linear(4, 3), reduction

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = nn.functional.cross_entropy(self.layer(batch[0]), batch[1], reduction=self.reduction)
        return {"loss": loss}


class Own(Linear):
    def per_sample_loss(self, batch: Any) -> Tensor:
        return nn.functional.cross_entropy(self.layer(batch[0]), batch[1], reduction="none")


class WithoutIndex(Linear):
    def training_step(self, batch: Any) -> Tensor:  # type: ignore[override]
        return super().training_step(batch, 0)["loss"]


class OtherName(Linear):
    def training_step(self, batch: Any, _: int, more: int = 3) -> Tensor:  # type: ignore[override]
        assert more == 3
        return super().training_step(batch, 0)["loss"]


def batches(sizes: tuple[int, ...] = (5, 2)) -> list[Probed]:
    generator = torch.Generator().manual_seed(1)
    out = []
    for size in sizes:
        x, y = torch.randn(size, 4, generator=generator), torch.randint(3, (size,), generator=generator)
        out.append(Probed((x, y), [(x[i : i + 1], y[i : i + 1]) for i in range(size)], "train samples"))
    return out


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (Linear("mean"), "training_step (mean)"),
        (Linear("sum"), "training_step (sum)"),
        (WithoutIndex("mean"), "training_step (mean)"),
        (OtherName("mean"), "training_step (mean)"),
        (Own("mean"), "per_sample_loss"),
    ],
)
@pytest.mark.parametrize("size", [1, 6])
def test_loss_is_the_sum_over_samples(module: Linear, name: str, size: int) -> None:
    loss = find_loss(module, batches)
    assert loss.name == name
    x, y = batches((size,))[0].batch
    expected = sum(nn.functional.cross_entropy(module.layer(x[i]), y[i]) for i in range(size))
    torch.testing.assert_close(loss((x, y), size), expected)
    torch.testing.assert_close(loss_named(module, name)((x, y), size), expected)


def test_single_sample_cannot_tell_mean_from_sum() -> None:
    with pytest.raises(TracInError, match=r"The data do not show whether .* is a mean or a sum"):
        find_loss(Linear("mean"), lambda: batches((1, 1)))


def test_loss_that_is_a_mean_of_some_batches_and_a_sum_of_others() -> None:
    class Moody(Linear):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.reduction = "mean" if len(batch[0]) > 4 else "sum"
            return super().training_step(batch, batch_idx)

    with pytest.raises(TracInError, match="neither the mean nor the sum"):
        find_loss(Moody("mean"), batches)


def test_unknown_loss_is_refused() -> None:
    with pytest.raises(TracInError, match="no loss 'median'; the losses are per_sample_loss"):
        loss_named(Linear("mean"), "median")


def test_step_loss_of_many_values_is_refused() -> None:
    with pytest.raises(TracInError, match=r"returned a tensor of shape \[3\].*per_sample_loss"):
        StepLoss(Linear("none"), "mean")(batches((3,))[0].batch, 3)
