"""The accuracy of the fits on all train samples as a table, and a summary of the study in one paragraph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pandas as pd

from lightning_tracin.analysis.tables import table_from
from lightning_tracin.run import TracInRun
from lightning_tracin.studies.data import load_split
from lightning_tracin.studies.fit_jobs import First
from lightning_tracin.studies.fits import FitRecipe
from lightning_tracin.studies.settings import StudySettings


def accuracy_table(recipe: FitRecipe, firsts: Sequence[First]) -> pd.DataFrame:
    """Accuracy on train samples, candidates and test samples, one row for each part and language.

    `accuracy` is the mean over seeds, `lowest` and `highest` are the extremes of single seeds, and `majority` is the accuracy of
    always predicting the most frequent train label.
    """
    split, _ = load_split(recipe.options, extra=recipe.extra)
    majority = pd.Series(split.train.with_format(None)["label"][:]).mode().iloc[0]
    rows = []
    for part, samples, right in (
        ("train", split.train, [first.train for first in firsts]),
        ("candidates", split.probes, [first.correct for first in firsts]),
        ("test", split.test, [first.test for first in firsts]),
    ):
        languages, labels = (np.asarray(samples.with_format(None)[name][:]) for name in ("language", "label"))
        for language in dict.fromkeys(languages):
            mine = languages == language
            by_seed = np.stack(right)[:, mine].mean(1)
            accuracies = (float(by_seed.mean()), float(by_seed.min()), float(by_seed.max()))
            always = float((labels[mine] == majority).mean())
            rows.append((part, str(language), *accuracies, always, int(mine.sum()), len(by_seed)))
    return table_from(rows, ("part", "language", "accuracy", "lowest", "highest", "majority", "samples", "seeds"))


def summary_of(settings: StudySettings, accuracy: pd.DataFrame, run: TracInRun, firsts: Sequence[First]) -> str:
    """Describe data, model, accuracy and influence of a study in one paragraph.

    Args:
        settings: settings of the study.
        accuracy: table from `accuracy_table`.
        run: run of the first seed.
        firsts: fits on all train samples, one per seed.
    """
    fit, test = settings.fit, accuracy[accuracy["part"] == "test"]
    epochs = sorted({first.epochs for first in firsts})
    model = f"{fit.layers} layer(s) of width {fit.hidden_size}" if fit.model == "small" else fit.model
    if fit.pretraining_epochs:
        model += f", pre-trained by masked language modelling for {fit.pretraining_epochs} epochs on the texts of the data,"
    labels = ", ".join(f"{count} {label}" for label, count in sorted(Counter(map(str, run.probes.label)).items()))
    stopped = " (which early stopping used)" if settings.patience is not None else ""
    mean, chance = (np.average(test[name], weights=test["samples"]) for name in ("accuracy", "majority"))
    kept = "that the fits of all seeds classify correctly" if settings.correct_probes else "(classified correctly or not)"
    return (
        f"{len(run.train):,} train samples in {', '.join(run.train.counts())}; {len(run.probes):,} probes {kept} ({labels}), in "
        f"{', '.join(run.probes.counts())}. Model: {model} fine-tuned for {' or '.join(map(str, epochs))} epochs in batches of "
        f"{fit.batch_size} at a learning rate of {fit.learning_rate:g}; {settings.seeds} seed(s). Accuracy on test "
        f"samples{stopped}: {mean:.3f}; always predicting the most frequent label gives {chance:.3f}. Influence: "
        f"{settings.scores[0]}, summed over {len(run.snapshots)} snapshots."
    )
