"""The `lightning-tracin` command: runs a study from one file, and completes or reads a run."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

from lightning_tracin.errors import TracInError, printable, unquoted

if TYPE_CHECKING:  # slow to import, and not needed for --help
    from lightning_tracin.studies.settings import StudySettings

_USAGE = "lightning-tracin study CONFIG.yaml [--name VALUE ...]"

#: What the parser says of a value in place of a word.
_UNQUOTED = re.compile(
    r"""key ["'](?P<key>[^"']+)["'].*Expected a <class 'str'>\. Got value: (?P<value>False|True|None|nan|[\d.]+)$""",
    re.DOTALL | re.MULTILINE,
)

#: The commands on runs: functions of `cli.commands`.
_RUN_COMMANDS = ("attribute", "results", "report", "status", "reliance", "need", "contributions", "top", "export", "dashboard")


class _StudyParser(ArgumentParser):
    """Says of a word that YAML reads as something else that it needs quotes."""

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Exit with a message.

        Raises:
            TracInError: a value is no word.
        """
        found = _UNQUOTED.search(message)
        if found is not None:
            raise unquoted(found["key"], found["value"])
        super().error(message, ex)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command. An error that the user can fix is printed as one sentence, without a traceback."""
    try:
        _run(list(sys.argv[1:] if arguments is None else arguments))
    except (TracInError, OSError) as error:
        raise SystemExit(f"Error: {printable(str(error))}") from error


def settings_from(path: Path, *overrides: str) -> StudySettings:
    """Read a study's settings from a YAML file.

    Args:
        path: the file.
        overrides: options that override the file, such as `--seeds=2` or `--fit.data_dir=FOLDER`.

    Raises:
        TracInError: the file does not exist or a value is invalid. An unknown name exits with a message, as on any command line.
    """
    if not path.is_file():
        raise TracInError(f"There is no file {path}; examples/configs of the project has files to start from.")
    parser = _study_parser()
    return _settings(parser.instantiate(parser.parse_args([f"--config={path}", *overrides])))


def _run(arguments: list[str]) -> None:
    if len(arguments) > 1 and arguments[0] == "study" and not arguments[1].startswith("-"):
        _study(settings_from(Path(arguments[1]), *arguments[2:]))
        return
    if len(arguments) > 1 and arguments[0] in _RUN_COMMANDS and not arguments[1].startswith("-"):
        arguments = [arguments[0], "--run", *arguments[1:]]
    from lightning_tracin.cli import commands as run_commands  # slow to import

    about = "Which languages' training data a multilingual model relies on."
    parser = _StudyParser(prog="lightning-tracin", description=about, version=version("lightning-tracin"))
    commands = parser.add_subcommands(required=True)
    asked = next((argument for argument in arguments if not argument.startswith("-")), None)
    study = _study_parser() if asked in (None, "study") else ArgumentParser()  # its settings take seconds to import
    commands.add_subcommand("study", study, help=f"Run a study from one file: {_USAGE}")
    functions: dict[str, Callable[..., str]] = {name: getattr(run_commands, name) for name in _RUN_COMMANDS}
    for name, function in functions.items():
        description = str(function.__doc__).partition("\n")[0]
        command = ArgumentParser(prog=f"lightning-tracin {name}", description=description)
        command.add_function_arguments(function, as_positional=False)
        for action in command._actions:
            if isinstance(action.default, bool):
                action.nargs, action.const = "?", not action.default  # the bare option is enough
        commands.add_subcommand(name, command, help=description)
    parsed = parser.parse_args(arguments)
    if parsed.subcommand == "study":
        _study(_settings(study.instantiate(parsed.study)))
    elif output := functions[parsed.subcommand](**vars(parsed[parsed.subcommand])):
        print(output)


def _study_parser() -> ArgumentParser:
    from lightning_tracin.studies.settings import StudySettings

    parser = _StudyParser(prog="lightning-tracin study", description="Run a study. Results that already exist are reused.")
    parser.add_argument("--config", action="config", help="YAML file of settings. Options after it override the file.")
    parser.add_class_arguments(StudySettings, fail_untyped=True)
    return parser


def _settings(parsed: Namespace) -> StudySettings:
    from lightning_tracin.studies.settings import StudySettings

    return StudySettings(**{name: value for name, value in vars(parsed).items() if name != "config"})


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
