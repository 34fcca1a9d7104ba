"""The order in which figures show languages: related ones side by side."""

from __future__ import annotations

from collections.abc import Iterable

from lightning_tracin.analysis.language_facts import facts_are_there, facts_of, family_of
from lightning_tracin.storage.display_names import display_name
from lightning_tracin.storage.languages import meaning


def ordered(names: Iterable[str]) -> list[str]:
    """Languages by family, branch and name, if the extra `languages` is installed; otherwise by script and name.

    Languages without a known family come after all families, by script; a name without a meaning is where Latin letters are.

    Example:
        >>> ordered(["uk", "sv", "ru"])  # Slavic, then Germanic; without the extra Cyrillic, then Latin
        ['ru', 'uk', 'sv']
    """
    different = list(dict.fromkeys(map(str, names)))
    facts = facts_of(different) if facts_are_there() else dict.fromkeys(different)

    def place(name: str) -> tuple[bool, tuple[str, ...], str, str]:
        known, said, shown = facts[name], meaning(name), display_name(name)
        script = "Latn" if said is None else said.script
        branches = () if known is None else (family_of(known, shown), *known.branches[1:])
        return known is None, branches, "" if known is not None else script, shown.casefold()

    return sorted(different, key=place)
