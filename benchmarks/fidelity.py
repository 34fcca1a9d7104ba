"""How well projected features stand for exact gradients: cosines of both, on trained models and real multilingual data.

A small XLM-R is fine-tuned on NusaX and on PAWS-X as `examples/configs` say. Then every train sample's cosine with every probe
is computed exactly and from features in half precision; per probe, the Spearman correlation of the two over the train samples
and the overlap of the top 100 are taken, and their means printed. The features are planned on a part of the train samples.

`OMP_NUM_THREADS=1 python benchmarks/fidelity.py --data_dir <folder that nusax-senti/ and pawsx-dev/ are in>`
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import scipy.stats
import torch
import yaml  # type: ignore[import-untyped]
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from classifier import Classifier
from finetune import tokenizer_and_model
from options import Options
from sources import load_split
from text_data import TextDataModule

from lightning_tracin.gradients import Capture, Form, ProbeBank, plan_coverage
from lightning_tracin.gradients.products import squared_norms
from lightning_tracin.gradients.sketch import Sketch, cosines, energy_shares, to_half
from lightning_tracin.samples import SampleSet, from_loader
from lightning_tracin.tables import Columns

CONFIGS = Path(__file__).parents[1] / "examples" / "configs"
FOLDERS = {"nusax": "nusax-senti", "pawsx": "pawsx-dev"}
TOP = 100
CALIBRATION = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument("--data", nargs="+", choices=FOLDERS, default=list(FOLDERS))
    parser.add_argument("--dims", nargs="+", type=int, default=[2048, 8192, 32768], help="features of a sample")
    parser.add_argument("--epochs", type=int, help="of fine-tuning; by default the configuration's")
    parser.add_argument("--output", type=Path, help="a JSON file for the results")
    settings = parser.parse_args()
    torch.set_num_threads(1)
    results = []
    for name in settings.data:
        if not (settings.data_dir / FOLDERS[name]).is_dir():
            print(f"{name} is left out: there is no folder {settings.data_dir / FOLDERS[name]}")
            continue
        results += fidelity(name, settings.data_dir, settings.dims, settings.epochs)
    if settings.output:
        settings.output.write_text(json.dumps(results, indent=1) + "\n")


def fidelity(name: str, data_dir: Path, dims: Sequence[int], epochs: int | None) -> list[dict[str, Any]]:
    """Train on one data set, then measure features of several sizes; one record for each."""
    model, train, probes = trained(name, data_dir, epochs)
    names = frozenset(dict(model.named_parameters()))
    coverage = plan_coverage(model, names)
    with Capture(model, coverage) as capture:
        chosen = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[:CALIBRATION].tolist()
        energy = calibrated(model, capture, train.take(sorted(chosen)), names)
        sketches = [Sketch.plan(coverage, energy, dim) for dim in dims]
        of_train, of_probes = ([torch.zeros(len(s), sketch.dim) for sketch in sketches] for s in (train, probes))
        bank = ProbeBank(len(probes), dict.fromkeys(names, 0), 1)
        longest_first = list(batches(probes))[::-1]  # the bank chooses its forms by the first batch
        order = [index for batch in longest_first for index in batch]

        def collect(at: int, batch: list[int], parameter: str, forms: tuple[Form, ...]) -> None:
            bank.collect(parameter, forms, at)
            keep(sketches, of_probes, batch, parameter, forms)

        pass_over(model, capture, probes, longest_first, collect)
        bank.seal()
        dot, squared = torch.zeros(1, len(train), len(probes)), torch.zeros(1, len(train))
        shortest_first = list(batches(train))

        def contract(at: int, batch: list[int], parameter: str, forms: tuple[Form, ...]) -> None:
            here = slice(at, at + len(batch))
            bank.contract(parameter, forms, dot[:, here], squared[:, here])
            keep(sketches, of_train, batch, parameter, forms)

        pass_over(model, capture, train, shortest_first, contract)
    rows = [index for batch in shortest_first for index in batch]
    norms, probe_norms, exact = torch.zeros(len(train)), torch.zeros(len(probes)), torch.zeros(len(train), len(probes))
    norms[rows], probe_norms[order] = squared[0].sqrt(), bank.squared_norms[0].sqrt()
    exact[torch.tensor(rows)[:, None], torch.tensor(order)] = dot[0]
    exact /= norms[:, None] * probe_norms
    records = []
    for sketch, z, q in zip(sketches, of_train, of_probes, strict=True):
        estimated = cosines(to_half(z, norms), to_half(q, probe_norms))
        agreed = agreement(exact, estimated)
        records.append({"data": name, "dim": sketch.dim, "bytes": 2 * sketch.dim, **agreed})
        print(
            f"{name}: {sketch.dim:,} features ({2 * sketch.dim / 1024:.0f} KB): Spearman {agreed['spearman']:.4f} (least "
            f"{agreed['spearman_least']:.4f}), top {TOP} {agreed['overlap']:.3f} (least {agreed['overlap_least']:.2f}), "
            f"{len(train)} train samples x {len(probes)} probes",
            flush=True,
        )
    return records


def trained(name: str, data_dir: Path, epochs: int | None) -> tuple[nn.Module, SampleSet, SampleSet]:
    """The model after fine-tuning, in evaluation mode, and its train samples and probes."""
    options = Options(**yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()), data_dir=str(data_dir))
    pl.seed_everything(options.seed)
    split, _ = load_split(options)
    tokenizer, model = tokenizer_and_model(options, split)
    data = TextDataModule(split, tokenizer, batch_size=options.batch_size, max_length=options.max_length)
    module = Classifier(model, learning_rate=options.learning_rate, warmup=options.warmup, weight_decay=options.weight_decay)
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    pl.Trainer(max_epochs=epochs or options.epochs, enable_model_summary=False, **quiet).fit(module, datamodule=data)
    train, probes = (
        from_loader(loader, Columns(item="item"), "samples") for loader in (data.train_dataloader(), data.val_dataloader())
    )
    model.eval()  # type: ignore[no-untyped-call]
    return model, train, probes


def calibrated(model: nn.Module, capture: Capture, samples: SampleSet, names: frozenset[str]) -> dict[str, float]:
    """Each parameter's share of the energy in these samples' gradients."""
    squared = {name: torch.zeros(len(samples)) for name in names}

    def measure(_at: int, batch: list[int], parameter: str, forms: tuple[Form, ...]) -> None:
        squared[parameter][batch] = squared_norms(forms)

    pass_over(model, capture, samples, list(batches(samples)), measure)
    return energy_shares(squared)


def keep(sketches: list[Sketch], out: list[Tensor], batch: list[int], parameter: str, forms: tuple[Form, ...]) -> None:
    """Put the features of one parameter where they belong."""
    for sketch, features in zip(sketches, out, strict=True):
        features[batch, sketch.layout[parameter]] = sketch.features(parameter, forms)


def pass_over(
    model: nn.Module,
    capture: Capture,
    samples: SampleSet,
    groups: Sequence[list[int]],
    consumer: Callable[[int, list[int], str, tuple[Form, ...]], None],
) -> None:
    """Hand every batch's gradients to `consumer`, with the number of samples before it and its samples."""
    at = 0
    for batch in groups:
        inputs = samples.batch(batch)
        capture.run(partial(summed_loss, model, inputs, len(batch)), len(batch), partial(consumer, at, batch))
        at += len(batch)


