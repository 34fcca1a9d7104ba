"""The pages that known truth is shown on.

Each model has a page, a table of all its figures and a file of findings, which `first_page` reads, so that a model can be
measured without the others' fits.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from benchmarks.known_truth import judge
from benchmarks.known_truth.measure import Found
from benchmarks.known_truth.plan import ARMS, MODELS, Plan
from lightning_tracin.analysis.tables import as_csv
from lightning_tracin.storage.files import as_utf8, write_bytes

#: Which cells of a table.
Cells = npt.NDArray[np.bool_]

#: Rows of the tables; all others are in the model's table of figures.
SHOWN = (
    ("identity", "table"),
    ("shared words", "table"),
    ("same label", "table"),
    ("BM25 x same label", "table"),
    ("cosine", "share"),
    ("cosine", "mass"),
    ("cosine", "mean"),
    ("dot product x learning rate", "share"),
    ("dot product x learning rate", "mean"),
    ("factored Adam dot product x learning rate", "share"),
    ("factored Adam dot product x learning rate", "mean"),
    ("Adam-aware dot product x learning rate", "mean"),
    ("Fisher-whitened dot product", "share"),
    ("Fisher-whitened dot product", "mean"),
    ("compensated Adam dot product", "mean"),
    ("EK-FAC dot product", "mean"),
    ("predicted need", "nats"),
    ("contributions", "nats"),
)
NEED = ("predicted need", "nats")
HEADLINE, STUDYS = ("factored Adam dot product x learning rate", "mean"), ("cosine", "share")


@dataclass(frozen=True)
class Measured:
    """What is measured of a model: its worlds by arm, and the coverage of intervals by what was drawn anew."""

    model: str
    arms: Mapping[str, Sequence[Found]]
    coverage: Mapping[str, Mapping[str, Mapping[str, float]]]


def write_model(one: Measured, plan: Plan, source: str, documents: int, first: Path) -> None:
    """Write a model's page, all its figures, and its findings, into the folder named like the first page."""
    folder = first.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / f"{one.model}.md", as_utf8(model_page(one, plan, source, documents)))
    write_bytes(folder / f"{one.model}.csv", as_utf8(as_csv(judged(one))))
    write_bytes(folder / f"{one.model}.json", as_utf8(f"{json.dumps([*findings(one)], indent=1, ensure_ascii=False)}\n"))


def model_page(one: Measured, plan: Plan, source: str, documents: int) -> str:
    """A model's page in Markdown, with a section for each arm."""
    sections = [f"## {arm}: {ARMS[arm]}\n\n{_TABLES[arm](worlds)}\n" for arm, worlds in one.arms.items() if worlds]
    if one.coverage:
        sections.append(f"## Intervals\n\n{coverage_table(one.coverage, plan)}\n")
    said = "\n".join(f"- {sentence}" for sentence in findings(one))
    start = f"Written by `python -m benchmarks.known_truth --data_dir FOLDER --models {one.model}`; do not edit."
    about = f"What the words mean is said on the [first page](../known-truth.md). Every score and measure: {one.model}.csv."
    head = f"# Known truth, {one.model}: {MODELS[one.model]}\n\n{start} {about}"
    return "\n".join([f"{head}\n\n{said}\n\n## Settings\n\n{facts(one.model, plan, source, documents)}\n", *sections])


def facts(model: str, plan: Plan, source: str, documents: int) -> str:
    """The settings of a model in a paragraph."""
    return (
        f"{source}: {documents:,} documents, of which each language trains on {plan.train} (half and twice as many in the arm "
        f"*sizes*, {plan.fewer} in *labels* and *families*) and each is probed with the same {plan.probes}, not selected. AdamW, "
        f"highest learning rate {plan.rate(model):g}, batches of {plan.batch_size}, {plan.epochs} epochs, a snapshot after every "
        f"second. Need is the mean of {plan.seeds} seeds of first weights and order; scores are those of {plan.scored} of them, "
        f"summed over snapshots. Shares are of the top {plan.top_k}. Intervals are of {plan.resamples} resamples of train "
        "samples and probes."
    )


