"""E1 and E3 to E6: what the runs on all train samples say, and the baselines through the same tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from scipy import stats

from lightning_tracin.analysis.changes import change_table
from lightning_tracin.analysis.reinforcement import reinforcement_table
from lightning_tracin.analysis.reliance import Interval, reliance_table, table_of, tally_of
from lightning_tracin.analysis.scores import Scores, ranked
from lightning_tracin.config import Sign
from lightning_tracin.reporting import figures
from lightning_tracin.reporting.findings import (
    findings_of_baselines,
    findings_of_changes,
    findings_of_reinforcement,
    findings_of_reliance,
)
from lightning_tracin.reporting.results import analyse
from lightning_tracin.studies.section import Section
from lightning_tracin.studies.study_runs import Ground

#: Ranks of E1: how many of a probe's strongest train samples are looked at one by one.
_BY_EYE = 3
_SIGNS: tuple[tuple[str, Sign], ...] = (("proponents", "positive"), ("opponents", "negative"))


def by_eye(ground: Ground) -> Section:
    """E1: the strongest train samples with their texts, and how many of them have the probe's label and language."""
    run = ground.main_run(0)
    top = analyse(run, ground.view).top
    rows = []
    for name, sign in _SIGNS:
        rows.append(_alike(ground, ground.scores(0)[ground.main], name, sign))
    alike = pd.DataFrame(rows)
    line = alike.iloc[0]
    said = (
        f"Of the top {_BY_EYE} proponents of {line['probes']} probes, {line['same_label']:.2f} have the probe's label (chance "
        f"{line['same_label_chance']:.2f}), {line['own_language']:.2f} are in its language (chance "
        f"{line['own_language_chance']:.2f}); of the top {_BY_EYE} opponents {alike.iloc[1]['same_label']:.2f} have its label."
    )
    return Section(
        "top",
        "E1: the strongest train samples, by eye",
        f"{ground.main}, summed over {len(run.snapshots)} snapshots, seed 0; the top {_BY_EYE} of every probe; their texts "
        f"for some of each language.",
        (said,),
        {"alike": alike, "texts": top},
    )


def _alike(ground: Ground, scores: Scores, name: str, sign: Sign) -> dict[str, float | str | int]:
    top = ranked(scores, sign)[:_BY_EYE].T  # [probes, ranks]
    train, probes = ground.train, ground.probes
    found: dict[str, float | str | int] = {"of": name, "probes": len(probes)}
    for what, mine, theirs in (
        ("same_label", train.label, probes.label),
        ("own_language", train.language, probes.language),
    ):
        same = np.asarray(mine, dtype=object)[:, None] == np.asarray(theirs, dtype=object)[None, :]
        found[what] = float(np.take_along_axis(same, top.T, axis=0).mean())
        found[f"{what}_chance"] = float(same.mean())
    return found


def shares(ground: Ground) -> Section:
    """E3 and E4: reliance by proponents and opponents, over seeds, and by every baseline."""
    k = ground.settings.top_k
    by_seed = [ground.scores(seed) for seed in ground.seeds]
    main = pd.concat(
        [over_seeds([scores[ground.main] for scores in by_seed], ground, sign).assign(sign=sign) for _, sign in _SIGNS],
        ignore_index=True,
    )
    proponents = main[main["sign"] == "positive"].drop(columns="sign")
    every = pd.concat(
        [over_seeds([scores[name] for scores in by_seed], ground, "positive").assign(score=name) for name in by_seed[0]],
        ignore_index=True,
    )
    every = every[["score", *[name for name in every if name != "score"]]]
    results = analyse(ground.main_run(0), ground.view)
    seeds = "one seed" if len(by_seed) == 1 else f"{len(by_seed)} seeds"
    return Section(
        "reliance",
        "E3, E4: reliance",
        f"Share of each train language in a probe's top {k} of {len(ground.train)} train samples by {ground.main}, mean over "
        f"the probes of a language and {seeds}; chance is the language's part of the train samples, lift the share over its "
        "mean over the probe languages, the interval a bootstrap over probes (95 %); `error` is the standard error over "
        "seeds.",
        (*findings_of_reliance(proponents, k), *findings_of_baselines(every, ground.main), *_spread(proponents, len(by_seed))),
        {"shares": main, "every_score": every, "layers": _layers(ground)},
        {
            "shares": figures.shares(main.assign(k=k), ground.languages),
            "scores": figures.shares(every.assign(k=k), ground.languages),
            "heat_map": figures.heat_map(results),
            "curves": figures.curves(results, ground.languages),
        },
    )


