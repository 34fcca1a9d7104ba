from __future__ import annotations

from pathlib import Path

import pytest
import select_data


def test_it_scores_candidates_and_fits_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny = {"train_per_language": 8, "probes_per_language": 2, "test_per_language": 4, "hidden_size": 16, "layers": 1, "heads": 2}
    options = select_data.Selection(**tiny, epochs=1, batch_size=16, candidates=6, add=5, output=str(tmp_path / "run"))
    select_data.main(options)
    said = capsys.readouterr().out
    assert "Mean influence on nl" in said
    assert "with 5 sentences of highest influence" in said
    assert "with 5 sentences drawn at random" in said
