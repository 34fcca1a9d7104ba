"""What the callback does during a fit whose model is sharded: snapshots, and nothing that needs the whole model.

Every process writes its own pieces of a snapshot; `attribute` puts them together later, on one device. A copy of the module would
gather its weights on every process, so the loss and the gradients, which other fits check before their first step, are checked by
`attribute`, too (`attribution.late_checks`), and no losses are stored with the snapshots.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping

import torch
from humanize import naturalsize
from lightning_utilities.core.rank_zero import rank_zero_info

from lightning_tracin.attribution.prepare import Scored
from lightning_tracin.attribution.processes import on_rank_zero
from lightning_tracin.config import SCALED, Options
from lightning_tracin.errors import TracInError
from lightning_tracin.reporting.attempts import attribute_line
from lightning_tracin.storage.frozen_digest import frozen_digest
from lightning_tracin.storage.pieces import Piece
from lightning_tracin.storage.snapshots import SnapshotRecord, folder_name, trainable_names
from lightning_tracin.trainer.fit_facts import expected_snapshots, users_objects
from lightning_tracin.trainer.isolation import untouched_process
from lightning_tracin.trainer.learning_rates import Recorder
from lightning_tracin.trainer.own_pieces import (
    copied_pieces,
    own_moments,
    own_weights,
    sampled_together,
    sharded_again,
    without_copies,
)
from lightning_tracin.trainer.session import Session
from lightning_tracin.trainer.tolerance import appended


class ShardedSession(Session):
    """The work of the callback in a fit under ModelParallelStrategy: see `Session`.

    Influence is left to `attribute`, as with `when="never"`.

    Args:
        options: the callback's.
        probes: loaders of the probes. None: the Trainer's validation loaders.
        languages: given to the callback.
        directory: the run directory.
        trainer: the fit's Trainer.
        module: the module being fitted, sharded.

    Raises:
        TracInError: the samples, the mask or the names of parameters do not fit, or the optimizer keeps no second moments.
    """

    _held_pieces: tuple[int, dict[str, Piece]] = (-1, {})  # a step, and this process's weights right after it

    def _possible(self, options: Options) -> Options:
        sharded_again(self._module)
        return options.model_copy(update={"when": "never", "keep_snapshots": True})

    def _examine(self, names: frozenset[str]) -> None:
        self._scored = Scored({name: one.numel() for name, one in self._module.named_parameters() if name in names}, {})
        self._bytes = self._bytes_of_snapshot(), 0
        rank_zero_info(self._described())

    def _bytes_of_snapshot(self) -> int:
        """Size of a snapshot on disk, over all processes."""
        kept = [one for name, one in self._module.named_parameters() if name in self._trainable]
        moments = 4 * sum(self._scored.elements.values()) if self._options.preconditioner in SCALED else 0
        return sum(one.numel() * one.element_size() for one in (*kept, *self._module.buffers())) + moments

    def _described(self) -> str:
        expected = expected_snapshots(self._options, self._trainer)
        each = f"{'snapshots' if expected is None else f'{expected} snapshots'} of {naturalsize(self._bytes[0])}"
        return (
            f"TracIn: {type(self._trainer.strategy).__name__} shards the model, so this fit only takes {each}, each rank its own "
            f"part, to {self.directory.path}; losses and gradients are checked, and influence is computed, after the fit, on one "
            "device: `lightning_tracin.attribute` or `lightning-tracin attribute`."
        )

    def snapshot(self, recorder: Recorder, epoch: int) -> bool:
        """Take a snapshot, of which each process writes its pieces; False if the disk has no room for it."""
        if not self._has_room():
            return False
        with untouched_process(*users_objects(self._trainer)):
            self.require_same_data()
        sharded_again(self._module)
        rank, ranks = self._processes.rank, self._processes.ranks
        step, held = self._held_pieces
        names = self._kept_names()
        weights = held if step == recorder.step else self._own(own_weights(self._module, names))
        self._held_pieces = (-1, {})
        moments = None
        if self._options.preconditioner in SCALED:
            moments = self._own(own_moments(self._trainer.optimizers, self._scored_now()))
        record = self._record(recorder, epoch, names, ())
        self._processes.barrier("tracin_ledger_read")
        ledger, name = self.directory.ledger, folder_name(record)

        def begin() -> None:
            self.directory.discard(name)  # left by a killed fit
            ledger.begin(record)

        on_rank_zero(self._processes, begin)
        if not self._written_by_all(lambda: ledger.append_pieces(record, weights, moments, rank, ranks), record):
            return False

        def complete() -> None:
            ledger.complete(record, ranks)

        self._warn(on_rank_zero(self._processes, lambda: appended(complete, name, self.directory)))
        if not self._trainer.is_global_zero:
            ledger.reload()
        self._is_full = len(ledger.snapshots()) <= record.index
        return not self._is_full

    def _written_by_all(self, write: Callable[[], None], record: SnapshotRecord) -> bool:
        """Write this process's pieces; False if the disk of any process is full.

        Raises:
            TracInError: a process cannot write them for another reason. It is raised by all, so that none waits.
        """
        refusal, error = None, None
        try:
            refusal = appended(write, folder_name(record), self.directory)
        except Exception as one:  # of any kind: the other processes are waiting
            error = one
        said = self._processes.gather(torch.tensor([int(refusal is not None), int(error is not None)]))
        if error is not None:
            raise error
        for rank in said[:, 1].nonzero().flatten().tolist():
            raise TracInError(f"Rank {rank} could not write its part of snapshot {folder_name(record)}; its own error says why.")
        self._is_full = bool(said[:, 0].any())
        if refusal is not None:
            warnings.warn(refusal, stacklevel=2)
        elif self._is_full:
            self._warn(
                f"TracIn: rank {int(said[:, 0].argmax())} could not write its part of snapshot {folder_name(record)}, because "
                "its disk is full: the fit goes on, and no more snapshots are taken."
            )
        return not self._is_full

    def _digest_without(self, kept: frozenset[str]) -> str:
        return frozen_digest(self._module, kept, sampled_together(self._processes.gather))

    def _own(self, pieces: Mapping[str, Piece | None]) -> dict[str, Piece]:
        return without_copies(pieces, self._processes.rank, self._processes.gather)

    def hold_weights(self, step: int) -> None:
        """Keep this process's weights as they are after a step, as `Session.hold_weights` does."""
        sharded_again(self._module)
        self._held_pieces = step, copied_pieces(self._own(own_weights(self._module, self._kept_names())))

    def keep_unfrozen(self, step: int) -> None:
        """Save parameters that have just been unfrozen, before their first step, as `Session.keep_unfrozen` does."""
        if sum(parameter.requires_grad for parameter in self._module.parameters()) == len(self._trainable):
            return
        sharded_again(self._module)
        before, self._trainable = self._trainable, trainable_names(self._module)
        self._frozen = self._digest_without(self._trainable)
        new = self._trainable - before
        if new and self.directory.ledger.snapshots():
            pieces = {name: one for name, one in self._own(own_weights(self._module, new)).items() if name in new}
            self.directory.ledger.append_unfrozen_pieces(step, pieces, self._processes.rank, self._processes.ranks)

    def finish(self) -> None:
        """End the run, and say how its influence is computed."""
        super().finish()
        if self.directory.ledger.snapshots():
            line = attribute_line(self.directory.path, self._options, self.directory.record())
            rank_zero_info(f"TracIn: `{line}`, with a module that is not sharded and the fit's loaders, computes the influence.")
