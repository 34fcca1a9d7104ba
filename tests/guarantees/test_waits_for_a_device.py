"""How often a pass makes the processor wait for an accelerator: a few times a batch, whatever its layers and samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
from torch import Tensor
from torch.nn import functional as F

from lightning_tracin.attribution.batching import Job, Target
from lightning_tracin.attribution.exact import attribute_snapshot
from lightning_tracin.attribution.losses import loss_named
from lightning_tracin.attribution.means import attribute_means
from lightning_tracin.attribution.projected import prepare_sketch, project_snapshot
from lightning_tracin.attribution.samples import SampleSet
from lightning_tracin.attribution.step_loss import StepLoss
from lightning_tracin.attribution.step_terms import Term
from lightning_tracin.gradients import Capture, plan_coverage
from lightning_tracin.gradients.partition import parts_of
from lightning_tracin.storage.features import FeatureStore
from lightning_tracin.storage.ingredients import IngredientStore
from lightning_tracin.storage.sample_table import SampleTable
from tests.support.accelerators import ACCELERATOR, Accelerated
from tests.support.models import padded, ragged_samples, tiny_xlmr


class Sentences(pl.LightningModule):
    """A classifier that says each sample's loss."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.model = tiny_xlmr(num_hidden_layers=layers)

    def per_sample_loss(self, batch: dict[str, Tensor]) -> Tensor:
        logits = self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        return F.cross_entropy(logits, batch["labels"], reduction="none")

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self.per_sample_loss(batch).mean()


def samples(count: int) -> SampleSet:
    """Samples of one length, so that every batch has the same shape."""
    table = SampleTable(tuple(("de", "en")[i % 2] for i in range(count)), (None,) * count, ("",) * count, (None,) * count)
    rows = ragged_samples(count, seed=3, shortest=6, longest=6)
    return SampleSet(table, (rows,), (padded,), tuple((0, index) for index in range(count)))


def exact(target: Target, job: Job, folder: Path) -> None:
    attribute_snapshot(target, job, IngredientStore(folder, len(job.train), len(job.probes)))


def means(target: Target, job: Job, folder: Path) -> None:
    attribute_means(target, job, IngredientStore(folder, len(job.train), 4))


def projected(target: Target, job: Job, folder: Path) -> None:
    project_snapshot(target, job, FeatureStore(folder, len(job.train), len(job.probes)))


Pass = Callable[[Target, Job, Path], None]


def waits(compute: Pass, folder: Path, batches: int, layers: int = 2, batch_size: int = 4, watched: bool = False) -> Counter[str]:
    """What a pass over some batches of train samples waits for."""
    module = Sentences(layers).eval()
    with Accelerated() as noted:
        module.to(ACCELERATOR)
        names = [name for name, _ in module.named_parameters()]
        coverage = plan_coverage(module, frozenset(names))
        target = Target("0000-step0", module, coverage, parts_of(dict.fromkeys(names, 0), per_layer=True))

        def prepare(batch: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: one.to(ACCELERATOR) for name, one in batch.items()}

        loss: Any = loss_named(module, "per_sample_loss")
        if watched:
            loss = StepLoss(module, "mean", (Term("mean", "mean", 1.0),))
        job = Job(samples(batches * batch_size), samples(batch_size), loss, prepare, batch_size, 10**9)
        first = prepare(job.train.batch(range(2)))
        with Capture(module, coverage) as capture:  # as a fit's check does
            capture.run(lambda: loss(first, 2), 2, lambda *_: None)
        coverage.decisions.verified.update(layer.name for layer in coverage.layers)
        prepare_sketch(target, job, FeatureStore(folder, len(job.train), len(job.probes)), 500)
        noted.waits.clear()
        compute(target, job, folder)
        return Counter(f"{one.operation} at {one.line}" for one in noted.waits)


def of_a_batch(compute: Pass, folder: Path, **settings: Any) -> dict[str, int]:
    """What each further batch waits for in the package, and not in the model: the difference between 3 batches and 2 of them."""
    few, many = (waits(compute, folder / f"{batches}", batches, **settings) for batches in (2, 3))
    many.subtract(few)
    return {line: count for line, count in many.items() if count and "/" in line}


def by_function(found: dict[str, int]) -> dict[str, int]:
    """Without the numbers of lines."""
    names: Counter[str] = Counter()
    for line, count in found.items():
        names[line.split(":")[0] + " " + line.split()[-1]] += count
    return dict(names)


ALWAYS = {
    "copy to the CPU at gradients/capture.py run": 1,  # whether the loss is finite
    "copy to the CPU at gradients/owners.py owners_of": 2,  # whose the lines of the head's two layers are
    "unique_consecutive at gradients/forms.py coalesced": 3,  # how many rows each of the three tables has
}

#: What a batch of a watched `training_step` waits for beside that: what the loss is made of.
WATCHED = {
    "tolist at attribution/step_terms.py reduced": 1,
    "item at attribution/step_terms.py follows": 1,
    "item at attribution/step_terms.py weigh_the_same": 1,
}


@pytest.mark.parametrize("compute", [exact, means, projected])
def test_a_batch_waits_a_few_times_whatever_its_layers_and_samples(compute: Pass, tmp_path: Path) -> None:
    found = of_a_batch(compute, tmp_path / "small")
    assert found == of_a_batch(compute, tmp_path / "large", layers=5, batch_size=8)
    assert by_function(found) == ALWAYS


def test_a_watched_step_waits_a_few_times_more(tmp_path: Path) -> None:
    assert by_function(of_a_batch(exact, tmp_path, watched=True)) == ALWAYS | WATCHED
