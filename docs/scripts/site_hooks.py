"""What MkDocs calls while it builds the site: the tutorial becomes a page, and the tables of options are filled in."""

from __future__ import annotations

from typing import Any

import nbformat
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from nbconvert import MarkdownExporter
from pydantic import BaseModel

from lightning_tracin.config import ContributionOptions, Options

_TUTORIAL = "tutorial"
_OPTIONS: dict[str, type[BaseModel]] = {"TracInCallback": Options, "ContributionCallback": ContributionOptions}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Put the notebook and its pictures in as a page and its files."""
    notebook = files.get_file_from_path(f"{_TUTORIAL}.ipynb")
    assert notebook is not None
    text, pictures = as_markdown(notebook.content_string)
    files.append(File.generated(config, f"{_TUTORIAL}.md", content=text))
    for name, content in pictures.items():
        files.append(File.generated(config, name, content=content))
    return files


def as_markdown(notebook: str) -> tuple[str, dict[str, bytes]]:
    """A notebook as Markdown, and its pictures by name."""
    read = nbformat.reads(notebook, as_version=4)
    text, found = MarkdownExporter().from_notebook_node(read, {"unique_key": _TUTORIAL})
    return text, found["outputs"]


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links to the notebook lead to its page, and fill in the tables of options."""
    for callback, options in _OPTIONS.items():
        markdown = markdown.replace(f"<!-- options of {callback} -->", options_table(options))
    return markdown.replace(f"{_TUTORIAL}.ipynb", f"{_TUTORIAL}.md")


def options_table(options: type[BaseModel]) -> str:
    """A table of options: name, default, and what each does, from their definition."""
    lines = ["| option | default | what it does |", "|---|---|---|"]
    for name, field in options.model_fields.items():
        described: Any = (field.description or "").replace("|", "\\|")
        lines.append(f"| `{name}` | `{field.default!r}` | {described[:1].upper()}{described[1:]} |")
    return "\n".join(lines)
