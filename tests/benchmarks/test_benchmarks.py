"""The benchmarks measure what they say: same scores on both sides, honest statistics, readable files."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from benchmarks import __main__ as command_line
from benchmarks import (
    measure_account,
    memory,
    ours,
    peer_captum,
    peer_dattri_llm,
    peer_kronfluence,
    registry,
    render,
    report,
    timing,
)
from benchmarks.account_fit import BATCH_SIZE, LANGUAGES, accounted_fit, fit, languages, mean_loss, measured_fall, planted
from benchmarks.compare import compare, largest_difference
from benchmarks.contenders import Contender
from benchmarks.measure_check import TrainingStep, no_checks
from benchmarks.registry import Context
from benchmarks.report import Comparison, Report, Result
from benchmarks.scopes import everything, inner_linear_weights, linear_layers
from benchmarks.timing import Pairs, Spread, interleaved, spread
from benchmarks.workloads import Sentences, Workload, causal_lm, reference, xlm_r
from lightning_tracin.attribution import step_loss
from lightning_tracin.attribution.checks import checked_loss
from tests.support.oracles import gradient_loop

GLANCE = Context(repetitions=1)


@pytest.fixture(scope="module")
def small() -> Workload:
    return xlm_r("tiny", 6, 3, layers=2, width=32, heads=2, inner=64, vocabulary=300)


def by_loop(workload: Workload, names: frozenset[str]) -> torch.Tensor:
    """The scores by plain autograd on single, unpadded samples."""

    def gradients(samples: Sentences) -> dict[str, torch.Tensor]:
        alone = [next(iter(DataLoader(samples, sampler=[i]))) for i in range(len(samples))]
        return gradient_loop(workload.model, lambda one: workload.loss(workload.model, one), alone, sorted(names))

    train, probes = gradients(workload.train), gradients(workload.probes)
    return sum((train[name] @ probes[name].T for name in names), torch.zeros(())).float()


@pytest.mark.parametrize("scope", [everything, linear_layers])
def test_our_side_scores_the_scope_it_is_given(small, scope):
    assert largest_difference(ours.exact(small, scope), by_loop(small, scope(small.model))) < 1e-4


def test_our_side_on_a_language_model():
    workload = causal_lm().smaller(4, 2)
    names = inner_linear_weights(workload.model)
    assert len(names) == 6 * 4
    assert largest_difference(ours.exact(workload, inner_linear_weights), by_loop(workload, names)) < 1e-4


def test_the_pass_without_checks_is_the_same_pass_and_has_none(small, tmp_path):
    plain, step = ours.job_of(small), TrainingStep(small).eval()
    job = replace(plain, loss=checked_loss(step, plain.train, plain.probes, plain.prepare))
    checked = ours.attributed(small.model, job, everything, tmp_path / "0000-step0")
    with no_checks(), patch.object(step_loss, "reduced", side_effect=AssertionError("the step is watched")):
        unchecked = ours.attributed(small.model, job, everything, tmp_path / "0001-step1")
    assert largest_difference(torch.from_numpy(checked), torch.from_numpy(unchecked)) < 1e-6
    with patch.object(step_loss, "reduced", side_effect=AssertionError("the step is watched")), pytest.raises(AssertionError):
        ours.attributed(small.model, job, everything, tmp_path / "0002-step2")


def test_a_budget_that_cuts_the_probes_changes_no_score(small):
    assert largest_difference(ours.exact(small, memory_budget=1), ours.exact(small)) < 1e-5


@pytest.mark.parametrize(
    "contender",
    [peer_captum.EXACT, peer_dattri_llm.DATTRI_LLM, peer_dattri_llm.FROZEN, peer_kronfluence.KRONFLUENCE],
    ids=lambda contender: contender.distribution,
)
def test_a_peer_gives_the_scores_of_the_loop(small, contender):
    pytest.importorskip(contender.distribution.replace("-", "_"))
    ready = contender.prepare(small)
    truth = by_loop(small, contender.scope(small.model))
    assert largest_difference(contender.scores(ready, 4), truth) < 1e-4


def test_bergson_gives_the_scores_of_the_loop():
    pytest.importorskip("bergson")
    from benchmarks.peer_bergson import BERGSON

    workload = causal_lm().smaller(4, 2)
    assert (
        largest_difference(BERGSON.scores(BERGSON.prepare(workload), 4), by_loop(workload, inner_linear_weights(workload.model)))
        < 1e-4
    )


def test_the_sample_wise_path_of_captum_is_shown_with_its_error(small):
    comparison = compare(GLANCE, small, replace(peer_captum.SAMPLE_WISE, batch_sizes=(4,)))
    assert "of exact (median), rank correlation" in comparison.note
    assert comparison.ratio is not None
    assert not any(hasattr(parameter, "sample_grad") for parameter in small.model.parameters())


@pytest.fixture(scope="module")
def learnt() -> Workload:
    return planted(train=64, probes=10)


def test_what_this_package_says_of_a_fit_adds_up_to_the_fall(learnt):
    sums = measure_account.ours(learnt)
    _, module = fit(learnt, measure_account.EPOCHS_OF_PEERS, rate=measure_account.RATE)
    assert set(sums.by_language) == set(LANGUAGES)
    assert sums.fall == pytest.approx(measured_fall(module.model, learnt), abs=1e-5)
    assert sum(sums.by_language.values()) == pytest.approx(sums.fall, rel=0.1)


def test_the_callback_of_dattri_llm_gives_inner_products_of_single_gradients(learnt):
    """In the first step: the learning rate times the product of each sample's gradient with that of the probes."""
    pytest.importorskip("dattri_llm")
    workload, rate = learnt.smaller(BATCH_SIZE, 10), 1e-3
    found = peer_dattri_llm.in_run(workload, 1, rate).by_language
    assert found == pytest.approx(first_order(workload, rate, dict(workload.model.named_parameters())), rel=1e-3)


