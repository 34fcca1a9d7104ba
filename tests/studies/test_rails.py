"""Rails of a tiny study: languages without a shared word, and languages that are one."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lightning_tracin import TracInRun
from lightning_tracin.errors import TracInError
from lightning_tracin.studies.experiments.rails import findings
from lightning_tracin.studies.page import write_page
from lightning_tracin.studies.runner import Outcome, run_study
from tests.support.small import FIT, settings

quietly = partial(run_study, progress=False, say=lambda text: None)
#: Every probe has as many train samples of its label as it has in its own language, times three languages.
SMALL = {"experiments": ["rails"], "scores": ["cosine"], "seeds": 1, "top_k": 12, "baselines": ["random"]}


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    folder = tmp_path_factory.mktemp("studies")
    asked = settings(folder, **SMALL)
    found = quietly(dataclasses.replace(asked, fit=dataclasses.replace(asked.fit, vocabulary_size=120)))
    write_page(found)
    return found


def rails_of(outcome: Outcome) -> pd.DataFrame:
    return pd.read_csv(outcome.folder / "results" / "rails-rails.csv")


def test_rails_are_the_own_shares_of_fits_on_clones(outcome: Outcome) -> None:
    found = rails_of(outcome).set_index(["data", "snapshot", "probe_language"])
    assert set(found.index.get_level_values(0)) == {"own", "p = 0", "p = 1"}
    for data, name in [("own", "seed0-exact"), ("p = 0", "seed0-shared0-exact")]:  # at p = 1 copies tie
        run = TracInRun.open(outcome.folder / "runs" / name)
        assert run.record.options.preconditioner is None  # plain cosine, although the optimizer is AdamW
        languages = np.asarray(run.train.language)
        for snapshot in range(len(run.snapshots)):
            scores = run.influence("cosine", snapshots=[snapshot]).to_numpy()
            top = languages[np.argsort(-scores, axis=0, kind="stable")[:12]]
            for language in ("de", "en", "ru"):
                mine = np.asarray(run.probes.language) == language
                line = found.loc[(data, snapshot, language)]
                assert line["own"] == pytest.approx((top[:, mine] == language).mean())
                assert line["cross_lingual"] == pytest.approx(1 - line["own"])
                assert line["null"] == pytest.approx(2 / 3)


def test_the_fits_are_on_clones(outcome: Outcome) -> None:
    own, apart, one = (
        TracInRun.open(outcome.folder / "runs" / f"seed0{name}-exact").train for name in ("", "-shared0", "-shared1")
    )
    assert (apart.language, apart.label, one.label) == (own.language, own.label, own.label)
    words = {language: set() for language in own.language}
    for language, text in zip(apart.language, apart.text, strict=True):
        words[language] |= set(text.split())
    assert not words["de"] & words["en"]
    assert not words["de"] & words["ru"]
    assert len(set(one.text)) == len(set(one.item)) == 24


def test_languages_that_are_one_share_more_than_languages_without_a_word(outcome: Outcome) -> None:
    last = rails_of(outcome).query("snapshot == 2").groupby("data")["cross_lingual"].mean()
    assert last["p = 1"] == pytest.approx(2 / 3, abs=0.01)  # translations are copies, so that each of three has its third
    assert last["p = 0"] < last["p = 1"] - 0.1


def test_the_page_says_it_and_draws_it(outcome: Outcome) -> None:
    section = next(section for section in outcome.sections if section.name == "rails")
    last = rails_of(outcome).query("snapshot == 2").groupby("data")["cross_lingual"].mean()
    assert f"shared no word it would be {last['p = 0']:.2f}" in section.findings[0]
    assert f"all were one language {last['p = 1']:.2f}" in section.findings[0]
    panels = {panel.get_title(): panel for panel in section.figures["curves"].axes}
    dashed = {name: [line for line in panel.lines if line.get_linestyle() in ("--", "-.")] for name, panel in panels.items()}
    assert [len(lines) for lines in dashed.values()] == [2, 2, 2]
    np.testing.assert_allclose(
        dashed["German"][0].get_ydata(), rails_of(outcome).query("data == 'p = 0' and probe_language == 'de'")["own"], rtol=1e-6
    )


def test_a_language_below_the_rail_is_named() -> None:
    rows = [("own", "de", 0.3), ("p = 0", "de", 0.4), ("p = 1", "de", 0.6), ("own", "en", 0.5), ("p = 0", "en", 0.4)]
    table = pd.DataFrame([*rows, ("p = 1", "en", 0.6)], columns=["data", "probe_language", "cross_lingual"]).assign(snapshot=0)
    said = list(findings(table))
    assert said[0].startswith("At the last snapshot, 0.40 of the top comes from other languages")
    assert said[1:] == ["For de it is not above what it would be without any shared word."]


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"model": "xlm-roberta-base"}, "fit.model='xlm-roberta-base'"), ({"pretraining_epochs": 1}, "epochs=1")],
)
def test_a_pretrained_model_does_not_know_the_words(tmp_path: Path, changes: dict[str, object], named: str) -> None:
    with pytest.raises(TracInError, match=f"does not know, but .*{named}: use fit.model='small'"):
        settings(tmp_path, **SMALL, fit=dataclasses.replace(FIT, **changes))  # type: ignore[arg-type]
