"""What is one language and what is not: codes, names, scripts, regions, and names that nobody knows."""

from __future__ import annotations

import pytest

from lightning_tracin.storage.languages import alike, own_languages


@pytest.mark.parametrize(
    ("probe", "train"),
    [
        *(("en", name) for name in ("english", "English", "eng", "EN", "eng_Latn", "en ", "ENG", "en-Latn")),
        *(("zh", name) for name in ("zh-Hans", "zho_Hans", "chi", "Chinese", "中文", "ZH_hans")),
        *(("de", name) for name in ("deu", "ger", "German", "Deutsch", "deutsch", "deu_Latn")),
        ("zh-Hans", "Simplified Chinese"),
        ("iw", "he"),
        ("in", "id"),
        ("pt-BR", "pt_BR"),
        ("pt-BR", "pt-br"),
        ("fr", "Franc\u0327ais"),
        ("nan", "nan_Hans"),
        ("ru", "русский"),
        ("klingon-x", "klingon-x"),
    ],
)
def test_one_language_by_two_names(probe: str, train: str) -> None:
    assert own_languages([probe], [train, "sw"]) == {probe: train}
    assert own_languages([train], [probe, "sw"]) == {train: probe}


@pytest.mark.parametrize(
    ("probe", "train"),
    [
        ("en", "en-US"),
        ("en-GB", "en-US"),
        ("pt", "pt-BR"),
        ("zh", "zh-Hant"),
        ("zh", "zh-TW"),
        ("zh", "cmn"),
        ("sr", "sr-Latn"),
        ("no", "nb"),
        ("nu\x00l", "null"),
        ("klingon-x", "Klingon"),
        ("klingon-x", "klingon"),
        ("lang1", "lang2"),
        ("lang1", "Lang1"),
        ("A", "a"),
        ("A", "auq"),
        ("xx", "XX"),
        ("und", "en"),
        ("mul", "zxx"),
        ("de", "den"),
        ("englishish", "en"),
        ("English words", "en"),
        ("German 2", "de"),
        ("en1", "en"),
        ("en-x-a", "en-x-b"),
        ("", "-"),
        ("x" * 300, "x" * 299),
        ("../en", "en"),
        ("nan", "NaN%"),
    ],
)
def test_two_languages(probe: str, train: str) -> None:
    assert own_languages([probe], [train]) == {}
    assert alike([probe, train]) == []


def test_a_script_is_told_apart_where_there_are_two() -> None:
    assert own_languages(["zh-Hans", "zh-Hant"], ["zh", "en"]) == {}
    assert own_languages(["zho_Hans", "zho_Hant"], ["zh-Hant", "zh-Hans"]) == {"zho_Hans": "zh-Hans", "zho_Hant": "zh-Hant"}
    assert own_languages(["Simplified Chinese"], ["zh-Hans", "zh"]) == {}  # of two that mean it, which one is not known


def test_the_same_name_comes_first() -> None:
    assert own_languages(["en", "english"], ["en", "english"]) == {"en": "en", "english": "english"}
    assert own_languages(["eng"], ["en", "english"]) == {}
    assert alike(["en", "english", "de"]) == [("en", "english")]
