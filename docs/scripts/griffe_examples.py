"""An extension of griffe, which reads docstrings for the site: it knows examples by the heading `Examples:` only."""

from __future__ import annotations

import re
from typing import Any

import griffe


class ExamplesByEitherName(griffe.Extension):
    """Lets the docstrings' `Example:` be a section with code."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rename the heading."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
