"""What is written when the influence of a run is there, and what `report=False` leaves to later."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_tracin import TracInCallback, TracInError, TracInRun
from lightning_tracin.cli.main import main
from lightning_tracin.config import Options
from lightning_tracin.trainer import finish
from tests.support.fits import Classifier, loaders, trainer

pytestmark = pytest.mark.results


def test_without_a_report_only_what_needs_the_model_is_written(tmp_path: Path) -> None:
    with_page, without = tmp_path / "with", tmp_path / "without"
    callbacks = [TracInCallback(with_page, top_k=5), TracInCallback(without, top_k=5, report=False)]
    trainer(tmp_path, callbacks, max_epochs=2).fit(Classifier(), *loaders())
    assert [path.name for path in (without / "results").iterdir()] == ["representations.safetensors"]
    run = TracInRun.open(without)
    assert run.reliance(5).equals(TracInRun.open(with_page).reliance(5))
    main(["results", "--run", str(without)])
    names = {path.name for path in (with_page / "results").iterdir()}
    assert "compared.csv" in names  # with the similarity of representations as a baseline
    assert {path.name for path in (without / "results").iterdir()} == names
    for name in ("compared.csv", "reliance.csv"):
        assert (without / "results" / name).read_bytes() == (with_page / "results" / name).read_bytes()


def test_what_fails_without_a_report_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no layer of that name")

    monkeypatch.setattr(finish, "sentence_representations", broken)
    callback = TracInCallback(tmp_path / "run", top_k=5, report=False)
    with pytest.warns(UserWarning, match=r"representations.*no layer of that name.*lightning_tracin.attribute\("):
        trainer(tmp_path, [callback], max_epochs=1).fit(Classifier(), *loaders())


def test_tokens_need_a_report() -> None:
    with pytest.raises(TracInError, match="report=False leaves out"):
        Options(per_token=True, report=False)
