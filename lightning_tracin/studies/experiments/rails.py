"""Rails: what the same model would show of the same data if languages shared nothing, and if all were one language."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

import pandas as pd

from lightning_tracin.analysis.resampling import NO_INTERVAL
from lightning_tracin.analysis.tables import own_language
from lightning_tracin.errors import TracInError
from lightning_tracin.reporting import figures
from lightning_tracin.reporting.results import analyse
from lightning_tracin.run import TracInRun
from lightning_tracin.studies.datasets.cloned_split import Shared
from lightning_tracin.studies.fits import Variant
from lightning_tracin.studies.registry import experiment
from lightning_tracin.studies.section import Contents
from lightning_tracin.studies.settings import StudySettings
from lightning_tracin.studies.study_runs import StudyRuns, Wanted

SHARED: tuple[Shared, ...] = get_args(Shared)
_KEYS = ["snapshot", "epoch", "step", "probe_language"]


def check_settings(settings: StudySettings) -> None:
    """Check that the model can learn the words of clones.

    Raises:
        TracInError: the model is pretrained.
    """
    fit = settings.fit
    if fit.model != "small" or fit.pretraining_epochs:
        named = f"fit.model={fit.model!r}" if fit.model != "small" else f"fit.pretraining_epochs={fit.pretraining_epochs}"
        raise TracInError(
            f"rails fits the model on languages in new words, which a pretrained model does not know, but {named}: use "
            "fit.model='small' without pre-training, or take rails out of experiments."
        )


def runs(study: StudyRuns) -> list[Wanted]:
    """Two runs for each seed."""
    return [study.of_main(seed, Variant(shared=shared)) for shared in SHARED for seed in range(study.settings.variant_seeds)]


@experiment(
    "rails",
    "Rails: no shared words, and one language",
    25,
    runs=runs,
    check_settings=check_settings,
    addable=("variant_seeds",),
)
def rails(study: StudyRuns) -> Contents:
    """Rails: shares if languages shared nothing, and if all were one language."""
    mine = pd.concat(shares(study, study.main_run(seed)) for seed in range(study.settings.variant_seeds))
    clones = [shares(study, study.run(one)).assign(data=f"p = {one.variant.shared}") for one in runs(study)]
    table = pd.concat([mine.assign(data="own"), *clones])
    mean: pd.DataFrame = table.groupby(["data", *_KEYS])[["own", "cross_lingual", "null"]].mean().reset_index()
    drawn = mean[mean["data"] != "own"].assign(shared=lambda lines: lines["data"].str[-1].astype(int))
    results = analyse(study.main_run(0), study.view)
    return Contents(
        "The same model, sizes and schedule, on the same samples in other words. p = 0: the words of every language are mapped "
        "one-to-one to words of its own, so that languages share nothing but labels. p = 1: every text is that of its item in "
        "the first train language (or one with its label), so that all languages are one. `own` is the share of a probe's top "
        f"{study.settings.top_k} from its own language, `cross_lingual` the rest, `null` what that is by chance, by "
        f"{study.main}; {study.settings.variant_seeds} seed(s). The curves of "
        "train languages are those of seed 0.",
        tuple(findings(mean)),
        {"rails": mean},
        {"curves": figures.curves(results, study.languages, "share", drawn)},
    )


def shares(study: StudyRuns, run: TracInRun) -> pd.DataFrame:
    """The own-language share of each probe language with train samples at each snapshot, the rest, and the rest by chance."""
    view = study.view
    table = run.reliance(view.top_k, measure="share", similarity=view.similarity, weighting=view.weighting, interval=NO_INTERVAL)
    own = own_language(table).rename(columns={"value": "own"})
    columns = [*_KEYS, "own", "cross_lingual", "null"]
    found: pd.DataFrame = own.assign(cross_lingual=1 - own["own"], null=1 - own["null"])[columns]
    return found


def findings(table: pd.DataFrame) -> Iterator[str]:
    """Where the user's data are between the rails, at the last snapshot, in one sentence for all and one for each language.

    Args:
        table: columns `data` ("own", "p = 0", "p = 1"), `snapshot`, `probe_language` and `cross_lingual`.
    """
    last = table[table["snapshot"] == table["snapshot"].max()]
    if last.empty:
        return
    value = last.pivot(index="probe_language", columns="data", values="cross_lingual")
    mean = value.mean()
    yield (
        f"At the last snapshot, {mean['own']:.2f} of the top comes from other languages, on average over probe languages. If "
        f"languages shared no word it would be {mean['p = 0']:.2f}, and if all were one language {mean['p = 1']:.2f}: only what "
        "is above the first can be sharing."
    )
    below = [str(name) for name, line in value.iterrows() if line["own"] <= line["p = 0"]]
    if below:
        yield f"For {', '.join(below)} it is not above what it would be without any shared word."
