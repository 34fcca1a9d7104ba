"""Refits without each train language: which tables of languages predict the change in each probe language's loss?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import Field

from lightning_tracin.analysis.agreement import Prediction, agreement_tables, reliability
from lightning_tracin.analysis.exchange import is_parallel
from lightning_tracin.analysis.language_distances import typology_table
from lightning_tracin.analysis.language_tables import identity_table, mean_table, spelling_table
from lightning_tracin.analysis.lds import Members
from lightning_tracin.analysis.leave_one_out import Changes, changes_of, grid, pairs, singles, without_languages
from lightning_tracin.analysis.relatedness import relatedness
from lightning_tracin.analysis.reliance import table_of, tally_of
from lightning_tracin.analysis.resampling import NO_INTERVAL
from lightning_tracin.analysis.tables import stacked
from lightning_tracin.analysis.tally import TrainLanguages
from lightning_tracin.config import Measure
from lightning_tracin.errors import TracInError
from lightning_tracin.reporting import figures
from lightning_tracin.studies.datasets import Split
from lightning_tracin.studies.named_scores import SCORES, Way
from lightning_tracin.studies.registry import experiment
from lightning_tracin.studies.section import Contents
from lightning_tracin.studies.settings import StudySettings
from lightning_tracin.studies.study_runs import StudyRuns, Wanted

Cells = npt.NDArray[np.float64]

MEASURES: tuple[Measure, ...] = ("sum", "mean", "share", "mass")
#: The measure that findings are about, and that of baselines.
_HEADLINE: Measure = "sum"
_OF_BASELINES: Measure = "mean"
#: What is not counted in samples: a table of languages, and one in nats.
_TABLE, _NATS = "table", "nats"
#: Refits as they are predicted, and the kind of runs that can.
PREDICTED_NEED = "predicted need"
_STEPS: Way = "adam-projected"

#: The languages that each refit leaves out, in the names of the tables.
_ONE, _TWO = "one", "two"


@dataclass(frozen=True)
class LeftOutOptions:
    """Options of `left_out`.

    Attributes:
        pairs: whether pairs of languages are left out, too; None: if the train samples are translations of each other.
        permutations: number of permutations for the null.
    """

    pairs: bool | None = None
    permutations: Annotated[int, Field(ge=1)] = 999


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


def chosen(study: StudyRuns) -> dict[str, list[tuple[str, ...]]]:
    """Which languages are left out together: `one` at a time, and `two` if the options or parallel data ask for it."""
    asked = study.settings.options_of(LeftOutOptions).pairs
    with_pairs = is_parallel(study.train) if asked is None else asked
    found = {_ONE: singles(study.languages)}
    if with_pairs and len(study.languages) > 2:
        found[_TWO] = pairs(study.languages)
    return found


def members(study: StudyRuns, seed: int) -> Members:  # noqa: ARG001 - the same for every seed
    """The train samples of each refit: all of them, then without each choice of languages; [fits, train]."""
    every = [left for together in chosen(study).values() for left in together]
    whole = np.ones((1, len(study.train)), dtype=np.bool_)
    return np.concatenate([whole, without_languages(study.train.language, every)])


@experiment(
    "left_out",
    "What each language is needed for: leaving it out",
    90,
    refits=members,
    check_data=check_data,
    options=LeftOutOptions,
    addable=("pairs", "permutations"),
)
def left_out(study: StudyRuns) -> Contents:
    """Refits without each language.

    The tables of every score and measure, and baselines, are compared with the measured changes in loss.
    """
    choices = chosen(study)
    losses = np.stack([study.refits(seed).losses(members(study, seed), seed) for seed in study.seeds])  # [seeds, fits, probes]
    measured: dict[str, Changes] = {}
    start = 1
    for name, left in choices.items():
        fits = [0, *range(start, start + len(left))]
        measured[name] = changes_of(losses[:, fits], left, study.probes.language)
        start += len(left)
    missing: list[str] = []
    tables = [*_of_scores(study), *_of_need_predicted(study, missing), *_of_baselines(study, missing)]
    agreement, differences = {}, {}
    for name, changes in measured.items():
        predicted = [
            Prediction(one.score, one.measure, changes.summed(one.cells, study.languages), one.baseline) for one in tables
        ]
        permutations = study.settings.options_of(LeftOutOptions).permutations
        agreement[name], differences[name] = agreement_tables(changes, predicted, permutations)
    main = next(one for one in tables if (one.score, one.measure) == (study.main, _HEADLINE))
    single = measured[_ONE].table()
    return Contents(
        _setting(study, measured, missing),
        (
            *_of_need(study, measured),
            *_of_agreement(agreement[_ONE], differences[_ONE], study.main),
            *(_of_pairs(agreement[_TWO]) if _TWO in agreement else ()),
            *_of_slopes(agreement[_ONE], study),
            *_of_levels(tables, measured[_ONE]),
        ),
        {
            "changes": stacked({name: changes.table() for name, changes in measured.items()}, "left_out"),
            "agreement": stacked(agreement, "left_out"),
            "differences": stacked(differences, "left_out"),
        },
        {
            "left_out": figures.left_out(single, _long(main, study).assign(measure=_HEADLINE)),
            "agreement": figures.agreement(agreement[_ONE].assign(seeds=len(losses))),
        },
    )


def _of_scores(study: StudyRuns) -> Iterator[Prediction]:
    """Every score by every measure: cells are [seeds, probe languages, train languages]."""
    languages, k = TrainLanguages.of_table(study.train), study.settings.top_k
    rows = sorted(set(study.probes.language))
    for name in study.settings.scores:
        for measure in MEASURES:
            tallies = [tally_of(study.scores(seed)[name], languages, k, measure=measure) for seed in study.attributed]
            each = [table_of([one], study.probes.language, NO_INTERVAL) for one in tallies]
            yield Prediction(name, measure, _by_seed([grid(one, "value", rows, study.languages) for one in each], study))


def _of_need_predicted(study: StudyRuns, missing: list[str]) -> Iterator[Prediction]:
    """Refits as the fit's own snapshots predict them, if some score has features in the metric of the steps."""
    if _STEPS not in {SCORES[name].way for name in study.settings.scores}:
        return
    rows, each = sorted(set(study.probes.language)), []
    for seed in study.attributed:
        try:
            table = study.run(Wanted(seed, _STEPS)).predicted_need(interval=NO_INTERVAL)
        except TracInError as error:
            missing.append(f"{PREDICTED_NEED}: {error}")
            return
        each.append(grid(table, "nats", rows, study.languages))
    yield Prediction(PREDICTED_NEED, _NATS, _by_seed(each, study))


