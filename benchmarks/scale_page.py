"""`docs/scale.md` from the figures of `benchmarks.scale`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.timing import Spread, spread
from lightning_tracin.attribution.batching import SHARD_SAMPLES

#: What the computed part assumes.
SAMPLES, RANKS, LANGUAGES, PARTS, PROBES, DIM, TEXT = 10_000_000, 64, 15, 28, 250, 8192, 500

Figures = Mapping[str, Any]


def page(figures: Figures) -> str:
    """The page, as Markdown."""
    parts = {"passes": _passes, "reading": _reading, "ranks": _ranks}
    lines = [
        "# Scale",
        "",
        "What attribution takes for each train sample, how fast what it stored is read again, and what follows for ten million "
        "samples. Written by `python -m benchmarks.scale`; do not edit. Medians, with lowest and highest where there is more "
        "than one run.",
    ]
    for name, part in parts.items():
        if name in figures:
            lines += ["", *part(figures[name]["figures"]), "", _machine(figures[name]["machine"])]
    if {"passes", "reading"} <= figures.keys():
        lines += ["", *_computed(figures["passes"]["figures"], figures["reading"]["figures"])]
    return "\n".join(lines) + "\n"


def _machine(machine: Mapping[str, Any]) -> str:
    return (
        f"*{machine['date']}, {machine['cores']} cores, {machine['memory'] / 2**30:.0f} GiB of memory, no GPU, torch "
        f"{machine['torch']}.*"
    )


def _passes(found: Figures) -> Iterator[str]:
    yield "## One snapshot, by the number of train samples"
    yield ""
    yield (
        f"A tiny model ({found['elements']:,} elements, {found['parts']} parts: its layers by the optimizer's group), 50 probes "
        "in 5 languages, texts of 8 to 48 tokens in batches of 256, 512 numbers for projected features; 2 threads. The pass "
        "includes the probes, and all files with their checksums. A model that is worth attributing takes longer by what its "
        "own forward and backward take ([benchmarks.md](benchmarks.md) has the ratios); the bytes are what they are here."
    )
    yield ""
    yield "| method | train samples | seconds | milliseconds a sample | bytes a sample | runs |"
    yield "|---|---:|---:|---:|---:|---:|"
    for method in ("exact", "means", "projected"):
        for count, one in found[method].items():
            taken = spread(one["seconds"])
            size = one["bytes"] / int(count)
            yield (
                f"| {method} | {int(count):,} | {_seconds(taken)} | {1000 * taken.value / int(count):.2f} | {size:,.0f} | "
                f"{taken.runs} |"
            )


def _reading(found: Figures) -> Iterator[str]:
    size, taken = found["bytes"], {name: spread(values) for name, values in found["seconds"].items()}
    ratio = [one / other for one, other in zip(found["seconds"]["scored"], found["seconds"]["read"], strict=True)]
    without = [one / other for one, other in zip(found["seconds"]["scored"], found["seconds"]["unchecked"], strict=True)]
    yield "## Scoring a stored index"
    yield ""
    yield (
        f"{found['train']:,} train samples x {found['probes']} probes, {found['features']} numbers each: {size / 1e9:.2f} GB in "
        f"{found['files']:,} files, written through `FeatureStore`. The top {found['k']} of every probe, by cosine, from the "
        "disk: in each round the system is asked to forget the files before each line of the table, and the lines come in turn."
    )
    yield ""
    yield "| | seconds | MB/s |"
    yield "|---|---:|---:|"
    names = {
        "read": "files read, one thread",
        "hashed": "files read and hashed (XXH3), one thread",
        "scored": "**scored**, checksums compared",
        "unchecked": "scored without checksums (not offered)",
    }
    for name, words in names.items():
        yield f"| {words} | {_seconds(taken[name])} | {size / 1e6 / taken[name].value:.0f} |"
    operations = 2 * found["train"] * found["probes"] * found["features"]
    yield ""
    yield (
        f"Scoring takes {_ratio(spread(ratio))} times as long as reading alone, and {_ratio(spread(without))} times as long as "
        f"without checksums. Beside reading it is {operations / 1e9:.0f} GFLOP of products, which run in other "
        "threads than what ranks them: where these take less than the disk, the disk is what is waited for; on these two cores "
        "they take longer."
    )
    yield ""
    matrix = 4 * found["train"] * found["probes"]
    yield (
        f"**Memory**: {found['peak'] / 2**20:.0f} MiB at the most beyond the opened run, where one matrix of scores in double "
        f"precision would be {2 * matrix / 2**20:,.0f} MiB. The bound: for each thread and one more (and each snapshot that is "
        f"summed), a shard ({SHARD_SAMPLES} samples and up to a batch more) as it stands there and in single precision (twice "
        "where there are several groups), and its products with the probes (4 "
        "bytes for each group); for one shard 25 bytes a pair for scores, ranks and a comparison; "
        "32 bytes for each of k entries a probe and table, 8 bytes a train sample and snapshot, 8 more where snapshots are "
        "summed, and the probes' features; whitening adds 8 bytes for each pair of features. None of these but the numbers by "
        "train sample grows with their number, as `tests/guarantees/test_streaming.py` asserts. Opening the run takes "
        f"{found['opened']['seconds']:.0f} s and holds {found['opened']['held'] / found['train']:.0f} bytes a train sample "
        f"({found['opened']['peak'] / found['train']:.0f} while it reads), with texts of 13 characters."
    )
    yield ""
    yield (
        "A run is read this way where a matrix of its scores takes more than 512 MiB (67 million pairs of train sample and "
        "probe), or the products of the snapshots that are asked for more than 1 GiB. Rankings are the same either way."
    )


def _ranks(found: Figures) -> Iterator[str]:
    one, two = (spread(found[ranks]) for ranks in ("1", "2"))
    ratio = spread([alone / shared for alone, shared in zip(found["1"], found["2"], strict=True)])
    yield "## Two ranks"
    yield ""
    yield (
        "8,192 train samples x 50 probes, exact, by `attribute(..., fabric=...)` with one thread a rank: from the snapshot's "
        f"weights to its last file {_seconds(one)} s with one rank, {_seconds(two)} s with two; **{_ratio(ratio)} times as "
        f"fast** ({ratio.runs} pairs of runs in turn). Each rank computes the probes' gradients, and every second shard of the "
        "train samples."
    )


def _computed(passes: Figures, reading: Figures) -> Iterator[str]:
    shards = -(-SAMPLES // SHARD_SAMPLES)
    exact, means, projected = 4 * PARTS * (PROBES + 1) + 8, 4 * PARTS * (2 * LANGUAGES + 1) + 8, 2 * DIM + 12
    yield f"## {SAMPLES:,} samples on {RANKS} GPUs"
    yield ""
    yield (
        f"**Computed, not measured: no GPU and no {RANKS} processes were at hand.** Assumed: {PROBES} probes in {LANGUAGES} "
        f"languages, {PARTS} parts (twelve layers, embeddings and head, by two groups of the optimizer), "
        f"`projection_dim={DIM}`, texts of {TEXT} bytes, shards of {SHARD_SAMPLES} samples. A snapshot's bytes for a train "
        "sample:"
    )
    yield ""
    yield "| method | formula | bytes a sample | a snapshot |"
    yield "|---|---|---:|---:|"
    yield f"| exact | 4 x parts x (probes + 1) + 8 | {exact:,} | {exact * SAMPLES / 1e9:,.0f} GB |"
    yield (
        f"| exact, `per_layer=False` | the same with 2 parts | {8 * (PROBES + 1) + 8:,} | "
        f"{(8 * (PROBES + 1) + 8) * SAMPLES / 1e9:,.0f} GB |"
    )
    yield f"| means | 4 x parts x (2 x languages + 1) + 8 | {means:,} | {means * SAMPLES / 1e9:,.0f} GB |"
    yield f"| projected | 2 x projection_dim + 12 | {projected:,} | {projected * SAMPLES / 1e9:,.0f} GB |"
    yield ""
    yield "The same formulas for what was measured above, at the largest number of samples:"
    yield ""
    yield "| method | formula | measured |"
    yield "|---|---:|---:|"
    parts, dim = passes["parts"], 512
    for name, size in (("exact", 4 * parts * 51 + 8), ("means", 4 * parts * 11 + 8), ("projected", 2 * dim + 12)):
        count, one = list(passes[name].items())[-1]
        yield f"| {name} | {size:,} | {one['bytes'] / int(count):,.0f} |"
    yield ""
    yield (
        f"- **Files**: {shards:,} a snapshot (for exact, times the chunks that the probes are taken in), {shards // RANKS} or "
        f"{shards // RANKS + 1} of them by each rank. A file is written whole and flushed: what is lost with a killed rank is "
        f"one shard.\n- **Time**: a rank does samples / {RANKS} = {SAMPLES // RANKS:,} samples and all the probes. With t the "
        "time that your GPU takes for a sample's plain forward and backward, and r the ratio of [benchmarks.md](benchmarks.md) "
        f"(measured on a CPU: the ratio on a GPU is not known here), a snapshot takes {SAMPLES // RANKS:,} x t x r. With t = 2 "
        f"ms, which is an assumption, and r = 1, that is {SAMPLES / RANKS * 0.002 / 60:.1f} minutes.\n- **Disk while it is "
        f"written**: projected features of {RANKS} ranks at that pace come at {projected * RANKS / 0.002 / 1e6:,.0f} MB/s in "
        f"all.\n- **Reading**: one process reads {projected * SAMPLES / 1e9:,.0f} GB of a snapshot. At the "
        f"{_rate(reading) / 1e6:.0f} MB/s measured above that is {projected * SAMPLES / _rate(reading) / 3600:.1f} hours; it is "
        "mostly products that take it, so more cores help. With `projection_dim=512` it is a sixteenth.\n- **Memory of each "
        "rank**: the model twice, `memory_budget`, and what the data set itself takes. Rank 0 has the table of train samples "
        "besides, which is what grows first: "
        f"{(reading['opened']['held'] / reading['train'] + TEXT - 13) * SAMPLES / 1e9:.1f} GB here, most of it texts, which can "
        "be left out (`text_columns=[]`); the other ranks get it without the texts.\n- **Reading's memory**: as above; 8 to "
        "16 bytes a train sample and snapshot beside the shards, "
        f"{16 * SAMPLES / 1e6:.0f} MB for each snapshot."
    )


def _rate(reading: Figures) -> float:
    """Bytes a second of scoring."""
    return float(reading["bytes"] / spread(reading["seconds"]["scored"]).value)


def _seconds(taken: Spread) -> str:
    return f"{taken.value:.1f}" + (f" ({taken.low:.1f} to {taken.high:.1f})" if taken.runs > 1 else "")


def _ratio(found: Spread) -> str:
    return f"{found.value:.2f} ({found.low:.2f} to {found.high:.2f})"
