"""What is known of languages: family, script, place and number of speakers, from the package qwanqwa.

It ships Glottolog's family tree and coordinates and other sources (Poelman and de Lhoneux 2026, arXiv:2603.00620; data CC BY-SA
4.0), and needs no network. Its database takes seconds and 400 MB to load, so what is needed of it is kept in a small file: in the
user's cache folder, or in the folder that the environment variable `LIGHTNING_TRACIN_CACHE` names.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
from langcodes import Language

from lightning_tracin.analysis.tables import table_from
from lightning_tracin.errors import TracInError, needs
from lightning_tracin.storage.display_names import display_name
from lightning_tracin.storage.files import as_utf8, write_bytes
from lightning_tracin.storage.languages import meaning

COLUMNS = ("code", "name", "script", "family", "branches", "speakers", "latitude", "longitude")

#: Form of the file; another one is written anew.
_FORM = 1
_WHAT = "Facts of languages"


@dataclass(frozen=True)
class LanguageFacts:
    """A language in the family tree.

    Attributes:
        branches: names of its branches, from the family down; empty for a language without relatives.
        path: codes of these branches in Glottolog, and of the language at the end.
        speakers: how many; None if unknown.
        latitude: of the place that Glottolog gives the language, in degrees; None if it gives none.
        longitude: likewise.
    """

    branches: tuple[str, ...]
    path: tuple[str, ...]
    speakers: int | None = None
    latitude: float | None = None
    longitude: float | None = None


def facts_are_there() -> bool:
    """Whether the package is installed; does not load it."""
    return importlib.util.find_spec("qq") is not None


def facts_of(names: Iterable[str]) -> dict[str, LanguageFacts | None]:
    """Name -> facts of the language that it means; None for a name without a meaning, and for a language that is not in the tree.

    A macrolanguage that is not in the tree has the place of its dominant language by CLDR: Chinese that of Mandarin, for example.

    Raises:
        MissingPackageError: qwanqwa is not installed.

    Example:
        >>> found = facts_of(["de", "german", "klingon-x"])
        >>> found["de"].branches[0], found["de"] == found["german"], found["klingon-x"]
        ('Indo-European', True, None)
    """
    needs("qq", "languages", _WHAT)
    known, found = _every_language(), {}
    for name in dict.fromkeys(map(str, names)):
        said = meaning(name)
        found[name] = None if said is None else known.get(said.language)
    return found


def languages_table(names: Iterable[str]) -> pd.DataFrame:
    """A row for each language, with `COLUMNS`.

    `code` is the name in the data, `script` the code of the script (ISO 15924) that it means, `family` the root of its branches
    (its own name for a language without relatives), `branches` all of them from the root down. What is not known is None or
    NaN.

    Raises:
        MissingPackageError: qwanqwa is not installed.

    Example:
        >>> languages_table(["ko", "sv"])[["code", "name", "script", "family"]].values.tolist()
        [['ko', 'Korean', 'Kore', 'Koreanic'], ['sv', 'Swedish', 'Latn', 'Indo-European']]
    """
    rows: list[tuple[object, ...]] = []
    for name, facts in facts_of(names).items():
        said, shown = meaning(name), display_name(name)
        script = said.script or None if said is not None else None
        if facts is None:
            rows.append((name, shown, script, None, None, None, None, None))
            continue
        family = family_of(facts, shown)
        rows.append((name, shown, script, family, " > ".join(facts.branches), facts.speakers, facts.latitude, facts.longitude))
    table = table_from(rows, COLUMNS)
    typed: pd.DataFrame = table.astype({"speakers": "Int64", "latitude": "float64", "longitude": "float64"})
    return typed


def family_of(facts: LanguageFacts, name: str) -> str:
    """The family of a language; a language without relatives is a family of its own."""
    return facts.branches[0] if facts.branches else name


def without_facts(names: Iterable[str]) -> list[str]:
    """The languages that nothing is known of, in alphabetical order.

    Example:
        >>> without_facts(["de", "klingon-x"])
        ['klingon-x']
    """
    return sorted(name for name, facts in facts_of(names).items() if facts is None)


@lru_cache(maxsize=1)
def _every_language() -> dict[str, LanguageFacts]:
    """Code of a language (BCP-47's, ISO 639-3) -> facts."""
    path = _folder() / f"languages-{importlib.metadata.version('qwanqwa')}.{_FORM}.json"
    try:
        kept = json.loads(path.read_bytes())
        return {code: LanguageFacts(tuple(one[0]), tuple(one[1]), *one[2:]) for code, one in kept.items()}
    except (OSError, ValueError, TypeError):  # not there, or not whole
        found = _read_database()
    content = {code: [one.branches, one.path, one.speakers, one.latitude, one.longitude] for code, one in found.items()}
    try:
        write_bytes(path, as_utf8(json.dumps(content, sort_keys=True)))
    except TracInError as error:
        warnings.warn(
            f"{_WHAT} cannot be kept, so each process takes seconds to read them: {error} Name another folder with the "
            "environment variable LIGHTNING_TRACIN_CACHE.",
            stacklevel=2,
        )
    return found


def _folder() -> Path:
    named = os.environ.get("LIGHTNING_TRACIN_CACHE")
    return Path(named) if named else Path(needs("platformdirs", "languages", _WHAT).user_cache_path("lightning-tracin"))


def _read_database() -> dict[str, LanguageFacts]:
    """Facts of every language with a code."""
    database = needs("qq", "languages", _WHAT).Database.load()
    found: dict[str, LanguageFacts] = {}
    speakers: dict[str, int | None] = {}  # of macrolanguages that are not in the tree
    for one in sorted(database.all_languoids, key=lambda one: one.glottocode or ""):
        codes = [code for code in (one.iso_639_3, one.bcp_47) if code and len(code) <= 3]
        if one.glottocode is None:
            speakers |= dict.fromkeys(codes, one.speaker_count)
        else:
            found |= dict.fromkeys(codes, _facts(one))
    for code in sorted(found):
        macrolanguage = str(Language.get(code, normalize=False).prefer_macrolanguage().language)
        if macrolanguage in speakers:
            found.setdefault(macrolanguage, replace(found[code], speakers=speakers[macrolanguage]))
    return found


def _facts(one: Any) -> LanguageFacts:
    above = one.family_tree[::-1]
    return LanguageFacts(
        tuple(branch.name for branch in above),
        (*(branch.glottocode for branch in above), one.glottocode),
        one.speaker_count,
        one.latitude,
        one.longitude,
    )
