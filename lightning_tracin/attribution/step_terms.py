"""How a step's loss is made of the reductions that were recorded while it ran, and so of its samples' own losses."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import Node

from lightning_tracin.attribution.closeness import same
from lightning_tracin.attribution.reductions import Positions, Reduction, Reductions
from lightning_tracin.errors import TracInError

#: Operations between the reductions and the loss, at most.
_TAIL = 100

#: How one recorded reduction enters the loss: "mean" and "sum" by itself; a recorded sum divided by the number of samples
#: ("sum / samples"), by what its labels weigh ("sum / labels", or one more a sample where a causal model's first label counts:
#: "sum / labels + 1"), or by the n-th recorded total ("sum / total n").
Rule = str


@dataclass(frozen=True)
class Term:
    """One reduction that a step's loss is made of, as the batches that were checked show it.

    Attributes:
        name: of the function.
        rule: how it adds up samples, see `Reduced.possible`.
        coefficient: its factor, the same in every batch.
    """

    name: str
    rule: Rule
    coefficient: float


@dataclass(frozen=True)
class Reduced:
    """A step's loss and how it is made of its samples' losses.

    Attributes:
        loss: what the step returned.
        used: the reductions that it is a linear combination of, with the factor of each.
        totals: see `Reductions`.
        samples: of the batch.
    """

    loss: Tensor
    used: tuple[tuple[Reduction, float], ...]
    totals: tuple[tuple[float, Tensor], ...]
    samples: int

    @property
    def dtype(self) -> torch.dtype:
        """The least precise data type of the loss and its reductions."""
        return _coarsest([self.loss, *(reduction.value for reduction, _ in self.used)])

    @property
    def names(self) -> tuple[str, ...]:
        """The functions that reduced it."""
        return tuple(reduction.name for reduction, _ in self.used)

    def possible(self, position: int) -> dict[Rule, float]:
        """The rules that one reduction may follow, each with the coefficient that has to be the same in every batch."""
        reduction, factor = self.used[position]
        if not reduction.is_sum:
            return {"mean": factor}
        found = {f"sum / total {index}": factor * total for index, (total, _) in enumerate(self.totals)}
        if reduction.by_label:
            weights = float(reduction.weights.sum())
            found |= {"sum / labels": factor * weights, "sum / labels + 1": factor * (weights + self.samples)}
        return {**found, "sum": factor, "sum / samples": factor * self.samples}

    def follows(self, terms: Sequence[Term]) -> bool:
        """Whether the loss is made of these terms, with the same coefficients; where nothing has a label, they do not show."""
        if self.names != tuple(term.name for term in terms):
            return False
        for position, term in enumerate(terms):
            here = self.possible(position).get(term.rule)
            if here is None:
                return False
            is_empty = not math.isfinite(float(self.loss.detach())) and not bool(self.weights(position, term.rule).any())
            if not is_empty and not same(here, term.coefficient, self.dtype):
                return False
        return True

    def weights(self, position: int, rule: Rule) -> Tensor:
        """What each sample weighs in one reduction under a rule: [samples]."""
        reduction, _ = self.used[position]
        if rule in ("mean", "sum / labels"):
            return reduction.weights
        if rule == "sum / labels + 1":
            return reduction.weights + 1
        if rule.startswith("sum / total "):
            return self.totals[int(rule.split()[-1])][1]
        return torch.ones(self.samples, device=self.loss.device)

    def counts_tokens(self, position: int, rule: Rule) -> bool:
        """Whether a sample's weight in one reduction is that of its tokens or labels, and not the same for all samples."""
        return rule.startswith(("sum / labels", "sum / total ")) or (rule == "mean" and self.used[position][0].by_label)

    def own_losses(self, terms: Sequence[Term], by_token: bool = False) -> Tensor:
        """Each sample's own loss, part of the graph: [samples]. What has no label that counts has the loss 0.

        Args:
            terms: what the loss is made of.
            by_token: the sum over a sample's tokens of what each weighs, instead of their (weighted) mean.
        """
        found = []
        for position, term in enumerate(terms):
            losses = self.used[position][0].losses()
            if not by_token or not self.counts_tokens(position, term.rule):
                weights = self.weights(position, term.rule).to(losses)
                losses = torch.where(weights > 0, losses / weights.where(weights > 0, 1), 0)
            found.append(term.coefficient * losses)
        return torch.stack(found).sum(0)

    def position_losses(self, terms: Sequence[Term], by_token: bool = False) -> list[Tensor]:
        """What each position adds to its sample's own loss: for each term [samples, positions], part of the graph.

        Args:
            terms: what the loss is made of.
            by_token: see `own_losses`.

        Raises:
            TracInError: the positions of a term cannot be told apart.
        """
        found = []
        for position, term in enumerate(terms):
            losses = self.positions(position).losses()
            if not by_token or not self.counts_tokens(position, term.rule):
                weights = self.weights(position, term.rule).to(losses)[:, None]
                losses = torch.where(weights > 0, losses / weights.where(weights > 0, 1), 0)
            found.append(term.coefficient * losses)
        return found

    def positions(self, position: int) -> Positions:
        """The positions of one reduction.

        Raises:
            TracInError: they cannot be told apart.
        """
        reduction, _ = self.used[position]
        found = reduction.positions()
        if found is None:
            raise TracInError(
                f"The tokens of the loss ({reduction.name}) cannot be told apart: samples have different numbers of them."
            )
        return found

    def label_losses(self, terms: Sequence[Term]) -> Tensor | None:
        """-log of the probability of each sample's label, [samples]; None unless each sample has one label, and no other loss.

        A label that is left out costs nothing.
        """
        if len(terms) != 1 or not math.isclose(terms[0].coefficient, 1) or not self.used[0][0].is_log_probability:
            return None
        found = self.used[0][0].positions()
        if found is None or found.counted is None or found.counted.shape[1] != 1:
            return None
        return found.losses()[:, 0]

    def weigh_the_same(self, terms: Sequence[Term]) -> bool:
        """Whether every sample weighs the same in every reduction, and something at all."""
        weights = torch.stack([self.weights(position, term.rule).double() for position, term in enumerate(terms)])
        return bool(((weights == weights[:, :1]) & (weights > 0)).all())


