"""Fits on parts of the train samples that share everything else: first weights, order of the samples, schedule.

A refit runs through the user's own module and Trainer, which a factory builds anew each time. What a fitted model says of the
probes is written to a file of its own, so that an interrupted series goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler

from lightning_tracin.analysis.lds import Members, Outputs
from lightning_tracin.attribution.losses import Probed, find_loss
from lightning_tracin.attribution.samples import require_loader
from lightning_tracin.errors import TracInError
from lightning_tracin.storage.files import read_tensors, write_tensors
from lightning_tracin.trainer.isolation import isolated_copy
from lightning_tracin.trainer.process_pool import run_all

#: Probes of the batches on which the loss is checked; different numbers, so that a mean and a sum cannot be confused.
_CHECKED = (5, 3)


@dataclass(frozen=True)
class Fit:
    """What a fit needs, built and not yet begun.

    Attributes:
        module: not fitted yet.
        trainer: that fits it.
        train: the train samples, shuffled or not; a refit takes its batches without those left out.
        probes: what the fitted model is asked.
        validation: what the Trainer validates on, for early stopping; refits that are compared should not stop early.
    """

    module: pl.LightningModule
    trainer: pl.Trainer
    train: DataLoader[Any]
    probes: DataLoader[Any]
    validation: DataLoader[Any] | None = None


#: Builds a fit anew. It is called after the seed is set, so what it draws is the same each time.
Factory = Callable[[], Fit]


class MembersOnly(Sampler[list[int]]):
    """A loader's own batches without the samples that are not members, in an order that depends on seed and epoch only.

    A sample is thus seen at the same optimizer step in every fit, and the schedule is the same: fits differ by what is left out
    and by nothing else.

    Args:
        batches: the loader's batch sampler.
        members: which train samples the fit may see, [train].
        seed: of the order.
    """

    def __init__(self, batches: Any, members: Members, seed: int) -> None:
        self._batches, self._members, self._seed, self._epoch = batches, members, seed, 0
        self.sampler = self  # where the Trainer looks for `set_epoch`

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[int]]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(np.random.SeedSequence([self._seed, self._epoch]).generate_state(1)[0]))
            batches = [list(batch) for batch in self._batches]
        for batch in batches:
            kept = [index for index in batch if self._members[index]]
            if not kept:
                raise TracInError(_empty(len(batch)))
            yield kept

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer before each epoch."""
        self._epoch = epoch


def _empty(size: int) -> str:
    return (
        f"All {size} samples of a batch are left out, so that this fit would have fewer steps than the others; use a batch size "
        "that leaves no small rest, larger batches, or leave out fewer samples."
    )


class Refits:
    """A series of fits, each written when it is done.

    Args:
        factory: builds the user's module, Trainer and loaders. With several workers it has to be a function of a module (or a
            `functools.partial` of one), because it is sent to other processes.
        folder: where the fits' outcomes stand; what is there is not fitted again.
        workers: processes; None takes one for every core. With one, fits run in this process.
        progress: whether a bar is shown.
    """

    def __init__(self, factory: Factory, folder: str | Path, workers: int | None = 1, progress: bool = False) -> None:
        self._factory, self._folder, self._progress = factory, Path(folder), progress
        self._workers = os.cpu_count() or 1 if workers is None else workers
        self._first: dict[int, _First] = {}

    def losses(self, members: Members, seed: int = 0) -> Outputs:
        """The loss of every probe under the model of each fit: array [fits, probes].

        For a cross-entropy, exp(-loss) is the probability of the correct class.

        Args:
            members: which train samples each fit may see, [fits, train].
            seed: of first weights, order and dropout; one seed is one series of fits that share them.

        Raises:
            TracInError: a stored fit began from other weights or data, the factory cannot be sent to another process, or members
                do not fit the train samples.
        """
        first = self._first_of(seed)
        if members.ndim != 2 or members.shape[1] != first.train:
            raise TracInError(
                f"members {list(members.shape)} should be [fits, train], but the factory has {first.train} train samples."
            )
        if not members.any(1).all():
            raise TracInError("A fit should have at least one train sample; one of the members' lines is empty.")
        first.require_members_in_every_batch(members, seed)
        paths = [self._folder / f"seed{seed}-{_digest(line.tobytes())[:16]}.safetensors" for line in members]
        todo = {path: line for path, line in zip(paths, members, strict=True) if not path.exists()}
        jobs = [(self._factory, line, seed, path) for path, line in todo.items()]
        run_all(_refit, jobs, self._workers, f"refits, seed {seed}", self._progress)
        return np.stack([self._read(path, line, first) for path, line in zip(paths, members, strict=True)])

    def _first_of(self, seed: int) -> _First:
        if seed not in self._first:
            with seeded(seed):
                self._first[seed] = _First.of(self._factory())
        return self._first[seed]

    def _read(self, path: Path, line: Members, first: _First) -> Outputs:
        stored = read_tensors(path)
        if not np.array_equal(stored["members"].numpy(), line) or bytes(stored["first"].tolist()).hex() != first.weights:
            raise TracInError(
                f"{path} holds a fit from other first weights or on other members, so it cannot be compared; delete it to have "
                "it fitted again (first weights have to be the same whenever the factory is called after the same seed)."
            )
        losses: Outputs = stored["losses"].double().numpy()
        if losses.shape != (first.probes,):
            raise TracInError(f"{path} has {len(losses)} probes, but the factory has {first.probes}; delete it to fit again.")
        return losses


