"""Projected features equal a projection matrix written out, and estimate inner products of gradients without bias."""

from __future__ import annotations

from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from lightning_tracin.errors import TracInError
from lightning_tracin.gradients import Capture, Dense, Outer, Rows, plan_coverage
from lightning_tracin.gradients.forms import to_dense
from lightning_tracin.gradients.sketch import SCALE, Sketch, energy_shares, share_out, to_half
from tests.gradients.test_exact import Tied
from tests.support.models import padded, ragged_samples, tiny_xlmr
from tests.support.oracles import gradient_loop, written_out


def sketched(model: nn.Module, loss: Any, samples: list[Any], sketch: Sketch, batch_size: int) -> Tensor:
    """Features of all samples: [samples, features]."""
    out = torch.zeros(len(samples), sketch.dim)
    with Capture(model, plan_coverage(model, frozenset(sketch.parts))) as capture:
        for at in range(0, len(samples), batch_size):
            batch = samples[at : at + batch_size]

            def consume(name: str, forms: Any) -> None:
                out[at : at + len(batch), sketch.layout[name]] = sketch.features(name, forms)

            capture.run(lambda: loss(padded(batch)), len(batch), consume)
    return out


def xlmr_case(dim: int) -> tuple[nn.Module, Any, Sketch]:
    model = tiny_xlmr().eval()
    coverage = plan_coverage(model, frozenset(dict(model.named_parameters())))
    return model, lambda batch: model(**batch).loss * len(batch["labels"]), Sketch.plan(coverage, {}, dim)


def tied_case(dim: int) -> tuple[nn.Module, Any, Sketch]:
    model = Tied()
    coverage = plan_coverage(model, frozenset(dict(model.named_parameters())))
    return model, lambda batch: model(batch["input_ids"]), Sketch.plan(coverage, {"words.weight": 1.0}, dim)


@pytest.mark.parametrize("batch_size", [1, 5, 12])
@pytest.mark.parametrize(("case", "dim"), [(xlmr_case, 200), (xlmr_case, 2000), (tied_case, 40), (tied_case, 200)])
def test_features_are_gradients_times_a_matrix_in_any_batches(case: Any, dim: int, batch_size: int) -> None:
    model, loss, sketch = case(dim)
    samples = ragged_samples(12, seed=1)
    gradients = gradient_loop(model, lambda sample: loss(padded([sample])), samples, list(sketch.parts))
    want = torch.cat([gradients[name] @ written_out(sketch, name) for name in sketch.parts], 1)
    got = sketched(model, loss, samples, sketch, batch_size).double()
    assert torch.all((got - want).abs() <= 1e-5 * want.norm(dim=1, keepdim=True)), (got - want).abs().max()


def planned(layer: nn.Module, dim: int, seed: int = 0) -> Sketch:
    names = frozenset(name for name, _ in layer.named_parameters())
    return Sketch.plan(plan_coverage(layer, names), {"weight": 1.0}, dim, seed)


@pytest.mark.parametrize("positions", [1, 4])
def test_factors_compressed_and_written_out_have_the_same_features(positions: int) -> None:
    torch.manual_seed(0)
    sketch = planned(nn.Linear(90, 70, bias=False), 20)
    assert sketch.parts["weight"].left is not None
    left, right = torch.randn(3, positions, 70), torch.randn(3, positions, 90)
    gradients = torch.einsum("nto,nti->noi", left, right).flatten(1)
    want = gradients.double() @ written_out(sketch, "weight")
    for form in (Outer(left, right), Dense(gradients)):
        torch.testing.assert_close(sketch.features("weight", (form,)).double(), want, rtol=1e-4, atol=1e-3)


def sample_of(kind: str, rows: int, columns: int) -> Any:
    if kind == "rows":
        return Rows(torch.tensor([0, 0, 2]), torch.tensor([1, rows - 1, 1]), torch.randn(3, columns), 3, rows)
    left, right = torch.randn(3, 4, rows), torch.randn(3, 4, columns)
    return Outer(left, right) if kind == "outer" else Dense(torch.bmm(left.transpose(1, 2), right).flatten(1))


