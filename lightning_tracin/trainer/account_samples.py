"""What ContributionCallback does for single train samples, with `samples=True`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import index
from typing import Any

import torch
from humanize import naturalsize
from torch import Tensor

from lightning_tracin.attribution.recorded_loader import BatchFacts
from lightning_tracin.attribution.sample_credits import SampleCredits
from lightning_tracin.config import ContributionOptions
from lightning_tracin.errors import TracInError
from lightning_tracin.gradients.group_split import GroupSplit
from lightning_tracin.reporting.attempts import reason
from lightning_tracin.storage.account import AccountStore
from lightning_tracin.trainer.account_probes import AccountProbes
from lightning_tracin.trainer.joined_gradients import exchanged


class AccountSamples:
    """The contributions of single train samples in one fit.

    Args:
        probes: of the account.
        split: of the fit's gradients, which it watches.
        options: the callback's.
        store: the account's files.
        number: the number of a train group's name.
        ranks: number of processes.

    Attributes:
        credits: of the samples.
    """

    def __init__(
        self,
        probes: AccountProbes,
        split: GroupSplit,
        options: ContributionOptions,
        store: AccountStore,
        number: Callable[[str], int],
        ranks: int,
    ) -> None:
        self._probes, self._split, self._store = probes, split, store
        self._device = None if options.device is None else torch.device(options.device)
        self._count = len(probes.train_table)
        self._query_groups = [probes.measured.table.language[query] for query in probes.queries]
        self.credits = SampleCredits(
            self._count, len(probes.groups), number, options.every_n_steps, exchanged if ranks > 1 else None
        )
        split.watch = self.credits

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on with the credits of a checkpoint."""
        self.credits.load(state, lambda name: self._probes.vectors(name, self._split, self._device))

    def begin(self, facts: BatchFacts, names: Sequence[str]) -> Tensor:
        """Credit the samples of a batch: their positions, for `GroupSplit.begin`.

        Raises:
            TracInError: they have none, or other ones than the train samples that the account began with.
        """
        indices = facts.indices
        try:
            positions = torch.tensor([index(one) for one in indices or ()], dtype=torch.int64)
        except TypeError:
            positions = torch.tensor([-1])
        if not len(positions) or int(positions.min()) < 0 or int(positions.max()) >= self._count:
            raise TracInError(
                f"samples=True needs the position of each train sample among the {self._count} of the dataset, but the train "
                f"DataLoader drew {'whole batches' if indices is None else indices[:3]}; use a sampler of positions and the same "
                "dataset all along, or leave `samples` out."
            )
        self.credits.begin(positions, names)
        return positions

    def begin_window(self, epoch: int) -> None:
        """Look at the probes' gradients where a window begins."""
        self.credits.begin_window(self._probes.mean_gradients(self._split, self._device, epoch))

    def end_window(self, nats: Tensor) -> None:
        """Make the credits of a window add up to the contributions of the train groups: [queries, train groups]."""
        exact = torch.stack([nats[[one == group for one in self._query_groups]].mean(0) for group in self._probes.groups], dim=1)
        self.credits.end_window(exact)

    def write(self) -> str | None:
        """Write the contributions; a warning if the system refuses to store them, or if some belong to no sample."""
        try:
            self._store.write_samples(self.credits.total.float())
        except TracInError as error:
            if not isinstance(error.__cause__, OSError):
                raise
            return (
                f"the contributions of single samples could not be written to {self._store.folder} ({reason(error)}); those of "
                "groups are complete."
            )
        left = self.credits.left.abs()
        if float(left.max()) <= 1e-4 * float(self.credits.total.sum(0).abs().max()):
            return None
        group = self._probes.groups[int(left.argmax())]
        return (
            f"{float(self.credits.left[left.argmax()]):.2g} nats of the contributions to {group} belong to no sample, because no "
            "sample of their group was visited in those windows or shortly before."
        )

    def announced(self) -> str:
        """What the line before the fit says of them."""
        return (
            f" Contributions of single samples take {naturalsize(self.credits.nbytes)} more (a vector of the trainable weights "
            f"for each of {len(self._probes.groups)} probe groups, and as many numbers for each of {self._count:,} train "
            "samples), and until each step what its layers took in and the gradients of what they returned."
        )
