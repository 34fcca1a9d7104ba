"""What a study's experiments stand on: its runs, their scores, and refits; everything is computed once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from lightning_tracin.analysis.baselines import baselines_of
from lightning_tracin.analysis.scores import Scores
from lightning_tracin.config import View
from lightning_tracin.run import TracInRun
from lightning_tracin.storage.sample_table import SampleTable
from lightning_tracin.studies.fit_jobs import done, influence_run
from lightning_tracin.studies.fits import Recipe, Variant, build
from lightning_tracin.studies.named_scores import SCORES, Way, influence_of, settings_of, ways_of
from lightning_tracin.studies.settings import StudySettings
from lightning_tracin.trainer.process_pool import run_all
from lightning_tracin.trainer.refits import Refits


@dataclass(frozen=True)
class Wanted:
    """A run that an experiment needs."""

    seed: int
    way: Way
    variant: Variant = Variant()  # noqa: RUF009 - frozen
    mask: Path | None = None  # of gradients; its name is part of the run's


class Ground:
    """A study's runs and refits.

    Args:
        settings: of the study.
        folder: where it stands.
        recipe: of its fits, with the probes chosen.
        epochs: how many each seed's fit makes.
        progress: whether bars are shown.
    """

    def __init__(self, settings: StudySettings, folder: Path, recipe: Recipe, epochs: Sequence[int], progress: bool) -> None:
        self.settings, self.folder, self.epochs = settings, folder, tuple(epochs)
        self.recipe, self._progress = recipe, progress
        self._runs: dict[Wanted, TracInRun] = {}
        self._scores: dict[int, Mapping[str, Scores]] = {}

    @property
    def seeds(self) -> range:
        """The seeds of the study."""
        return range(self.settings.seeds)

    @property
    def main(self) -> str:
        """The study's own score."""
        return self.settings.scores[0]

    @property
    def view(self) -> View:
        """The study's own score as a run shows it."""
        score = SCORES[self.main]
        return View(top_k=self.settings.top_k, similarity=score.similarity, weighting=score.weighting)

    @cached_property
    def train(self) -> SampleTable:
        """The train samples of every fit that is no variant."""
        return self.run(Wanted(0, SCORES[self.main].way)).train

    @cached_property
    def probes(self) -> SampleTable:
        """The probes of every fit."""
        return self.run(Wanted(0, SCORES[self.main].way)).probes

    @property
    def units(self) -> list[str | None]:
        """What each probe is a version of: its item, where translations share it."""
        return list(self.probes.item)

    @property
    def languages(self) -> list[str]:
        """The train languages, in alphabetical order."""
        return sorted(set(self.train.language))

    def basic(self) -> list[Wanted]:
        """The runs that every study has."""
        return [Wanted(seed, way) for seed in self.seeds for way in ways_of(self.settings.scores)]

    def of_main(self, seed: int, variant: Variant, mask: Path | None = None) -> Wanted:
        """A run for the study's own score on a variant."""
        return Wanted(seed, SCORES[self.main].way, variant, mask)

    def complete(self, wanted: Sequence[Wanted]) -> None:
        """Fit what has not been fitted yet."""
        jobs = [self._job(one) for one in dict.fromkeys(wanted) if not done(self._path(one)).exists()]
        run_all(influence_run, jobs, self.settings.processes, "fits with influence", self._progress)

    def run(self, wanted: Wanted) -> TracInRun:
        """A run that is complete."""
        if wanted not in self._runs:
            self._runs[wanted] = TracInRun.open(self._path(wanted))
        return self._runs[wanted]

    def main_run(self, seed: int) -> TracInRun:
        """The run of a seed that the study's own score is read from."""
        return self.run(self.of_main(seed, Variant()))

    def main_scores(self, wanted: Wanted) -> Scores:
        """The study's own score of a run, summed over its snapshots: [train, probes]."""
        return influence_of(self.main, self.run(wanted))

    def scores(self, seed: int) -> Mapping[str, Scores]:
        """Every score and baseline of a seed: name -> [train, probes]."""
        if seed not in self._scores:
            found = {name: influence_of(name, self.run(Wanted(seed, SCORES[name].way))) for name in self.settings.scores}
            run = self.main_run(seed)
            found |= baselines_of(self.settings.baselines, run.train, run.probes, run.representations, seed)
            self._scores[seed] = found
        return self._scores[seed]

    def refits(self, seed: int) -> Refits:
        """The series of refits that share the seed's first weights, order and schedule."""
        recipe = replace(self.recipe, stop_after=self.epochs[seed])
        return Refits(partial(build, recipe), self.folder / "refits", workers=self.settings.processes, progress=self._progress)

    def _path(self, wanted: Wanted) -> Path:
        mask = "" if wanted.mask is None else f"-{wanted.mask.stem}"
        return self.folder / "runs" / f"seed{wanted.seed}{wanted.variant.name}{mask}-{wanted.way}"

    def _job(self, wanted: Wanted) -> tuple[Any, ...]:
        recipe = replace(self.recipe, stop_after=self.epochs[wanted.seed], variant=wanted.variant)
        callback = settings_of(wanted.way, self.settings.projection_dim)
        if wanted.mask is not None:
            callback["mask"] = str(wanted.mask)
        # weights are kept where masks are made of them, products by layer once: both take a multiple of the disk
        callback["keep_snapshots"] = wanted == self.of_main(wanted.seed, Variant())
        callback["per_layer"] = wanted == self.of_main(0, Variant())
        return recipe, wanted.seed, self._path(wanted), self.settings.top_k, callback
