"""Checkpoints of a fit that had no callback, taken into a run directory on which `attribute` works.

Two layouts are read: `.ckpt` files of Lightning's ModelCheckpoint, and `checkpoint-N` folders of Hugging Face's Trainer.
"""

from __future__ import annotations

import json
import pickle
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_tracin.checks import check_gradients, checked_loss
from lightning_tracin.directory import RunDirectory, RunRecord, known_samples, package_versions
from lightning_tracin.environment import OneProcess, preparation
from lightning_tracin.errors import TracInError
from lightning_tracin.gradients import plan_coverage
from lightning_tracin.isolation import isolated_copy, untouched_process
from lightning_tracin.learning_rates import group_of_parameters
from lightning_tracin.options import Options
from lightning_tracin.probes import chosen_probes, probes_from_loaders
from lightning_tracin.run import TracInRun
from lightning_tracin.samples import from_loader
from lightning_tracin.snapshots import SnapshotRecord, frozen_digest, load_weights, weights_of
from lightning_tracin.store import read_tensors


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint, read.

    Attributes:
        path: of its file or folder.
        epoch: number of the epoch it was taken in, from 1.
        step: optimizer steps made so far.
        passed: how often a train sample had been seen on average.
        weights: by the names that they have in the module.
        rates: learning rates: of each group at the checkpoint alone, or of one group at several steps so far.
    """

    path: Path
    epoch: int
    step: int
    passed: float
    weights: Mapping[str, Tensor]
    rates: Sequence[float]
    logged: Mapping[int, float] | None = None  # step -> learning rate, where a log has them
