"""Choice of the probes among candidates: those that all fits classify correctly, the same items in every language."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from lightning_tracin.errors import TracInError


def choose_probes(languages: Sequence[str], items: Sequence[str], correct: npt.ArrayLike, per_language: int) -> tuple[int, ...]:
    """Choose the first candidates of each language that every fit classifies correctly.

    If all languages have the same items, an item is chosen only if it is classified correctly in all of them, so that the
    probes are parallel.

    Args:
        languages: language of each candidate.
        items: item of each candidate.
        correct: whether a fit classifies a candidate correctly, [fits, candidates].
        per_language: number of probes of each language.

    Returns:
        Positions of the chosen candidates, in the candidates' order.

    Raises:
        TracInError: a language has too few such candidates.

    Example:
        >>> choose_probes(["de", "de", "en", "en"], ["1", "2", "1", "2"], [[True, True, False, True]], per_language=1)
        (1, 3)
    """
    right = np.asarray(correct, dtype=np.bool_)
    if right.ndim != 2 or right.shape[1] != len(languages):
        raise TracInError(f"correct {right.shape} should be [fits, candidates] for {len(languages)} candidates.")
    everywhere = [bool(column.all()) for column in right.T]
    by_language = {
        language: [i for i, other in enumerate(languages) if other == language] for language in dict.fromkeys(languages)
    }
    parallel = len({frozenset(items[i] for i in places) for places in by_language.values()}) == 1
    if parallel:
        wrong = {items[i] for i in range(len(items)) if not everywhere[i]}
        everywhere = [item not in wrong for item in items]
    chosen: list[int] = []
    for language, places in by_language.items():
        usable = [i for i in places if everywhere[i]]
        if len(usable) < per_language:
            inside = " in every language" if parallel else ""
            raise TracInError(
                f"All {len(right)} fits classify only {len(usable)} of {len(places)} candidates of language {language!r} "
                f"correctly{inside}, but probes_per_language={per_language}: take fewer probes_per_language or more "
                "candidates_per_language, or set correct_probes to false."
            )
        chosen += usable[:per_language]
    return tuple(sorted(chosen))
