"""The runs and refits of a study and the scores read from them, each computed once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pandas as pd

from lightning_tracin.analysis.baselines import baselines_of
from lightning_tracin.analysis.exchange import units_of
from lightning_tracin.analysis.reliance import reliance_table
from lightning_tracin.analysis.scores import Scores
from lightning_tracin.analysis.tally import TrainLanguages
from lightning_tracin.config import View
from lightning_tracin.run import TracInRun
from lightning_tracin.storage.sample_table import SampleTable
from lightning_tracin.studies.fit_jobs import done, influence_run
from lightning_tracin.studies.fits import FitRecipe, Variant, build
from lightning_tracin.studies.named_scores import SCORES, Way, influence_of, settings_of, ways_of
from lightning_tracin.studies.settings import StudySettings
from lightning_tracin.trainer.refits import Refits
from lightning_tracin.trainer.shared_jobs import SharedJob, run_shared


@dataclass(frozen=True)
class Wanted:
    """A run that an experiment needs.

    Attributes:
        seed: seed of the fit.
        way: how the run computes influence.
        variant: how the fit's train samples differ from those of the other fits.
        mask: file of the mask that its gradients are restricted to; the file's name becomes part of the run's name.
    """

    seed: int
    way: Way
    variant: Variant = Variant()  # noqa: RUF009 - frozen
    mask: Path | None = None


class StudyRuns:
    """The runs and refits of one study, for its experiments.

    Args:
        settings: settings of the study.
        folder: folder of the study.
        recipe: recipe of its fits, with the probes chosen.
        epochs: number of epochs of each seed's fit.
        progress: whether to show progress bars.
    """

    def __init__(self, settings: StudySettings, folder: Path, recipe: FitRecipe, epochs: Sequence[int], progress: bool) -> None:
        self.settings, self.folder, self.epochs = settings, folder, tuple(epochs)
        self.recipe, self._progress = recipe, progress
        self._runs: dict[Wanted, TracInRun] = {}
        self._scores: dict[int, Mapping[str, Scores]] = {}

    @property
    def seeds(self) -> range:
        """The seeds of the study."""
        return range(self.settings.seeds)

    @property
    def attributed(self) -> range:
        """Those of the seeds whose fits have influence."""
        return range(self.settings.influence_seeds or self.settings.seeds)

    @property
    def main(self) -> str:
        """Name of the study's own score."""
        return self.settings.scores[0]

    @property
    def view(self) -> View:
        """How the study's own score is read from a run."""
        score = SCORES[self.main]
        return View(top_k=self.settings.top_k, similarity=score.similarity, weighting=score.weighting)

    @cached_property
    def train(self) -> SampleTable:
        """The train samples of every fit except variants."""
        return self.main_run(0).train

    @cached_property
    def probes(self) -> SampleTable:
        """The probes of all fits."""
        return self.main_run(0).probes

    @property
    def languages(self) -> list[str]:
        """The train languages, in alphabetical order."""
        return sorted(set(self.train.language))

    def basic(self) -> list[Wanted]:
        """The runs that every study has."""
        return [Wanted(seed, way) for seed in self.attributed for way in ways_of(self.settings.scores)]

    def of_main(self, seed: int, variant: Variant, mask: Path | None = None) -> Wanted:
        """The run of a variant from which the study's own score is read."""
        return Wanted(seed, SCORES[self.main].way, variant, mask)

    def complete(self, wanted: Sequence[Wanted]) -> None:
        """Compute the runs that do not exist yet; those of one fit are computed in it together."""
        fits: dict[tuple[int, Variant], list[Wanted]] = {}
        for one in dict.fromkeys(wanted):
            if not done(self._path(one)).exists():
                fits.setdefault((one.seed, one.variant), []).append(one)
        jobs = [
            SharedJob(
                tuple(done(self._path(one)) for one in together),
                self._job(seed, variant, together),
                self.folder / "runs" / f"seed{seed}{variant.name}",
            )
            for (seed, variant), together in fits.items()
        ]
        run_shared(influence_run, jobs, self.settings.processes, "fits with influence", self._progress)

    def run(self, wanted: Wanted) -> TracInRun:
        """Open a complete run."""
        if wanted not in self._runs:
            self._runs[wanted] = TracInRun.open(self._path(wanted))
        return self._runs[wanted]

    def main_run(self, seed: int) -> TracInRun:
        """The seed's run from which the study's own score is read."""
        return self.run(self.of_main(seed, Variant()))

    def main_scores(self, wanted: Wanted) -> Scores:
        """The study's own score in a run, summed over its snapshots: [train, probes]."""
        return influence_of(self.main, self.run(wanted))

    def nats(self, name: str) -> list[float] | None:
        """What turns a score at each snapshot of seed 0 into nats; None if it predicts no change of a loss, or is a baseline."""
        if name not in SCORES:
            return None
        return self.run(Wanted(0, SCORES[name].way)).nats(SCORES[name].scoring)

    def scores(self, seed: int) -> Mapping[str, Scores]:
        """Every score and baseline of a seed: name -> [train, probes]."""
        if seed not in self._scores:
            found = {name: influence_of(name, self.run(Wanted(seed, SCORES[name].way))) for name in self.settings.scores}
            run = self.main_run(seed)
            found |= baselines_of(self.settings.baselines, run.train, run.probes, run.representations, seed)
            self._scores[seed] = found
        return self._scores[seed]

    def reliance(self, scores: Scores, train: SampleTable | None = None) -> pd.DataFrame:
        """The reliance table of some scores [train, probes]; None for `train` means the train samples of every fit."""
        languages = TrainLanguages.of_table(self.train if train is None else train)
        return reliance_table(scores, languages, self.probes.language, self.settings.top_k, probe_units=units_of(self.probes))

    def refits(self, seed: int) -> Refits:
        """The refits with the first weights, order and schedule of this seed."""
        recipe = replace(self.recipe, stop_after=self.epochs[seed])
        return Refits(partial(build, recipe), self.folder / "refits", workers=self.settings.processes, progress=self._progress)

    def _path(self, wanted: Wanted) -> Path:
        mask = "" if wanted.mask is None else f"-{wanted.mask.stem}"
        return self.folder / "runs" / f"seed{wanted.seed}{wanted.variant.name}{mask}-{wanted.way}"

    def _job(self, seed: int, variant: Variant, together: Sequence[Wanted]) -> tuple[Any, ...]:
        recipe = replace(self.recipe, stop_after=self.epochs[seed], variant=variant)
        runs = {self._path(one): self._callback(one) for one in together}
        main = self.of_main(seed, Variant())
        account = self._path(main) if seed < self.settings.contribution_seeds and main in together else None
        return recipe, seed, runs, self.settings.top_k, account

    def _callback(self, wanted: Wanted) -> dict[str, Any]:
        callback = settings_of(wanted.way, self.settings.projection_dim)
        if wanted.mask is not None:
            callback["mask"] = str(wanted.mask)
        # Both multiply the disk space. Only masks need the kept weights, and only seed 0 has a table by layer.
        callback["keep_snapshots"] = wanted == self.of_main(wanted.seed, Variant())
        callback["per_layer"] = wanted == self.of_main(0, Variant())
        return callback