@pytest.mark.parametrize("tile", [1, 500, 1_000_000])
@pytest.mark.parametrize("kind", ["outer", "dense", "rows"])
@pytest.mark.parametrize(
    ("layer", "dim"),
    [
        (nn.Linear(90, 70, bias=False), 20),
        (nn.Linear(9, 7, bias=False), 63),
        (nn.Linear(9, 7, bias=False), 20),
        (nn.Embedding(80, 16), 30),
    ],
    ids=["compressed", "exact", "hashed", "table"],
)
def test_features_of_scaled_gradients_are_those_of_the_products_written_out(
    layer: nn.Module, dim: int, kind: str, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr("lightning_tracin.gradients.sketch_maps.TILE", tile)
    sketch, shape = planned(layer, dim), next(layer.parameters()).shape
    form, scale = sample_of(kind, *shape), torch.rand(shape) ** 3
    want = (to_dense(form) * scale.flatten()).double() @ written_out(sketch, "weight")
    got = sketch.features("weight", (form, form), scale).double()
    torch.testing.assert_close(got, 2 * want, rtol=1e-4, atol=1e-4 * float(want.abs().max()))


def test_scaled_gradients_in_half_precision_are_projected_in_single() -> None:
    torch.manual_seed(0)
    sketch, left, right = planned(nn.Linear(90, 70, bias=False), 20), torch.randn(3, 4, 70).bfloat16(), torch.randn(3, 4, 90)
    scale = torch.rand(70, 90).bfloat16()
    got = sketch.features("weight", (Outer(left, right.bfloat16()),), scale)
    want = sketch.features("weight", (Outer(left.float(), right.bfloat16().float()),), scale.float())
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, want)


def test_a_head_on_a_table_by_fourier_transforms() -> None:
    torch.manual_seed(0)
    sketch = planned(nn.Embedding(300, 20), 12)
    left, right = torch.randn(2, 3, 300), torch.randn(2, 3, 20)
    part = sketch.parts["weight"]
    assert part.prefers_transforms(left, right)
    want = torch.einsum("nto,nti->noi", left, right).flatten(1).double() @ written_out(sketch, "weight")
    torch.testing.assert_close(part(Outer(left, right)).double(), want, rtol=1e-4, atol=1e-2)


