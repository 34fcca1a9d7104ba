"""A whole study, step by step; what is done is not done again.

`output/name/` holds `study.json` (the settings), `data.json` (a digest of the samples), `encoder/` (where one is pre-trained),
`first/` (what the fit of each seed says of candidates and test samples), `probes.json` (which candidates are the probes),
`runs/` (run directories; one is complete when its `.done` stands beside it), `refits/` (what each refit says of the probes),
`masks/`, and `results/`, written anew each time.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from lightning_tracin.config import View
from lightning_tracin.errors import TracInError
from lightning_tracin.run import TracInRun
from lightning_tracin.storage.files import write_bytes
from lightning_tracin.storage.lock import RunLock
from lightning_tracin.studies.data import load_split
from lightning_tracin.studies.datasets import Split
from lightning_tracin.studies.experiments import e2_removal as removal
from lightning_tracin.studies.experiments import e3_reliance as reliance
from lightning_tracin.studies.experiments import e7_zero_shot as variants
from lightning_tracin.studies.experiments import e9_subnetworks as subnetworks
from lightning_tracin.studies.experiments import refit_lds as lds
from lightning_tracin.studies.experiments import refit_leave_one_out as left_out
from lightning_tracin.studies.fit_jobs import First, first_fit, read_first
from lightning_tracin.studies.fit_settings import FitSettings
from lightning_tracin.studies.fits import Recipe
from lightning_tracin.studies.pretraining import with_encoder
from lightning_tracin.studies.probe_choice import choose_probes
from lightning_tracin.studies.quiet import quietly
from lightning_tracin.studies.section import Section
from lightning_tracin.studies.settings import StudySettings
from lightning_tracin.studies.study_runs import Ground
from lightning_tracin.trainer.process_pool import run_all

#: Settings that change nothing of what is found, so that a study may be taken up with others.
_FREE = ("output", "workers", "wandb_mode")
#: Settings by which the probes are chosen.
_CHOICE = {"candidates_per_language", "correct_probes", "fit.probes_per_language"}


@dataclass(frozen=True)
class Outcome:
    """What a study found.

    Attributes:
        settings: of the study.
        folder: where it stands.
        account: the data, and the rows that were left out.
        accuracy: of the fits on all train samples, by language and part.
        sections: one an experiment.
        missing: which could not be made, and why.
        run: of the first seed, for the study's own score.
        view: that score.
        summary: what was fitted, in a paragraph.
    """

    settings: StudySettings
    folder: Path
    account: str
    accuracy: pd.DataFrame
    sections: tuple[Section, ...]
    missing: tuple[str, ...]
    run: TracInRun
    view: View
    summary: str


@quietly()
def run_study(settings: StudySettings, progress: bool = True, say: Callable[[str], None] = print) -> Outcome:
    """Run what is missing of a study, and analyse it.

    Raises:
        TracInError: the folder holds a study with other settings, another process works there, or data, model or a setting
            are not as they should be.
    """
    folder = Path(settings.output) / settings.name
    with RunLock(folder, "choose another `output` or `name`"):
        return _run(settings, folder, progress, say)


def _run(settings: StudySettings, folder: Path, progress: bool, say: Callable[[str], None]) -> Outcome:
    """`run_study`, in a folder where nobody else writes."""
    record = take_up(settings, folder)
    recipe, account = _material(settings, folder, record, progress, say)
    firsts = _first_fits(settings, folder, recipe, progress, say)
    recipe = replace(recipe, chosen=_probes(settings, recipe.options, folder, firsts), patience=None)
    ground = Ground(settings, folder, recipe, [first.epochs for first in firsts], progress)
    for description, step in _steps(ground):
        say(description)
        step()
    say("Tables and figures")
    sections, missing = [], []
    for title, section in _sections(ground):
        try:
            found = section(ground)
        except TracInError as error:  # after hours of fits, one table that cannot be made does not cost the others
            missing.append(f"{title}: {error}")
            continue
        if found is None:
            missing.append(f"{title}: the data or the fit have nothing to compare")
        else:
            sections.append(found)
    accuracy, run = _accuracy(recipe, firsts), ground.main_run(0)
    summary = _summary(settings, accuracy, run, firsts)
    return Outcome(settings, folder, account, accuracy, tuple(sections), tuple(missing), run, ground.view, summary)


def _summary(settings: StudySettings, accuracy: pd.DataFrame, run: TracInRun, firsts: list[First]) -> str:
    """What was fitted, in a paragraph."""
    fit, test = settings.fit, accuracy[accuracy["part"] == "test"]
    epochs = sorted({first.epochs for first in firsts})
    model = f"{fit.layers} layer(s) of width {fit.hidden_size}" if fit.model == "small" else fit.model
    if fit.pretraining_epochs:
        model += f", pre-trained by masked language modelling for {fit.pretraining_epochs} epochs on the data's own texts,"
    labels = ", ".join(f"{count} {label}" for label, count in sorted(Counter(map(str, run.probes.label)).items()))
    stopped = " (on which early stopping looked)" if settings.patience is not None else ""
    mean, chance = (np.average(test[name], weights=test["samples"]) for name in ("accuracy", "majority"))
    kept = "that the fits of all seeds get right" if settings.correct_probes else "not chosen by what the fits say of them"
    return (
        f"{len(run.train):,} train samples in {', '.join(run.train.counts())}; {len(run.probes):,} probes {kept} ({labels}), in "
        f"{', '.join(run.probes.counts())}. Model: {model} fine-tuned for {' or '.join(map(str, epochs))} epochs in batches of "
        f"{fit.batch_size} at a learning rate of {fit.learning_rate:g}; {settings.seeds} seed(s). Accuracy on test "
        f"samples{stopped}: "
        f"{mean:.3f}, where the most frequent label has {chance:.3f}. Influence: {settings.scores[0]}, summed over "
        f"{len(run.snapshots)} snapshots."
    )


def take_up(settings: StudySettings, folder: Path) -> bytes:
    """Begin a study, or go on with one of the same settings; returns what `study.json` is to hold.

    Until the probes are chosen, how they are chosen may change; what was fitted to choose them goes then.

    Raises:
        TracInError: the folder holds a study with other settings; the message names the first that differs.
    """
    record = folder / "study.json"
    mine = {name: value for name, value in dataclasses.asdict(settings).items() if name not in _FREE}
    mine["extra train samples of a language"] = _extra(settings)
    if record.exists():
        theirs = json.loads(record.read_text())
        flat, other = _flat(json.loads(json.dumps(mine))), _flat(theirs)
        differing = sorted(name for name in flat.keys() | other.keys() if flat.get(name) != other.get(name))
        if not (folder / "probes.json").exists() and set(differing) & _CHOICE:
            for name in ("first", "encoder"):
                shutil.rmtree(folder / name, ignore_errors=True)
            (folder / "data.json").unlink(missing_ok=True)
            differing = [name for name in differing if name not in _CHOICE]
        if "scores" in differing and theirs["scores"][:1] != list(settings.scores[:1]):
            raise TracInError(
                f"{folder} holds a study by {theirs['scores'][0]!r}, which its tables by layer and its variants are of, but "
                f"the first of scores is {settings.scores[0]!r}: put it first again, or give the study another name."
            )
        differing = [name for name in differing if not _addable(name)]
        if differing:
            name = differing[0]
            raise TracInError(
                f"{folder} holds a study with {name}={other.get(name)!r}, but {flat.get(name)!r} is asked for: give the study "
                "another name, or delete the folder."
            )
    return json.dumps(mine, indent=1).encode()


def _flat(settings: dict[str, object]) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, value in settings.items():
        if isinstance(value, dict) and name == "fit":
            found |= {f"{name}.{part}": one for part, one in value.items()}
        else:
            found[name] = value
    return found


def _addable(name: str) -> bool:
    """Whether a study may be taken up with another value: what was fitted for the old one stays right."""
    return name in {
        "fit.data_dir",  # the data themselves are compared
        "fit.threads",
        "experiments",
        "scores",
        "baselines",
        "ks",
        "draws",
        "removal_seeds",
        "removal_scores",
        "area_scores",
        "subsets",
        "variant_seeds",
        "zero_shot",
        "imbalance",
    }


def _material(
    settings: StudySettings, folder: Path, record: bytes, progress: bool, say: Callable[[str], None]
) -> tuple[Recipe, str]:
    """The recipe of all fits, with every candidate as a probe; pre-trains where that is asked for."""
    options = replace(settings.fit, probes_per_language=settings.candidates)
    extra = _extra(settings)
    split, account = load_split(options, extra=extra)
    say(f"Data: {account}")
    _require_enough(settings, split)
    _require_languages(settings, split)
    _require_same_data(split, folder)
    write_bytes(folder / "study.json", record)  # only now, so that what is refused may be corrected
    if options.pretraining_epochs:
        say("Encoder")
    options = with_encoder(options, split, folder / "encoder", progress=progress)
    return Recipe(options, extra=extra, patience=settings.patience), account


def _require_enough(settings: StudySettings, split: Split) -> None:
    """Refuse before anything is fitted what the train samples are too few for.

    Raises:
        TracInError: top_k or a number to remove is not below what some fit is left with.
    """
    counts = Counter(split.train.with_format(None)["language"])
    least, fit = sum(counts.values()), "all train samples"
    if "zero_shot" in settings.experiments:
        language = max(settings.zero_shot or counts, key=lambda name: counts.get(name, 0))
        least, fit = least - counts.get(language, 0), f"the train samples without {language!r}"
    if settings.top_k > least:
        raise TracInError(f"top_k={settings.top_k} is more than {fit} ({least}); choose a smaller top_k, or train on more.")
    if "removal" in settings.experiments and settings.ks[-1] >= sum(counts.values()):
        raise TracInError(
            f"ks ends with {settings.ks[-1]}, but there are {sum(counts.values())} train samples; choose smaller ones."
        )


def _require_languages(settings: StudySettings, split: Split) -> None:
    """Refuse languages that an experiment cannot be made with.

    Raises:
        TracInError: there are too few, or one is not there.
    """
    trained, probed = (list(dict.fromkeys(part.with_format(None)["language"])) for part in (split.train, split.probes))
    if "left_out" in settings.experiments and min(len(trained), len(probed)) < 3:
        raise TracInError(
            f"left_out compares tables of three languages or more, but {len(trained)} are trained on and {len(probed)} probed; "
            "take it out of experiments."
        )
    for name in ("zero_shot", "imbalance"):
        for language in (getattr(settings, name) or ()) if name in settings.experiments else ():
            if language not in trained or language not in probed:
                raise TracInError(
                    f"{name} has {language!r}, which is not both trained on ({', '.join(trained)}) and probed "
                    f"({', '.join(probed)})."
                )


def _require_same_data(split: Split, folder: Path) -> None:
    """Keep a digest of the samples, or compare with the one that is kept.

    Raises:
        TracInError: the study was begun on other samples.
    """
    digest, path = hashlib.sha256(), folder / "data.json"
    for part in (split.train, split.probes, split.test, split.extra):
        digest.update(json.dumps(part.with_format(None).to_dict(), sort_keys=True).encode())
    mine = {"sha256": digest.hexdigest()}
    if path.exists() and json.loads(path.read_text()) != mine:
        raise TracInError(
            f"{folder} holds a study on other samples than these (their digests differ): restore the data, give the study "
            "another name, or delete the folder."
        )
    write_bytes(path, json.dumps(mine).encode())


def _extra(settings: StudySettings) -> int:
    """Further train samples of each language that the study needs."""
    amount = max(settings.amounts, default=0) if "imbalance" in settings.experiments else 0
    return -(-amount * settings.fit.train_per_language // 100)


def _first_fits(settings: StudySettings, folder: Path, recipe: Recipe, progress: bool, say: Callable[[str], None]) -> list[First]:
    say("Fits on all train samples")
    paths = [folder / "first" / f"seed{seed}.safetensors" for seed in range(settings.seeds)]
    jobs = [(recipe, seed, path) for seed, path in enumerate(paths) if not path.exists()]
    run_all(first_fit, jobs, settings.processes, "fits", progress)
    return [read_first(path) for path in paths]


def _probes(settings: StudySettings, options: FitSettings, folder: Path, firsts: list[First]) -> tuple[int, ...]:
    """Which of the candidates are the probes; kept, so that a study that is taken up has the same."""
    path = folder / "probes.json"
    if path.exists():
        return tuple(json.loads(path.read_text())["chosen"])
    split, _ = load_split(options)
    candidates = split.probes.with_format(None)
    correct = np.stack([first.correct for first in firsts])
    if not settings.correct_probes:
        correct = np.ones_like(correct)
    chosen = choose_probes(candidates["language"][:], candidates["item"][:], correct, settings.fit.probes_per_language)
    write_bytes(path, json.dumps({"candidates": len(candidates), "chosen": chosen}).encode())
    return chosen


def _steps(ground: Ground) -> Iterator[tuple[str, Callable[[], object]]]:
    """What has to be fitted, in order."""
    wanted = ground.settings.experiments
    yield "Influence on the probes", lambda: ground.complete(ground.basic())
    if "zero_shot" in wanted:
        yield "E7: fits without a language", lambda: ground.complete(variants.zero_shot_runs(ground))
    if "imbalance" in wanted:
        yield "E8: fits with more of a language", lambda: ground.complete(variants.imbalance_runs(ground))
    if "masks" in wanted:
        yield "E9: fits with masked influence", lambda: ground.complete(subnetworks.runs(ground))
    if {"removal", "left_out", "lds"} & set(wanted):
        for seed in ground.seeds:
            yield f"Refits of seed {seed}", lambda seed=seed: _refit(ground, seed)  # type: ignore[misc]


def _refit(ground: Ground, seed: int) -> None:
    """All refits of a seed at once, so that every worker has work."""
    wanted, lines = ground.settings.experiments, [np.zeros((0, len(ground.train)), dtype=np.bool_)]
    if "left_out" in wanted:
        lines.append(left_out.members(ground))
    if "removal" in wanted:
        lines.append(removal.members(ground, seed))
    if "lds" in wanted and seed == 0:
        lines.append(lds.members(ground))
    members = np.concatenate(lines)
    if len(members):
        ground.refits(seed).losses(members, seed)


def _sections(ground: Ground) -> Iterator[tuple[str, Callable[[Ground], Section | None]]]:
    """Every part of the page that is asked for."""
    yield "the strongest train samples (E1)", reliance.by_eye
    yield "reliance (E3, E4)", reliance.shares
    yield "reinforcing samples (E5)", reliance.reinforcement
    yield "changes between snapshots (E6)", reliance.changes
    for name, section in (
        ("zero_shot", variants.zero_shot),
        ("imbalance", variants.imbalance),
        ("masks", subnetworks.section),
        ("removal", removal.section),
        ("left_out", left_out.section),
        ("lds", lds.section),
    ):
        if name in ground.settings.experiments:
            yield name, section


def _accuracy(recipe: Recipe, firsts: list[First]) -> pd.DataFrame:
    """How often the fits are right on train, candidate and test samples, and the most frequent train label is."""
    split, _ = load_split(recipe.options, extra=recipe.extra)
    majority = pd.Series(split.train.with_format(None)["label"][:]).mode().iloc[0]
    rows = []
    for part, samples, right in (
        ("train", split.train, [first.train for first in firsts]),
        ("candidates", split.probes, [first.correct for first in firsts]),
        ("test", split.test, [first.test for first in firsts]),
    ):
        languages, labels = (np.asarray(samples.with_format(None)[name][:]) for name in ("language", "label"))
        for language in dict.fromkeys(languages):
            mine = languages == language
            by_seed = np.stack(right)[:, mine].mean(1)
            rows.append(
                {
                    "part": part,
                    "language": str(language),
                    "accuracy": float(by_seed.mean()),
                    "lowest": float(by_seed.min()),
                    "highest": float(by_seed.max()),
                    "majority": float((labels[mine] == majority).mean()),
                    "samples": int(mine.sum()),
                    "seeds": len(by_seed),
                }
            )
    found: pd.DataFrame = pd.DataFrame(rows)
    return found
