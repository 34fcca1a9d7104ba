"""The command line: a whole study from one file, and what is left to do or to read of a run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from lightning_tracin.errors import TracInError, printable

if TYPE_CHECKING:  # slow to import, and not needed to say how the command is used
    from lightning_tracin.studies.settings import StudySettings

_USAGE = "lightning-tracin study CONFIG.yaml [--name VALUE ...]"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; an error that a user can mend is one sentence and no traceback."""
    try:
        _run(list(sys.argv[1:] if arguments is None else arguments))
    except (TracInError, OSError) as error:
        raise SystemExit(f"Error: {printable(str(error))}") from error


def settings_from(path: Path, *overrides: str) -> StudySettings:
    """A study's settings from a YAML file.

    Args:
        path: of the file.
        overrides: such as `--seeds=2` or `--fit.data_dir=FOLDER`, which take the place of what the file says.

    Raises:
        TracInError: a value is not possible. An unknown name ends the program with a message, as in every command line.
    """
    if not path.is_file():
        raise TracInError(f"There is no file {path}; ready settings are in examples/configs of the project.")
    parser = _study_parser()
    parsed = parser.instantiate(parser.parse_args([f"--config={path}", *overrides]))
    return _settings(parsed)


def _run(arguments: list[str]) -> None:
    if len(arguments) > 1 and arguments[0] == "study" and not arguments[1].startswith("-"):
        _study(settings_from(Path(arguments[1]), *arguments[2:]))
        return
    parser = ArgumentParser(prog="lightning-tracin", description="Which languages' training data a multilingual model relies on.")
    commands = parser.add_subcommands(required=True)
    asked = next((argument for argument in arguments if not argument.startswith("-")), None)
    study = _study_parser() if asked in (None, "study") else ArgumentParser()  # its settings take seconds to import
    commands.add_subcommand("study", study, help=f"a whole study from one file: {_USAGE}")
    functions = _functions()
    for name, function in functions.items():
        command = ArgumentParser(prog=f"lightning-tracin {name}", description=_first_line(function))
        command.add_function_arguments(function, as_positional=False)
        commands.add_subcommand(name, command, help=_first_line(function))
    parsed = parser.parse_args(arguments)
    if parsed.subcommand == "study":
        _study(_settings(study.instantiate(parsed.study)))
    else:
        said = functions[parsed.subcommand](**vars(parsed[parsed.subcommand]))
        if said:
            print(said)


def _functions() -> dict[str, Callable[..., str]]:
    """The commands on one run, by name."""
    from lightning_tracin.cli import commands

    return {
        "attribute": commands.attribute,
        "status": commands.status,
        "reliance": commands.reliance,
        "top": commands.top,
        "export": commands.export,
    }


def _first_line(function: Callable[..., str]) -> str:
    return str(function.__doc__).partition("\n")[0]


def _study_parser() -> ArgumentParser:
    from lightning_tracin.studies.settings import StudySettings

    parser = ArgumentParser(prog="lightning-tracin study", description="Run a whole study; what is done is not done again.")
    parser.add_argument("--config", action="config", help="a YAML file of settings; what stands behind it overrides it")
    parser.add_class_arguments(StudySettings, fail_untyped=True)
    return parser


def _settings(parsed: Namespace) -> StudySettings:
    from lightning_tracin.studies.settings import StudySettings

    values = vars(parsed)
    values.pop("config", None)
    return StudySettings(**values)


def _study(settings: StudySettings) -> None:
    from lightning_tracin.studies.page import write_page
    from lightning_tracin.studies.runner import run_study
    from lightning_tracin.studies.wandb_run import log_to_wandb

    outcome = run_study(settings)
    page = write_page(outcome)
    for section in outcome.sections:
        print(f"\n{section.title}")
        for finding in section.findings:
            print(printable(f"  {finding}"))
    print(f"\nPage: {page}")
    if settings.wandb_mode != "disabled":
        print(f"W&B run: {log_to_wandb(outcome)}")
