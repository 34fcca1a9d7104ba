"""The commands that warnings give name what the run needs."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_tracin.config import Options
from lightning_tracin.errors import MissingPackageError, TracInError
from lightning_tracin.reporting.attempts import Attempts, attribute_line
from lightning_tracin.storage.sample_table import SampleTable
from tests.support.hand_made import record_of

TABLE = SampleTable(("de",), (None,), ("a",), (None,))
RECORD = record_of(TABLE, TABLE, 1, 1)


@pytest.mark.parametrize(
    ("options", "changes", "arguments"),
    [
        ({}, {}, ""),
        ({"top_k": 7, "similarity": "dot"}, {}, ", top_k=7"),  # the default is left out
        ({"similarity": "cosine", "weighting": "uniform"}, {}, ", similarity='cosine', weighting='uniform'"),
        ({"mask": Path("m.safetensors")}, {"mask": "abc"}, ", mask='m.safetensors'"),
        ({}, {"mask": "abc"}, ", mask=mask"),
        (
            {},
            {"languages_given": True, "languages_of_probes_given": True},
            ", languages=languages, languages_of_probes=languages_of_probes",
        ),
    ],
)
def test_the_line_of_python_has_every_argument(options: dict[str, object], changes: dict[str, object], arguments: str) -> None:
    line = attribute_line(Path("it's"), Options(**options), RECORD.model_copy(update=changes))
    assert line == f'lightning_tracin.attribute(module, "it\'s", train_loader, probe_loaders{arguments})'


def test_reasons_are_short_and_missing_packages_apart() -> None:
    attempts = Attempts()
    for name, error in (
        ("a", OSError(28, "No space left on device")),
        ("b", ValueError("x\ny")),
        ("c", MissingPackageError("no x")),
    ):
        with attempts.at(name):
            raise error
    with attempts.at("d"):
        try:
            raise OSError(30, "Read-only file system")
        except OSError as error:
            raise TracInError("d cannot be written; choose another.") from error
    assert attempts.failed == {"a": "No space left on device", "b": "ValueError: x y", "d": "Read-only file system"}
    assert attempts.missing == ["no x"]


def test_an_interrupt_ends_everything() -> None:
    with pytest.raises(KeyboardInterrupt), Attempts().at("a"):
        raise KeyboardInterrupt
