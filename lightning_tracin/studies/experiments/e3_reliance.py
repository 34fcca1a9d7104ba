"""E3 and E4: the languages whose train samples each probe language relies on, by influence and by every baseline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import get_args

import numpy as np
import pandas as pd
from scipy import stats

from lightning_tracin.analysis.exchange import units_of
from lightning_tracin.analysis.reliance import table_of, tally_of
from lightning_tracin.analysis.resampling import NO_INTERVAL, Interval
from lightning_tracin.analysis.scores import Scores
from lightning_tracin.analysis.tables import own_language, stacked
from lightning_tracin.analysis.tally import TrainLanguages
from lightning_tracin.config import WHITENED, Sign
from lightning_tracin.reporting import figures
from lightning_tracin.reporting.findings import findings_of_baselines, findings_of_reliance, findings_of_sizes
from lightning_tracin.reporting.results import analyse
from lightning_tracin.studies.registry import experiment
from lightning_tracin.studies.reported import reported
from lightning_tracin.studies.section import Contents
from lightning_tracin.studies.study_runs import StudyRuns


@experiment("reliance", "E3, E4: reliance", 20, always=True)
def reliance(study: StudyRuns) -> Contents:
    """E3 and E4: reliance by proponents and opponents, averaged over seeds, and by every baseline."""
    k = study.settings.top_k
    by_seed = [study.scores(seed) for seed in study.attributed]
    main = pd.concat(
        [over_seeds([scores[study.main] for scores in by_seed], study, sign).assign(sign=sign) for sign in get_args(Sign)],
        ignore_index=True,
    )
    by_score = {name: over_seeds([scores[name] for scores in by_seed], study, "positive") for name in by_seed[0]}
    proponents, every = by_score[study.main], stacked(by_score, "score")
    results = analyse(study.main_run(0), study.view)
    several = len(by_seed) > 1
    seeds = f"{len(by_seed)} seeds" if several else "one seed"
    return Contents(
        f"Share of each train language in a probe's top {k} of {len(study.train)} train samples by {study.main}, averaged over "
        f"the probes of a language and {seeds}. Chance is the share if languages were shuffled among the train samples of a "
        "label, or of an item. Lift is the share divided by its mean over the probe languages. Intervals (95 %) are for other "
        f"train samples{', probes and seeds' if several else ' and probes'}. `error` is the standard error over seeds. Shares "
        "by layer, and the influence of languages in the heat map and the curves, are those of seed 0.",
        (
            *findings_of_reliance(proponents, k),
            *findings_of_sizes(study.train.counts(), k),
            *findings_of_baselines(every, study.main),
            *_spread(proponents, len(by_seed)),
            *reported(study.settings.fit, "reliance"),
        ),
        {"shares": main, "every_score": every, "layers": _layers(study)},
        {
            "shares": figures.shares(main.assign(k=k), study.languages),
            "scores": figures.shares(every.assign(k=k), study.languages),
            "heat_map": figures.heat_map(results),
            "curves": figures.curves(results, study.languages),
        },
    )


def _layers(study: StudyRuns) -> pd.DataFrame:
    """Shares of the top k by each single layer, at the last snapshot of seed 0."""
    run, view = study.main_run(0), study.view
    return run.reliance(
        view.top_k,
        measure="share",
        similarity=view.similarity,
        weighting=view.weighting,
        snapshots=[len(run.snapshots) - 1],
        by="layer",
        interval=Interval(resamples=99),
        blocks="layer" if run.record.options.preconditioner in WHITENED else "whole",
    )


def over_seeds(scores: Sequence[Scores], study: StudyRuns, sign: Sign) -> pd.DataFrame:
    """A table of shares, averaged over several seeds.

    Intervals draw seeds again, besides train samples and probes; `error` is the standard error over seeds.

    Args:
        scores: scores of each seed, [train, probes].
        study: the study.
        sign: proponents or opponents.
    """
    languages = TrainLanguages.of_table(study.train)
    tallies = [tally_of(one, languages, study.settings.top_k, sign) for one in scores]
    table = table_of(tallies, study.probes.language, probe_units=units_of(study.probes))
    alone = np.stack([table_of([one], study.probes.language, NO_INTERVAL)["value"].to_numpy() for one in tallies])
    error = stats.sem(alone, axis=0) if len(scores) > 1 else np.full(alone.shape[1], np.nan)
    found: pd.DataFrame = table.assign(error=error, seeds=len(scores))
    return found


def _spread(table: pd.DataFrame, seeds: int) -> Iterator[str]:
    if seeds > 1:
        own = own_language(table)
        yield (
            f"Over {seeds} seeds, own-language shares have a standard error of {own['error'].mean():.3f} on average (at most "
            f"{own['error'].max():.3f}, {own.set_index('probe_language')['error'].idxmax()})."
            if len(own)
            else "No probe language has train samples in its own language."
        )
