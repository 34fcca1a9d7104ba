"""A made-up experiment, declared here alone: settings, runner, resuming and page know it without being edited."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lightning_tracin.cli.main import main, settings_from
from lightning_tracin.errors import TracInError
from lightning_tracin.run import TracInRun
from lightning_tracin.studies import experiments, fit_jobs, registry, runner, study_runs
from lightning_tracin.studies.datasets import Split
from lightning_tracin.studies.fits import Variant
from lightning_tracin.studies.page import write_page
from lightning_tracin.studies.registry import experiment
from lightning_tracin.studies.runner import run_study
from lightning_tracin.studies.section import Contents
from lightning_tracin.studies.settings import StudySettings
from lightning_tracin.studies.study_runs import StudyRuns, Wanted
from tests.support.small import settings

quietly = partial(run_study, progress=False, say=lambda text: None)


@dataclasses.dataclass(frozen=True)
class PairOptions:
    """Which language is left out, and how many of the first train samples the refit loses."""

    language: str = "de"
    removed: int = 3
    digits: int = 2
    extra: int = 0


@pytest.fixture(autouse=True)
def pair(monkeypatch: pytest.MonkeyPatch) -> None:
    """Registers the experiment `pair` for one test."""
    registry.all_experiments()
    monkeypatch.setattr(registry, "REGISTERED", dict(registry.REGISTERED))

    def check_settings(asked: StudySettings) -> None:
        if asked.options_of(PairOptions).removed < 1:
            raise TracInError("pair removes at least one sample.")

    def check_data(asked: StudySettings, split: Split) -> None:
        if asked.options_of(PairOptions).language not in split.train.with_format(None)["language"]:
            raise TracInError("pair leaves out a language that is not there.")

    def runs(study: StudyRuns) -> list[Wanted]:
        return [study.of_main(0, Variant(without=study.settings.options_of(PairOptions).language))]

    def refits(study: StudyRuns, seed: int) -> np.ndarray:
        kept = np.ones((2 if seed == 0 else 0, len(study.train)), dtype=np.bool_)
        kept[1:, : study.settings.options_of(PairOptions).removed] = False
        return kept

    @experiment(
        "pair",
        "E10: a pair of fits",
        45,
        runs=runs,
        refits=refits,
        check_settings=check_settings,
        check_data=check_data,
        extra_samples=lambda asked: asked.options_of(PairOptions).extra,
        options=PairOptions,
        addable=("digits",),
    )
    def pair(study: StudyRuns) -> Contents:
        """E10: one run and one refit."""
        losses = study.refits(0).losses(refits(study, 0), 0).mean(1)
        left = len(study.run(runs(study)[0]).train)
        rise = round(float(losses[1] - losses[0]), study.settings.options_of(PairOptions).digits)
        table = pd.DataFrame({"left": [left], "rise": [rise]})
        return Contents("One seed.", (f"Without the language, {left} train samples are left.",), {"fits": table})


def asked(folder: Path, **options: object) -> StudySettings:
    return settings(
        folder, seeds=1, experiments=["pair"], scores=["cosine"], baselines=["random"], area_scores=[], options={"pair": options}
    )


@pytest.fixture
def no_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: object) -> None:
        raise AssertionError("fitted again")

    for module, name in ((runner, "first_fit"), (study_runs, "influence_run"), (fit_jobs, "build")):
        monkeypatch.setattr(module, name, never)
    monkeypatch.setattr("lightning_tracin.trainer.refits.refit", never)


@pytest.mark.slow
def test_its_runs_refits_table_and_findings_are_in_the_study_and_a_second_run_fits_nothing(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    found = quietly(asked(tmp_path, language="ru"))
    write_page(found)
    names = [section.name for section in found.sections]
    assert names.index("changes") < names.index("pair")
    assert not found.missing
    folder = tmp_path / "small"
    assert dict(TracInRun.open(folder / "runs" / "seed0-without-ru-exact").train.counts()) == {"en": 24, "de": 24}
    assert len(list((folder / "refits").iterdir())) == 2
    page = (folder / "results" / "report.html").read_text()
    assert "<h2>E10: a pair of fits</h2>" in page
    assert "<li>Without the language, 48 train samples are left.</li>" in page
    table = pd.read_csv(folder / "results" / "pair-fits.csv")
    assert table["left"].tolist() == [48]
    assert table["rise"].tolist() == [round(table["rise"].item(), 2)]
    recorded = json.loads((folder / "study.json").read_text())
    assert recorded["options"] == {"pair": {"language": "ru", "removed": 3, "digits": 2, "extra": 0}}

    request.getfixturevalue("no_fits")
    before = (folder / "results" / "pair-fits.csv").read_bytes()
    write_page(quietly(asked(tmp_path, language="ru")))
    assert (folder / "results" / "pair-fits.csv").read_bytes() == before
    finer = quietly(asked(tmp_path, language="ru", digits=6))  # declared as addable
    (line,) = (section.tables["fits"]["rise"].item() for section in finer.sections if section.name == "pair")
    assert round(line, 2) == table["rise"].item() != line
    with pytest.raises(TracInError, match=r"holds a study with options\.pair\.removed=3, but the settings now say 4"):
        quietly(asked(tmp_path, language="ru", removed=4))
    quietly(dataclasses.replace(asked(tmp_path), experiments=[], options={}, fit=finer.settings.fit, seeds=1))
    with pytest.raises(TracInError, match=r"holds a study with options\.pair\.language='ru', but the settings now say 'de'"):
        quietly(asked(tmp_path))  # its fits are still there


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"experiments": ["pear"]},
            r"^experiments has 'pear', but should have some of: rails, pair, zero_shot, imbalance, masks, removal, left_out, lds",
        ),
        (
            {"options": {"pear": {}}},
            r"^There is no experiment 'pear'; the known ones are: top, reliance, rails, reinforcement, ch",
        ),
        (
            {"options": {"pair": {"langauge": "de"}}},
            r"pair has no option 'langauge'; it has: language, removed, digits, extra\.$",
        ),
        ({"options": {"lds": {"subsets": 4}}}, r"The experiment lds has no option 'subsets'; it has: none\.$"),
        ({"options": {"lds": {}}}, r"The experiment lds has no options of its own; it has: none\.$"),
        ({"options": {"pair": {"removed": "two"}}}, r"^options\.pair\.removed is 'two', but: Input should be a valid integer"),
        ({"experiments": ["pair"], "options": {"pair": {"removed": 0}}}, r"^pair removes at least one sample\.$"),
    ],
)
def test_what_its_settings_cannot_be_is_said(changes: dict[str, object], message: str) -> None:
    with pytest.raises(TracInError, match=message):
        StudySettings("x", **changes)  # type: ignore[arg-type]


def test_its_check_of_the_data_comes_before_any_fit(tmp_path: Path, no_fits: None) -> None:
    with pytest.raises(TracInError, match=r"^pair leaves out a language that is not there\.$"):
        quietly(asked(tmp_path, language="fr"))
    assert not (tmp_path / "small" / "study.json").exists()


def test_two_experiments_of_one_name_are_refused() -> None:
    with pytest.raises(TracInError, match=r"^Two experiments are called 'pair'; rename one of them\.$"):
        experiment("pair", "Again", 1)(lambda study: None)


def test_help_and_command_line_know_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["study", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "``pair`` (E10: one run and one refit), ``zero_shot`` (E7: fits without a language, and" in said
    path = tmp_path / "study.yaml"
    path.write_text("name: x\nexperiments: [pair]\noptions: {pair: {language: en}}\n")
    assert settings_from(path).options_of(PairOptions) == PairOptions("en")
    given = settings_from(path, '--options.pair={"removed": 5}')
    assert given.options_of(PairOptions).removed == 5
    assert settings_from(path, '--options.pair={"extra": 7}').extra_per_language == 7


def test_a_module_that_is_put_into_the_package_registers_itself(tmp_path: Path) -> None:
    package = Path(experiments.__file__).parents[2]
    copy = shutil.copytree(package, tmp_path / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "studies" / "experiments" / "e11_dropped_in.py").write_text(
        "from lightning_tracin.studies.registry import experiment\n"
        "from lightning_tracin.studies.settings import StudySettings\n"
        "@experiment('dropped_in', 'E11: dropped in', 110)\n"
        "def dropped_in(study): ...\n"
    )
    code = (
        "from lightning_tracin.studies.settings import StudySettings\n"
        "print(StudySettings('x', experiments=['dropped_in']).experiments)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path, env=here(tmp_path)
    )
    assert (done.returncode, done.stdout) == (0, "['dropped_in']\n"), done.stderr


def here(folder: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(folder)}
