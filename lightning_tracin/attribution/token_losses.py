"""The loss of a sample split over its tokens, and each token as a sample of its own.

A sample's own loss is a sum over positions of what each adds, ``l = sum over p of l_p``, so its gradient is the sum of theirs.
A position is computed like any other sample: a batch holds the same sample several times, and the loss of each copy is what
one position adds. Everything that computes samples' gradients then computes those of tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_tracin.attribution.no_collectives import no_collectives
from lightning_tracin.attribution.samples import SampleSet, joined
from lightning_tracin.attribution.step_loss import StepLoss, Summed, SummedLoss, loss_of_step
from lightning_tracin.attribution.step_terms import Reduced, reduced
from lightning_tracin.errors import TracInError


@dataclass(frozen=True)
class Token:
    """One position of a sample's loss.

    Attributes:
        column: its column among all positions of all terms.
        term: number of the term of the loss: 0, unless the loss adds up several.
        position: in the term. -1: the term has a single loss for the whole sample.
        target: the class that the model should answer; -1 if that is not known.
        classes: among how many; 0 if that is not known.
    """

    column: int
    term: int
    position: int
    target: int = -1
    classes: int = 0


@dataclass(frozen=True)
class TokenBatch:
    """Copies of one sample, collated; of each, one position is meant.

    Attributes:
        batch: the collated batch.
        columns: the column of each copy's position.
    """

    batch: Any
    columns: tuple[int, ...]

    def prepared(self, prepare: Callable[[Any], Any]) -> TokenBatch:
        """The same on the module's device."""
        return replace(self, batch=prepare(self.batch))


def prepared_tokens(prepare: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A function that prepares batches of samples as `prepare` does, and batches of tokens too."""
    return lambda batch: batch.prepared(prepare) if isinstance(batch, TokenBatch) else prepare(batch)


@dataclass(frozen=True)
class TokenLoss:
    """The loss of samples, and for a `TokenBatch` that of its positions.

    Attributes:
        base: the samples' loss.
    """

    base: StepLoss

    @property
    def module(self) -> nn.Module:
        """The module whose loss it is."""
        return self.base.module

    @property
    def deviation(self) -> float:
        """That of the samples' loss."""
        return self.base.deviation

    @property
    def name(self) -> str:
        """Name of the samples' loss."""
        return self.base.name

    def summed(self, batch: Any, samples: int) -> Summed:
        """Forward pass of a batch with this number of samples, or positions."""
        if not isinstance(batch, TokenBatch):
            return self.base.summed(batch, samples)
        wanted = torch.is_grad_enabled()
        every = torch.cat(self._positions(batch.batch, samples)[1], 1)
        losses = every.gather(1, torch.tensor(batch.columns, device=every.device)[:, None])[:, 0]
        losses = losses if wanted else losses.detach()
        return Summed(losses.sum(), True, lambda: losses)

    def __call__(self, batch: Any, samples: int) -> Tensor:
        """`summed(...).total`."""
        return self.summed(batch, samples).total

    @no_collectives()
    def tokens(self, batch: Any) -> tuple[Token, ...]:
        """The positions of one sample that count.

        Args:
            batch: of this sample alone, on the module's device.

        Raises:
            TracInError: the loss has one value for a sample, or it is not the sum of what is seen of its positions.
        """
        found, losses = self._positions(batch, 1)
        if all(one.shape[1] == 1 for one in losses):
            names = " and ".join(dict.fromkeys(found.names))
            raise TracInError(
                f"Per-token scores need a loss over tokens, but `training_step`'s ({names}) has a single value for a sample."
            )
        tokens: list[Token] = []
        first = 0
        for term, one in enumerate(losses):
            seen, count = found.positions(term), one.shape[1]
            live = torch.ones(count, dtype=torch.bool) if seen.counted is None else seen.counted[0].cpu()
            targets = [-1] * count if seen.targets is None else seen.targets[0].tolist()
            for position in live.nonzero()[:, 0].tolist():
                shown = position if count > 1 else -1
                tokens.append(Token(first + position, term, shown, targets[position], seen.classes))
            first += count
        return tuple(tokens)

    def _positions(self, batch: Any, samples: int) -> tuple[Reduced, list[Tensor]]:
        """How the loss of a batch is made, and what each position adds: for each term [samples, positions]."""
        with torch.enable_grad():
            found = reduced(lambda: loss_of_step(self.module, batch), samples)[1]
            if found is None or not found.follows(self.base.terms):
                raise TracInError(
                    "Per-token scores need to see the loss of each token, but the loss of a sample is not made of what the "
                    "batches of the check showed. Let `training_step` compute it in the same way for all samples."
                )
            return found, found.position_losses(self.base.terms, by_token=self.base.unit == "token")


def token_loss(base: SummedLoss) -> TokenLoss:
    """The loss of tokens that belongs to a samples' loss.

    Raises:
        TracInError: the loss of a token cannot be seen.
    """
    if not isinstance(base, StepLoss):
        raise TracInError(
            "Per-token scores need to see the loss of each token, but the module's `per_sample_loss` returns one number for a "
            "sample; remove it, so that `training_step` is the loss."
        )
    if not base.terms:
        raise TracInError(
            "Per-token scores need to see the loss of each token, but `training_step` computes its mean in a way that is not "
            "seen; end it in `F.cross_entropy(logits, labels)`, or in the mean or sum of a tensor with one loss for each token."
        )
    return TokenLoss(base)


@dataclass(frozen=True)
class _Copies:
    """A dataset of one sample, once for each of its tokens."""

    samples: SampleSet
    index: int
    columns: tuple[int, ...]

    def __getitems__(self, places: list[int]) -> list[tuple[Any, int]]:
        """The sample again and again, each time with a column."""
        rows = self.samples.items([self.index] * len(places))
        return [(row, self.columns[place]) for row, place in zip(rows, places, strict=True)]


def token_samples(samples: SampleSet, tokens: Sequence[Sequence[Token]]) -> SampleSet:
    """Each token as a sample, in the order given; a batch holds tokens of one sample only.

    Args:
        samples: the samples.
        tokens: of each of them.
    """
    return joined([_tokens_of(samples, index, [one.column for one in each]) for index, each in enumerate(tokens)])


def _tokens_of(samples: SampleSet, index: int, columns: Sequence[int]) -> SampleSet:
    collate = samples.collates[samples.source(index)]

    def collated(items: list[Any]) -> TokenBatch:
        return TokenBatch(collate([row for row, _ in items]), tuple(column for _, column in items))

    count = len(columns)
    return SampleSet(
        samples.table.take([index] * count),
        (_Copies(samples, index, tuple(columns)),),
        (collated,),
        tuple((0, place) for place in range(count)),
    )
