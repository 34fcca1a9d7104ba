"""What each arm of known truth shows: its tables in Markdown, and what they say in sentences."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
import pandas as pd

from benchmarks.known_truth import judge
from benchmarks.known_truth.measure import Found
from benchmarks.known_truth.plan import Plan

#: Which cells of a table.
Cells = npt.NDArray[np.bool_]
#: How often intervals cover: what was drawn anew -> score and measure -> column -> part of the cells.
Coverage = Mapping[str, Mapping[str, Mapping[str, float]]]

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
#: Where languages have different sizes, what is lost without one is the sum.
LOST = (HEADLINE[0], "sum")


def judged(arm: str, worlds: Sequence[Found]) -> pd.DataFrame:
    """Every score and measure in every world of an arm, as one long table."""
    rows = [
        {
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
        for world in worlds
        for score, measure in world.rows
    ]
    found: pd.DataFrame = pd.DataFrame(rows)
    return found


def section(arm: str, worlds: Sequence[Found]) -> str:
    """The tables of an arm in Markdown."""
    return _TABLES[arm](worlds)


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


def coverage_table(coverage: Coverage, plan: Plan) -> str:
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


def findings(model: str, arm: str, worlds: Sequence[Found]) -> Iterator[str]:
    """What the tables of an arm say, a sentence or two each."""
    if arm in ("different", "parallel") and worlds[0].truth["level"] == 0:
        yield _of_nothing_shared(model, arm, worlds)
    if arm in _FINDINGS:
        yield _FINDINGS[arm](model, worlds)


def _of_clones(model: str, worlds: Sequence[Found]) -> str:
    last = worlds[-1]
    shapley = np.asarray(last.truth["shapley"])
    return (
        f"{model}, parallel clones (p = {last.truth['level']:g}): leaving another language out costs "
        f"{judge.others(last.need).mean():+.3f} nats and the own one {np.diagonal(last.need).mean():+.3f}, while the Shapley "
        f"value of each is {judge.others(shapley).mean():+.3f}; other / own is {_ratio(last, *STUDYS):.2f} by shares and "
        f"{_ratio(last, *HEADLINE):.2f} by the headline. Influence says what is used, not what is needed."
    )


def _of_noise(model: str, worlds: Sequence[Found]) -> str:
    last = worlds[-1]
    headline, need, contributions, share = (
        number(noisy_value(last, judge.grid(last.table(*row)))) for row in (HEADLINE, NEED, ("contributions", "nats"), STUDYS)
    )
    return (
        f"{model}, {last.truth['setting']} labels: the need of the noisy language is {_noisy_need(last):+.3f}. In "
        f"parts of what clean languages are worth, need says {number(noisy_value(last, last.need))}, the headline {headline}, "
        f"predicted need {need}, contributions {contributions}, the share by cosine {share} (a dash: clean languages are worth "
        "nothing by it)."
    )


def _of_agreement(model: str, worlds: Sequence[Found], headline: tuple[str, str] = HEADLINE) -> str:
    (world,) = worlds
    best = max(world.rows, key=lambda row: np.nan_to_num(_agreement(world, *row).plain, nan=-1))
    found, need, share, shared = (_agreement(world, *row) for row in (headline, NEED, STUDYS, ("shared words", "table")))
    return (
        f"{model}, {world.truth['arm']}: over other languages the headline ({headline[1]}) agrees with need at "
        f"{number(found.plain)} ({number(found.centred)} without row and column effects), predicted need at "
        f"{number(need.plain)} ({number(need.centred)}), the share by cosine at {number(share.plain)}, shared words at "
        f"{number(shared.plain)}; best is {_named(*best)} with {number(_agreement(world, *best).plain)}."
    )


_FINDINGS: Mapping[str, Callable[[str, Sequence[Found]], str]] = {
    "parallel": _of_clones,
    "noise": _of_noise,
    "sizes": partial(_of_agreement, headline=LOST),
    "labels": partial(_of_agreement, headline=LOST),
    "families": _of_agreement,
}


def coverage_findings(model: str, coverage: Coverage) -> Iterator[str]:
    """What the coverage of intervals says, a sentence for each kind of new data."""
    for kind, by_name in coverage.items():
        parts = [columns["value"] for columns in by_name.values()]
        yield f"{model}, new {kind}: 95 % intervals of signed measures cover {min(parts):.2f} to {max(parts):.2f}."


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
