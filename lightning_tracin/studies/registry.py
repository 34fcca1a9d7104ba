"""The experiments that a study can run: each module of `studies/experiments` declares one with `@experiment`.

To add an experiment, add a module there. Settings, runner, resuming, page and W&B ask this registry, so none of them names an
experiment. The decorated function turns the finished runs into the contents of a section; the decorator's arguments say what to
fit first and what to check before any fit. Options of a single experiment go into a frozen dataclass; users set them as
`options: {name: {...}}`, and `StudySettings.options_of` returns them.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from pydantic import TypeAdapter, ValidationError

from lightning_tracin.errors import TracInError
from lightning_tracin.studies.section import Contents, Section

if TYPE_CHECKING:  # all of these ask the registry themselves
    from lightning_tracin.analysis.lds import Members
    from lightning_tracin.studies.datasets import Split
    from lightning_tracin.studies.settings import StudySettings
    from lightning_tracin.studies.study_runs import StudyRuns, Wanted

#: Turns the finished runs into the contents of a section; None if there is nothing to compare.
Analysis: TypeAlias = "Callable[[StudyRuns], Contents | None]"
_SomeAnalysis = TypeVar("_SomeAnalysis", bound="Analysis")


@dataclass(frozen=True)
class Experiment:
    """What an experiment needs, and how its section is made. An instance is also the decorator of its analysis.

    Attributes:
        name: name in the settings; the names of its files begin with it.
        title: heading of its section.
        order: position of its section on the page; lower comes first.
        analyse: computes the contents of its section from the finished runs; set by the decorator.
        always: whether every study includes it, even if the settings do not name it.
        runs: the runs with influence that it needs in addition to those that every study has.
        refits: the train samples of each refit of a seed, [refits, train]; a seed may have none.
        check_settings: raises an error for settings that it does not work with.
        check_data: raises an error for data that it does not work with, before anything is fitted.
        extra_samples: number of additional train samples of each language that it needs.
        options: frozen dataclass of its own options, each with a default; None if it has none.
        addable: settings, or its own options, that may change when a study is resumed, because the existing fits stay valid.
    """

    name: str
    title: str
    order: int
    analyse: Analysis = field(default=lambda _: None, kw_only=True)
    always: bool = False
    runs: Callable[[StudyRuns], Sequence[Wanted]] | None = None
    refits: Callable[[StudyRuns, int], Members] | None = None
    check_settings: Callable[[StudySettings], None] | None = None
    check_data: Callable[[StudySettings, Split], None] | None = None
    extra_samples: Callable[[StudySettings], int] | None = None
    options: type[Any] | None = None
    addable: Sequence[str] = ()

    def __call__(self, function: _SomeAnalysis) -> _SomeAnalysis:
        """Register the experiment with the decorated function as its analysis.

        Raises:
            TracInError: another experiment has this name.
        """
        if self.name in REGISTERED:
            raise TracInError(f"Two experiments are called {self.name!r}; rename one of them.")
        REGISTERED[self.name] = dataclasses.replace(self, analyse=function)
        return function

    @property
    def summary(self) -> str:
        """What it does, for the command line's help: the first line of the analysis's docstring."""
        return str(self.analyse.__doc__).partition("\n")[0].rstrip(".")

    def section(self, study: StudyRuns) -> Section | None:
        """Compute its section; None if there is nothing to compare."""
        contents = self.analyse(study)
        return None if contents is None else Section(**vars(contents), name=self.name, title=self.title)

    def parsed(self, given: Mapping[str, Any]) -> Any:
        """Validate its own options, and return an object of their class.

        Args:
            given: option -> value; missing options have their defaults.

        Raises:
            TracInError: the experiment has no such option, or a value has the wrong type.
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
        """Its addable settings by their names in `study.json`: those of its own options begin with `options.` and its name."""
        own = set() if self.options is None else {field.name for field in dataclasses.fields(self.options)}
        return frozenset(f"options.{self.name}.{name}" if name in own else name for name in self.addable)


#: As a decorator.
experiment = Experiment

REGISTERED: dict[str, Experiment] = {}


def all_experiments() -> list[Experiment]:
    """Every registered experiment, in page order.

    Example:
        >>> [one.name for one in all_experiments() if one.always]
        ['top', 'reliance', 'reinforcement', 'changes']
    """
    importlib.import_module("lightning_tracin.studies.experiments")  # here, because its modules import this one
    return sorted(REGISTERED.values(), key=lambda one: (one.order, one.name))


def optional_names() -> list[str]:
    """Names of the experiments that a study runs only on request, in page order."""
    return [one.name for one in all_experiments() if not one.always]


def chosen_experiments(names: Sequence[str]) -> list[Experiment]:
    """The experiments of a study, in page order: those that every study has, and those that are named.

    Example:
        >>> [one.name for one in chosen_experiments(["lds"])]
        ['top', 'reliance', 'reinforcement', 'changes', 'lds']
    """
    return [one for one in all_experiments() if one.always or one.name in names]


def experiment_named(name: str) -> Experiment:
    """The experiment with this name.

    Raises:
        TracInError: it does not exist.
    """
    every = {one.name: one for one in all_experiments()}
    if name not in every:
        raise TracInError(f"There is no experiment {name!r}; the known ones are: {', '.join(every)}.")
    return every[name]


def summaries() -> str:
    """Names and summaries of the optional experiments, for the command line's help."""
    return ", ".join(f"``{one.name}`` ({one.summary})" for one in all_experiments() if not one.always)
