"""Per-sample gradients projected to a few thousand features each, which are stored and scored later.

Each parameter has its own linear map to its part of the features (see `sketch_maps`). Parameters get features in proportion to
their share of the gradients' energy: the variance of an estimated inner product is about ``sum over l of
energy_l ** 2 / size_l``, which these sizes minimise. As a result, a bias or a head often keeps its exact gradient, unlike with
random projections of equal size for all layers (Park et al. 2023, TRAK, arXiv 2303.14186).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import accumulate

import torch
from torch import Tensor, nn

from lightning_tracin.errors import TracInError
from lightning_tracin.gradients.coverage import Coverage
from lightning_tracin.gradients.forms import Form
from lightning_tracin.gradients.sketch_maps import NEEDED, OPTIONAL, Part, draw_part

#: Fraction of the features that is split evenly, because calibration may miss parameters that matter later.
_EVEN = 0.1

#: The norm of stored features: as high as half precision allows, so that layers with small gradients keep their precision.
SCALE = 32768.0


@dataclass(frozen=True)
class Sketch:
    """The linear maps from gradients to features, one for each scored parameter; the same for train samples and probes.

    A sketch depends only on the arguments of `plan`, so features made at different times, in any batches and on any rank can be
    compared. `state` holds all of it.

    Example:
        >>> from lightning_tracin.gradients import Dense, plan_coverage
        >>> model = nn.Linear(2, 1)
        >>> sketch = Sketch.plan(plan_coverage(model, frozenset({"weight", "bias"})), {"weight": 0.9, "bias": 0.1}, dim=3)
        >>> sketch.layout
        {'bias': slice(0, 1, None), 'weight': slice(1, 3, None)}
        >>> sketch.features("weight", (Dense(torch.tensor([[3.0, 4.0]])),)).tolist()  # dim is large enough for exact gradients
        [[3.0, 4.0]]
    """

    parts: Mapping[str, Part]

    @classmethod
    def plan(cls, coverage: Coverage, energy: Mapping[str, float], dim: int, seed: int = 0) -> Sketch:
        """Draw the maps of all parameters.

        Args:
            coverage: the scored parameters.
            energy: parameter -> its share of the gradients' squared norm, as from `energy_shares`.
            dim: total number of features of a sample; stored in half precision, they take twice as many bytes.
            seed: seed of the bases, signs and offsets.

        Raises:
            TracInError: `dim` is smaller than the number of parameters.
        """
        sizes = share_out(coverage.elements, energy, dim)
        tables = {name for layer in coverage.layers if isinstance(layer.module, nn.Embedding) for name in layer.names.values()}
        shapes = {name: layer.module.get_parameter(own).shape for layer in coverage.layers for own, name in layer.names.items()}
        generator = torch.Generator().manual_seed(seed)
        return cls(
            {name: draw_part(shapes[name], sizes[name], table=name in tables, generator=generator) for name in sorted(sizes)}
        )

    @property
    def dim(self) -> int:
        """Total number of features of a sample."""
        return sum(part.size for part in self.parts.values())

    @property
    def layout(self) -> dict[str, slice]:
        """The slice of a sample's features that belongs to each parameter."""
        stops = accumulate(part.size for part in self.parts.values())
        return {name: slice(stop - part.size, stop) for (name, part), stop in zip(self.parts.items(), stops, strict=True)}

    def features(self, name: str, forms: Sequence[Form], scale: Tensor | None = None) -> Tensor:
        """The features of one parameter's gradients: [samples, size of its part]. The map is linear, so several uses add up.

        Args:
            name: the parameter.
            forms: its gradients.
            scale: elementwise factor of the gradients before they are projected, in the parameter's shape; None means 1.
        """
        return reduce(torch.add, (self.parts[name](form, scale) for form in forms))

    def to(self, device: torch.device) -> Sketch:
        """The same sketch on another device."""
        return Sketch({name: part.to(device) for name, part in self.parts.items()})

    def state(self) -> dict[str, Tensor]:
        """The whole sketch as tensors, for one safetensors file."""
        return {f"{name}/{key}": tensor for name, part in self.parts.items() for key, tensor in part.tensors().items()}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> Sketch:
        """The sketch that `state` describes.

        Raises:
            TracInError: a tensor is missing.
        """
        parts = {}
        for name in sorted(key.removesuffix("/sizes") for key in state if key.endswith("/sizes")):
            held = {key: state[f"{name}/{key}"] for key in (*NEEDED, *OPTIONAL) if f"{name}/{key}" in state}
            missing = [key for key in NEEDED if key not in held]
            if missing:
                raise TracInError(f"The projection of {name!r} has no {missing[0]!r}: its file is damaged; start again.")
            parts[name] = Part.of_tensors(held)
        return cls(parts)


