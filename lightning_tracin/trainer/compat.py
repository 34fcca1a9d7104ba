"""A callback base that both Lightning packages take for their own.

`pytorch_lightning` and `lightning.pytorch` hold separate copies of every class, and a Trainer and a LightningCLI check for
their own; a class that inherits both callbacks works in both.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from pytorch_lightning import Callback

if TYPE_CHECKING or importlib.util.find_spec("lightning") is None:
    CallbackBase = Callback
else:
    from lightning.pytorch import Callback as OtherCallback

    class CallbackBase(Callback, OtherCallback):
        """A callback of both packages."""


__all__ = ["CallbackBase"]
