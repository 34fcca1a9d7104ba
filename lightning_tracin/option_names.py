"""Options that are names: lists of them, and columns."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, ValidationInfo

from lightning_tracin.errors import TracInError


def _not_one_string(value: Any, info: ValidationInfo) -> Any:
    """Reject a string where a list is expected: pydantic would split it into letters."""
    if isinstance(value, str):
        raise TracInError(f"{info.field_name} should be a list of strings, but is the string {value!r}.")
    return value


def _some(value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
    if not value:
        raise TracInError(f"{info.field_name} is empty; name some, or leave it out for all.")
    return value


#: A list of names, which may be empty.
Names = Annotated[tuple[str, ...], BeforeValidator(_not_one_string)]
#: A list of at least one name.
SomeNames = Annotated[Names, AfterValidator(_some)]
