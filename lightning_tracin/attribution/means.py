"""The pass for language means: the probes' languages take the place of the probes."""

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
from lightning_tracin.attribution.exact import block_of, collect, progress_bar
from lightning_tracin.attribution.method import method
from lightning_tracin.attribution.processes import Processes
from lightning_tracin.attribution.spot_check import check_means
from lightning_tracin.config import Measure, Options, Similarity
from lightning_tracin.gradients import Capture, ProbeNorms, QueryBank
from lightning_tracin.storage.directory import RunDirectory
from lightning_tracin.storage.ingredients import IngredientStore
from lightning_tracin.storage.records import SpotCheck
from lightning_tracin.storage.sample_table import SampleTable
from lightning_tracin.storage.shards import Ingredients
from lightning_tracin.storage.snapshots import Snapshot


@method("means")
class Means:
    """Every train sample's mean influence on the probes of each language."""

    measure: Measure = "mean"
    adds_probes = whitens = layer_cosine = banks_probes = False

    def __init__(self, options: Options) -> None:
        del options  # none of them changes what is computed

    def store(self, directory: RunDirectory, snapshot: Snapshot) -> IngredientStore:
        """The shards of the snapshot's ingredients."""
        return directory.ingredients(snapshot, self.columns(directory))

    def columns(self, directory: RunDirectory) -> int:
        """Two for each language of the probes."""
        return 2 * len(directory.samples("probes").counts())

    def queries(self, probes: SampleTable) -> SampleTable:
        """The probes' languages, in alphabetical order."""
        counts = probes.counts()
        nothing = (None,) * len(counts)
        return SampleTable(tuple(counts), nothing, tuple(f"mean of {count} probes" for count in counts.values()), nothing)

    def compute(self, target: Target, job: Job, directory: RunDirectory, snapshot: Snapshot, processes: Processes) -> None:
        """Compute and store what is missing of a snapshot."""
        del processes  # ranks write shards of their own
        attribute_means(target, job, self.store(directory, snapshot))

    def check(self, target: Target, job: Job, directory: RunDirectory, snapshot: Snapshot) -> SpotCheck:
        """Compare some stored products with single samples' gradients."""
        return check_means(target, job, self.store(directory, snapshot))

    def cost(self, target: Target, job: Job) -> Cost:
        """Two sums of gradients are held for each language; the probes go through the model twice."""
        columns = 2 * len(job.probes.table.counts())
        seconds = measured_pace(target, job).seconds(job, 1, columns, probe_passes=2)
        return Cost(columns * bytes_of_a_query(target.coverage), seconds)

    def stored_bytes(self, parts: int, train: int, probes: SampleTable) -> int:
        """A product for each train sample and column and a norm for each sample, by part."""
        return 4 * parts * (train + 1) * (2 * len(probes.counts()) + 1)

    def readable(self, ingredients: Ingredients, similarity: Similarity) -> tuple[Ingredients, Similarity]:
        """The means of normalised gradients for a cosine, which only the train samples' norms are missing from; else the means.

        The result equals the mean of the scores over the probes of a language.
        """
        languages = ingredients.dot.shape[2] // 2
        chosen = slice(languages, None) if similarity == "cosine" else slice(languages)
        means = Ingredients(ingredients.dot[:, :, chosen], ingredients.train_norm, ingredients.probe_norm[:, chosen])
        return means, "dot" if similarity == "dot" else "relatif"


def attribute_means(target: Target, job: Job, store: IngredientStore) -> None:
    """Compute what is missing of one snapshot's ingredients with the probes' languages in the place of the probes.

    A language has two columns: the mean of its probes' gradients (languages in alphabetical order), and behind all of these the
    mean of its probes' gradients divided by their norms, of which cosines are made.

    Args:
        target: the snapshot.
        job: samples, loss and settings.
        store: where the shards go; it has twice as many columns as there are languages.

    Raises:
        TracInError: as `attribute_snapshot`.
    """
    shards = shards_of(batches_of(job.train, job.batch_size))
    names = [f"means-{shard:05d}" for shard in range(len(shards))]
    store.keep_only(names)
    todo = [shard for shard in shards_of_rank(len(shards), job) if not store.has(names[shard])]
    if not todo:
        return
    total = 2 * len(job.probes) + sum(len(batch) for shard in todo for batch in shards[shard])
    with Capture(target.model, target.coverage) as capture, progress_bar(target, job, total) as bar:
        bank = queries_of(capture, target, job)
        bar.update(2 * len(job.probes))
        for shard in todo:
            block = block_of(capture, bank, list(range(bank.probes)), shards[shard], target, job, bar)
            store.write(names[shard], block)


def queries_of(capture: Capture, target: Target, job: Job) -> QueryBank:
    """The two queries of each language of the probes; see `attribute_means`."""
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
