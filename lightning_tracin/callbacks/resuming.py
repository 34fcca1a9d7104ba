"""What the callback knows of a fit that goes on: the state in a checkpoint, and the steps that were made without the callback.

A state belongs to the run that it names, wherever the run's directory is now and whatever the schedule is. Without a state of
that run, the steps are known all the same: from the state of another callback, or from the Trainer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_tracin.errors import TracInError
from lightning_tracin.storage.directory import RunDirectory
from lightning_tracin.trainer.learning_rates import Recorder

#: The keys of a state, by which it is recognized: the key that it has in the checkpoint changes with the schedule.
_KEYS = {"run", "recorder", "last_step", "epoch"}


def states_in(checkpoint: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The states of TracInCallbacks in a checkpoint, by their keys there.

    Example:
        >>> state = {"run": "a", "recorder": {}, "last_step": 5, "epoch": 1}
        >>> list(states_in({"callbacks": {"TracInCallback{}": state, "Timer": {"time": 3}}}))
        ['TracInCallback{}']
    """
    found = checkpoint.get("callbacks") or {}
    return {str(key): state for key, state in found.items() if isinstance(state, dict) and state.keys() >= _KEYS}


def chosen_state(states: Mapping[str, dict[str, Any]], run: str | None, keys: Sequence[str]) -> dict[str, Any] | None:
    """The state to go on from: that of the directory's run, else the one under the callback's own keys, else any.

    Args:
        states: those in the checkpoint, by key.
        run: identity of the run in the callback's directory; None if it holds none.
        keys: the callback's, in order of preference.

    Example:
        >>> states = {"one": {"run": "a"}, "two": {"run": "b"}}
        >>> chosen_state(states, "b", ["one"]), chosen_state(states, None, ["one"]), chosen_state(states, "c", ["three"])
        ({'run': 'b'}, {'run': 'a'}, {'run': 'a'})
    """
    of_run = (state for state in states.values() if state["run"] == run)
    own = (states[key] for key in keys if key in states)
    return next((state for group in (of_run, own, states.values()) for state in group), None)


def recorder_at(global_step: int, optimizers: Sequence[Any]) -> Recorder:
    """A recorder that goes on after steps that nobody recorded.

    With several optimizers, each one's steps are read from its state, as Adam has it, or are taken to be equal.

    Args:
        global_step: the Trainer's count, over all optimizers.
        optimizers: the fit's.

    Example:
        >>> recorder_at(15, [None]).step
        15
    """
    counts = {0: global_step}
    if len(optimizers) > 1:
        counts = {number: _steps_of(one, global_step // len(optimizers)) for number, one in enumerate(optimizers)}
    return Recorder(counts=counts, before=dict(counts))


def _steps_of(optimizer: Any, otherwise: int) -> int:
    steps = [state["step"] for state in getattr(optimizer, "state", {}).values() if "step" in state]
    return int(max(steps)) if steps else otherwise


def refuse_other_fit(directory: RunDirectory, states: Mapping[str, dict[str, Any]], step: int) -> None:
    """Refuse to go on with a fit in the directory of a run that is not known to be its own.

    Args:
        directory: the directory.
        states: of the TracInCallbacks in the checkpoint.
        step: steps that the fit has made.

    Raises:
        TracInError: it holds a run.
    """
    if not directory.holds_run:
        return
    held = directory.record().run
    known = ", ".join(dict.fromkeys(state["run"] for state in states.values() if state["run"]))
    why = f"of the run {known}" if known else "without the state of a TracInCallback, so it is not known to be of that run"
    raise TracInError(
        f"{directory.path} holds the run {held}, but the fit goes on at step {step} from a checkpoint {why}. Resume from a "
        f"checkpoint of that run, or choose another `dirpath` or `overwrite=True` for a run that begins after step {step}."
    )


def require_unbroken(directory: RunDirectory, step: int, last: int, digest: str) -> None:
    """Check that a run has the last snapshot that the checkpoint knows of.

    Args:
        directory: the run.
        step: steps that the fit has made.
        last: the step of the last snapshot when the checkpoint was saved.
        digest: of that snapshot's record; empty if unknown.

    Raises:
        TracInError: it does not have it, or has others since.
    """
    kept = [snapshot for snapshot in directory.ledger.snapshots() if snapshot.step <= step]
    found = kept[-1].step if kept else directory.record().began_at
    remedy = f"Restore the directory, resume from a checkpoint of step {min(found, last)} or before, or choose another `dirpath`."
    if found not in (last, step):
        raise TracInError(
            f"The last snapshot up to step {step} in {directory.path} is of step {found}, but it was of step {last} when the "
            f"checkpoint was saved: the directory is older than the checkpoint, or the fit went on from another since. {remedy}"
        )
    known = next((snapshot.record.digest for snapshot in kept if snapshot.step == last), digest)
    if digest and known != digest:
        raise TracInError(
            f"The snapshot of step {last} in {directory.path} is not the one that was there when the checkpoint was saved: the "
            "fit went on from another checkpoint since, and its snapshots are of other weights. Resume from a checkpoint "
            f"that was saved after that, or from one of before step {last}, or choose another `dirpath`."
        )
