"""The warning about languages of train samples and probes that do not match, the same for every way to make a run."""

from __future__ import annotations

from collections.abc import Collection

from lightning_utilities.core.rank_zero import rank_zero_warn

from lightning_tracin.attribution.language_names import mismatch


def warn_of_mismatch(train: Collection[str], probes: Collection[str]) -> None:
    """Warn, on rank 0, of what `mismatch` finds in the languages of train samples and probes."""
    message = mismatch(set(train), set(probes))
    if message is not None:
        rank_zero_warn(message)
