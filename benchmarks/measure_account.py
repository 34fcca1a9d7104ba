"""What an account of contributions costs beside its fit, and what others compute in the same fit."""

from __future__ import annotations

import json
import subprocess
import sys
import time

from benchmarks import peer_bergson, peer_dattri_llm
from benchmarks.account_fit import Account, Sums, accounted_fit, fit, planted
from benchmarks.contenders import version_of
from benchmarks.registry import Context, measurement
from benchmarks.report import Comparison, Report, ratio_result
from benchmarks.timing import FEWEST, spread
from benchmarks.workloads import Workload, reference

_EPOCHS, _SAMPLES, _PROBES = 4, 1024, 64

#: Figure -> one of how many steps is accounted.
_EVERY = {"account_vs_fit": 1, "account_8th_vs_fit": 8}

#: Of the fit that others look at, too.
EPOCHS_OF_PEERS, RATE = 4, 5e-4


@measurement(*_EVERY)
def account_vs_fit(context: Context) -> Report:
    """Time of a fit with an account (default windows, probes included) over the same fit without, interleaved."""
    workload = reference(_SAMPLES, _PROBES).scaled(context.scale)
    fit(workload, 1)  # warm-up
    accounted_fit(workload, 1)
    times: dict[str, list[tuple[float, float, Account]]] = {name: [] for name in _EVERY}
    began, rounds = time.perf_counter(), 0
    while rounds < context.repetitions and (
        rounds < FEWEST or time.perf_counter() - began < len(_EVERY) * context.patience
    ):  # with, without, with every 8th, without, ...
        for name, every in _EVERY.items():
            took, known = accounted_fit(workload, _EPOCHS, every_n_steps=every)
            times[name].append((took, fit(workload, _EPOCHS)[0], known))
        rounds += 1
    results = tuple(ratio_result(name, spread([one / other for one, other, _ in mine])) for name, mine in times.items())
    return Report(results, notes=tuple(_note(name, workload, mine) for name, mine in times.items()))


def _note(name: str, workload: Workload, mine: list[tuple[float, float, Account]]) -> str:
    def seconds(of: list[float]) -> str:
        return f"{spread(of).value:.1f} s"

    with_it, without = [took for took, _, _ in mine], [took for _, took, _ in mine]
    accounts = [known for _, _, known in mine]
    steps = [took - known.starting - known.looking - known.ending for took, _, known in mine]
    return (
        f"{name}: {_EPOCHS} epochs of {len(workload.train)} samples, {len(workload.probes)} probes; {seconds(with_it)} with, "
        f"{seconds(without)} without. Of the former, checks and the first look at the probes took "
        f"{seconds([known.starting for known in accounts])}, once; looking at probes where {accounts[0].windows} windows end "
        f"{seconds([known.looking for known in accounts])}; tables, figures and page at the end "
        f"{seconds([known.ending for known in accounts])}, once; the steps themselves {seconds(steps)}."
    )


@measurement("account_memory")
def memory(context: Context) -> Report:
    """Memory of an account's vectors as measured, over what the line before the fit announces; rows of embeddings apart."""
    if not sys.platform.startswith("linux"):
        return Report(notes=("account_memory: measured on Linux only.",))
    found, plain = (_run(way, context.scale) for way in ("with", "without"))
    mib = {name: round(size / 2**20) for name, size in found.items()}
    difference = round((found["grown"] - plain["grown"]) / 2**20)
    note = (
        f"account_memory: {mib['announced']} MiB are announced for all but the rows of embeddings, {mib['vectors']} were taken; "
        f"for the rows at most {mib['announced_rows']} are announced, {mib['rows']} were taken. The process grew by {difference} "
        "MiB more than without the account, copies of the model for looking at the probes included."
    )
    return Report((ratio_result("account_memory", spread([found["vectors"] / found["announced"]])),), notes=(note,))


def _run(way: str, scale: float) -> dict[str, int]:
    command = [sys.executable, "-m", "benchmarks.account_memory", way, str(scale)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"`python -m benchmarks.account_memory` failed:\n{done.stderr}")
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


@measurement("account_peers")
def peers(context: Context) -> Report:
    """What this package, dattri-llm's and bergson's callbacks say of the same fit, and what it adds up to."""
    workload = planted().scaled(context.scale)
    mine = ours(workload)
    rows = [Comparison(workload.name, "ContributionCallback", "", _SETTINGS, mine.described())]
    for name, distribution, settings, in_run in (
        ("dattri-llm DataSelectionCallback", "dattri-llm", peer_dattri_llm.IN_RUN, peer_dattri_llm.in_run),
        ("bergson GradientCollectorCallback", "bergson", peer_bergson.IN_RUN, peer_bergson.in_run),
    ):
        version = version_of(distribution)
        if version is None:
            note = "not installed here; `make bench` sets up an environment that has it"
        else:
            try:
                note = in_run(workload, EPOCHS_OF_PEERS, RATE).described()
            except Exception as error:  # show the peer's own message
                note = f"fails with {type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
        rows.append(Comparison(workload.name, name, version or "", settings, note))
    return Report(comparisons=tuple(rows))


#: How this package accounts for the fit.
_SETTINGS = "default windows, every step; nats of the mean loss of all probes, by train language"


def ours(workload: Workload) -> Sums:
    """What this package says of the fit."""
    took, known = accounted_fit(
        workload,
        EPOCHS_OF_PEERS,
        RATE,
        of_probes=["all"] * len(workload.probes),
        probes_per_language=None,
        max_probes_per_language=None,
    )
    groups = known.table[known.table["is_group"]]
    nats = dict(zip(groups["train_language"], groups["nats"].astype(float), strict=True))
    return Sums(nats, float(known.table["fall"].iloc[0]), took)
