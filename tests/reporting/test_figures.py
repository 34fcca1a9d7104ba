"""What the figures show, read back from the figures and compared with the tables they were given."""

from __future__ import annotations

import dataclasses
import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise, product

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.image import imread
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.text import Text

from lightning_tracin import TracInError
from lightning_tracin.analysis.language_order import ordered
from lightning_tracin.config import Measure, View
from lightning_tracin.reporting import figures
from lightning_tracin.reporting.figures import lettering
from lightning_tracin.reporting.figures.drawing import looks
from tests.support.drawn_figures import named, panel_of, points, said, ticks
from tests.support.study_tables import (
    LANGUAGES,
    SCORES,
    ZERO_SHOT,
    agreed,
    areas,
    changed,
    contributed,
    imbalanced,
    left,
    masked,
    predicted,
    reinforced,
    reliance,
    removed,
    results,
    without_language,
)

FIGURES: dict[str, Callable[[], Figure]] = {
    "curves": lambda: figures.curves(results()),
    "curves of shares": lambda: figures.curves(results(), measure="share"),
    "contributions": lambda: figures.contributions(contributed()),
    "contributions to one language": lambda: figures.contributions(contributed(), ZERO_SHOT),
    "heat_map": lambda: figures.heat_map(results()),
    "heat_map of two languages": lambda: figures.heat_map(results(trains=LANGUAGES[:2], probes=LANGUAGES[:2])),
    "heat_map of samples": lambda: figures.heat_map(results(), "mean"),
    "lift": lambda: figures.lift(results()),
    "shares": lambda: figures.shares(reliance().assign(k=50)),
    "shares of 14 scores": lambda: figures.shares(pd.concat([reliance().assign(score=score) for score in SCORES])),
    "shares of both signs": lambda: figures.shares(pd.concat([reliance().assign(sign=s) for s in ("positive", "negative")])),
    "shares of one language": lambda: figures.shares(reliance(["minangkabau"], ["minangkabau"])),
    "reinforcement": lambda: figures.reinforcement(reinforced()),
    "changes": lambda: figures.changes(changed()),
    "zero_shot": lambda: figures.zero_shot(without_language()),
    "imbalance": lambda: figures.imbalance(imbalanced().assign(k=100, seeds=1)),
    "imbalance of one language": lambda: figures.imbalance(imbalanced().iloc[:1]),
    "masks": lambda: figures.masks(masked()),
    "removal_curve": lambda: figures.removal_curve(removed()),
    "removal_curve of 14 scores": lambda: figures.removal_curve(removed([f"{score}, proponents" for score in SCORES])),
    "removal_curve of one k": lambda: figures.removal_curve(removed(ks=[100])),
    "deletion_areas": lambda: figures.deletion_areas(areas()),
    "left_out": lambda: figures.left_out(left(), reliance()),
    "left_out of one seed": lambda: figures.left_out(left(1), reliance()),
    "agreement": lambda: figures.agreement(agreed()),
    "lds_bars": lambda: figures.lds_bars(predicted()),
}


Box = tuple[float, float, float, float]  # left, low, right, high in pixels


