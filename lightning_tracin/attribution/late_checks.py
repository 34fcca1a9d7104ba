"""The checks of loss and gradients for a fit that could not make them before its first step, because its model was sharded."""

from __future__ import annotations

from torch import nn

from lightning_tracin.attribution.checks import checked_loss
from lightning_tracin.attribution.prepare import Setup, verify
from lightning_tracin.attribution.processes import Processes, on_rank_zero
from lightning_tracin.errors import TracInError
from lightning_tracin.storage.directory import RunDirectory
from lightning_tracin.storage.snapshots import Snapshot, load_weights


def require_whole(module: nn.Module) -> None:
    """Check that a module has all of its weights, here.

    Raises:
        TracInError: a parameter is sharded, or on the meta device.

    Example:
        >>> require_whole(nn.Linear(2, 1))
        >>> require_whole(nn.Linear(2, 1, device="meta"))
        Traceback (most recent call last):
        ...
        lightning_tracin.errors.TracInError: The module's 'weight' is on the meta device, so it has no values; build the module \
with its weights, or call `module.to_empty(device="cpu")` if the fit trained all of them.
    """
    for name, parameter in module.named_parameters():
        if hasattr(parameter, "placements"):
            raise TracInError(
                f"The module's {name!r} is sharded, but influence is computed with whole weights; give a module on which "
                "`fully_shard` and `parallelize_module` were not called."
            )
        if parameter.is_meta:
            raise TracInError(
                f"The module's {name!r} is on the meta device, so it has no values; build the module with its weights, or call "
                '`module.to_empty(device="cpu")` if the fit trained all of them.'
            )


def check_late(directory: RunDirectory, copy: nn.Module, setup: Setup, snapshot: Snapshot, processes: Processes) -> str:
    """Check loss and gradients with the weights of a snapshot, and record what other fits record before their first step.

    Args:
        directory: the run.
        copy: of the fit's module, in evaluation mode.
        setup: of the run's passes; its loss does not count.
        snapshot: of the run.
        processes: those of the pass; all of them call this.

    Returns:
        The name of the loss.

    Raises:
        TracInError: influence cannot be computed for the loss or the parameters.
    """
    load_weights(copy, snapshot.state_dict())
    processes.set_moment(copy, snapshot.epoch - 1, snapshot.record.global_step)
    prepared, moment = processes.prepared(copy, setup.dtype), f"at snapshot {snapshot.name}"
    loss = checked_loss(copy, setup.train, setup.probes, prepared, unit=setup.options.loss_unit)
    verified = verify(copy, frozenset(snapshot.record.groups), loss, setup.train, setup.probes, prepared, moment)
    on_rank_zero(processes, lambda: directory.note_loss(loss.name, verified.coverage.by_rule, verified.deviation))
    if processes.rank > 0:
        directory.reload()
    return loss.name