@dataclass(frozen=True)
class _First:
    """What all fits of a seed begin from."""

    train: int
    probes: int
    weights: str  # a digest
    batches: Any  # the loader's batch sampler
    epochs: int

    @classmethod
    def of(cls, fit: Fit) -> _First:
        require_loader(fit.train, "train samples")
        require_loader(fit.probes, "probes")
        train, probes = fit.train.dataset, fit.probes.dataset
        epochs = max(1, fit.trainer.max_epochs or 1)
        return cls(len(train), len(probes), _weights_digest(fit.module), fit.train.batch_sampler, epochs)  # type: ignore[arg-type]

    def require_members_in_every_batch(self, members: Members, seed: int) -> None:
        """Say before the first fit what `MembersOnly` would say in the middle of a series.

        Raises:
            TracInError: a fit would have a batch without a sample.
        """
        order = MembersOnly(self.batches, np.ones(self.train, dtype=np.bool_), seed)
        for epoch in range(self.epochs):
            order.set_epoch(epoch)
            for batch in order:
                if not members[:, batch].any(1).all():
                    raise TracInError(_empty(len(batch)))


def _refit(factory: Factory, members: Members, seed: int, path: Path) -> None:
    """Fit on some of the train samples, and write what the model says of the probes."""
    with seeded(seed):
        fit = factory()
        first = bytes.fromhex(_weights_digest(fit.module))
        fit_on(fit, members, seed)
        write_tensors(
            path,
            {
                "members": torch.from_numpy(np.ascontiguousarray(members)),
                "first": torch.tensor(list(first), dtype=torch.uint8),
                "losses": probe_losses(fit),
            },
        )


def fit_on(fit: Fit, members: Members, seed: int) -> None:
    """Fit on some of the train samples, as `Refits` does it; with all of them this is the fit that refits are compared with.

    Args:
        fit: built after `seed` was set; its module is fitted.
        members: which train samples it may see, [train].
        seed: of order and dropout.
    """
    loader: DataLoader[Any] = DataLoader(
        fit.train.dataset,
        batch_sampler=MembersOnly(fit.train.batch_sampler, members, seed),
        collate_fn=fit.train.collate_fn,
        num_workers=fit.train.num_workers,
    )
    torch.manual_seed(seed)  # dropout does not depend on what the factory drew
    fit.trainer.fit(fit.module, loader, fit.validation)


@torch.no_grad()
def probe_losses(fit: Fit) -> Tensor:
    """The loss of each probe alone under the module as it is, in the dataset's order: [probes], double precision.

    Raises:
        TracInError: the module's loss is not made of its samples' own losses.
    """
    copy = isolated_copy(fit.module, torch.float32).to(fit.trainer.strategy.root_device)  # the fit has moved it off its device
    dataset, collate, prepared = fit.probes.dataset, fit.probes.collate_fn, fit.trainer.strategy.batch_to_device
    count = len(dataset)  # type: ignore[arg-type]

    def checks() -> list[Probed]:
        return [
            Probed(
                prepared(collate([dataset[index] for index in range(min(size, count))])),
                [prepared(collate([dataset[index]])) for index in range(min(size, count))],
                "probes",
            )
            for size in _CHECKED
        ]

    loss = find_loss(copy, checks)
    return torch.stack([loss(prepared(collate([dataset[index]])), 1).double().cpu() for index in range(count)])


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Lightning's seed inside; torch's random state is as before afterwards."""
    with torch.random.fork_rng(devices=[]):
        pl.seed_everything(seed, verbose=False)
        yield


def _weights_digest(module: nn.Module) -> str:
    hashed = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        hashed.update(name.encode())
        hashed.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return hashed.hexdigest()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
