"""The experiments of Choenni et al. (2023) on one run: tables from what its directory holds, and what they say in words."""

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
from lightning_tracin.config import View
from lightning_tracin.errors import TracInError
from lightning_tracin.run import TracInRun

#: What the authors of the study report, in their experiments; never this run's result.
REPORTED = {
    "reliance": "strong cross-language influence, least on Korean (XNLI, PAWS-X)",
    "reinforcement": "mostly reinforcing samples on XNLI, mostly complementary ones on PAWS-X",
    "changes": "that reliance on other languages grows as fine-tuning progresses",
}

#: In the column `score`: the run's own.
INFLUENCE = "influence"


@dataclass(frozen=True)
class Study:
    """The experiments that one run allows.

    Attributes:
        compared: reliance by the influence of the whole run and by each baseline: as `reliance.reliance_table`, `score` in front.
        changes: reliance between snapshots (E6); None where there is one snapshot only.
        reinforcement: translations in the top k (E5); None where no items are known.
        findings: what the tables say, one sentence each.
        missing: what could not be computed, and why.
    """

    compared: pd.DataFrame
    changes: pd.DataFrame | None
    reinforcement: pd.DataFrame | None
    findings: tuple[str, ...]
    missing: tuple[str, ...]


def study_of(run: TracInRun, view: View, representations: Callable[[], tuple[Floats, Floats]] | None = None) -> Study:
    """The experiments that a run allows, with the baselines through the same tables.

    Args:
        run: the run.
        view: which of its scores, and k.
        representations: gives the model's own of the train samples and of the probes, each [samples, width]; None leaves their
            similarity out of the baselines.

    Raises:
        TracInError: the run has language means only, which have no top k.
    """
    if view.measure != "share":
        raise TracInError("The study ranks train samples for each probe, and language means have no ranks; run without them.")
    each = {
        snapshot.index: run.influence(view.similarity, view.weighting, [snapshot.index]).to_numpy() for snapshot in run.snapshots
    }
    scores: Scores = np.sum(list(each.values()), axis=0)
    missing: list[str] = []
    baselines = baselines_of(BASELINES, run.train, run.probes, representations, missing=missing)
    compared = pd.concat(
        [
            reliance_table(one, run.train.language, run.probes.language, view.top_k).assign(score=name)
            for name, one in {INFLUENCE: scores, **baselines}.items()
        ],
        ignore_index=True,
    )
    compared = compared[["score", *[name for name in compared if name != "score"]]]
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
    own = compared[compared["score"] == INFLUENCE]
    findings = (
        *findings_of_reliance(own, view.top_k),
        *(() if changes is None else findings_of_changes(changes, run, own, view.top_k)),
        *(() if reinforcement is None else findings_of_reinforcement(reinforcement, view.top_k)),
        *findings_of_baselines(compared, INFLUENCE),
    )
    return Study(compared, changes, reinforcement, findings, tuple(missing))


def findings_of_reliance(table: pd.DataFrame, k: int) -> Iterator[str]:
    """What a reliance table says of each probe language's own share, and of the languages it draws on besides."""
    for language, lines in table.groupby("probe_language"):
        for line in lines[lines["train_language"] == language].to_dict("records"):
            yield (
                f"{language}: {_part(line['share'])} of the top {k} proponents come from its own language ({_interval(line)}; "
                f"chance {_part(line['chance'])}, lift {line['lift']:.2f}, {line['probes']} probes)."
            )
        others = lines[lines["train_language"] != language]
        usual = others["share"] / others["lift"]  # the mean over the probe languages
        above = others[(others["low"] > others["chance"]) & (others["low"] > usual)]
        named = [
            f"{line['train_language']} ({_part(line['share'])}, {_interval(line)}, chance {_part(line['chance'])}, "
            f"lift {line['lift']:.2f})"
            for line in above.sort_values("lift", ascending=False).to_dict("records")
        ]
        if named:
            yield (
                f"{language}: above chance and more than the mean of all probe languages, it draws on {', '.join(named)}. "
                f"Intervals are of one cell each, not corrected for the {len(others)} that were looked at."
            )
    yield f"Beside this, the authors of the study report {REPORTED['reliance']}."


def findings_of_changes(changes: pd.DataFrame, run: TracInRun, reliance: pd.DataFrame, k: int) -> Iterator[str]:
    """How each own-language share goes from the first snapshot to the last; chance is taken from the reliance table."""
    first, last = run.snapshots[0], run.snapshots[-1]
    tests = int(changes["p"].notna().sum())
    whole = changes[(changes["before"] == first.index) & (changes["after"] == last.index) & changes["p_adjusted"].notna()]
    chance = reliance.set_index(["probe_language", "train_language"])["chance"]
    for line in whole[whole["probe_language"] == whole["train_language"]].to_dict("records"):
        language, verb = line["probe_language"], "does not change significantly, going"
        if line["p_adjusted"] < SIGNIFICANT:
            verb = "falls" if line["difference"] < 0 else "rises"
        yield (
            f"{language}: the own-language share of the top {k} {verb} from {_part(line['mean_before'])} at epoch {first.epoch} "
            f"(step {first.step}) to {_part(line['mean_after'])} at epoch {last.epoch} (step {last.step}), "
            f"p = {line['p_adjusted']:.2g} corrected for {tests} tests, {line['probes']} probes; "
            f"chance {_part(chance[language, language])}."
        )
    yield f"Beside this, the authors of the study report {REPORTED['changes']}."


def findings_of_reinforcement(table: pd.DataFrame, k: int) -> Iterator[str]:
    """Whether samples in other languages mostly repeat what stands in the top k in the probe's own."""
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
    yield f"Beside this, the authors of the study report {REPORTED['reinforcement']}."


def findings_of_baselines(compared: pd.DataFrame, influence: str) -> Iterator[str]:
    """The mean own-language share by the score that is called influence, beside every other one."""
    own = compared[compared["probe_language"] == compared["train_language"]]
    means = own.groupby("score", sort=False)["share"].mean()
    if influence in means:
        listed = ", ".join(f"{name} {_part(value)}" for name, value in means.items() if name != influence)
        yield f"The mean own-language share is {_part(means[influence])} by {influence}; by other scores and baselines: {listed}."


def _part(value: float) -> str:
    return f"{value:.2f}"


def _interval(line: Mapping[Hashable, Any]) -> str:
    return f"95 % interval {line['low']:.2f} to {line['high']:.2f}"
