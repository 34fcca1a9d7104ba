"""docs/lds.md from results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TITLES = {
    "cldr": "CLDR names (what does a name name? five languages)",
    "nusax": "NusaX sentiment (short reviews, English and four languages of Indonesia)",
}
MAIN = "Fisher-whitened cosine, damping 10"

_HEAD = """# Does influence predict retraining?

Written by `python benchmarks/lds.py --data cldr` and `--data nusax --data_dir FOLDER`; change that, not this page.

The linear datamodelling score (LDS): fit again on random halves of the train samples; for each probe, Spearman's correlation
over the halves of the influence summed over a half's samples with the log-odds of the probe's label under the model fitted on
that half; the mean over probes. 1 is a perfect prediction, 0 is none. (The probe's loss is in the opposite order, so its LDS is
the same.) Influence is computed from one fit on all train samples.

Every refit has the same first weights and the same batches in the same order, less the samples left out, so it makes as many
optimizer steps as the fit on all samples, with the same learning rates. Dropout is off. Intervals are 95 % percentile
intervals of 999 resamples that draw halves *and* probes anew, with the same draws for both scores of a difference.

Whitening is the reference form, from whole gradients without projection: inner products in the metric of F^-1, F the mean outer
product of the train gradients plus damping x (trace of F / 4,096); by block: a matrix of its own for the embeddings, each layer
and the head. Adam-aware: both gradients times (sqrt(v) + eps)^(-1/2), v Adam's second moments at the snapshot.
"""

_TAIL = """
## What it cannot say

- One small model from scratch and one data split each; refits differ by the samples left out, so the intervals hold for
  other halves and other probes of this fit, not for other seeds, sizes or data.
- How far a score can get at all depends on how much of a refit's outcome is chance. `--stability LEARNING_RATE` prints by how
  much exchanging 1 % of a half changes the probes' log-odds, over what another half changes: 0.14 for a linear model, near 1
  where there is nothing to predict. The settings were chosen by it: 0.17 (CLDR) and 0.19 (NusaX), where a learning rate of
  2e-3 has 0.56 on CLDR.
- Half of the data is a large change; what single samples do may be ordered differently.
- Several dampings were tried on the same halves, so the best line of a table is a little flattered. Damping 10, of which the
  sentence under each table speaks, was taken from the last snapshot alone, on the first 24 (CLDR) and 34 (NusaX) of the halves.
- Damping is what matters, and what number is right depends on how many train samples there are beside directions with
  gradient: 0.1 of the trace over 4,096 is not shown to be better than plain cosine on CLDR. It is relative to the trace, so that
  it does not change its meaning with the number of parameters or of a projection's dimensions.
"""


def page(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The page, with a section for each data set that has results."""
    sections = [_section(name, results[name]) if name in results else _missing(name) for name in TITLES]
    return _HEAD + "".join(sections) + _TAIL


def _missing(name: str) -> str:
    return f"\n## {TITLES[name]}\n\nNot measured: run `python benchmarks/lds.py --data {name}`.\n"


def _section(name: str, result: Mapping[str, Any]) -> str:
    options = result["options"]
    repeated = ""
    if "repeatability" in result:
        repeated = (
            f" Two fits on the same half in other orders: rank correlation {result['repeatability']:.2f}, mean over probes."
        )
    facts = (
        f"{result['train']:,} train samples, {result['probes']} probes, {result['subsets']} halves x {result['repeats']}; "
        f"XLM-R with {options['layers']} layer(s) of width {options['hidden_size']}, {result['parameters']:,} parameters; AdamW, "
        f"learning rate {options['learning_rate']:g}, batches of {options['batch_size']}, {options['epochs']} epochs, seed "
        f"{options['seed']}. Accuracy of the fit on all: train {result['accuracy_train']:.2f}, probes "
        f"{result['accuracy_probes']:.2f}, test {result['accuracy_test']:.2f} (most frequent label "
        f"{result['majority_test']:.2f}). Scores are summed over {len(result['steps'])} of {result['all_snapshots']} snapshots "
        f"(steps {', '.join(map(str, result['steps']))}).{repeated}"
    )
    lines = [
        "| score | LDS | minus cosine |",
        "|---|---|---|",
        *(
            f"| {row['score']} | {row['lds']:.3f} [{row['low']:.3f}, {row['high']:.3f}] | {row['difference']:+.3f} "
            f"[{row['difference_low']:+.3f}, {row['difference_high']:+.3f}] |"
            for row in result["rows"]
        ),
    ]
    return f"\n## {TITLES[name]}\n\n{facts}\n\n" + "\n".join(lines) + f"\n\n{_verdict(result)}\n"


def _verdict(result: Mapping[str, Any]) -> str:
    """Whether whitening beats plain cosine."""
    row = next(row for row in result["rows"] if row["score"] == MAIN)
    holds = row["difference_low"] > 0
    says = "is above plain cosine, and the interval says so" if holds else "is not shown to be above plain cosine"
    return (
        f"{MAIN}, {says}: by {row['difference']:+.3f} [{row['difference_low']:+.3f}, {row['difference_high']:+.3f}] "
        f"over {result['subsets']} halves and {row['probes']} probes."
    )
