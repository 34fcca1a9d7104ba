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

from lightning_tracin.attribution.closeness import same
from lightning_tracin.attribution.fresh_batch import fresh
from lightning_tracin.attribution.no_collectives import no_collectives
from lightning_tracin.attribution.samples import SampleSet, joined
from lightning_tracin.attribution.step_loss import StepLoss, Summed, SummedLoss, loss_of_step
from lightning_tracin.attribution.step_terms import reduced
from lightning_tracin.errors import TracInError

_REMEDY = (
    "Let `training_step` end in `F.cross_entropy(logits, labels)` over all tokens, or add a method `per_token_loss(self, batch) "
    "-> Tensor[batch, positions]` to the module, of which each row adds up to the sample's loss."
)


@dataclass(frozen=True)
class Token:
    """One position of a sample's loss.

    Attributes:
        column: its column among all positions of all terms.
        term: number of the term of the loss: 0, unless the loss adds up several.
        position: in the term. -1: the term has a single loss for the whole sample.
        target: the class that the model should answer; -1 if that is not known.
        classes: among how many; 0 if that is not known.
        count: positions of the term, also those that do not count in the loss; 0 if that is not known.
    """

    column: int
    term: int
    position: int
    target: int = -1
    classes: int = 0
    count: int = 0


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
class _Term:
    """What the positions of one term of the loss add to their samples' own losses."""

    losses: Tensor  # [samples, positions]
    counted: Tensor | None = None  # [samples, positions]
    targets: Tensor | None = None  # [samples, positions]
    classes: int = 0


@dataclass(frozen=True)
class TokenLoss:
    """The loss of samples, and for a `TokenBatch` that of its positions.

    Attributes:
        base: the samples' loss.
    """

    base: SummedLoss

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

    @property
    def is_of_one(self) -> bool:
        """As of the samples' loss."""
        return self.base.is_of_one

    def summed(self, batch: Any, samples: int) -> Summed:
        """Forward pass of a batch with this number of samples, or positions."""
        if not isinstance(batch, TokenBatch):
            return self.base.summed(batch, samples)
        wanted = torch.is_grad_enabled()
        every = torch.cat([term.losses for term in self._terms(batch.batch, samples)], 1)
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
            TracInError: the loss of a token cannot be seen, or the tokens' losses do not add up to the sample's.
        """
        terms = self._terms(batch, 1)
        if all(term.losses.shape[1] == 1 for term in terms):
            raise TracInError(
                "Per-token scores need to see the loss of each token, but what is seen of the loss has a single value for a "
                f"sample. {_REMEDY}"
            )
        with torch.no_grad():
            whole, total = self.base(batch, 1), float(sum(term.losses.detach().double().sum() for term in terms))
        if not same(total, float(whole), whole.dtype):
            raise TracInError(
                f"The losses of a sample's tokens add up to {total:.6g}, but its own loss is {float(whole):.6g}; return from "
                "`per_token_loss` what each token adds to its sample's loss (for a mean: divided by the number of its tokens)."
            )
        tokens: list[Token] = []
        first = 0
        for number, term in enumerate(terms):
            count = term.losses.shape[1]
            live = torch.ones(count, dtype=torch.bool) if term.counted is None else term.counted[0].cpu()
            targets = [-1] * count if term.targets is None else term.targets[0].tolist()
            for position in live.nonzero()[:, 0].tolist():
                shown = position if count > 1 else -1
                tokens.append(Token(first + position, number, shown, targets[position], term.classes, count))
            first += count
        return tuple(tokens)

    def _terms(self, batch: Any, samples: int) -> list[_Term]:
        """What each position of a batch adds to its sample's own loss, part of the graph."""
        own = getattr(self.module, "per_token_loss", None)
        if own is not None:
            return [_Term(_of_module(own, batch, samples))]
        if not isinstance(self.base, StepLoss):
            raise TracInError(
                "Per-token scores need to see the loss of each token, but `per_sample_loss` returns one value for a sample. "
                f"{_REMEDY}"
            )
        with torch.enable_grad():
            found = reduced(lambda: loss_of_step(self.module, batch), samples)[1]
            if found is None or not self.base.terms or not found.follows(self.base.terms):
                raise TracInError(
                    "Per-token scores need to see the loss of each token, but `training_step` computes it in a way that is not "
                    f"seen. {_REMEDY}"
                )
            losses = found.position_losses(self.base.terms, by_token=self.base.unit == "token")
            seen = [found.positions(number) for number in range(len(losses))]
        return [_Term(one, of.counted, of.targets, of.classes) for one, of in zip(losses, seen, strict=True)]


def _of_module(function: Callable[[Any], Any], batch: Any, samples: int) -> Tensor:
    """What a module's `per_token_loss` returns.

    Raises:
        TracInError: it returns something else.
    """
    with no_collectives():
        losses = function(fresh(batch))
    if not isinstance(losses, Tensor) or losses.dim() != 2 or len(losses) != samples:
        got = list(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
        raise TracInError(
            f"`per_token_loss` should return a tensor of shape [{samples}, positions], what each position adds to its sample's "
            f"loss, but returned {got}."
        )
    return losses


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
