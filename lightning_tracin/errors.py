"""The one error class that this package raises on purpose."""


class TracInError(RuntimeError):
    """Something the user can act on: the message names the thing, its value and the remedy."""
