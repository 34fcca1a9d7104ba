"""One label written in two ways, such as 1 and 1.0, would be two classes: it is found and refused."""

from __future__ import annotations

import re
from decimal import Decimal

import pandas as pd

from lightning_tracin.errors import TracInError

#: A number without leading zeros.
_NUMBER = re.compile(r"[-+]?(0|(?!0)\d+)(\.\d*)?([eE][-+]?\d{1,3})?")
_TRUTH = {"true": Decimal(1), "false": Decimal(0)}


def check_spelling(rows: pd.DataFrame, source: str) -> None:
    """Check that no label is written in two ways, and that no language has numbers where another has words.

    ``1`` and ``1.0`` are one number, ``True`` and ``true`` one truth value, and either is mixed up with ``1``. Leading zeros
    count: ``01`` is another label than ``1``.

    Args:
        rows: columns ``label`` and ``language``, strings.
        source: name of the data in messages.

    Raises:
        TracInError: there are such labels; the message names both.

    Example:
        >>> check_spelling(pd.DataFrame({"label": ["1", "1.0"], "language": ["de", "en"]}), "the table")
        Traceback (most recent call last):
        lightning_tracin.errors.TracInError: the table has the labels '1' (language 'de') and '1.0' (language 'en'), which are ...
    """
    first = rows.drop_duplicates("label").set_index("label")["language"]
    spelled: dict[Decimal | str, str] = {}
    for label in first.index:
        key = _meaning(label)
        other = spelled.setdefault(key, label)
        if other != label:
            raise TracInError(
                f"{source} has the labels {other!r} (language {first[other]!r}) and {label!r} (language {first[label]!r}), which "
                "are one label in two spellings: write it in one way, or merge one into the other with merge_labels."
            )
    numeric = {
        language: {isinstance(_meaning(label), Decimal) for label in labels.unique()}
        for language, labels in rows.groupby("language", sort=False)["label"]
    }
    numbers = [language for language, kinds in numeric.items() if kinds == {True}]
    words = [language for language, kinds in numeric.items() if kinds == {False}]
    if numbers and words:
        shown = [sorted(rows.loc[rows["language"] == one, "label"].unique())[:5] for one in (numbers[0], words[0])]
        raise TracInError(
            f"{source} has numbers as labels in language {numbers[0]!r} ({shown[0]}), but words in language {words[0]!r} "
            f"({shown[1]}): write them in one way, or rename them with merge_labels."
        )


def _meaning(label: str) -> Decimal | str:
    """The number that a label stands for; the label itself if it is no number, or has leading zeros."""
    if label.casefold() in _TRUTH:
        return _TRUTH[label.casefold()]
    return Decimal(label) if _NUMBER.fullmatch(label) else label
