"""Leave train languages out and fit again: by how much does the loss of each probe language change?

This is what a table of influence is compared with (`analysis.agreement`). Where the train samples of the languages are
translations of each other, leaving one language out shows little: its translations replace it. Then pairs are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from lightning_tracin.analysis.lds import Members
from lightning_tracin.analysis.tables import table_from
from lightning_tracin.errors import TracInError
from lightning_tracin.storage.languages import own_languages

Floats = npt.NDArray[np.float64]

#: Joins the names of languages that are left out together.
_AND = " + "


@dataclass(frozen=True)
class Changes:
    """Changes in the loss of every probe language without some train languages.

    Attributes:
        values: loss without them minus loss with them, in nats: [seeds, probe languages, columns].
        probe_languages: the rows, in alphabetical order.
        left_out: the train languages that each column leaves out.
        probes: number of probes of each row.

    Example:
        >>> changes = changes_of([[[1.0, 2.0], [1.5, 2.0]]], [("en",)], ["de", "fr"])  # without English, German gets worse
        >>> changes.values.tolist(), changes.table()["train_language"].tolist()
        ([[[0.5], [0.0]]], ['en', 'en'])
    """

    values: Floats
    probe_languages: tuple[str, ...]
    left_out: tuple[tuple[str, ...], ...]
    probes: tuple[int, ...]

    @property
    def own(self) -> npt.NDArray[np.bool_]:
        """Which cells leave out the probe language's own train language: [probe languages, columns]."""
        own = self.names()
        return np.asarray([[own[probe] in left for left in self.left_out] for probe in self.probe_languages], dtype=np.bool_)

    def names(self) -> dict[str, str]:
        """Probe language -> its name among the train languages; its own name if it is not among them."""
        trained = sorted({name for left in self.left_out for name in left})
        return {probe: own_languages(self.probe_languages, trained).get(probe, probe) for probe in self.probe_languages}

    def table(self) -> pd.DataFrame:
        """One row per probe language and what is left out.

        Columns: `probe_language`, `train_language` (several are joined by " + "), `change` (mean over seeds, in nats), `error`
        (standard error over seeds; NaN with one seed), `seeds`, `probes`.
        """
        seeds = len(self.values)
        mean = self.values.mean(0)
        error = np.asarray(stats.sem(self.values, axis=0) if seeds > 1 else np.full_like(mean, np.nan))
        rows = [
            (probe, _AND.join(left), mean[row, column], error[row, column], seeds, self.probes[row])
            for row, probe in enumerate(self.probe_languages)
            for column, left in enumerate(self.left_out)
        ]
        return table_from(rows, ["probe_language", "train_language", "change", "error", "seeds", "probes"])

    def summed(self, cells: npt.ArrayLike, train_languages: Sequence[str]) -> Floats:
        """What a table by single train languages says of the columns: sums over the languages that each leaves out.

        Args:
            cells: [..., probe languages, train languages].
            train_languages: names of its columns.

        Returns:
            [..., probe languages, columns]; NaN where a language that is left out is unknown.
        """
        table = np.asarray(cells, dtype=np.float64)
        inside = [[name in left for name in train_languages] for left in self.left_out]
        found: Floats = np.stack([table[..., chosen].sum(-1) for chosen in inside], axis=-1)
        return found


def changes_of(losses: npt.ArrayLike, left_out: Sequence[Sequence[str]], probe_languages: Sequence[str]) -> Changes:
    """Average the changes of the probes of each language.

    Args:
        losses: losses of the probes, [seeds, 1 + columns, probes]; the first fit of a seed is on all train samples, and each
            further one without the languages of a column.
        left_out: the train languages that each column leaves out.
        probe_languages: language of each probe.

    Raises:
        TracInError: the shapes do not match.
    """
    values, languages = np.asarray(losses, dtype=np.float64), np.asarray(probe_languages)
    if values.ndim != 3 or values.shape[1:] != (1 + len(left_out), len(languages)):
        raise TracInError(
            f"Losses {values.shape} should be [seeds, fits, probes], with {1 + len(left_out)} fits (all samples, then without "
            f"each of {len(left_out)} choices of languages) and {len(languages)} probes."
        )
    change = values[:, 1:] - values[:, :1]
    names = sorted(set(probe_languages))
    rows = np.stack([change[:, :, languages == name].mean(2) for name in names], axis=1)
    counts = tuple(int((languages == name).sum()) for name in names)
    return Changes(rows, tuple(names), tuple(map(tuple, left_out)), counts)


def singles(languages: Sequence[str]) -> list[tuple[str, ...]]:
    """Each train language alone.

    Example:
        >>> singles(["de", "en"])
        [('de',), ('en',)]
    """
    return [(language,) for language in languages]


def pairs(languages: Sequence[str]) -> list[tuple[str, ...]]:
    """Every two train languages.

    Example:
        >>> pairs(["de", "en", "ru"])
        [('de', 'en'), ('de', 'ru'), ('en', 'ru')]
    """
    return list(combinations(languages, 2))


def without_languages(languages: Sequence[str], left_out: Sequence[Sequence[str]]) -> Members:
    """The train samples that are not in the languages of each choice: [choices, train].

    Args:
        languages: language of each train sample.
        left_out: choices of languages.

    Raises:
        TracInError: a choice leaves out nothing, or everything.

    Example:
        >>> without_languages(["de", "en", "ru"], [("de",), ("en", "ru")]).tolist()
        [[False, True, True], [True, False, False]]
    """
    kept = np.asarray([[language not in left for language in languages] for left in left_out], dtype=np.bool_)
    for left, line in zip(left_out, kept, strict=True):
        if line.all() or not line.any():
            raise TracInError(
                f"The train samples are in {', '.join(sorted(set(languages)))}; {_AND.join(left)!r} cannot be left out of these."
            )
    return kept


def grid(table: pd.DataFrame, value: str, probe_languages: Sequence[str], train_languages: Sequence[str]) -> Floats:
    """A column of a long table as [probe languages, train languages].

    Raises:
        TracInError: a cell is missing or occurs twice.

    Example:
        >>> table = pd.DataFrame({"probe_language": ["de", "de"], "train_language": ["en", "ru"], "value": [0.5, 0.25]})
        >>> grid(table, "value", ["de"], ["ru", "en"]).tolist()
        [[0.25, 0.5]]
    """
    keys: Mapping[str, Sequence[str]] = {"probe_language": probe_languages, "train_language": train_languages}
    wide = table.drop_duplicates([*keys, value]).set_index([*keys])[value]
    wanted = pd.MultiIndex.from_product(list(keys.values()), names=list(keys))
    twice, missing = wide.index[wide.index.duplicated()], wanted.difference(wide.index)
    if len(twice) or len(missing):
        which, what = (twice, "several values") if len(twice) else (missing, "no value")
        raise TracInError(
            f"The table has {what} of {value} for {' and '.join(which[0])}; give one row for each pair of languages."
        )
    cells: Floats = wide.reindex(wanted).to_numpy(np.float64).reshape(len(probe_languages), len(train_languages))
    return cells
