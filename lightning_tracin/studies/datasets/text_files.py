"""Local files: one per language, or one with a language column."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from lightning_tracin.errors import TracInError
from lightning_tracin.studies.datasets.column_roles import Columns, check_items, check_languages, pick_columns, select_languages
from lightning_tracin.studies.datasets.corpus import Corpus, DifferingLabels, build_corpus
from lightning_tracin.studies.datasets.table_files import read_table

PLACEHOLDER = "{language}"


def load_files(
    pattern: str | Path,
    *,
    languages: Sequence[str] | None = None,
    columns: Columns | None = None,
    header: Sequence[str] | None = None,
    parallel: bool = True,
    drop_texts: Sequence[str] = (),
    merge_labels: Mapping[str, str | None] | None = None,
    differing_labels: DifferingLabels = "error",
    label_names: Sequence[str] | None = None,
    item_prefix: str = "",
) -> Corpus:
    """Load samples from local CSV, TSV or JSON-lines files (see `read_table` for what is what).

    Args:
        pattern: A path with ``{language}`` in it (a file per language), or the path of a file with a language column.
        languages: Which languages, in which order; by default all that are there.
        columns: Which columns hold what; by default ``text`` and ``label``, the item being the row number.
        header: Names of the columns, for files whose first row is data already.
        parallel: Samples with the same item are translations, and only items that every language has are kept. If
            false, row numbers of different languages have nothing to do with each other.
        drop_texts: Rows with exactly one of these as a text are placeholders; they are dropped and counted.
        merge_labels: New names of labels; None drops the label's rows.
        differing_labels: What to do with items whose translations do not have one label (see `build_corpus`).
        label_names: The labels in the order of their numbers, for instance those of the train data; by default sorted.
        item_prefix: Stands before the row number where that is the item; give unrelated files different ones.

    Raises:
        TracInError: A file, language or column is missing, a file is not what its name says, or the samples are not
            usable (see `build_corpus`).
    """
    pattern, columns = str(pattern), columns or Columns()
    if PLACEHOLDER in pattern:
        rows = _rows_of_many_files(pattern, languages, columns, header, item_prefix, parallel)
    else:
        rows = _rows_of_one_file(Path(pattern), languages, columns, header, item_prefix, parallel)
    return build_corpus(
        rows,
        source=pattern,
        parallel=parallel,
        drop_texts=drop_texts,
        merge_labels=merge_labels,
        differing_labels=differing_labels,
        label_names=label_names,
    )


def _rows_of_many_files(
    pattern: str,
    languages: Sequence[str] | None,
    columns: Columns,
    header: Sequence[str] | None,
    item_prefix: str,
    parallel: bool,
) -> pd.DataFrame:
    found = files_by_language(pattern)
    if not found:
        raise TracInError(f"No file matches {pattern}: correct the path; {PLACEHOLDER} stands for the language.")
    check_languages(languages or (), list(found), pattern)
    return pd.concat(
        [
            pick_columns(
                read_table(found[language], header),
                columns,
                source=str(found[language]),
                language=language,
                item_prefix=item_prefix if parallel else f"{item_prefix}{language}:",
            )
            for language in (languages or found)
        ],
        ignore_index=True,
    )


def _rows_of_one_file(
    path: Path,
    languages: Sequence[str] | None,
    columns: Columns,
    header: Sequence[str] | None,
    item_prefix: str,
    parallel: bool,
) -> pd.DataFrame:
    if columns.language is None:
        raise TracInError(
            f"{path} is one file, and no column is named as its language: name one as language, or put {PLACEHOLDER} "
            "where the language stands in the path."
        )
    check_items(columns, parallel, str(path))
    rows = pick_columns(read_table(path, header), columns, source=str(path), item_prefix=item_prefix)
    return select_languages(rows, languages, str(path))


def files_by_language(pattern: str) -> dict[str, Path]:
    """Return the files that match a pattern, by the text that stands where ``{language}`` is."""
    first, *rest = (re.escape(part) for part in Path(pattern).as_posix().split(PLACEHOLDER))
    regex = re.compile(f"{first}(?P<language>[^/]+)" + "(?P=language)".join(rest))
    anchor = Path(pattern.split(PLACEHOLDER)[0] + "x").parent
    matches = (
        (regex.fullmatch(path.as_posix()), path)
        for path in sorted(anchor.glob(Path(pattern).relative_to(anchor).as_posix().replace(PLACEHOLDER, "*")))
    )
    return {match["language"]: path for match, path in matches if match}
