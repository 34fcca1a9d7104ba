"""See which languages' training data a multilingual model relies on."""

from lightning_tracin.callbacks.tracin import TracInCallback
from lightning_tracin.errors import TracInError
from lightning_tracin.run import TracInRun
from lightning_tracin.trainer.attribute import attribute
from lightning_tracin.trainer.import_checkpoints import import_checkpoints

__all__ = ["TracInCallback", "TracInError", "TracInRun", "attribute", "import_checkpoints"]
