"""The keys under which results are logged: one place for the sinks that log them and the dashboard that shows them."""

from __future__ import annotations

#: First parts of keys: of what is to be looked at, and in W&B of the hidden numbers behind it.
SHOWN, VALUES = "tracin", "tracin_values"
#: The artifact with the files of `results/`.
RESULTS = "tracin-results"

#: Curves of a probe language and a train language.
INFLUENCE, CONTRAST, MEAN_INFLUENCE, RELIANCE, LIFT = "influence", "contrast", "mean_influence", "reliance", "lift"
CONTRIBUTION = "contribution"
#: Curves of a probe language.
CROSS_LINGUAL, CROSS_LINGUAL_NULL = "cross_lingual", "cross_lingual_null"
UNEXPLAINED, UNEXPLAINED_SHARE, LOSS = "unexplained", "unexplained_share", "loss"
#: In place of a language: the mean over all of them.
MEAN = "mean"

#: Charts, tables and pictures.
OWN_LANGUAGE, LANGUAGES, RELIANCE_TABLE, TOP = "own_language", "languages", "reliance_table", "top"
HEAT_MAP, CURVES = "heat_map", "curves"
CONTRIBUTION_TABLE, CONTRIBUTIONS = "contribution_table", "contributions"


def shown(*parts: str) -> str:
    """The key of something to look at.

    Example:
        >>> shown(INFLUENCE, "de", "en")
        'tracin/influence/de/en'
    """
    return "/".join((SHOWN, *parts))


def hidden(*parts: str) -> str:
    """The key of a number behind a chart in W&B.

    Example:
        >>> hidden(INFLUENCE, "de", "en")
        'tracin_values/influence/de/en'
    """
    return "/".join((VALUES, *parts))


#: The optimizer steps that W&B draws influence and contributions over.
STEP, CONTRIBUTION_STEP = hidden("checkpoint_step"), hidden("contribution_step")

#: The hidden table of influence by layer, and its columns for the own and the other languages.
LAYERS, OWN, OTHERS = hidden("layers"), "own_language", "other_languages"