def energy_shares(squared: Mapping[str, Tensor]) -> dict[str, float]:
    """Each parameter's mean share of a sample's squared gradient norm; samples whose gradient is zero are ignored.

    Args:
        squared: parameter -> squared norms [samples].

    Raises:
        TracInError: every sample's gradient is zero.

    Example:
        >>> energy_shares({"weight": torch.tensor([3.0, 0.0]), "bias": torch.tensor([1.0, 0.0])})
        {'weight': 0.75, 'bias': 0.25}
    """
    total = torch.stack(list(squared.values())).double().sum(0)
    has = total > 0
    if not bool(has.any()):
        raise TracInError(f"None of {len(total)} calibration samples has a gradient; take samples whose loss is not zero.")
    return {name: float((values.double()[has] / total[has]).mean()) for name, values in squared.items()}


def share_out(elements: Mapping[str, int], energy: Mapping[str, float], dim: int) -> dict[str, int]:
    """The number of features of each parameter: by energy, at least an even share of a tenth, at most its elements.

    Args:
        elements: parameter -> number of elements.
        energy: parameter -> share of the energy; parameters that are not named have none.
        dim: total number of features, an upper bound on the sum of the result.

    Raises:
        TracInError: `dim` is smaller than the number of parameters.

    Example:
        >>> share_out({"weight": 1000, "bias": 10}, {"weight": 0.9, "bias": 0.1}, dim=100)
        {'weight': 90, 'bias': 10}
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
    shares = {
        name: max(energy.get(name, 0.0) / total, 1e-9) for name in elements
    }  # above zero, so that features left over go to all

    def sizes(scale: float) -> dict[str, int]:
        return {name: min(count, max(even, int(scale * shares[name]))) for name, count in elements.items()}

    low, high = 0.0, 1e9 * max(elements.values())
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(sizes(middle).values()) <= dim else (low, middle)
    return sizes(low)


def to_half(features: Tensor) -> tuple[Tensor, Tensor]:
    """Convert features to half precision for storage, rescaled to the norm `SCALE`, so that gradients of any size keep precision.

    Args:
        features: [samples, features].

    Returns:
        The rescaled features [samples, features], zero where the features are zero, and the original norms [samples].

    Raises:
        TracInError: a feature is not finite.

    Example:
        >>> rescaled, norm = to_half(torch.tensor([[3e-12, 4e-12]]))
        >>> (rescaled / SCALE).tolist(), f"{norm.item():.0e}"
        ([[0.60009765625, 0.7998046875]], '5e-12')
    """
    features = features.float()
    norms: Tensor = torch.linalg.vector_norm(features, dim=1)
    if not bool(torch.isfinite(norms).all()):
        bad = int((~torch.isfinite(norms)).nonzero()[0, 0])
        raise TracInError(
            f"The projected gradient of sample {bad} of a batch is not finite; use `dtype='float64'`, or `projection_dim=None`."
        )
    return torch.where(norms[:, None] > 0, features / norms[:, None] * SCALE, 0.0).half(), norms
