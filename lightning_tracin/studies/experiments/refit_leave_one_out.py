"""Refits without each train language: do reliance tables predict the change in each probe language's loss?"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from lightning_tracin.analysis.lds import Members, without_language
from lightning_tracin.analysis.leave_one_out import agreement_table, change_in_loss
from lightning_tracin.analysis.reliance import Interval, reliance_table
from lightning_tracin.analysis.scores import Scores
from lightning_tracin.analysis.tables import own_language, stacked
from lightning_tracin.config import Measure
from lightning_tracin.errors import TracInError
from lightning_tracin.reporting import figures
from lightning_tracin.studies.datasets import Split
from lightning_tracin.studies.registry import experiment
from lightning_tracin.studies.section import Contents
from lightning_tracin.studies.settings import StudySettings
from lightning_tracin.studies.study_runs import StudyRuns

MEASURES: tuple[Measure, ...] = ("share", "mass", "mean")


def check_data(settings: StudySettings, split: Split) -> None:  # noqa: ARG001 - every check of data has this signature
    """Check that the tables are large enough to correlate.

    Raises:
        TracInError: fewer than three languages are trained on, or probed.
    """
    trained, probed = (len(set(part.with_format(None)["language"])) for part in (split.train, split.probes))
    if min(trained, probed) < 3:
        raise TracInError(
            f"left_out compares tables of three languages or more, but {trained} are trained on and {probed} probed; take it out "
            "of experiments."
        )


def members(study: StudyRuns, seed: int) -> Members:  # noqa: ARG001 - the same for every seed
    """The train samples of each refit: all of them, then all except those of each language; [fits, train]."""
    whole = np.ones((1, len(study.train)), dtype=np.bool_)
    return np.concatenate([whole, *(without_language(study.train.language, left) for left in study.languages)])


@experiment("left_out", "Leaving one language out", 90, refits=members, check_data=check_data)
def left_out(study: StudyRuns) -> Contents:
    """Refits without each language.

    The reliance tables of every score are compared with the measured changes in loss.
    """
    losses = np.stack([study.refits(seed).losses(members(study, seed), seed) for seed in study.seeds])  # [seeds, fits, probes]
    without = {left: losses[:, 1 + i] for i, left in enumerate(study.languages)}
    measured = change_in_loss(losses[:, 0], without, study.probes.language)
    by_seed = [study.scores(seed) for seed in study.seeds]
    tables = {
        measure: {name: _mean_table([scores[name] for scores in by_seed], study, measure) for name in by_seed[0]}
        for measure in MEASURES
    }
    parts: dict[str, pd.DataFrame] = {measure: agreement_table(measured, tables[measure]) for measure in MEASURES}
    parts["lift"] = agreement_table(measured, tables["share"], "lift")
    agreement = stacked(parts, "measure")
    of_shares = agreement[agreement["measure"] == "share"]
    return Contents(
        f"The model is fitted again without each train language, {len(losses)} seed(s). `change` is the change in each probe "
        f"language's mean loss ({len(study.probes)} probes in all), `error` its standard error over seeds. Reliance tables are "
        f"means over seeds; share and lift are of the top {study.settings.top_k}. Correlations are over {len(measured)} cells, "
        "raw and after subtracting row and column means from both tables (`centred`, with Fisher's 95 % interval). `floor` is "
        "the 95th percentile over tables with permuted train languages, p the fraction of these tables that agree at least as "
        "well; `others` covers only the cells of other languages.",
        tuple(_findings(measured, agreement, study.main)),
        {"changes": measured, "agreement": agreement},
        {
            "left_out": figures.left_out(measured, tables["share"][study.main].assign(k=study.settings.top_k)),
            "agreement": figures.agreement(of_shares.assign(k=study.settings.top_k, seeds=len(losses))),
        },
    )


def _mean_table(scores: list[Scores], study: StudyRuns, measure: Measure) -> pd.DataFrame:
    """A reliance table averaged over seeds; its intervals are not used, so a few resamples are enough."""
    few, k = Interval(resamples=2), study.settings.top_k
    each = [reliance_table(one, study.train.language, study.probes.language, k, measure=measure, interval=few) for one in scores]
    mean: pd.DataFrame = pd.concat(each).groupby(["probe_language", "train_language"])[["share", "lift"]].mean().reset_index()
    return mean


def _findings(measured: pd.DataFrame, agreement: pd.DataFrame, main: str) -> Iterator[str]:
    own = own_language(measured)
    others = measured.drop(index=own.index)
    yield (
        f"Leaving out a probe language's own samples changes its loss by {own['change'].mean():+.3f} on "
        f"average; leaving out another language changes it by {others['change'].mean():+.3f}."
    )
    shares = agreement[(agreement["measure"] == "share") & agreement["centred_pearson"].notna()]
    best = shares.loc[shares["centred_pearson"].idxmax()]
    mine = shares[shares["score"] == main]
    certain = shares.loc[shares["centred_pearson"] > shares["floor"], "score"].tolist()
    yield (
        f"By centred shares, {best['score']} agrees best with these changes ({best['centred_pearson']:.2f} "
        f"[{best['centred_low']:.2f}, {best['centred_high']:.2f}], floor {best['floor']:.2f}). Scores above their floors: "
        f"{', '.join(certain) or 'none'}."
    )
    if len(mine):
        line = mine.iloc[0]
        yield (
            f"{main}: {line['centred_pearson']:.2f} centred, {line['pearson']:.2f} raw (Pearson), {line['spearman']:.2f} raw "
            "(Spearman). Raw shares mix a train language's effect on all probes with its effect on one probe language. Over the "
            f"cells of other languages only, the correlation is {line['others_pearson']:.2f} [{line['others_low']:.2f}, "
            f"{line['others_high']:.2f}]."
        )
    above = shares.loc[shares["others_low"] > 0].sort_values("others_pearson", ascending=False)
    named = [f"{name} {value:.2f}" for name, value in zip(above["score"], above["others_pearson"], strict=True)]
    yield (
        "Predicting which *other* language a probe language needs is harder than predicting that it needs its own. Scores that "
        f"correlate with it, with an interval above 0: {', '.join(named) or 'none'}."
    )
