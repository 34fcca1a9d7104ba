"""The experiments of Choenni et al. (2023) that one run allows: their tables, and findings in words."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from lightning_tracin.analysis.baselines import BASELINES, baselines_of
from lightning_tracin.analysis.changes import SIGNIFICANT, change_table
from lightning_tracin.analysis.exchange import units_of
from lightning_tracin.analysis.reinforcement import ALL, reinforcement_table
from lightning_tracin.analysis.reliance import Floats, reliance_table
from lightning_tracin.analysis.scores import Scores
from lightning_tracin.analysis.tables import own_language, stacked
from lightning_tracin.analysis.tally import TrainLanguages
from lightning_tracin.config import View
from lightning_tracin.errors import TracInError
from lightning_tracin.run import TracInRun
from lightning_tracin.storage.languages import own_languages

#: Name of the run's own score in the column `score`.
INFLUENCE = "influence"


@dataclass(frozen=True)
class Study:
    """Results of the experiments that one run allows.

    Attributes:
        compared: reliance by the influence of the whole run and by each baseline: the column `score`, then those of
            `reliance.reliance_table`.
        changes: changes in reliance between snapshots (E6); None with a single snapshot.
        reinforcement: translations in the top k (E5); None without items.
        findings: what the tables show, one sentence each.
        missing: what could not be computed, and why.
    """

    compared: pd.DataFrame
    changes: pd.DataFrame | None
    reinforcement: pd.DataFrame | None
    findings: tuple[str, ...]
    missing: tuple[str, ...]


def study_of(run: TracInRun, view: View, representations: Callable[[], tuple[Floats, Floats]] | None = None) -> Study:
    """Run every experiment that a run allows, for its influence and for the baselines.

    Args:
        run: the run.
        view: the score to use, and k.
        representations: returns the model's representations of the train samples and of the probes, each [samples, width];
            None skips the baselines that need them.

    Raises:
        TracInError: the run has only language means, which have no top k.
    """
    if view.measure != "share":
        raise TracInError("The study ranks train samples for each probe, and language means have no ranks; run without them.")
    each = influence_by_snapshot(run, view)
    scores: Scores = np.sum(list(each.values()), axis=0)
    missing: list[str] = []
    baselines = baselines_of(BASELINES, run.train, run.probes, representations, missing=missing)
    languages = TrainLanguages.of_table(run.train)
    shares = {
        name: reliance_table(one, languages, run.probes.language, view.top_k, probe_units=units_of(run.probes))
        for name, one in {INFLUENCE: scores, **baselines}.items()
    }
    compared = stacked(shares, "score")
    changes = None
    if len(run.snapshots) > 1:
        changes = change_table(each, languages, run.probes.language, view.top_k)
    else:
        missing.append("changes between snapshots: the run has one snapshot")
    reinforcement = None
    try:
        reinforcement = reinforcement_table(scores, run.train, run.probes.language, view.top_k)
    except TracInError as error:
        missing.append(f"reinforcing and complementary samples: {error}")
    findings = (
        *findings_of_reliance(shares[INFLUENCE], view.top_k),
        *findings_of_sizes(run.train.counts(), view.top_k),
        *(() if changes is None else findings_of_changes(changes, run, view.top_k)),
        *(() if reinforcement is None else findings_of_reinforcement(reinforcement, view.top_k)),
        *findings_of_baselines(compared, INFLUENCE),
    )
    return Study(compared, changes, reinforcement, findings, tuple(missing))


def influence_by_snapshot(run: TracInRun, view: View) -> dict[int, Scores]:
    """Snapshot -> influence at that snapshot alone: [train, probes]."""
    indices = (snapshot.index for snapshot in run.snapshots)
    return {index: run.influence(view.similarity, view.weighting, [index]).to_numpy() for index in indices}


def findings_of_reliance(table: pd.DataFrame, k: int) -> Iterator[str]:
    """State each probe language's own share of the strongest k, and the other languages with more than their chance and mean."""
    own = own_language(table).index
    for language, lines in table.groupby("probe_language"):
        for line in lines[lines.index.isin(own)].to_dict("records"):
            yield (
                f"{language}: {_part(line['value'])} of the strongest {k} are in its own language ({_interval(line)}; "
                f"chance {_part(line['null'])}, lift {line['lift']:.2f}, {line['probes']} probes); in other languages "
                f"{_part(1 - line['value'])}, by chance {_part(1 - line['null'])}."
            )
        others = lines[~lines.index.isin(own)]
        usual = others["value"] / others["lift"]  # the mean over the probe languages
        above = others[(others["low"] > others["null"]) & (others["low"] > usual)]
        named = [
            f"{line['train_language']} ({_part(line['value'])}, {_interval(line)}, chance {_part(line['null'])}, "
            f"lift {line['lift']:.2f})"
            for line in above.sort_values("lift", ascending=False).to_dict("records")
        ]
        if named:
            yield (
                f"{language}: more of the strongest {k} than by chance, and than of the average probe language, are in "
                f"{', '.join(named)}. Each interval is for a single cell, without correction for the {len(others)} comparisons."
            )