def reduced(step: Callable[[], Tensor], samples: int) -> tuple[Tensor, Reduced | None]:
    """Run a step and see how its loss is made of its samples' losses.

    Args:
        step: returns the loss of a batch, a scalar.
        samples: of the batch.

    Returns:
        The loss, and how it is reduced; None where it is no linear combination of recorded reductions.

    Example:
        >>> import torch.nn.functional as F
        >>> logits, labels = torch.zeros(2, 3, requires_grad=True), torch.tensor([0, 2])
        >>> weight = torch.tensor([1.0, 1.0, 3.0])
        >>> loss, found = reduced(lambda: 0.5 * F.cross_entropy(logits, labels, weight), samples=2)
        >>> found.names, round(found.used[0][1], 3), found.weights(0, "mean").tolist()
        (('cross_entropy',), 0.5, [1.0, 3.0])
    """
    with Reductions(samples) as seen:
        loss = step()
    last = last_reductions(loss, seen.found)
    if not last:
        return loss, None
    factors = torch.autograd.grad(loss, [one.value for one in last], retain_graph=True)
    numbers = [loss, *(one.value for one in last), *factors, *(total for total, _ in seen.totals)]
    whole, *rest = torch.stack([number.detach().double() for number in numbers]).tolist()
    values, by, totals = rest[: len(last)], rest[len(last) : 2 * len(last)], rest[2 * len(last) :]
    products = [value * factor for value, factor in zip(values, by, strict=True)]
    is_empty = not math.isfinite(whole) and any(not bool(one.weights.any()) or 0 in totals for one in last)  # 0 / 0
    if not is_empty and not same(whole, sum(products), _coarsest([loss, *(one.value for one in last)]), sum(map(abs, products))):
        return loss, None
    by_sample = [each for _, each in seen.totals]
    return loss, Reduced(loss, tuple(zip(last, by, strict=True)), tuple(zip(totals, by_sample, strict=True)), samples)


def last_reductions(loss: Tensor, found: Sequence[Reduction]) -> list[Reduction]:
    """The reductions from which a loss is computed; none if it also depends on something else that has a gradient.

    The graph is followed from the loss back to the reductions, and no further: hooks on the model's layers are not reached.
    """
    nodes = {one.value.grad_fn: position for position, one in enumerate(found)}
    waiting: list[Node | None] = [loss.grad_fn]
    seen: set[Node] = set()
    last: set[int] = set()
    while waiting:
        node = waiting.pop()
        if node in nodes:
            last.add(nodes[node])
        elif node is None or node in seen:
            pass
        elif not node.next_functions or len(seen) > _TAIL:
            return []
        else:
            seen.add(node)
            waiting += [following for following, _ in node.next_functions if following is not None]
    return [found[position] for position in sorted(last)]


def _coarsest(tensors: Sequence[Tensor]) -> torch.dtype:
    return max((one.dtype for one in tensors), key=lambda dtype: torch.finfo(dtype).eps)
