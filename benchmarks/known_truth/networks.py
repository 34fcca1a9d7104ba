"""The models that are fitted, and a world's texts as they take them: ids of whole words."""

from __future__ import annotations

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import XLMRobertaConfig, XLMRobertaForSequenceClassification

from benchmarks.known_truth.permuted_encoder import PermutedEncoder
from benchmarks.known_truth.plan import Plan
from benchmarks.known_truth.worlds import World
from lightning_tracin.storage.sample_table import SampleTable
from lightning_tracin.studies.datasets.clones import words
from lightning_tracin.studies.models.classifier import adamw_with_warmup, label_names

PADDING, START, FIRST_WORD = 1, 0, 3
WARMUP, DECAY, SPREAD = 0.1, 0.01, 0.05


class Texts(Dataset[dict[str, Tensor]]):
    """The samples of a table as ids; its columns are attributes, where the callbacks read them."""

    def __init__(self, table: SampleTable, ids: Tensor, labels: Tensor) -> None:
        self.language, self.item, self.label = list(table.language), list(table.item), list(table.label)
        self.ids, self.labels = ids, labels

    def __len__(self) -> int:
        return len(self.language)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.ids[index], "labels": self.labels[index]}


class Encoded:
    """A world as tensors.

    Attributes:
        train: the train samples.
        probes: the probes.
        words: the word of each id; None where an id is no word.
        classes: number of labels.
    """

    def __init__(self, world: World, plan: Plan) -> None:
        texts = {name: [words(text)[: plan.words] for text in table.text] for name, table in _parts(world)}
        every = sorted({word for part in texts.values() for text in part for word in text})
        number = {word: FIRST_WORD + index for index, word in enumerate(every)}
        label = {name: index for index, name in enumerate(world.labels)}
        longest = 1 + max(len(text) for part in texts.values() for text in part)
        self.words, self.classes, self.longest = [*[None] * FIRST_WORD, *every], len(label), longest

        def encoded(name: str, table: SampleTable) -> Texts:
            ids = torch.full((len(table), longest), PADDING)
            for row, text in enumerate(texts[name]):
                ids[row, : len(text) + 1] = torch.tensor([START, *(number[word] for word in text)])
            return Texts(table, ids, torch.tensor([label[str(one)] for one in table.label]))

        self.train, self.probes = (encoded(name, table) for name, table in _parts(world))


def _parts(world: World) -> list[tuple[str, SampleTable]]:
    return [("train", world.train), ("probes", world.probes)]


class MeanOfWords(nn.Module):
    """The mean of word embeddings, one hidden layer, and a head."""

    def __init__(self, vocabulary: int, classes: int, width: int) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, width, padding_idx=PADDING)
        nn.init.normal_(self.words.weight, std=SPREAD)  # a word that is in no train document then says next to nothing
        self.hidden, self.head = nn.Linear(width, width), nn.Linear(width, classes)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits [texts, classes] of ids [texts, words]."""
        sizes = (ids != PADDING).sum(1, keepdim=True)
        logits: Tensor = self.head(torch.tanh(self.hidden(self.words(ids).sum(1) / sizes.sqrt())))
        return logits


class OneLayer(nn.Module):
    """XLM-R with one layer and random weights."""

    def __init__(self, vocabulary: int, classes: int, width: int, longest: int) -> None:
        super().__init__()
        config = XLMRobertaConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            num_hidden_layers=1,
            num_attention_heads=4,
            intermediate_size=2 * width,
            max_position_embeddings=longest + 2,
            type_vocab_size=1,
            pad_token_id=PADDING,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            initializer_range=0.1,
            **label_names([str(number) for number in range(classes)]),
        )
        self.model = XLMRobertaForSequenceClassification(config)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits [texts, classes] of ids [texts, words]."""
        logits: Tensor = self.model(input_ids=ids, attention_mask=(ids != PADDING).long()).logits
        return logits


def network_of(model: str, data: Encoded, plan: Plan) -> nn.Module:
    """A network with first weights from the current random seed; of the pretrained encoder, these are the head's."""
    if model == "mlp":
        return MeanOfWords(len(data.words), data.classes, plan.width)
    if model == "xlmr":
        return OneLayer(len(data.words), data.classes, plan.width, data.longest)
    return PermutedEncoder(data.words, data.classes, PADDING)


class WordClassifier(pl.LightningModule):
    """An ordinary module: AdamW, a linear warm-up, and a linear decay to zero."""

    def __init__(self, network: nn.Module, learning_rate: float) -> None:
        super().__init__()
        self.network, self.learning_rate = network, learning_rate

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """The mean loss of a batch."""
        del batch_idx
        return F.cross_entropy(self.network(batch["input_ids"]), batch["labels"])

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW and its schedule."""
        return adamw_with_warmup(self, self.learning_rate, WARMUP, DECAY)
