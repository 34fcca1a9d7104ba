"""Results that are made one by one: what goes wrong with one of them is noted, and costs no other."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from lightning_tracin.config import Options, Shown
from lightning_tracin.errors import MissingPackageError, TracInError, one_line
from lightning_tracin.storage.records import RunRecord


class Attempts:
    """Collects why results could not be made.

    Attributes:
        failed: result -> reason, in order.
        missing: what to install for results that need an optional package; these are not in `failed`.

    Example:
        >>> attempts = Attempts()
        >>> with attempts.at("curves.png"):
        ...     raise ValueError("no such glyph")
        >>> attempts.failed
        {'curves.png': 'ValueError: no such glyph'}
    """

    def __init__(self) -> None:
        self.failed: dict[str, str] = {}
        self.missing: list[str] = []

    @contextmanager
    def at(self, *names: str) -> Iterator[None]:
        """Make some results inside the context, which an error ends."""
        try:
            yield
        except MissingPackageError as error:
            if str(error) not in self.missing:
                self.missing.append(str(error))
        except Exception as error:
            self.failed.update(dict.fromkeys(names, reason(error)))


def reason(error: Exception) -> str:
    """Why something failed, in a few words: what the system says, the sentence of our own error, or the error with its kind.

    Example:
        >>> reason(KeyError("text")), reason(TracInError("There is no probe 9."))
        ("KeyError: 'text'", 'There is no probe 9')
    """
    told = error.__cause__ if isinstance(error, TracInError) and isinstance(error.__cause__, OSError) else error
    if isinstance(told, OSError):
        return told.strerror or str(told)
    words = str(error) if isinstance(error, TracInError) else f"{type(error).__name__}: {error}"
    return one_line(words).rstrip(".")


def results_command(path: Path, shown: Shown, recorded: Shown) -> str:
    """The command that writes a run's results from what is stored, with the options that differ from the record's.

    Example:
        >>> results_command(Path("runs/my fit"), Shown(top_k=50, similarity="cosine"), Shown(top_k=50))
        "lightning-tracin results --run 'runs/my fit' --similarity cosine"
    """
    options = {"k": "top_k", "similarity": "similarity", "weighting": "weighting"}
    chosen = {short: getattr(shown, name) for short, name in options.items() if getattr(shown, name) != getattr(recorded, name)}
    given = [f"--{name} {value}" for name, value in chosen.items()]
    return " ".join(["lightning-tracin results --run", shlex.quote(str(path)), *given])


def attribute_line(path: Path, shown: Options, record: RunRecord) -> str:
    """The line of Python that computes what is missing of a run, and writes its results.

    Args:
        path: the run directory.
        shown: options with the results to show, and the path of the mask.
        record: the run's.
    """
    chosen = {name: getattr(shown, name) for name in Shown.model_fields if getattr(shown, name) != getattr(record.options, name)}
    named = {name: repr(value) for name, value in chosen.items()}
    named |= {} if record.mask is None else {"mask": "mask" if shown.mask is None else repr(str(shown.mask))}
    named |= {"languages": "languages"} if record.languages_given else {}
    named |= {"languages_of_probes": "languages_of_probes"} if record.languages_of_probes_given else {}
    arguments = [
        "module",
        repr(str(path)),
        "train_loader",
        "probe_loaders",
        *(f"{name}={value}" for name, value in named.items()),
    ]
    return f"lightning_tracin.attribute({', '.join(arguments)})"


def listed(failed: Mapping[str, str]) -> str:
    """The results that failed, with a reason once for all that share it.

    Example:
        >>> listed({"a.csv": "No space left", "b.csv": "No space left", "c.png": "ValueError: x"})
        'a.csv, b.csv (No space left), c.png (ValueError: x)'
    """
    by_reason: dict[str, list[str]] = {}
    for name, why in failed.items():
        by_reason.setdefault(why, []).append(name)
    return ", ".join(f"{', '.join(names)} ({why})" for why, names in by_reason.items())
