"""The data of a page: every number at its place, every text as it was, and never more than a page has room for."""

from __future__ import annotations

import random
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from lightning_tracin.reporting.explorer import Bounds, Carriers, Explorer, Strong
from lightning_tracin.reporting.html import MOST_OF_PICTURES, page_of
from lightning_tracin.reporting.page_data import chart_data, explorer_data, packed, packed_explorer, unpacked
from lightning_tracin.storage.sample_table import SampleTable
from tests.support import study_tables

HOSTILE = (
    "</script><script>alert(1)</script>",
    "<!--",
    "a\u2028b\u2029c\0",
    "\ud800",
    "\u202egnp\u202c",
    "$& $1 {{ x }}",
    '"\\"',
)


@pytest.mark.parametrize("text", HOSTILE)
def test_texts_survive_packing_and_cannot_end_anything(text: str) -> None:
    found = packed({text: [text]})
    assert unpacked(found) == {text: [text]}
    assert set(found) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=")


def test_cells_and_curves_are_those_of_the_tables() -> None:
    results = study_tables.results(snapshots=3)
    found = chart_data(results)
    final, points = results.final().tables, results.points()
    assert found["curves"]["snapshots"] == [[0, 10], [1, 20], [2, 30]]
    for index, (probe, train, own) in enumerate(found["pairs"]):
        assert own == (probe == train)
        for measure, table in final.items():
            line = table[(table["probe_language"] == probe) & (table["train_language"] == train)].iloc[0]
            for column, values in found["measures"][measure]["cells"].items():
                assert values[index] == pytest.approx(line[column], rel=6e-3), (measure, column)
        for at, point in enumerate(points):
            table = point.tables["sum"]
            line = table[(table["probe_language"] == probe) & (table["train_language"] == train)].iloc[0]
            assert found["curves"]["values"]["sum"][at][index] == pytest.approx(line["value"], rel=6e-3)
    assert "lift" not in found["measures"]["sum"]["cells"]  # nothing is known of it
    assert {measure: one["unit"] for measure, one in found["measures"].items()} == {
        "sum": "nats (first order)",
        "mean": "nats (first order)",
        "share": "",
    }
    assert found["languages"]["english"] == {"shown": "english", "tag": "en-Latn"}


def test_what_is_not_known_is_left_out() -> None:
    results = study_tables.results(snapshots=2, measures=("sum", "mean"))
    unknown = replace(results, reliance=results.reliance.assign(value=np.nan, low=np.nan))
    found = chart_data(unknown)
    assert set(found["measures"]["sum"]["cells"]) == {"high", "contrast", "contrast_low", "contrast_high", "null"}
    assert found["curves"]["values"]["sum"] == [[None] * 56] * 2


def test_of_very_many_snapshots_some_are_left_out_but_not_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_tracin.reporting.page_data.MOST_OF_CURVES", 56 * 2)  # 56 pairs
    found = chart_data(study_tables.results(snapshots=5, measures=("sum", "mean")))["curves"]
    assert found["snapshots"] == [[1, 20], [4, 50]]
    assert found["left_out"] == 3


