"""Optional packages stay optional: nothing imports them before they are used, and what needs one says which extra has it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import pytorch_lightning as pl
from packaging.requirements import Requirement
from pytorch_lightning.loggers import CSVLogger

from lightning_tracin import TracInCallback
from lightning_tracin.analysis.baselines import lexical
from lightning_tracin.errors import MissingPackageError, TracInError, needs
from lightning_tracin.reporting import figures
from lightning_tracin.reporting.html import render
from lightning_tracin.studies.datasets import load_cldr
from lightning_tracin.studies.models.classifier import Classifier as StudyClassifier
from lightning_tracin.studies.runner import run_study
from tests.support.fits import Classifier, loaders, trainer
from tests.support.models import tiny_xlmr
from tests.support.small import settings

pytestmark = pytest.mark.results

#: Package -> what uses it, in what words, and the extras that must hold it.
USES: dict[str, tuple[Callable[[], object], str, tuple[str, ...]]] = {
    "babel": (lambda: load_cldr(["en"]), "Names from the Unicode CLDR need babel", ("study",)),
    "bm25s": (lambda: lexical(["a b"], ["a"]), "Baselines by BM25 need bm25s", ("report", "study")),
    "jinja2": (lambda: render("report.html"), "Pages need jinja2", ("report", "study")),
    "matplotlib": (lambda: figures.curves, "Figures need matplotlib", ("report", "study")),
    "torchmetrics": (
        lambda: StudyClassifier(tiny_xlmr(), learning_rate=1.0, warmup=0.0, weight_decay=0.0),
        "Classifiers of a study need torchmetrics",
        ("study",),
    ),
}


@pytest.mark.parametrize("package", USES)
def test_a_missing_package_is_named_with_the_extra_that_has_it(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use, said, extras = USES[package]
    monkeypatch.setitem(sys.modules, package, None)
    if package == "torchmetrics":
        monkeypatch.delitem(sys.modules, "torchmetrics.classification")
    with pytest.raises(MissingPackageError) as caught:
        use()
    assert str(caught.value) == f"{said}, which is not installed: pip install 'lightning-tracin[{extras[0]}]'."


@pytest.mark.parametrize("package", ["bm25s", "jinja2", "matplotlib", "torchmetrics"])
def test_a_study_says_at_its_start_what_is_missing(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = settings(tmp_path)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        TracInError, match=rf"^Studies need {package}, which is not installed: pip install 'lightning-tracin\[study"
    ):
        run_study(asked, progress=False, say=lambda text: None)
    assert not (tmp_path / "small").exists()


def test_a_package_that_lacks_something_itself_is_not_called_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half_installed.py").write_text("import what_it_needs\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="what_it_needs"):
        needs("half_installed", "report", "Pages")


IMPORTS = """
import builtins
ours, real, found = "lightning_tracin", builtins.__import__, []
PACKAGES = {"babel", "bm25s", "jinja2", "matplotlib", "torchmetrics", "wandb_workspaces"}
def watched(name, globals=None, locals=None, fromlist=(), level=0):
    importer = (globals or {}).get("__name__", "")
    if importer.split(".")[0] == ours and name.split(".")[0] in PACKAGES:
        found.append((importer, name))
    return real(name, globals, locals, fromlist, level)
builtins.__import__ = watched
import lightning_tracin.reporting.results, lightning_tracin.run, lightning_tracin.trainer.session
import lightning_tracin.cli.main, lightning_tracin.studies.page, lightning_tracin.studies.wandb_run
import lightning_tracin.studies.experiments
print(found)
"""


@pytest.mark.long
def test_importing_imports_none_of_them() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


def fit(folder: Path) -> None:
    pl.seed_everything(7)
    logger = CSVLogger(folder, "csv", version="")
    trainer(folder, [TracInCallback(folder / "run", top_k=5)], logger=logger).fit(Classifier(), *loaders())


def test_a_fit_without_them_has_its_tables_and_curves_and_says_once_what_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, bare = tmp_path / "whole", tmp_path / "bare"
    fit(whole)
    for package in ("matplotlib", "jinja2", "bm25s"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.warns(UserWarning, match="TracIn: the results in") as warned:
        fit(bare)
    (said,) = [str(one.message) for one in warned if "TracIn" in str(one.message)]
    for part in ("Figures need matplotlib", "Pages need jinja2", "pip install 'lightning-tracin[report]'"):
        assert part in said
    assert "\n" not in said
    names = {path.name for path in (bare / "run" / "results").iterdir()}
    assert names == {path.name for path in (whole / "run" / "results").iterdir()} - {
        "curves.png",
        "heat_map.png",
        "lift.png",
        "report.html",
    }
    for name in ("reliance.csv", "top.csv", "changes.csv"):
        assert (bare / "run" / "results" / name).read_bytes() == (whole / "run" / "results" / name).read_bytes()
    curves = [
        pd.read_csv(folder / "csv" / "metrics.csv").filter(like="tracin/").dropna(how="all").to_numpy()
        for folder in (whole, bare)
    ]
    assert curves[0].size
    assert (curves[0] == curves[1]).all()


def test_the_page_is_written_without_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.warns(UserWarning, match=r"Figures need matplotlib, which is not installed: pip install '[^']+'\.$"):
        fit(tmp_path)
    page = (tmp_path / "run" / "results" / "report.html").read_text()
    assert "<h2>Findings</h2>" in page
    assert "<img" not in page


@pytest.mark.parametrize("package", USES)
def test_the_extras_that_messages_name_hold_the_package(package: str) -> None:
    project = pytest.importorskip("tomllib").loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert package not in names(project["dependencies"])
    extras = project["optional-dependencies"]
    for extra in USES[package][2]:
        held = names(extras[extra])
        assert package in (held | names(extras["report"]) if "lightning-tracin" in held else held)
    assert {"dashboard", "languages", "report", "study"} == Requirement(*extras["all"]).extras
    assert {"all", "docs", "lightning"} in [Requirement(one).extras for one in extras["dev"]]


def names(requirements: list[str]) -> set[str]:
    return {Requirement(one).name for one in requirements}
