"""Figures in a column of a paper, at 5, 12 and 30 languages: sizes, lines and others, text as text, letters of all scripts."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.ttLib.tables._g_l_y_f import Glyph
from matplotlib.axes import Axes
from matplotlib.collections import FillBetweenPolyCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.text import Text

from lightning_tracin import TracInError
from lightning_tracin.config import Measure, View
from lightning_tracin.reporting import figures
from lightning_tracin.reporting.results import Results
from tests.support.study_tables import contributed, results

CODES = (
    *("am", "ar", "bn", "de", "en", "es", "et", "eu", "fa", "fi", "fr", "he", "hi", "hu", "id"),
    *("it", "ja", "ko", "nl", "pl", "pt", "ru", "sv", "sw", "th", "tr", "uk", "ur", "vi", "zho_Hans"),
)


def made(count: int, measures: Sequence[Measure] = ("sum", "mean", "share")) -> Results:
    return results(2, measures, trains=CODES[: count - 1], probes=CODES[:count])


def by_layer(count: int) -> pd.DataFrame:
    table = made(count, ["sum"]).final().tables["sum"]
    depths = ("embeddings", "layer 0", "layer 1", "layer 2", "head")
    return pd.concat(
        [table.assign(layer=name, value=table["value"] * (1 + at)) for at, name in enumerate(depths)], ignore_index=True
    )


def samples() -> pd.DataFrame:
    rows = [
        (
            "positive",
            1,
            "en",
            0.5,
            "An English text that is far too long for a single line in a column of a paper, so it is cut",
            "7",
        ),
        ("positive", 2, "ko", 0.25, "", "8"),
        ("negative", 1, "de", -0.75, "Ein $x$ deutscher\nText", None),
    ]
    table = pd.DataFrame(rows, columns=["sign", "rank", "language", "score", "text", "item"])
    return table.assign(probe=3, probe_language="sv", probe_label="topic", probe_text="En fråga", probe_item="7")


DRAWN: dict[str, Callable[[int, float], Figure]] = {
    "curves": lambda count, width: figures.curves(made(count), width=width),
    "curves of means": lambda count, width: figures.curves(made(count), measure="mean", width=width),
    "heat_map": lambda count, width: figures.heat_map(made(count), width=width),
    "lift": lambda count, width: figures.lift(made(count), width=width),
    "layers": lambda count, width: figures.layers(by_layer(count), View(), width=width),
    "contributions": lambda count, width: figures.contributions(account(count), width=width),
    "top": lambda count, width: figures.top_samples(samples(), width=width),
}


def account(count: int) -> pd.DataFrame:
    """Contributions of so many languages, each of another size, that add up to the fall."""
    rows = [
        (window, 10 * window + 1, 10 * (window + 1), probe, train, (window + 1) * (1 + 3 * (at == row) + at / 100), 20)
        for window in range(2)
        for row, probe in enumerate(CODES[:count])
        for at, train in enumerate(CODES[: count - 1])
    ]
    table = pd.DataFrame(rows, columns=["window", "first_step", "step", "probe_language", "train_language", "nats", "probes"])
    fall = table.groupby(["window", "probe_language"])["nats"].transform("sum")
    return table.assign(fall=fall, loss=1000.0 - fall, is_group=True)


def texts(figure: Figure) -> list[Text]:
    return [one for one in figure.findobj(Text) if one.get_text().strip() and one.get_visible()]


def panel_of(figure: Figure, name: str) -> Axes:
    (found,) = [panel for panel in figure.axes if panel.get_title() == name]
    return found


@pytest.mark.parametrize(
    ("name", "count"),
    [("curves", 5), ("curves", 12), ("heat_map", 5), ("heat_map", 30), ("lift", 12), ("layers", 5), ("contributions", 12)],
)
def test_a_figure_is_as_wide_as_asked_fits_a_page_and_its_texts_stay_inside(name: str, count: int) -> None:
    figure = DRAWN[name](count, 3.3)
    assert figure.get_figwidth() == 3.3
    assert figure.get_figheight() <= 9.0
    assert min(one.get_fontsize() for one in texts(figure)) >= 5
    figure.canvas.draw()
    assert figure.get_suptitle() == ""
    drawn = figure.get_tightbbox()  # in inches
    assert min(drawn.x0, drawn.y0) >= -0.02
    assert drawn.x1 <= 3.32
    assert drawn.y1 <= figure.get_figheight() + 0.02
    titles = [panel.title.get_window_extent() for panel in figure.axes if panel.get_title()]
    for index, one in enumerate(titles):
        assert not any(one.overlaps(other) for other in titles[:index])


def test_a_caption_says_what_a_title_would() -> None:
    narrow, wide = figures.heat_map(made(5), width=3.3), figures.heat_map(made(5))
    assert narrow.caption.startswith("Influence of whole languages, all snapshots summed. 20 probes a language; outlined: own")
    assert wide.get_suptitle().replace("\n", " ").startswith("Influence of whole languages, all snapshots summed")


@pytest.mark.parametrize("width", [1.0, 31.0])
def test_a_width_out_of_range_is_an_error(width: float) -> None:
    expected = rf"^width={width} should be from 2 to 30 inches: 3\.3 for a column, 7 for a page\.$"
    with pytest.raises(TracInError, match=expected):
        figures.curves(made(5), width=width)


def test_text_is_text_in_vector_files_and_settings_stay_as_they_are(tmp_path: Path) -> None:
    before = {name: mpl.rcParams[name] for name in ("svg.fonttype", "pdf.fonttype", "ps.fonttype", "text.parse_math")}
    figure = figures.lift(made(5), width=3.3)
    figure.savefig(tmp_path / "lift.svg")
    figure.savefig(tmp_path / "lift.pdf")
    said = re.findall(r"<text[^>]*>([^<]+)</text>", (tmp_path / "lift.svg").read_text())
    assert {"German", "English", "Amharic", "train language", "lift"} <= set(said)
    pdf = (tmp_path / "lift.pdf").read_bytes()
    assert b"/TrueType" in pdf or b"/CIDFontType2" in pdf
    assert b"/Type3" not in pdf
    assert {name: mpl.rcParams[name] for name in before} == before


def test_a_notebook_shows_the_figure_at_the_size_of_the_page() -> None:
    shown = "_repr_png_"  # what IPython calls
    picture, size = getattr(figures.lift(made(5), width=3.3), shown)()
    assert picture.startswith(b"\x89PNG")
    assert size["width"] == 363


def others_of(measure: Measure, probe: str, kept: Sequence[str]) -> pd.DataFrame:
    """The rows of a probe language's curves without these train languages, by step."""
    table = pd.concat([point.tables[measure] for point in made(13).points()])
    mine = table[(table["probe_language"] == probe) & ~table["train_language"].isin(kept)]
    return mine.pivot(index="step", columns="train_language", values="value")


