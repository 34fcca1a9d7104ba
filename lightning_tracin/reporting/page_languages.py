"""How pages write a language, and the tag by which a browser chooses its letters and its direction."""

from __future__ import annotations

from lightning_tracin.storage.languages import meaning


def shown_language(name: str) -> str:
    """A language as pages write it.

    Example:
        >>> shown_language("de")
        'de'
    """
    return name


def html_language(name: str | None) -> str:
    """The value of HTML's attribute `lang`, with the script, which decides between the letters of Chinese and Japanese.

    Returns:
        "" for a name without a known meaning: the language is unknown.

    Example:
        >>> html_language("zh_Hant"), html_language("arabic"), html_language("klingon-x")
        ('zh-Hant', 'ar-Arab', '')
    """
    known = meaning(name) if name else None
    return "" if known is None else "-".join(part for part in (known.language, known.script) if part)
