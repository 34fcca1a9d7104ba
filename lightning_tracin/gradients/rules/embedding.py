"""Look-up tables."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_tracin.gradients.forms import Form, coalesced
from lightning_tracin.gradients.rules.registry import rule


@rule(nn.Embedding)
def embedding(module: nn.Module, inputs: Tensor, gradient: Tensor, wanted: frozenset[str]) -> dict[str, Form]:
    """A look-up: the table's gradient is the output gradients, added up by token; `padding_idx` gets none."""
    assert isinstance(module, nn.Embedding)
    if "weight" not in wanted:
        return {}
    samples, width = gradient.shape[0], gradient.shape[-1]
    tokens = inputs.reshape(samples, -1)
    kept = torch.ones_like(tokens, dtype=torch.bool)
    if module.padding_idx is not None:
        kept = tokens != module.padding_idx
    sample = torch.arange(samples, device=tokens.device)[:, None].expand_as(tokens)
    values = gradient.reshape(samples, -1, width)[kept]
    return {"weight": coalesced(sample[kept], tokens[kept], values, samples, module.num_embeddings)}