def _layers(ground: Ground) -> pd.DataFrame:
    """The table of each layer alone, at the last snapshot."""
    run, view = ground.main_run(0), ground.view
    return run.reliance(
        view.top_k,
        similarity=view.similarity,
        weighting=view.weighting,
        snapshots=[len(run.snapshots) - 1],
        by="layer",
        interval=Interval(resamples=99),
        blocks="layer" if run.record.settings.preconditioner == "fisher" else "whole",
    )


def over_seeds(scores: Sequence[Scores], ground: Ground, sign: Sign) -> pd.DataFrame:
    """A reliance table of several seeds: each probe's value is averaged over them first; `error` is over seeds."""
    languages = ground.train.language
    tallies = [tally_of(one, languages, ground.settings.top_k, sign) for one in scores]
    values = np.mean([tally.values() for tally in tallies], axis=0)
    table = table_of(tallies[0].languages, values, tallies[0].chance(), ground.probes.language)
    few = Interval(resamples=2)
    alone = [reliance_table(one, languages, ground.probes.language, ground.settings.top_k, sign, interval=few) for one in scores]
    spread = np.stack([one["share"].to_numpy() for one in alone])
    error = stats.sem(spread, axis=0) if len(scores) > 1 else np.full(spread.shape[1], np.nan)
    found: pd.DataFrame = table.assign(error=error, seeds=len(scores))
    return found


def _spread(table: pd.DataFrame, seeds: int) -> Iterator[str]:
    if seeds > 1:
        own = table[table["probe_language"] == table["train_language"]]
        yield (
            f"Between {seeds} seeds, own-language shares have a standard error of {own['error'].mean():.3f} on average (at most "
            f"{own['error'].max():.3f}, {own.loc[own['error'].idxmax(), 'probe_language']})."
            if len(own)
            else "No probe language has train samples of its own."
        )


def changes(ground: Ground) -> Section | None:
    """E6: how reliance changes between snapshots; None where there is one snapshot only."""
    k = ground.settings.top_k
    tables, said = [], []
    for seed in ground.seeds:
        run = ground.main_run(seed)
        if len(run.snapshots) < 2:
            return None
        each = {
            snapshot.index: run.influence(ground.view.similarity, ground.view.weighting, [snapshot.index]).to_numpy()
            for snapshot in run.snapshots
        }
        table = change_table(each, run.train.language, run.probes.language, k)
        if seed == 0:
            compared = reliance_table(ground.main_scores(ground.basic()[0]), run.train.language, run.probes.language, k)
            said = list(findings_of_changes(table, run, compared, k))
        tables.append(table.assign(seed=seed))
    whole = pd.concat(tables, ignore_index=True)
    said += agreement_of_seeds(whole)
    return Section(
        "changes",
        "E6: how reliance changes",
        f"The top {k} by each snapshot's own influence; Wilcoxon's signed-rank test, paired by probe, p corrected over all "
        "tests of a seed (Benjamini and Hochberg). Sentences are of seed 0.",
        tuple(said),
        {"changes": whole},
        {"changes": figures.changes(tables[0].drop(columns="seed").assign(k=k, seeds=1))},
    )


def agreement_of_seeds(table: pd.DataFrame) -> Iterator[str]:
    """In how many seeds the own-language share goes the same way from the first snapshot to the last."""
    seeds = table["seed"].nunique()
    if seeds < 2:
        return
    last = table.groupby("seed")["after"].transform("max")  # seeds may stop at different epochs
    whole = table[(table["before"] == table["before"].min()) & (table["after"] == last)]
    own = whole[whole["probe_language"] == whole["train_language"]]
    for language, lines in own.groupby("probe_language"):
        falls = int((lines["difference"] < 0).sum())
        certain = int(((lines["difference"] < 0) & (lines["p_adjusted"] < 0.05)).sum())
        yield f"{language}: the own-language share falls in {falls} of {seeds} seeds, in {certain} significantly."


def reinforcement(ground: Ground) -> Section | None:
    """E5: are samples in other languages translations of what is there in the own? None where no items are known."""
    if all(item is None for item in ground.train.item) or len(set(ground.train.item)) == len(ground.train):
        return None
    k = ground.settings.top_k
    tables = [
        reinforcement_table(ground.scores(seed)[ground.main], ground.train, ground.probes.language, k).assign(seed=seed)
        for seed in ground.seeds
    ]
    whole = pd.concat(tables, ignore_index=True)
    first = tables[0].drop(columns="seed")
    return Section(
        "reinforcement",
        "E5: reinforcing or complementary",
        f"Of the samples in other languages in a probe's top {k}: the part whose item stands there in the probe's own language, "
        "too; chance is what random ranks give, the interval a bootstrap over probes (95 %). Sentences are of seed 0.",
        tuple(findings_of_reinforcement(first, k)),
        {"reinforcement": whole},
        {"reinforcement": figures.reinforcement(first.assign(k=k, seeds=1), ground.languages)},
    )
