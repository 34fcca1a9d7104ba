"""Refits on subsets of the train samples. All share the rest: initial weights, sample order, schedule.

A refit uses the user's own module and Trainer, which a factory builds for each fit. The probe losses of each fit are written to
a separate file, so that an interrupted series continues where it stopped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
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
from lightning_tracin.trainer.process_pool import own_cores
from lightning_tracin.trainer.shared_jobs import SharedJob, run_shared

#: Sizes of the probe batches on which the loss is checked. They differ, so that a mean and a sum cannot be confused.
_CHECKED = (5, 3)


@dataclass(frozen=True)
class Fit:
    """The parts of a fit, before it starts.

    Attributes:
        module: not fitted yet.
        trainer: a Trainer that has not been used.
        train: the train samples, shuffled or not; a refit uses its batches without the samples left out.
        probes: the samples whose losses are measured after the fit.
        validation: validation loader, for early stopping; refits that are compared should not stop early.
    """

    module: pl.LightningModule
    trainer: pl.Trainer
    train: DataLoader[Any]
    probes: DataLoader[Any]
    validation: DataLoader[Any] | None = None


#: Builds a fit. It is called after seeding, so its random numbers are the same each time.
Factory = Callable[[], Fit]


class MembersOnly(Sampler[list[int]]):
    """A loader's batches restricted to the members, in an order that depends on seed and epoch only.

    A sample is seen at the same optimizer step in every fit, and the schedule is the same: fits differ only in what is left out.

    Args:
        batches: the loader's batch sampler.
        members: which train samples the fit may see, [train].
        seed: of the order.

    Example:
        >>> batches = [[0, 1, 2], [3, 4, 5]]
        >>> list(MembersOnly(batches, np.array([True, False, True, True, True, False]), seed=0))
        [[0, 2], [3, 4]]
    """

    def __init__(self, batches: Any, members: Members, seed: int) -> None:
        self._batches, self._members, self._seed, self._epoch = batches, members, seed, 0
        self.sampler = self  # the Trainer calls `set_epoch` here

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
        """Set the epoch; the Trainer calls this before each one."""
        self._epoch = epoch


def _empty(size: int) -> str:
    return (
        f"All {size} samples of a batch are left out, so this fit would have fewer steps than the others; use a batch size with "
        "which the last batch is not tiny, larger batches, or leave out fewer samples."
    )


class Refits:
    """A series of refits, each stored in a file when it is done.

    Args:
        factory: builds the user's module, Trainer and loaders. With several workers it must be a module-level function (or a
            `functools.partial` of one), because it is sent to other processes.
        folder: folder of the results; a fit with a result is not repeated, and several processes, also of several machines, may
            make the results of one folder together.
        workers: number of processes; None: one per core. With one, fits run in this process.
        progress: whether to show a progress bar.

    Example:
        Skipped: each line is a fit.

        >>> refits = Refits(build_fit, "refits", workers=4)  # doctest: +SKIP
        >>> without_first_half = np.arange(1000) >= 500  # doctest: +SKIP
        >>> refits.losses(np.stack([np.ones(1000, bool), without_first_half])).mean(1)  # doctest: +SKIP
    """

    def __init__(self, factory: Factory, folder: str | Path, workers: int | None = 1, progress: bool = False) -> None:
        self._factory, self._folder, self._progress = factory, Path(folder), progress
        self._workers = own_cores() if workers is None else workers
        self._first: dict[int, _First] = {}

    def losses(self, members: Members, seed: int = 0) -> Outputs:
        """Run the missing fits and return the loss of every probe in each: array [fits, probes].

        For a cross-entropy, exp(-loss) is the probability of the correct class.

        Args:
            members: which train samples each fit may see, [fits, train].
            seed: of initial weights, order and dropout. All fits of one seed share them.

        Raises:
            TracInError: a stored fit has other initial weights or data, the factory cannot be sent to another process, or
                `members` does not match the train samples.
        """
        first = self._first_of(seed)
        if members.ndim != 2 or members.shape[1] != first.train:
            raise TracInError(
                f"members {list(members.shape)} should be [fits, train], but the factory has {first.train} train samples."
            )
        if not members.any(1).all():
            raise TracInError("A fit should have at least one train sample; one of the members' rows is empty.")
        first.require_members_in_every_batch(members, seed)
        paths = [self._folder / f"seed{seed}-{hashlib.sha256(line.tobytes()).hexdigest()[:16]}.safetensors" for line in members]
        distinct = dict(zip(paths, members, strict=True))
        jobs = [SharedJob((path,), (self._factory, line, seed, path), path) for path, line in distinct.items()]
        run_shared(refit, jobs, self._workers, f"refits, seed {seed}", self._progress)
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
                f"{path} holds a fit with other initial weights or other members, so it cannot be compared; delete it to fit "
                "again (after the same seed, the factory must always create the same initial weights)."
            )
        losses: Outputs = stored["losses"].double().numpy()
        if losses.shape != (first.probes,):
            raise TracInError(f"{path} has {len(losses)} probes, but the factory has {first.probes}; delete it to fit again.")
        return losses


@dataclass(frozen=True)
class _First:
    """What all fits of a seed start from."""

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
        """Check before the first fit that every fit has samples in every batch.

        Raises:
            TracInError: a fit would have an empty batch.
        """
        order = MembersOnly(self.batches, np.ones(self.train, dtype=np.bool_), seed)
        for epoch in range(self.epochs):
            order.set_epoch(epoch)
            for batch in order:
                if not members[:, batch].any(1).all():
                    raise TracInError(_empty(len(batch)))


def refit(factory: Factory, members: Members, seed: int, path: Path) -> None:
    """Fit on some of the train samples, and store the losses of the probes."""
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
    """Fit on some of the train samples, as `Refits` does. With all members this is the fit that refits are compared with.

    Args:
        fit: built after seeding with `seed`; its module is fitted.
        members: which train samples it may see, [train].
        seed: of order and dropout.
    """
    loader: DataLoader[Any] = DataLoader(
        fit.train.dataset,
        batch_sampler=MembersOnly(fit.train.batch_sampler, members, seed),
        collate_fn=fit.train.collate_fn,
        num_workers=fit.train.num_workers,
    )
    torch.manual_seed(seed)  # makes dropout independent of the random numbers that the factory used
    fit.trainer.fit(fit.module, loader, fit.validation)


@torch.no_grad()
def probe_losses(fit: Fit) -> Tensor:
    """The loss of each probe, computed alone with the module's current weights, in dataset order: [probes], double precision.

    Raises:
        TracInError: the module's loss is not a mean or sum of its samples' own losses.
    """
    copy = isolated_copy(fit.module, torch.float32).to(fit.trainer.strategy.root_device)  # the fit has moved it off its device
    dataset = fit.probes.dataset
    count = len(dataset)  # type: ignore[arg-type]

    def batch(indices: Iterable[int]) -> Any:
        return fit.trainer.strategy.batch_to_device(fit.probes.collate_fn([dataset[index] for index in indices]))

    def checks() -> list[Probed]:
        sizes = [range(min(size, count)) for size in _CHECKED]
        return [Probed(batch(some), [batch([index]) for index in some], "probes") for some in sizes]

    loss = find_loss(copy, checks)
    return torch.stack([loss(batch([index]), 1).double().cpu() for index in range(count)])


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed everything with Lightning inside the context; torch's random state is restored afterwards.

    Example:
        >>> with seeded(3):
        ...     first = torch.rand(2)
        >>> with seeded(3):
        ...     torch.equal(torch.rand(2), first)
        True
    """
    with torch.random.fork_rng(devices=[]):
        pl.seed_everything(seed, verbose=False)
        yield


def _weights_digest(module: nn.Module) -> str:
    hashed = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        hashed.update(name.encode())
        hashed.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return hashed.hexdigest()
