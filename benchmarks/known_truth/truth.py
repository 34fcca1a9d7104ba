"""What is true: the loss of every probe after fits without some of the languages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import factorial

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch.utils.data import BatchSampler, RandomSampler
from transformers import get_linear_schedule_with_warmup

from benchmarks.known_truth.networks import DECAY, WARMUP, Encoded, network_of
from benchmarks.known_truth.plan import Plan
from benchmarks.known_truth.worlds import World
from lightning_tracin.trainer.refits import MembersOnly, seeded

Floats = npt.NDArray[np.float64]
Members = npt.NDArray[np.bool_]
Coalition = frozenset[str]


@dataclass(frozen=True)
class Truth:
    """Losses of fits on some of the languages.

    Attributes:
        languages: all of them, in alphabetical order.
        losses: mean loss of each language's probes after the fits on a coalition of train languages: coalition -> [seeds,
            languages].
    """

    languages: Sequence[str]
    losses: dict[Coalition, Floats]

    def need_by_seed(self) -> Floats:
        """How much a probe language's loss rises without a train language: [seeds, probe languages, train languages]."""
        whole = frozenset(self.languages)
        return np.stack([self.losses[whole - {name}] - self.losses[whole] for name in self.languages], axis=2)

    def need(self) -> Floats:
        """Its mean over seeds: [probe languages, train languages]."""
        found: Floats = self.need_by_seed().mean(0)
        return found

    def error(self) -> Floats:
        """Standard error of `need` over seeds."""
        each = self.need_by_seed()
        found: Floats = each.std(0, ddof=1) / np.sqrt(len(each))
        return found

    def pair(self, one: str, other: str) -> Floats:
        """How much each probe language's loss rises without two train languages: [probe languages]."""
        whole = frozenset(self.languages)
        found: Floats = (self.losses[whole - {one, other}] - self.losses[whole]).mean(0)
        return found

    def shapley(self) -> Floats:
        """Shapley value of each train language for the fall of each probe language's loss: [probe languages, train languages].

        The mean over all orders in which languages can join of what each adds (Shapley 1953). Needs every coalition.
        """
        size = len(self.languages)
        value = np.zeros((size, size))
        for column, name in enumerate(self.languages):
            for others in coalitions([one for one in self.languages if one != name]):
                weight = factorial(len(others)) * factorial(size - len(others) - 1) / factorial(size)
                value[:, column] += weight * (self.losses[others] - self.losses[others | {name}]).mean(0)
        return value


def coalitions(languages: Sequence[str]) -> Iterator[Coalition]:
    """All sets of languages, the empty one included.

    Example:
        >>> [sorted(one) for one in coalitions("AB")]
        [[], ['A'], ['B'], ['A', 'B']]
    """
    for size in range(len(languages) + 1):
        yield from map(frozenset, combinations(languages, size))


def truth_of(world: World, model: str, plan: Plan) -> Truth:
    """Fit on all languages and without each; for parallel documents, on every set of languages."""
    names, data = world.languages, Encoded(world, plan)
    whole = frozenset(names)
    wanted = list(coalitions(names)) if world.arm == "parallel" else [whole, *(whole - {name} for name in names)]
    of_train, of_probe = np.asarray(world.train.language), np.asarray(world.probes.language)
    losses = {}
    for one in wanted:
        members = np.isin(of_train, sorted(one))
        each = np.stack([probe_losses(data, model, members, seed, plan) for seed in range(plan.seeds)])
        losses[one] = np.stack([each[:, of_probe == name].mean(1) for name in names], axis=1)
    return Truth(names, losses)


def probe_losses(data: Encoded, model: str, members: Members, seed: int, plan: Plan) -> Floats:
    """The loss of every probe after a fit on some of the train samples; without any, with the first weights: [probes].

    The batches are those of the fit on all samples without those left out, as `trainer.refits` has them. It is the fit that the
    callbacks watch, in a plain loop (the tests compare the two), because a Trainer takes longer to start than such a fit takes.
    """
    with seeded(seed):
        network = network_of(model, data, plan)
    order = batches_of(len(data.train), members, seed, plan)
    optimizer = torch.optim.AdamW(network.parameters(), lr=plan.rate(model), weight_decay=DECAY)
    steps = len(order) * plan.epochs
    schedule = get_linear_schedule_with_warmup(optimizer, int(WARMUP * steps), steps)
    for epoch in range(plan.epochs if members.any() else 0):
        order.set_epoch(epoch)
        for batch in order:
            optimizer.zero_grad()
            F.cross_entropy(network(data.train.ids[batch]), data.train.labels[batch]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    network.eval()
    with torch.no_grad():
        losses = F.cross_entropy(network(data.probes.ids), data.probes.labels, reduction="none")
    found: Floats = losses.double().numpy()
    return found


def batches_of(count: int, members: Members, seed: int, plan: Plan) -> MembersOnly:
    """The batches of a fit, in an order that depends on the seed; without a last one that is smaller."""
    return MembersOnly(BatchSampler(RandomSampler(range(count)), plan.batch_size, drop_last=True), members, seed)
