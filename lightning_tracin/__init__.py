"""See which languages' training data a multilingual model relies on."""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_tracin.callbacks.contribution import ContributionCallback
    from lightning_tracin.callbacks.tracin import TracInCallback
    from lightning_tracin.errors import TracInError
    from lightning_tracin.run import TracInRun
    from lightning_tracin.trainer.attribute import attribute
    from lightning_tracin.trainer.import_checkpoints import import_checkpoints

__all__ = ["ContributionCallback", "TracInCallback", "TracInError", "TracInRun", "attribute", "import_checkpoints"]

#: Name -> module that defines it. Modules are imported on first use: reading a run loads neither Lightning nor transformers.
_HOMES = {
    "ContributionCallback": "callbacks.contribution",
    "TracInCallback": "callbacks.tracin",
    "TracInError": "errors",
    "TracInRun": "run",
    "attribute": "trainer.attribute",
    "import_checkpoints": "trainer.import_checkpoints",
}


def __getattr__(name: str) -> Any:
    if name == "losses":
        return importlib.import_module(f"{__name__}.losses")
    if name == "__version__":
        return importlib.metadata.version("lightning-tracin")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__", "losses"})
