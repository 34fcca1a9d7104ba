"""The page of a run in a browser: what a reader clicks, types and sees."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from lightning_tracin import TracInRun
from lightning_tracin.config import View
from lightning_tracin.reporting.every_result import write_every_result
from lightning_tracin.storage.display_names import display_name
from lightning_tracin.storage.sample_table import SampleTable
from tests.support.browsers import browser, chromium, opened
from tests.support.hand_made import run_directory
from tests.support.many_scripts import SENTENCES, written_run

WIDTHS = pytest.mark.parametrize("width", [400, 1280])


@pytest.fixture(scope="module")
def started() -> Iterator[Any]:
    with browser() as one:
        yield one


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TracInRun:
    chromium()  # skips before the run is made
    return written_run(tmp_path_factory.mktemp("scripts") / "run")


def page_of(run: TracInRun) -> Path:
    return run.path / "results" / "report.html"


def ready(page: Any) -> Any:
    """The explorer, once it is there."""
    page.wait_for_selector(".explorer:not([hidden]) .found a")
    return page.locator("#explorer")


def listed(place: Any) -> list[int]:
    """The indices of the samples that a list links to, in order."""
    return [int(link.get_attribute("href").split("/")[1]) for link in place.locator("a").all()]


@WIDTHS
def test_the_page_fits_its_screen_and_leads_to_its_sections(started: Any, run: TracInRun, width: int) -> None:
    with opened(started, page_of(run), width) as page:
        ready(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        links = page.locator(".contents a:visible").all()
        assert [link.inner_text() for link in links][:4] == ["What the numbers mean", "Findings", "Heat map", "Explorer"]
        for link in links:
            link.click()
            target = page.locator(str(link.get_attribute("href")))
            assert 0 <= target.bounding_box()["y"] < 900
        assert page.locator("#panel-probe .found a").first.is_visible()


@WIDTHS
def test_a_probe_is_found_by_text_language_and_label(started: Any, run: TracInRun, width: int) -> None:
    with opened(started, page_of(run), width) as page:
        panel = ready(page).locator("#panel-probe")
        assert panel.locator(".count").inner_text().startswith("48 of 48")
        panel.get_by_label("Text").fill("MATCH 3")
        (found,) = listed(panel.locator(".found"))
        assert run.probes.text[found] == "The team won the match 3"
        panel.get_by_label("Text").fill("")
        panel.locator(".finder").get_by_label("Language").select_option("ja")
        assert listed(panel.locator(".found")) == [index for index, name in enumerate(run.probes.language) if name == "ja"]
        panel.locator(".finder").get_by_label("Label").select_option("sport")
        assert panel.locator(".count").inner_text() == "3 of 48"
        panel.locator(".found a").nth(1).click()
        (chosen,) = [index for index, text in enumerate(run.probes.text) if text == f"{SENTENCES['ja'][1]} 3"]
        page.wait_for_selector(f"#panel-probe .card:has-text('probe {chosen}')")
        detail = panel.locator(".detail")
        for number, sign in enumerate(("positive", "negative")):
            expected = run.top(chosen, 10, sign, "dot", "learning_rate")
            kept = expected[expected["score"] * (1 - 2 * number) > 0]
            column = detail.locator(".strong").nth(number)
            assert listed(column) == kept["train"].tolist()
            texts = [line.inner_text() for line in column.locator(".text").all()]
            assert texts == kept["text"].tolist()
            scores = [float(line.inner_text()) for line in column.locator(".score").all()]
            assert scores == pytest.approx(kept["score"].tolist(), rel=6e-3)


def test_translations_are_marked(started: Any, run: TracInRun) -> None:
    with opened(started, page_of(run), fragment="#probe/2") as page:  # English, item 0
        detail = ready(page).locator("#panel-probe .detail")
        marked = {}
        for line in detail.locator(".strong a").all():
            mark = line.locator(".mark")
            marked[int(line.get_attribute("href").split("/")[1])] = mark.inner_text() if mark.count() else ""
        for train, mark in marked.items():
            same = run.train.item[train] == run.probes.item[2]
            expected = ("same item" if run.train.language[train] == "en" else "translation") if same else ""
            assert mark == expected
        assert "translation" in marked.values()


def test_texts_have_their_language_and_direction(started: Any, run: TracInRun) -> None:
    tags = {"ar": "ar-Arab", "de": "de-Latn", "en": "en-Latn", "he": "he-Hebr", "hi": "hi-Deva", "ja": "ja-Jpan", "ko": "ko-Kore"}
    with opened(started, page_of(run)) as page:
        found = ready(page).locator("#panel-probe .found .text")
        for probe in range(8):
            text, language = found.nth(probe), run.probes.language[probe]
            assert text.get_attribute("lang") == tags.get(language, "zh-Hans")
            direction = text.evaluate("element => getComputedStyle(element).direction")
            assert direction == ("rtl" if language in ("ar", "he") else "ltr")
            assert text.inner_text() == run.probes.text[probe]


@WIDTHS
def test_a_proponent_leads_to_whom_it_helps_and_back(started: Any, run: TracInRun, width: int) -> None:
    scores = run.influence("dot", "learning_rate").to_numpy()
    with opened(started, page_of(run), width) as page:
        explorer = ready(page)
        first = explorer.locator("#panel-probe .strong a").first
        train = int(first.get_attribute("href").split("/")[1])
        first.click()
        page.wait_for_selector("#panel-train:not([hidden])")
        detail = explorer.locator("#panel-train .detail")
        assert detail.locator(".card .text").inner_text() == run.train.text[train]
        order = np.argsort(-scores[train], kind="stable")
        helped = [probe for probe in order[:5].tolist() if scores[train, probe] > 0]
        harmed = [probe for probe in order[::-1][:5].tolist() if scores[train, probe] < 0]
        assert [listed(column) for column in detail.locator(".strong").all()] == [helped, harmed]
        page.go_back()
        explorer.get_by_role("tab", name="A probe").click()
        assert explorer.locator("#panel-probe .detail").is_visible()
        explorer.get_by_role("tab", name="A probe").press("ArrowRight")
        assert explorer.get_by_role("tab", name="A train sample").get_attribute("aria-selected") == "true"


@WIDTHS
def test_two_languages_have_the_samples_that_carry_their_link(started: Any, run: TracInRun, width: int) -> None:
    scores = run.influence("dot", "learning_rate")
    mean = scores[:, scores.probe_language.values == "ko"].mean("probe")
    mine = [(int(train), float(mean[int(train)])) for train in range(96) if run.train.language[int(train)] == "he"]
    mine.sort(key=lambda pair: -pair[1])
    with opened(started, page_of(run), width) as page:
        explorer = ready(page)
        explorer.get_by_role("tab", name="Two languages").click()
        panel = explorer.locator("#panel-link")
        panel.get_by_label("Probe language").select_option("ko")
        panel.get_by_label("Train language").select_option("he")
        page.wait_for_selector("#panel-link .card:has-text('Hebrew (train) → Korean (probes)')")
        detail = explorer.locator("#panel-link .detail")
        helping = [train for train, score in mine[:5] if score > 0]
        harming = [train for train, score in mine[::-1][:5] if score < 0]
        assert [listed(column) for column in detail.locator(".strong").all()] == [helping, harming]
        table = run.reliance(cumulative=True, snapshots=[2], similarity="dot", weighting="learning_rate")
        cell = table.query("probe_language == 'ko' and train_language == 'he'").iloc[0]
        shown = re.search(r"Influence (-?[\d.]+) \[(-?[\d.]+), (-?[\d.]+)\]", detail.locator(".card").inner_text())
        assert shown is not None
        assert [float(one) for one in shown.groups()] == pytest.approx([cell["value"], cell["low"], cell["high"]], rel=6e-3)
        mass = sum(abs(score) for _, score in mine)
        part = round(100 * sum(score for _, score in mine[:5] if score > 0) / mass)
        assert f"on the first list do {part} %" in detail.inner_text()


@WIDTHS
def test_a_cell_of_the_heat_map_opens_its_link(started: Any, run: TracInRun, width: int) -> None:
    with opened(started, page_of(run), width) as page:
        ready(page)
        cells = page.locator("[data-chart=heat-map] [aria-label=cell]").first.locator("rect")
        assert cells.count() == 64
        page.locator("#heat-map").scroll_into_view_if_needed()
        place = cells.nth(1).bounding_box()  # the first probe language, the second train language
        page.mouse.move(place["x"] + place["width"] / 2, place["y"] + place["height"] / 2)
        page.mouse.down()
        page.mouse.up()
        page.wait_for_selector("#panel-link .card:has-text('German (train) → Arabic (probes)')")
        assert page.evaluate("location.hash") == "#link/ar/de"


def test_charts_show_what_is_chosen(started: Any, run: TracInRun) -> None:
    with opened(started, page_of(run)) as page:
        ready(page)
        heat_map, curves = page.locator("[data-chart=heat-map]"), page.locator("[data-chart=curves]")
        assert "influence (sum)" in str(heat_map.locator("svg[role=img]").get_attribute("aria-label"))
        heat_map.get_by_label("Show").select_option("lift")
        assert "lift of each train language" in str(heat_map.locator("svg[role=img]").get_attribute("aria-label"))
        curves.get_by_label("Probe language").select_option("ja")
        table = run.reliance(snapshots=[2], similarity="dot", weighting="learning_rate")
        mine = table[table["probe_language"] == "ja"].set_index("train_language")["value"]
        strongest = mine.abs().sort_values(ascending=False).index[0]
        told = curves.locator("figcaption").inner_text()
        assert told.startswith(f"Each snapshot alone; last: {display_name(strongest)} ")
        shown = float(re.findall(r"last: \w+ (-?[\d.]+)", told)[0])
        assert shown == pytest.approx(mine[strongest], rel=6e-3)
        assert "1 more are grey" in told


def test_tables_sort_and_filter(started: Any, run: TracInRun) -> None:
    with opened(started, page_of(run)) as page:
        ready(page)
        page.get_by_text("Influence of a language (sum)").click()
        place = page.locator("#whole details").first
        place.scroll_into_view_if_needed()
        place.get_by_label("Filter").wait_for()
        values = lambda column: [row.locator("td").nth(column).inner_text() for row in place.locator("tbody tr").all()]  # noqa: E731
        assert len(values(0)) == 25
        place.locator("th").nth(2).click()
        place.locator("th[aria-sort=ascending]").nth(0).wait_for()  # sorting comes after the click's other handlers
        ascending = [float(value) for value in values(2)]
        assert ascending == sorted(ascending)
        table = pd.read_csv(run.path / "results" / "reliance.csv").query("measure == 'sum' and cumulative and snapshot == 2")
        assert ascending[0] == pytest.approx(table["value"].min(), abs=6e-4)
        place.get_by_label("train language").select_option("he")
        place.locator("tbody tr").nth(8).wait_for(state="detached")
        assert values(1) == ["he"] * 8
        place.get_by_label("Filter").fill("zh")
        place.locator("tbody tr").nth(1).wait_for(state="detached")
        assert list(zip(values(0), values(1), strict=True)) == [("zh", "he")]


def test_a_dark_screen_has_a_dark_page(started: Any, run: TracInRun) -> None:
    for scheme, dark in (("light", False), ("dark", True)):
        with opened(started, page_of(run), color_scheme=scheme) as page:
            ready(page)
            colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert (sum(map(int, re.findall(r"\d+", colour)[:3])) < 200) == dark


def test_texts_of_data_sets_do_nothing(started: Any, tmp_path: Path) -> None:
    hostile = (
        "</script><script>document.title = 'owned'</script>",
        "<img src=x onerror=\"document.title = 'owned'\">",
        "</template><script>document.title = 'owned'</script>",
        "$& $1 {{ 7 * 7 }} &lt;b&gt; \\u003cscript\\u003e",
        "a\u2028b\rc\nd\te",
        "half \ud800 a letter, \u202egnp\u202c, \u2067x\u2069",
        "'\"`<!--",
        "&amp;lt;img src=x onerror=alert(1)&amp;gt;",
    )
    odd = SampleTable(("de", "en") * 4, ("1", "<i>") * 4, hostile, tuple(reversed(hostile)))
    run = TracInRun(run_directory(tmp_path / "run", odd, odd))
    assert write_every_result(run, View(top_k=2), lambda: (np.eye(8), np.eye(8))).remedy is None
    with opened(started, page_of(run)) as page:
        explorer = ready(page)
        page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true })")
        for table in page.locator("table.data").all():
            table.scroll_into_view_if_needed()
        page.wait_for_selector("#strongest .dt-search")
        page.locator("#strongest .dt-search input").fill("onerror")
        page.locator("#strongest th").nth(2).click()
        found = explorer.locator("#panel-probe .found .text")
        # An element's own text ends lines with \n whatever the data has.
        assert [text.replace("\r", "\n") for text in found.evaluate_all("all => all.map((one) => one.textContent)")] == [
            text.replace("\ud800", "\\ud800").replace("\r", "\n") for text in hostile
        ]
        assert page.title() == "Influence of languages"
        assert page.locator("img[src=x]").count() == 0


def test_the_policy_refuses_what_was_not_put_in_by_the_package(started: Any, run: TracInRun, tmp_path: Path) -> None:
    smuggled = tmp_path / "report.html"
    script = "<script>document.title = 'owned'</script><img src='data:,x' onerror=\"document.title = 'owned'\">"
    smuggled.write_text(page_of(run).read_text(encoding="utf-8").replace("<main>", f"<main>{script}"), encoding="utf-8")
    context = started.new_context()
    try:
        page = context.new_page()
        page.goto(smuggled.as_uri())
        ready(page)
        assert page.title() == "Influence of languages"
    finally:
        context.close()


def test_a_page_without_javascript_has_its_pictures_and_tables(started: Any, run: TracInRun) -> None:
    with opened(started, page_of(run), java_script_enabled=False) as page:
        assert page.locator("#heat-map img").is_visible()
        assert page.get_by_text("The explorer needs JavaScript").is_visible()
        page.get_by_text("Influence of a language (sum)").click()
        assert page.locator("#whole tbody tr").first.is_visible()
