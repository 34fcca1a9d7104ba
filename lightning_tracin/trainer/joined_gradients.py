"""Adds up split gradients over the processes of a fit, as DDP does with the fit's own gradients."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed

from lightning_tracin.attribution.batch_groups import GroupNames
from lightning_tracin.gradients.group_split import GroupSplit
from lightning_tracin.gradients.group_vectors import PENDING, GroupVectors


class JoinedGradients:
    """The mean over all processes of each group's gradients since the last step.

    Processes may have met groups in different orders, so they exchange names.

    Args:
        split: of this process.
        names: of its groups.
    """

    def __init__(self, split: GroupSplit, names: GroupNames) -> None:
        self._split, self._names = split, names

    def __call__(self, pending: dict[tuple[str, int], GroupVectors]) -> None:
        """Replace gradients by their means; every process has to call it with those of the same step."""
        known = self._names.known
        labels = {(name, known[source] if source >= 0 else source): vectors for (name, source), vectors in pending.items()}
        mine = {key: vectors.rows is not None for key, vectors in labels.items()}
        everywhere = exchanged(mine)
        ranks = len(everywhere)
        keys = sorted({key for keys in everywhere for key in keys}, key=str)
        rows = [key for key in keys if all(keys_of_rank.get(key, True) for keys_of_rank in everywhere)]
        sparse = {key: (labels[key].rows, labels[key][PENDING]) for key in rows if key in labels}
        for rank, theirs in enumerate(exchanged(sparse)):
            for key, (touched, values) in theirs.items() if rank != torch.distributed.get_rank() else ():
                self._of(key).add(PENDING, values, touched)
        for key in keys:
            vectors = self._of(key)
            if key not in rows:
                device = self._split.parameters[key[0]].device  # where the processes can add up, wherever the account is kept
                summed = vectors.dense(PENDING).to(device).contiguous()
                torch.distributed.all_reduce(summed)
                vectors.drop(PENDING)
                vectors.add(PENDING, summed)
            vectors[PENDING].div_(ranks)

    def _of(self, key: tuple[str, str | int]) -> GroupVectors:
        name, label = key
        return self._split.of(name, label if isinstance(label, int) else self._names.number(label))


def joined_counts(counts: Mapping[str, int]) -> Counter[str]:
    """The sums of all processes' counts."""
    found: Counter[str] = Counter()
    for theirs in exchanged(dict(counts)):
        found.update(theirs)
    return found


def exchanged(value: Any) -> list[Any]:
    """The value of every process, by rank."""
    found: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, value)
    return found
