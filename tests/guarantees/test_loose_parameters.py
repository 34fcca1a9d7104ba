"""Parameters that a step uses without calling their module: scores of whole fits equal a loop over single samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_tracin import TracInCallback, TracInRun
from lightning_tracin.storage.snapshots import load_weights
from tests.support.fits import Samples, trainer
from tests.support.models import PAD, padded
from tests.support.oracles import gradient_loop, ingredients_loop

WIDTH = 8


class Module(pl.LightningModule):
    """A step that does everything itself; layers are used as a test needs them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.words, self.head = nn.Embedding(60, WIDTH, padding_idx=PAD), nn.Linear(WIDTH, 3)

    def encode(self, batch: dict[str, Tensor]) -> Tensor:
        """[samples, width]"""
        raise NotImplementedError

    def logits(self, batch: dict[str, Tensor]) -> Tensor:
        return self.head(self.encode(batch))

    def mean(self, batch: dict[str, Tensor], x: Tensor) -> Tensor:
        mask = batch["attention_mask"][..., None]
        return (x * mask).sum(1) / mask.sum(1)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self.logits(batch), batch["labels"])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


class NoModule(Module):
    """Calls no module at all."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.matrix, self.scale = (
            nn.Parameter(torch.randn(shape) * 0.5) for shape in ((60, WIDTH), (WIDTH, 3), (WIDTH,))
        )
        del self.words, self.head

    def logits(self, batch: dict[str, Tensor]) -> Tensor:
        return torch.tanh(self.mean(batch, self.table[batch["input_ids"]]) * self.scale) @ self.matrix


class Functional(Module):
    """Uses its layers' weights by functions, one bias once more by hand."""

    def encode(self, batch: dict[str, Tensor]) -> Tensor:
        return torch.tanh(self.mean(batch, F.embedding(batch["input_ids"], self.words.weight, padding_idx=PAD)))

    def logits(self, batch: dict[str, Tensor]) -> Tensor:
        hidden = self.encode(batch)
        return self.head(hidden) * torch.sigmoid(F.linear(hidden, self.head.weight)) + 0.5 * self.head.bias


class Net(nn.Module):
    """A network whose step calls a method other than `forward`."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(WIDTH, WIDTH, batch_first=True)
        self.lstm = nn.LSTM(WIDTH, WIDTH, batch_first=True)
        self.mix = nn.Linear(WIDTH, WIDTH)

    def encode(self, x: Tensor, lengths: Tensor) -> Tensor:
        last = torch.arange(len(x)), lengths - 1
        return self.mix(self.gru(x)[0][last] + self.lstm(x)[0][last]) + self.mix.bias


class InMethods(Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def encode(self, batch: dict[str, Tensor]) -> Tensor:
        return self.net.encode(self.words(batch["input_ids"]), batch["attention_mask"].sum(1))


class Packed(InMethods):
    """Packs the sequences, so that the recurrent network never sees a batch dimension."""

    def encode(self, batch: dict[str, Tensor]) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(
            self.words(batch["input_ids"]), batch["attention_mask"].sum(1), batch_first=True, enforce_sorted=False
        )
        hidden, _ = nn.utils.rnn.pad_packed_sequence(self.net.gru(packed)[0], batch_first=True)
        other, _ = nn.utils.rnn.pad_packed_sequence(self.net.lstm(packed)[0], batch_first=True)
        return self.net.mix(self.mean(batch, hidden + other))


class Adapters(Module):
    """An adapter for each label's remainder (as one for each language), in a dict, for selected samples; a weight for each."""

    def __init__(self) -> None:
        super().__init__()
        self.adapters = nn.ModuleDict({str(number): nn.Linear(WIDTH, WIDTH) for number in range(3)})
        self.weights = nn.Parameter(torch.tensor([0.5, -0.3, 0.2]))

    def encode(self, batch: dict[str, Tensor]) -> Tensor:
        hidden, first = self.mean(batch, self.words(batch["input_ids"])), batch["input_ids"][:, 1] % 3
        out = torch.zeros_like(hidden)
        for number, (_, adapter) in enumerate(self.adapters.items()):
            if bool((first == number).any()):
                out[first == number] = adapter(hidden[first == number])
        return torch.tanh(hidden + out * self.weights[first][:, None].exp())


class Looped(Module):
    """Goes through its batch sample by sample."""

    def __init__(self) -> None:
        super().__init__()
        self.tree, self.start = nn.Linear(2 * WIDTH, WIDTH), nn.Parameter(torch.randn(WIDTH))

    def encode(self, batch: dict[str, Tensor]) -> Tensor:
        found = []
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
            state = self.start
            for word in self.words(ids[mask.bool()])[:4]:
                state = torch.tanh(self.tree(torch.cat([state, word])))
            found.append(state)
        return torch.stack(found)


class Transitions(Module):
    """A CRF over words: emissions, and transitions that are a parameter; the tags are the words' remainders."""

    def __init__(self) -> None:
        super().__init__()
        self.transitions, self.begin = nn.Parameter(torch.randn(3, 3)), nn.Parameter(torch.randn(3))

    def per_sample(self, batch: dict[str, Tensor]) -> Tensor:
        scores, tags, mask = self.head(self.words(batch["input_ids"])), batch["input_ids"] % 3, batch["attention_mask"].bool()
        rows = torch.arange(len(tags))
        alpha = self.begin + scores[:, 0]
        gold = alpha[rows, tags[:, 0]]
        for at in range(1, tags.shape[1]):
            moved = torch.logsumexp(alpha[:, :, None] + self.transitions, 1) + scores[:, at]
            step = self.transitions[tags[:, at - 1], tags[:, at]] + scores[rows, at, tags[:, at]]
            alpha, gold = torch.where(mask[:, at, None], moved, alpha), gold + step * mask[:, at]
        return torch.logsumexp(alpha, 1) - gold

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self.per_sample(batch).mean()


