"""Keys of languages for loggers, and parts of file names: safe, whatever the names are."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Collection
from hashlib import sha256

from lightning_tracin.storage.account import OTHER_SOURCES

_SAFE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SUFFIXED = re.compile(r".*_[0-9a-f]{8}")
_LONGEST, _LONGEST_FILE = 40, 80
#: The last parts of keys that are not languages.
_TAKEN = {"mean", *OTHER_SOURCES}


def language_keys(names: Collection[str]) -> dict[str, str]:
    """Language -> its part of a logger's keys, by W&B's rule (`[A-Za-z_][A-Za-z0-9_]*`); no two are equal.

    A code such as `en` is its own key, and hyphens become `_`. Any other name gets a suffix. A key depends on the name alone, so
    that it is the same in every snapshot and resumed fit, whatever languages are added; only of two names that differ in a hyphen
    and a `_` (`zh-Hans` and `zh_Hans`, which mean one language), the first gets a suffix where both are there.

    Example:
        >>> language_keys(["en", "zh-Hans", "mean"])
        {'en': 'en', 'mean': 'mean_82523fae', 'zh-Hans': 'zh_Hans'}
    """
    plain = {name: name.replace("-", "_") for name in sorted(set(names))}
    count = Counter(plain.values())
    return {name: key if _is_kept(key) and (name == key or count[key] == 1) else _suffixed(name) for name, key in plain.items()}


def file_part(name: str) -> str:
    """A name as part of a file's name: itself, or, if a file system may not take it, a safe form that depends on it alone.

    Example:
        >>> file_part("zh-Hans"), file_part("../x"), len(file_part("x" * 300))
        ('zh-Hans', 'x_d6b96a97', 49)
    """
    kept = re.fullmatch(r"\w[\w+. -]*", name) and not name.endswith((".", " ")) and not _SUFFIXED.fullmatch(name)
    return name if kept and len(name.encode()) <= _LONGEST_FILE else _suffixed(name)


def _is_kept(key: str) -> bool:
    return len(key) <= _LONGEST and key not in _TAKEN and bool(_SAFE.fullmatch(key)) and not _SUFFIXED.fullmatch(key)


def _suffixed(name: str) -> str:
    letters = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    key = re.sub(r"[^A-Za-z0-9]+", "_", letters)[:_LONGEST].strip("_") or "language"
    digest = sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{'_' if key[0].isdigit() else ''}{key}_{digest}"