def _of_baselines(study: StudyRuns, missing: list[str]) -> Iterator[Prediction]:
    """Tables that need no influence; what cannot be computed is said in `missing`."""
    rows, columns = sorted(set(study.probes.language)), study.languages
    tables: Mapping[str, Callable[[], Cells]] = {
        "identity": lambda: identity_table(rows, columns),
        "character trigrams": lambda: spelling_table(study.train, study.probes, rows, columns),
        "relatedness": lambda: relatedness(rows, columns),
        "typology": lambda: typology_table(rows, columns),
    }
    for name, compute in tables.items():
        try:
            cells = compute()
        except TracInError as error:  # noqa: PERF203 - four tables
            missing.append(f"{name}: {error}")
        else:
            yield Prediction(name, _TABLE, cells[None], baseline=True)
    for name in study.settings.baselines:
        each = [mean_table(study.scores(seed)[name], study.train, study.probes, rows, columns) for seed in study.attributed]
        yield Prediction(name, _OF_BASELINES, _by_seed(each, study), baseline=True)
    if study.settings.contribution_seeds:
        each = [_contributions(study, seed) for seed in range(study.settings.contribution_seeds)]
        yield Prediction("contributions", _TABLE, np.mean(each, axis=0)[None], baseline=True)


def _by_seed(each: Sequence[Cells], study: StudyRuns) -> Cells:
    """The tables of all seeds; their mean, as one, if only some of the fits were attributed."""
    stacked_up = np.stack(each)
    return stacked_up if len(each) == len(study.seeds) else stacked_up.mean(0, keepdims=True)


