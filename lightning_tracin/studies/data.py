"""Load and split the samples of a fit, according to its settings."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields
from pathlib import Path
from typing import Any

from lightning_tracin.errors import TracInError
from lightning_tracin.studies.datasets import (
    Columns,
    Corpus,
    Split,
    SplitPlan,
    load_cldr,
    load_files,
    load_hub,
    repeated_texts,
    split_by_item,
    split_two,
)
from lightning_tracin.studies.datasets.column_roles import PLACEHOLDER
from lightning_tracin.studies.datasets.hub import RECIPES
from lightning_tracin.studies.datasets.table_files import SUFFIXES
from lightning_tracin.studies.settings import FitSettings

# The train languages differ in family and script, and each zero-shot language is related to one of them. The languages of XNLI
# and PAWS-X are those of Choenni et al. 2023.
TRAIN_LANGUAGES = {"cldr": "en de es ru ko", "xnli": "en fr de ru es", "paws-x": "en fr de ko es"}
ZERO_SHOT_LANGUAGES = {"cldr": "nl fr uk"}
PROBE_SPLITS = {"xnli": "validation", "paws-x": "validation"}


def load_split(options: FitSettings, extra: int = 0) -> tuple[Split, str]:
    """Load train samples, probes and test samples, and describe what was left out and possible problems.

    Args:
        options: the data, and the number of samples.
        extra: number of additional train samples of each language, for `Split.extra`; it does not change the other samples.

    Raises:
        TracInError: the data cannot be loaded with these options.
    """
    _require_apart(options)
    trained, probed = _languages(options)
    probe_split = options.probe_split or PROBE_SPLITS.get(options.data)
    if options.probe_data is None and probe_split is None:
        corpus = load(options, options.data, options.train_split, trained and list(dict.fromkeys([*trained, *(probed or ())])))
        plan = _plan(options, trained or _languages_of(corpus), probed, extra)
        split = split_by_item(corpus.dataset, plan)
        return split, f"{options.data}\n{corpus.summary()}\n{_account(split, plan)}"
    train = load(options, options.data, options.train_split, trained)
    plan = _plan(options, trained or _languages_of(train), probed, extra)
    labels = train.dataset.features["label"].names
    name, part = options.probe_data or options.data, probe_split or options.train_split
    probes = load(options, name, part, list(plan.probe_languages), label_names=labels, item_prefix="probe:")
    split = split_two(train.dataset, probes.dataset, plan)
    account = f"{options.data} (to train on)\n{train.summary()}\n{name} (to probe and test on)\n{probes.summary()}"
    return split, f"{account}\n{_account(split, plan)}"


def _require_apart(options: FitSettings) -> None:
    """Check that probes are not read from the rows of the train samples.

    Row numbers as items would differ between the two, so the fit would train on probes unnoticed.

    Raises:
        TracInError: the options name the same rows twice.
    """
    files = options.data == "cldr" or _is_file(options.data)
    if files and options.probe_split is not None:
        raise TracInError(
            f"probe_split={options.probe_split!r} is for data sets of the hub, but data is {options.data!r}: name the files of "
            "the probes as probe_data, or leave both out to have the probes taken out of data."
        )
    recipe = RECIPES.get(options.data)
    if options.item_column is not None or (recipe is not None and recipe.columns.item is not None):
        return  # with named items, an item in both is recognised
    same = (options.probe_data or options.data) == options.data
    if same and options.probe_split is not None and options.probe_split.split("[")[0] == options.train_split.split("[")[0]:
        raise TracInError(
            f"probe_split={options.probe_split!r} and train_split={options.train_split!r} name the same rows: leave "
            "probe_split out to have the probes taken out of these rows by whole items, or name another split."
        )
    if options.probe_data == options.data and options.probe_split is None:
        raise TracInError(
            f"probe_data is the same as data ({options.data!r}): leave it out to have the probes taken out of data."
        )


def _is_file(name: str) -> bool:
    return PLACEHOLDER in name or Path(name).suffix in SUFFIXES


def load(
    options: FitSettings,
    name: str,
    split: str,
    languages: list[str] | None,
    *,
    label_names: list[str] | None = None,
    item_prefix: str = "",
) -> Corpus:
    """Load a data set by its name, with the loader for its kind.

    Raises:
        TracInError: the data cannot be loaded with these options.
    """
    if name == "cldr":
        return load_cldr(languages or [])
    path = Path(options.data_dir) / name
    reading: dict[str, Any] = {
        "columns": _columns(options),
        "label_names": label_names,
        "item_prefix": item_prefix,
        **{one: getattr(options, one) for one in ("parallel", "drop_texts", "merge_labels", "differing_labels")},
    }
    if _is_file(name):
        return load_files(path, languages=languages, header=options.header, **reading)
    if languages is None:
        raise TracInError(f"The languages of {name!r} are not known before it is loaded: name them as --train_languages.")
    name = str(path.absolute()) if name not in RECIPES and path.is_dir() else name
    return load_hub(name, languages, split=split, config=options.config_name, **reading)


def _languages(options: FitSettings) -> tuple[list[str] | None, list[str] | None]:
    """The languages to train on and to probe; None if the data determine them."""
    trained = options.train_languages or TRAIN_LANGUAGES.get(options.data, "").split() or None
    probed = options.probe_languages
    if probed is None and trained is not None:
        zero_shot = ZERO_SHOT_LANGUAGES.get(options.data, "").split() if options.train_languages is None else []
        probed = [*trained, *zero_shot]
    return trained, probed


def _account(split: Split, plan: SplitPlan) -> str:
    """State how many probes have the text of a train sample, and which languages have too few test samples."""
    repeated = repeated_texts(split)
    said = ", ".join(f"{language} {count} of {plan.probes_per_language}" for language, count in repeated.items())
    lines = [f"probes whose text is also that of a train sample with another item: {said or 'none'}"]
    tests = Counter(split.test.with_format(None)["language"])
    asked = plan.test_per_language
    few = [f"{name} {tests[name]:,}" for name in plan.probe_languages if asked is not None and tests[name] < asked]
    if few:
        lines.append(f"languages with fewer than {asked:,} test samples: {', '.join(few)}")
    return "\n".join(lines)


def _languages_of(corpus: Corpus) -> list[str]:
    return list(dict.fromkeys(corpus.dataset["language"]))


def _plan(options: FitSettings, trained: list[str], probed: list[str] | None, extra: int) -> SplitPlan:
    return SplitPlan(
        train_languages=trained,
        probe_languages=probed or trained,
        train_per_language=options.train_per_language,
        probes_per_language=options.probes_per_language,
        test_per_language=options.test_per_language,
        seed=options.seed,
        share_items=options.share_items,
        different_items=options.different_items,
        extra_per_language=extra,
    )


def _columns(options: FitSettings) -> Columns | None:
    """The columns that the options name; None if they name none, so that the loader uses its defaults."""
    named = {role.name: getattr(options, f"{role.name}_column") for role in fields(Columns)}
    given = {role: name for role, name in named.items() if name is not None}
    return Columns(**given) if given else None
