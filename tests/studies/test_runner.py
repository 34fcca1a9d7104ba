"""A whole study of names, fitted once for all tests here, against what can be worked out without its code."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import time
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from lightning_tracin import TracInRun
from lightning_tracin.analysis.scores import tie_order
from lightning_tracin.errors import TracInError
from lightning_tracin.studies import fit_jobs, resume, runner, study_runs
from lightning_tracin.studies.datasets import Split, load_cldr
from lightning_tracin.studies.experiments import e6_changes
from lightning_tracin.studies.fits import FitRecipe, Variant, build
from lightning_tracin.studies.page import write_page
from lightning_tracin.studies.runner import Outcome, run_study
from lightning_tracin.trainer.refits import Fit, fit_on, probe_losses, seeded
from tests.support.small import FIT, settings

quietly = partial(run_study, progress=False, say=lambda text: None)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    found = quietly(settings(tmp_path_factory.mktemp("studies")))
    write_page(found)
    return found


def table(outcome: Outcome, name: str) -> pd.DataFrame:
    return pd.read_csv(outcome.folder / "results" / f"{name}.csv")


@pytest.mark.slow
def test_layers_have_shares(outcome: Outcome) -> None:
    whole = table(outcome, "reliance-layers").groupby(["layer", "probe_language"])["value"].sum()
    assert set(whole.index.get_level_values("probe_language")) == set(outcome.run.probes.language)
    np.testing.assert_allclose(whole, 1)


def recipe(outcome: Outcome, **changes: object) -> FitRecipe:
    options = dataclasses.replace(outcome.settings.fit, probes_per_language=16)
    chosen = tuple(json.loads((outcome.folder / "probes.json").read_text())["chosen"])
    return dataclasses.replace(FitRecipe(options, extra=12, chosen=chosen), **changes)


def test_every_experiment_has_its_section_tables_and_figures(outcome: Outcome) -> None:
    names = [section.name for section in outcome.sections]
    assert names == [
        "top",
        "reliance",
        "reinforcement",
        "changes",
        "zero_shot",
        "imbalance",
        "masks",
        "removal",
        "left_out",
        "lds",
    ]
    for section in outcome.sections:
        assert section.findings, section.name
        for name, content in section.tables.items():
            assert len(table(outcome, f"{section.name}-{name}")) == len(content) > 0
        for name in section.figures:
            assert (outcome.folder / "results" / f"{section.name}-{name}.png").read_bytes().startswith(b"\x89PNG")


def test_probes_are_right_under_both_seeds_and_parallel(outcome: Outcome) -> None:
    probes = outcome.run.probes
    assert probes.counts() == {"en": 5, "de": 5, "ru": 5}
    by_language = pd.Series(probes.item).groupby(list(probes.language)).apply(frozenset)
    assert set(by_language) == {frozenset(probes.item)}
    for seed in (0, 1):
        fitted = whole_fit(outcome, seed)
        predicted = np.concatenate([one.numpy() for one in fitted.trainer.predict(fitted.module, fitted.probes) or ()])
        names = fitted.probes.dataset.features["label"].names  # type: ignore[attr-defined]
        assert [names[one] for one in predicted] == list(probes.label)


def whole_fit(outcome: Outcome, seed: int, members: np.ndarray | None = None) -> Fit:
    with seeded(seed):
        fit = build(recipe(outcome))
        fit_on(fit, np.ones(72, dtype=np.bool_) if members is None else members, seed)
    return fit


def test_shares_are_those_of_the_run_averaged_over_seeds(outcome: Outcome) -> None:
    runs = [TracInRun.open(outcome.folder / "runs" / f"seed{seed}-exact") for seed in (0, 1)]
    found = table(outcome, "reliance-shares")
    for line in found.to_dict("records"):
        each = []
        for run in runs:
            scores = run.influence("cosine").to_numpy() * (1 if line["sign"] == "positive" else -1)
            mine = [i for i, language in enumerate(run.probes.language) if language == line["probe_language"]]
            tops = [np.argsort(-scores[:, i], kind="stable")[:5] for i in mine]
            each.append(np.mean([[run.train.language[j] == line["train_language"] for j in top] for top in tops]))
        assert line["value"] == pytest.approx(np.mean(each))
        assert line["error"] == pytest.approx(stats.sem(each))
        assert line["null"] == pytest.approx(1 / 3)


def test_removal_takes_away_what_stands_first_for_the_probes_of_a_label(outcome: Outcome) -> None:
    run = outcome.run
    scores = run.influence("cosine").to_numpy()
    labels = np.asarray(run.probes.label)
    base, now = np.exp(-probe_losses(whole_fit(outcome, 0)).numpy()), np.zeros(15)
    for label in set(labels):
        kept = np.ones(72, dtype=np.bool_)
        kept[np.lexsort((tie_order(np.arange(72)), -scores[:, labels == label].sum(1)))[:4]] = False  # some names are equal
        now[labels == label] = np.exp(-probe_losses(whole_fit(outcome, 0, kept)).numpy())[labels == label]
    items = pd.Series(1 - now / base).groupby(list(run.probes.item)).mean()
    line = table(outcome, "removal-curve").query("removed == 'cosine, proponents' and k == 4").iloc[0]
    assert line["drop"] == pytest.approx(items.mean(), rel=1e-5)
    assert line["units"] == len(items) == 5
    assert set(table(outcome, "removal-curve")["removed"]) == {"cosine, proponents", "cosine, opponents"}
    tests = table(outcome, "removal-curve").sort_values("p", ignore_index=True)
    steps = tests["p"] * len(tests) / np.arange(1, len(tests) + 1)  # Benjamini and Hochberg's, written out
    np.testing.assert_allclose(tests["p_adjusted"], np.minimum.accumulate(steps[::-1])[::-1].clip(upper=1))
    areas = table(outcome, "removal-areas").set_index("removed")
    assert set(areas.index) == {"cosine, proponents", "cosine, opponents", "same label, proponents", "random samples"}
    assert areas.loc["cosine, proponents", "area"] == pytest.approx(0.5 * 4 / 72 * (now - base).mean(), rel=1e-4)


def test_leaving_a_language_out_changes_losses_by_what_fits_of_ones_own_say(outcome: Outcome) -> None:
    kept = np.asarray([language != "de" for language in outcome.run.train.language])
    mine = np.asarray(outcome.run.probes.language) == "ru"
    changes = [
        (probe_losses(whole_fit(outcome, seed, kept)) - probe_losses(whole_fit(outcome, seed))).numpy()[mine].mean()
        for seed in (0, 1)
    ]
    line = table(outcome, "left_out-changes").query("probe_language == 'ru' and train_language == 'de'").iloc[0]
    assert line["change"] == pytest.approx(np.mean(changes), rel=1e-4)
    assert line["error"] == pytest.approx(stats.sem(changes), rel=1e-4)


def test_variants_have_the_train_samples_that_they_say(outcome: Outcome) -> None:
    def counts(name: str) -> dict[str, int]:
        return dict(TracInRun.open(outcome.folder / "runs" / name).train.counts())

    assert counts("seed0-without-de-exact") == {"en": 24, "ru": 24}
    assert counts("seed0-ru+50-exact") == {"en": 24, "de": 24, "ru": 36}
    more, whole = (TracInRun.open(outcome.folder / "runs" / f"seed0{name}-exact") for name in ("-ru+50", ""))
    assert more.train.text[:72] == whole.train.text
    assert more.probes.text == whole.probes.text
    assert not set(more.train.item[72:]) & {*whole.train.item, *whole.probes.item}
    imbalance = table(outcome, "imbalance-imbalance").query("seed == 0")
    # Whole items are in three languages, so they are shuffled within items; with samples of `ru` alone, within labels.
    assert imbalance["chance"].tolist() == pytest.approx([24 / 72, chance_within_labels(more)])


def chance_within_labels(run: TracInRun, k: int = 5) -> float:
    """The share of `ru` in the top k of its probes if each sample's language were drawn among the samples of its label."""
    label, language = np.asarray(run.train.label), np.asarray(run.train.language)
    part = {name: float((language[label == name] == "ru").mean()) for name in set(label)}
    scores = run.influence("cosine").to_numpy()[:, np.asarray(run.probes.language) == "ru"]
    top = [np.lexsort((tie_order(np.arange(len(label))), -column))[:k] for column in scores.T]
    return float(np.mean([[part[label[index]] for index in each] for each in top]))


