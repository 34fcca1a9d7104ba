"""The fits behind the linear datamodelling score: one on all train samples, and many on random halves of them.

`runs/lds/<name>/` holds `trial.json` (the settings), `run-<way>/` (the run directories of the fit on all samples, one for each
method of the package; the fits are the same), `moments/` (Adam's second moments at each snapshot) and `refits/` (what each model
fitted on a half says about the probes). Every file is written completely or not at all, and existing files are not computed
again.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from lightning_tracin import TracInCallback, TracInError, TracInRun
from lightning_tracin.analysis.lds import Members, Outputs, draw_subsets
from lightning_tracin.storage.files import read_tensors, write_bytes, write_tensors
from lightning_tracin.studies.data import load_split
from lightning_tracin.studies.models.classifier import Classifier, tokenizer_and_model
from lightning_tracin.studies.named_scores import SCORES, Way, settings_of, ways_of
from lightning_tracin.studies.settings import FitSettings
from lightning_tracin.studies.text_data import TextDataModule

# Training is slow and short because of `stability`: at a learning rate of 2e-3, exchanging 1 % of a half changes the probes'
# margins by more than half as much as exchanging all of it, so there is little to predict.
SMALL = {"hidden_size": 64, "layers": 2, "batch_size": 64, "probes_per_language": 30, "threads": 1, "dropout": 0.0}
OPTIONS = {
    "cldr": FitSettings(
        data="cldr",
        train_languages=["en", "de", "es", "ru", "ko"],
        learning_rate=7e-4,
        epochs=6,
        **SMALL,  # type: ignore[arg-type]
    ),
    "nusax": FitSettings(
        data="nusax-senti/{language}/train.csv",
        probe_data="nusax-senti/{language}/test.csv",
        item_column="id",
        train_languages=["english", "indonesian", "javanese", "sundanese", "minangkabau"],
        vocabulary_size=2000,
        max_length=64,
        learning_rate=5e-4,
        epochs=4,
        **{**SMALL, "hidden_size": 96, "layers": 1},  # type: ignore[arg-type]
    ),
    "sib200": FitSettings(
        data="sib200/{language}/train.tsv",
        probe_data="sib200/{language}/test.tsv",
        item_column="index_id",
        label_column="category",
        train_languages=["eng_Latn", "deu_Latn", "rus_Cyrl", "zho_Hans", "kor_Hang"],
        model="use-multilingual",
        freeze_embeddings=True,
        train_per_language=60,
        learning_rate=3e-4,
        epochs=4,
        batch_size=32,
        probes_per_language=20,
        threads=1,
        dropout=0.0,
    ),
}

#: Features of whitened scores.
PROJECTION_DIM = 4096


@dataclasses.dataclass(frozen=True)
class Trial:
    """What is fitted, on which data, from which first weights."""

    name: str
    folder: Path
    options: FitSettings
    data: TextDataModule
    module: Classifier  # with the first weights; it is copied, never fitted

    def run(self, way: Way) -> Path:
        """The run directory of the fit on all train samples with this method."""
        return self.folder / f"run-{way}"

    def outputs(self, way: Way) -> Path:
        """What the model of that fit says about the probes."""
        return self.folder / f"outputs-{way}.safetensors"


class BatchesOfMembers(Sampler[list[int]]):
    """The batches of the fit on all train samples, without those that are not members of a subset.

    So every fit sees a sample at the same optimizer step, and fits differ only by the samples that are left out.
    """

    def __init__(self, members: np.ndarray[Any, np.dtype[np.bool_]], batch_size: int, seed: int) -> None:
        self.members, self.batch_size, self.seed, self.epoch = members, batch_size, seed, 0
        self.sampler = self  # where the Trainer looks for `set_epoch`

    def __len__(self) -> int:
        return -(-len(self.members) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(len(self.members))
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            kept: list[int] = batch[self.members[batch]].tolist()
            if not kept:
                raise TracInError(f"A batch of {len(batch)} has no member of the subset: make --batch_size larger.")
            yield kept

    def set_epoch(self, epoch: int) -> None:
        """Called by the Trainer before each epoch."""
        self.epoch = epoch


class KeepMoments(pl.Callback):
    """Writes Adam's second moments, corrected for their bias, at the end of each epoch: parameter name -> E[g²]."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the moments of a snapshot, under the snapshot's number."""
        optimizer = trainer.optimizers[0]
        _, beta = optimizer.param_groups[0]["betas"]
        moments = {}
        for name, parameter in pl_module.named_parameters():
            if not parameter.requires_grad:
                continue
            state = optimizer.state[parameter]
            moments[name] = (state["exp_avg_sq"] / (1 - beta ** float(state["step"]))).clone()
        write_tensors(self.folder / f"{trainer.current_epoch:04d}.safetensors", moments)


def trial(name: str, data_dir: Path, root: Path, **changes: Any) -> Trial:
    """Load the data and make the first weights; continue a trial with the same settings.

    Raises:
        TracInError: the folder holds fits of other settings.
    """
    options = dataclasses.replace(OPTIONS[name], data_dir=str(data_dir), **changes)
    folder = root / name
    settings = json.dumps({**dataclasses.asdict(options), "data_dir": None}, indent=1)
    record = folder / "trial.json"
    if record.exists() and record.read_text() != settings:
        raise TracInError(f"{folder} holds fits of other settings; compare {record}, then name another --output or delete it.")
    write_bytes(record, settings.encode())
    torch.set_num_threads(options.threads or 1)
    pl.seed_everything(options.seed)
    split, _ = load_split(options)
    tokenizer, model = tokenizer_and_model(options, split)
    data = TextDataModule(split, tokenizer, batch_size=options.batch_size, max_length=options.max_length)
    module = Classifier(model, learning_rate=options.learning_rate, warmup=options.warmup, weight_decay=options.weight_decay)
    made = Trial(name, folder, options, data, module)
    first = folder / "first.safetensors"
    weights = {name: tensor.detach() for name, tensor in module.model.state_dict().items()}
    if first.exists():
        stored = read_tensors(first)
        if any(not torch.equal(stored[name], weights[name]) for name in weights):
            raise TracInError(
                f"The first weights are not those of {first}: the fits there cannot be taken up; name another --output."
            )
    else:
        write_tensors(first, weights)
    return made


def fit(made: Trial, members: np.ndarray[Any, np.dtype[np.bool_]], repeat: int, callbacks: list[pl.Callback]) -> Classifier:
    """Fit the first weights on some of the train samples; `repeat` changes their order, nothing else."""
    pl.seed_everything(made.options.seed + repeat, verbose=False)
    module = copy.deepcopy(made.module)
    loader = DataLoader(
        made.data.train,
        batch_sampler=BatchesOfMembers(members, made.options.batch_size, made.options.seed + repeat),
        collate_fn=made.data.collate,
    )
    trainer = pl.Trainer(
        max_epochs=made.options.epochs,
        accelerator="cpu",
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        default_root_dir=made.folder,
    )
    trainer.fit(module, loader)
    return module.eval()


def full_fit(made: Trial, way: Way) -> None:
    """Fit on all train samples, with the callback under test."""
    if made.outputs(way).exists():
        return
    callback = TracInCallback(
        dirpath=made.run(way),
        probes=made.data.val_dataloader(),
        max_probes_per_language=None,
        item_column="item",
        batch_size=64,
        top_k=100,
        **settings_of(way, PROJECTION_DIM),
    )
    module = fit(made, np.ones(len(made.data.train), dtype=np.bool_), 0, [callback, KeepMoments(made.folder / "moments")])
    write_tensors(made.outputs(way), {"margin": margins(module, made), **accuracies(module, made)})


def require_same_fit(made: Trial) -> None:
    """Refuse to compare scores of fits that differ: every snapshot has the same weights in all ways, bit by bit.

    Raises:
        TracInError: a weight differs.
    """
    first = TracInRun.open(made.run("exact")).snapshots
    for way in ways_of(tuple(SCORES)):
        others = TracInRun.open(made.run(way)).snapshots
        for one, other in zip(first, others, strict=True):
            want, have = one.state_dict(), other.state_dict()
            unequal = [name for name in want if not torch.equal(want[name], have[name])]
            if unequal:
                raise TracInError(
                    f"{unequal[0]} at {other.name} of {made.run(way)} is not that of {made.run('exact')}: these are other fits, "
                    "and their scores cannot be compared; delete both, with their outputs, to fit them again."
                )


def refits(made: Trial, subsets: int, repeat: int, fraction: float = 0.5) -> tuple[Members, Outputs]:
    """What models fitted on random halves say about the probes, as `margins`: [subsets, probes], with the halves' members.

    Results on disk are read; the rest is fitted.
    """
    members = draw_subsets(len(made.data.train), subsets, fraction, made.options.seed)
    found = []
    for i, line in enumerate(members):
        path = made.folder / "refits" / f"repeat{repeat}-subset{i:03d}.safetensors"
        if not path.exists():
            start = time.perf_counter()
            module = fit(made, line, repeat, [])
            write_tensors(path, {"members": torch.from_numpy(line), "margin": margins(module, made)})
            print(f"{made.name}: refit {i + 1} of {subsets}, repeat {repeat}: {time.perf_counter() - start:.1f} s", flush=True)
        stored = read_tensors(path)
        if not np.array_equal(stored["members"].numpy(), line):
            raise TracInError(f"{path} was fitted on another subset; delete it to have it fitted again.")
        found.append(stored)
    return members, np.stack([one["margin"].double().numpy() for one in found])


def stability(made: Trial) -> float:
    """How much exchanging 1 % of a half changes the probes' margins, relative to another half (root mean squares).

    A model whose margins are linear in its train samples has 0.14. Near 1, refits are chance and no score predicts them.
    """
    first, other = draw_subsets(len(made.data.train), 2, seed=5)
    exchanged, count = first.copy(), len(first) // 200
    generator = np.random.default_rng(1)
    exchanged[generator.choice(np.flatnonzero(first), count, replace=False)] = False
    exchanged[generator.choice(np.flatnonzero(~first), count, replace=False)] = True
    found = [margins(fit(made, members, 0, []), made) for members in (first, exchanged, other)]
    little, much = ((margin - found[0]).square().mean().sqrt() for margin in found[1:])
    return float(little / much)


@torch.no_grad()
def margins(module: Classifier, made: Trial) -> Tensor:
    """The log-odds of each probe's label (Park et al. 2023, section 2); its loss has the opposite order: [probes]."""
    found = []
    for batch in made.data.val_dataloader():
        logits, labels = module.model(**batch).logits.double(), batch["labels"]
        label = torch.nn.functional.one_hot(labels, logits.shape[1]).bool()
        found.append(logits[label] - logits.masked_fill(label, -torch.inf).logsumexp(1))
    return torch.cat(found)


@torch.no_grad()
def accuracies(module: Classifier, made: Trial) -> dict[str, Tensor]:
    """Accuracy on train samples, probes and test samples, and that of always predicting the most frequent train label."""
    found = {}
    majority = int(np.bincount(made.data.train.with_format(None)["label"]).argmax())
    for name, part in (("train", made.data.train), ("probes", made.data.probes), ("test", made.data.test)):
        loader = DataLoader(part, batch_size=64, collate_fn=made.data.collate)
        hits = [(module.model(**batch).logits.argmax(1) == batch["labels"]) for batch in loader]
        found[f"accuracy_{name}"] = torch.cat(hits).double().mean()
        found[f"majority_{name}"] = torch.tensor(np.mean(np.array(part.with_format(None)["label"]) == majority))
    return found
