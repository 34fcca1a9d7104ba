"""Run the tutorial and store its outputs: `python -m docs.scripts.run_tutorial`; takes a minute."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

TUTORIAL = Path(__file__).parents[1] / "tutorial.ipynb"


def executed(path: Path, folder: Path) -> NotebookNode:
    """The notebook with the outputs of a run from its first cell to its last.

    Args:
        path: of the notebook; the file is not changed.
        folder: where it runs.

    Raises:
        CellExecutionError: a cell raised an error.
    """
    notebook: NotebookNode = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}})
    client.execute(env={**os.environ, "PYTHONWARNINGS": "ignore:IProgress not found"})  # bars as text are good enough
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times, which differ in every run
    notebook.metadata["language_info"] = {"name": "python"}
    return notebook


def main() -> None:
    """Run it and write it back."""
    with tempfile.TemporaryDirectory() as folder:
        nbformat.write(executed(TUTORIAL, Path(folder)), TUTORIAL)


if __name__ == "__main__":
    main()
