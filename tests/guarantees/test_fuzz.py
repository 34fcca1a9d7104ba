"""Files of a run directory that say anything at all give a valid run or a TracInError, and nothing is executed or left."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lightning_tracin import TracInError, TracInRun
from lightning_tracin.storage.sample_table import SampleTable
from tests.support.hand_made import run_directory

TRAIN = SampleTable(("de", "de", "en", "ru"), (None, "1", "1", "1"), ("a", "b", "c", "d"), ("0", "1", None, "0"))
PROBES = SampleTable(("de", "en", "ru"), ("2",) * 3, ("x", "y", "z"), (None,) * 3)

#: Reading takes a few milliseconds; how many is not the point.
FUZZ = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return run_directory(tmp_path / "run", TRAIN, PROBES).path


def read_everything(path: Path) -> list[Any]:
    run = TracInRun.open(path)
    said: list[Any] = [run.influence("dot", "learning_rate").to_numpy(), run.reliance(k=2, cumulative=True), run.top(0, k=2)]
    said += [snapshot.state_dict() for snapshot in run.snapshots]
    assert said[0].shape == (4, 3)
    return said


def valid_or_refused(path: Path, file: Path, content: bytes) -> None:
    """With this content, a file is read as a run or refused; nothing in the folder or above it changes."""
    before, kept = file.read_bytes(), sorted(path.parent.rglob("*"))
    file.write_bytes(content)
    refusal = ""
    try:
        read_everything(path)
    except TracInError as error:
        refusal = str(error)
    finally:
        assert sorted(path.parent.rglob("*")) == kept
        file.write_bytes(before)
    assert not refusal or str(path) in refusal


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["../../x", "/etc/passwd", "..", "body.weight", "10" * 40]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.just("body.weight"), inner, max_size=3),
    max_leaves=8,
)


def places(value: Any, way: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value within a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [way, *(place for key, one in inner for place in places(one, (*way, key)))]


def changed(value: Any, way: tuple[Any, ...], change: Callable[[Any], Any]) -> Any:
    if not way:
        return change(value)
    copy = value.copy()
    copy[way[0]] = changed(value[way[0]], way[1:], change)
    return copy


def without_checksum(content: bytes) -> Any:
    parsed = json.loads(content)
    parsed.pop("checksum")
    return parsed


@pytest.mark.parametrize("name", ["run.json", "snapshots/0000-step3/snapshot.json"])
@given(data=st.data())
@FUZZ
def test_records_with_any_value_anywhere(path: Path, name: str, data: st.DataObject) -> None:
    record = without_checksum((path / name).read_bytes())
    way = data.draw(st.sampled_from(places(record)))
    value = data.draw(JSON)
    mutated = changed(record, way, lambda _: value)
    if isinstance(mutated, dict) and data.draw(st.booleans()):
        mutated = {**mutated, data.draw(st.text()): value}
    valid_or_refused(path, path / name, json.dumps(mutated).encode("utf-8", "replace"))


@pytest.mark.parametrize("name", ["train.jsonl", "probes.jsonl"])
@given(data=st.data())
@FUZZ
def test_lines_of_samples_with_any_value_anywhere(path: Path, name: str, data: st.DataObject) -> None:
    file = path / "samples" / name
    lines: list[Any] = [json.loads(line) for line in file.read_text().splitlines()]
    way, value = data.draw(st.sampled_from(places(lines))), data.draw(JSON)
    mutated = changed(lines, way, lambda _: value)
    rows = mutated if isinstance(mutated, list) else [mutated]
    valid_or_refused(path, file, "\n".join(json.dumps(row) for row in rows).encode("utf-8", "replace"))


FILES = [
    "run.json",
    "samples/train.jsonl",
    "snapshots/0001-step6/snapshot.json",
    "snapshots/0001-step6/weights.safetensors",
    "ingredients/0001-step6/0.safetensors",
]


@pytest.mark.parametrize("name", FILES)
@given(data=st.data())
@FUZZ
def test_bytes_changed_anywhere(path: Path, name: str, data: st.DataObject) -> None:
    content = bytearray((path / name).read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=9))
        content = content or bytearray(b"\0")
    valid_or_refused(path, path / name, bytes(content))


@pytest.mark.parametrize("name", FILES)
@given(content=st.binary(max_size=200))
@FUZZ
def test_any_bytes(path: Path, name: str, content: bytes) -> None:
    valid_or_refused(path, path / name, content)


DTYPES = st.sampled_from([torch.float32, torch.float64, torch.float16, torch.int64, torch.int8, torch.bool, torch.uint8])
NAMES = ["train", "probes", "dot", "train_norm", "probe_norm"]


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    value = draw(st.sampled_from([0.0, 1.0, -1.0, 3.0, 5.0, float("nan"), float("inf")]))
    return torch.nan_to_num(torch.full(shape, value)).to(draw(DTYPES)) if draw(st.booleans()) else torch.full(shape, value)


@given(data=st.data())
@FUZZ
def test_shards_without_a_checksum_that_hold_any_tensors(path: Path, data: st.DataObject) -> None:
    file = path / "ingredients" / "0001-step6" / "0.safetensors"
    held = safetensors.torch.load_file(file)
    for name in data.draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=3)):
        held[name] = data.draw(tensors())
    valid_or_refused(path, file, safetensors.torch.save(held))


def test_names_cannot_lead_out_of_the_directory(path: Path) -> None:
    file = path / "run.json"
    record = without_checksum(file.read_bytes())
    for name in ("../../elsewhere", "/etc", "..", ""):
        file.write_text(json.dumps({**record, "run": name}))
        with pytest.raises(TracInError, match=r"run\.json is damaged or of another version \(run: String should match"):
            TracInRun.open(path)
    file.write_text(json.dumps(record))
    assert TracInRun.open(path).record.run == "drawn"


def test_nothing_is_unpickled(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "executed"),)

    def refused(*args: Any, **settings: Any) -> None:
        raise AssertionError("unpickled")

    for content in (pickle.dumps(Trap()), pickle.dumps({"dot": Trap()}, protocol=0)):
        for file in sorted(path.rglob("*")):
            if file.is_file() and "lock" not in file.name:
                before = file.read_bytes()
                file.write_bytes(content)
                with pytest.raises(TracInError, match=file.name.replace(".", r"\.")):
                    read_everything(path)
                file.write_bytes(before)
    assert not (tmp_path / "executed").exists()
    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refused)
    monkeypatch.setattr(torch, "load", refused)
    assert len(read_everything(path)) == 5


def test_hand_made_run_is_read_as_it_was_written(path: Path, tmp_path: Path) -> None:
    shutil.copytree(path, tmp_path / "copy")
    for one, other in zip(read_everything(path)[:1], read_everything(tmp_path / "copy")[:1], strict=True):
        np.testing.assert_array_equal(one, other)
    held = [safetensors.torch.load_file(path / "ingredients" / name / "0.safetensors") for name in ("0000-step3", "0001-step6")]
    want = sum((3 / 3) * (0.1 * one["dot"][0] + 0.01 * one["dot"][1]) for one in held)
    np.testing.assert_allclose(read_everything(path)[0][:2], want.numpy(), rtol=1e-5)
