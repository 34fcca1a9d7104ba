"""The tag by which a browser chooses the letters and the direction of a text."""

from __future__ import annotations

from lightning_tracin.storage.languages import meaning


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
