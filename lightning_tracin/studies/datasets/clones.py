"""Clones of a language: text in which words are mapped one-to-one to new ones, so that what two languages share is known.

A clone says the same in other words. Two clones share the part of their words that is chosen for them and nothing else, so it is
known beforehand whether one can help the other: not at all where no word is shared, as much as its own text where all are.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from lightning_tracin.errors import TracInError

#: A word is a run of letters and digits, or any other single sign: then nothing but white space is left as it is.
_WORD = re.compile(r"\w+|[^\w\s]")

#: Words of clones are written in rare letters (CJK extension B), 256 of them for each clone: real letters, so that tokenizers
#: take them as such. Their other signs are of a private area that has no letters, so that words end where they ended.
_FIRST, _LETTERS, _LAST = 0x20000, 256, 0x2A6DF
_FIRST_SIGN = 0xF0000
_FOREIGN = re.compile(f"[{chr(_FIRST)}-{chr(_LAST)}{chr(_FIRST_SIGN)}-{chr(_FIRST_SIGN + _LAST - _FIRST)}]")

#: Largest number of a clone.
MOST = (_LAST + 1 - _FIRST) // _LETTERS


def words(text: str) -> list[str]:
    """The words and other signs of a text in small letters, as a clone maps them.

    Example:
        >>> words("No. 7 is lost!")
        ['no', '.', '7', 'is', 'lost', '!']
    """
    return [word.lower() for word in _WORD.findall(text)]


def is_cloned(word: str) -> bool:
    """Whether a word is written in the letters of a clone.

    Example:
        >>> [is_cloned(Clone(1, shared).text("dog")) for shared in (0.0, 1.0)]
        [True, False]
    """
    return _FOREIGN.search(word) is not None


@dataclass(frozen=True)
class Clone:
    """A language that is made from another one by mapping its words.

    Words are mapped by their lower-cased form, and always to the same new word. Clones of the same family share the same words,
    and those that a smaller part shares are among those that a larger part shares.

    Args:
        number: which clone, from 1 to `MOST`; words that are not shared are its own. 0 leaves them as they are.
        shared: part of the different words that is shared with other clones, between 0 and 1.
        family: number of the clone whose words the shared ones are. 0: they stay as they are.

    Raises:
        TracInError: a number is out of range.

    Example:
        >>> half = [Clone(number, shared=0.5).text("The dog sees the cat") for number in (1, 2)]
        >>> [mine == other for mine, other in zip(*map(words, half))]
        [False, False, True, False, False]
        >>> Clone(1, shared=1.0).text("The dog")
        'The dog'
    """

    number: int
    shared: float = 0.0
    family: int = 0

    def __post_init__(self) -> None:
        for name in ("number", "family"):
            if not 0 <= getattr(self, name) <= MOST:
                raise TracInError(f"{name} of a clone should be between 0 and {MOST}, but is {getattr(self, name)}.")
        if not 0 <= self.shared <= 1:
            raise TracInError(f"shared should be a part between 0 and 1, but is {self.shared}.")

    def text(self, text: str) -> str:
        """The text in this language.

        Raises:
            TracInError: the text has a letter of those that clones are written in.
        """
        found = _FOREIGN.search(text)
        if found is not None:
            raise TracInError(
                f"The text has the letter {found.group()!r}, and clones are written in letters of its kind (CJK extension B, or "
                "a private area), so their words could not be told apart; leave this text out."
            )
        return _WORD.sub(lambda match: self._word(match.group()), text)

    def _word(self, word: str) -> str:
        owner = self._owner(word.lower())
        return word if owner == 0 else _spelled(word.lower(), owner)

    def _owner(self, word: str) -> int:
        """Number of the clone whose word it is."""
        digest = hashlib.blake2b(word.encode(), digest_size=7).digest()
        return self.family if int.from_bytes(digest, "big") / 2**56 < self.shared else self.number


def _spelled(word: str, number: int) -> str:
    """The word (or sign) in the letters of a clone, one for each byte, so that different words stay different."""
    first = (_FIRST if re.match(r"\w", word) else _FIRST_SIGN) + _LETTERS * (number - 1)
    return "".join(chr(first + byte) for byte in word.encode())
