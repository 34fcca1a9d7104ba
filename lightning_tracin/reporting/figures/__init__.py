"""A figure for every experiment: functions from a table to a matplotlib Figure, which write nothing and keep no state.

Titles state the number of probes, seeds, random draws and samples, and k, if the table has columns of these names
(`table.assign(k=100, seeds=3)` adds them). Intervals are labelled 95 %, the default of `reliance.Interval`.

Each language has its own colour and marker. To keep them the same in several figures, pass the same `languages` to each.

matplotlib is optional, so a figure's module is imported when the figure is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from lightning_tracin.errors import needs

if TYPE_CHECKING:
    from lightning_tracin.reporting.figures.contribution_charts import contributions
    from lightning_tracin.reporting.figures.drawing import png
    from lightning_tracin.reporting.figures.evidence_charts import agreement, deletion_areas, lds_bars, left_out, removal_curve
    from lightning_tracin.reporting.figures.experiment_charts import changes, imbalance, masks, reinforcement, zero_shot
    from lightning_tracin.reporting.figures.reliance_charts import curves, heat_map, layers, lift, shares
    from lightning_tracin.reporting.figures.sample_charts import top_samples

_MODULES = ("contribution_charts", "drawing", "evidence_charts", "experiment_charts", "reliance_charts", "sample_charts")

__all__ = [
    "agreement",
    "changes",
    "contributions",
    "curves",
    "deletion_areas",
    "heat_map",
    "imbalance",
    "layers",
    "lds_bars",
    "left_out",
    "lift",
    "masks",
    "png",
    "reinforcement",
    "removal_curve",
    "shares",
    "top_samples",
    "zero_shot",
]


def __getattr__(name: str) -> Any:
    """Import a figure from its module.

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    needs("matplotlib", "report", "Figures")
    modules = (importlib.import_module(f"{__name__}.{module}") for module in _MODULES)
    found = next(getattr(module, name) for module in modules if hasattr(module, name))
    if name == "png":
        return found
    from lightning_tracin.reporting.figures.lettering import lettered

    return lettered(found)
