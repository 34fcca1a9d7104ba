"""Sentence representations equal the mean of the hidden states of each sample alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from lightning_tracin import TracInError
from lightning_tracin.attribution.losses import StepLoss
from lightning_tracin.attribution.representations import sentence_representations
from lightning_tracin.attribution.samples import from_loader
from lightning_tracin.config import SampleColumns
from tests.support.fits import Classifier, loaders
from tests.support.models import padded


def test_mean_over_positions_without_padding() -> None:
    module = Classifier().eval()
    samples = from_loader(loaders()[0], SampleColumns(), "train samples")
    found = sentence_representations(module, samples, StepLoss(module, "mean"), lambda batch: batch, batch_size=7)
    with torch.no_grad():
        for index in (0, 13, 29):
            alone = padded(samples.items([index]))
            states = module.model.roberta(alone["input_ids"], attention_mask=alone["attention_mask"]).last_hidden_state
            np.testing.assert_allclose(found[index], states[0].mean(0), atol=1e-5)
    assert found.shape == (30, 16)
    assert not module.model.roberta._forward_hooks


def test_a_module_without_a_model_of_transformers_is_an_error() -> None:
    samples = from_loader(loaders()[0], SampleColumns(), "train samples")
    with pytest.raises(TracInError, match="contains no transformers model"):
        sentence_representations(nn.Linear(2, 2), samples, StepLoss(nn.Linear(2, 2), "mean"), lambda batch: batch)


def test_a_loss_that_calls_the_model_twice_is_an_error() -> None:
    class Twice(Classifier):
        def training_step(self, batch, batch_idx=0):  # type: ignore[no-untyped-def]
            return self.model(**batch).loss + self.model(**batch).loss

    module = Twice().eval()
    samples = from_loader(loaders()[0], SampleColumns(), "train samples")
    with pytest.raises(TracInError, match="calls XLMRobertaModel 2 times"):
        sentence_representations(module, samples, StepLoss(module, "mean"), lambda batch: batch)
