"""Attribution from a LightningCLI's YAML file: builds the fit's module and data, without its Trainer."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import yaml
from jsonargparse import ArgumentParser
from lightning_fabric import Fabric
from pytorch_lightning.utilities.model_helpers import is_overridden

from lightning_tracin.callbacks.tracin import TracInCallback
from lightning_tracin.errors import TracInError
from lightning_tracin.storage.directory import RunDirectory
from lightning_tracin.storage.filesystem import place
from lightning_tracin.storage.records import differing_options
from lightning_tracin.trainer.attribute import attribute

#: Data type of the weights under a Trainer's "true" precisions; any other precision leaves the module's own types.
_WEIGHTS = {"16-true": torch.float16, "bf16-true": torch.bfloat16, "64-true": torch.float64}

_HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")


def attribute_from_config(
    run: str, config: Path, accelerator: str | None = None, devices: int | None = None, mask: Path | None = None
) -> bool:
    """Compute the missing influence of a run, using the fit's LightningCLI configuration file.

    Args:
        run: the run directory.
        config: the YAML file, with the class paths of model and data. From its `trainer` section only accelerator, devices,
            number of nodes, precision and the TracInCallback are used.
        accelerator: overrides the file's.
        devices: overrides the file's.
        mask: overrides the file's.

    Returns:
        Whether this process is rank 0.

    Raises:
        TracInError: the file has no class paths, its objects cannot be built, its options differ from the run's, or
            `attribute` raises it.
    """
    values = _read(config)
    trainer: Mapping[str, Any] = values.get("trainer") or {}
    directory = RunDirectory(place(run))
    record = directory.record()
    if str(Path.cwd()) not in sys.path:  # find the user's own modules, as a script started here does
        sys.path.insert(0, str(Path.cwd()))
    try:
        callback, module, data = _built(values, _callback_section(trainer))
        train, validation = _loaders(module, data)
    except TracInError:
        raise
    except Exception as error:
        whole = "" if record.loss else "; let `configure_model` shard the model only where `self.device_mesh` is not None"
        raise TracInError(f"{config} does not build a module and its data: {_one_line(error)}{whole}") from error
    given: dict[str, Any] = {"mask": mask}
    if callback is not None:
        options = callback.options
        for name, ours, theirs in differing_options(options, record.options):
            raise TracInError(f"{config} sets {name}={ours}, but the run {run} was made with {theirs}; give the fit's own file.")
        given |= {name: getattr(options, name) for name in ("top_k", "similarity", "weighting", "memory_budget")}
        given |= {"languages": callback.languages.train, "languages_of_probes": callback.languages.probes}
        given["mask"] = options.mask if mask is None else mask
        validation = validation if callback.probes is None else callback.probes
    fabric = _fabric(trainer, accelerator, devices)
    fabric.launch()
    module.to(dtype=_WEIGHTS.get(str(trainer.get("precision"))))
    attribute(module, run, train, validation, fabric=fabric, **given)
    return bool(fabric.is_global_zero)


def _read(path: Path) -> Mapping[str, Any]:
    """The content of a LightningCLI file, or its `fit` section."""
    if not path.is_file():
        raise TracInError(f"There is no file {path}; give the YAML file of the fit's LightningCLI.")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise TracInError(f"{path} is not a YAML file: {_one_line(error)}") from error
    if isinstance(values, dict) and isinstance(values.get("fit"), dict):
        values = values["fit"]
    if not isinstance(values, dict) or not isinstance(values.get("model"), dict) or "class_path" not in values["model"]:
        raise TracInError(
            f"{path} does not name the class of the model; write `model: {{class_path: package.Module, init_args: ...}}` (and "
            "`data:` likewise), as for a `LightningCLI()` without arguments."
        )
    if values.get("data") is not None and "class_path" not in values["data"]:
        raise TracInError(
            f"{path} does not name the class of the data; write `data: {{class_path: package.Data, init_args: ...}}`."
        )
    return values


def _callback_section(trainer: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The section of TracInCallback; None if there is none."""
    callbacks = trainer.get("callbacks") or []
    sections = [one for one in (callbacks if isinstance(callbacks, list) else [callbacks]) if isinstance(one, dict)]
    name = TracInCallback.__name__
    return next((one for one in sections if str(one.get("class_path", "")).rpartition(".")[2] == name), None)


def _built(values: Mapping[str, Any], callback: Mapping[str, Any] | None) -> tuple[TracInCallback | None, Any, Any]:
    """The callback, the module and the data module; None for a callback or data module that the file does not have."""
    parser = ArgumentParser(exit_on_error=False)
    sections = {}
    for name, base, section in (
        ("model", _of_both("LightningModule"), values["model"]),
        ("data", _of_both("LightningDataModule"), values.get("data")),
        ("callback", TracInCallback, callback),
    ):
        if section is not None:
            parser.add_subclass_arguments(base, name, fail_untyped=False)
            sections[name] = section
    parsed = parser.parse_object(sections)
    seed = values.get("seed_everything", True)
    if seed is not False and seed is not None:
        pl.seed_everything(None if seed is True else int(seed), workers=True)
    built = parser.instantiate_classes(parsed)
    return built.get("callback"), built["model"], built.get("data")


def _loaders(module: Any, data: Any) -> tuple[Any, Any]:
    """The train loader and the validation loaders, after the hooks that a Trainer calls before it builds them."""
    source = module if data is None else data
    if data is not None:
        overridden = [name for name in _HOOKS if is_overridden(name, data)]
        if overridden:
            raise TracInError(
                f"{type(data).__name__} overrides {overridden[0]}, which only a Trainer calls; move it to the module, or call "
                "`lightning_tracin.attribute` with a module that has it."
            )
        data.prepare_data()
        data.setup("fit")
    else:
        module.prepare_data()
    module.setup("fit")
    module.configure_model()
    validation = source.val_dataloader() if is_overridden("val_dataloader", source) else None
    return source.train_dataloader(), validation


def _fabric(trainer: Mapping[str, Any], accelerator: str | None, devices: int | None) -> Fabric:
    """A Fabric over the processes that torchrun or SLURM has started, or over one process per device."""
    settings: dict[str, Any] = {
        "accelerator": accelerator or trainer.get("accelerator") or "auto",
        "devices": devices or trainer.get("devices") or "auto",
        "num_nodes": trainer.get("num_nodes") or 1,
    }
    if "TORCHELASTIC_RUN_ID" in os.environ and "LOCAL_WORLD_SIZE" in os.environ:
        here = int(os.environ["LOCAL_WORLD_SIZE"])
        settings |= {"devices": here, "num_nodes": int(os.environ["WORLD_SIZE"]) // here}
    return Fabric(**settings)


def _of_both(name: str) -> tuple[type, ...]:
    """A base class of `pytorch_lightning`, and its twin in `lightning.pytorch` if that is installed."""
    packages = ("pytorch_lightning", *(["lightning.pytorch"] if importlib.util.find_spec("lightning") else []))
    return tuple(getattr(importlib.import_module(package), name) for package in packages)


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
