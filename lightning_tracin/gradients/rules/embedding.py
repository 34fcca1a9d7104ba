"""Look-up tables."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_tracin.gradients.forms import Form, coalesced
from lightning_tracin.gradients.rules.rule import rule


@rule(nn.Embedding)
def embedding(module: nn.Module, inputs: Tensor, gradient: Tensor, wanted: frozenset[str]) -> dict[str, Form]:
    """A look-up: the table's gradient is the output gradients, added up by token; `padding_idx` gets none."""
    assert isinstance(module, nn.Embedding)
    if "weight" not in wanted:
        return {}
    return {"weight": looked_up(inputs, gradient, module.padding_idx, module.num_embeddings)}


def looked_up(tokens: Tensor, gradient: Tensor, padding_idx: int | None, table: int) -> Form:
    """The gradient of a table of which rows were looked up.

    Args:
        tokens: [samples, ...], int64.
        gradient: [samples, ..., width], of what was looked up.
        padding_idx: row that gets no gradient.
        table: number of rows.
    """
    samples, width = gradient.shape[0], gradient.shape[-1]
    tokens = tokens.reshape(samples, -1)
    kept = torch.ones_like(tokens, dtype=torch.bool)
    if padding_idx is not None:
        kept = tokens != padding_idx % table
    sample = torch.arange(samples, device=tokens.device)[:, None].expand_as(tokens)
    values = gradient.reshape(samples, -1, width)[kept]
    return coalesced(sample[kept], tokens[kept], values, samples, table)
