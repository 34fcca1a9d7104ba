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
from lightning_tracin.gradients.coverage import Coverage
from lightning_tracin.gradients.forms import Form
from lightning_tracin.gradients.sketch_maps import NEEDED, OPTIONAL, Part, draw_part

#: Part of the features that parameters share evenly at the least, for what calibration does not show.
_EVEN = 0.1

#: The norm of stored features: as high as half precision allows, so that layers with small gradients keep their digits.
SCALE = 32768.0


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
    if dim >= sum(elements.values()):
        return dict(elements)
    even = max(1, int(_EVEN * dim / len(elements)))
    total = sum(energy.get(name, 0.0) for name in elements) or 1.0
    shares = {name: max(energy.get(name, 0.0) / total, 1e-9) for name in elements}  # what is left over goes to all

    def sizes(scale: float) -> dict[str, int]:
        return {name: min(count, max(even, int(scale * shares[name]))) for name, count in elements.items()}

    low, high = 0.0, 1e9 * max(elements.values())
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(sizes(middle).values()) <= dim else (low, middle)
    return sizes(low)


def to_half(features: Tensor) -> tuple[Tensor, Tensor]:
    """Features in half precision, for storing, as directions of the norm `SCALE`; gradients of any size keep their precision.

    Args:
        features: [samples, features].

    Returns:
        The directions [samples, features], zero where the features are, and the features' norms [samples].

    Raises:
        TracInError: a feature is not finite.
    """
    features = features.float()
    norms: Tensor = torch.linalg.vector_norm(features, dim=1)
    if not bool(torch.isfinite(norms).all()):
        bad = int((~torch.isfinite(norms)).nonzero()[0, 0])
        raise TracInError(
            f"The projected gradient of sample {bad} of a batch is not finite; use `dtype='float64'`, or `projection_dim=None`."
        )
    return torch.where(norms[:, None] > 0, features / norms[:, None] * SCALE, 0.0).half(), norms


def _restored(name: str, state: Mapping[str, Tensor]) -> Part:
    held = {key: state[f"{name}/{key}"] for key in (*NEEDED, *OPTIONAL) if f"{name}/{key}" in state}
    missing = [key for key in NEEDED if key not in held]
    if missing:
        raise TracInError(f"The projection of {name!r} has no {missing[0]!r}: its file is damaged; start anew.")
    return Part.of_tensors(held)
