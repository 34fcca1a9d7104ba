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


__all__ = ["CallbackBase", "overrides"]


def overrides(instance: object, name: str) -> bool:
    """Whether a hook is the user's own and not the default of either Lightning package.

    Example:
        >>> from pytorch_lightning import LightningModule
        >>> class Module(LightningModule):
        ...     def on_train_epoch_end(self):
        ...         pass
        >>> overrides(Module(), "on_train_epoch_end"), overrides(Module(), "on_train_end"), overrides(None, "on_train_end")
        (True, False, False)
    """
    owners = (parent for parent in type(instance).__mro__ if name in vars(parent))
    return any(not parent.__module__.startswith(("pytorch_lightning.", "lightning.")) for parent in owners)