def summed_loss(model: nn.Module, inputs: Any, samples: int) -> Tensor:
    """The sum of a batch's losses, of a classifier whose loss is their mean."""
    loss: Tensor = model(**inputs).loss * samples
    return loss


def batches(samples: SampleSet, size: int = 32) -> Iterator[list[int]]:
    """Batches of similar length, shortest first."""
    order = sorted(range(len(samples)), key=lambda index: samples.sizes[index])
    for at in range(0, len(order), size):
        yield order[at : at + size]


def agreement(exact: Tensor, estimated: Tensor) -> dict[str, float]:
    """Per probe (columns), Spearman correlation and overlap of the top; their means and least values."""
    correlations = torch.tensor(
        [scipy.stats.spearmanr(a, b).statistic for a, b in zip(exact.T.numpy(), estimated.T.numpy(), strict=True)]
    )
    tops = [scores.topk(TOP, dim=0).indices.T.tolist() for scores in (exact, estimated)]
    overlaps = torch.tensor([len({*a} & {*b}) / TOP for a, b in zip(*tops, strict=True)])
    return {
        "spearman": float(correlations.mean()),
        "spearman_least": float(correlations.min()),
        "overlap": float(overlaps.mean()),
        "overlap_least": float(overlaps.min()),
    }


if __name__ == "__main__":
    main()