class LowRank(Module):
    """LoRA held in a `ParameterList`, and a prompt that an LSTM makes."""

    def __init__(self) -> None:
        super().__init__()
        self.low = nn.ParameterList([torch.randn(2, WIDTH) * 0.5, torch.randn(WIDTH, 2) * 0.5])
        self.prompt, self.lstm = nn.Embedding(3, WIDTH), nn.LSTM(WIDTH, WIDTH, batch_first=True)

    def encode(self, batch: dict[str, Tensor]) -> Tensor:
        prompt = self.lstm(self.prompt(torch.arange(3))[None])[0].expand(len(batch["labels"]), -1, -1)
        words = self.mean(batch, self.words(batch["input_ids"]))
        return torch.tanh(words + words @ self.low[0].T @ self.low[1].T) * prompt.mean(1)


class StateSpace(Module):
    """A small Mamba: a causal depthwise convolution, and a recurrence with parameters of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(WIDTH, WIDTH, 3, groups=WIDTH, padding=2)
        self.decay, self.skip, self.step = (
            nn.Parameter(torch.randn(WIDTH)),
            nn.Parameter(torch.ones(WIDTH)),
            nn.Linear(WIDTH, WIDTH),
        )

    def encode(self, batch: dict[str, Tensor]) -> Tensor:
        x = self.words(batch["input_ids"])
        x = F.silu(self.convolution(x.transpose(1, 2))[..., : x.shape[1]].transpose(1, 2))
        state, outputs = torch.zeros_like(x[:, 0]), []
        for at in range(x.shape[1]):
            size = F.softplus(self.step(x[:, at]))
            state = torch.exp(-size * self.decay.exp()) * state + size * x[:, at]
            outputs.append(state + self.skip * x[:, at])
        return self.mean(batch, torch.stack(outputs, 1))


class Uncertain(Module):
    """Learned loss weights for two tasks."""

    def __init__(self) -> None:
        super().__init__()
        self.uncertainty = nn.Parameter(torch.tensor([0.3, -0.2]))
        self.second = nn.Linear(WIDTH, 1)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        hidden = torch.tanh(self.mean(batch, self.words(batch["input_ids"])))
        one = F.cross_entropy(self.head(hidden), batch["labels"])
        two = F.mse_loss(self.second(hidden)[:, 0], batch["labels"].float())
        weights = torch.exp(-self.uncertainty)
        return weights[0] * one + weights[1] * two + self.uncertainty.sum()


class Pairs(Module):
    """Anchors, positives and negatives in one batch of three times as many rows."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(WIDTH, WIDTH)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        ids = batch["input_ids"]
        three = torch.cat([ids, (ids + 7) % 60, (ids * 3) % 60])
        mask = batch["attention_mask"].repeat(3, 1)
        anchor, positive, negative = self.mix(self.mean({"attention_mask": mask}, self.words(three))).chunk(3)
        return F.triplet_margin_loss(anchor, positive, negative, margin=5.0)


class Sorting(Module):
    """Sorts its batch by length, so that nothing in it is in the order of the samples."""

    def encode(self, batch: dict[str, Tensor]) -> Tensor:
        return torch.tanh(self.mean(batch, self.words(batch["input_ids"])))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        order = batch["attention_mask"].sum(1).argsort(descending=True)
        return super().training_step({name: value[order] for name, value in batch.items()}, batch_idx)


class ZeroHead(Module):
    """A weight that is used by its layer and by hand, behind a head of zeros: the check before the fit sees no gradient of it."""

    def __init__(self) -> None:
        super().__init__()
        self.mixing = nn.Linear(WIDTH, WIDTH)
        nn.init.zeros_(self.head.weight)

    def encode(self, batch: dict[str, Tensor]) -> Tensor:
        hidden = self.mean(batch, self.words(batch["input_ids"]))
        return torch.tanh(F.linear(hidden, self.mixing.weight) + self.mixing(hidden))


KINDS = [
    Sorting,
    ZeroHead,
    NoModule,
    Functional,
    InMethods,
    Packed,
    Adapters,
    Looped,
    Transitions,
    LowRank,
    StateSpace,
    Uncertain,
    Pairs,
]


@pytest.mark.parametrize("kind", KINDS)
def test_scores_of_a_fit_equal_the_loop(tmp_path: Path, kind: type[Module]) -> None:
    pl.seed_everything(3)
    module, train, probes = kind(), Samples(22, 1), Samples(7, 2)
    callback = TracInCallback(tmp_path / "run", top_k=3, batch_size=4, every_n_epochs=1, preconditioner=None)
    loaders = (DataLoader(data, batch_size=6, shuffle=data is train, collate_fn=padded) for data in (train, probes))
    trainer(tmp_path, [callback], max_epochs=1).fit(module, *loaders)
    run = TracInRun.open(tmp_path / "run")
    (snapshot,) = run.snapshots
    module = module.double().eval()
    load_weights(module, {name: weight.double() for name, weight in snapshot.state_dict().items()})
    names = [name for name, _ in module.named_parameters()]
    loops = [
        gradient_loop(module, lambda sample: module.training_step(padded([sample]), 0), data.samples, names)
        for data in (train, probes)
    ]
    dot, norm, probe_norm = ingredients_loop(*loops, dict.fromkeys(names, 0), 1)
    off = np.abs(run.influence("dot", "uniform").to_numpy() - dot[0].numpy()) / (norm[0][:, None] * probe_norm[0]).numpy()
    assert off.max() <= 1e-5
    covered = sum(elements for _, elements in run.record.coverage.values())
    assert covered == sum(parameter.numel() for parameter in module.parameters())
