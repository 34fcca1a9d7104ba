"""A term that depends on the batch is refused however small it is; rounding is not, and is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_tracin import TracInCallback, TracInError, TracInRun
from tests.support.fits import Classifier, Samples, loaders, trainer
from tests.support.models import padded


class Routed(Classifier):
    """A load-balancing loss as mixtures of experts have it: the product of two means over the batch, times a small factor."""

    factor, seen = 0.0025, True

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        output = self.model(**batch, output_hidden_states=True)
        hidden = output.hidden_states[-1] if self.seen else output.hidden_states[-1].detach()
        shares = hidden.mean(1)[:, :4].softmax(-1).mean(0)
        return output.loss + self.factor * 4 * (shares * shares).sum()


class RoutedDetached(Routed):
    """Its gradient is that of single samples; its loss is not."""

    seen = False


class Deep(pl.LightningModule):
    """Float32 loses digits in its layers."""

    def __init__(self, summed: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.summed = summed
        self.table = nn.Embedding(60, 64, padding_idx=1)
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(30))
        self.head = nn.Linear(64, 3)
        for layer in self.layers:
            nn.init.normal_(layer.weight, std=0.25)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        hidden = self.table(batch["input_ids"]).sum(1)
        for layer in self.layers:
            hidden = torch.tanh(layer(hidden))
        loss = F.cross_entropy(self.head(hidden), batch["labels"], reduction="none")
        return torch.dot(loss, torch.ones_like(loss)) / (1 if self.summed else len(loss))  # a reduction that is not seen

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 1e-6)


def fitted(folder: Path, module: pl.LightningModule, **options: Any) -> TracInRun:
    pl.seed_everything(3)
    train, probes = loaders()
    trainer(folder, [TracInCallback(folder / "run", top_k=5, **options)], max_epochs=1).fit(module, train, probes)
    return TracInRun.open(folder / "run")


@pytest.mark.parametrize("kind", [Routed, RoutedDetached])
def test_a_small_term_that_depends_on_the_batch_is_refused_before_the_fit(tmp_path: Path, kind: type[Routed]) -> None:
    module = kind()
    with torch.no_grad():
        batch = padded(Samples(8, 1).samples)
        term = float(module.eval().training_step(batch, 0) - module.model(**batch).loss)
    assert 0.002 < term < 0.006
    with pytest.raises(TracInError, match=r"neither the mean nor the sum|gradient of a batch is not the sum"):
        fitted(tmp_path, kind())
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.parametrize("summed", [False, True])
def test_rounding_of_a_deep_model_is_kept_in_the_record(
    tmp_path: Path, summed: bool, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        run = fitted(tmp_path, Deep(summed))
    kept = run.record.deviation
    assert kept is not None
    assert 2e-5 < kept < 1e-3
    assert json.loads((tmp_path / "run" / "run.json").read_text())["deviation"] == kept
    unit = "as each sample has it alone (loss_unit='sample')"
    said = f"the loss is {run.record.loss}, {unit}, whose batches differ from their samples alone by {kept:.0e}"
    assert said in caplog.text + capsys.readouterr().err


def test_a_run_without_the_deviation_opens(tmp_path: Path) -> None:
    run = fitted(tmp_path, Classifier())
    assert run.record.deviation is not None
    assert run.record.deviation < 1e-5
    path = tmp_path / "run" / "run.json"
    record = json.loads(path.read_text())
    del record["deviation"], record["checksum"]
    path.write_text(json.dumps(record))
    assert TracInRun.open(tmp_path / "run").record.deviation is None


def test_transformers_that_force_float32_steps_are_exact_in_float64(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForSequenceClassification

    class Llama(Classifier):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            config = LlamaConfig(
                vocab_size=60, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, pad_token_id=1
            )
            config.num_labels = 3
            self.model = LlamaForSequenceClassification(config)  # type: ignore[assignment]

    pl.seed_everything(3)
    train, probes = (DataLoader(Samples(*which).samples, batch_size=7, collate_fn=padded) for which in ((30, 1), (9, 2)))  # type: ignore[arg-type, var-annotated]
    callback = TracInCallback(
        tmp_path / "run", top_k=5, dtype="float64", languages=Samples(30, 1).language, languages_of_probes=Samples(9, 2).language
    )
    trainer(tmp_path, [callback], max_epochs=1).fit(Llama(), train, probes)
    kept = TracInRun.open(tmp_path / "run").record.deviation
    assert kept is not None
    assert kept < 2e-5
