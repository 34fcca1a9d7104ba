"""The page that shows what `benchmarks.evidence` found: every sentence is made of the numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

TITLES = {"cldr": "CLDR names", "nusax": "NusaX sentiment"}
_START = """# Evidence: does influence name what a model needs?

Written by `python -m benchmarks.evidence`; do not edit. A small XLM-R is fitted from scratch; then it is fitted again, from the
same first weights, in the same order and schedule, without some of its train samples (`lightning_tracin.refits`). A probe's
probability is that of its correct class. Small models on small data: what holds here is no finding about a large model."""


def page(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The page, from each data set's results."""
    return "\n\n".join([_START, *(part for name, found in results.items() for part in _section(name, found))]) + "\n"


def _section(name: str, found: Mapping[str, Any]) -> list[str]:
    options = found["options"]
    return [
        f"## {TITLES.get(name, name)}",
        f"{found['train']} train samples in {', '.join(found['languages'])}; {found['probes']} probes; {options['layers']} "
        f"layer(s) of width {options['hidden_size']}, {options['epochs']} epochs in batches of {options['batch_size']} at a "
        f"learning rate of {options['learning_rate']:g}, no dropout; influence summed over {found['snapshots']} snapshots. The "
        f"mean probability of the correct class is {found['probability']:.3f} over {found['seeds']} seeds.",
        f"### Removing what influence names (E2)\n\nThe k train samples that a score puts first for all probes together go (two "
        f"seeds; beside it {found['draws']} random removals of each size and seed). `drop` is the mean relative loss of "
        "probability, `excess` that above random removals, with 95 % intervals over probes, p one-sided (Wilcoxon).",
        _table(
            found["removal"],
            {
                "removed": "removed",
                "k": "k",
                "drop": "drop",
                "random_drop": "at random",
                "excess": "excess",
                "excess_low": "low",
                "excess_high": "high",
                "p": "p",
            },
        ),
        " ".join(_of_removal(found["removal"])),
        "AUC-DEL, the area under the change of probability over the removed part of the train set (negative: what was removed "
        "had supported the probes):",
        _table(found["areas"], {"removed": "removed", "area": "area", "low": "low", "high": "high"}, digits=5),
        f"### Leaving one language out\n\nThe change in each probe language's mean loss when a train language is left out: mean "
        f"over {found['seeds']} seeds (standard error).",
        _grid(found["changes"]),
        "Correlation of tables with these changes over the cells, as they are and with row and column means taken out "
        "(`centred`, with Fisher's 95 % interval); `floor` is the 95th percentile of tables with permuted train languages. "
        f"Tables are means over seeds; `share` is of the top {found['top']}.",
        _table(
            sorted(found["agreement"], key=lambda row: (row["measure"], -_number(row["centred_pearson"]))),
            {
                "measure": "measure",
                "score": "score",
                "spearman": "Spearman, raw",
                "pearson": "Pearson, raw",
                "centred_pearson": "centred",
                "centred_low": "low",
                "centred_high": "high",
                "floor": "floor",
                "p": "p",
            },
        ),
        _of_agreement(found["agreement"]),
    ]


def _of_removal(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    sentences = []
    for name in dict.fromkeys(row["removed"] for row in rows):
        mine = [row for row in rows if row["removed"] == name]
        above = [row["k"] for row in mine if row["excess_low"] > 0]
        below = [row["k"] for row in mine if row["excess_high"] < 0]
        said = [f"lowers it more than random removals at {_listed(above, mine)}"] if above else []
        said += [f"lowers it less at {_listed(below, mine)}"] if below else []
        sentences.append(f"Removing {name}: {'; '.join(said) or 'at no k different from random removals'}.")
    return sentences


def _listed(some: Sequence[int], rows: Sequence[Any]) -> str:
    return "every k" if len(some) == len(rows) else f"k = {', '.join(map(str, some))}"


def _of_agreement(rows: Sequence[Mapping[str, Any]]) -> str:
    shares = [row for row in rows if row["measure"] == "share" and row["centred_pearson"] == row["centred_pearson"]]
    best = max(shares, key=lambda row: row["centred_pearson"])
    certain = [row["score"] for row in shares if row["centred_pearson"] > row["floor"]]
    return (
        f"By shares, without row and column means, {best['score']} agrees best ({best['centred_pearson']:.2f}). Above the floor "
        f"are {', '.join(certain) or 'none'}."
    )


def _grid(changes: Sequence[Mapping[str, Any]]) -> str:
    trains = sorted({row["train_language"] for row in changes})
    lines = []
    for own in sorted({row["probe_language"] for row in changes}):
        cells = {
            row["train_language"]: f"{row['change']:+.3f} ({row['error']:.3f})" for row in changes if row["probe_language"] == own
        }
        lines.append({"probe": own, **cells})
    return _table(lines, {"probe": "probes in", **{train: f"without {train}" for train in trains}})


def _table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], digits: int = 3) -> str:
    lines = [list(columns.values()), ["---"] * len(columns)]
    lines += [[_cell(row[name], digits) for name in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any, digits: int) -> str:
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)


def _number(value: float) -> float:
    return value if value == value else float("-inf")