def test_what_is_done_is_not_done_again(outcome: Outcome, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: object) -> None:
        raise AssertionError("fitted again")

    before = {path: path.read_bytes() for path in (outcome.folder / "results").iterdir()}
    for module, name in ((runner, "first_fit"), (study_runs, "influence_run"), (fit_jobs, "build")):
        monkeypatch.setattr(module, name, never)
    monkeypatch.setattr("lightning_tracin.trainer.refits.refit", never)
    again = quietly(outcome.settings)
    write_page(again)
    assert {path: path.read_bytes() for path in (outcome.folder / "results").iterdir()} == before


def test_what_is_missing_is_done_again_with_the_same_outcome(outcome: Outcome) -> None:
    before = {path: path.read_bytes() for path in (outcome.folder / "results").glob("*.csv")}
    (outcome.folder / "runs" / "seed1-exact.done").unlink()
    (outcome.folder / "runs" / "seed1-exact" / "run.json").unlink()
    refit = min((outcome.folder / "refits").iterdir())
    stored = refit.read_bytes()
    refit.unlink()
    write_page(quietly(outcome.settings))
    assert {path: path.read_bytes() for path in (outcome.folder / "results").glob("*.csv")} == before
    assert refit.read_bytes() == stored


@pytest.mark.long
@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are started by fork")
def test_a_study_killed_in_its_fits_ends_with_the_same_tables(tmp_path: Path) -> None:
    part = {"experiments": ["left_out"], "scores": ["cosine"], "baselines": ["random"], "area_scores": []}
    whole, killed = (tmp_path / name for name in ("whole", "killed"))
    for folder in (whole, killed):
        folder.mkdir()
    write_page(quietly(settings(whole, **part)))
    for left, count in (("runs/*/snapshots/*/snapshot.json", 2), ("refits/*", 1), ("refits/*", 3)):
        process = multiprocessing.get_context("fork").Process(target=quietly, args=(settings(killed, **part),))
        process.start()
        while process.is_alive() and len(list((killed / "small").glob(left))) < count:
            time.sleep(0.01)
        assert process.is_alive(), f"it ended before there were {count} of {left}"
        process.kill()
        process.join()
    write_page(quietly(settings(killed, **part)))
    ended, uninterrupted = (
        {path.name: path.read_bytes() for path in (folder / "small" / "results").glob("*.csv")} for folder in (killed, whole)
    )
    assert len(uninterrupted) > 5
    assert ended == uninterrupted