def test_the_callback_of_bergson_keeps_gradients_as_they_are_in_the_first_step(learnt):
    """Its products are with the gradient after the fit, which a tiny learning rate leaves where it was."""
    pytest.importorskip("bergson")
    from benchmarks.peer_bergson import in_run

    workload = learnt.smaller(BATCH_SIZE, 10)
    weights = {name: one for name, one in workload.model.named_parameters() if name in inner_linear_weights(workload.model)}
    assert in_run(workload, 1, 1e-9).by_language == pytest.approx(first_order(workload, 1.0, weights), rel=1e-3)


def first_order(workload: Workload, rate: float, weights: dict[str, torch.Tensor]) -> dict[str, float]:
    """Language -> rate times the product of its part of the batch's mean gradient with the probes' mean gradient."""
    mine = list(weights.values())
    of_probes = torch.autograd.grad(mean_loss(workload.model, workload), mine, allow_unused=True)
    found = dict.fromkeys(LANGUAGES, 0.0)
    for index, language in enumerate(languages(len(workload.train))):
        loss = workload.loss(workload.model, next(iter(DataLoader(workload.train, sampler=[index])))) / len(workload.train)
        gradients = torch.autograd.grad(loss, mine, allow_unused=True)
        found[language] += rate * sum(
            float((one * other).sum()) for one, other in zip(gradients, of_probes, strict=True) if one is not None
        )
    return found


def test_the_parts_of_an_accounted_fit_are_clocked(small):
    took, known = accounted_fit(small, 4, window=2)
    assert known.windows == 2
    assert 0 < known.starting + known.looking + known.ending < took
    assert 0.9 * known.announced <= known.vectors <= known.announced
    assert 0 < known.rows <= known.announced_rows


def contender(scores, **options) -> Contender:
    return Contender("somebody", options.pop("distribution", "torch"), scores, (1,), "as it comes", **options)


def test_a_peer_that_is_not_installed_is_said(small):
    comparison = compare(GLANCE, small, contender(None, distribution="no-such-peer"))
    assert comparison.note.startswith("not installed here")
    assert comparison.ratio is None


def test_a_peer_that_fails_is_said_in_its_own_words(small):
    def fail(workload, batch_size):
        raise NotImplementedError("no embeddings here\nand more")

    assert compare(GLANCE, small, contender(fail)).note == "fails with NotImplementedError: no embeddings here"


def test_a_peer_that_needs_too_much_memory_is_not_run(small):
    comparison = compare(GLANCE, small, contender(None, bytes_needed=lambda workload, batch_size: 2**60))
    assert comparison.note.startswith("not run: it would take about 1073741824 GiB")


def test_other_scores_are_not_timed(small):
    comparison = compare(GLANCE, small, contender(lambda workload, batch_size: 0.5 * ours.exact(workload)))
    assert comparison.note == "not comparable: 0.50 of exact (median), rank correlation 1.00"
    assert comparison.ratio is None


