"""`docs/benchmarks-gpu.md` from the figures of `benchmarks.gpu`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from rich.box import MARKDOWN
from rich.table import Table

from benchmarks.render import markdown, ratio_cell, seconds_cell
from benchmarks.report import Comparison
from benchmarks.timing import Spread

#: Way -> ratio to a plain pass that it should not exceed; those of the CPU's table.
BOUNDS = {"exact, probes included": 2.5, "language means, train side": 1.3, "projected, train side": 0.9}

#: A way below this part of its products' speed is held up by something else.
_NEAR_LIMIT = 0.5


@dataclass(frozen=True)
class Way:
    """One way of computing on the whole workload."""

    name: str
    dtype: str
    train: int
    probes: int
    batch_size: int
    ours: Spread  # seconds
    plain: Spread  # seconds of a forward and backward over the same train samples
    ratio: Spread  # ours over plain
    of_limit: float  # seconds of its matrix products alone over its seconds, on fewer samples
    chunks: int  # how often the train samples go through the model, because the probes' gradients do not fit at once
    peak_bytes: int


@dataclass(frozen=True)
class Device:
    """What it was measured on."""

    date: str
    name: str
    memory: int  # bytes
    cuda: str
    products: Mapping[str, float]  # data type -> floating-point operations a second, of one large product
    bandwidth: float  # bytes a second
    versions: Mapping[str, str]


@dataclass(frozen=True)
class Measured:
    """All figures."""

    ways: tuple[Way, ...]
    peers: tuple[Comparison, ...]
    device: Device


def page(measured: Measured) -> str:
    """The page, as Markdown."""
    device = measured.device
    speeds = ", ".join(f"{speed / 1e12:.1f} in {dtype}" for dtype, speed in device.products.items())
    versions = ", ".join(f"{name} {version}" for name, version in device.versions.items())
    parts = [
        "# Benchmarks on a GPU",
        "Written by `make bench-gpu`; do not edit. Each ratio is of two runs that were timed one after the other, until the "
        "device had finished.",
        f"Measured on {device.date}: {device.name}, {device.memory / 2**30:.0f} GiB, CUDA {device.cuda}; {versions}. One large "
        f"product runs at {speeds} million million floating-point operations a second; a copy reads and writes "
        f"{device.bandwidth / 1e9:.0f} GB a second.",
        "## Ways of computing: XLM-R base's shape, one snapshot",
        markdown(_ways(measured.ways)),
        "The limit is the time of the way's own matrix products, alone and in the same layout. A plain pass is a forward and "
        "backward over the train samples for all parameters' gradients, in the same data type and batches.",
        "## Peers",
        markdown(_peers(measured.peers)),
        "\n".join(f"- {one.peer}: {one.settings}." for one in measured.peers),
        "## If a figure is off",
        "\n".join(f"- {line}" for line in (*_findings(measured), *_where_to_look())),
    ]
    return "\n\n".join(parts) + "\n"


def _ways(ways: tuple[Way, ...]) -> Table:
    columns = ("way", "weights", "samples", "its batch", "s", "plain pass, s", "over plain", "of the limit", "peak, GiB")
    table = Table(*columns, box=MARKDOWN)
    for one in ways:
        table.add_row(
            one.name,
            one.dtype,
            f"{one.train:,} x {one.probes:,}",
            str(one.batch_size),
            seconds_cell(one.ours),
            seconds_cell(one.plain),
            ratio_cell(one.ratio),
            f"{one.of_limit:.0%}",
            f"{one.peak_bytes / 2**30:.1f}",
        )
    return table


def _peers(peers: tuple[Comparison, ...]) -> Table:
    table = Table("workload", "peer", "its batch", "ours, s", "peer, s", "peer / ours", "its scores", box=MARKDOWN)
    for one in peers:
        size = "-" if one.batch_size is None else str(one.batch_size)
        peer = f"{one.peer} ({one.version or '-'})"
        table.add_row(one.workload, peer, size, seconds_cell(one.ours), seconds_cell(one.theirs), ratio_cell(one.ratio), one.note)
    return table


def _findings(measured: Measured) -> Iterator[str]:
    """What these figures themselves say."""
    for one in measured.ways:
        bound, which = BOUNDS.get(one.name), f"{one.name} in {one.dtype}"
        if one.chunks > 1:
            yield (
                f"**{which}**: the probes' gradients do not fit at once, so the train samples went through the model "
                f"{one.chunks} times. Give it more memory (`memory_budget`), or take `projection_dim` or `language_means`."
            )
        if bound is None or one.ratio.value <= bound:
            continue
        if one.of_limit < _NEAR_LIMIT:
            yield (
                f"**{which}** takes {one.ratio.value:.2f} plain passes (at most {bound:g}) and runs at {one.of_limit:.0%} of its "
                "products' speed: the device waits for the processor. Look at the first two lines below."
            )
        else:
            yield (
                f"**{which}** takes {one.ratio.value:.2f} plain passes (at most {bound:g}) though it runs at {one.of_limit:.0%} "
                "of its products' speed: the products themselves are slow in this data type and at these shapes. Look at the "
                "third line below."
            )


def _where_to_look() -> Iterator[str]:
    yield (
        "Gaps between kernels: record a batch with `torch.profiler`. `tests/guarantees/test_waits_for_a_device.py` counts how "
        "often a batch waits for the device; a step of your own that calls `.item()` or selects by a mask adds to it."
    )
    yield "Short kernels: a larger `batch_size` gives the device more to do for each call, as long as it fits in memory."
    yield (
        "Slow products: float32 products run at full speed only with TensorFloat-32 "
        '(`torch.set_float32_matmul_precision("high")`), which rounds to 10 bits; `dtype="bfloat16"` rounds to 7.'
    )
    yield "A plain pass that is slow itself makes every ratio look good: compare its seconds with the device's products a second."
    yield (
        "A device that others use, or that is too hot, runs slower: compare the lowest and highest of each ratio, and ask "
        "`nvidia-smi`."
    )