def test_fewer_fits_may_be_attributed_than_refits_are_averaged_over(tmp_path: Path) -> None:
    followed = "factored Adam dot product x learning rate"
    part = {"experiments": ["left_out"], "scores": ["cosine", followed], "baselines": ["random"], "area_scores": []}
    found = quietly(settings(tmp_path, influence_seeds=1, **part))
    assert {path.name.partition("-")[0] for path in (found.folder / "runs").iterdir()} == {"seed0"}
    (section,) = (one for one in found.sections if one.name == "left_out")
    assert "2 seed(s)" in section.setting
    assert "Influence is that of 1 seed(s)." in section.setting
    scores = section.tables["agreement"].query("score == 'cosine' and measure == 'sum'")
    assert np.isfinite(scores["others"]).all()
    (said,) = (finding for finding in section.findings if finding.startswith("Calibration"))
    line = section.tables["agreement"].query("score == @followed and measure == 'sum' and left_out == 'one'").iloc[0]
    first = TracInRun.open(found.folder / "runs" / "seed0-adam-factored").snapshots[0]
    slope = line["slope"] * 72 * first.visits / first.steps  # a step takes the mean over so many visits
    assert f"predicted sum: {followed} {slope:.2f} [" in said
    assert "cosine" not in said


def test_refits_are_predicted_where_the_steps_are_known(tmp_path: Path) -> None:
    followed = "compensated Adam dot product"
    part = {"experiments": ["left_out"], "scores": ["cosine", followed], "baselines": ["random"], "area_scores": []}
    found = quietly(settings(tmp_path, **part))
    (section,) = (one for one in found.sections if one.name == "left_out")
    each = [TracInRun.open(found.folder / "runs" / f"seed{seed}-adam-projected").predicted_need() for seed in range(2)]
    line = section.tables["agreement"].query("score == 'predicted need' and measure == 'nats' and left_out == 'one'").iloc[0]
    keys = ["probe_language", "train_language"]
    changes = section.tables["changes"].query("left_out == 'one'").rename(columns={"without": "train_language"})
    together = pd.concat(each).groupby(keys)["nats"].mean().reset_index().merge(changes, on=keys)
    others = together[together["probe_language"] != together["train_language"]]
    assert len(others) == 6
    assert line["others"] == pytest.approx(np.corrcoef(others["nats"], others["change"])[0, 1], abs=1e-6)
    (said,) = (finding for finding in section.findings if finding.startswith("Predicted need"))
    assert f"of other languages is {others['nats'].mean():+.3f} nats on average, and the measured change" in said
    assert any("nats of measured change" in finding and "predicted need" in finding for finding in section.findings)