def shown(figure: Figure) -> Iterator[list[tuple[str, Box]]]:
    """Texts that must not overlap, and where they lie: titles, axes' names and legend together; each axis's tick labels."""
    renderer = figure.canvas.get_renderer()

    def boxes(found: Sequence[Text | Legend]) -> list[tuple[str, Box]]:
        placed = [(one.get_text() if isinstance(one, Text) else "legend", one.get_window_extent(renderer)) for one in found]
        return [(text, box.extents) for text, box in placed if text]

    panels = [panel for panel in figure.axes if panel.axison]
    names = [part for panel in panels for part in (panel.title, panel.xaxis.label, panel.yaxis.label)]
    yield boxes([*figure.texts, *figure.legends, *names])
    for panel in panels:
        for axis in (panel.xaxis, panel.yaxis):
            low, high = sorted(axis.get_view_interval())
            labels = [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
            if not any(label.get_rotation() for label in labels):  # the boxes around slanted names overlap, the names do not
                yield boxes([label for label in labels if label.get_visible()])


@pytest.mark.parametrize("name", FIGURES)
def test_no_text_lies_over_another_or_beyond_the_edge(name: str) -> None:
    figure = FIGURES[name]()
    figure.canvas.draw()
    for group in shown(figure):
        for index, (text, (start, low, end, high)) in enumerate(group):
            assert min(start, low) >= -1, text
            assert end <= figure.bbox.width + 1, text
            assert high <= figure.bbox.height + 1, text
            for other, (other_start, other_low, other_end, other_high) in group[:index]:
                beside = start >= other_end - 1 or other_start >= end - 1
                assert beside or low >= other_high - 1 or other_low >= high - 1, (text, other)


#: Names that charts must show short, as they are, and apart.
AWKWARD = dict(
    zip(
        (*LANGUAGES, ZERO_SHOT),
        ("x" * 300, "x" * 299, "$x$ $\\frac{", "a\nb", "\U0001f642", "../x", "_mean", "\u4e2d" * 40),
        strict=True,
    )
)

OF_LANGUAGES: dict[str, tuple[Callable[[pd.DataFrame], Figure], Callable[[], pd.DataFrame]]] = {
    "shares": (figures.shares, reliance),
    "reinforcement": (figures.reinforcement, reinforced),
    "changes": (figures.changes, changed),
    "zero_shot": (figures.zero_shot, without_language),
    "imbalance": (figures.imbalance, imbalanced),
    "masks": (figures.masks, masked),
    "left_out": (lambda table: figures.left_out(table, reliance().replace(AWKWARD)), left),
    "contributions": (figures.contributions, contributed),
    "curves": (lambda table: figures.curves(dataclasses.replace(results(), reliance=table)), lambda: results().reliance),
    "heat_map": (lambda table: figures.heat_map(dataclasses.replace(results(), reliance=table)), lambda: results().reliance),
    "lift": (lambda table: figures.lift(dataclasses.replace(results(), reliance=table)), lambda: results().reliance),
}


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("name", OF_LANGUAGES)
def test_awkward_names_are_short_as_they_are_and_apart(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fontManager, "ttflist", [one for one in fontManager.ttflist if one.name.startswith("DejaVu")])
    draw, table = OF_LANGUAGES[name]
    figure = draw(table().replace(AWKWARD))
    texts = [text for text in figure.findobj(Text) if text.get_text()]
    assert not any(text.get_parse_math() for text in texts)
    lines = [line for text in texts for line in text.get_text().split("\n")]
    assert all(lettering.width(line) <= 45 for line in lines if "x" * 10 in line or "\u4e2d" in line)
    short = lettering.labels(AWKWARD.values())
    assert len(set(short.values())) == len(short)
    drawn = [short[one] for one in AWKWARD.values() if one in table().replace(AWKWARD).to_numpy()]
    assert all(any(label in line for line in lines) for label in drawn)
    with pytest.warns(UserWarning, match="has no glyph for"):
        assert imread(io.BytesIO(figures.png(figure))).size
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        figure.canvas.draw()
        for group in shown(figure):
            for text, (start, low, end, high) in group:
                assert min(start, low) >= -1, text
                assert end <= figure.bbox.width + 1, text
                assert high <= figure.bbox.height + 1, text


def test_a_long_name_keeps_its_meaning() -> None:
    probes, trains = ["Standard Moroccan Tamazight", "de"], ["zgh", "de"]
    panel = figures.heat_map(results(trains=trains, probes=probes)).axes[0]
    assert len(panel.patches) == 2
    assert ticks(panel) == ["Standard Moroccan Tamaz…", "German"]  # by family: Afro-Asiatic, Indo-European


def test_no_two_languages_look_alike() -> None:
    found = looks(map(str, range(70)))
    assert len({(look.colour, look.marker) for look in found.values()}) == 70
    first = list(found.values())[:11]
    assert len({look.marker for look in first}) == 11  # told apart without any colour
    for one, other in pairwise(first):
        assert one.colour != other.colour


def test_languages_keep_their_colour_through_figures() -> None:
    order = [ZERO_SHOT, *LANGUAGES]
    shares = figures.shares(reliance(), order).legends[0]
    curves = figures.curves(results(trains=LANGUAGES[2:]), order).legends[0]
    gained = figures.imbalance(imbalanced(), order)
    colours = [
        {text.get_text(): line.get_color() for text, line in zip(legend.get_texts(), legend.get_lines(), strict=True)}
        for legend in (shares, curves)
    ]
    assert len(set(colours[0].values())) == 7
    for language in LANGUAGES[2:]:
        line = named(panel_of(gained, language), "share")[0]
        assert isinstance(line, Line2D)
        assert colours[0][language] == colours[1][language] == line.get_color()


def test_a_language_has_the_look_of_what_its_name_means() -> None:
    whole = looks(["de", "en"])
    assert looks(["english"], ["de", "en"])["english"] == whole["en"]
    apart = looks(["english", "en", "eng"], ["de", "en"])
    assert apart["en"] == whole["en"]
    assert len(set(apart.values())) == 4  # two names in one figure do not look alike
    panel = figures.masks(masked().replace({"english": "en"}), LANGUAGES).axes[0]
    (drawn,) = [one for one in panel.collections if one.get_label() == "en"]
    assert to_hex(drawn.get_facecolor()[0]) == looks(LANGUAGES)["english"].colour.lower()


@pytest.mark.parametrize("measure", ["sum", "mean", "share"])
def test_curves(measure: Measure) -> None:
    given = results()
    figure = figures.curves(given, measure=measure)
    alone = given.reliance[~given.reliance["cumulative"] & (given.reliance["measure"] == measure)]
    line = alone.set_index(["probe_language", "train_language"]).loc[(ZERO_SHOT, "english")]
    np.testing.assert_allclose(points(panel_of(figure, ZERO_SHOT), "english"), line[["step", "value"]])
    dotted = [one for one in panel_of(figure, ZERO_SHOT).lines if one.get_linestyle() == ":"]
    np.testing.assert_allclose(np.column_stack(dotted[LANGUAGES.index("english")].get_data()), line[["step", "null"]])
    assert [panel.get_title() for panel in figure.axes if panel.axison][-1] == f"{ZERO_SHOT} (zero-shot)"
    assert "20 probes a language" in said(figure)
    assert "shaded: 95 % interval over train samples and probes" in said(figure)
    assert "dotted: chance" in said(figure)
    wide = [line.get_label() for line in panel_of(figure, "javanese").lines if line.get_linewidth() > 2]
    assert wide == ["javanese"]
    zero = [line for line in panel_of(figure, "javanese").lines if list(line.get_ydata()) == [0, 0]]
    assert len(zero) == (measure != "share")
    names = {"sum": "influence of a language, nats (first order)", "mean": "influence of a sample, nats (first order)"}
    assert figure.get_supylabel() == names.get(measure, "share of the strongest 50")


def test_influence_that_is_not_in_nats_is_called_by_its_similarity() -> None:
    given = results()
    scores = dataclasses.replace(given, reliance=given.reliance.assign(unit="score"), view=View(similarity="relatif"))
    assert figures.curves(scores).get_supylabel() == "influence of a language (relatif)"


def test_figures_of_a_measure_that_results_do_not_have() -> None:
    means = results(measures=("sum", "mean"))
    for draw in (figures.lift, lambda given: figures.curves(given, measure="share")):
        with pytest.raises(TracInError, match=r"^The results have no measure 'share'; they have sum, mean\.$"):
            draw(means)
    expected = r"^measure='share' has no sign; draw it with `lift` or `curves`, or choose 'sum' or 'mean'\.$"
    with pytest.raises(TracInError, match=expected):
        figures.heat_map(results(), "share")
    given = results()
    mass = dataclasses.replace(given, reliance=given.reliance.replace({"measure": {"share": "mass"}}))
    with pytest.raises(TracInError, match=r"^measure='mass' has no sign; draw it with `curves`, or choose 'sum' or 'mean'\.$"):
        figures.heat_map(mass, "mass")


def test_curves_of_mass_are_parts_of_the_positive_influence() -> None:
    given = results()
    mass = dataclasses.replace(given, reliance=given.reliance.replace({"measure": {"share": "mass"}}))
    figure = figures.curves(mass, measure="mass")
    assert figure.get_supylabel() == "share of all positive influence (dot)"
    assert not [line for line in panel_of(figure, "javanese").lines if list(line.get_ydata()) == [0, 0]]


def cells(panel: Axes) -> dict[tuple[str, str], str]:
    """Probe language and train language -> what stands in their cell."""
    rows, columns = ticks(panel), [name.get_text() for name in panel.get_xticklabels()]
    return {(rows[int(y)], columns[int(x)]): text.get_text() for text in panel.texts for x, y in [text.get_position()]}


@pytest.mark.parametrize("measure", ["sum", "mean"])
def test_heat_map_shows_influence_and_contrast_with_a_star_where_intervals_leave_zero_out(measure: Measure) -> None:
    given = results()
    figure = figures.heat_map(given, measure)
    table = given.final().tables[measure].set_index(["probe_language", "train_language"])
    for panel, value in zip(figure.axes[:2], ("value", "contrast"), strict=True):
        low, high = ("low", "high") if value == "value" else ("contrast_low", "contrast_high")
        digits = 1 if value == "value" else 2  # so that two digits of the largest value are seen
        expected = {
            pair: f"{line[value]:+.{digits}f}" + ("*" if line[low] > 0 or line[high] < 0 else "")
            for pair, line in table.iterrows()
        }
        assert cells(panel) == expected
        assert {text[-1] == "*" for text in expected.values()} == {True, False}
        assert len(panel.patches) == 7  # own languages, and none of the zero-shot one
        pairs = product(ordered([*LANGUAGES, ZERO_SHOT]), ordered(LANGUAGES))
        np.testing.assert_allclose(panel.images[0].get_array().ravel(), [table.loc[pair, value] for pair in pairs])
        assert panel.images[0].norm.vmin == -panel.images[0].norm.vmax
    what = "whole languages" if measure == "sum" else "a sample of each language"
    assert said(figure).startswith(f"Influence of {what}, all snapshots summed 20 probes a language;")
    assert "*: 95 % interval over train samples and probes without 0" in said(figure)
    unit = "influence of a language" if measure == "sum" else "influence of a sample"
    assert [bar.get_ylabel() for bar in figure.axes[2:]] == [
        f"{unit}, nats (first order)",
        "contrast: without row and column effects",
    ]


def test_heat_map_without_any_contrast_has_one_panel() -> None:
    given = results(trains=["de", "en"], probes=["de", "en"])
    given.reliance[["contrast", "contrast_low", "contrast_high"]] = np.nan  # of two languages, nothing remains
    given.reliance.loc[given.reliance["train_language"] == "en", ["value", "low", "high"]] = np.nan
    figure = figures.heat_map(given)
    assert len(figure.axes) == 2  # and the colour bar
    assert cells(figure.axes[0])[("German", "English")] == "–"


def test_lift_says_where_nothing_is_defined() -> None:
    given = results(1)
    hole = (given.reliance["probe_language"] == "english") & (given.reliance["train_language"] == "javanese")
    given.reliance.loc[hole, ["lift", "value"]] = np.nan
    figure = figures.lift(given)
    panel = figure.axes[0]
    assert ticks(panel) == ordered([*LANGUAGES, ZERO_SHOT])
    found = cells(panel)
    assert found[("english", "javanese")] == "–\n– (14%)"
    other = given.final().tables["share"].set_index(["probe_language", "train_language"]).loc[(ZERO_SHOT, "acehnese")]
    assert found[(ZERO_SHOT, "acehnese")] == f"{other['lift']:.2f}\n{other['value']:.0%} ({other['null']:.0%})"
    assert len(panel.patches) == 7  # own languages, and none of the zero-shot one
    assert said(figure).startswith("Lift, share of the strongest 50 and (chance), all snapshots summed")


def test_png_is_a_picture_of_the_figures_size() -> None:
    figure = figures.masks(masked())
    pixels = imread(io.BytesIO(figures.png(figure)))
    assert pixels.shape[:2] == tuple(int(side * 120) for side in reversed(figure.get_size_inches()))
    assert 0 < (pixels[..., :3] < 0.9).any(-1).mean() < 1


def test_bad_tables() -> None:
    with pytest.raises(TracInError, match=r"needs the columns null, but the table has probe_language, .*probes\."):
        figures.shares(reliance().drop(columns="null"))
    with pytest.raises(TracInError, match="several lines for acehnese, acehnese; choose those of one snapshot"):
        figures.shares(pd.concat([reliance()] * 2))
    with pytest.raises(TracInError, match="no lines"):
        figures.imbalance(imbalanced().iloc[:0])
    with pytest.raises(TracInError, match="shares for none of the measured languages"):
        figures.left_out(left(), reliance(["de"], ["de"]))
