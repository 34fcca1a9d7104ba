"""Writes the results of a run: tables, figures and page, with the experiments and baselines that the run supports."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import pandas as pd
import torch
from lightning_utilities.core.rank_zero import rank_zero_info
from pytorch_lightning import LightningModule

from lightning_tracin.analysis.reliance import Floats
from lightning_tracin.attribution.losses import loss_named
from lightning_tracin.attribution.prepare import Setup
from lightning_tracin.attribution.processes import Processes
from lightning_tracin.attribution.representations import sentence_representations
from lightning_tracin.config import View
from lightning_tracin.errors import TracInError
from lightning_tracin.reporting.attempts import Attempts, attribute_line
from lightning_tracin.reporting.every_result import WrittenResults, remedy_of, write_every_result
from lightning_tracin.run import TracInRun
from lightning_tracin.trainer.isolation import untouched_process
from lightning_tracin.trainer.token_scores import tokens_of_pairs


def finish(
    run: TracInRun, view: View, setup: Setup, processes: Processes, fitted: Callable[[], LightningModule]
) -> WrittenResults:
    """Analyse a run and write its results, each on its own. Called on rank 0 only.

    With `report=False`, only the representations are written, which cannot be computed later without the model.

    Args:
        run: a run whose snapshots all have influence.
        view: what the results show.
        setup: the setup of its passes.
        processes: the processes of the pass.
        fitted: returns a copy of the fitted model in evaluation mode, for its sentence representations.
    """
    attempts = Attempts()
    completes = attribute_line(run.path, setup.options, run.record)
    if not setup.options.report:
        if not run.is_large and view.measure == "share":
            # A module without a transformers model has none.
            with attempts.at(run.directory.representations.name), suppress(TracInError):
                _representations(run, setup, processes, fitted, attempts)
        return WrittenResults(None, remedy_of(run, attempts.failed, f"`{completes}`, with the fit's module and loaders,"))
    if run.is_large:
        rank_zero_info(
            f"TracIn: the influence of {len(run.train):,} train samples on {len(run.queries):,} probes is read shard by shard; "
            "experiments and baselines, which need all of it at once, are left out of the results."
        )
    written = write_every_result(
        run,
        view,
        lambda: _representations(run, setup, processes, fitted, attempts),
        setup.progress,
        attempts.failed,
        completes,
        (lambda top: _tokens(run, view, setup, fitted, top)) if setup.options.per_token else None,
    )
    if written.remedy is None:
        rank_zero_info(f"TracIn: reliance at {len(run.snapshots)} snapshots is in {run.directory.results}.")
    return written


def _representations(
    run: TracInRun, setup: Setup, processes: Processes, fitted: Callable[[], LightningModule], attempts: Attempts
) -> tuple[Floats, Floats]:
    """Compute the fitted model's representations of the train samples and of the probes, and store them in the run."""
    with untouched_process(setup.train.datasets, setup.train.collates, setup.probes.datasets, setup.probes.collates):
        copy = fitted()
        loss, prepared = loss_named(copy, setup.loss), processes.prepared(copy, setup.dtype)
        train, probes = (
            sentence_representations(copy, samples, loss, prepared, 1 if loss.is_of_one else setup.options.batch_size)
            for samples in (setup.train, setup.probes)
        )
    with attempts.at(run.directory.representations.name):
        run.directory.write_representations(torch.from_numpy(train).float(), torch.from_numpy(probes).float())
    return train, probes


def _tokens(run: TracInRun, view: View, setup: Setup, fitted: Callable[[], LightningModule], top: pd.DataFrame) -> pd.DataFrame:
    """Split the scores of the strongest train samples over the tokens of their probes."""
    with untouched_process(setup.train.datasets, setup.train.collates, setup.probes.datasets, setup.probes.collates):
        return tokens_of_pairs(run.directory, fitted(), setup, top, view)