def test_rows_of_a_table_are_the_table_with_these_rows() -> None:
    torch.manual_seed(0)
    sketch = planned(nn.Embedding(50, 8), 30)
    rows = Rows(torch.tensor([0, 0, 1]), torch.tensor([3, 49, 3]), torch.randn(3, 8), 3, 50)
    table = torch.zeros(3, 50, 8)
    table[rows.sample, rows.row] = rows.values
    want = table.flatten(1).double() @ written_out(sketch, "weight")
    torch.testing.assert_close(sketch.features("weight", (rows,)).double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layer", [nn.Linear(90, 70, bias=False), nn.Linear(12, 9, bias=False), nn.Embedding(80, 16)])
@pytest.mark.parametrize("rank", [1, 9])
def test_inner_products_are_right_on_average_and_vary_little(layer: nn.Module, rank: int) -> None:
    torch.manual_seed(0)
    rows, columns = next(layer.parameters()).shape
    left, right = torch.randn(2, rank, rows), torch.randn(2, rank, columns)
    left[1], right[1] = left[0] + left[1], right[0] + right[1]  # so that the two have something in common
    gradients = torch.einsum("nto,nti->noi", left, right).flatten(1)
    want = float(gradients[0] @ gradients[1])
    size = 40
    estimates = []
    for seed in range(200):
        features = planned(layer, size, seed).features("weight", (Dense(gradients),))
        estimates.append(float(features[0] @ features[1]))
    error = torch.tensor(estimates, dtype=torch.float64) - want
    scale = float(gradients[0].norm() * gradients[1].norm())
    assert abs(float(error.mean())) <= 4 * float(error.std()) / 200**0.5
    assert float(error.std()) <= 2 * scale / size**0.5


def test_a_part_as_large_as_its_parameter_is_the_gradient_itself() -> None:
    torch.manual_seed(0)
    gradients = torch.randn(4, 35)
    assert torch.equal(planned(nn.Linear(7, 5, bias=False), 35).features("weight", (Dense(gradients),)), gradients)


def test_the_seed_decides_everything() -> None:
    one, same, other = (planned(nn.Linear(90, 70, bias=False), 20, seed).state() for seed in (1, 1, 2))
    assert safetensors.torch.save(one) == safetensors.torch.save(same)
    assert all(not torch.equal(one[key], other[key]) for key in one if not key.endswith("sizes"))


def test_a_sketch_read_back_gives_the_same_features() -> None:
    model, loss, sketch = xlmr_case(200)
    restored = Sketch.from_state(safetensors.torch.load(safetensors.torch.save(sketch.state())))
    samples = ragged_samples(5, seed=2)
    assert restored.layout == sketch.layout
    assert torch.equal(sketched(model, loss, samples, restored, 5), sketched(model, loss, samples, sketch, 5))


def test_a_damaged_state_is_named() -> None:
    state = planned(nn.Linear(7, 5, bias=False), 9).state()
    del state["weight/offset"]
    with pytest.raises(TracInError, match="projection of 'weight' has no 'offset'"):
        Sketch.from_state(state)


def cosines(one: Tensor, other: Tensor) -> Tensor:
    return (one.double() @ other.double().T / SCALE**2).float()


@pytest.mark.parametrize("scale", [1e-15, 1.0, 1e15])
def test_half_precision_holds_gradients_of_any_size(scale: float) -> None:
    torch.manual_seed(0)
    features = torch.randn(6, 300)
    want = torch.nn.functional.cosine_similarity(features[:4, None], features[None, 4:], dim=2)
    half, norms = to_half(features * scale)
    assert half.dtype == torch.float16
    torch.testing.assert_close(norms, features.norm(dim=1) * scale)
    torch.testing.assert_close(cosines(half[:4], half[4:]), want, rtol=0, atol=2e-4)


def test_a_small_layer_beside_a_large_one_keeps_its_share() -> None:
    torch.manual_seed(0)
    small = 1e-6 * torch.randn(2, 50)
    features = torch.cat([small, torch.full((2, 1), 10.0)], 1)
    half, norms = to_half(features)
    want = small[:1] @ small[1:].T / norms.prod()
    torch.testing.assert_close(cosines(half[:1, :50], half[1:, :50]), want, rtol=5e-3, atol=1e-17)


def test_a_gradient_of_zero_has_features_of_zero() -> None:
    half, norms = to_half(torch.zeros(1, 3))
    assert torch.equal(half, torch.zeros(1, 3, dtype=torch.float16))
    assert norms.tolist() == [0]


def test_a_feature_that_is_not_finite_is_an_error() -> None:
    with pytest.raises(TracInError, match="projected gradient of sample 1 of a batch is not finite"):
        to_half(torch.tensor([[1.0], [torch.nan]]))


def test_energy_is_a_mean_of_shares_not_a_share_of_means() -> None:
    squared = {"a": torch.tensor([1.0, 300.0, 0.0]), "b": torch.tensor([3.0, 100.0, 0.0])}
    assert energy_shares(squared) == pytest.approx({"a": 0.5, "b": 0.5})


def test_samples_without_any_gradient_cannot_calibrate() -> None:
    with pytest.raises(TracInError, match="None of 2 calibration samples has a gradient"):
        energy_shares({"a": torch.zeros(2)})


def test_features_are_shared_out_by_energy_up_to_a_parameters_elements() -> None:
    elements = {"small": 10, "large": 10_000, "larger": 90_000, "quiet": 5000}
    sizes = share_out(elements, {"small": 0.5, "large": 0.3, "larger": 0.2, "quiet": 1e-5}, 1000)
    assert sizes == {"small": 10, "large": 579, "larger": 386, "quiet": 25}  # 965 left over, three to two
    wide = {"a": 10, "b": 10, "c": 1000}
    assert sum(share_out(wide, {"a": 0.5, "b": 0.5}, 500).values()) == 500  # what the first two do not need goes to the third


def test_a_parameter_without_energy_has_features_too() -> None:
    assert share_out({"a": 100_000, "b": 100_000}, {"a": 1.0}, 1000) == {"a": 950, "b": 50}


def test_a_dimension_beyond_all_elements_takes_no_more() -> None:
    assert share_out({"a": 3, "b": 4}, {"a": 1.0}, 8192) == {"a": 3, "b": 4}


def test_too_few_features_are_refused() -> None:
    with pytest.raises(TracInError, match=r"projection_dim=1 is less than one feature for each of the 2 scored .*; give 8192"):
        share_out({"a": 3, "b": 4}, {}, 1)
