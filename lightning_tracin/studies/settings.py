"""What can be asked of a study: every setting, its default and its meaning."""

from __future__ import annotations

import dataclasses
import os
from typing import Literal, get_args

from lightning_tracin.analysis.baselines import BASELINES
from lightning_tracin.errors import TracInError
from lightning_tracin.studies.fit_settings import FitSettings
from lightning_tracin.studies.named_scores import SCORES

Experiment = Literal["removal", "left_out", "lds", "zero_shot", "imbalance", "masks"]


@dataclasses.dataclass(frozen=True)
class StudySettings:
    """Run a study: which languages' train samples does a fine-tuned model rely on, and does influence say so rightly?

    Tables of reliance, their changes between epochs, and reinforcing samples (E1, E3 to E6) need no experiment: every study has
    them, with the baselines.

    Args:
        name: Of the study; its folder is ``output/name``.
        fit: Data, model and schedule, as for a single fit.
        output: Where studies stand.
        seeds: How many fits from other first weights (of the head, where the model is pre-trained) and in other orders.
        experiments: What is fitted besides: ``removal`` (E2: refits without the top k), ``left_out`` (refits without each
            language), ``lds`` (refits on random halves), ``zero_shot`` (E7), ``imbalance`` (E8), ``masks`` (E9).
        scores: What is compared, the study's own first; it gives the tables.
        baselines: What needs no gradient, beside them.
        top_k: How many of a probe's strongest train samples count.
        correct_probes: Whether only probes that the fits of all seeds get right are kept, as in the study.
        candidates_per_language: Among how many samples of a language these are looked for; None takes five times as many.
        patience: Epochs without a better loss on the test samples after which a fit stops; None lets it go on to its end.
        ks: How many samples ``removal`` takes away.
        draws: How many random removals of each size.
        removal_seeds: On how many of the seeds ``removal`` is made.
        removal_scores: What is removed by at each k, beside the study's own score.
        area_scores: What is removed by at every third k only, for the area; None takes all other scores and baselines.
        subsets: How many halves ``lds`` fits on.
        variant_seeds: On how many of the seeds ``zero_shot``, ``imbalance`` and ``masks`` are made.
        zero_shot: Which train languages are left out by ``zero_shot``; None takes all.
        imbalance: Of which train languages ``imbalance`` adds samples; None takes all.
        amounts: How many per cent it adds.
        kept_heads: Which part of the attention heads a language's mask keeps.
        random_masks: How many random masks of the same size stand beside these.
        projection_dim: Of the whitened scores.
        workers: Processes that fit at the same time; None takes one for each core.
        wandb_mode: Where the study's tables and figures go in W&B.
    """

    name: str
    fit: FitSettings = dataclasses.field(default_factory=FitSettings)
    output: str = "runs/studies"
    seeds: int = 1
    experiments: list[Experiment] = dataclasses.field(default_factory=list)
    scores: list[str] = dataclasses.field(
        default_factory=lambda: ["cosine", "dot product", "dot product x learning rate", "relatif"]
    )
    baselines: list[str] = dataclasses.field(default_factory=lambda: list(BASELINES))
    top_k: int = 100
    correct_probes: bool = True
    candidates_per_language: int | None = None
    patience: int | None = None
    ks: list[int] = dataclasses.field(default_factory=lambda: [50, 100, 150, 200, 250])
    draws: int = 3
    removal_seeds: int = 1
    removal_scores: list[str] = dataclasses.field(default_factory=lambda: ["cosine", "same label", "BM25 x same label"])
    area_scores: list[str] | None = None
    subsets: int = 40
    variant_seeds: int = 1
    zero_shot: list[str] | None = None
    imbalance: list[str] | None = None
    amounts: list[int] = dataclasses.field(default_factory=lambda: [25, 50, 75, 100])
    kept_heads: float = 0.5
    random_masks: int = 3
    projection_dim: int = 4096
    workers: int | None = 1
    wandb_mode: Literal["offline", "online", "disabled"] = "offline"

    @property
    def candidates(self) -> int:
        """Among how many samples of a language the probes are looked for."""
        if self.candidates_per_language is not None:
            return self.candidates_per_language
        return self.fit.probes_per_language * (5 if self.correct_probes else 1)

    @property
    def processes(self) -> int:
        """How many fits go on at the same time."""
        return os.cpu_count() or 1 if self.workers is None else self.workers

    def __post_init__(self) -> None:
        self._check_names()
        self._check_numbers()
        if "masks" in self.experiments and SCORES[self.scores[0]].way == "projected":
            raise TracInError(f"masks go with exact influence only, so the first of scores cannot be {self.scores[0]!r}.")
        if "removal" not in self.experiments:
            return
        if not self.ks or self.ks[0] < 1 or self.ks != sorted(set(self.ks)):
            raise TracInError(f"ks should be some numbers from 1 on, ascending, but is {self.ks}.")
        for name in [*self.removal_scores, *(self.area_scores or ())]:
            if name not in [*self.scores, *self.baselines]:
                raise TracInError(f"{name!r} is to be removed by, but is neither among scores nor among baselines; add it there.")

    def _check_names(self) -> None:
        every = [*SCORES, *BASELINES]
        for field, known in (
            ("scores", SCORES),
            ("baselines", BASELINES),
            ("removal_scores", every),
            ("area_scores", every),
            ("experiments", get_args(Experiment)),
        ):
            unknown = [one for one in getattr(self, field) or () if one not in known]
            if unknown:
                raise TracInError(f"{field} has {unknown[0]!r}, but should have some of: {', '.join(known)}.")
        if not self.scores:
            raise TracInError("scores is empty, but the study needs one at least, such as cosine.")

    def _check_numbers(self) -> None:
        for name in ("seeds", "top_k", "draws", "removal_seeds", "variant_seeds", "subsets", "random_masks", "projection_dim"):
            if getattr(self, name) < 1:
                raise TracInError(f"{name} should be 1 or more, but is {getattr(self, name)}.")
        for name in ("removal_seeds", "variant_seeds"):
            if getattr(self, name) > self.seeds:
                raise TracInError(f"{name}={getattr(self, name)} is more than seeds={self.seeds}.")
        if "lds" in self.experiments and self.subsets < 3:
            raise TracInError(f"subsets should be 3 or more, so that there is a rank correlation, but is {self.subsets}.")
        if "imbalance" in self.experiments and (not self.amounts or min(self.amounts) < 1):
            raise TracInError(f"amounts should be some per cents from 1 on, but is {self.amounts}.")
        for name in ("zero_shot", "imbalance"):
            if getattr(self, name) == [] and name in self.experiments:
                raise TracInError(f"{name} is empty: name languages, or leave it out to take every train language.")
        if self.fit.test_per_language < 1:
            raise TracInError("fit.test_per_language should be 1 or more: a study states the accuracy on test samples.")
        if not 0 < self.kept_heads < 1:
            raise TracInError(f"kept_heads should be between 0 and 1, but is {self.kept_heads}.")
        candidates, probes = self.candidates_per_language, self.fit.probes_per_language
        if candidates is not None and candidates < probes:
            raise TracInError(f"candidates_per_language={candidates} is less than probes_per_language={probes}.")
