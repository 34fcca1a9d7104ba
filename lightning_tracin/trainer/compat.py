"""A callback base class that works in both Lightning packages.

`pytorch_lightning` and `lightning.pytorch` have separate copies of every class, and their Trainers and LightningCLIs accept only
their own. A class that inherits from both callbacks is accepted by both.
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
        """A callback for both packages."""


__all__ = ["CallbackBase"]
