"""Reads the probes from their loaders and chooses some of each language."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

from lightning_tracin.attribution.processes import Processes
from lightning_tracin.attribution.samples import SampleSet, from_loader, joined, require_loader
from lightning_tracin.config import ProbeChoice, SampleColumns
from lightning_tracin.errors import TracInError
from lightning_tracin.storage.sample_table import SampleTable


def probes_from_loaders(
    loaders: Any, columns: SampleColumns, languages: Sequence[Any] | None = None, environment: Processes | None = None
) -> SampleSet:
    """The samples behind one probe loader or several.

    Args:
        loaders: a DataLoader, or a list or mapping of them.
        columns: which columns hold language, item, text and label.
        languages: each probe's language across all loaders, instead of a column.
        environment: see `from_loader`.

    Raises:
        TracInError: there are none, or `from_loader` raises it.
    """
    if isinstance(loaders, Mapping):
        loaders = list(loaders.values())
    several = list(loaders) if isinstance(loaders, list | tuple) else [] if loaders is None else [loaders]
    if not several:
        raise TracInError(
            "There are no probes: the Trainer has no validation loader, and `probes=` was not given. Pass a DataLoader of the "
            "samples to explain, as `probes=DataLoader(...)` or as the fit's validation loader."
        )
    if languages is None:
        return joined([from_loader(loader, columns, "probes", None, environment) for loader in several])
    for loader in several:
        require_loader(loader, "probes")
    ends = [0, *accumulate(len(loader.dataset) for loader in several)]
    if ends[-1] != len(languages):
        raise TracInError(f"{len(languages)} languages were given for {ends[-1]} probes; give one for each, in order.")
    each = [languages[start:end] for start, end in pairwise(ends)]
    return joined([from_loader(loader, columns, "probes", own, environment) for loader, own in zip(several, each, strict=True)])


def chosen_probes(probes: SampleSet, choice: ProbeChoice) -> SampleSet:
    """The probes of the chosen languages, at most the chosen number of each.

    Raises:
        TracInError: a chosen language has no samples.
    """
    present = probes.table.counts()
    for language in choice.probe_languages or ():
        if language not in present:
            raise TracInError(f"The probe language {language!r} has no samples; the probes have {', '.join(map(repr, present))}.")
    if choice.probe_languages is not None:
        kept = set(choice.probe_languages)
        probes = probes.take([index for index, language in enumerate(probes.table.language) if language in kept])
    return probes.take(some_of_each_language(probes.table, choice.max_probes_per_language))


def some_of_each_language(table: SampleTable, most: int | None, seed: int = 0) -> list[int]:
    """Choose at most `most` samples of each language: the same items in every language if samples are parallel.

    Samples are chosen in the order of a hash of the item (or of the position, without items): random, but reproducible.

    Example:
        >>> table = SampleTable(("de",) * 3 + ("sw",) * 3, (0, 1, 2) * 2, ("",) * 6, (None,) * 6)
        >>> some_of_each_language(table, most=2)
        [0, 2, 3, 5]
    """
    by_language: dict[str, list[tuple[bytes, int]]] = {}
    for index, (language, item) in enumerate(zip(table.language, table.item, strict=True)):
        key = f"{seed}/{index if item is None else item}".encode()
        by_language.setdefault(language, []).append((hashlib.blake2b(key, digest_size=8).digest(), index))
    return sorted(index for entries in by_language.values() for _, index in sorted(entries)[:most])
