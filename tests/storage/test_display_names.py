"""Names of languages as people write them, against names written out by hand."""

from __future__ import annotations

import pytest

from lightning_tracin.storage.display_names import display_name, display_names

WRITTEN = {
    "en": "English",
    "EN": "English",
    "ko": "Korean",
    "kor": "Korean",
    "ar": "Arabic",
    "arb_Arab": "Standard Arabic",
    "zh": "Chinese",
    "zh-Hans": "Chinese (Simplified)",
    "zho_Hans": "Chinese (Simplified)",
    "zho_Hant": "Chinese (Traditional)",
    "yue": "Cantonese",
    "deu_Latn": "German",
    "sr": "Serbian",
    "sr-Cyrl": "Serbian",
    "srp_Latn": "Serbian (Latin)",
    "pt-BR": "Portuguese (Brazil)",
    "pt_BR": "Portuguese (Brazil)",
    "nb": "Norwegian Bokmål",
    "iw": "Hebrew",
    "ace_Latn": "Acehnese",
    "ace_Arab": "Acehnese (Arabic)",
    "swh_Latn": "Swahili",
    "npi_Deva": "Nepali",
    "hi_Latn": "Hindi (Latin)",
    "ckb_Arab": "Central Kurdish",
    "quy": "Ayacucho Quechua",
}

#: What is no code of a language, and stays as it is: names, and codes that name none or are for private use.
AS_THEY_ARE = ["english", "German", "klingon-x", "und", "mul", "qaa", "a", "", "x" * 300, "中文", "en-clone1", "../x", "de\n"]


@pytest.mark.parametrize("code", WRITTEN)
def test_a_code_is_shown_as_its_language_is_written(code: str) -> None:
    assert display_name(code) == WRITTEN[code]


@pytest.mark.parametrize("name", AS_THEY_ARE)
def test_any_other_name_is_shown_as_it_is(name: str) -> None:
    assert display_name(name) == name


def test_no_two_names_are_shown_alike() -> None:
    found = display_names(["en", "EN", "English", "english", "fil", "tl", "de", "de"])
    assert found == {
        "en": "English (en)",
        "EN": "English (EN)",
        "English": "English",
        "english": "english",
        "fil": "Filipino (fil)",
        "tl": "Filipino (tl)",
        "de": "German",
    }
