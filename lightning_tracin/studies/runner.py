"""Run a whole study, step by step; a second run skips every step whose files exist.

`output/name/` holds `study.json` (the settings), `data.json` (a digest of the samples), `encoder/` (if one is pre-trained),
`first/` (for each seed, the samples that its fit classifies correctly), `probes.json` (the candidates chosen as probes), `runs/`
(run directories; one is complete when its `.done` file exists), `refits/` (the probe losses of each refit), `masks/`, and
`results/`, which is rewritten each time. While processes work on it, there are `workers/`, `lock` and claims (`shared_folder`).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from lightning_tracin.config import View
from lightning_tracin.errors import TracInError, needs
from lightning_tracin.run import TracInRun
from lightning_tracin.storage.files import write_bytes
from lightning_tracin.studies.data import load_split
from lightning_tracin.studies.fit_jobs import First, first_fit, read_first
from lightning_tracin.studies.fit_summary import accuracy_table, summary_of
from lightning_tracin.studies.fits import FitRecipe
from lightning_tracin.studies.pretraining import with_encoder
from lightning_tracin.studies.probe_choice import choose_probes
from lightning_tracin.studies.quiet import quietly
from lightning_tracin.studies.registry import Experiment, chosen_experiments
from lightning_tracin.studies.resume import begin_or_resume, require_same_data
from lightning_tracin.studies.section import Section
from lightning_tracin.studies.settings import FitSettings, StudySettings
from lightning_tracin.studies.shared_folder import SharedFolder
from lightning_tracin.studies.study_runs import StudyRuns
from lightning_tracin.trainer.shared_jobs import SharedJob, run_shared

#: Optional packages that every study uses; checked at the start, because some are first used after hours of fits.
_PACKAGES = ("bm25s", "jinja2", "matplotlib", "torchmetrics")


@dataclass(frozen=True)
class Outcome:
    """The results of a study.

    Attributes:
        settings: settings of the study.
        folder: folder of the study.
        account: description of the data, with the number of rows left out.
        accuracy: accuracy of the fits on all train samples, by language and part.
        sections: one for each experiment.
        missing: the experiments without a section, with the reason.
        run: the first seed's run that the study's own score is read from.
        view: how that score is read from the run.
        summary: description of the fits, in one paragraph.
    """

    settings: StudySettings
    folder: Path
    account: str
    accuracy: pd.DataFrame
    sections: tuple[Section, ...]
    missing: tuple[str, ...]
    run: TracInRun
    view: View
    summary: str


@quietly()
def run_study(settings: StudySettings, progress: bool = True, say: Callable[[str], None] = print) -> Outcome:
    """Run the fits of a study that do not exist yet, and analyse them.

    Args:
        settings: settings of the study.
        progress: whether to show progress bars.
        say: called with the name of each step.

    Several processes, also of several machines, may run one study in a folder that they share; they share its fits.

    Raises:
        TracInError: the folder holds a study with other settings, an optional package is missing, or the data, the model or a
            setting is invalid.
    """
    for package in _PACKAGES:
        needs(package, "study", "Studies")
    folder = Path(settings.output) / settings.name
    with SharedFolder(folder, say) as shared:
        return _run(settings, folder, shared, progress, say)


def _run(settings: StudySettings, folder: Path, shared: SharedFolder, progress: bool, say: Callable[[str], None]) -> Outcome:
    """`run_study` in a locked folder, whose lock is left to others during fits."""
    record = begin_or_resume(settings, folder, shared.has_others)
    experiments = chosen_experiments(settings.experiments)
    recipe, account = _recipe(settings, experiments, folder, record, progress, say)
    say("Fits on all train samples")
    paths = [folder / "first" / f"seed{seed}.safetensors" for seed in range(settings.seeds)]
    jobs = [SharedJob((path,), (recipe, seed, path), path) for seed, path in enumerate(paths)]
    with shared.unlocked():
        run_shared(first_fit, jobs, settings.processes, "fits", progress)
    firsts = [read_first(path) for path in paths]
    recipe = replace(recipe, chosen=_probes(settings, recipe.options, folder, firsts), patience=None)
    study = StudyRuns(settings, folder, recipe, [first.epochs for first in firsts], progress)
    _fit(study, experiments, shared, say)
    say("Tables and figures")
    sections, missing = [], []
    for experiment in experiments:
        try:
            section = experiment.section(study)
        except TracInError as error:  # one failing experiment must not discard the others after hours of fits
            missing.append(f"{experiment.title}. {error}")
            continue
        if section is None:
            missing.append(f"{experiment.title}. These data and fits leave nothing to compare.")
        else:
            sections.append(section)
    accuracy, run = accuracy_table(recipe, firsts), study.main_run(0)
    summary = summary_of(settings, accuracy, run, firsts)
    return Outcome(settings, folder, account, accuracy, tuple(sections), tuple(missing), run, study.view, summary)


def _recipe(
    settings: StudySettings,
    experiments: list[Experiment],
    folder: Path,
    record: bytes,
    progress: bool,
    say: Callable[[str], None],
) -> tuple[FitRecipe, str]:
    """The recipe of all fits, with every candidate as a probe, and a description of the data; pre-trains the encoder if needed.

    Raises:
        TracInError: the data cannot be loaded, or do not suit the study.
    """
    options, extra = replace(settings.fit, probes_per_language=settings.candidates), settings.extra_per_language
    split, account = load_split(options, extra=extra)
    say(f"Data: {account}")
    if settings.top_k > len(split.train):
        raise TracInError(
            f"top_k={settings.top_k} is more than all train samples ({len(split.train)}); choose a smaller top_k, or train on "
            "more."
        )
    for experiment in experiments:
        if experiment.check_data is not None:
            experiment.check_data(settings, split)
    require_same_data(split, folder)
    write_bytes(folder / "study.json", record)  # only now, so that invalid settings can still be corrected
    if options.pretraining_epochs:
        say("Encoder")
    options = with_encoder(options, split, folder / "encoder", progress=progress)
    return FitRecipe(options, extra=extra, patience=settings.patience), account


def _probes(settings: StudySettings, options: FitSettings, folder: Path, firsts: list[First]) -> tuple[int, ...]:
    """Positions of the probes among the candidates; stored, so that a resumed study uses the same probes."""
    path = folder / "probes.json"
    if path.exists():
        return tuple(json.loads(path.read_text())["chosen"])
    split, _ = load_split(options)
    candidates = split.probes.with_format(None)
    correct = np.stack([first.correct for first in firsts])
    if not settings.correct_probes:
        correct = np.ones_like(correct)
    chosen = choose_probes(candidates["language"][:], candidates["item"][:], correct, settings.fit.probes_per_language)
    write_bytes(path, json.dumps({"candidates": len(candidates), "chosen": chosen}).encode())
    return chosen


def _fit(study: StudyRuns, experiments: list[Experiment], shared: SharedFolder, say: Callable[[str], None]) -> None:
    """Run the fits and refits that the experiments need."""
    say("Influence on the probes")
    with shared.unlocked():
        study.complete(study.basic())
    for experiment in experiments:
        if experiment.runs is not None:
            say(f"Fits for {experiment.title}")
            wanted = experiment.runs(study)
            with shared.unlocked():
                study.complete(wanted)
    refits = [experiment.refits for experiment in experiments if experiment.refits is not None]
    for seed in study.seeds if refits else ():
        say(f"Refits of seed {seed}")
        needed = np.concatenate([members(study, seed) for members in refits])  # all at once, to keep every worker busy
        if len(needed):
            with shared.unlocked():
                study.refits(seed).losses(needed, seed)