def test_the_strongest_eight_have_lines_and_the_others_are_added_up() -> None:
    last = made(13).points()[-1].tables["sum"]
    foreign = last[last["probe_language"] != last["train_language"]]
    kept = foreign["value"].abs().groupby(foreign["train_language"]).max().nlargest(8).index.tolist()
    own = next(code for code in CODES[:12] if code not in kept)
    figure = figures.curves(made(13), width=3.3)
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(legend) == 10
    assert legend[-2:] == ["own language", "sum of the others"]
    panel = next(panel for panel in figure.axes if own in [line.get_label() for line in panel.lines])
    lines = {line.get_label(): line for line in panel.lines if not str(line.get_label()).startswith("_")}
    assert set(lines) == {*kept, own, "sum of the others"}
    assert to_hex(lines[own].get_color()) == "#000000"
    expected = others_of("sum", own, [*kept, own]).sum(axis=1)
    np.testing.assert_allclose(lines["sum of the others"].get_ydata(), expected)
    looks = {(line.get_color(), line.get_marker()) for name, line in lines.items() if name in kept}
    assert len(looks) == 8  # no colour repeats without another marker


def test_means_are_not_added_up_but_a_band_shows_their_range() -> None:
    figure = figures.curves(made(13), measure="mean", width=3.3)
    assert [text.get_text() for text in figure.legends[0].get_texts()][-1] == "the others (lowest to highest)"
    panel = next(panel for panel in figure.axes if panel.get_title() == "German")
    kept = [line.get_label() for line in panel.lines if not str(line.get_label()).startswith("_")]
    (band,) = [one for one in panel.collections if one.get_label() == "the others (lowest to highest)"]
    assert isinstance(band, FillBetweenPolyCollection)
    rest = others_of("mean", "de", kept)
    heights = band.get_paths()[0].vertices[:, 1]
    assert heights.min() == pytest.approx(rest.min(axis=None))
    assert heights.max() == pytest.approx(rest.max(axis=None))


def test_nine_languages_all_have_lines() -> None:
    legend = figures.curves(made(10), width=3.3).legends[0]
    assert len(legend.get_texts()) == 9


def test_contributions_of_groups_without_an_area_add_up_in_one() -> None:
    table = account(13)
    figure = figures.contributions(table, width=3.3)
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names[0] == "measured loss"
    assert names[-2:] == ["own, if not above", "others together"]
    assert len(names) == 1 + 8 + 2
    panel = panel_of(figure, "Amharic")
    last = table[(table["window"] == 1) & (table["probe_language"] == "am")].set_index("train_language")["nats"]
    areas = {one.get_label(): one for one in panel.collections}
    tops = {name: one.get_paths()[0].vertices[:, 1] for name, one in areas.items()}
    shown = set(areas) - {"others together", "own, if not above"}
    assert areas["own, if not above"]
    rest = last[[name for name in last.index if name not in shown and name != "am"]].sum()
    assert np.ptp(
        tops["others together"][np.isclose(areas["others together"].get_paths()[0].vertices[:, 0], 20)]
    ) == pytest.approx(rest)


