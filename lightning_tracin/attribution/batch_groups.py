"""The group (such as the language) of each sample in a train batch, from what a recorded loader knows of the batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.utils.data import IterableDataset

from lightning_tracin.attribution.dataset_columns import known_values, language_of, stored_column
from lightning_tracin.attribution.recorded_loader import BatchFacts
from lightning_tracin.config import ContributionOptions
from lightning_tracin.errors import TracInError


class GroupNames:
    """Numbers for the names of groups, in the order in which they are met.

    Example:
        >>> names = GroupNames()
        >>> names.number("de"), names.number("en"), names.number("de"), names.known
        (0, 1, 0, ['de', 'en'])
    """

    def __init__(self, known: Sequence[str] = ()) -> None:
        self._numbers = {name: number for number, name in enumerate(known)}

    def number(self, name: str) -> int:
        """The number of a name, a new one if the name is new."""
        return self._numbers.setdefault(name, len(self._numbers))

    @property
    def known(self) -> list[str]:
        """All names, in the order of their numbers."""
        return list(self._numbers)


class BatchGroups:
    """Reads the groups of batches.

    They are read from the dataset's own column where it has one and a batch's positions are known, else from the raw samples of
    each batch.

    Args:
        dataset: of the train samples.
        options: the columns.
        given: each sample's group, in dataset order, instead of a column.

    Raises:
        TracInError: groups were given for another number of samples, or for a stream.

    Example:
        >>> groups = BatchGroups([1.0, 2.0], ContributionOptions(), ["de", "en"])
        >>> groups.of(BatchFacts([1, 0], {}), step=1)
        ['en', 'de']
    """

    def __init__(self, dataset: Any, options: ContributionOptions, given: Sequence[Any] | None) -> None:
        self._dataset, self._columns, self._by = dataset, options.group_columns, options.by
        is_stream = isinstance(dataset, IterableDataset)
        if given is not None and (is_stream or len(given) != len(dataset)):
            what = "a stream, whose samples have no position" if is_stream else f"{len(dataset)} train samples"
            raise TracInError(f"{len(given)} languages were given for {what}; give one for each, in the dataset's order.")
        self._is_given = given is not None
        columns = [given] if given is not None else [None if is_stream else stored_column(dataset, one) for one in self._columns]
        self._stored: list[str | None] | None = None
        if all(column is not None for column in columns):
            self._stored = self._named([column for column in columns if column is not None])

    @property
    def names(self) -> list[str]:
        """The groups of the whole dataset, in alphabetical order; empty if only batches tell."""
        return sorted({name for name in self._stored or () if name is not None})

    @property
    def beside(self) -> tuple[str, ...]:
        """The columns that have to travel beside a batch."""
        return () if self._is_given else self._columns

    def _named(self, columns: Sequence[Sequence[Any]]) -> list[str | None]:
        values = [known_values(self._dataset, name, column) for name, column in zip(self._columns, columns, strict=False)]
        rows = values[0] if len(values) == 1 else list(zip(*values, strict=True))
        return [language_of(row) for row in rows]

    def of(self, facts: BatchFacts, step: int) -> list[str]:
        """The group of each sample of a batch, in its order.

        Args:
            facts: of the batch.
            step: the optimizer step that it is for, for messages.

        Raises:
            TracInError: a sample has no group, or nothing tells it.
        """
        stored = self._at(facts.indices)
        found = self._beside(facts) if stored is None else stored
        unknown = [place for place, name in enumerate(found) if name is None]
        if unknown:
            raise TracInError(f"Sample {unknown[0]} of the batch of step {step} has no {self._by}; name one for each sample.")
        return [name for name in found if name is not None]

    def _at(self, indices: Sequence[Any] | None) -> list[str | None] | None:
        """The stored groups at positions; None if there are none, or the sampler draws something else than positions."""
        if self._stored is None or indices is None:
            return None
        try:
            return [self._stored[index] for index in indices]
        except (TypeError, IndexError):
            return None

    def _beside(self, facts: BatchFacts) -> list[str | None]:
        columns = [facts.columns.get(name) for name in self._columns]
        missing = [name for name, column in zip(self._columns, columns, strict=True) if column is None]
        if not missing:
            return self._named([column for column in columns if column is not None])
        if self._stored is not None:
            raise TracInError(
                f"The sampler of the train DataLoader does not draw positions in the dataset, so no {self._by} can be looked up "
                f"there; let each raw sample have its own, as {missing[0]!r}."
            )
        raise TracInError(
            f"The train samples have no column {missing[0]!r} with their {self._by}, neither in the dataset nor in the "
            "raw samples that the collate function gets. Name the right one with "
            f"`{'language_column' if self._by == 'language' else 'group_column'}=...`, or give `languages=[...]`."
        )
