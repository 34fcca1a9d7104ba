"""The pages for readers: the files that they name exist, and their Python code runs."""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
from pytorch_lightning.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from tests.support import fits

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "CONTRIBUTING.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))

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


@pytest.fixture
def _no_open_wandb_run() -> Iterator[None]:
    yield
    wandb.finish()


@pytest.mark.usefixtures("_no_open_wandb_run")
def test_the_python_code_of_the_pages_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks run in order, in one namespace, with the reader's module and loaders and a folder of checkpoints."""
    monkeypatch.chdir(tmp_path)
    train, probes = map(with_items, fits.with_texts(*fits.loaders(train=TRAIN, probes=12, batch_size=15)))
    checkpoints = ModelCheckpoint("checkpoints", save_top_k=-1)
    fits.trainer(tmp_path, [checkpoints], max_epochs=1, enable_checkpointing=True).fit(fits.Classifier(), train)
    readers = {"module": fits.Classifier(), "Module": fits.Classifier, "train_loader": train, "val_loader": probes}
    readers["candidate_loader"] = with_items(fits.loaders(probes=9)[1])
    assert python_blocks("README.md")
    for page in PAGES:
        for block in python_blocks(page):
            exec(compile(block, f"a block of {page}", "exec"), readers)
