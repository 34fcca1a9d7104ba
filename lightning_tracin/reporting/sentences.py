"""What sentences about numbers are made of."""

from __future__ import annotations

from collections.abc import Sequence


def number(value: float) -> str:
    """A number as it stands in a sentence.

    Example:
        >>> number(0.12345)
        '0.12'
    """
    return f"{value:.2g}"


def bounded(value: float, low: float, high: float, unit: str = "") -> str:
    """A number with its unit and its interval.

    Example:
        >>> bounded(0.123, 0.1, 0.2, unit=" nats")
        '0.12 nats [0.1, 0.2]'
    """
    return f"{number(value)}{unit} [{number(low)}, {number(high)}]"


def joined(names: Sequence[str]) -> str:
    """Names as a list in a sentence.

    Example:
        >>> joined(["de", "en", "fr"])
        'de, en and fr'
    """
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
