from __future__ import annotations

import re

import pandas as pd

from lightning_tracin.reporting.token_colours import coloured, coloured_pairs


def tokens(*scores: float) -> pd.DataFrame:
    return pd.DataFrame({"position": range(len(scores)), "text": "x", "score": scores})


def test_the_strongest_token_has_the_fullest_colour() -> None:
    opacities = [float(re.search(r"([\d.]+)\)", one.style)[1]) for one in coloured(tokens(1.0, -4.0, 0.0))]
    assert opacities == [0.14, 0.55, 0.0]


def test_what_is_harmed_is_told_without_colour_too() -> None:
    helped, harmed = coloured(tokens(1.0, -1.0))
    assert ("solid" in helped.style, "dashed" in harmed.style) == (True, True)
    assert (helped.told, harmed.told) == ("position 0: +1", "position 1: -1")


def test_tokens_without_any_influence_have_no_colour() -> None:
    assert all("0.00)" in one.style for one in coloured(tokens(0.0, 0.0)))


def test_a_term_of_the_whole_sample_is_named() -> None:
    (one,) = coloured(pd.DataFrame({"position": [-1], "text": ["(sample)"], "score": [2.0]}))
    assert (one.text, one.told) == ("(sample)", "the whole sample: +2")


def test_a_pair_without_tokens_is_left_out() -> None:
    top = pd.DataFrame({"probe": [0, 0, 1], "train": [5, 5, 5], "sign": ["positive", "negative", "positive"]})
    pairs = coloured_pairs(top, tokens(1.0).assign(probe=0, train=5))
    assert [(pair["probe"], pair["train"], len(pair["tokens"])) for pair in pairs] == [(0, 5, 1)]


def test_what_is_not_in_the_loss_has_no_colour() -> None:
    first, second = coloured(tokens(float("nan"), 0.5))
    assert (first.style, first.told) == ("", "position 0: not in the loss")
    assert "0.55" in second.style
