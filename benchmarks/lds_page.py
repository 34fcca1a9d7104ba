"""docs/lds.md from results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.lds_scores import PROJECTED, whitened_name
from lightning_tracin.studies.named_scores import SCORES

TITLES = {
    "cldr": "CLDR names (what does a name name? five languages)",
    "nusax": "NusaX sentiment (short reviews, English and four languages of Indonesia)",
    "sib200": "SIB-200 topics (English, German, Russian, Chinese and Korean), a pretrained encoder",
}
MAIN = (
    "Fisher-whitened cosine",
    "Fisher-whitened dot product",
    "Adam-aware Fisher-whitened cosine",
    "Adam-aware Fisher-whitened dot product",
    "EK-FAC dot product",
    "compensated Adam dot product",
)

#: What the best score is compared with.
FISHER = "Fisher-whitened dot product"

_HEAD = """# Does influence predict retraining?

Written by `python -m benchmarks.lds --data cldr`, `--data nusax --data_dir FOLDER` and `--data sib200 --data_dir FOLDER`;
change the code, not this page.

The linear datamodelling score (LDS) works like this. Fit again on random halves of the train samples. For each probe, sum the
influence of each half's samples, and take Spearman's correlation, over the halves, with the log-odds of the probe's label under
the model fitted on that half. The LDS is the mean over probes: 1 is a perfect prediction, 0 is none. (The probe's loss has the
opposite order, so its LDS is the same.) Influence is computed from one fit on all train samples.

Every refit has the same first weights and the same batches in the same order, without the samples that are left out. So it
makes as many optimizer steps as the fit on all samples, with the same learning rates. Dropout is off. Intervals are 95 %
percentile intervals of 999 resamples, which draw both halves *and* probes; a difference uses the same draws for its two scores.

Scores are those of the package: of exact products, of `preconditioner="adam"` and `"adam-factored"`, of `method="ekfac"`, and of
projected features (`projection_dim=4096`, `preconditioner="fisher"` or `"adam-fisher"`) with the default damping, the ridge as a
part of the trace of F, or with that of the fit's own steps (`damping="steps"`: compensated); by layer: `blocks="layer"`. The full
fit is made once for each of them. Its weights are the same in all, bit by bit, which the command checks. The damping of EK-FAC is
chosen by held-out fit of the second moment, on no data set by LDS; that of compensated scores is not chosen at all.

The reference computes the same scores from whole gradients of single samples, without projection, where all of them fit in
memory. Whitened scores use inner products in the metric of F^-1, where F is the mean outer product of the train gradients plus
damping x its trace. Adam-aware scores multiply both gradients by (sqrt(v) + eps)^(-1/2), where v is Adam's second moments at the
snapshot.
"""

_TAIL = """
## What this cannot say

- There is one model and one data split for each data set, and refits differ only by the samples left out. So the intervals
  hold for other halves and other probes of this fit, not for other seeds, sizes or data.
- How high an LDS can get depends on how much of a refit's outcome is chance. `--stability LEARNING_RATE` prints how much the
  probes' log-odds change if 1 % of a half is exchanged, relative to the change from one half to another: 0.14 for a linear
  model, near 1 if there is nothing to predict. The settings were chosen by it: 0.17 (CLDR) and 0.19 (NusaX); a learning rate of
  2e-3 has 0.56 on CLDR.
- Half of the data is a large change; the effects of single samples may be ordered differently.
- On CLDR and NusaX, damping was chosen on these halves, so whitened scores look a little better there than they are. The
  default, 0.0025 = 10 / 4,096, comes from whole gradients at the last snapshot alone, on the first 24 (CLDR) and 34 (NusaX) of
  the halves. The last sentence under each table counts only the other halves, which are few. Nothing was chosen on SIB-200.
- The right damping depends on the number of train samples relative to the number of directions with gradient, so other data may
  need another one.
"""


def page(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The page, with a section for each data set that has results."""
    sections = [_section(name, results[name]) if name in results else _missing(name) for name in TITLES]
    return _HEAD + "".join(sections) + _TAIL


def _missing(name: str) -> str:
    folder = "" if name == "cldr" else " --data_dir FOLDER"
    return f"\n## {TITLES[name]}\n\nNot measured: run `python -m benchmarks.lds --data {name}{folder}`.\n"


