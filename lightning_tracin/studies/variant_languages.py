"""The languages whose train samples an experiment varies, and checks of the settings that name them."""

from __future__ import annotations

from lightning_tracin.errors import TracInError
from lightning_tracin.studies.datasets import Split
from lightning_tracin.studies.settings import StudySettings
from lightning_tracin.studies.study_runs import StudyRuns


def varied_languages(given: list[str] | None, study: StudyRuns) -> list[str]:
    """The given languages; None returns every train language that is also probed."""
    return [language for language in study.languages if language in study.probes.language] if given is None else list(given)


def require_languages(setting: str, settings: StudySettings) -> None:
    """Check that a setting does not name an empty list of languages.

    Raises:
        TracInError: the list is empty.
    """
    if getattr(settings, setting) == []:
        raise TracInError(f"{setting} is empty: name languages, or leave it out to use every train language.")


def require_trained_and_probed(setting: str, settings: StudySettings, split: Split) -> None:
    """Check that the languages of a setting are both trained on and probed.

    Raises:
        TracInError: the setting names another language.
    """
    trained, probed = (list(dict.fromkeys(part.with_format(None)["language"])) for part in (split.train, split.probes))
    for language in getattr(settings, setting) or ():
        if language not in trained or language not in probed:
            raise TracInError(
                f"{setting} has {language!r}, which is not both trained on ({', '.join(trained)}) and probed "
                f"({', '.join(probed)})."
            )
