"""Leaving each train language out: does a reliance table say what that does to the loss in each probe language?"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from lightning_tracin.analysis.lds import Members, without_language
from lightning_tracin.analysis.leave_one_out import agreement_table, change_in_loss
from lightning_tracin.analysis.reliance import Interval, reliance_table
from lightning_tracin.analysis.scores import Scores
from lightning_tracin.config import Measure
from lightning_tracin.reporting import figures
from lightning_tracin.studies.section import Section
from lightning_tracin.studies.study_runs import Ground

MEASURES: tuple[Measure, ...] = ("share", "mass", "mean")


def members(ground: Ground) -> Members:
    """Which train samples the refits of each seed may see: all, and all but each language; [fits, train]."""
    whole = np.ones((1, len(ground.train)), dtype=np.bool_)
    return np.concatenate([whole, *(without_language(ground.train.language, left) for left in ground.languages)])


def section(ground: Ground) -> Section:
    """The measured changes, and how well each score's tables agree with them."""
    losses = np.stack([ground.refits(seed).losses(members(ground), seed) for seed in ground.seeds])  # [seeds, fits, probes]
    without = {left: losses[:, 1 + i] for i, left in enumerate(ground.languages)}
    measured = change_in_loss(losses[:, 0], without, ground.probes.language)
    by_seed = [ground.scores(seed) for seed in ground.seeds]
    tables = {
        measure: {name: _mean_table([scores[name] for scores in by_seed], ground, measure) for name in by_seed[0]}
        for measure in MEASURES
    }
    parts = [agreement_table(measured, tables[measure]).assign(measure=measure) for measure in MEASURES]
    parts.append(agreement_table(measured, tables["share"], "lift").assign(measure="lift"))
    agreement = pd.concat(parts, ignore_index=True)
    agreement = agreement[["measure", *[name for name in agreement if name != "measure"]]]
    of_shares = agreement[agreement["measure"] == "share"]
    return Section(
        "left_out",
        "Leaving one language out",
        f"Fitted again without each train language, {len(losses)} seed(s): the change in each probe language's mean loss over "
        f"{len(ground.probes)} probes, with its standard error over seeds. Tables are means over seeds; share and lift are of "
        f"the top {ground.settings.top_k}. Correlations over {len(measured)} cells, as they are and with row and column means "
        "taken out of both (`centred`, with Fisher's 95 % interval); `floor` is the 95th percentile of tables with permuted "
        "train languages, p the part of these that agrees as well; `others` is over the cells of other languages alone.",
        tuple(_said(measured, agreement, ground.main)),
        {"changes": measured, "agreement": agreement},
        {
            "left_out": figures.left_out(measured, tables["share"][ground.main].assign(k=ground.settings.top_k)),
            "agreement": figures.agreement(of_shares.assign(k=ground.settings.top_k, seeds=len(losses))),
        },
    )


def _mean_table(scores: list[Scores], ground: Ground, measure: Measure) -> pd.DataFrame:
    """A reliance table, averaged over seeds; its intervals are not used."""
    few, k = Interval(resamples=2), ground.settings.top_k
    each = [
        reliance_table(one, ground.train.language, ground.probes.language, k, measure=measure, interval=few) for one in scores
    ]
    mean: pd.DataFrame = pd.concat(each).groupby(["probe_language", "train_language"])[["share", "lift"]].mean().reset_index()
    return mean


def _said(measured: pd.DataFrame, agreement: pd.DataFrame, main: str) -> Iterator[str]:
    own = measured[measured["probe_language"] == measured["train_language"]]
    others = measured[measured["probe_language"] != measured["train_language"]]
    yield (
        f"Leaving out a probe language's own samples changes its loss by {own['change'].mean():+.3f} on average, leaving out "
        f"another language by {others['change'].mean():+.3f}."
    )
    shares = agreement[(agreement["measure"] == "share") & agreement["centred_pearson"].notna()]
    best = shares.loc[shares["centred_pearson"].idxmax()]
    mine = shares[shares["score"] == main]
    certain = shares.loc[shares["centred_pearson"] > shares["floor"], "score"].tolist()
    yield (
        f"By centred shares, {best['score']} agrees best with these changes ({best['centred_pearson']:.2f} "
        f"[{best['centred_low']:.2f}, {best['centred_high']:.2f}], floor {best['floor']:.2f}); above their floors are "
        f"{', '.join(certain) or 'none'}."
    )
    if len(mine):
        line = mine.iloc[0]
        yield (
            f"{main}: {line['centred_pearson']:.2f} centred, {line['pearson']:.2f} raw (Pearson), {line['spearman']:.2f} raw "
            "(Spearman): a raw share mixes what a language's samples do to everyone with what they do to this probe language. "
            f"Over the cells of other languages alone it is {line['others_pearson']:.2f} [{line['others_low']:.2f}, "
            f"{line['others_high']:.2f}]."
        )
    above = shares.loc[shares["others_low"] > 0].sort_values("others_pearson", ascending=False)
    named = [f"{name} {value:.2f}" for name, value in zip(above["score"], above["others_pearson"], strict=True)]
    yield (
        "Which *other* language a probe language needs is a harder question than whether it needs its own; there, with an "
        f"interval above 0, agree: {', '.join(named) or 'none'}."
    )
