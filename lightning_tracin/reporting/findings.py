"""The experiments of Choenni et al. (2023) that one run allows: their tables, and findings in words."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from lightning_tracin.analysis.baselines import BASELINES, baselines_of
from lightning_tracin.analysis.changes import SIGNIFICANT, change_table
from lightning_tracin.analysis.reinforcement import ALL, reinforcement_table
from lightning_tracin.analysis.reliance import Floats, reliance_table
from lightning_tracin.analysis.scores import Scores
from lightning_tracin.analysis.tables import own_language, stacked
from lightning_tracin.config import View
from lightning_tracin.errors import TracInError
from lightning_tracin.run import TracInRun

#: What Choenni et al. report from their own experiments, quoted for comparison.
REPORTED = {
    "reliance": "strong cross-language influence, least on Korean (XNLI, PAWS-X)",
    "reinforcement": "mostly reinforcing samples on XNLI, mostly complementary ones on PAWS-X",
    "changes": "that reliance on other languages grows as fine-tuning progresses",
}

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
    shares = {
        name: reliance_table(one, run.train.language, run.probes.language, view.top_k)
        for name, one in {INFLUENCE: scores, **baselines}.items()
    }
    compared = stacked(shares, "score")
    changes = None
    if len(run.snapshots) > 1:
        changes = change_table(each, run.train.language, run.probes.language, view.top_k)
    else:
        missing.append("changes between snapshots: the run has one snapshot")
    reinforcement = None
    try:
        reinforcement = reinforcement_table(scores, run.train, run.probes.language, view.top_k)
    except TracInError as error:
        missing.append(f"reinforcing and complementary samples: {error}")
    findings = (
        *findings_of_reliance(shares[INFLUENCE], view.top_k),
        *(() if changes is None else findings_of_changes(changes, run, shares[INFLUENCE], view.top_k)),
        *(() if reinforcement is None else findings_of_reinforcement(reinforcement, view.top_k)),
        *findings_of_baselines(compared, INFLUENCE),
    )
    return Study(compared, changes, reinforcement, findings, tuple(missing))


def influence_by_snapshot(run: TracInRun, view: View) -> dict[int, Scores]:
    """Snapshot -> influence at that snapshot alone: [train, probes]."""
    indices = (snapshot.index for snapshot in run.snapshots)
    return {index: run.influence(view.similarity, view.weighting, [index]).to_numpy() for index in indices}


def findings_of_reliance(table: pd.DataFrame, k: int) -> Iterator[str]:
    """State each probe language's own share, and the other languages that it relies on."""
    own = own_language(table).index
    for language, lines in table.groupby("probe_language"):
        for line in lines[lines.index.isin(own)].to_dict("records"):
            yield (
                f"{language}: {_part(line['share'])} of the top {k} proponents come from its own language ({_interval(line)}; "
                f"chance {_part(line['chance'])}, lift {line['lift']:.2f}, {line['probes']} probes)."
            )
        others = lines[~lines.index.isin(own)]
        usual = others["share"] / others["lift"]  # the mean over the probe languages
        above = others[(others["low"] > others["chance"]) & (others["low"] > usual)]
        named = [
            f"{line['train_language']} ({_part(line['share'])}, {_interval(line)}, chance {_part(line['chance'])}, "
            f"lift {line['lift']:.2f})"
            for line in above.sort_values("lift", ascending=False).to_dict("records")
        ]
        if named:
            yield (
                f"{language}: it relies on these languages more than by chance and more than the average probe language does: "
                f"{', '.join(named)}. Each interval is for a single cell, without correction for the {len(others)} comparisons."
            )
    yield f"For comparison, Choenni et al. (2023) report {REPORTED['reliance']}."


def findings_of_changes(changes: pd.DataFrame, run: TracInRun, reliance: pd.DataFrame, k: int) -> Iterator[str]:
    """State how each own-language share changes from the first snapshot to the last; chance is from the reliance table."""
    first, last = run.snapshots[0], run.snapshots[-1]
    tests = int(changes["p"].notna().sum())
    whole = changes[(changes["before"] == first.index) & (changes["after"] == last.index) & changes["p_adjusted"].notna()]
    chance = reliance.set_index(["probe_language", "train_language"])["chance"]
    for line in own_language(whole).to_dict("records"):
        language, verb = line["probe_language"], "does not change significantly, going"
        if line["p_adjusted"] < SIGNIFICANT:
            verb = "falls" if line["difference"] < 0 else "rises"
        yield (
            f"{language}: the own-language share of the top {k} {verb} from {_part(line['mean_before'])} at epoch {first.epoch} "
            f"(step {first.step}) to {_part(line['mean_after'])} at epoch {last.epoch} (step {last.step}), "
            f"p = {line['p_adjusted']:.2g} corrected for {tests} tests, {line['probes']} probes; "
            f"chance {_part(chance[language, line['train_language']])}."
        )
    yield f"For comparison, Choenni et al. (2023) report {REPORTED['changes']}."


def findings_of_reinforcement(table: pd.DataFrame, k: int) -> Iterator[str]:
    """State whether the top samples in other languages are mostly translations of top samples in the probe's own."""
    possible = table["chance"] > 0  # zero-shot languages have no translations in their own language
    for line in table[(table["train_language"] == ALL) & table["reinforcing"].notna() & possible].to_dict("records"):
        kind = (
            "mostly reinforcing" if line["low"] > 0.5 else "mostly complementary" if line["high"] < 0.5 else "about half and half"
        )
        yield (
            f"{line['probe_language']}: of the samples in other languages in its top {k}, {_part(line['reinforcing'])} are "
            f"translations of own-language samples there ({_interval(line)}; chance {_part(line['chance'])}, "
            f"{line['probes']} probes): {kind}."
        )
    yield f"For comparison, Choenni et al. (2023) report {REPORTED['reinforcement']}."


def findings_of_baselines(compared: pd.DataFrame, influence: str) -> Iterator[str]:
    """State the mean own-language share by the score named `influence`, and by every other score in the table.

    Example:
        >>> own = {"probe_language": ["de", "de"], "train_language": ["de", "de"]}
        >>> table = pd.DataFrame({**own, "score": ["cosine", "BM25"], "share": [0.5, 0.7]})
        >>> print(*findings_of_baselines(table, "cosine"))
        The mean own-language share is 0.50 by cosine; by other scores and baselines: BM25 0.70.
    """
    means = own_language(compared).groupby("score", sort=False)["share"].mean()
    if influence in means:
        listed = ", ".join(f"{name} {_part(value)}" for name, value in means.items() if name != influence)
        yield f"The mean own-language share is {_part(means[influence])} by {influence}; by other scores and baselines: {listed}."


def _part(value: float) -> str:
    return f"{value:.2f}"


def _interval(line: Mapping[Hashable, Any]) -> str:
    return f"95 % interval {line['low']:.2f} to {line['high']:.2f}"