def _contributions(study: StudyRuns, seed: int) -> Cells:
    """The nats that each train language contributed over a whole fit: [probe languages, train languages]."""
    table = study.main_run(seed).contributions(cumulative=True, interval=NO_INTERVAL)
    last = table[(table["window"] == table["window"].max()) & table["is_group"]]
    return grid(last, "nats", sorted(set(study.probes.language)), study.languages)


def _long(one: Prediction, study: StudyRuns) -> pd.DataFrame:
    """A prediction, averaged over seeds, as a table with a row for each cell."""
    index = pd.MultiIndex.from_product(
        [sorted(set(study.probes.language)), study.languages], names=["probe_language", "train_language"]
    )
    table: pd.DataFrame = pd.DataFrame({"value": one.cells.mean(0).ravel()}, index).reset_index()
    return table


def _setting(study: StudyRuns, measured: Mapping[str, Changes], missing: Sequence[str]) -> str:
    seeds, cells = len(measured[_ONE].values), measured[_ONE].own.size
    own = int(measured[_ONE].own.sum())
    pairs_too = f" and without each of {len(measured[_TWO].left_out)} pairs of them" if _TWO in measured else ""
    left = f" Not compared: {'; '.join(missing)}" if missing else ""
    return (
        f"The model is fitted again without each train language{pairs_too}, {seeds} seed(s). `change` is the change in each "
        f"probe language's mean loss in nats ({len(study.probes)} probes in all), `error` its standard error over seeds. "
        f"Influence is that of {len(study.attributed)} seed(s). Tables "
        f"of scores: `sum` and `mean` of a language's influence, its `share` of the top {study.settings.top_k}, its `mass`. "
        f"`{PREDICTED_NEED}` is what the snapshots of the fit predict of the refit, in nats. "
        f"Baselines: `identity` is 1 for the own language; trigrams, relatedness (branches of the family tree), "
        "typology (family tree, place on the map and script) and representations compare languages. Correlations (Pearson): "
        f"`others` over the {cells - own} of {cells} cells of other languages, `contrast` over the same cells without row and "
        "column effects, `within` over the train languages of one probe language, `all` over every cell, in which one's own "
        "language has most of it. Intervals (95 %) are for other seeds and other languages (jackknife over both). `corrected` "
        "divides by the square root of the changes' reliability. `floor` is the 95th percentile, p the fraction of permutations "
        "of the other languages' cells within a probe language that agree "
        f"as well. `slope` is in nats for each unit of the prediction.{left}"
    )


def _of_need(study: StudyRuns, measured: Mapping[str, Changes]) -> Iterator[str]:
    changes = measured[_ONE]
    mean = changes.values.mean(0)
    own = f"{mean[changes.own].mean():+.3f}" if changes.own.any() else "unknown (no probe language is trained on)"
    trust = reliability(changes)
    yield (
        f"Leaving out a probe language's own samples changes its loss by {own} nats on average; leaving out another language "
        f"changes it by {mean[~changes.own].mean():+.3f}."
    )
    yield (
        f"Reliability of the changes over {len(changes.values)} seed(s) (halves of the seeds, Spearman and Brown): "
        f"{trust['others']:.2f} over the cells of other languages, {trust['contrast']:.2f} for their contrast. No table can "
        "agree better than the square root of it, except by chance."
    )
    if is_parallel(study.train):
        pair = f"; without two languages, it changes by {_others(measured[_TWO]):+.3f}" if _TWO in measured else ""
        yield (
            "The train samples are translations of each other, so leaving one language out cannot show that it is needed: its "
            f"translations replace it. What it shows is what the others cannot replace{pair}."
        )


def _others(changes: Changes) -> float:
    return float(changes.values.mean(0)[~changes.own].mean())