def explorer(languages: int = 2, probes: int = 2, train: int = 3, characters: int = 12) -> Explorer:
    """Lists of every length, drawn by chance, of texts in several scripts."""
    drawn = random.Random(0)
    names = [f"l{index:02d}" for index in range(languages)]
    first = [0x61, 0x430, 0x627, 0x4E00, 0xAC00]
    words = [["".join(chr(one + drawn.randrange(30)) for _ in range(5)) for _ in range(2000)] for one in first]

    def samples(each: int) -> SampleTable:
        rows = []
        for item in range(each):
            for index, name in enumerate(names):
                rows.append((name, str(item), " ".join(drawn.choices(words[index % 5], k=characters // 6)), "label"))
        return SampleTable(*zip(*rows, strict=True))

    def strong(of: int, count: int, sign: int) -> Strong:
        count = min(count, of)
        scores = sorted((drawn.random() for _ in range(count)), reverse=True)
        return Strong(tuple(drawn.sample(range(of), count)), tuple(sign * score for score in scores))

    all_probes, all_train, bounds = languages * probes, languages * train, Bounds()
    return Explorer(
        {index: (strong(all_train, bounds.strongest, 1), strong(all_train, bounds.strongest, -1)) for index in range(all_probes)},
        np.random.default_rng(0).normal(size=(languages, all_probes)),
        {index: (strong(all_probes, bounds.helped, 1), strong(all_probes, bounds.helped, -1)) for index in range(all_train)},
        {
            (probe, name): Carriers(strong(all_train, bounds.carriers, 1), strong(all_train, bounds.carriers, -1), 9.0)
            for probe in names
            for name in names
        },
        samples(probes),
        samples(train),
        bounds,
    )


def test_lists_point_at_positions_in_the_other_table() -> None:
    whole = explorer()
    shown = replace(whole, train={index: lists for index, lists in whole.train.items() if index != 0})
    shown = replace(shown, probes={index: tuple(_without_0(one) for one in lists) for index, lists in whole.probes.items()})
    shown = replace(shown, links={})
    data = explorer_data(shown)
    assert data["train"]["index"] == [1, 2, 3, 4, 5]
    for at, probe in enumerate(data["probes"]["index"]):
        positions, scores = data["probes"]["helped_by"][at]
        proponents = shown.probes[probe][0]
        assert [data["train"]["index"][position] for position in positions] == list(proponents.samples)
        assert scores == pytest.approx(proponents.scores, rel=6e-3)
        assert data["probes"]["text"][at] == whole.queries.text[probe]
        assert data["probes"]["sums"][at] == pytest.approx(whole.sums[:, probe], rel=6e-3)
    items = dict(zip(data["probes"]["index"], data["probes"]["item"], strict=True))
    assert items[0] == items[1] != items[2] == items[3]
    assert data["train"]["item"][data["train"]["index"].index(1)] == items[1]  # the same item in both tables


def _without_0(strong: Strong) -> Strong:
    kept = [pair for pair in zip(strong.samples, strong.scores, strict=True) if pair[0] != 0]
    return Strong(tuple(sample for sample, _ in kept), tuple(score for _, score in kept))


def test_items_that_are_not_known_are_no_translations() -> None:
    one = explorer()
    unknown = replace(one, queries=replace(one.queries, item=(None,) * 4), samples=replace(one.samples, item=(None,) * 6))
    data = explorer_data(unknown)
    assert {*data["probes"]["item"], *data["train"]["item"]} == {-1}


def test_long_texts_are_cut_and_lists_are_shortened_until_the_page_has_room_for_them() -> None:
    whole = explorer(languages=3, probes=20, train=40, characters=400)
    said, data = packed_explorer(whole)
    assert "at most 10 proponents" in said
    assert "Texts are cut after 240 characters." in said
    assert {len(text) for text in unpacked(data)["train"]["text"]} == {241}
    most = len(data) // 4
    said, less = packed_explorer(whole, most)
    assert len(less) <= most
    found = unpacked(less)
    longest = max(len(text) for text in found["probes"]["text"])
    assert f"Texts are cut after {longest - 1} characters." in said
    assert f"at most {max(len(samples) for samples, _ in found['probes']['helped_by'])} proponents" in said
    assert len(found["probes"]["index"]) == 60
    assert f"{len(found['train']['index'])} train samples that are among these" in said


def test_a_page_of_thirty_languages_and_three_thousand_probes_has_at_most_5_mb() -> None:
    whole = explorer(languages=30, probes=100, train=300, characters=180)
    names = sorted(set(whole.queries.language))
    results = study_tables.results(snapshots=5, trains=names, probes=names)
    rows = []
    for probe in range(90):
        for train in range(6):
            facts = {"probe": probe, "probe_language": whole.queries.language[probe], "probe_text": whole.queries.text[probe]}
            facts |= {"train": train, "language": whole.samples.language[train], "text": whole.samples.text[train]}
            rows.append({**facts, "sign": "positive", "rank": 1, "probe_label": "x", "label": "x", "score": 0.5})
    results = replace(results, top=pd.DataFrame(rows), explorer=whole)
    pictures = dict.fromkeys(("heat_map", "curves", "lift"), bytes(MOST_OF_PICTURES // 3))
    page = page_of(results, None, pictures)
    assert 3_000_000 < len(page.encode()) + 450_000 <= 5_000_000  # those are for contributions
    (said,) = [line for line in page.splitlines() if "proponents and opponents among" in line]
    assert int(re.findall("All 3,000 probes, each with at most ([0-9]+) proponents", said)[0]) >= 4


def test_pictures_that_are_too_large_are_named() -> None:
    results = replace(study_tables.results(snapshots=1), top=pd.DataFrame({"probe": []}))
    sizes = {"heat_map": MOST_OF_PICTURES // 2, "curves": MOST_OF_PICTURES, "lift": MOST_OF_PICTURES // 2 + 1}
    pictures = {name: bytes(size) for name, size in sizes.items()}
    page = page_of(results, None, pictures)
    assert page.count('src="data:image/png') == 1
    assert [name for name in pictures if f'<a href="{name}.png">' in page] == ["curves", "lift"]
