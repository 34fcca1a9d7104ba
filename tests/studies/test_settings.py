from pathlib import Path

import pytest

from lightning_tracin.cli.main import settings_from
from lightning_tracin.errors import TracInError
from lightning_tracin.studies.settings import FitSettings, StudySettings

CONFIGS = Path(__file__).parents[2] / "examples" / "configs"
EVIDENCE = Path(__file__).parents[2] / "benchmarks" / "evidence_settings"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": ["cosinus"]}, r"scores has 'cosinus', but should have some of: cosine, dot product"),
        ({"scores": []}, r"scores is empty"),
        (
            {"experiments": ["removals"]},
            r"experiments has 'removals', but should have some of: rails, zero_shot, imbalance, masks, removal, left_out, lds",
        ),
        ({"area_scores": ["TF-IDF"]}, r"area_scores has 'TF-IDF'"),
        (
            {"experiments": ["removal"], "baselines": [], "removal_scores": ["BM25"]},
            r"Removals by 'BM25' need it among scores or baselines, but it is in neither",
        ),
        ({"experiments": ["removal"], "ks": [10, 5]}, r"ks should be ascending numbers from 1 on, but is \[10, 5\]"),
        ({"experiments": ["removal"], "ks": []}, r"ks should be ascending numbers from 1 on, but is \[\]"),
        ({"seeds": 0}, r"seeds should be 1 or more, but is 0"),
        ({"removal_seeds": 2}, r"removal_seeds=2 is more than seeds=1"),
        ({"influence_seeds": 2}, r"influence_seeds should be 1 to seeds=1, but is 2"),
        ({"seeds": 2, "influence_seeds": 0}, r"influence_seeds should be 1 to seeds=2, but is 0"),
        ({"seeds": 2, "influence_seeds": 1, "contribution_seeds": 2}, r"contribution_seeds=2 is more than influence_seeds=1"),
        ({"contribution_seeds": -1}, r"contribution_seeds should be 0 or more, but is -1\.$"),
        (
            {"experiments": ["left_out"], "options": {"left_out": {"permutations": 0}}},
            r"options\.left_out\.permutations is 0, but: Input should be greater than or equal to 1\.$",
        ),
        ({"experiments": ["lds"], "subsets": 2}, r"subsets should be 3 or more"),
        ({"experiments": ["imbalance"], "amounts": [50, -1]}, r"amounts should be percentages from 1 on, but is \[50, -1\]"),
        ({"experiments": ["zero_shot"], "zero_shot": []}, r"zero_shot is empty"),
        ({"fit": FitSettings(test_per_language=0)}, r"fit\.test_per_language should be 1 or more"),
        ({"kept_heads": 1.0}, r"kept_heads should be between 0 and 1"),
        ({"experiments": ["masks"], "scores": ["Fisher-whitened cosine"]}, r"masks work with exact influence only"),
        (
            {"candidates_per_language": 3, "fit": FitSettings(probes_per_language=5)},
            r"candidates_per_language=3 is less than probes_per_language=5",
        ),
    ],
)
def test_what_cannot_be_is_said(changes: dict[str, object], message: str) -> None:
    with pytest.raises(TracInError, match=message):
        StudySettings("x", **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("path", [*(CONFIGS / f"{name}.yaml" for name in ("cldr", "xnli", "paws_x", "marc", "local"))], ids=str)
def test_ready_settings_are_possible_and_named_after_their_file(path: Path) -> None:
    settings = settings_from(path)
    assert settings.name == path.stem
    assert settings.experiments
    if path.stem != "cldr":  # the study's own set-up (PROTOCOL)
        assert (settings.fit.train_per_language, settings.fit.epochs, settings.patience, settings.top_k) == (2000, 10, 3, 100)
        assert settings.fit.learning_rate == (9e-6 if path.stem == "paws_x" else 2e-5)
        assert settings.correct_probes


@pytest.mark.parametrize("name", ["nusax", "sib200", "sib200-second", "sib200-120", "sib200-embeddings", "xsid"])
def test_the_evidences_settings_are_possible(name: str) -> None:
    assert settings_from(EVIDENCE / f"{name}.yaml").seeds >= 5


def test_the_command_line_overrides_the_file() -> None:
    settings = settings_from(CONFIGS / "cldr.yaml", "--seeds=4", "--fit.epochs=3")
    assert (settings.seeds, settings.fit.epochs, settings.fit.data) == (4, 3, "cldr")


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TracInError, match=r"There is no file .*none\.yaml; examples/configs of the project has files"):
        settings_from(tmp_path / "none.yaml")
