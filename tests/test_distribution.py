"""What is uploaded to PyPI: complete, and it works where nothing else of this repository is."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import lightning_tracin

ROOT = Path(__file__).parents[1]

#: The folder of what `make dist` has just built; otherwise the tests build it.
DIST = os.environ.get("TRACIN_DIST")
pytestmark = pytest.mark.long if DIST is None else pytest.mark.slow


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    done = subprocess.run([str(one) for one in command], cwd=cwd, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if DIST is not None:
        return ROOT / DIST
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", folder)
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (found,) = built.glob("*.whl")
    return found


def shipped() -> Iterator[str]:
    """Every file of the package, as it is in the repository."""
    for path in (ROOT / "lightning_tracin").rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            yield path.relative_to(ROOT).as_posix()


def test_the_wheel_has_every_file_of_the_package_and_the_licence(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {*shipped()} == {name for name in names if name.startswith("lightning_tracin/")}
    assert "lightning_tracin/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"lightning_tracin"}


def test_the_source_has_what_a_wheel_is_built_from(built: Path) -> None:
    (source,) = built.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {*shipped(), "LICENSE", "README.md", "pyproject.toml"} <= names


def test_both_have_metadata_that_pypi_takes(built: Path) -> None:
    said = run(sys.executable, "-m", "twine", "check", "--strict", *sorted(built.glob("lightning_tracin-*")))
    assert said.count("PASSED") == 2


def test_the_wheel_works_in_an_environment_of_its_own(wheel: Path, tmp_path: Path) -> None:
    """Its dependencies are those that are installed here; this repository is not on the path."""
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=tmp_path)
    packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])", cwd=tmp_path).strip())
    (packages / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"])  # after the wheel's own folder
    where = run(
        python, "-I", "-c", "import lightning_tracin as t; print(t.__file__, t.__version__, t.TracInCallback())", cwd=tmp_path
    )
    assert where.startswith(str(packages))
    assert f" {lightning_tracin.__version__} " in where
    said = run(tmp_path / "env" / "bin" / "lightning-tracin", "--help", cwd=tmp_path)
    assert "attribute" in said
    assert "reliance" in said