def test_layers_are_from_the_embeddings_to_the_head() -> None:
    table = by_layer(5).sample(frac=1, random_state=0)
    figure = figures.layers(table, View(), width=3.3)
    panel = panel_of(figure, "German")
    (line,) = [one for one in panel.lines if one.get_label() == "ar"]
    order = ["embeddings", "layer 0", "layer 1", "layer 2", "head"]
    mine = table[(table["probe_language"] == "de") & (table["train_language"] == "ar")].set_index("layer").loc[order, "value"]
    np.testing.assert_allclose(np.column_stack(line.get_data()), np.column_stack([range(5), mine]))
    ticks = [text.get_text() for text in panel.get_xticklabels()]
    assert (ticks[0], ticks[-1]) == ("emb", "head")
    with pytest.raises(TracInError, match=r"^The figure needs the columns layer, but the table has"):
        figures.layers(table.drop(columns="layer"), View())


def test_heat_maps_have_numbers_where_they_fit_and_dots_elsewhere_and_one_order_of_languages() -> None:
    few, many = figures.heat_map(made(5), width=3.3), figures.heat_map(made(30), width=3.3)
    assert len(few.axes[0].texts) == 20
    assert not many.axes[0].texts
    table = made(30).final().tables["sum"]
    clear = int(((table["low"] > 0) | (table["high"] < 0)).sum())
    assert len([line for line in many.axes[0].lines if line.get_marker() == "."]) == clear
    assert len(many.axes[0].patches) == 29  # own languages are outlined
    rows = [text.get_text() for text in many.axes[0].get_yticklabels()]
    columns = [text.get_text() for text in many.axes[1].get_xticklabels()]
    assert [name for name in rows if name in columns] == columns
    assert abs(rows.index("Swedish") - rows.index("German")) <= 3  # Germanic languages side by side
    assert abs(rows.index("Hindi") - rows.index("Urdu")) <= 1


def test_top_shows_texts_languages_and_scores() -> None:
    figure = figures.top_samples(samples(), "influence (dot)", width=3.3)
    panel = figure.axes[0]
    assert [bar.get_width() for bar in panel.patches] == [0.5, 0.25, -0.75]
    assert [text.get_text() for text in panel.get_yticklabels()] == ["English*", "Korean", "German"]
    assert panel.get_xlabel() == "influence (dot); *: translation of the probe"
    said = [text.get_text() for text in panel.texts]
    assert [one.strip() for one in said[:3]] == ["+0.5", "+0.25", "-0.75"]
    assert said[3].startswith("An English text that is far")
    assert said[3].endswith("…")
    assert said[4:] == ["(no text)", "Ein $x$ deutscher Text"]
    assert not any(text.get_parse_math() for text in panel.texts)
    assert figure.get_suptitle() == "Probe 3 (Swedish, topic)\nEn fråga"
    assert len({to_hex(bar.get_facecolor()) for bar in panel.patches}) == 3
    assert figure.caption.startswith("The strongest 2 proponents and 1 opponents of a probe")
    figure.canvas.draw()
    for text in panel.texts:
        assert text.get_window_extent().x1 <= figure.bbox.width + 1


RARE = "\u4e2d"  # which DejaVu Sans lacks


@pytest.fixture
def _dejavu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever fonts this machine has."""
    monkeypatch.setattr(fontManager, "ttflist", [one for one in fontManager.ttflist if one.name.startswith("DejaVu")])


@pytest.mark.usefixtures("_dejavu_alone")
def test_letters_that_no_font_has_are_said_once_and_the_figure_is_drawn() -> None:
    figure = figures.top_samples(samples().assign(text=RARE * 3), width=3.3)
    with pytest.warns(UserWarning, match="has no glyph for 1 letters") as caught:
        assert figures.png(figure).startswith(b"\x89PNG")
    assert len(caught) == 1


@pytest.mark.usefixtures("_dejavu_alone")
def test_an_installed_font_with_the_missing_letters_is_used(tmp_path: Path) -> None:
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "rare"])
    builder.setupCharacterMap({ord(RARE): "rare"})
    builder.setupGlyf({".notdef": Glyph(), "rare": Glyph()})
    builder.setupHorizontalMetrics({".notdef": (500, 0), "rare": (500, 0)})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Noto Sans Rare", "styleName": "Regular"})
    builder.setupOS2(sTypoAscender=800, usWeightClass=400)
    builder.setupPost()
    builder.save(tmp_path / "rare.ttf")
    fontManager.addfont(tmp_path / "rare.ttf")
    figure = figures.top_samples(samples().assign(text=f"a {RARE}"), width=3.3)
    (one, *_) = [text for text in figure.axes[0].texts if RARE in text.get_text()]
    assert one.get_fontfamily()[-1] == "Noto Sans Rare"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.savefig(io.BytesIO(), format="png")


def test_codes_are_shown_as_names_and_other_groups_as_they_are() -> None:
    by_domain = contributed().rename(columns={"probe_language": "probe_domain", "train_language": "train_domain"})
    domains = by_domain.replace({"javanese": "it"})  # information technology, not Italian
    legend = [text.get_text() for text in figures.contributions(domains).legends[0].get_texts()]
    assert "it" in legend
    assert "Italian" not in legend
    names = [text.get_text() for text in figures.curves(made(5)).legends[0].get_texts()]
    assert names == ["Amharic", "Arabic", "Bangla", "German"]
