"""The one error class that this package raises on purpose."""

from lightning_tracin.text import printable


class TracInError(RuntimeError):
    """Something the user can act on: the message names the thing, its value and the remedy, without control characters."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))
