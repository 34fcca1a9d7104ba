"""The languages whose train samples an experiment varies: which are meant, and whether the data have them."""

from __future__ import annotations

from lightning_tracin.errors import TracInError
from lightning_tracin.studies.datasets import Split
from lightning_tracin.studies.study_runs import StudyRuns


def varied_languages(given: list[str] | None, study: StudyRuns) -> list[str]:
    """The languages that a setting names, or every train language that is also probed."""
    return [language for language in study.languages if language in study.probes.language] if given is None else list(given)


def require_languages(setting: str, given: list[str] | None) -> None:
    """Refuse a setting that names no language.

    Raises:
        TracInError: the list is empty.
    """
    if given == []:
        raise TracInError(f"{setting} is empty: name languages, or leave it out to take every train language.")


def require_trained_and_probed(setting: str, given: list[str] | None, split: Split) -> None:
    """Refuse languages that are not both trained on and probed.

    Raises:
        TracInError: the setting names such a language.
    """
    trained, probed = (list(dict.fromkeys(part.with_format(None)["language"])) for part in (split.train, split.probes))
    for language in given or ():
        if language not in trained or language not in probed:
            raise TracInError(
                f"{setting} has {language!r}, which is not both trained on ({', '.join(trained)}) and probed "
                f"({', '.join(probed)})."
            )
