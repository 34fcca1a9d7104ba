"""When influence is computed if the options leave it open: in the fit where that is cheap, else at its end.

A pass goes over all train samples and takes at least as long as training on them once. It is cheap in a fit whose snapshots are
many epochs apart. The decision is made before the fit and stored with the run, so that a resumed fit goes on in the same way.
"""

from __future__ import annotations

from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_info
from pytorch_lightning import Trainer

from lightning_tracin.attribution.cost import Cost
from lightning_tracin.attribution.processes import Processes, on_rank_zero
from lightning_tracin.config import Options, When
from lightning_tracin.storage.directory import RunDirectory

#: Live, if a snapshot's influence takes less than this part of the training between two snapshots.
CHEAP = 0.1


def as_before(options: Options, directory: RunDirectory) -> Options:
    """The options of a resumed fit: what was left open is as it was decided for the run.

    Args:
        options: the callback's.
        directory: of the run that goes on.
    """
    before = directory.record().options.when
    return options.but(when=before) if options.when == "auto" and before != "never" else options


def decided(options: Options, cost: Cost | None, trainer: Trainer, processes: Processes) -> Options:
    """The options with `when="auto"` decided; a line on the terminal says how, and how to change it.

    Args:
        options: the callback's.
        cost: of one pass.
        trainer: the fit's.
        processes: those of the fit; the first one decides for all.
    """
    if options.when != "auto" or cost is None:
        return options
    between = samples_between_snapshots(options, trainer)
    training = None if between is None else between * cost.captured
    when, said = on_rank_zero(processes, lambda: choice(cost.seconds, training))
    rank_zero_info(said)
    return options.but(when=when)


def choice(influence: float, training: float | None) -> tuple[When, str]:
    """When to compute, and why.

    Args:
        influence: seconds that a snapshot's influence takes.
        training: seconds of the fit between two snapshots. None: unknown.

    Example:
        >>> choice(60.0, 601.0)[0], choice(60.0, 600.0)[0], choice(60.0, None)[0]
        ('snapshot', 'fit_end', 'fit_end')
        >>> print(choice(60.0, 50.0)[1])  # doctest: +NORMALIZE_WHITESPACE
        TracIn: influence is computed at the end of the fit, because that of a snapshot takes about 120 % of the time of the
        training between two snapshots; `when='snapshot'` computes it live.
    """
    if training is None:
        return "fit_end", (
            "TracIn: influence is computed at the end of the fit, because it is not known how long training takes between two "
            "snapshots; `when='snapshot'` computes it live."
        )
    part = f"that of a snapshot takes about {influence / training:.0%} of the time of the".replace("%", " %")
    if influence < CHEAP * training:
        return "snapshot", (
            f"TracIn: influence is computed live, because {part} training between two snapshots; `when='fit_end'` leaves it to "
            "the end."
        )
    return "fit_end", (
        f"TracIn: influence is computed at the end of the fit, because {part} training between two snapshots; `when='snapshot'` "
        "computes it live."
    )


def samples_between_snapshots(options: Options, trainer: Trainer) -> int | None:
    """Train samples that a rank goes over between two snapshots; None if the loader does not say.

    Args:
        options: when snapshots are taken.
        trainer: the fit's, with its train loader.
    """
    loader: Any = trainer.train_dataloader
    size, batches = getattr(loader, "batch_size", None), trainer.num_training_batches
    if size is None or (options.every_n_train_steps is None and batches == float("inf")):
        return None
    if options.every_n_train_steps is not None:
        return int(size * trainer.accumulate_grad_batches * options.every_n_train_steps)
    assert options.every_n_epochs is not None
    return int(size * batches * options.every_n_epochs)
