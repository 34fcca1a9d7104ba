"""A study that is small enough to be fitted in a test, and as whole as a large one."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from lightning_tracin.studies.settings import FitSettings, StudySettings

#: A word that says the label, and one that does not.
WORDS = {"en": ("good", "bad", "day"), "de": ("gut", "mies", "Tag"), "ru": ("хорошо", "плохо", "день")}


def write_data(folder: Path) -> None:
    """Sixty items in three languages, half of each label."""
    for language, (good, bad, other) in WORDS.items():
        rows = "".join(f"{bad if item % 2 else good} {other} {item}\t{item % 2}\n" for item in range(60))
        (folder / f"{language}.tsv").write_text(f"text\tlabel\n{rows}", encoding="utf-8")


FIT = FitSettings(
    data="{language}.tsv",
    train_languages=["en", "de", "ru"],
    train_per_language=24,
    probes_per_language=5,
    test_per_language=4,
    vocabulary_size=70,
    hidden_size=16,
    layers=1,
    heads=4,
    max_length=12,
    dropout=0.0,
    epochs=3,
    batch_size=12,
    learning_rate=1e-2,
)


def settings(folder: Path, **changes: object) -> StudySettings:
    """Every experiment once, with two seeds, on data that are written here."""
    write_data(folder)
    asked = {
        "fit": dataclasses.replace(FIT, data_dir=str(folder)),
        "output": str(folder),
        "seeds": 2,
        "experiments": ["removal", "left_out", "lds", "zero_shot", "imbalance", "masks"],
        "scores": ["cosine", "Fisher-whitened dot product"],
        "baselines": ["random", "same label", "BM25 x same label", "representations"],
        "top_k": 5,
        "candidates_per_language": 16,
        "ks": [2, 4],
        "draws": 2,
        "removal_scores": [],
        "area_scores": ["same label"],
        "subsets": 4,
        "zero_shot": ["de"],
        "imbalance": ["ru"],
        "amounts": [50],
        "random_masks": 2,
        "projection_dim": 64,
        "wandb_mode": "disabled",
    }
    return StudySettings("small", **{**asked, **changes})  # type: ignore[arg-type]
