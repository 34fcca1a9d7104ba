"""The experiments on one run: a constructed run whose findings are known, and a real one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl

from lightning_tracin import TracInCallback, TracInError, TracInRun
from lightning_tracin.analysis.baselines import representation_similarity, without_ties
from lightning_tracin.analysis.reinforcement import ALL
from lightning_tracin.analysis.reliance import reliance_table
from lightning_tracin.config import View
from lightning_tracin.reporting.findings import findings_of_reinforcement, findings_of_reliance, study_of
from lightning_tracin.storage.sample_table import SampleTable
from tests.support.fits import Classifier, loaders, trainer


class ConstructedRun:
    """Ten items in two languages; English probes take English first, later German; German probes always German."""

    def __init__(self, items: bool = True, labels: bool = True, snapshots: int = 2) -> None:
        count, probes = 10, 8
        item = tuple(str(i) if items else None for i in range(count)) * 2
        text = tuple(f"word{i}" for i in range(count)) * 2
        label = tuple(str(i % 2) if labels else None for i in range(count)) * 2
        self.train = SampleTable(("en",) * count + ("de",) * count, item, text, label)
        nothing = (None,) * 2 * probes
        self.probes = SampleTable(("en",) * probes + ("de",) * probes, nothing, ("word1",) * 2 * probes, ("1",) * 2 * probes)
        self.snapshots = tuple(SimpleNamespace(index=i, epoch=i, step=5 * (i + 1)) for i in range(snapshots))

    def influence(self, similarity: str, weighting: str, snapshots: Any = None) -> Any:
        total = np.zeros((20, 16))
        for index in [snapshot.index for snapshot in self.snapshots] if snapshots is None else snapshots:
            scores = np.random.default_rng(index).uniform(0, 1e-3, (20, 16))
            scores[:10, :8] += 1 if index == 0 else 0.1
            scores[10:, :8] += 0.5
            scores[10:, 8:] += 1
            scores[9, :8] += np.arange(8) * (index == 1)  # at the end, one English sample stays with most probes
            total += scores
        return SimpleNamespace(to_numpy=lambda: total)


def test_findings_of_a_constructed_run() -> None:
    study = study_of(ConstructedRun(), View(top_k=10))  # type: ignore[arg-type]
    assert study.missing == ()
    assert study.changes is not None
    line = study.changes.query("probe_language == 'en' and train_language == 'en'").iloc[0]
    assert (line["mean_before"], line["mean_after"]) == (pytest.approx(1), pytest.approx(0.0875))
    text = "\n".join(study.findings)
    assert (
        "en: the own-language share of the top 10 falls, beyond chance, from 1.00 at epoch 0 (step 5; chance 0.50) to 0.09 at "
        "epoch 1 (step 10; chance 0.50), -0.91 beyond chance, p = "
    ) in text
    assert "de: the own-language share of the top 10 does not change significantly beyond chance, going from 1.00" in text
    assert "(95 % interval 1.00 to 1.00; chance 0.50, lift 2.00, 8 probes)" in text
    assert "Choenni" not in text  # this is not the set-up of their study
    assert set(study.compared["score"]) == {"influence", "random", "BM25", "same label", "BM25 x same label"}
    assert (study.compared.groupby(["score", "probe_language"])["value"].sum().round(9) == 1).all()
    assert study.reinforcement is not None


def test_findings_are_the_same_whatever_the_probes_call_their_language() -> None:
    alike, other = ConstructedRun(), ConstructedRun()
    names = {"en": "english", "de": "deu"}
    other.probes = dataclasses.replace(other.probes, language=tuple(names[one] for one in other.probes.language))
    expected, found = (study_of(run, View(top_k=10)).findings for run in (alike, other))  # type: ignore[arg-type]
    assert sum("of the strongest 10 are in its own language" in one for one in found) == 2
    back = [one.replace("english:", "en:").replace("deu:", "de:") for one in found]
    plain = [one.split("interval")[0].split(", p = ")[0] for one in back]  # without what bootstraps draw in the names' order
    assert sorted(plain) == sorted(one.split("interval")[0].split(", p = ")[0] for one in expected)


def test_a_language_is_drawn_on_only_where_the_whole_interval_says_so() -> None:
    columns = ["probe_language", "train_language", "value", "null", "lift", "low", "high", "probes"]
    lines = [
        ("fr", "fr", 0.30, 0.2, 1.50, 0.25, 0.35, 9),
        ("fr", "de", 0.40, 0.2, 1.30, 0.36, 0.44, 9),  # other probe languages: 0.40 / 1.30 = 0.31
        ("fr", "en", 0.30, 0.2, 1.02, 0.28, 0.32, 9),  # above chance, but others draw on it as much: 0.29
        ("fr", "ru", 0.24, 0.2, 1.60, 0.18, 0.30, 9),  # more than the others, but chance may do it
    ]
    named = [
        said for said in findings_of_reliance(pd.DataFrame(lines, columns=columns), 10) if "of the average probe language" in said
    ]
    assert named == [
        "fr: more of the strongest 10 than by chance, and than of the average probe language, are in de (0.40, 95 % "
        "interval 0.36 to 0.44, chance 0.20, lift 1.30). Each interval is for a single cell, without correction for the 3 "
        "comparisons."
    ]


def test_translations_that_must_be_there_are_no_finding() -> None:
    study = study_of(ConstructedRun(), View(top_k=15))  # type: ignore[arg-type]
    (line,) = [finding for finding in study.findings if finding.startswith("en: of the samples in other languages")]
    assert "in its top 15, 1.00 reinforce: they are translations of own-language samples there" in line
    assert line.endswith("it is 1.00 by chance: no different from chance.")  # all ten English ones stand there


@pytest.mark.parametrize(
    ("low", "high", "chance", "said"),
    [
        (0.3, 0.5, 0.2, "more than by chance."),
        (0.3, 0.5, 0.6, "less than by chance."),
        (0.3, 0.5, 0.4, "no different from chance."),
    ],
)
def test_reinforcing_is_said_against_its_chance(low: float, high: float, chance: float, said: str) -> None:
    line = {"probe_language": "en", "train_language": ALL, "reinforcing": 0.4, "low": low, "high": high, "chance": chance}
    (found,) = findings_of_reinforcement(pd.DataFrame([{**line, "probes": 8}]), 10)
    assert found.endswith(said)


def test_representations_are_compared_where_the_model_gives_them() -> None:
    generator = np.random.default_rng(0)
    run: Any = ConstructedRun()
    study = study_of(run, View(top_k=10), lambda: (generator.standard_normal((20, 4)), generator.standard_normal((16, 4))))
    assert {"representations", "representations x same label"} < set(study.compared["score"])

    def none() -> Any:
        raise TracInError("no hidden states")

    assert study_of(run, View(top_k=10), none).missing == ("representations: no hidden states",)


def test_what_a_run_does_not_allow_is_said() -> None:
    study = study_of(ConstructedRun(items=False, labels=False, snapshots=1), View(top_k=10))  # type: ignore[arg-type]
    assert study.changes is None
    assert study.reinforcement is None
    assert [one.split(":")[0] for one in study.missing] == [
        "same label",
        "changes between snapshots",
        "reinforcing and complementary samples",
    ]


def test_language_means_have_no_ranks() -> None:
    with pytest.raises(TracInError, match="language means have no ranks"):
        study_of(ConstructedRun(), View(measure="mean"))  # type: ignore[arg-type]


def test_a_fit_writes_its_study(tmp_path: Path) -> None:
    pl.seed_everything(7)
    trainer(tmp_path, [TracInCallback(tmp_path / "run", top_k=5)]).fit(Classifier(), *loaders())
    folder = tmp_path / "run" / "results"
    changes, compared = (pd.read_csv(folder / f"{name}.csv") for name in ("changes", "compared"))
    assert len(changes) == 3 * 3 * 3
    assert not (folder / "reinforcement.csv").exists()
    page = (folder / "report.html").read_text()
    assert "<h2>Findings</h2>" in page
    assert "Not computed: BM25: The train samples have no text" in page
    assert {"representations", "random"} < set(compared["score"])
    run = TracInRun.open(tmp_path / "run")
    kept = reliance_table(
        without_ties(representation_similarity(*run.representations())), run.train.language, run.probes.language, 5
    )
    of_them = compared[compared["score"] == "representations"]
    np.testing.assert_allclose(of_them["value"], kept["value"], atol=0.07)  # kept in single precision: ranks may differ
    own = compared.query("score == 'influence' and probe_language == 'en' and train_language == 'en'").iloc[0]
    assert f"en: {own['value']:.2f} of the strongest 5 are in its own language" in page
    assert f"in other languages {1 - own['value']:.2f}, by chance {1 - own['null']:.2f}." in page
