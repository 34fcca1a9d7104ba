"""Normalisations with a scale of their own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_tracin.gradients.forms import Dense, Form
from lightning_tracin.gradients.rules.rule import rule, rule_by_formula


@rule(nn.LayerNorm)
def layer_norm(module: nn.Module, inputs: Tensor, gradient: Tensor, wanted: frozenset[str]) -> dict[str, Form]:
    """``y = normalised(x) * weight + bias``, elementwise over the normalised shape."""
    assert isinstance(module, nn.LayerNorm)
    forms: dict[str, Form] = {}
    samples, elements = gradient.shape[0], module.normalized_shape
    positions = (samples, -1, *elements)
    if "weight" in wanted:
        normalised = nn.functional.layer_norm(inputs, elements, eps=module.eps)
        forms["weight"] = Dense((gradient * normalised).reshape(positions).sum(1).flatten(1))
    if "bias" in wanted:
        forms["bias"] = Dense(gradient.reshape(positions).sum(1).flatten(1))
    return forms


@rule(nn.RMSNorm)
def rms_norm(module: nn.Module, inputs: Tensor, gradient: Tensor, wanted: frozenset[str]) -> dict[str, Form]:
    """``y = x / rms(x) * weight`` (Zhang and Sennrich 2019), elementwise over the normalised shape."""
    assert isinstance(module, nn.RMSNorm)
    if "weight" not in wanted:
        return {}
    normalised = nn.functional.rms_norm(inputs, module.normalized_shape, eps=module.eps)
    samples = gradient.shape[0]
    return {"weight": Dense((gradient * normalised).reshape(samples, -1, *module.normalized_shape).sum(1).flatten(1))}


class _T5:
    """transformers' T5LayerNorm."""

    def forward(self, hidden_states):  # type: ignore[no-untyped-def]
        variance = hidden_states.to(torch.float32).pow(2).mean(-1, keepdim=True)
        hidden_states = hidden_states * torch.rsqrt(variance + self.variance_epsilon)  # type: ignore[attr-defined]
        if self.weight.dtype in [torch.float16, torch.bfloat16]:  # type: ignore[attr-defined]
            hidden_states = hidden_states.to(self.weight.dtype)  # type: ignore[attr-defined]
        return self.weight * hidden_states  # type: ignore[attr-defined]


class _Llama:
    """transformers' LlamaRMSNorm, and those of Qwen, Mistral, Mixtral and most others."""

    def forward(self, hidden_states):  # type: ignore[no-untyped-def]
        input_dtype = hidden_states.dtype
        hidden_states = hidden_states.to(torch.float32)
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        hidden_states = hidden_states * torch.rsqrt(variance + self.variance_epsilon)  # type: ignore[attr-defined]
        return self.weight * hidden_states.to(input_dtype)  # type: ignore[attr-defined]


class _Olmo:
    """transformers' Olmo2RMSNorm and GptOssRMSNorm: as Llama's, cast after the scale."""

    def forward(self, hidden_states):  # type: ignore[no-untyped-def]
        input_dtype = hidden_states.dtype
        hidden_states = hidden_states.to(torch.float32)
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        hidden_states = hidden_states * torch.rsqrt(variance + self.variance_epsilon)  # type: ignore[attr-defined]
        return (self.weight * hidden_states).to(input_dtype)  # type: ignore[attr-defined]


class _Gemma:
    """transformers' GemmaRMSNorm, to Gemma 3: the scale is 1 + weight."""

    def _norm(self, x):  # type: ignore[no-untyped-def]
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)  # type: ignore[attr-defined]

    def forward(self, x):  # type: ignore[no-untyped-def]
        output = self._norm(x.float())  # type: ignore[no-untyped-call]
        output = output * (1.0 + self.weight.float())  # type: ignore[attr-defined]
        return output.type_as(x)


def _one_scale(module: nn.Module) -> bool:
    """Whether the only parameter is a scale over the last dimension."""
    own = dict(module.named_parameters())
    return own.keys() == {"weight"} and own["weight"].ndim == 1


@rule_by_formula("RMSNorm", _T5.forward, when=_one_scale)
@rule_by_formula("RMSNorm", _Llama.forward, when=_one_scale)
@rule_by_formula("RMSNorm", _Olmo.forward, when=_one_scale)
@rule_by_formula("RMSNorm", _Gemma.forward, _Gemma._norm, when=_one_scale)
def root_mean_square(module: nn.Module, inputs: Tensor, gradient: Tensor, wanted: frozenset[str]) -> dict[str, Form]:
    """``y = x / rms(x) * s`` with s = weight or 1 + weight, whose derivative is the same."""
    if "weight" not in wanted:
        return {}
    epsilon = float(getattr(module, "variance_epsilon", 0.0) or getattr(module, "eps", 0.0))
    wide = inputs.to(torch.promote_types(inputs.dtype, torch.float32))
    normalised = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
    return {"weight": Dense((gradient * normalised).reshape(gradient.shape[0], -1, gradient.shape[-1]).sum(1))}
