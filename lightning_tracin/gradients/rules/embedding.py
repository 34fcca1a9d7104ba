"""Embeddings, which are look-ups in a table."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_tracin.gradients.forms import Form, Rows, coalesced
from lightning_tracin.gradients.rules.rule import rule


@rule(nn.Embedding)
def embedding(module: nn.Module, inputs: Tensor, gradient: Tensor, wanted: frozenset[str]) -> dict[str, Form]:
    """A look-up: the table's gradient is the sum of the output gradients of each token; `padding_idx` gets none."""
    assert isinstance(module, nn.Embedding)
    if "weight" not in wanted:
        return {}
    return {"weight": looked_up(inputs, gradient, module.padding_idx, module.num_embeddings)}


def looked_up(tokens: Tensor, gradient: Tensor, padding_idx: int | None, table: int) -> Rows:
    """The gradient of a table from which rows were looked up.

    Args:
        tokens: [samples, ...], int64, the rows.
        gradient: [samples, ..., width], gradient of the rows that were found.
        padding_idx: row that gets no gradient.
        table: number of rows.

    Example:
        >>> rows = looked_up(torch.tensor([[3, 3, 0]]), torch.ones(1, 3, 2), padding_idx=0, table=5)
        >>> rows.row.tolist(), rows.values.tolist()
        ([3], [[2.0, 2.0]])
    """
    samples, width = gradient.shape[0], gradient.shape[-1]
    tokens = tokens.reshape(samples, -1)
    kept = torch.ones_like(tokens, dtype=torch.bool)
    if padding_idx is not None:
        kept = tokens != padding_idx % table
    sample = torch.arange(samples, device=tokens.device)[:, None].expand_as(tokens)
    values = gradient.reshape(samples, -1, width)
    if tokens.device.type == "cpu":
        return coalesced(sample[kept], tokens[kept], values[kept], samples, table)
    # To select by a mask, the processor would wait for an accelerator.
    values = values.masked_fill(~kept[:, :, None], 0)
    return coalesced(sample.flatten(), tokens.flatten(), values.flatten(0, 1), samples, table)
