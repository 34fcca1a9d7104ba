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
    parts = {"passes": _passes, "exact-memory": _exact_memory, "reading": _reading, "ranks": _ranks}
    lines = [
        "# Scale",
        "",
        "What attribution takes for each train sample, how fast stored results are read, and what that means for ten million "
        "samples. Written by `python -m benchmarks.scale`; do not edit. Values are medians, with lowest and highest if there is "
        "more than one run.",
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
        "in 5 languages, texts of 8 to 48 tokens in batches of 256, projected features of 512 values; 2 threads. The pass "
        "includes the probes, and all files with their checksums. A real model adds the time of its own forward and backward "
        "([benchmarks.md](benchmarks.md) has the ratios); the bytes stay the same."
    )
    yield ""
    yield "| method | train samples | seconds | ms per sample | bytes per sample | runs |"
    yield "|---|---:|---:|---:|---:|---:|"
    for method in ("exact", "means", "projected"):
        for count, one in found[method].items():
            taken = spread(one["seconds"])
            size = one["bytes"] / int(count)
            yield (
                f"| {method} | {int(count):,} | {_seconds(taken)} | {1000 * taken.value / int(count):.2f} | {size:,.0f} | "
                f"{taken.runs} |"
            )


def _exact_memory(found: Figures) -> Iterator[str]:
    names = {
        "model": "the model",
        "activations": "activations that a training step keeps (counted)",
        "budget": "`memory_budget`, for the gradients of probes and of a block of train samples",
        "shard": "the products of one shard: as computed, as the bytes of each tensor, and as those of its file",
        "working": "blocks that products work with: two tiles of gradients, and products that are not yet added to the others",
    }
    allowed = sum(found[name] for name in names)
    yield "## Memory of the exact pass"
    yield ""
    yield (
        f"{found['train']:,} train samples x {found['probes']:,} probes, with the tiny model of above and a `memory_budget` of "
        f"{found['budget'] / 2**20:.0f} MiB, in a process of its own after a pass over a few samples. It writes "
        f"{found['stored'] / 1e9:.2f} GB in {found['seconds']:.0f} s. The process grew by at most "
        f"**{found['grown'] / 2**20:.0f} MiB, {100 * found['grown'] / allowed:.0f} % of what is known before it starts**:"
    )
    yield ""
    yield "| | MiB |"
    yield "|---|---:|"
    for name, words in names.items():
        yield f"| {words} | {found[name] / 2**20:.1f} |"
    yield f"| all of these | {allowed / 2**20:.1f} |"
    yield ""
    yield (
        f"Of the budget, the gradients of the probes take {found['held'] / 2**20:.0f} MiB at most, as a fit announces before it "
        "starts, like the memory that products work with, which is the same for a model of any size. With more probes than "
        "fit, they are split into chunks, and the train samples go through the model once for each."
    )


