"""Facts of languages from qwanqwa, against Glottolog's, looked up by hand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_tracin import TracInError
from lightning_tracin.analysis.language_facts import facts_of, languages_table, without_facts
from lightning_tracin.analysis.language_order import ordered
from lightning_tracin.errors import MissingPackageError

FAMILIES = {
    "en": "Indo-European",
    "fa": "Indo-European",
    "pes_Arab": "Indo-European",
    "zh": "Sino-Tibetan",
    "cmn": "Sino-Tibetan",
    "zho_Hans": "Sino-Tibetan",
    "ar": "Afro-Asiatic",
    "arb_Arab": "Afro-Asiatic",
    "sw": "Atlantic-Congo",
    "ms": "Austronesian",
    "id": "Austronesian",
    "az": "Turkic",
    "qu": "Quechuan",
    "fi": "Uralic",
    "hu": "Uralic",
    "ta": "Dravidian",
    "vi": "Austroasiatic",
    "th": "Tai-Kadai",
    "ko": "Koreanic",
    "ja": "Japonic",
    "eu": "Basque",  # no relatives, so a family of its own
}


def test_families_are_glottologs() -> None:
    table = languages_table(FAMILIES)
    assert dict(zip(table["code"], table["family"], strict=True)) == FAMILIES


def test_a_row_says_name_script_branches_speakers_and_place() -> None:
    row = languages_table(["swe_Latn"]).iloc[0]
    assert (row["code"], row["name"], row["script"]) == ("swe_Latn", "Swedish", "Latn")
    branches = row["branches"].split(" > ")
    assert branches[0] == "Indo-European"
    assert {"Germanic", "North Germanic"} <= set(branches)
    assert 8e6 < row["speakers"] < 2e7
    assert row["latitude"] == pytest.approx(59.8, abs=3)
    assert row["longitude"] == pytest.approx(17.4, abs=3)


def test_a_macrolanguage_has_the_place_of_its_dominant_language() -> None:
    found = facts_of(["sw", "swh", "fa", "pes", "zh", "cmn", "ar", "arb"])
    for macrolanguage, dominant in (("sw", "swh"), ("fa", "pes"), ("zh", "cmn"), ("ar", "arb")):
        one, other = found[macrolanguage], found[dominant]
        assert one is not None
        assert other is not None
        assert (one.path, one.latitude) == (other.path, other.latitude)


def test_languages_without_facts_keep_their_row_and_are_named() -> None:
    names = ["de", "klingon-x", "und"]
    table = languages_table(names)
    assert list(table["code"]) == names
    assert list(table["family"].isna()) == [False, True, True]
    assert list(table["speakers"].isna()) == [False, True, True]
    assert without_facts(names) == ["klingon-x", "und"]


@pytest.mark.slow
def test_facts_are_kept_and_a_damaged_file_is_written_anew(tmp_path: Path) -> None:
    code = "from lightning_tracin.analysis.language_facts import facts_of; print(facts_of(['sv'])['sv'].branches[0])"
    environment = {"LIGHTNING_TRACIN_CACHE": str(tmp_path)}
    facts_of(["sv"])
    (shared,) = Path(os.environ["LIGHTNING_TRACIN_CACHE"]).glob("languages-*.json")
    kept = tmp_path / shared.name
    kept.write_bytes(shared.read_bytes()[:1000])
    assert _run(code, environment) == "Indo-European"
    assert kept.read_bytes() == shared.read_bytes()
    kept.write_bytes(kept.read_bytes().replace(b'"Indo-European"', b'"Kept"'))
    assert _run(code, environment) == "Kept"  # the database was not read again


def _run(code: str, environment: dict[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, timeout=300, check=True
    )
    return done.stdout.strip()


def test_without_the_extra_facts_are_an_error_and_the_order_is_by_script(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["en", "ru", "hu", "sv", "uk", "zz-top", "ja"]
    assert ordered(names) == ["ru", "uk", "sv", "en", "ja", "hu", "zz-top"]  # Slavic, North and West Germanic, Japonic, Uralic
    monkeypatch.setitem(sys.modules, "qq", None)
    expected = r"^Facts of languages need qq, which is not installed: pip install 'lightning-tracin\[languages\]'\.$"
    with pytest.raises(MissingPackageError, match=expected):
        facts_of(["de"])
    assert issubclass(MissingPackageError, TracInError)
    assert ordered(names) == ["ru", "uk", "ja", "en", "hu", "sv", "zz-top"]  # Cyrillic, Japanese, Latin, by name