def _of_agreement(agreement: pd.DataFrame, differences: pd.DataFrame, main: str) -> Iterator[str]:
    scores = agreement[~agreement["baseline"]]
    for kind, what in (("others", "over the cells of other languages"), ("contrast", "with row and column effects taken out")):
        known = scores[scores[kind].notna()]
        if known.empty:
            yield f"No score varies {what}."
            continue
        best = _best(known, kind)
        rivals = agreement[agreement["baseline"] & agreement[kind].notna()].sort_values(kind, ascending=False)
        rival = "none" if rivals.empty else _with_interval(rivals.iloc[0], kind)
        yield (
            f"Agreement {what}: {_with_interval(best, kind)} agrees best of all scores and measures, of {len(known)}; the best "
            f"baseline is {rival}. {_beaten(best, differences, kind)}"
        )
    mine = scores[scores["score"] == main].set_index("measure")
    said = ", ".join(f"{name} {line['others']:.2f} and {line['contrast']:.2f}" for name, line in mine.iterrows())
    yield f"{main}, other languages' cells and their contrast, by measure: {said}."
    identity = agreement[agreement["score"] == "identity"].iloc[0]
    every = scores[scores["all"].notna()]
    if len(every) and np.isfinite(identity["all"]):
        best = _best(every, "all")
        yield (
            f"Over all cells, {best['score']} ({best['measure']}) has {best['all']:.2f}, but the table that says no more than "
            f'"one\'s own language first" has {identity["all"]:.2f} already.'
        )


def _best(scores: pd.DataFrame, kind: str) -> pd.Series[float]:
    """The first of the best rows: sums and means of as many samples are the same but for rounding."""
    best: pd.Series[float] = scores.iloc[int(scores[kind].round(9).argmax())]
    return best


def _with_interval(line: pd.Series[float], kind: str) -> str:
    low, high = line[f"{kind}_low"], line[f"{kind}_high"]
    interval = f" [{low:.2f} to {high:.2f}]" if np.isfinite(low) else " (too few cells for an interval)"
    return f"{line['score']} ({line['measure']}) {line[kind]:.2f}{interval}"


def _beaten(best: pd.Series[float], differences: pd.DataFrame, kind: str) -> str:
    mine = differences[(differences["score"] == best["score"]) & (differences["measure"] == best["measure"])]
    above = mine[f"{kind}_low"] > 0
    if above.all():
        return "It is above every baseline (95 % interval of the difference)."
    return (
        f"It is above {int(above.sum())} of {len(mine)} baselines by the 95 % interval of the difference; not above "
        f"{', '.join(mine.loc[~above, 'baseline'])}."
    )


def _of_pairs(agreement: pd.DataFrame) -> Iterator[str]:
    scores = agreement[~agreement["baseline"] & agreement["others"].notna()]
    if len(scores):
        best = _best(scores, "others")
        apart = f", {best['contrast']:.2f} with row and column effects taken out" if np.isfinite(best["contrast"]) else ""
        yield f"Without two languages: {_with_interval(best, 'others')} agrees best over the pairs of other languages{apart}."


def _of_levels(tables: Sequence[Prediction], changes: Changes) -> Iterator[str]:
    """Is predicted need as large as what was measured, on average?"""
    for one in tables:
        if one.score == PREDICTED_NEED:
            predicted, mean, own = one.cells.mean(0), changes.values.mean(0), changes.own
            mine = f"; of own languages {predicted[own].mean():+.3f}, measured {mean[own].mean():+.3f}" if own.any() else ""
            yield (
                f"{PREDICTED_NEED.capitalize()} of other languages is {predicted[~own].mean():+.3f} nats on average, and the "
                f"measured change {mean[~own].mean():+.3f}{mine}."
            )


def _of_slopes(agreement: pd.DataFrame, study: StudyRuns) -> Iterator[str]:
    """Sums in nats say how many a language is worth; the slope says how many it cost to lose it."""
    said = []
    for line in agreement[(agreement["measure"] == _HEADLINE) & agreement["slope"].notna()].to_dict("records"):
        factors = study.nats(line["score"])
        if factors is not None:
            slope, low, high = (line[name] / factors[0] for name in ("slope", "slope_low", "slope_high"))
            said.append(f"{line['score']} {slope:.2f} [{low:.2f}, {high:.2f}]")
    said += [
        f"{line['score']} {line['slope']:.2f} [{line['slope_low']:.2f}, {line['slope_high']:.2f}]"
        for line in agreement[(agreement["measure"] == _NATS) & agreement["slope"].notna()].to_dict("records")
    ]
    if said:
        yield (
            "Calibration over the cells of other languages, in nats of measured change for one nat of predicted sum: "
            f"{', '.join(said)}."
        )
