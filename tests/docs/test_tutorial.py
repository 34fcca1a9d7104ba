"""The tutorial runs from its first cell to its last, and says what its stored outputs say."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from nbformat import NotebookNode

from docs.scripts.run_tutorial import TUTORIAL, executed

pytestmark = [pytest.mark.slow, pytest.mark.results]


def decision(notebook: NotebookNode) -> pd.DataFrame:
    """The table in the output of the last cell with code."""
    text = [cell for cell in notebook.cells if cell.cell_type == "code"][-1].outputs[-1].data["text/plain"]
    return pd.read_csv(StringIO(text), sep=r"\s{2,}", engine="python")


@pytest.mark.long
def test_it_runs_and_says_what_it_said_before(tmp_path: Path) -> None:
    stored = nbformat.read(TUTORIAL, as_version=4)
    run = executed(TUTORIAL, tmp_path)
    pd.testing.assert_frame_equal(decision(run), decision(stored), atol=0.02)
    kinds = [[output.output_type for output in cell.get("outputs", [])] for cell in run.cells]
    assert kinds == [[output.output_type for output in cell.get("outputs", [])] for cell in stored.cells]
    (picture,) = (output for cell in run.cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {}))
    assert len(picture.data["image/png"]) > 10_000


def test_the_decision_is_the_one_that_its_text_draws() -> None:
    """Russian by all three; German has influence that it is not needed for."""
    table = decision(nbformat.read(TUTORIAL, as_version=4))
    assert set(table.idxmax()) == {"ru"}
    assert table.loc["de", "influence"] > 10 * table.loc["de", "need"]
    assert 2 < table.loc["ru", "need"] / table.loc["ru", "gain of 300 more"] < 4
