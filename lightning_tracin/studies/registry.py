"""The experiments that a study can make: each module of `studies/experiments` declares one with `@experiment`.

Adding an experiment means adding one module there. Settings, runner, resuming, page and W&B ask this registry, so none of them
names an experiment. The decorated function turns the finished runs into what the page shows; the arguments of the decorator say
what has to be fitted first and what has to be checked before any fit. Options of the experiment's own go into a frozen data
class; users set them as `options: {name: {...}}`, and `StudySettings.options_of` returns them.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from pydantic import TypeAdapter, ValidationError

from lightning_tracin.errors import TracInError
from lightning_tracin.studies.section import Contents, Section

if TYPE_CHECKING:  # all of these ask the registry themselves
    from lightning_tracin.analysis.lds import Members
    from lightning_tracin.studies.datasets import Split
    from lightning_tracin.studies.settings import StudySettings
    from lightning_tracin.studies.study_runs import StudyRuns, Wanted

#: From the finished runs to what the page shows; None where data or fits give nothing to compare.
Analysis: TypeAlias = "Callable[[StudyRuns], Contents | None]"
_SomeAnalysis = TypeVar("_SomeAnalysis", bound="Analysis")


@dataclass(frozen=True)
class Experiment:
    """What one experiment needs, and how its part of the page is made.

    Attributes:
        name: by which users ask for it, and which its files begin with.
        title: the heading of its section.
        order: of its section on the page; lower comes first.
        summary: what it does, in one line of the command line's help.
        analyse: makes the contents of its section from the finished runs.
        always: whether every study has it, even if its settings do not name it.
        runs: the runs with influence that it needs besides those that every study has.
        refits: which train samples the refits of a seed may see, [refits, train]; a seed may have none.
        check_settings: refuses settings that it cannot be made with.
        check_data: refuses data that it cannot be made with, before anything is fitted.
        extra_samples: how many further train samples of each language have to be set aside for it.
        options: the frozen data class of its own options, each with a default; None where it has none.
        addable: settings, or its own options, that may change when a study is resumed, because the existing fits stay valid.
    """

    name: str
    title: str
    order: int
    summary: str
    analyse: Analysis
    always: bool = False
    runs: Callable[[StudyRuns], Sequence[Wanted]] | None = None
    refits: Callable[[StudyRuns, int], Members] | None = None
    check_settings: Callable[[StudySettings], None] | None = None
    check_data: Callable[[StudySettings, Split], None] | None = None
    extra_samples: Callable[[StudySettings], int] | None = None
    options: type[Any] | None = None
    addable: frozenset[str] = frozenset()

    def section(self, study: StudyRuns) -> Section | None:
        """Its part of the page; None where data or fits give nothing to compare."""
        contents = self.analyse(study)
        return None if contents is None else Section.of(self.name, self.title, contents)

    def parsed(self, given: Mapping[str, Any]) -> Any:
        """Its own options, as an object of their class.

        Args:
            given: option -> value; what is missing has its default.

        Raises:
            TracInError: the experiment has no such option, or a value is of the wrong type.
        """
        known = [] if self.options is None else [field.name for field in dataclasses.fields(self.options)]
        unknown = [name for name in given if name not in known]
        if self.options is None or unknown:
            named = f"no option {unknown[0]!r}" if unknown else "no options of its own"
            raise TracInError(f"The experiment {self.name} has {named}; it has: {', '.join(known) or 'none'}.")
        try:
            return TypeAdapter(self.options).validate_python(dict(given))
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(map(str, ("options", self.name, *first["loc"])))
            raise TracInError(f"{name} is {first['input']!r}, but: {first['msg']}.") from error

    def addable_names(self) -> frozenset[str]:
        """Its addable settings as `study.json` names them: its own options begin with `options.` and its name."""
        own = set() if self.options is None else {field.name for field in dataclasses.fields(self.options)}
        return frozenset(f"options.{self.name}.{name}" if name in own else name for name in self.addable)


_REGISTERED: dict[str, Experiment] = {}


def experiment(
    name: str,
    title: str,
    order: int,
    *,
    always: bool = False,
    runs: Callable[[StudyRuns], Sequence[Wanted]] | None = None,
    refits: Callable[[StudyRuns, int], Members] | None = None,
    check_settings: Callable[[StudySettings], None] | None = None,
    check_data: Callable[[StudySettings, Split], None] | None = None,
    extra_samples: Callable[[StudySettings], int] | None = None,
    options: type[Any] | None = None,
    addable: Sequence[str] = (),
) -> Callable[[_SomeAnalysis], _SomeAnalysis]:
    """Declare the decorated function as the analysis of an experiment; see `Experiment` for the arguments.

    The first line of the function's docstring is the summary that the command line's help shows.

    Raises:
        TracInError: another experiment has this name.
    """

    def declare(function: _SomeAnalysis) -> _SomeAnalysis:
        if name in _REGISTERED:
            raise TracInError(f"Two experiments are called {name!r}; rename one of them.")
        _REGISTERED[name] = Experiment(
            name=name,
            title=title,
            order=order,
            summary=str(function.__doc__).partition("\n")[0].rstrip("."),
            analyse=function,
            always=always,
            runs=runs,
            refits=refits,
            check_settings=check_settings,
            check_data=check_data,
            extra_samples=extra_samples,
            options=options,
            addable=frozenset(addable),
        )
        return function

    return declare


def all_experiments() -> list[Experiment]:
    """Every registered experiment, in the order of the page."""
    importlib.import_module("lightning_tracin.studies.experiments")  # here, because its modules import this one
    return sorted(_REGISTERED.values(), key=lambda one: (one.order, one.name))


def optional_names() -> list[str]:
    """Names of the experiments that a study has only if it asks for them, in the order of the page."""
    return [one.name for one in all_experiments() if not one.always]


def chosen_experiments(names: Sequence[str]) -> list[Experiment]:
    """The experiments of a study, in the order of the page: those that every study has, and those that are named."""
    return [one for one in all_experiments() if one.always or one.name in names]


def experiment_named(name: str) -> Experiment:
    """The experiment of this name.

    Raises:
        TracInError: there is none.
    """
    every = {one.name: one for one in all_experiments()}
    if name not in every:
        raise TracInError(f"There is no experiment {name!r}; the known ones are: {', '.join(every)}.")
    return every[name]


def summaries() -> str:
    """The optional experiments for the command line's help: each name with what it does."""
    return ", ".join(f"``{one.name}`` ({one.summary})" for one in all_experiments() if not one.always)
