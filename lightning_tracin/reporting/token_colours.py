"""The tokens of probes in colours: what a train sample helps and harms.

Blue and orange are told apart by all kinds of colour vision; a solid or dashed line below says the same without colour, and the
number is in the tooltip.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

_HELPED, _HARMED = "0, 90, 181", "220, 120, 0"

#: Opacity of the strongest token of a pair; dark text stays readable on it.
_MOST = 0.55


@dataclass(frozen=True)
class ColouredToken:
    """A token with its score.

    Attributes:
        text: of the token; its position where the text is not known.
        style: CSS.
        told: position and score, for the tooltip.
    """

    text: str
    style: str
    told: str


def coloured(tokens: pd.DataFrame) -> list[ColouredToken]:
    """The tokens of one pair.

    Args:
        tokens: with the columns position, text and score; NaN for what is not in the loss.

    Example:
        >>> tokens = pd.DataFrame({"position": [1, 2], "text": [" rain", ""], "score": [0.5, -0.25]})
        >>> for one in coloured(tokens):
        ...     print(repr(one.text), one.style, one.told, sep="; ")
        ' rain'; background: rgba(0, 90, 181, 0.55); border-bottom: 2px solid rgb(0, 90, 181); position 1: +0.5
        ' 2'; background: rgba(220, 120, 0, 0.28); border-bottom: 2px dashed rgb(220, 120, 0); position 2: -0.25
    """
    largest = float(tokens["score"].abs().max())
    found = []
    for position, text, score in tokens[["position", "text", "score"]].itertuples(index=False):
        if score != score:
            found.append(ColouredToken(str(text), "", f"position {position}: not in the loss"))
            continue
        colour, line = (_HELPED, "solid") if score >= 0 else (_HARMED, "dashed")
        opacity = _MOST * abs(score) / largest if largest > 0 else 0.0
        style = f"background: rgba({colour}, {opacity:.2f}); border-bottom: 2px {line} rgb({colour})"
        where = "the whole sample" if position < 0 else f"position {position}"
        found.append(ColouredToken(str(text) or f" {position}", style, f"{where}: {score:+.3g}"))
    return found


def coloured_pairs(top: pd.DataFrame, tokens: pd.DataFrame) -> list[dict[str, Any]]:
    """The pairs of a table, each with its probe's tokens in colours; a pair without tokens is left out.

    Args:
        top: the strongest train samples of some probes.
        tokens: the scores of these pairs, token by token.
    """
    by_pair = dict(iter(tokens.groupby(["probe", "train"], sort=False)))
    found = []
    for line in top.drop_duplicates(["probe", "train"]).to_dict("records"):
        pair = by_pair.get((line["probe"], line["train"]))
        if pair is not None:
            found.append({**line, "tokens": coloured(pair)})
    return found
