"""See which languages' training data a multilingual model relies on."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_tracin.callbacks.tracin import TracInCallback
    from lightning_tracin.errors import TracInError
    from lightning_tracin.run import TracInRun
    from lightning_tracin.trainer.attribute import attribute
    from lightning_tracin.trainer.import_checkpoints import import_checkpoints

__all__ = ["TracInCallback", "TracInError", "TracInRun", "attribute", "import_checkpoints"]

#: Where each name stands. A name is imported when it is asked for, so that reading a run does not load Lightning.
_HOMES = {
    "TracInCallback": "callbacks.tracin",
    "TracInError": "errors",
    "TracInRun": "run",
    "attribute": "trainer.attribute",
    "import_checkpoints": "trainer.import_checkpoints",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value  # asked for once
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
