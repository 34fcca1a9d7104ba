"""Vectors of one parameter's shape for one group of samples: of a table, only the rows that were touched."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from lightning_tracin.gradients.forms import Dense, Form, Outer, Rows, coalesced

#: Names of a group's vectors: the gradient since the last step, the first moment, and the sum of the updates of the window.
PENDING, MOMENT, TOTAL = "pending", "moment", "total"


class TouchedRows:
    """The rows of a table that any group has touched, in the order in which they were first touched.

    Args:
        table: number of rows of the table.
        device: of the rows.

    Attributes:
        rows: [touched].

    Example:
        >>> touched = TouchedRows(9, torch.device("cpu"))
        >>> touched.places(torch.tensor([7, 2])).tolist(), touched.places(torch.tensor([2, 5])).tolist(), touched.rows.tolist()
        ([0, 1], [1, 2], [7, 2, 5])
    """

    def __init__(self, table: int, device: torch.device) -> None:
        self.rows = torch.zeros(0, dtype=torch.int64, device=device)
        self._places = torch.full((table,), -1, dtype=torch.int64, device=device)

    def places(self, rows: Tensor) -> Tensor:
        """The places of different rows, which are touched from now on."""
        new = rows[self._places[rows] < 0]
        if len(new):
            self._places[new] = torch.arange(len(self.rows), len(self.rows) + len(new), device=self.rows.device)
            self.rows = torch.cat([self.rows, new])
        return self._places[rows]


class GroupVectors:
    """The vectors of one parameter and one group, all zero at first.

    Args:
        shape: of the parameter.
        dtype: of the vectors.
        device: of the vectors.
        is_table: whether to keep only rows that were touched; any dense gradient makes it dense.
        touched: the rows that all groups of the table have touched.

    Attributes:
        shape: of the parameter.
        rows: [touched] the rows that are kept; None if all are.

    Example:
        >>> vectors = GroupVectors((4, 2), torch.float32, torch.device("cpu"), is_table=True)
        >>> vectors.add(PENDING, torch.tensor([[1.0, 2.0]]), torch.tensor([3]))
        >>> vectors.rows.tolist(), vectors[PENDING].tolist()
        ([3], [[1.0, 2.0]])
        >>> vectors.add(PENDING, torch.ones(4, 2))
        >>> vectors.rows, vectors[PENDING][3].tolist()
        (None, [2.0, 3.0])
    """

    def __init__(
        self,
        shape: Sequence[int],
        dtype: torch.dtype,
        device: torch.device,
        is_table: bool,
        touched: TouchedRows | None = None,
    ) -> None:
        self.shape, self._dtype, self._device = tuple(shape), dtype, device
        self.rows: Tensor | None = torch.zeros(0, dtype=torch.int64, device=device) if is_table else None
        self._slots: Tensor | None = None  # [table] row -> place in `rows`, -1 if it is not kept
        self._values: dict[str, Tensor] = {}
        self._touched = touched
        self._shared = torch.zeros(0, dtype=torch.int64, device=device)  # [touched] the rows' places among those of all groups

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def __getitem__(self, name: str) -> Tensor:
        """A vector, in the parameter's shape or [touched, width]."""
        if name not in self._values:
            shape = self.shape if self.rows is None else (len(self.rows), *self.shape[1:])
            self._values[name] = torch.zeros(shape, dtype=self._dtype, device=self._device)
        return self._values[name]

    def get(self, name: str) -> Tensor | None:
        """A vector; None if it is zero."""
        return self._values.get(name)

    def drop(self, name: str) -> None:
        """Make a vector zero, and free its memory."""
        self._values.pop(name, None)

    def add(self, name: str, values: Tensor, rows: Tensor | None = None) -> None:
        """Add to a vector.

        Args:
            name: of the vector.
            values: in the parameter's shape, or [rows, width].
            rows: [rows] different rows of the table.

        The vector may take the memory of the values over.
        """
        values = values.to(self._device, self._dtype)
        if rows is None:
            self._make_dense()
            if name in self._values:
                self._values[name].add_(values)
            else:
                self._values[name] = values
            return
        rows = rows.to(self._device)
        if self.rows is not None:
            rows = self._kept(rows)
        self[name].index_add_(0, rows, values)

    def pick(self, whole: Tensor, is_compact: bool = False) -> Tensor:
        """What belongs to this group's rows, of a tensor of the parameter's shape.

        Args:
            whole: in the parameter's shape, or only the rows that any group has touched.
            is_compact: whether it is the latter.
        """
        whole = whole.to(self._device)
        return whole if self.rows is None else whole[self._shared if is_compact else self.rows]

    def at_rows(self, name: str, rows: Tensor) -> Tensor:
        """Some rows of a vector, with zeros where nothing was touched.

        Args:
            name: of the vector.
            rows: [rows] of the table.
        """
        rows = rows.to(self._device)
        if self.rows is None:
            return self[name][rows]
        if not len(self.rows):
            return torch.zeros(len(rows), *self.shape[1:], dtype=self._dtype, device=self._device)
        places = self._places()[rows]
        return self[name][places.clamp(min=0)] * (places >= 0)[:, None]

    def dense(self, name: str) -> Tensor:
        """A vector in the parameter's shape."""
        if self.rows is None:
            return self[name]
        whole = torch.zeros(self.shape, dtype=self._dtype, device=self._device)
        whole[self.rows] = self[name]
        return whole

    @property
    def nbytes(self) -> int:
        """Memory of the vectors."""
        return sum(value.nbytes for value in self._values.values())

    def state(self) -> dict[str, Tensor]:
        """The vectors and rows, for a checkpoint."""
        return {**self._values, **({} if self.rows is None else {"rows": self.rows})}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state` returned."""
        values = {name: value.to(self._device, copy=True) for name, value in state.items()}
        self.rows, self._slots = values.pop("rows", None), None
        if self.rows is not None and self._touched is not None:
            self._shared = self._touched.places(self.rows)
        self._values = values

    def _kept(self, rows: Tensor) -> Tensor:
        """The places of some rows, which are kept from now on."""
        assert self.rows is not None
        slots = self._places()
        new = rows[slots[rows] < 0]
        if len(new):
            slots[new] = torch.arange(len(self.rows), len(self.rows) + len(new), device=self._device)
            self.rows = torch.cat([self.rows, new])
            if self._touched is not None:
                self._shared = torch.cat([self._shared, self._touched.places(new)])
            for name, value in self._values.items():
                self._values[name] = torch.cat([value, value.new_zeros(len(new), *value.shape[1:])])
        return slots[rows]

    def _places(self) -> Tensor:
        """Row of the table -> its place in `rows`, -1 if it is not kept: [table]."""
        assert self.rows is not None
        if self._slots is None:
            self._slots = torch.full(self.shape[:1], -1, dtype=torch.int64, device=self._device)
            self._slots[self.rows] = torch.arange(len(self.rows), device=self._device)
        return self._slots

    def _make_dense(self) -> None:
        if self.rows is not None:
            self._values = {name: self.dense(name) for name in self._values}
            self.rows = self._slots = None


def summed_by_group(
    forms: Sequence[Form], groups: Tensor, present: Sequence[int]
) -> dict[int, list[tuple[Tensor, Tensor | None]]]:
    """The sums of per-sample gradients over the samples of each group.

    Args:
        forms: the gradients, whose sum counts.
        groups: [samples] number of each sample's group.
        present: the different numbers in `groups`.

    Returns:
        Group -> pieces to add up: values, and their rows (None: all elements, flat).

    Example:
        >>> forms = [Dense(torch.tensor([[1.0], [2.0], [4.0]]))]
        >>> {group: pieces[0][0].tolist() for group, pieces in summed_by_group(forms, torch.tensor([0, 1, 0]), [0, 1]).items()}
        {0: [5.0], 1: [2.0]}
    """
    found: dict[int, list[tuple[Tensor, Tensor | None]]] = {group: [] for group in present}
    for form in forms:
        if isinstance(form, Rows):
            each = coalesced(groups[form.sample], form.row, form.values, int(groups.max()) + 1, form.table)
            for group in present:
                chosen = each.sample == group
                found[group].append((each.values[chosen], each.row[chosen]))
        elif isinstance(form, Dense):
            for group in present:
                found[group].append((form.values[groups == group].sum(0), None))
        else:
            for group, summed in _outer_sums(form, groups, present):
                found[group].append((summed, None))
    return found


def _outer_sums(form: Outer, groups: Tensor, present: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
    """The sums of outer products by group, without the positions that are zero, such as padding."""
    positions = form.left.shape[1]
    left, right = form.left.flatten(0, 1), form.right.flatten(0, 1)
    of_position = groups if positions == 1 else groups.repeat_interleave(positions)
    of_position = torch.where(_is_zero(left) | _is_zero(right), -1, of_position) if positions > 1 else of_position
    for group in present:
        chosen = (of_position == group).nonzero()[:, 0]
        yield group, left[chosen].T @ right[chosen]


def _is_zero(lines: Tensor) -> Tensor:
    """Which lines are zero: [lines]; the first column, which is rarely zero by chance, is looked at first."""
    found = lines[:, 0] == 0
    doubtful = found.nonzero()[:, 0]
    found[doubtful] = ~lines[doubtful].any(1)
    return found