def judged(one: Measured) -> pd.DataFrame:
    """Every score and measure in every world, as one long table."""
    rows = [
        {
            "model": one.model,
            "arm": arm,
            "setting": world.truth["setting"],
            "score": score,
            "measure": measure,
            "other_over_own": judge.other_over_own(judge.grid(world.table(score, measure))),
            "claims": _claims(world, score, measure),
            "contrast_claims": _contrast_claims(world, score, measure),
            "pearson": _agreement(world, score, measure).plain,
            "centred_pearson": _agreement(world, score, measure).centred,
        }
        for arm, worlds in one.arms.items()
        for world in worlds
        for score, measure in world.rows
    ]
    found: pd.DataFrame = pd.DataFrame(rows)
    return found


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown.

    Example:
        >>> print(table(["score", "r"], [["cosine", "0.50"]]))
        | score | r |
        |---|---|
        | cosine | 0.50 |
    """
    lines = ["| " + " | ".join(row) + " |" for row in (columns, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(columns), *lines[1:]])


def number(value: float, digits: int = 2) -> str:
    """A number, or a dash if there is none.

    Example:
        >>> number(0.256), number(float("nan"))
        ('0.26', '–')
    """
    return f"{value:.{digits}f}" if np.isfinite(value) else "–"


def _named(score: str, measure: str) -> str:
    return score if measure in ("table", "nats") else f"{score}: {measure}"


def _claims(world: Found, score: str, measure: str, cells: Cells | None = None) -> float:
    if measure == "table":
        return np.nan
    return judge.part(judge.claimed(world.table(score, measure), measure), cells)


def _contrast_claims(world: Found, score: str, measure: str, cells: Cells | None = None) -> float:
    if measure in ("table", "nats"):
        return np.nan
    return judge.part(judge.contrast_claimed(world.table(score, measure)), cells)


def _agreement(world: Found, score: str, measure: str) -> judge.Agreement:
    return judge.agreement(judge.grid(world.table(score, measure)), world.need)


def _need_claims(world: Found, cells: Cells | None = None) -> float:
    return judge.part(judge.need_claimed(world.need, np.asarray(world.truth["error"])), cells)


def _ratio(world: Found, score: str, measure: str) -> float:
    return judge.other_over_own(judge.grid(world.table(score, measure)))


def _by_part(worlds: Sequence[Found]) -> str:
    levels = [world.truth["level"] for world in worlds]
    first, last = worlds[0], worlds[-1]

    def line(name: str, ratio: Callable[[Found], float], *claims: float) -> list[str]:
        ratios = [ratio(world) for world in worlds]
        return [name, *map(number, ratios), number(judge.monotony(levels, ratios)), *map(number, claims)]

    rows = [line("**need**", lambda world: judge.other_over_own(world.need), _need_claims(first), np.nan, _need_claims(last))]
    for score, measure in SHOWN:
        claims = _claims(first, score, measure), _contrast_claims(first, score, measure), _claims(last, score, measure)
        rows.append(line(_named(score, measure), partial(_ratio, score=score, measure=measure), *claims))
    at = [f"p = {level:g}" for level in levels]
    ends = f"claims at {at[0]}", f"of contrasts at {at[0]}", f"claims at {at[-1]}"
    shown = table(["other / own", *at, "Spearman with p", *ends], rows)
    begin, end = (f"{value:.2f}" for value in (first.curve[0][0], first.curve[-1][0]))
    return (
        f"{shown}\n\nNeed of the own language at p = {levels[0]:g}: {np.diagonal(first.need).mean():+.3f}, of others "
        f"{judge.others(first.need).mean():+.3f}; at p = {levels[-1]:g}: {np.diagonal(last.need).mean():+.3f} and "
        f"{judge.others(last.need).mean():+.3f}. Cross-lingual share (cosine) at p = {levels[0]:g}: {begin} at the first "
        f"snapshot, {end} at the last, chance {first.curve[-1][1]:.2f}."
    )


def _parallel(worlds: Sequence[Found]) -> str:
    rows = []
    for world in worlds:
        shapley, need = np.asarray(world.truth["shapley"]), world.need
        values = (
            np.diagonal(need).mean(),
            judge.others(need).mean(),
            world.truth["pair"][0],
            np.diagonal(shapley).mean(),
            judge.others(shapley).mean(),
            judge.correlation(judge.others(judge.grid(world.table(*HEADLINE))), judge.others(shapley)),
        )
        rows.append([world.truth["setting"], *(number(value, 3) for value in values)])
    columns = (
        "nats",
        "need, own",
        "need, other",
        "need of A and B by A",
        "Shapley, own",
        "Shapley, other",
        "r of headline, Shapley",
    )
    return f"{_by_part(worlds)}\n\n{table(columns, rows)}"


def noisy_value(world: Found, values: judge.Floats) -> float:
    """The noisy language's mean value for the other languages, in parts of what those are worth to each other.

    NaN where those are worth nothing to each other.
    """
    noisy = world.truth["languages"].index(world.truth["noisy"])
    rest = [i for i in range(len(values)) if i != noisy]
    between = float(judge.others(values[np.ix_(rest, rest)]).mean())
    return judge.column_of_others(values, noisy) / between if between > 0 else np.nan


def _noise(worlds: Sequence[Found]) -> str:
    last = worlds[-1]
    rows = [["**need**", *(number(noisy_value(world, world.need)) for world in worlds), "1.00"]]
    for score, measure in SHOWN:
        values = [noisy_value(world, judge.grid(world.table(score, measure))) for world in worlds]
        rows.append([_named(score, measure), *map(number, values), number(_agreement(last, score, measure).plain)])
    shown = table(["noisy / clean", *(str(world.truth["setting"]) for world in worlds), "r"], rows)
    needs = ", ".join(f"{_noisy_need(world):+.3f}" for world in worlds)
    said = "What the noisy language is worth to the others, in parts of what those are worth to each other."
    return f"{said}\n\n{shown}\n\nIts need: {needs}."


def _noisy_need(world: Found) -> float:
    return judge.column_of_others(world.need, world.truth["languages"].index(world.truth["noisy"]))


def _agreements(worlds: Sequence[Found], sums: bool = False) -> str:
    rows = []
    (world,) = worlds
    for score, measure in SHOWN:
        for one in ("sum", "mean") if sums and measure == "mean" else (measure,):
            found = _agreement(world, score, one)
            rows.append([_named(score, one), number(found.plain), number(found.centred)])
    reliable = judge.reliability(np.asarray(world.truth["by_seed"]))
    return f"{table(['agreement with need', 'r', 'r of contrasts'], rows)}\n\nReliability of need over seeds: {reliable:.2f}."


def related(languages: Sequence[str]) -> Cells:
    """Which cells are of two languages of a family.

    Example:
        >>> related(["A1", "A2", "I"]).astype(int).tolist()
        [[0, 1, 0], [1, 0, 0], [0, 0, 0]]
    """
    family = np.array([name[0] for name in languages])
    found: Cells = (family[:, None] == family) & ~np.eye(len(family), dtype=bool)
    return found


def _families(worlds: Sequence[Found]) -> str:
    (world,) = worlds
    kin = related(world.truth["languages"])
    strangers = ~kin & ~np.eye(len(kin), dtype=bool)
    rows = [["**need**", "1.00", "1.00", number(_need_claims(world, kin)), number(_need_claims(world, strangers)), "–", "–"]]
    for score, measure in SHOWN:
        found = _agreement(world, score, measure)
        each = [of(world, score, measure, cells) for of in (_claims, _contrast_claims) for cells in (kin, strangers)]
        rows.append([_named(score, measure), number(found.plain), number(found.centred), *map(number, each)])
    columns = ("agreement with need", "r", "r of contrasts", "claims, family", "claims, strangers")
    reliable = judge.reliability(np.asarray(world.truth["by_seed"]))
    return (
        f"{table([*columns, 'of contrasts, family', 'of contrasts, strangers'], rows)}\n\nReliability of need over seeds: "
        f"{reliable:.2f}. Need within a family {world.need[kin].mean():+.3f}, of strangers {world.need[strangers].mean():+.3f}, "
        f"own {np.diagonal(world.need).mean():+.3f}."
    )


_TABLES: Mapping[str, Callable[[Sequence[Found]], str]] = {
    "different": _by_part,
    "parallel": _parallel,
    "noise": _noise,
    "sizes": lambda worlds: _agreements(worlds, sums=True),
    "labels": lambda worlds: _agreements(worlds, sums=True),
    "families": _families,
}


def coverage_table(coverage: Mapping[str, Mapping[str, Mapping[str, float]]], plan: Plan) -> str:
    """How often 95 % intervals cover what other data sets give."""
    names = list(dict.fromkeys(name for by_name in coverage.values() for name in by_name))
    rows = [
        [name, *(number(by_name[name][column]) for by_name in coverage.values() for column in ("value", "contrast"))]
        for name in names
    ]
    columns = [f"{column}, new {kind}" for kind in coverage for column in ("value", "contrast")]
    return (
        f"{plan.redraws} data sets of {plan.train // 2} train documents a language are drawn anew (p = 0.5), and one fit of "
        "each is attributed. Below is the part of cells and data sets in which the interval covers the mean over the other data "
        "sets.\n\n"
        f"{table(['score', *columns], rows)}"
    )


def findings(one: Measured) -> Iterator[str]:
    """What the tables say, a sentence each."""
    for arm in ("different", "parallel"):
        worlds = one.arms.get(arm, ())
        if worlds and worlds[0].truth["level"] == 0:
            yield _of_nothing_shared(one.model, arm, worlds)
    if one.arms.get("parallel"):
        last = one.arms["parallel"][-1]
        shapley = np.asarray(last.truth["shapley"])
        yield (
            f"{one.model}, parallel clones (p = {last.truth['level']:g}): leaving another language out costs "
            f"{judge.others(last.need).mean():+.3f} nats and the own one {np.diagonal(last.need).mean():+.3f}, while the Shapley "
            f"value of each is {judge.others(shapley).mean():+.3f}; other / own is {_ratio(last, *STUDYS):.2f} by shares and "
            f"{_ratio(last, *HEADLINE):.2f} by the headline. Influence says what is used, not what is needed."
        )
    if one.arms.get("noise"):
        last = one.arms["noise"][-1]
        values = {
            row: noisy_value(last, judge.grid(last.table(*row))) for row in (HEADLINE, NEED, ("contributions", "nats"), STUDYS)
        }
        yield (
            f"{one.model}, {last.truth['setting']} labels: the need of the noisy language is {_noisy_need(last):+.3f}. In "
            f"parts of what clean languages are worth, need says {number(noisy_value(last, last.need))}, the headline "
            f"{number(values[HEADLINE])}, predicted need {number(values[NEED])}, contributions "
            f"{number(values['contributions', 'nats'])}, the share by cosine "
            f"{number(values[STUDYS])} (a dash: clean languages are worth nothing by it)."
        )
    if one.arms.get("families"):
        (world,) = one.arms["families"]
        best = max(world.rows, key=lambda row: np.nan_to_num(_agreement(world, *row).plain, nan=-1))
        found, need, shared = (_agreement(world, *row) for row in (HEADLINE, NEED, ("shared words", "table")))
        yield (
            f"{one.model}, families: over other languages the headline agrees with need at {found.plain:.2f} "
            f"({found.centred:.2f} without row and column effects), predicted need at {need.plain:.2f} ({need.centred:.2f}), the "
            f"share by cosine at "
            f"{_agreement(world, *STUDYS).plain:.2f}, shared words at {shared.plain:.2f}; best is {_named(*best)} with "
            f"{_agreement(world, *best).plain:.2f}."
        )
    for kind, by_name in one.coverage.items():
        parts = [columns["value"] for columns in by_name.values()]
        yield f"{one.model}, new {kind}: 95 % intervals of signed measures cover {min(parts):.2f} to {max(parts):.2f}."


def _of_nothing_shared(model: str, arm: str, worlds: Sequence[Found]) -> str:
    first, last = worlds[0], worlds[-1]
    levels = [world.truth["level"] for world in worlds]
    rising = judge.monotony(levels, [_ratio(world, *HEADLINE) for world in worlds])
    return (
        f"{model}, {arm} documents, no word shared: the cross-lingual share by cosine is {first.curve[-1][0]:.2f} where chance "
        f"is {first.curve[-1][1]:.2f}, and no more than that can be read from it. Help by another language is claimed in "
        f"{_claims(first, *STUDYS):.0%} of the cells by shares above their null, in {_claims(first, *HEADLINE):.0%} by the "
        f"headline ({_named(*HEADLINE)}), in {_contrast_claims(first, *HEADLINE):.0%} by its contrast, and in "
        f"{_claims(first, 'contributions', 'nats'):.0%} by contributions; need is above 0 in {_need_claims(first):.0%}. Other / "
        f"own of the headline goes from {_ratio(first, *HEADLINE):.2f} to {_ratio(last, *HEADLINE):.2f} (Spearman with p "
        f"{rising:.2f})."
    )
