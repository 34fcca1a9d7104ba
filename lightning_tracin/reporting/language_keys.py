"""Keys of languages for loggers: letters, digits and `_`, whatever the names are."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Collection
from hashlib import sha256

_SAFE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SUFFIXED = re.compile(r".*_[0-9a-f]{8}")
_LONGEST = 40
#: The last parts of keys that are not languages.
_TAKEN = {"mean"}


def language_keys(names: Collection[str]) -> dict[str, str]:
    """Language -> its part of a logger's keys, by W&B's rule (`[A-Za-z_][A-Za-z0-9_]*`); no two are equal.

    A code such as `en` is its own key. Hyphens, dots and blanks become `_`. A name that loses more than that, or that is not
    unique then, gets a suffix that depends on the name alone, so that it is the same in every snapshot and resumed fit.

    Example:
        >>> language_keys(["en", "zh-Hans", "mean"])
        {'en': 'en', 'mean': 'mean_82523fae', 'zh-Hans': 'zh_Hans'}
    """
    plain = {name: re.sub(r"[-. ]", "_", name) for name in sorted(set(names))}
    plain = {name: f"_{key}" if key[:1].isdigit() else key for name, key in plain.items()}
    count = Counter(plain.values())
    return {name: key if _is_kept(key) and (name == key or count[key] == 1) else _suffixed(name) for name, key in plain.items()}


def _is_kept(key: str) -> bool:
    return len(key) <= _LONGEST and key not in _TAKEN and bool(_SAFE.fullmatch(key)) and not _SUFFIXED.fullmatch(key)


def _suffixed(name: str) -> str:
    letters = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    key = re.sub(r"[^A-Za-z0-9]+", "_", letters)[:_LONGEST].strip("_") or "language"
    digest = sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{'_' if key[0].isdigit() else ''}{key}_{digest}"