def _reading(found: Figures) -> Iterator[str]:
    size, taken = found["bytes"], {name: spread(values) for name, values in found["seconds"].items()}
    yield "## Scoring a stored index"
    yield ""
    yield (
        f"{found['train']:,} train samples x {found['probes']} probes, {found['features']} values each: {size / 1e9:.2f} GB in "
        f"{found['files']:,} files, written through `FeatureStore`. Scoring finds the top {found['k']} of every probe by cosine. "
        "All reads are from disk: before each measurement the system is asked to drop the files from its cache. The rows of the "
        "table were measured in turn, in several rounds."
    )
    yield ""
    yield "| | seconds | MB/s |"
    yield "|---|---:|---:|"
    names = {
        "read": "reading the files, one thread",
        "hashed": "reading and hashing the files (XXH3), one thread",
        "products": "the products alone, in single precision",
        "scored": "**scoring**, with checksums",
        "unchecked": "scoring without checksums (not offered)",
    }
    for name, words in names.items():
        yield f"| {words} | {_seconds(taken[name])} | {size / 1e6 / taken[name].value:.0f} |"
    operations = 2 * found["train"] * found["probes"] * found["features"]
    halved = [2 * one for one in found["seconds"]["read"]]
    asked = [max(two, one / 0.8) for two, one in zip(halved, found["seconds"]["products"], strict=True)]
    yield ""
    yield (
        f"Scoring takes {_ratio(_over(found, 'scored', 'read'))} times as long as reading alone, and "
        f"{_ratio(_over(found, 'scored', 'unchecked'))} times as long as without checksums. Its products, {operations / 1e9:.0f} "
        f"GFLOP, alone take {_share(_over(found, 'products', 'scored'))} of its time (**of the limit: "
        f"{100 * _over(found, 'products', 'scored').value:.0f} %**). Asked for is half the speed of the disk or 80 % of the "
        f"products' limit, whichever is less: {spread(asked).value:.1f} s here."
    )
    yield ""
    yield (
        "Where the processor's time goes, in seconds for all files (measured on the first hundred, one after the other, in one "
        "thread, with the files in memory; scoring shares this work among its threads and the main one):"
    )
    yield ""
    yield "| phase | seconds |"
    yield "|---|---:|"
    for phase, one in found["phases"].items():
        yield f"| {phase} | {one:.2f} |"
    yield f"| all of these | {sum(found['phases'].values()):.2f} |"
    yield ""
    matrix = 4 * found["train"] * found["probes"]
    yield (
        f"**Memory**: at most {found['peak'] / 2**20:.0f} MiB on top of the opened run; one matrix of scores in double precision "
        f"would be {2 * matrix / 2**20:,.0f} MiB. The bound is the sum of these:"
    )
    yield ""
    yield (
        "- for each thread, plus one (times the snapshots that are summed): a shard "
        f"({SHARD_SAMPLES} samples and up to one batch more) as stored and in single precision (twice if there are several "
        "groups), and its products with the probes (4 bytes for each group);\n"
        "- for one shard: 5 bytes per pair for scores in single precision and a comparison (25 in tables that need all scores in "
        "double precision);\n"
        "- 32 bytes for each of the k entries per probe and table;\n"
        "- 8 bytes per train sample and snapshot, 8 more if snapshots are summed;\n"
        "- the probes' features; whitening adds 4 bytes for each pair of features while it is read (20 while it is set up), or "
        "fewer where train samples are few."
    )
    yield ""
    yield (
        "Only the bytes per train sample grow with the number of train samples, as `tests/guarantees/test_streaming.py` asserts. "
        f"Opening the run takes {found['opened']['seconds']:.0f} s and holds {found['opened']['held'] / found['train']:.0f} "
        f"bytes per train sample ({found['opened']['peak'] / found['train']:.0f} while it reads), with texts of 13 characters."
    )
    yield ""
    yield (
        "A run is read this way if a matrix of its scores takes more than 512 MiB (67 million pairs of train sample and probe), "
        "or if the products of the requested snapshots take more than 1 GiB. Rankings are the same either way."
    )


def _ranks(found: Figures) -> Iterator[str]:
    one, two = (spread(found[ranks]) for ranks in ("1", "2"))
    ratio = spread([alone / shared for alone, shared in zip(found["1"], found["2"], strict=True)])
    yield "## Two ranks"
    yield ""
    yield (
        "8,192 train samples x 50 probes, exact, by `attribute(..., fabric=...)` with one thread per rank: from the snapshot's "
        f"weights to its last file, {_seconds(one)} s with one rank and {_seconds(two)} s with two; **{_ratio(ratio)} times as "
        f"fast** ({ratio.runs} pairs of runs, in turn). Each rank computes the gradients of all probes and half of the shards of "
        "train samples."
    )