def _section(name: str, result: Mapping[str, Any]) -> str:
    options = result["options"]
    repeated = ""
    if "repeatability" in result:
        repeated = (
            f" Two fits on the same half in other orders: rank correlation {result['repeatability']:.2f}, mean over probes."
        )
    facts = (
        f"{result['train']:,} train samples, {result['probes']} probes, {result['subsets']} halves x {result['repeats']}; "
        f"{_model(options)}, {result['parameters']:,} trained parameters; AdamW, learning rate {options['learning_rate']:g}, "
        f"batches of {options['batch_size']}, {options['epochs']} epochs, seed {options['seed']}. Accuracy of the fit on all: "
        f"train {result['accuracy_train']:.2f}, probes {result['accuracy_probes']:.2f}, test {result['accuracy_test']:.2f} (most "
        f"frequent label {result['majority_test']:.2f}). Scores are summed over {len(result['steps'])} of "
        f"{result['all_snapshots']} snapshots (steps {', '.join(map(str, result['steps']))}).{repeated}"
    )
    return f"\n## {TITLES[name]}\n\n{facts}\n\n{_scores(result)}\n\n{_verdict(result)}\n\n{_dampings(result)}\n"


def _model(options: Mapping[str, Any]) -> str:
    """The model, in words."""
    if options["model"] == "small":
        return f"XLM-R with {options['layers']} layer(s) of width {options['hidden_size']} from scratch"
    return f"{options['model']}" + (" with frozen embeddings" if options["freeze_embeddings"] else "")


def _scores(result: Mapping[str, Any]) -> str:
    """A line for each of the package's scores, with the reference next to it; then the scores that only the reference has."""
    package, reference = _by_name(result["rows"]), _by_name(result["reference_rows"])
    lines = ["| score | LDS | reference | minus cosine |", "|---|---|---|---|"]
    for name, row in package.items():
        if ", damping" not in name:
            other = f"{reference[name]['lds']:.3f}" if name in reference else ""
            lines.append(f"| {name} | {_interval(row, '')} | {other} | {_interval(row, 'difference')} |")
    for name, row in reference.items():
        if ", damping" not in name and name not in package:
            lines.append(f"| {name}, reference only | | {_interval(row, '')} | {_interval(row, 'difference')} |")
    return "\n".join(lines)


def _interval(row: Mapping[str, Any], of: str) -> str:
    """LDS, or its difference, with the interval."""
    if of:
        return f"{row[of]:+.3f} [{row[f'{of}_low']:+.3f}, {row[f'{of}_high']:+.3f}]"
    return f"{row['lds']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"


def _by_name(rows: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    return {row["score"]: row for row in rows}


def _dampings(result: Mapping[str, Any]) -> str:
    """LDS by damping: the package's, and the reference's where there is one."""
    package, reference = _by_name(result["rows"]), _by_name(result["reference_rows"])
    columns = [
        (f"{before}{product}{said}", rows, before, product)
        for before in PROJECTED
        for product in ("cosine", "dot product")
        for said, rows in (("", package), (", reference", reference))
        if rows
    ]
    lines = [
        "LDS by damping, of Fisher-whitened scores:",
        "",
        "| damping | " + " | ".join(title for title, *_ in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for damping in result["dampings"]:
        found = [rows.get(before + whitened_name(product, damping)) for _, rows, before, product in columns]
        values = ["" if row is None else f"{row['lds']:.3f}" for row in found]
        lines.append(f"| {np.format_float_positional(damping)} | " + " | ".join(values) + " |")
    return "\n".join(lines)


def _verdict(result: Mapping[str, Any]) -> str:
    """Whether whitening beats plain cosine."""
    package, unseen = _by_name(result["rows"]), _by_name(result["unseen"])
    sentences = []
    for name in (one for one in MAIN if one in package):
        row = package[name]
        holds = row["difference_low"] > 0
        says = "is above plain cosine, and the interval excludes 0" if holds else "is not shown to be above plain cosine"
        sentences.append(
            f"{name} {says}: by {_interval(row, 'difference')} over {result['subsets']} halves and {row['probes']} probes."
        )
    named = {name: row for name, row in package.items() if ", damping" not in name}
    if FISHER in named and named[FISHER]["lds"] > 0:
        best = max((name for name in named if name in SCORES), key=lambda name: named[name]["lds"])
        value, compared = named[best]["lds"], named[FISHER]["lds"]
        sentences.append(f"Best is {best} with {value:.3f}: {value / compared:.2f} times {compared:.3f}, that of {FISHER}.")
    others = " and ".join(f"{_interval(unseen[name], 'difference')} ({name})" for name in MAIN if name in unseen)
    left = result["subsets"] - result["chosen_on"]
    if result["chosen_on"]:
        sentences.append(f"Over the {left} halves alone that were not used to choose damping, the differences are {others}.")
    else:
        sentences.append("No damping was chosen on these data.")
    return " ".join(sentences)
