"""See which languages' training data a multilingual model relies on."""

from lightning_tracin.attribute import attribute
from lightning_tracin.callback import TracInCallback
from lightning_tracin.errors import TracInError
from lightning_tracin.imports import import_checkpoints
from lightning_tracin.run import TracInRun

__all__ = ["TracInCallback", "TracInError", "TracInRun", "attribute", "import_checkpoints"]
