"""Per-sample gradients as a few thousand numbers each, whose inner products estimate those of the gradients.

Each parameter has its own linear map from its gradient, a matrix G of rows x columns, to its part of the features:

1. Two seeded random bases compress both sides, ``L' G R`` (Choe et al. 2024, LoGra, arXiv 2405.13954; Chang et al. 2024,
   TrackStar, arXiv 2410.17413). A sum of outer products is compressed factor by factor, so G is never written out.
2. What is left is hashed: element (a, b) is added, with a random sign for a and one for b, to feature
   ``(offset[a] + b) mod size``. This is the tensor sketch (Pham and Pagh 2013, KDD), a count sketch whose hash is a sum.

Both steps keep inner products in expectation. Their variances differ: a product of two k x k compressions of rank-one
matrices errs as if it had k features, not k * k; the hash of an uncompressed matrix errs as k * k features do (Johnson and
Lindenstrauss). So bases are `_OVERSAMPLING` times larger than the part, and where they would not save work there are none:
tables of embeddings are hashed row by row, and a part as large as its parameter holds the gradient itself.

The total is shared out in proportion to the parameters' share of the gradients' energy, which minimises the variance of the
sum, ``sum over l of energy_l ** 2 / size_l``; none gets less than a tenth shared evenly, for what calibration does not show.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lightning_tracin.errors import TracInError
from lightning_tracin.gradients.coverage import Coverage
from lightning_tracin.gradients.forms import Dense, Form, Rows

#: Elements that a compressed gradient has for each of its features: variance that the bases add against their cost.
_OVERSAMPLING = 16

#: Part of the features that parameters share evenly at the least.
_EVEN = 0.1

#: Features of unit gradients are stored times this: half precision then resolves 1e-9 of a gradient and holds 1000 times one.
_SCALE = 64.0

#: Elements that one block of transforms may have, so that its memory stays bounded (64 MB in float32).
_BLOCK = 16_000_000


@dataclass(frozen=True)
class Part:
    """The linear map of one parameter: [rows, columns] to [size]."""

    rows: int
    columns: int
    size: int
    left: Tensor | None  # [rows, k]; none: the rows themselves
    right: Tensor | None  # [columns, k]; none: the columns themselves
    offset: Tensor  # [rows, or k of left], int64
    left_sign: Tensor  # [rows, or k of left]
    right_sign: Tensor  # [columns, or k of right]

    @property
    def exact(self) -> bool:
        """Whether the features are the gradient itself."""
        return self.size == self.rows * self.columns

    def __call__(self, form: Form) -> Tensor:
        """Features of one form: [samples, size]."""
        if isinstance(form, Rows):
            return self._of_rows(form)
        if isinstance(form, Dense):
            return self._of_matrices(self._compressed(_single(form.values).unflatten(1, (self.rows, self.columns))))
        left, right = _single(form.left), _single(form.right)
        if self.left is not None:
            left = left @ self.left.to(left.dtype)
        if self.right is not None:
            right = right @ self.right.to(right.dtype)
        if self._transforms(left, right):
            return self._of_factors(left, right)
        return self._of_matrices(torch.bmm(left.transpose(1, 2), right))

    def _compressed(self, matrices: Tensor) -> Tensor:
        if self.left is not None:
            matrices = self.left.to(matrices.dtype).T @ matrices
        return matrices if self.right is None else matrices @ self.right.to(matrices.dtype)

    def _of_matrices(self, matrices: Tensor) -> Tensor:
        """Hash [samples, rows, columns], after the bases if there are any."""
        if self.exact:
            return matrices.flatten(1)
        signed = matrices * self.left_sign[:, None].to(matrices.dtype) * self.right_sign.to(matrices.dtype)
        out = signed.new_zeros(len(signed), self.size)
        return out.index_add_(1, self._features_of(self.offset).flatten(), signed.flatten(1))

    def _of_rows(self, form: Rows) -> Tensor:
        if self.left is not None or self.right is not None:
            raise TypeError("Rows of a table have no bases; only the parameter of an `nn.Embedding` is given as rows.")
        values = _single(form.values)
        signed = values * self.left_sign[form.row, None].to(values.dtype) * self.right_sign.to(values.dtype)
        out = values.new_zeros(form.samples * self.size)
        index = (form.sample * self.size)[:, None] + self._features_of(self.offset[form.row])
        return out.index_add_(0, index.flatten(), signed.flatten()).view(form.samples, self.size)

    def _features_of(self, offset: Tensor) -> Tensor:
        """The features that the elements of rows with these offsets are added to: [rows, columns]."""
        return (offset[:, None] + torch.arange(len(self.right_sign), device=offset.device)) % self.size

    def _transforms(self, left: Tensor, right: Tensor) -> bool:
        """Whether Fourier transforms of factors cost less than writing the gradient out, as with a head of many classes."""
        positions = left.shape[1]
        written_out = (positions + 1) * left.shape[2] * right.shape[2]
        transformed = positions * (left.shape[2] + right.shape[2] + 20 * self.size * math.log2(self.size + 1))
        return left.shape[2] * right.shape[2] > self.size and transformed < written_out

    def _of_factors(self, left: Tensor, right: Tensor) -> Tensor:
        """The same hash: a sum of hashes of outer products is a sum of circular convolutions of the factors' hashes."""
        wrapped = torch.arange(right.shape[2], device=right.device) % self.size
        step = max(1, _BLOCK // (left.shape[1] * self.size))
        out = []
        for at in range(0, len(left), step):
            rows, columns = left[at : at + step], right[at : at + step]
            zeros = rows.new_zeros(*rows.shape[:2], self.size)
            of_rows = torch.fft.rfft(zeros.index_add(2, self.offset, rows * self.left_sign.to(rows.dtype)))
            of_columns = torch.fft.rfft(zeros.index_add(2, wrapped, columns * self.right_sign.to(rows.dtype)))
            out.append(torch.fft.irfft((of_rows * of_columns).sum(1), n=self.size))
        return torch.cat(out)

    def tensors(self) -> dict[str, Tensor]:
        """What it is made of, by name."""
        sizes = torch.tensor([self.rows, self.columns, self.size])
        held = {
            "sizes": sizes,
            "left": self.left,
            "right": self.right,
            "offset": self.offset,
            "left_sign": self.left_sign,
            "right_sign": self.right_sign,
        }
        return {name: tensor for name, tensor in held.items() if tensor is not None}

    def to(self, device: torch.device) -> Part:
        """The same map on another device."""
        moved = {name: tensor.to(device) for name, tensor in self.tensors().items() if name != "sizes"}
        return replace(self, **moved)


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
        return cls({name: _drawn(shapes[name], sizes[name], name not in tables, generator) for name in sorted(sizes)})

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
        raise TracInError(
            f"None of {len(total)} calibration samples has a gradient; calibrate on samples whose loss is not zero."
        )
    return {name: float((values.double()[has] / total[has]).mean()) for name, values in squared.items()}


def share_out(elements: Mapping[str, int], energy: Mapping[str, float], dim: int) -> dict[str, int]:
    """How many features each parameter gets: by energy, none less than an even share of a tenth, none more than its elements.

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


def _single(values: Tensor) -> Tensor:
    """In single precision at least."""
    return values if values.dtype in (torch.float32, torch.float64) else values.float()


def _drawn(shape: Sequence[int], size: int, with_bases: bool, generator: torch.Generator) -> Part:
    rows, columns = (shape[0], math.prod(shape[1:])) if len(shape) > 1 else (1, math.prod(shape))
    if size == rows * columns:
        return Part(rows, columns, size, None, None, torch.arange(rows) * columns, torch.ones(rows), torch.ones(columns))
    few = math.ceil(math.sqrt(_OVERSAMPLING * size))
    of_left = min(rows, max(few, _OVERSAMPLING * size // columns))
    of_right = min(columns, max(few, _OVERSAMPLING * size // rows))
    worth_it = rows * of_left + columns * of_right + of_left * of_right < rows * columns
    left = _basis(rows, of_left, generator) if with_bases and worth_it else None
    right = _basis(columns, of_right, generator) if with_bases and worth_it else None
    high, wide = rows if left is None else left.shape[1], columns if right is None else right.shape[1]
    offset = torch.randperm(high, generator=generator) * size // high
    return Part(rows, columns, size, left, right, offset, _signs(high, generator), _signs(wide, generator))


def _basis(width: int, count: int, generator: torch.Generator) -> Tensor | None:
    """Orthonormal columns in a random direction, scaled so that inner products keep their size on average: [width, count]."""
    if count == width:
        return None
    drawn = torch.randn(width, count, generator=generator, dtype=torch.float64)
    basis: Tensor = torch.linalg.qr(drawn).Q
    return (basis * math.sqrt(width / count)).float().contiguous()


def _signs(count: int, generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2, (count,), generator=generator).mul_(2).sub_(1).float()


def _restored(name: str, state: Mapping[str, Tensor]) -> Part:
    missing = [key for key in ("sizes", "offset", "left_sign", "right_sign") if f"{name}/{key}" not in state]
    if missing:
        raise TracInError(
            f"The projection of {name!r} has no {missing[0]!r}: its file is of another version or damaged; start anew."
        )
    rows, columns, size = state[f"{name}/sizes"].tolist()
    left, right = state.get(f"{name}/left"), state.get(f"{name}/right")
    hashed = state[f"{name}/offset"], state[f"{name}/left_sign"], state[f"{name}/right_sign"]
    return Part(rows, columns, size, left, right, *hashed)