def _computed(passes: Figures, reading: Figures) -> Iterator[str]:
    shards = -(-SAMPLES // SHARD_SAMPLES)
    exact, means, projected = 4 * PARTS * (PROBES + 1) + 8, 4 * PARTS * (2 * LANGUAGES + 1) + 8, 2 * DIM + 12
    yield f"## {SAMPLES:,} samples on {RANKS} GPUs"
    yield ""
    yield (
        f"**Computed, not measured: there was no GPU and no machine for {RANKS} processes.** Assumptions: {PROBES} probes in "
        f"{LANGUAGES} languages, {PARTS} parts (twelve layers, embeddings and head, in two groups of the optimizer), "
        f"`projection_dim={DIM}`, texts of {TEXT} bytes, shards of {SHARD_SAMPLES} samples. What a snapshot takes:"
    )
    yield ""
    yield "| method | formula | bytes per train sample | in all |"
    yield "|---|---|---:|---:|"
    yield f"| exact | 4 x parts x (probes + 1) + 8 | {exact:,} | {exact * SAMPLES / 1e9:,.0f} GB |"
    yield (
        f"| exact, `per_layer=False` | the same with 2 parts | {8 * (PROBES + 1) + 8:,} | "
        f"{(8 * (PROBES + 1) + 8) * SAMPLES / 1e9:,.0f} GB |"
    )
    yield f"| means | 4 x parts x (2 x languages + 1) + 8 | {means:,} | {means * SAMPLES / 1e9:,.0f} GB |"
    yield f"| projected | 2 x projection_dim + 12 | {projected:,} | {projected * SAMPLES / 1e9:,.0f} GB |"
    yield ""
    yield "The same formulas against the measurements above, at the largest number of samples (bytes per train sample):"
    yield ""
    yield "| method | formula | measured |"
    yield "|---|---:|---:|"
    parts, dim = passes["parts"], 512
    for name, size in (("exact", 4 * parts * 51 + 8), ("means", 4 * parts * 11 + 8), ("projected", 2 * dim + 12)):
        count, one = list(passes[name].items())[-1]
        yield f"| {name} | {size:,} | {one['bytes'] / int(count):,.0f} |"
    yield ""
    yield (
        f"- **Files**: {shards:,} per snapshot (for exact, times the number of chunks of probes); each rank writes "
        f"{shards // RANKS} or {shards // RANKS + 1} of them. A file is written completely and flushed: a killed rank loses one "
        "shard.\n"
        f"- **Time**: a rank handles samples / {RANKS} = {SAMPLES // RANKS:,} samples and all the probes. Let t be the time that "
        "your GPU takes for a plain forward and backward of one sample, and r the ratio in [benchmarks.md](benchmarks.md) "
        f"(measured on a CPU; the ratio on a GPU is not known here). A snapshot takes {SAMPLES // RANKS:,} x t x r. With t = 2 "
        f"ms (an assumption) and r = 1, that is {SAMPLES / RANKS * 0.002 / 60:.1f} minutes.\n"
        f"- **Writing**: at that pace, {RANKS} ranks write {projected * RANKS / 0.002 / 1e6:,.0f} MB/s of projected features in "
        "all.\n"
        f"- **Reading**: one process reads {projected * SAMPLES / 1e9:,.0f} GB of a snapshot. At the "
        f"{_rate(reading) / 1e6:.0f} MB/s measured above that is {projected * SAMPLES / _rate(reading) / 3600:.1f} hours. Most "
        "of it is products, so more cores help. With `projection_dim=512` it is a sixteenth.\n"
        "- **Memory of each rank**: the model twice, `memory_budget`, and the data set itself. Rank 0 also holds the table of "
        "train samples, which grows fastest: "
        f"{(reading['opened']['held'] / reading['train'] + TEXT - 13) * SAMPLES / 1e9:.1f} GB here. Most of it is texts, which "
        "can be left out (`text_columns=[]`); the other ranks get the table without the texts.\n"
        "- **Memory of reading**: as above; on top of the shards, 8 to 16 bytes per train sample and snapshot, "
        f"{16 * SAMPLES / 1e6:.0f} MB for each snapshot."
    )


def _over(found: Figures, one: str, other: str) -> Spread:
    """Ratios of the seconds of two rows, round by round."""
    return spread([mine / its for mine, its in zip(found["seconds"][one], found["seconds"][other], strict=True)])


def _share(found: Spread) -> str:
    return f"{100 * found.value:.0f} % ({100 * found.low:.0f} to {100 * found.high:.0f})"


def _rate(reading: Figures) -> float:
    """Bytes a second of scoring."""
    return float(reading["bytes"] / spread(reading["seconds"]["scored"]).value)


def _seconds(taken: Spread) -> str:
    return f"{taken.value:.1f}" + (f" ({taken.low:.1f} to {taken.high:.1f})" if taken.runs > 1 else "")


def _ratio(found: Spread) -> str:
    return f"{found.value:.2f} ({found.low:.2f} to {found.high:.2f})"
