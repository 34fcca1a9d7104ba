"""What Choenni et al. (2023) report, for studies that repeat their set-up; of any other data or model it would say nothing."""

from __future__ import annotations

from typing import Literal

from lightning_tracin.studies.data import TRAIN_LANGUAGES
from lightning_tracin.studies.settings import FitSettings

Finding = Literal["reliance", "reinforcement", "changes", "zero_shot", "imbalance"]

_MODEL, _TRAINED = "xlm-roberta-base", 2000
_DATA = ("xnli", "paws-x")

_REPORTED: dict[Finding, str] = {
    "reliance": "strong cross-language influence, least on Korean (XNLI, PAWS-X)",
    "reinforcement": "mostly reinforcing samples on XNLI, mostly complementary ones on PAWS-X",
    "changes": "that reliance on other languages grows as fine-tuning progresses",
    "zero_shot": "that probes hardly rely on the same samples once their language is zero-shot",
    "imbalance": "reliance that is still largely cross-lingual, and higher on the own language if it is over-represented",
}


def reported(fit: FitSettings, finding: Finding) -> tuple[str, ...]:
    """A sentence with what the authors report, if the data, the languages, their size and the model are theirs; else none.

    Example:
        >>> theirs = FitSettings(data="xnli", model="xlm-roberta-base", train_per_language=2000)
        >>> reported(theirs, "changes")
        ('For comparison, Choenni et al. (2023) report that reliance on other languages grows as fine-tuning progresses.',)
        >>> reported(FitSettings(), "changes")
        ()
    """
    languages = set(fit.train_languages or TRAIN_LANGUAGES.get(fit.data, "").split())
    repeats = (
        fit.data in _DATA
        and fit.model == _MODEL
        and fit.train_per_language == _TRAINED
        and languages == set(TRAIN_LANGUAGES[fit.data].split())
    )
    return (f"For comparison, Choenni et al. (2023) report {_REPORTED[finding]}.",) if repeats else ()