def findings_of_changes(changes: pd.DataFrame, run: TracInRun, k: int) -> Iterator[str]:
    """State how each own-language share changes from the first snapshot to the last, beyond what its chance does."""
    first, last = run.snapshots[0], run.snapshots[-1]
    tests = int(changes["p"].notna().sum())
    whole = changes[(changes["before"] == first.index) & (changes["after"] == last.index) & changes["p_adjusted"].notna()]
    for line in own_language(whole).to_dict("records"):
        verb = "does not change significantly beyond chance, going"
        if line["p_adjusted"] < SIGNIFICANT:
            verb = "falls, beyond chance," if line["beyond_null"] < 0 else "rises, beyond chance,"
        yield (
            f"{line['probe_language']}: the own-language share of the top {k} {verb} from {_part(line['mean_before'])} at epoch "
            f"{first.epoch} (step {first.step}; chance {_part(line['null_before'])}) to {_part(line['mean_after'])} at epoch "
            f"{last.epoch} (step {last.step}; chance {_part(line['null_after'])}), {line['beyond_null']:+.2f} beyond chance, "
            f"p = {line['p_adjusted']:.2g} corrected for {tests} tests, {line['probes']} probes."
        )


def findings_of_reinforcement(table: pd.DataFrame, k: int) -> Iterator[str]:
    """State whether the top samples in other languages are translations of top samples in the probe's own, beyond chance."""
    trained = own_languages(list(table["probe_language"].unique()), list(table["train_language"].unique()))
    possible = (table["chance"] > 0) | table["probe_language"].isin(list(trained))  # zero-shot languages have no translations
    for line in table[(table["train_language"] == ALL) & possible].to_dict("records"):
        if not line["probes"]:
            yield f"{line['probe_language']}: no sample in another language is in its top {k}."
            continue
        if line["low"] > line["chance"]:
            kind = "more than by chance"
        elif line["high"] < line["chance"]:
            kind = "less than by chance"
        else:
            kind = "no different from chance"
        yield (
            f"{line['probe_language']}: of the samples in other languages in its top {k}, {_part(line['reinforcing'])} "
            f"reinforce: they are translations of own-language samples there ({_interval(line)}, {line['probes']} probes). With "
            f"as many own-language samples of the same labels it is {_part(line['chance'])} by chance: {kind}."
        )


def findings_of_sizes(counts: Mapping[str, int], k: int) -> Iterator[str]:
    """Name the train languages with fewer samples than a share counts: theirs can never be 1.

    Args:
        counts: number of train samples of each language.
        k: number of strongest samples that a share counts.

    Example:
        >>> print(*findings_of_sizes({"de": 60, "ko": 200}, k=100))
        Fewer train samples than the 100 that shares count: de (60). Its share is at most 0.60, however much it is relied on.
    """
    few = {language: count for language, count in sorted(counts.items()) if count < k}
    if few:
        whose = "Its share is" if len(few) == 1 else "Their shares are"
        most = ", ".join(_part(count / k) for count in few.values())
        named = ", ".join(f"{language} ({count})" for language, count in few.items())
        yield (
            f"Fewer train samples than the {k} that shares count: {named}. {whose} at most {most}, however much "
            f"{'it is' if len(few) == 1 else 'they are'} relied on."
        )


def findings_of_baselines(compared: pd.DataFrame, influence: str) -> Iterator[str]:
    """State the mean own-language share by the score named `influence`, and by every other score in the table.

    Example:
        >>> own = {"probe_language": ["de", "de"], "train_language": ["de", "de"]}
        >>> table = pd.DataFrame({**own, "score": ["cosine", "BM25"], "value": [0.5, 0.7]})
        >>> print(*findings_of_baselines(table, "cosine"))
        The mean own-language share is 0.50 by cosine; by other scores and baselines: BM25 0.70.
    """
    means = own_language(compared).groupby("score", sort=False)["value"].mean()
    if influence in means:
        listed = ", ".join(f"{name} {_part(value)}" for name, value in means.items() if name != influence)
        yield f"The mean own-language share is {_part(means[influence])} by {influence}; by other scores and baselines: {listed}."


def _part(value: float) -> str:
    return f"{value:.2f}"


def _interval(line: Mapping[Hashable, Any]) -> str:
    return f"95 % interval {line['low']:.2f} to {line['high']:.2f}"
