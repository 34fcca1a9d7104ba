"""Check whether a study may resume in its folder: same settings (`study.json`) and same samples (`data.json`).

A new study writes `study.json` only after its data have passed all checks, so that invalid settings can still be corrected.
Until `probes.json` exists, the settings that choose the probes may change; the first fits are then deleted.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_tracin.errors import TracInError
from lightning_tracin.storage.files import write_bytes
from lightning_tracin.studies.datasets import Split
from lightning_tracin.studies.registry import all_experiments, chosen_experiments
from lightning_tracin.studies.settings import StudySettings

#: Settings that change no result and are not compared.
_FREE = ("output", "workers", "wandb_mode")
#: Settings that decide which samples become probes.
_CHOICE = {"candidates_per_language", "correct_probes", "fit.probes_per_language"}
#: Settings of every study that may change, because the existing fits stay valid. The data themselves are compared by digest.
_ADDABLE = frozenset({"fit.data_dir", "fit.threads", "experiments", "scores", "baselines"})


def begin_or_resume(settings: StudySettings, folder: Path, has_others: bool = False) -> bytes:
    """Check that a study can run in a folder, and return the contents of its `study.json`.

    Args:
        settings: of the study.
        folder: of the study.
        has_others: whether other processes work there now, whose settings may not change.

    Raises:
        TracInError: the folder holds a study with other settings; the message names the first that differs.
    """
    path = folder / "study.json"
    ours = _recorded(settings)
    if path.exists():
        theirs = json.loads(path.read_text())
        ours["options"] = {**theirs.get("options", {}), **ours["options"]}  # fits of experiments no longer named may still exist
        _require_same_settings(ours, theirs, folder, has_others)
    return json.dumps(ours, indent=1).encode()


def _recorded(settings: StudySettings) -> dict[str, Any]:
    """The settings for `study.json`, with the defaults of the experiments' options filled in."""
    recorded = {name: value for name, value in dataclasses.asdict(settings).items() if name not in _FREE}
    recorded["options"] = {
        one.name: dataclasses.asdict(settings.options_of(one.options))
        for one in chosen_experiments(settings.experiments)
        if one.options is not None
    }
    recorded["extra train samples of a language"] = settings.extra_per_language
    found: dict[str, Any] = json.loads(json.dumps(recorded))
    return found


def _require_same_settings(ours: Mapping[str, Any], theirs: Mapping[str, Any], folder: Path, has_others: bool) -> None:
    """Check that the settings differ from those of the folder's study only in what may change.

    Raises:
        TracInError: another setting differs.
    """
    flat, other = _flat(ours), _flat(theirs)
    differing = sorted(name for name in flat.keys() | other.keys() if flat.get(name) != other.get(name))
    if differing and has_others:
        name = differing[0]
        raise TracInError(
            f"Another process works on the study in {folder} with {name}={other.get(name)!r}, but the settings now say "
            f"{flat.get(name)!r}: give the same settings, wait until it has ended, or give the study another name."
        )
    if not (folder / "probes.json").exists() and set(differing) & _CHOICE:
        for name in ("first", "encoder"):
            shutil.rmtree(folder / name, ignore_errors=True)
        (folder / "data.json").unlink(missing_ok=True)
        differing = [name for name in differing if name not in _CHOICE]
    if "scores" in differing and theirs["scores"][:1] != ours["scores"][:1]:
        raise TracInError(
            f"{folder} holds a study whose tables by layer and variants were made with {theirs['scores'][0]!r}, but the first "
            f"of scores is now {ours['scores'][0]!r}: put {theirs['scores'][0]!r} first again, or give the study another name."
        )
    addable = _ADDABLE.union(*(one.addable_names() for one in all_experiments()))
    for name in differing:
        new_option = name.startswith("options.") and name not in other  # the experiment was not part of the study before
        if name not in addable and not new_option:
            raise TracInError(
                f"{folder} holds a study with {name}={other.get(name)!r}, but the settings now say {flat.get(name)!r}: give the "
                "study another name, or delete the folder."
            )


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings in one level: those of the fit and of single experiments get dotted names."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if name == "fit":
            found |= {f"{name}.{part}": one for part, one in value.items()}
        elif name == "options":
            found |= {f"{name}.{experiment}.{part}": one for experiment, own in value.items() for part, one in own.items()}
        else:
            found[name] = value
    return found


def require_same_data(split: Split, folder: Path) -> None:
    """Store a digest of the samples, or compare it with the stored one.

    Raises:
        TracInError: the study started with other samples.
    """
    digest, path = hashlib.sha256(), folder / "data.json"
    for part in (split.train, split.probes, split.test, split.extra):
        digest.update(json.dumps(part.with_format(None).to_dict(), sort_keys=True).encode())
    ours = {"sha256": digest.hexdigest()}
    if path.exists() and json.loads(path.read_text()) != ours:
        raise TracInError(
            f"{folder} holds a study with other samples than these (their digests differ): restore the data, give the study "
            "another name, or delete the folder."
        )
    write_bytes(path, json.dumps(ours).encode())
