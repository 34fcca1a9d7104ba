"""How closely languages are related: branches of the family tree that they share, and whether they share a script."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from langcodes import Language

from lightning_tracin.errors import TracInError
from lightning_tracin.storage.languages import meaning

#: Families and branches, each with the languages on it and on none below, after Glottolog (Hammarström et al., CC-BY-4.0)
#: as in the URIEL database (Littell et al. 2017, "URIEL and lang2vec"; lang2vec 1.1.2, family features). Below its family, a
#: branch is named if two of these languages are on it.
_TREE = """
Indo-European: el
  Germanic > Northwest Germanic
    West Germanic: en
      Franconian: de nl
    North Germanic > East Scandinavian: da sv
  Italic > Latino-Faliscan > Latinic > Imperial Latin > Romance: ro
    Italo-Western Romance: it
      Western Romance > Shifted Western Romance: fr
        Southwestern Shifted Romance: ca
          West Ibero-Romance: es pt
  Balto-Slavic > Slavic: bg
    East Slavic: ru uk
    West Slavic: pl cs
  Indo-Iranian: fa
    Indo-Aryan: bn
      Indo-Aryan Central zone > Subcontinental Central Indo-Aryan > Western Hindi > Hindustani: hi ur
Afro-Asiatic > Semitic > West Semitic > Central Semitic: ar he
Turkic: tr
Uralic: hu
  Finnic: fi et
Koreanic: ko
Japonic: ja
Sino-Tibetan: zh
Austroasiatic: vi
Tai-Kadai: th
Atlantic-Congo: sw
Dravidian: ta te
Austronesian > Nuclear Austronesian > Malayo-Polynesian: jv
  Malayo-Sumbawan: su
    North and East Malayo-Sumbawan: ban ace
      Malayic > Nuclear Malayic: id min
"""


def _branches(tree: str) -> dict[str, list[str]]:
    """Language -> its branches. A line is under the line above it that is indented less."""
    found: dict[str, list[str]] = {}
    above: list[list[str]] = []
    for line in tree.strip("\n").splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        branches, _, languages = line.strip().partition(": ")
        above = [*above[:depth], branches.split(" > ")]
        found |= {language: [branch for part in above for branch in part] for language in languages.split()}
    return found


_BRANCHES = _branches(_TREE)


def relatedness(probe_languages: Sequence[str], train_languages: Sequence[str]) -> npt.NDArray[np.float64]:
    """Number of branches that two languages share from the root of the family tree down, plus 1 if they share a script.

    A language shares one more with itself: the language.

    Returns:
        [probe languages, train languages].

    Raises:
        TracInError: a language is not in the table.

    Example:
        >>> relatedness(["de", "uk"], ["german", "en", "ru", "ko"]).tolist()
        [[7.0, 5.0, 1.0, 0.0], [1.0, 1.0, 5.0, 0.0]]
    """
    unknown = [name for name in (*probe_languages, *train_languages) if _language(name) not in _BRANCHES]
    if unknown:
        raise TracInError(
            f"The family tree has no language {unknown[0]!r}; it has {', '.join(sorted(_BRANCHES))}. Leave the comparison with "
            "relatedness out, or add the language's branches."
        )
    return np.asarray([[_shared(probe, train) for train in train_languages] for probe in probe_languages], dtype=np.float64)


def _language(name: str) -> str | None:
    """The code in the tree: one of several languages of a macrolanguage, such as Standard Arabic, has its place."""
    known = meaning(name)
    return None if known is None else Language.get(known.language).prefer_macrolanguage().language


def _shared(one: str, other: str) -> int:
    first, second = meaning(one), meaning(other)
    assert first is not None
    assert second is not None
    one_code, other_code = str(_language(one)), str(_language(other))
    same = [mine == yours for mine, yours in zip(_BRANCHES[one_code], _BRANCHES[other_code], strict=False)]
    depth = same.index(False) if False in same else len(same)
    return depth + (one_code == other_code) + (first.script == second.script)
