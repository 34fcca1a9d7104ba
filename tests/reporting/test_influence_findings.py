"""The influence of languages in sentences, from tables whose answer is known by hand, and from a fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl

from lightning_tracin import TracInCallback, TracInRun
from lightning_tracin.analysis.reliance_by_snapshot import NATS, SCORE
from lightning_tracin.reporting.influence_findings import findings_of_influence, ranked_findings
from tests.support.fits import LANGUAGES, Classifier, loaders, trainer
from tests.support.pages import without_scripts

COLUMNS = ["train_language", "value", "low", "high", "contrast", "contrast_low", "contrast_high"]
NONE = (0.0, -0.1, 0.1)


def table(*cells: tuple[object, ...], probe: str = "fr", unit: str = NATS) -> pd.DataFrame:
    """The rows of one probe language."""
    return pd.DataFrame(cells, columns=COLUMNS).assign(probe_language=probe, unit=unit)


def said(sums: pd.DataFrame, means: pd.DataFrame | None = None) -> str:
    """The sentences of the only probe language."""
    (found, _) = findings_of_influence(sums, sums if means is None else means)
    return found


def test_helpful_languages_come_in_order_and_at_most_three_of_them() -> None:
    sums = table(
        ("de", 0.2, 0.1, 0.3, *NONE),
        ("en", 0.4, 0.35, 0.45, *NONE),
        ("es", 0.05, 0.01, 0.09, *NONE),
        ("fr", 0.8, 0.7, 0.9, *NONE),
        ("ru", 0.6, -0.1, 1.3, *NONE),  # its interval does not leave 0 out
    )
    assert said(sums) == (
        "fr: lowered most by fr (own language; 0.8 nats [0.7, 0.9]), en (0.4 nats [0.35, 0.45]) and de (0.2 nats [0.1, 0.3])."
    )


def test_harmful_languages_come_with_the_most_harmful_first() -> None:
    sums = table(
        ("de", -0.2, -0.3, -0.1, *NONE),
        ("en", -0.5, -0.6, -0.4, *NONE),
        ("fr", 0.8, 0.7, 0.9, *NONE),
        ("ru", -0.9, -2.0, 0.1, *NONE),
    )
    assert said(sums) == (
        "fr: lowered most by fr (own language; 0.8 nats [0.7, 0.9]). Raised by en (-0.5 nats [-0.6, -0.4]) and de (-0.2 nats "
        "[-0.3, -0.1])."
    )


@pytest.mark.parametrize("bound", [0.0, -0.5])
def test_nothing_clear_is_said_to_be_so(bound: float) -> None:
    sums = table(("de", 0.2, bound, 0.9 + bound, *NONE), ("fr", 0.3, bound, 0.9 + bound, *NONE))
    assert said(sums) == "fr: no train language clearly lowered its loss."


def test_without_intervals_the_largest_values_are_named() -> None:
    unknown = (np.nan,) * 5
    sums = table(("de", 99.9, *unknown), ("en", -0.4, *unknown), ("es", np.nan, *unknown), ("fr", 0.3, *unknown))
    assert list(findings_of_influence(sums, sums)) == [
        "fr: no interval is known; the largest values are de (1e+02 nats), fr (own language; 0.3 nats) and en (-0.4 nats).",
        "Nats are to first order: what each language's samples took off the loss in the fit, as if the loss were straight "
        "along every step. Where steps are large they add up to more than the loss fell by (contributions measure that), and "
        "what other languages would make up for if one were left out is not subtracted.",
    ]
    assert list(findings_of_influence(sums[:1].assign(unit=SCORE), sums)) == [
        "fr: no interval is known; the largest value is de (1e+02).",
        "Numbers are in units of the score.",
    ]
    assert said(sums[2:3]) == "fr: no influence is known."


def test_a_language_with_one_probe_does_not_take_the_intervals_of_the_others() -> None:
    sums = pd.concat(
        [table(("de", 0.2, np.nan, np.nan, *NONE), probe="de"), table(("de", 0.2, 0.1, 0.3, *NONE), probe="fr")],
        ignore_index=True,
    )
    first, second, last = findings_of_influence(sums, sums)
    assert first == "de: no interval is known; the largest value is de (own language; 0.2 nats)."
    assert second == "fr: lowered most by de (0.2 nats [0.1, 0.3])."
    assert last.endswith("over train samples and probes.")


def test_contrasts_are_of_other_languages_whose_interval_leaves_zero_out() -> None:
    sums = table(
        ("de", 0.2, -0.1, 0.3, 0.04, 0.01, 0.07),
        ("en", 0.1, -0.1, 0.3, 0.09, 0.05, 0.13),
        ("es", 0.1, -0.1, 0.3, -0.02, -0.03, -0.01),
        ("fr", 0.9, 0.8, 1.0, 0.7, 0.6, 0.8),  # its own
        ("it", 0.1, -0.1, 0.3, -0.08, -0.1, -0.06),
        ("ru", 0.1, -0.1, 0.3, 0.3, -0.1, 0.7),
    )
    assert said(sums) == (
        "fr: lowered most by fr (own language; 0.9 nats [0.8, 1]). In particular, it gets more than other probe languages do "
        "from en (0.09 nats [0.05, 0.13]) and de (0.04 nats [0.01, 0.07]). It gets less than other probe "
        "languages do from it (-0.08 nats [-0.1, -0.06]) and es (-0.02 nats [-0.03, -0.01])."
    )


def test_contrasts_that_nothing_is_known_of_do_not_disturb_the_order() -> None:
    unknown = (np.nan, np.nan, np.nan)
    sums = table(
        ("de", 0.2, -0.1, 0.3, 0.01, 0.005, 0.02),
        ("en", 0.1, -0.1, 0.3, *unknown),
        ("es", 0.1, -0.1, 0.3, 0.02, 0.01, 0.03),
        ("it", 0.1, -0.1, 0.3, *unknown),
        ("pl", 0.1, -0.1, 0.3, 0.03, 0.02, 0.04),
        ("ru", 0.1, -0.1, 0.3, 0.04, 0.03, 0.05),
    )
    assert said(sums).endswith("from ru (0.04 nats [0.03, 0.05]), pl (0.03 nats [0.02, 0.04]) and es (0.02 nats [0.01, 0.03]).")


def test_a_small_language_whose_samples_are_worth_most_is_named() -> None:
    sums = table(("de", 0.2, 0.1, 0.3, *NONE), ("en", 0.4, 0.3, 0.5, *NONE))
    means = table(("de", 0.02, 0.01, 0.03, *NONE), ("en", 0.004, 0.003, 0.005, *NONE))
    assert said(sums, means).endswith("Sample by sample, de (0.02 nats [0.01, 0.03]) is worth most.")
    unclear = means.assign(low=[-0.01, 0.003])
    assert "Sample by sample" not in said(sums, unclear)
    assert "Sample by sample" not in said(sums, sums)  # the largest in both


def test_the_own_language_is_known_by_any_of_its_names() -> None:
    sums = table(("de", 0.2, 0.1, 0.3, *NONE), ("fr", 0.4, 0.3, 0.5, *NONE), probe="french")
    assert said(sums).startswith("french: lowered most by fr (own language; 0.4 nats")


def test_what_is_not_in_nats_has_no_unit() -> None:
    sums = table(("de", 0.2, 0.1, 0.3, *NONE), ("fr", 0.4, 0.3, 0.5, *NONE), unit=SCORE)
    found = list(findings_of_influence(sums, sums))
    assert found == [
        "fr: lowered most by fr (own language; 0.4 [0.3, 0.5]) and de (0.2 [0.1, 0.3]).",
        "Numbers are in units of the score. Intervals [95 %] are each for a single cell, over train samples and probes.",
    ]
    *_, last = findings_of_influence(sums.assign(unit=NATS), sums)
    assert last == (
        "Nats are to first order: what each language's samples took off the loss in the fit, as if the loss were straight "
        "along every step. Where steps are large they add up to more than the loss fell by (contributions measure that), and "
        "what other languages would make up for if one were left out is not subtracted. Intervals [95 %] are each for a "
        "single cell, over train samples and probes."
    )


def test_sentences_are_ranked_by_their_effect_beyond_the_null() -> None:
    sums = pd.concat(
        [
            table(("en", 0.9, 0.1, 1.7, *NONE), probe="aa").assign(null=0.1),  # 0.8 beyond its null: one half interval
            table(("en", 0.5, 0.4, 0.6, *NONE), probe="bb").assign(null=0.5),  # as large as by chance
            table(("en", 0.3, 0.29, 0.31, 0.06, 0.05, 0.07), probe="cc").assign(
                null=0.28
            ),  # two half intervals; a contrast of six
            table(("en", 0.1, -0.1, 0.3, *NONE), probe="dd").assign(null=0.0),
            table(("en", -0.7, *(np.nan,) * 5), probe="ee"),
            table(("en", 9.0, *(np.nan,) * 5), probe="ff"),
            table(("en", -0.5, -0.6, -0.4, *NONE), probe="gg").assign(null=-0.1),  # four
        ],
        ignore_index=True,
    )
    assert ranked_findings(sums, sums) == [
        "cc: in particular, it gets more than other probe languages do from en (0.06 nats [0.05, 0.07]).",
        "gg: raised by en (-0.5 nats [-0.6, -0.4]).",
        "cc: lowered most by en (0.3 nats [0.29, 0.31]).",
        "aa: lowered most by en (0.9 nats [0.1, 1.7]).",
        "bb: lowered most by en (0.5 nats [0.4, 0.6]).",
        "ff: no interval is known; the largest value is en (9 nats).",
        "ee: no interval is known; the largest value is en (-0.7 nats).",
        "dd: no train language clearly lowered its loss.",
        "gg: no train language clearly lowered its loss.",
    ]


def test_the_page_of_a_fit_leads_with_influence(tmp_path: Path) -> None:
    pl.seed_everything(7)
    trainer(tmp_path, [TracInCallback(tmp_path / "run", top_k=5)]).fit(Classifier(), *loaders(probes=30))
    run = TracInRun.open(tmp_path / "run")
    page = without_scripts((run.path / "results" / "report.html").read_text())
    headings = [part.split("</h")[0].partition(">")[2] for part in page.split("<h")[1:] if part[0] in "12"]
    assert [heading for heading in headings if heading] == [
        "Influence of languages",
        "What the numbers mean",
        "Findings",
        "Heat map",
        "Explorer",
        "Curves, by snapshot",
        "The whole run",
        "Shares of the strongest 5",
        "Strongest proponents and opponents of some probes",
    ]
    places = [
        page.index(f'alt="{what}') for what in ("Heat map of the influence", "Influence of languages by", "Heat map of lift")
    ]
    assert places == sorted(places)
    assert "Score: dot, weighting learning_rate." in page
    assert "in nats, to first order, as if every visit of a sample were a step of its own" in page
    sums = run.reliance(cumulative=True, snapshots=[2])
    nats = sum(
        run.influence("dot", "learning_rate", [one.index]) * one.steps / (len(run.train) * one.visits) for one in run.snapshots
    )
    by_hand = nats.groupby("train_language").sum("train").groupby("probe_language").mean("probe")
    for line in sums.itertuples():
        expected = float(by_hand.sel(probe_language=line.probe_language, train_language=line.train_language))
        assert line.value == pytest.approx(expected, rel=1e-6)
        assert f"<td>{_cell(line.value)}</td>" in page.replace("\n", "")
    names = {"de": "German", "en": "English", "ru": "Russian"}
    for language in LANGUAGES:
        mine = sums[(sums["probe_language"] == language) & (sums["low"] > 0)].sort_values("value", ascending=False)
        if mine.empty:
            assert f"<li>{names[language]}: no train language clearly lowered its loss." in page
        else:
            first = mine.iloc[0]
            own = "own language; " if first["train_language"] == language else ""
            assert (
                f"<li>{names[language]}: lowered most by {names[first['train_language']]} ({own}{first['value']:.2g} nats ["
                in page
            )
    by_chance = run.reliance(5, measure="share")
    own = by_chance[by_chance["probe_language"] == by_chance["train_language"]].groupby("snapshot")["null"].mean()
    for null in own:
        assert f"<td>{_cell(1 - null)}</td></tr>" in page


def _cell(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 0.01 else f"{value:.3f}"


def test_the_page_of_language_means_has_no_shares(tmp_path: Path) -> None:
    callback = TracInCallback(tmp_path / "run", top_k=5, language_means=True)
    trainer(tmp_path, [callback], max_epochs=1).fit(Classifier(), *loaders())
    run = TracInRun.open(tmp_path / "run")
    page = (run.path / "results" / "report.html").read_text()
    assert "Shares of the strongest" not in page
    assert "(in units of the\nscore)" in page  # plain gradients, after AdamW's steps
    assert "<summary>Influence of a language (sum)</summary>" in page
    assert not (run.path / "results" / "lift.png").exists()
    assert (run.path / "results" / "heat_map.png").stat().st_size > 0
