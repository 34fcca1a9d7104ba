"""A study whose probes name their languages in another way than its train samples, against one that names them alike."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lightning_tracin.errors import TracInError
from lightning_tracin.studies.fits import FitRecipe, Variant, build
from lightning_tracin.studies.page import write_page
from lightning_tracin.studies.runner import Outcome, run_study
from lightning_tracin.studies.variant_languages import varied_languages
from tests.support.small import FIT, WORDS, settings, write_data

#: What the probes of the other study call the train languages.
NAMES = {"en": "english", "de": "German", "ru": "rus"}

quietly = partial(run_study, progress=False, say=lambda text: None)


def study(folder: Path, names: dict[str, str]) -> Outcome:
    """A study whose probes are in files of their own, under these names of their languages."""
    (folder / "probes").mkdir(parents=True)
    asked = settings(
        folder,
        fit=dataclasses.replace(FIT, data_dir=str(folder), probe_data="probes/{language}.tsv", probe_languages=[*names.values()]),
        seeds=1,
        experiments=["zero_shot", "imbalance", "masks", "left_out"],
        scores=["cosine"],
        baselines=["random"],
        zero_shot=[names["de"]],
        imbalance=[names["ru"]],
    )
    for language, name in names.items():
        shutil.copy(folder / f"{language}.tsv", folder / "probes" / f"{name}.tsv")
    return quietly(asked)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Outcome]:
    alike, other = ({name: name for name in NAMES}, NAMES)
    return study(tmp_path_factory.mktemp("alike"), alike), study(tmp_path_factory.mktemp("other"), other)


@pytest.mark.long
def test_every_table_of_the_study_is_the_same_but_for_the_names(both: tuple[Outcome, Outcome]) -> None:
    back = {name: language for language, name in NAMES.items()}
    alike, other = ({(one.name, name): table for one in each.sections for name, table in one.tables.items()} for each in both)
    assert other.keys() == alike.keys()
    assert {name for name, _ in alike} > {"zero_shot", "imbalance", "masks", "left_out"}
    for key, table in alike.items():
        found = other[key].replace(back) if key != ("top", "texts") else other[key][["rank", "score"]]
        table = table if key != ("top", "texts") else table[["rank", "score"]]
        order = [name for name in table if not pd.api.types.is_float_dtype(table[name])]
        one, two = (each.sort_values(order, ignore_index=True) if order else each for each in (table, found))
        # intervals are bootstraps, whose draws go by the order of names, and so are the permutations of a floor
        columns = [
            name for name in table if not any(word in name for word in ("low", "high", "floor", "p_adjusted")) and name != "p"
        ]
        pd.testing.assert_frame_equal(one[columns], two[columns], rtol=1e-5, atol=1e-7, check_dtype=False)


@pytest.mark.long
def test_findings_are_about_the_own_language(both: tuple[Outcome, Outcome]) -> None:
    alike, other = (" ".join(line for section in each.sections for line in section.findings) for each in both)
    assert alike.count("are in its own language") == other.count("are in its own language") >= 3
    assert alike.count("own-language share") == other.count("own-language share") > 0


@pytest.mark.long
def test_a_fit_without_a_language_by_another_name_has_none_of_its_samples(tmp_path: Path) -> None:
    write_data(tmp_path)
    options = dataclasses.replace(FIT, data_dir=str(tmp_path))
    by_name = [build(FitRecipe(options, extra=12, variant=Variant(without=name))).train for name in ("de", "German")]
    for loader in by_name:
        languages = loader.dataset.with_format(None)["language"][:]  # type: ignore[attr-defined]
        assert sorted(set(languages)) == ["en", "ru"]
        assert len(languages) == 48
    more = build(FitRecipe(options, extra=12, variant=Variant(more="rus", per_cent=50))).train
    counts = np.unique(more.dataset.with_format(None)["language"][:], return_counts=True)  # type: ignore[attr-defined]
    assert dict(zip(*counts, strict=True)) == {"de": 24, "en": 24, "ru": 36}
    with pytest.raises(TracInError, match="No train sample is in 'fr'; they are in de, en, ru"):
        build(FitRecipe(options, extra=12, variant=Variant(without="fr")))


@pytest.mark.long
def test_a_study_of_awkward_names_stays_in_its_folder_and_on_its_page(tmp_path: Path) -> None:
    names = ["../x", "<img src=x onerror=alert(1)>\n# mean", "x" * 300, "random0"]
    words = [*WORDS.values(), ("super", "schlimm", "dag")]
    rows = [
        {"text": f"{bad if item % 2 else good}\\r{other} {item}", "label": item % 2, "language": name, "item": item}
        for name, (good, bad, other) in zip(names, words, strict=True)
        for item in range(60)
    ]
    (tmp_path / "data.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    fit = dataclasses.replace(
        FIT, data="data.jsonl", data_dir=str(tmp_path), train_languages=names, language_column="language", item_column="item"
    )
    folder = tmp_path / "out"
    folder.mkdir()
    changes = {"fit": fit, "output": str(folder), "seeds": 1, "scores": ["cosine"], "baselines": ["random"]}
    asked = settings(
        tmp_path, **changes, experiments=["zero_shot", "imbalance", "masks"], zero_shot=names[:2], imbalance=names[2:]
    )
    outcome = quietly(asked)
    assert outcome.missing == ()
    write_page(outcome)
    assert {path.name for path in tmp_path.iterdir()} == {"data.jsonl", "out", *(f"{language}.tsv" for language in WORDS)}
    assert [path.name for path in folder.iterdir()] == ["small"]
    results = folder / "small" / "results"
    assert "<img src=x" not in (results / "report.html").read_text()
    page = (results / "report.md").read_text()
    assert page.count("```") == 2
    page = re.sub(r"^```.*?^```", "", page, flags=re.MULTILINE | re.DOTALL)  # there, everything is shown as it is
    assert "<img src=x" not in page
    assert "\n# mean" not in page
    texts = pd.read_csv(results / "top-texts.csv", keep_default_na=False)
    assert set(texts["language"]) <= set(names)
    assert len(texts) == len(next(one for one in outcome.sections if one.name == "top").tables["texts"])
    shares = pd.read_csv(results / "reliance-shares.csv", keep_default_na=False)
    assert set(shares["train_language"]) == set(names)
    masks = pd.read_csv(results / "masks-masks.csv", keep_default_na=False)
    assert sorted(masks["probe_language"]) == sorted(names)


def test_languages_of_another_script_are_not_the_same() -> None:
    assert varied_languages(None, ["zh-Hans", "zh-Hant", "en"], ["zh", "eng"]) == ["en"]
    assert varied_languages(["eng", "en", "fr"], ["de", "en"], ["en"]) == ["en", "fr"]
