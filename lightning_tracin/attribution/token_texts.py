"""What tokens of a loss look like: their positions in the sample, and their text where a tokenizer knows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from lightning_tracin.attribution.token_losses import Token


def found_tokenizer(*holders: Any) -> Any:
    """The tokenizer that the first of some objects holds as `tokenizer` or `processing_class`; None if none does.

    Args:
        holders: such as a collate function and a module.

    Example:
        >>> import types
        >>> found_tokenizer(print, types.SimpleNamespace(tokenizer=None)) is None
        True
    """
    for holder in holders:
        for name in ("tokenizer", "processing_class"):
            found = getattr(holder, name, None)
            if hasattr(found, "convert_ids_to_tokens"):
                return found
    return None


def shift_of(tokens: Sequence[Token], batch: Any) -> int:
    """How many positions a token's target is behind it: 1 where a causal model predicts the next token, otherwise 0.

    Args:
        tokens: of one sample.
        batch: of this sample alone; its `labels` (or `input_ids`) are compared with the targets.

    Example:
        >>> import torch
        >>> tokens = [Token(0, 0, 0, target=7), Token(1, 0, 1, target=8)]
        >>> shift_of(tokens, {"labels": torch.tensor([[5, 7, 8]])}), shift_of(tokens, {"labels": torch.tensor([[7, 8, -100]])})
        (1, 0)
    """
    for name in ("labels", "input_ids"):
        row = _row(batch, name)
        for shift in (0, 1):
            if row is not None and tokens and _match(tokens, row, shift):
                return shift
    return 0


def _match(tokens: Sequence[Token], row: list[int], shift: int) -> bool:
    places = [(one.position + shift, one.target) for one in tokens if one.position >= 0 and one.target >= 0]
    return bool(places) and all(place < len(row) and row[place] == target for place, target in places)


def texts_of(tokens: Sequence[Token], batch: Any, tokenizer: Any) -> list[str]:
    """The text of each token: of its target where the model chooses among the vocabulary, otherwise of the input at its position.

    Args:
        tokens: of one sample.
        batch: of this sample alone.
        tokenizer: of Hugging Face's kind. None: it is not known.

    Returns:
        Texts; "" where it is not known, and "(sample)" for a term with a single loss for the whole sample.
    """
    row = _row(batch, "input_ids")
    found = []
    for token in tokens:
        text = "(sample)" if token.position < 0 else ""
        if tokenizer is not None and token.position >= 0:
            if token.target >= 0 and token.classes >= len(tokenizer):
                text = _text(tokenizer, token.target)
            elif row is not None and _is_of_input(token, row):
                text = _text(tokenizer, row[token.position])
        found.append(text)
    return found


def _is_of_input(token: Token, row: list[int]) -> bool:
    """Whether a position is one of the input: its term has a position for each, or says of each which class it has."""
    return token.position < len(row) and (token.target >= 0 or token.count == len(row))


def unscored_pieces(tokens: Sequence[Token], batch: Any, tokenizer: Any) -> list[tuple[int, str]]:
    """The pieces of a sample's input that are no tokens of its loss, to show the others among them: position and text.

    Args:
        tokens: of one sample.
        batch: of this sample alone.
        tokenizer: see `texts_of`.

    Returns:
        None of them where the tokens are not those of the input, such as a translation's.
    """
    row = _row(batch, "input_ids")
    if tokenizer is None or row is None:
        return []
    shift = shift_of(tokens, batch)
    scored = {token.position + shift: token for token in tokens if token.position >= 0}
    for place, token in scored.items():
        is_next = token.classes >= len(tokenizer)
        if not (place < len(row) and row[place] == token.target if is_next else _is_of_input(token, row)):
            return []
    special = set(getattr(tokenizer, "all_special_ids", ()))
    left = [(place, number) for place, number in enumerate(row) if place not in scored and number not in special]
    return [(place, _text(tokenizer, number)) for place, number in left]


def _text(tokenizer: Any, number: int) -> str:
    """The text of one piece of the vocabulary; a blank before it means that a word begins."""
    piece = tokenizer.convert_ids_to_tokens(number)
    if piece is None:
        return ""
    if piece.startswith("▁"):
        return f" {piece[1:]}"
    return str(tokenizer.convert_tokens_to_string([piece]))


def _row(batch: Any, name: str) -> list[int] | None:
    """The numbers of one sample under a name; None if the batch has none."""
    values = batch.get(name) if isinstance(batch, Mapping) else None
    if not isinstance(values, Tensor) or values.dim() != 2 or len(values) != 1 or values.is_floating_point():
        return None
    numbers: list[int] = values[0].tolist()
    return numbers