def test_the_fastest_batch_size_is_taken(small):
    def slow_where_small(workload, batch_size):
        import time

        time.sleep(0.2 if batch_size == 1 else 0)
        return ours.exact(workload)

    comparison = compare(GLANCE, small, replace(contender(slow_where_small), batch_sizes=(1, 2)))
    assert comparison.batch_size == 2


def test_pairs_are_taken_in_turn_and_ratios_within_pairs():
    calls: list[str] = []
    pairs = interleaved(lambda: calls.append("ours"), lambda: calls.append("theirs"), repetitions=4)
    assert calls == ["ours", "theirs"] * 4
    assert len(pairs.ours) == len(pairs.theirs) == 4
    assert Pairs((1, 2, 4), (2, 8, 4)).theirs_over_ours == Spread(2, 1, 4, 3)
    assert Pairs((1, 2, 4), (2, 8, 4)).ours_over_theirs == Spread(0.5, 0.25, 1, 3)


def test_patience_ends_a_comparison_after_three_pairs():
    assert len(interleaved(lambda: None, lambda: None, repetitions=100, patience=0).ours) == timing.FEWEST


def test_samples_are_padded_to_the_longest_of_their_batch():
    samples = Sentences([torch.tensor([5, 6]), torch.tensor([7, 8, 9])], [torch.tensor(0), torch.tensor(2)], pad=1)
    batch = next(iter(DataLoader(samples, batch_size=2)))
    assert batch["input_ids"].tolist() == [[5, 6, 1], [7, 8, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert batch["labels"].tolist() == [0, 2]
    assert samples[0]["input_ids"].tolist() == [5, 6]


def test_a_part_of_the_samples_repeats_none():
    samples = Sentences([torch.tensor([i]) for i in range(5)], [torch.tensor(0)] * 5, pad=1)
    assert [tokens.item() for tokens in samples.first(3).tokens] == [0, 1, 3]
    assert [tokens.item() for tokens in samples.first(9).tokens] == [0, 1, 2, 3, 4]


def test_padding_of_a_language_model_has_no_label():
    samples = Sentences([torch.tensor([5, 6]), torch.tensor([7, 8, 9])], [torch.tensor([5, 6]), torch.tensor([7, 8, 9])], pad=0)
    assert next(iter(DataLoader(samples, batch_size=2)))["labels"].tolist() == [[5, 6, -100], [7, 8, 9]]


def test_the_reference_workload_is_the_one_that_targets_are_set_on():
    workload = reference()
    lengths = [len(tokens) for tokens in workload.train.tokens]
    assert (len(workload.train), len(workload.probes)) == (256, 64)
    assert lengths == sorted(lengths)
    assert (min(lengths), max(lengths)) == (8, 48)
    table = workload.model.get_submodule("roberta.embeddings.word_embeddings").weight
    assert table.shape == (30_000, 256)


def test_saved_bytes_counts_each_tensor_once_and_no_parameter():
    layer = nn.Linear(4, 4)
    inputs = torch.ones(2, 4)

    def forward():
        hidden = layer(inputs)  # keeps its input: 32 bytes
        return (hidden.exp() + hidden.tanh()).sum()  # each keeps its output: 2 x 32 bytes

    assert memory.saved_bytes(layer, forward) == 3 * 32


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_peak_memory_sees_what_was_held_and_let_go():
    before = memory.resident("VmRSS")
    held = torch.ones(64 * 2**20)
    assert memory.resident("VmHWM") - before > 200 * 2**20
    del held


def test_every_target_that_can_be_measured_has_a_measurement():
    later = {"means_vs_plain", "projected_vs_plain", "projected_spearman", "projected_top100_overlap"}
    assert set(render.TARGETS) - later <= set(registry.names())


def test_an_unknown_measurement_is_named():
    with pytest.raises(ValueError, match=r"There is no measurement 'speed'; there are .*exact_vs_plain"):
        registry.chosen(["speed"])


@pytest.mark.parametrize(
    ("name", "value", "verdict"),
    [
        ("exact_vs_captum", 12.5, "goal"),
        ("exact_vs_captum", 7.0, "yes"),
        ("exact_vs_captum", 6.9, "no"),
        ("exact_vs_plain", 1.7, "goal"),
        ("exact_vs_plain", 2.4, "yes"),
        ("exact_vs_plain", 2.6, "no"),
    ],
)
def test_a_target_says_whether_it_is_reached(name, value, verdict):
    assert render.TARGETS[name].verdict(value) == verdict


def found() -> Report:
    time = Spread(2.0, 1.5, 2.5, 3)
    return Report(
        results=(Result("exact_vs_plain", 2.25, 2.0, 2.5, 3, "ratio"),),
        comparisons=(
            Comparison("reference", "somebody", "1.2", "a | b", "same, within 1e-06", 8, time, time, spread([1.0])),
            Comparison("reference", "nobody", "", "as it comes", "not installed here"),
        ),
        growth=(report.Growth("probes, 32 to 64", 1.0, 1.5, Spread(1.5, 1.4, 1.6, 3)),),
        notes=("No CUDA device.",),
        machine=report.Machine("2026-11-21", 2, 2, 16.0, "no CUDA device", {"torch": "2.13.0"}),
    )


def test_files_are_read_back_as_they_were(tmp_path):
    report.write(found(), tmp_path)
    assert report.read(tmp_path) == found()
    assert json.loads((tmp_path / "results.json").read_text()) == [
        {"name": "exact_vs_plain", "value": 2.25, "low": 2.0, "high": 2.5, "runs": 3, "unit": "ratio"}
    ]


def test_the_page_holds_every_table():
    page = render.page(found())
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("|")]
    assert ["reference", "somebody (1.2)", "8", "2.00", "2.00", "1.00 (1.00 to 1.00; 1)", "same, within 1e-06"] in rows
    assert ["reference", "nobody (-)", "-", "-", "-", "-", "not installed here"] in rows
    assert ["probes, 32 to 64", "1.00", "1.50", "1.50 (1.40 to 1.60; 3)"] in rows
    assert any(row[0] == "exact_vs_plain" and row[2] == "2.25" and row[-1] == "yes" for row in rows)
    assert "Not measured in this run: exact_vs_dattri_llm" in page
    assert "2 cores, 2 threads" in page


def test_the_page_keeps_what_was_measured_on_other_processors():
    first = replace(found(), machine=replace(found().machine, processor="first"))
    second = Report(
        results=(Result("exact_vs_plain", 1.75, 1.5, 2.0, 3, "ratio"),),
        limits=(report.Limit("exact", 2e9, 1.0, 2.0, 1.5, 3e9, {"forward": 0.5, "products": 0.25}),),
        machine=replace(found().machine, processor="second", date="2026-11-28"),
        elsewhere=report.kept(first, "second"),
    )
    page = render.page(second)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("|")]
    assert ["figure", "second", "first (2026-11-21)"] in rows
    assert ["exact_vs_plain", "1.75", "2.25"] in rows
    assert ["exact", "2", "1.50", "3.0", "1.00", "2.00", "50%"] in rows
    assert ["exact", "0.50", "0.25"] in rows
    assert "Measured on 2026-11-28: second, 2 cores" in page
    again = report.kept(second, "first")  # the first processor is measured again: only the second's figures are kept
    assert [(one.processor, one.results[0].value) for one in again] == [("second", 1.75)]


def test_one_measurement_from_the_command_line(tmp_path):
    command = ["--only", "exact_vs_plain", "--repetitions", "1", "--threads", "1", "--scale", "0.02"]
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *command, "--output", str(tmp_path)], cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "exact pass, probes included" in done.stdout
    (result,) = json.loads((tmp_path / "results.json").read_text())
    assert result["name"] == "exact_vs_plain"
    assert result["low"] == result["value"] == result["high"] > 0


def test_a_measurement_that_fails_is_a_line_and_the_others_are_taken_all_the_same(tmp_path, monkeypatch, capsys):
    def broken(_context: Context) -> Report:
        raise RuntimeError("out of luck")

    found = Report((Result("exact_vs_plain", 2.0, 1.9, 2.1, 3, "ratio"),))
    monkeypatch.setattr(command_line, "chosen", lambda _names: [broken, lambda _context: found])
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--output", str(tmp_path)])
    with pytest.raises(SystemExit) as stopped:
        command_line.main()
    assert stopped.value.code == 1
    assert [one["name"] for one in json.loads((tmp_path / "results.json").read_text())] == ["exact_vs_plain"]
    assert "Failed: broken: RuntimeError: out of luck" in " ".join(capsys.readouterr().out.split())
