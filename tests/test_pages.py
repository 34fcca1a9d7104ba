"""The pages for readers: the files that they name exist, and their Python code runs."""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
from datasets import Dataset, IterableDataset
from pytorch_lightning.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader
from transformers import Qwen3Config, Qwen3ForCausalLM

from tests.support import fits
from tests.support.models import padded

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "CONTRIBUTING.md", *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")))

#: Where the run is made that the other pages read.
FIRST = "docs/how-to/own-module.md"

#: First folders of what commands write and of keys in a logger; they are not in the repository.
WRITTEN = {"features", "ingredients", "results", "runs", "snapshots", "tracin"}

#: From this many train samples the default `top_k` of 100 is possible.
TRAIN = 105


def without_code_blocks(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def inline_code(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", without_code_blocks(text))


def is_path(code: str) -> bool:
    """Whether a piece of code names a file or folder: `a/b` or `a.py`; `*` stands for anything."""
    named = "/" in code or code.endswith((".py", ".md", ".cfg", ".toml"))
    return named and re.fullmatch(r"[\w.*/-]+", code) is not None and code.split("/")[0] not in WRITTEN


def named_paths(page: str) -> Iterator[tuple[str, ...]]:
    """The names of files in a page: for each, the paths relative to the root of which one has to exist."""
    text, folder = (ROOT / page).read_text(), Path(page).parent
    for target in re.findall(r"\]\(([^)#\s]+)", without_code_blocks(text)):
        if not re.match(r"\w+:", target):
            yield ((folder / target).as_posix(),)
    for code in filter(is_path, inline_code(text)):
        if page == "docs/architecture.md":  # modules of the package, with or without their suffix
            yield code, f"lightning_tracin/{code}", f"lightning_tracin/{code}.py"
        else:
            yield (code,)


def exists(name: str) -> bool:
    path = (ROOT / name).resolve()
    return path.is_relative_to(ROOT) and any(ROOT.glob(path.relative_to(ROOT).as_posix()))


@pytest.mark.parametrize("page", PAGES)
def test_files_that_a_page_names_exist(page: str) -> None:
    missing = sorted({names[0] for names in named_paths(page) if not any(map(exists, names))})
    assert missing == []


@pytest.mark.parametrize("page", PAGES)
def test_names_of_the_package_in_a_page_can_be_imported(page: str) -> None:
    for code in inline_code((ROOT / page).read_text()):
        if re.fullmatch(r"lightning_tracin(\.\w+)+", code):
            pkgutil.resolve_name(code)


@pytest.mark.parametrize(
    ("code", "names_a_path"),
    [
        ("docs/fits.md", True),
        ("benchmarks/peer_*.py", True),
        (".ci/run", True),
        ("setup.cfg", True),
        ("gradients/rules/", True),
        ("run.json", False),
        ("results/report.html", False),
        ("tracin/checkpoint_step", False),
        ("s3://bucket/run", False),
        ("python -m benchmarks.scale", False),
        ("tracin/lift/{probe}/{train}", False),
        ("@rule(nn.Linear)", False),
    ],
)
def test_a_path_is_told_from_other_code(code: str, names_a_path: bool) -> None:
    assert is_path(code) is names_a_path


def python_blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)


def with_items(loader: DataLoader[Any]) -> DataLoader[Any]:
    """The loader, with the items of its samples as an attribute of its dataset: translations follow each other."""
    dataset: Any = loader.dataset
    dataset.item = [index // len(fits.LANGUAGES) for index in range(len(dataset))]
    return loader


def stream() -> IterableDataset:
    rows = fits.Samples(40, 3)
    return IterableDataset.from_generator(
        lambda: ({**row, "language": language} for row, language in zip(rows, rows.language, strict=True))
    )


def tiny_writer() -> Qwen3ForCausalLM:
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 8}
    return Qwen3ForCausalLM(Qwen3Config(vocab_size=20, num_key_value_heads=2, **size))


def texts(count: int) -> DataLoader[Any]:
    """Texts of six tokens."""
    generator = torch.Generator().manual_seed(count)
    rows = []
    for index in range(count):
        tokens = torch.randint(20, (6,), generator=generator).tolist()
        rows.append({"input_ids": tokens, "labels": tokens, "language": fits.LANGUAGES[index % 3]})
    dataset = Dataset.from_list(rows)
    dataset.set_format("torch", columns=["input_ids", "labels"])
    return DataLoader(dataset, batch_size=5)


@pytest.fixture
def _no_open_wandb_run() -> Iterator[None]:
    yield
    wandb.finish()


@pytest.mark.slow
@pytest.mark.usefixtures("_no_open_wandb_run")
def test_the_python_code_of_the_pages_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks run in order, in one namespace, with the reader's module and loaders and a folder of checkpoints."""
    monkeypatch.chdir(tmp_path)
    train, probes = map(with_items, fits.with_texts(*fits.loaders(train=TRAIN, probes=12, batch_size=15)))
    checkpoints = ModelCheckpoint("checkpoints", save_top_k=-1)
    fits.trainer(tmp_path, [checkpoints], max_epochs=1, enable_checkpointing=True).fit(fits.Classifier(), train)
    readers = {"module": fits.Classifier(), "Module": fits.Classifier, "train_loader": train, "val_loader": probes}
    readers["candidate_loader"] = with_items(fits.loaders(probes=9)[1])
    readers |= {"stream": stream(), "collator": padded, "language_model": tiny_writer()}
    readers["text_train_loader"], readers["text_val_loader"] = texts(30), texts(6)
    assert python_blocks(FIRST)
    for page in sorted(set(PAGES) - {"README.md"}, key=lambda page: (page != FIRST, page)):
        for block in python_blocks(page):
            exec(compile(block, f"a block of {page}", "exec"), readers)


@pytest.mark.slow
def test_the_python_code_of_the_readme_runs_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In order, in one empty namespace: the script, and what it says to ask the run."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)  # the script draws its own weights
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in python_blocks("README.md"):
        exec(compile(block, "a block of README.md", "exec"), names)
    assert "TracInRun in runs/names: 2877 train samples (de 959, en 959, ru 959) x 250 probes" in capsys.readouterr().out
    whole = names["run"].reliance(cumulative=True).query("snapshot == 2").set_index(["probe_language", "train_language"])["value"]
    assert whole["uk", "ru"] > whole["uk", "en"]  # the language of the same script teaches Ukrainian names more
