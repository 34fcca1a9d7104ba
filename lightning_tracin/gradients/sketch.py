"""Per-sample gradients as a few thousand numbers each: the projected features that are stored and scored later.

Every parameter has its own linear map to its part of the features (see `projection`). The total is shared out by the
parameters' share of the gradients' energy, because the variance of an estimated inner product is about ``sum over l of
energy_l ** 2 / size_l``, which sizes in proportion to the energy minimise. A bias or a head thereby often keeps its gradient
exactly, which random projections of equal size for all layers (Park et al. 2023, TRAK, arXiv 2303.14186) do not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_tracin.errors import TracInError
from lightning_tracin.gradients.capture import Coverage
from lightning_tracin.gradients.forms import Form
from lightning_tracin.gradients.projection import NEEDED, OPTIONAL, Part, draw_part

#: Part of the features that parameters share evenly at the least, for what calibration does not show.
_EVEN = 0.2

#: Features of unit gradients are stored times this: half precision then resolves 1e-9 of a gradient and holds 1000 times one.
_SCALE = 64.0


@dataclass(frozen=True)
class Sketch:
    """Features of per-sample gradients: one linear map for every scored parameter, the same for train samples and probes.

    A sketch depends on nothing but its arguments, so features made at different times, in any batches and on any rank,
    belong together; `state` holds all of it.
    """

    parts: Mapping[str, Part]

    @classmethod
    def plan(cls, coverage: Coverage, energy: Mapping[str, float], dim: int, seed: int = 0) -> Sketch:
        """Draw the maps of all parameters.

        Args:
            coverage: the scored parameters.
            energy: parameter -> its share of the gradients' squared norm, as from `energy_shares`.
            dim: features of a sample in all; what they take in half precision is twice that in bytes.
            seed: of bases, signs and offsets.

        Raises:
            TracInError: `dim` is smaller than the number of parameters.
        """
        sizes = share_out(coverage.elements, energy, dim)
        tables = {name for layer in coverage.layers if isinstance(layer.module, nn.Embedding) for name in layer.names.values()}
        shapes = {
            name: layer.module.get_parameter(own_name).shape
            for layer in coverage.layers
            for own_name, name in layer.names.items()
        }
        generator = torch.Generator().manual_seed(seed)
        return cls(
            {name: draw_part(shapes[name], sizes[name], table=name in tables, generator=generator) for name in sorted(sizes)}
        )

    @property
    def dim(self) -> int:
        """Features of a sample in all."""
        return sum(part.size for part in self.parts.values())

    @property
    def layout(self) -> dict[str, slice]:
        """Where a parameter's features stand among all of a sample's."""
        layout, at = {}, 0
        for name, part in self.parts.items():
            layout[name] = slice(at, at + part.size)
            at += part.size
        return layout

    def features(self, name: str, forms: Sequence[Form]) -> Tensor:
        """The features of one parameter's gradients: [samples, size of its part]; linear, so several uses add up."""
        part = self.parts[name]
        total = part(forms[0])
        for form in forms[1:]:
            total = total + part(form)
        return total

    def to(self, device: torch.device) -> Sketch:
        """The same sketch on another device."""
        return Sketch({name: part.to(device) for name, part in self.parts.items()})

    def state(self) -> dict[str, Tensor]:
        """Everything, as tensors for one safetensors file."""
        return {f"{name}/{key}": tensor for name, part in self.parts.items() for key, tensor in part.tensors().items()}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> Sketch:
        """The sketch that `state` describes.

        Raises:
            TracInError: a tensor is missing.
        """
        names = sorted(key.removesuffix("/sizes") for key in state if key.endswith("/sizes"))
        return cls({name: _restored(name, state) for name in names})


def energy_shares(squared: Mapping[str, Tensor]) -> dict[str, float]:
    """Each parameter's mean share of a sample's squared gradient norm; samples without a gradient do not count.

    Args:
        squared: parameter -> squared norms [samples].

    Raises:
        TracInError: no sample has a gradient.
    """
    total = torch.stack(list(squared.values())).double().sum(0)
    has = total > 0
    if not bool(has.any()):
        raise TracInError(f"None of {len(total)} calibration samples has a gradient; take samples whose loss is not zero.")
    return {name: float((values.double()[has] / total[has]).mean()) for name, values in squared.items()}


def share_out(elements: Mapping[str, int], energy: Mapping[str, float], dim: int) -> dict[str, int]:
    """How many features each parameter gets: by energy, none less than an even share of a fifth, none more than its elements.

    Args:
        elements: parameter -> number of elements.
        energy: parameter -> share of the energy; one that is not named has none.
        dim: features in all; the sum of what is returned is at most that.

    Raises:
        TracInError: `dim` is smaller than the number of parameters.
    """
    if dim < len(elements):
        raise TracInError(
            f"projection_dim={dim} is less than one feature for each of the {len(elements)} scored parameters; give "
            f"{max(8192, len(elements))}, or None for the exact scores."
        )
    even = max(1, int(_EVEN * dim / len(elements)))
    sizes = {name: min(count, even) for name, count in elements.items()}
    open_names = {name for name, count in elements.items() if energy.get(name, 0.0) > 0 and count > sizes[name]}
    while open_names:
        left = dim - sum(size for name, size in sizes.items() if name not in open_names)
        scale = left / sum(energy[name] for name in open_names)
        settled = {name: sizes[name] for name in open_names if scale * energy[name] <= sizes[name]}
        settled = settled or {name: elements[name] for name in open_names if scale * energy[name] >= elements[name]}
        if not settled:
            return sizes | {name: int(scale * energy[name]) for name in open_names}
        sizes |= settled
        open_names -= settled.keys()
    return sizes


def to_half(features: Tensor, norms: Tensor) -> Tensor:
    """Features of unit gradients in half precision, for storing; gradients of any size keep their precision.

    Args:
        features: [samples, features].
        norms: [samples] exact norms of the whole gradients; where one is zero, so are the features.

    Raises:
        TracInError: a norm is not that of its features.
    """
    half = torch.where(features == 0, 0.0, features / norms[:, None] * _SCALE).half()
    bad = (~torch.isfinite(half)).any(1).nonzero()[:, 0].tolist()
    if bad:
        raise TracInError(
            f"The projected gradient of sample {bad[0]} of a batch is not finite in half precision, though its norm is "
            f"{float(norms[bad[0]]):.3g}; use `dtype='float64'`, or `projection_dim=None`."
        )
    return half


def cosines(train: Tensor, probes: Tensor) -> Tensor:
    """Estimated cosines of whole gradients, of one parameter's share of them if one part is given: [samples, probes].

    Args:
        train: [samples, features] as from `to_half`.
        probes: [probes, features] as from `to_half`.
    """
    return (train.float() @ probes.float().T) / _SCALE**2


def _restored(name: str, state: Mapping[str, Tensor]) -> Part:
    held = {key: state[f"{name}/{key}"] for key in (*NEEDED, *OPTIONAL) if f"{name}/{key}" in state}
    missing = [key for key in NEEDED if key not in held]
    if missing:
        raise TracInError(f"The projection of {name!r} has no {missing[0]!r}: its file is damaged; start anew.")
    return Part.of_tensors(held)
