"""The pass for language means: sums of the probes' gradients by language take the place of the probes."""

from __future__ import annotations

import torch

from lightning_tracin.attribution.batching import (
    Job,
    Target,
    batches_of,
    bytes_of_a_query,
    require_finite,
    shards_of,
    shards_of_rank,
)
from lightning_tracin.attribution.cost import Cost, measured_pace
from lightning_tracin.attribution.exact import Exact, block_of, collect, progress_bar, write_late
from lightning_tracin.attribution.late_writes import LateWrites
from lightning_tracin.attribution.method import method
from lightning_tracin.attribution.processes import Processes
from lightning_tracin.attribution.spot_check import check_means
from lightning_tracin.config import Measure, Similarity
from lightning_tracin.gradients import Capture, ProbeNorms, QueryBank
from lightning_tracin.storage.directory import RunDirectory
from lightning_tracin.storage.ingredients import IngredientStore
from lightning_tracin.storage.records import SpotCheck
from lightning_tracin.storage.sample_table import SampleTable
from lightning_tracin.storage.shards import Ingredients
from lightning_tracin.storage.snapshots import Snapshot


@method("means")
class Means(Exact):
    """The mean influence of every train sample on the probes of each language."""

    measure: Measure = "mean"
    layer_cosine = banks_probes = False

    def columns(self, directory: RunDirectory) -> int:
        """Two per language of the probes."""
        return 2 * len(directory.samples("probes").counts())

    def queries(self, probes: SampleTable) -> SampleTable:
        """The probes' languages, in alphabetical order."""
        counts = probes.counts()
        nothing = (None,) * len(counts)
        return SampleTable(tuple(counts), nothing, tuple(f"mean of {count} probes" for count in counts.values()), nothing)

    def compute(self, target: Target, job: Job, directory: RunDirectory, snapshot: Snapshot, processes: Processes) -> None:
        """Compute and store the snapshot's missing shards."""
        del processes  # each rank writes its own shards
        attribute_means(target, job, self.store(directory, snapshot))

    def check(self, target: Target, job: Job, directory: RunDirectory, snapshot: Snapshot) -> SpotCheck:
        """Compare some stored products with single-sample gradients."""
        return check_means(target, job, self.store(directory, snapshot))

    def cost(self, target: Target, job: Job) -> Cost:
        """Two sums of gradients per language are held; the probes go through the model twice."""
        columns = 2 * len(job.probes.table.counts())
        pace = measured_pace(target, job)
        return Cost(
            columns * bytes_of_a_query(target.coverage), pace.seconds(job, 1, columns, probe_passes=2), pace.alone, pace.captured
        )

    def stored_bytes(self, parts: int, train: int, probes: SampleTable) -> int:
        """One product per train sample and column and one norm per sample, for each part."""
        return 4 * parts * (train + 1) * (2 * len(probes.counts()) + 1)

    def readable(self, ingredients: Ingredients, similarity: Similarity) -> tuple[Ingredients, Similarity]:
        """The means of normalized gradients for `"cosine"`, else the plain means.

        The normalized means only lack the train sample's norm, so `"relatif"` turns them into cosines. The result equals the mean
        score over the probes of a language.
        """
        languages = ingredients.dot.shape[2] // 2
        chosen = slice(languages, None) if similarity == "cosine" else slice(languages)
        means = Ingredients(ingredients.dot[:, :, chosen], ingredients.train_norm, ingredients.probe_norm[:, chosen])
        return means, "dot" if similarity == "dot" else "relatif"


def attribute_means(target: Target, job: Job, store: IngredientStore) -> None:
    """Compute the missing ingredients of one snapshot, with languages in place of probes.

    The first columns are the means of each language's probe gradients, in alphabetical order of the languages. As many columns
    follow with the means of the normalized probe gradients, for cosines.

    Args:
        target: the snapshot's model.
        job: samples, loss and settings.
        store: the store of the ingredients, with two columns per language.

    Raises:
        TracInError: a loss or gradient is not finite; the message names the sample and the snapshot.
    """
    shards = shards_of(batches_of(job.train, job.batch_size))
    names = [f"means-{shard:05d}" for shard in range(len(shards))]
    store.keep_only(names)
    todo = [shard for shard in shards_of_rank(len(shards), job) if not store.has(names[shard])]
    if not todo:
        return
    total = 2 * len(job.probes) + sum(len(batch) for shard in todo for batch in shards[shard])
    with (
        Capture(target.model, target.coverage) as capture,
        progress_bar(target, job, total) as bar,
        LateWrites.of(next(target.model.parameters()).device) as writes,
    ):
        bank = queries_of(capture, target, job)
        bar.update(2 * len(job.probes))
        for shard in todo:
            block = block_of(capture, bank, list(range(bank.probes)), shards[shard], target, job, bar)
            write_late(writes, store, names[shard], block)


def queries_of(capture: Capture, target: Target, job: Job) -> QueryBank:
    """Compute the two mean gradients of each probe language; see `attribute_means`."""
    batches = batches_of(job.probes, job.batch_size)[::-1]
    order = [index for batch in batches for index in batch]
    norms = ProbeNorms(len(order), target.parts.of, len(target.parts))
    collect(capture, norms, batches, target, job)
    require_finite(norms.squared, order, job.probes, "probe", target.name)
    languages = job.probes.table.language
    names = sorted(set(languages))
    member = torch.tensor([[languages[index] == name for name in names] for index in order]).to(norms.squared)
    mean = member / member.sum(0)
    norm = norms.squared.sum(0).sqrt()[:, None]
    bank = QueryBank(torch.cat([mean, torch.where(norm > 0, mean / norm, 0)], 1), target.parts.of, len(target.parts))
    collect(capture, bank, batches, target, job)
    bank.seal()
    return bank
