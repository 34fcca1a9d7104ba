"""Scores candidates: samples that the fit was not trained on, by what training on them would have done to the run's probes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pytorch_lightning import LightningModule

from lightning_tracin.attribution.attributor import Attributor
from lightning_tracin.attribution.method import method_of
from lightning_tracin.attribution.prepare import (
    GivenLanguages,
    Setup,
    mask_of_run,
    require_frozen_alike,
    require_same_samples,
)
from lightning_tracin.attribution.probes import chosen_probes, probes_from_loaders
from lightning_tracin.attribution.samples import SampleSet, from_loader
from lightning_tracin.config import Options, SampleColumns
from lightning_tracin.errors import TracInError
from lightning_tracin.storage.candidates import CandidateDirectory
from lightning_tracin.storage.directory import RunDirectory
from lightning_tracin.trainer.environment import Environment
from lightning_tracin.trainer.isolation import isolated_copy, untouched_process


@contextmanager
def scored_candidates(
    directory: RunDirectory,
    module: LightningModule,
    candidates: Any,
    probes: Any,
    snapshots: Sequence[int],
    *,
    languages: Sequence[str | bool] | None = None,
    languages_of_probes: Sequence[str] | None = None,
    language_column: str | tuple[str, ...] | None = None,
    item_column: str | None = None,
    mask: str | Path | None = None,
    memory_budget: int | None = None,
    progress: bool = True,
) -> Iterator[CandidateDirectory]:
    """Compute the candidates' products at some snapshots, in a temporary directory that is deleted on exit.

    Args:
        directory: the run, which is not changed.
        module: as in `attribute`.
        candidates: a DataLoader of the candidates.
        probes: the run's probes again; None if their features are stored.
        snapshots: indices of the snapshots.
        languages: each candidate's language. None: read from the column.
        languages_of_probes: each probe's language, if the fit was given a list.
        language_column: the column of the candidates' languages. None: the fit's.
        item_column: the column of the candidates' items. None: the fit's.
        mask: the mask file, if the run has a mask.
        memory_budget: see `attribute`.
        progress: whether to show progress bars.

    Raises:
        TracInError: probes are missing or not the run's, a snapshot's weights were not kept, or the module is another than the
            fit's.
    """
    with untouched_process(module, candidates, probes), TemporaryDirectory(prefix="tracin-candidates-") as folder:
        record, ledger = directory.record(), directory.ledger.snapshots()
        options = record.options.but(memory_budget=memory_budget)
        kept_mask = mask_of_run(directory, None if mask is None else Path(mask))
        require_frozen_alike(module, ledger)
        given = GivenLanguages(languages, languages_of_probes)
        columns = SampleColumns(
            language_column=language_column or options.language_column,
            item_column=item_column or options.item_column,
            text_columns=options.text_columns,
            label_column=options.label_column,
        )
        samples = from_loader(candidates, columns, "candidates", given.train)
        again = _probes_of_run(directory, options, probes, given.probes)
        setup = Setup(options, samples, again or samples, record.known_loss, kept_mask, progress, train_kind="candidate")
        scratch = CandidateDirectory(Path(folder), directory, samples.table)
        copy = isolated_copy(module, setup.dtype)
        attributor = Attributor(scratch, Environment(copy), setup)
        for index in snapshots:
            attributor.score_candidates(copy, ledger[index])
        yield scratch


def _probes_of_run(
    directory: RunDirectory, options: Options, probes: Any, languages: Sequence[str | bool] | None
) -> SampleSet | None:
    """The run's probes, read again from their loaders. None: their features are stored, so they are not needed."""
    record = directory.record()
    if probes is None:
        if method_of(options).adds_probes:
            return None
        raise TracInError(
            f"{directory.path} keeps products of its probes, not their gradients, so candidates need the probes again: "
            "`run.score(module, candidates, probes=val_loader)`; a fit with a `projection_dim` keeps what this needs."
        )
    if record.languages_of_probes_given and languages is None:
        raise TracInError(
            f"The fit of {directory.path} was given its `languages_of_probes` as a list; give them again: "
            "`languages_of_probes=[...]`."
        )
    found = chosen_probes(probes_from_loaders(probes, options, languages), options)
    held = directory.samples("probes").take(range(record.probes.count))  # without added probes
    require_same_samples(found.table, held, "probe", directory.path)
    return found
