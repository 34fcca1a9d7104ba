"""The languages whose train samples an experiment varies, and checks of the settings that name them."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from lightning_tracin.errors import TracInError
from lightning_tracin.storage.languages import own_languages
from lightning_tracin.studies.datasets import Split
from lightning_tracin.studies.settings import StudySettings


def varied_languages(given: Sequence[str] | None, trained: Collection[str], probed: Collection[str]) -> list[str]:
    """The given languages by their names among the train samples; None returns every train language that is also probed.

    Args:
        given: names from a setting, as train samples or probes have them.
        trained: languages of the train samples.
        probed: languages of the probes.

    Example:
        >>> varied_languages(["english"], ["de", "en"], ["english"]), varied_languages(None, ["de", "en"], ["english", "fr"])
        (['en'], ['en'])
    """
    own = own_languages(probed if given is None else given, trained)
    if given is None:
        return sorted(set(own.values()))
    return list(dict.fromkeys(own.get(language, language) for language in given))


def require_languages(setting: str, settings: StudySettings) -> None:
    """Check that a setting does not name an empty list of languages.

    Raises:
        TracInError: the list is empty.
    """
    if getattr(settings, setting) == []:
        raise TracInError(f"{setting} is empty: name languages, or leave it out to use every train language.")


def require_trained_and_probed(setting: str, settings: StudySettings, split: Split) -> None:
    """Check that the languages of a setting are both trained on and probed, by whatever names (`languages.own_languages`).

    Raises:
        TracInError: the setting names another language.
    """
    trained, probed = (list(dict.fromkeys(part.with_format(None)["language"])) for part in (split.train, split.probes))
    both = varied_languages(None, trained, probed)
    for language in getattr(settings, setting) or ():
        if varied_languages([language], trained, probed)[0] not in both:
            raise TracInError(
                f"{setting} has {language!r}, which is not both trained on ({', '.join(trained)}) and probed "
                f"({', '.join(probed)})."
            )
