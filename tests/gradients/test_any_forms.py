"""Products of gradients in any mixture of forms, lengths and batches equal those of the gradients written out.

No model is needed: forms are drawn, so widths, lengths and numbers of probes can be those of real fits. `make fuzz` draws
thousands of cases.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import given, note
from hypothesis import strategies as st
from torch import Tensor

from lightning_tracin.gradients import HeldBlock, ProbeBank, QueryBank
from lightning_tracin.gradients.forms import Dense, Form, Outer, Rows, coalesced
from lightning_tracin.gradients.holding import Factored, Tiled, Written, compact
from lightning_tracin.gradients.sketch_maps import Part, draw_part

#: Numbers that the gradients of one side may have in all, so that a case takes milliseconds.
_MOST = 3_000_000

#: What the gradient of one parameter may be in a batch: each letter a form.
KINDS = ["outer", "rows", "dense", "outer rows", "dense rows", "dense outer", "none"]


@dataclass(frozen=True)
class Side:
    """The gradients of train samples or of probes."""

    pieces: dict[str, list[tuple[int, tuple[Form, ...]]]]  # parameter -> batches
    batches: list[tuple[int, int]]  # first sample, number of samples
    whole: dict[str, Tensor]  # parameter -> [samples, elements], written out, in double precision


def drawn_forms(kind: str, count: int, length: int, rows: int, columns: int, generator: torch.Generator) -> tuple[Form, ...]:
    forms: list[Form] = []
    if "dense" in kind:
        forms.append(Dense(torch.randn(count, rows * columns, generator=generator)))
    if "outer" in kind:
        left, right = (torch.randn(count, length, width, generator=generator) for width in (rows, columns))
        live = torch.randint(0, length + 1, (count, 1), generator=generator)  # what is behind a sample's end is padding
        forms.append(Outer(left * (torch.arange(length) < live)[..., None], right))
    if "rows" in kind:
        tokens = torch.randint(0, rows, (count, max(1, length)), generator=generator)
        values = torch.randn(tokens.numel(), columns, generator=generator)
        kept = torch.rand(tokens.numel(), generator=generator) < 0.9 if length else torch.zeros(tokens.numel(), dtype=torch.bool)
        sample = torch.arange(count).repeat_interleave(tokens.shape[1])
        forms.append(coalesced(sample[kept], tokens.flatten()[kept], values[kept], count, rows))
    return tuple(forms)


def written_out(forms: tuple[Form, ...], count: int, rows: int, columns: int) -> Tensor:
    """By definition, sample by sample and position by position: [samples, elements]."""
    total = torch.zeros(count, rows, columns, dtype=torch.float64)
    for form in forms:
        if isinstance(form, Dense):
            total += form.values.double().view(count, rows, columns)
        elif isinstance(form, Outer):
            total += torch.einsum("itr,itc->irc", form.left.double(), form.right.double())
        else:
            for sample, row, values in zip(form.sample.tolist(), form.row.tolist(), form.values.double(), strict=True):
                total[sample, row] += values
    return total.flatten(1)


@st.composite
def sides(draw: Any, shapes: dict[str, tuple[int, int]], most_samples: int, kinds: list[str] = KINDS) -> Side:
    """Batches of any sizes and lengths, each parameter in any form in each of them."""
    largest = max(rows * columns for rows, columns in shapes.values())
    total = draw(st.integers(1, max(1, min(most_samples, _MOST // largest))))
    batch_size = draw(st.integers(1, 40))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**30)))
    of_parameter = {name: draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=2)) for name in shapes}
    pieces: dict[str, list[tuple[int, tuple[Form, ...]]]] = {name: [] for name in shapes}
    whole = {name: torch.zeros(total, rows * columns, dtype=torch.float64) for name, (rows, columns) in shapes.items()}
    batches = [(at, min(batch_size, total - at)) for at in range(0, total, batch_size)]
    order = draw(st.sampled_from(["as drawn", "longest first", "shortest first"]))
    lengths = [draw(st.integers(0, 200)) for _ in batches]
    if order != "as drawn":
        lengths.sort(reverse=order == "longest first")
    for (at, count), length in zip(batches, lengths, strict=True):
        for name, (rows, columns) in shapes.items():
            affordable = max(1, 8 * _MOST // (total * (rows + columns)))
            forms = drawn_forms(
                draw(st.sampled_from(of_parameter[name])), count, min(length, affordable), rows, columns, generator
            )
            if forms:
                pieces[name].append((at, forms))
                whole[name][at : at + count] = written_out(forms, count, rows, columns)
    return Side(pieces, batches, whole)


widths = st.one_of(st.integers(8, 64), st.sampled_from([96, 128, 192, 256, 384, 512]))


def close(got: Tensor, want: Tensor, sizes: Tensor) -> None:
    """Equal, but for rounding relative to `sizes`."""
    assert not bool(torch.isnan(got).any())
    worst = float(((got.double() - want).abs() / sizes.clamp(min=1e-30)).nan_to_num(0).max())
    assert worst <= 1e-5


@given(st.data())
def test_a_bank_gives_the_products_of_whole_gradients(data: st.DataObject) -> None:
    shapes = {"first": (data.draw(widths), data.draw(widths)), "second": (data.draw(widths), data.draw(st.integers(1, 64)))}
    note(f"{shapes}")
    probes, train = data.draw(sides(shapes, 300)), data.draw(sides(shapes, 80))
    scaled = data.draw(st.booleans())
    generator = torch.Generator().manual_seed(1)
    scales = {name: torch.rand(shape, generator=generator) + 0.1 for name, shape in shapes.items()} if scaled else None
    parts = data.draw(st.sampled_from([{"first": 0, "second": 0}, {"first": 1, "second": 0}]))
    count = next(iter(probes.whole.values())).shape[0]
    bank = ProbeBank(count, parts, 2, scales)
    for at, _ in data.draw(st.permutations(probes.batches)):
        for name in data.draw(st.permutations(list(shapes))):
            for first, forms in probes.pieces[name]:
                if first == at:
                    bank.collect(name, forms, at)
    bank.seal()
    samples = next(iter(train.whole.values())).shape[0]
    dot, squared = torch.zeros(2, samples, count), torch.zeros(2, samples)
    block, start = HeldBlock(data.draw(st.sampled_from([0, 10_000, 10**9]))), 0
    for at, size in train.batches:
        for name in shapes:
            for first, forms in train.pieces[name]:
                if first == at:
                    block.add(name, forms)
        block.end_batch(size)
        if block.is_complete or at + size == samples:
            block.contract(bank, dot[:, start : at + size], squared[:, start : at + size])
            start = at + size
    for part in range(2):
        names = [name for name in shapes if parts[name] == part]
        scale = {name: 1 if scales is None else scales[name].double().flatten() for name in names}
        z = torch.cat([train.whole[name] * scale[name] for name in names] or [torch.zeros(samples, 1)], 1).double()
        q = torch.cat([probes.whole[name] * scale[name] for name in names] or [torch.zeros(count, 1)], 1).double()
        close(dot[part], z @ q.T, z.norm(dim=1)[:, None] * q.norm(dim=1))
        close(squared[part].sqrt(), z.norm(dim=1), z.norm(dim=1))
        if any(probes.pieces.values()):
            close(bank.squared_norms[part].sqrt(), q.norm(dim=1), q.norm(dim=1))


@given(st.data())
def test_sums_of_probes_give_the_sums_of_products(data: st.DataObject) -> None:
    shapes = {"first": (data.draw(widths), data.draw(widths))}
    probes, train = data.draw(sides(shapes, 200)), data.draw(sides(shapes, 40))
    count, samples = len(probes.whole["first"]), len(train.whole["first"])
    queries = data.draw(st.integers(1, 20))
    generator = torch.Generator().manual_seed(2)
    weights = torch.rand(count, queries, generator=generator) * (torch.rand(count, queries, generator=generator) < 0.5)
    bank = QueryBank(weights, {"first": 0}, 1)
    for at, forms in data.draw(st.permutations(probes.pieces["first"])):
        bank.collect("first", forms, at)
    bank.seal()
    dot, squared = torch.zeros(1, samples, queries), torch.zeros(1, samples)
    bank.contract("first", train.pieces["first"], dot, squared)
    z, q = train.whole["first"], probes.whole["first"]
    close(dot[0], z @ q.T @ weights.double(), z.norm(dim=1)[:, None] * (q.norm(dim=1) @ weights.double()))
    close(squared[0].sqrt(), z.norm(dim=1), z.norm(dim=1))


@given(st.data())
def test_every_way_to_hold_a_parameter_gives_the_same(data: st.DataObject) -> None:
    shape = data.draw(st.tuples(widths, widths))
    probes, train = data.draw(sides({"w": shape}, 300, ["outer"])), data.draw(sides({"w": shape}, 80))
    count, samples, tile = len(probes.whole["w"]), len(train.whole["w"]), data.draw(st.sampled_from([50_000, 8_000_000]))
    z, q = train.whole["w"], probes.whole["w"]
    whole = [(at, compact(forms)) for at, forms in probes.pieces["w"]]
    for holding in (
        Factored.of(probes.pieces["w"], count, None),
        Tiled.of(probes.pieces["w"], count, tile),
        Written.of(whole, count, None, tile),
    ):
        dot, squared = torch.zeros(samples, count), torch.zeros(samples)
        holding.multiply(train.pieces["w"], dot, squared)
        close(dot, z @ q.T, z.norm(dim=1)[:, None] * q.norm(dim=1))
        close(squared.sqrt(), z.norm(dim=1), z.norm(dim=1))


def applied(part: Part, forms: tuple[Form, ...]) -> Tensor:
    return torch.stack([part(form) for form in forms]).sum(0)


@given(st.data())
def test_a_sketch_sees_only_the_gradient_not_its_form(data: st.DataObject) -> None:
    rows, columns = shape = data.draw(st.tuples(widths, widths))
    side = data.draw(sides({"w": shape}, 60))
    size = data.draw(st.integers(1, min(2048, rows * columns)))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    part = draw_part(shape, size, table=data.draw(st.booleans()), generator=generator)
    for at, forms in side.pieces["w"]:
        count = forms[0].samples if isinstance(forms[0], Rows) else len(next(iter(vars(forms[0]).values())))
        whole = side.whole["w"][at : at + count]
        want = part(Dense(whole.float()))
        close(applied(part, forms), want.double(), whole.norm(dim=1)[:, None] * (rows * columns / size) ** 0.5 * 8)