def test_a_study_with_other_settings_is_not_mixed_with_it(outcome: Outcome) -> None:
    output = str(outcome.folder.parent)
    with pytest.raises(TracInError, match=r"small holds a study with seeds=2, but the settings now say 1: give the study a"):
        quietly(settings(Path(output), seeds=1))
    with pytest.raises(TracInError, match=r"holds a study with fit\.epochs=3, but the settings now say 4"):
        quietly(settings(Path(output), fit=dataclasses.replace(outcome.settings.fit, epochs=4)))


def test_a_study_is_not_taken_up_on_other_samples(outcome: Outcome) -> None:
    with pytest.raises(TracInError, match=r"small holds a study with other samples than these"):
        resume.require_same_data(Split(*[load_cldr(["en"]).dataset] * 3), outcome.folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"top_k": 73, "experiments": []}, r"top_k=73 is more than all train samples \(72\)"),
        ({"top_k": 49, "experiments": ["zero_shot"]}, r"top_k=49 is more than the train samples without 'de' \(48\)"),
        ({"experiments": ["zero_shot"], "zero_shot": ["fr"]}, r"zero_shot has 'fr', which is not both trained on \(en, de, ru\)"),
        (
            {"experiments": ["left_out"], "fit": dataclasses.replace(FIT, train_languages=["en", "de"])},
            r"left_out compares tables of three languages or more, but 2 are trained on and 2 probed",
        ),
        ({"ks": [5, 72]}, r"ks ends with 72, but there are 72 train samples"),
    ],
)
def test_more_than_there_are_train_samples_is_said_before_a_fit(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    if "fit" in changes:
        changes = {**changes, "fit": dataclasses.replace(changes["fit"], data_dir=str(tmp_path))}  # type: ignore[type-var]
    with pytest.raises(TracInError, match=message):
        quietly(settings(tmp_path, **changes))
    assert not (tmp_path / "small" / "study.json").exists()  # so that it may be corrected


def test_too_few_right_probes_are_an_error(tmp_path: Path) -> None:
    fit = dataclasses.replace(FIT, data_dir=str(tmp_path), epochs=1, learning_rate=1e-9)
    thin = settings(tmp_path, seeds=1, candidates_per_language=5, experiments=[], fit=fit)
    with pytest.raises(
        TracInError,
        match=r"All 1 fits classify only \d of 5 candidates of language 'en' correctly in every language, but probes_p",
    ):
        quietly(thin)


def test_a_fit_may_stop_after_some_epochs_of_its_schedule(outcome: Outcome) -> None:
    with seeded(0):
        fit = build(recipe(outcome, stop_after=1))
        fit_on(fit, np.ones(72, dtype=np.bool_), 0)
    assert fit.trainer.current_epoch == 1
    assert fit.trainer.estimated_stepping_batches == 18  # three epochs of six batches
    rate = fit.trainer.optimizers[0].param_groups[0]["lr"]
    assert 0 < rate < 1e-2


def test_validation_changes_nothing_of_a_fit(outcome: Outcome) -> None:
    options = dataclasses.replace(recipe(outcome).options, dropout=0.3)
    fitted = []
    for patience in (None, 10):
        with seeded(0):
            fit = build(recipe(outcome, options=options, patience=patience))
            fit_on(fit, np.ones(72, dtype=np.bool_), 0)
        fitted.append(fit.module.state_dict())
    for name, tensor in fitted[0].items():
        assert torch.equal(tensor, fitted[1][name]), name


def test_what_the_probes_are_chosen_by_may_change_until_they_are(tmp_path: Path) -> None:
    fit = dataclasses.replace(FIT, data_dir=str(tmp_path), learning_rate=1e-9)
    thin = settings(
        tmp_path, seeds=1, candidates_per_language=5, experiments=[], baselines=["random"], scores=["cosine"], fit=fit
    )
    with pytest.raises(TracInError, match="set correct_probes to false"):
        quietly(thin)
    found = quietly(dataclasses.replace(thin, correct_probes=False, candidates_per_language=6))
    assert found.run.probes.counts() == {"en": 5, "de": 5, "ru": 5}
    with pytest.raises(TracInError, match="holds a study with candidates_per_language=6, but the settings now say 7"):
        quietly(dataclasses.replace(thin, correct_probes=False, candidates_per_language=7))
    with pytest.raises(TracInError, match="holds a study whose tables by layer and variants were made with 'cosine'"):
        quietly(dataclasses.replace(thin, correct_probes=False, candidates_per_language=6, scores=["relatif", "cosine"]))


def test_seeds_that_stop_at_different_epochs_are_all_counted() -> None:
    rows = [("en", "en", 0, after, -0.1, 0.01, seed) for seed, after in enumerate((2, 3, 4))]
    columns = ["probe_language", "train_language", "before", "after", "beyond_null", "p_adjusted", "seed"]
    (said,) = e6_changes.seeds_that_agree(pd.DataFrame(rows, columns=columns))
    assert said == "en: the own-language share falls, beyond chance, in 3 of 3 seeds, significantly in 3."


def test_a_fit_stops_early_where_the_test_samples_say_so(outcome: Outcome) -> None:
    options = dataclasses.replace(recipe(outcome).options, epochs=30, learning_rate=0.5)
    with seeded(0):
        fit = build(recipe(outcome, options=options, patience=1))
        fit_on(fit, np.ones(72, dtype=np.bool_), 0)
    assert fit.trainer.current_epoch < 30


def test_more_of_a_language_than_there_is_is_an_error(outcome: Outcome) -> None:
    with pytest.raises(TracInError, match=r"100 % more 'ru' are 24 samples, but only 12 are set aside; add fewer"):
        build(recipe(outcome, variant=Variant(more="ru", per_cent=100)))


def test_the_page_shows_texts_escaped_and_markdown_none(outcome: Outcome) -> None:
    html, markdown = ((outcome.folder / "results" / f"report.{kind}").read_text() for kind in ("html", "md"))
    texts = table(outcome, "top-texts")
    assert texts["text"].iloc[0] in html
    assert "top-texts.csv" in html
    assert "probe_text" not in markdown
    for section in outcome.sections:
        assert f"## {section.title}" in markdown
        assert f"<h2>{section.title}</h2>" in html
