"""Where the time of a way of computing goes: forward, backward, the layers' rules, products, and the rest."""

from __future__ import annotations

import cProfile
import pstats
from collections.abc import Callable

#: Phase -> functions whose calls it is, as (end of the file's name, function). Time within another phase counts there.
_PHASES = {
    "forward": (("gradients/capture.py", "_forward"),),
    "rules": (("gradients/capture.py", "_on_gradient"),),
    "products": (("gradients/block.py", "contract"), ("gradients/sketch.py", "features")),
    "norms of probes": (("gradients/bank.py", "collect"), ("gradients/query_bank.py", "collect")),
}
_BACKWARD = "run_backward"


def seconds_by_phase(work: Callable[[], object]) -> dict[str, float]:
    """Run some work once and say how many seconds each phase took.

    A forward that no capture runs (of a plain pass) is in the rest. Projections are computed inside of rules.
    """
    profile = cProfile.Profile()
    profile.runcall(work)
    stats = pstats.Stats(profile)
    found = dict.fromkeys(("forward", "backward", *list(_PHASES)[1:]), 0.0)
    for (file, _, function), (_, _, _, cumulative, _) in stats.stats.items():  # type: ignore[attr-defined]
        if _BACKWARD in function:
            found["backward"] += cumulative
        for name, functions in _PHASES.items():
            if any(file.endswith(end) and function == called for end, called in functions):
                found[name] += cumulative
    found["backward"] -= found["rules"]
    inside = _within(stats, "contract") if found["rules"] else 0.0
    found["rules"] = max(0.0, found["rules"] - found["norms of probes"] - (found["products"] - inside))
    found["rest"] = max(0.0, stats.total_tt - sum(found.values()))  # type: ignore[attr-defined]
    return found


def _within(stats: pstats.Stats, function: str) -> float:
    """Seconds of all calls of a function of this name in the package's blocks."""
    calls = stats.stats.items()  # type: ignore[attr-defined]
    return float(sum(row[3] for (file, _, name), row in calls if name == function and file.endswith("gradients/block.py")))
