"""Maps from the gradients of one parameter to a few features whose inner products estimate those of the gradients.

The map is linear. It treats a gradient as a matrix G of rows x columns:

1. Two seeded random bases compress both sides, ``L' G R`` (Choe et al. 2024, LoGra, arXiv 2405.13954; Chang et al. 2024,
   TrackStar, arXiv 2410.17413). A sum of outer products is compressed factor by factor, so G is never written out.
2. The compressed matrix is hashed: element (a, b) is added, with one random sign for a and one for b, to feature
   ``(offset[a] + b) mod size``. This is the tensor sketch (Pham and Pagh 2013, KDD), a count sketch whose hash is a sum.

Both steps preserve inner products on average, but their errors differ. For gradients of rank one, a k x k compression has the
error of k random features, while a hash of the whole matrix to k * k features has the error of k * k random features (Johnson and
Lindenstrauss 1984). So the compressed matrix is `_OVERSAMPLING` times larger than the number of features. Where bases would save
no work there are none: embedding tables are hashed row by row, and a part as large as its parameter is the gradient itself.

A gradient that is multiplied by a scale of each element is no sum of outer products any more. It is written out, some rows of
the parameter at a time (`tiles`), and each tile is scaled and mapped before the next one: the maps are sums over rows. This takes
as many multiplications as if every sample's gradient were dense, and the memory of one tile.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lightning_tracin.gradients.forms import Dense, Form, Outer, Rows, samples_of, scaled_rows, some_rows, tensor_of, to_dense
from lightning_tracin.gradients.tiles import tiles

#: Elements of a compressed gradient for each feature. More elements reduce the variance that the bases add, and cost more.
_OVERSAMPLING = 16

#: Largest number of elements in one block of transforms, which bounds its memory (64 MB in float32).
_BLOCK = 16_000_000

#: Elements of one tile of scaled gradients, over all samples (4 MB in float32).
TILE = 1_000_000

#: Names of a part's tensors in a file.
NEEDED, OPTIONAL = ("sizes", "offset", "left_sign", "right_sign"), ("left", "right")


@dataclass(frozen=True)
class Part:
    """The linear map of one parameter: [rows, columns] to [size]."""

    rows: int
    columns: int
    size: int
    left: Tensor | None  # [rows, k]; None: rows are not compressed
    right: Tensor | None  # [columns, k]; None: columns are not compressed
    offset: Tensor  # [rows, or k of left], int64
    left_sign: Tensor  # [rows, or k of left]
    right_sign: Tensor  # [columns, or k of right]

    @property
    def exact(self) -> bool:
        """Whether the features are the gradient itself."""
        return self.size == self.rows * self.columns

    def __call__(self, form: Form, scale: Tensor | None = None) -> Tensor:
        """Features of one form: [samples, size].

        Args:
            form: the gradients.
            scale: elementwise factor of the gradients, in the parameter's shape; None means 1.
        """
        if scale is not None:
            return self(scaled_rows(form, scale)) if isinstance(form, Rows) else self._of_scaled(form, scale)
        if isinstance(form, Rows):
            return self._of_rows(form)
        if isinstance(form, Dense):
            return self._hashed(self._compressed(_single(form.values).view(-1, self.rows, self.columns)))
        left, right = _single(form.left), _single(form.right)
        left = left * self.left_sign.to(left.dtype) if self.left is None else left @ self._signed_left.to(left.dtype)
        right = right * self.right_sign.to(right.dtype) if self.right is None else right @ self._signed_right.to(right.dtype)
        if self.prefers_transforms(left, right):
            return self._of_factors(left, right)
        return self._hashed(torch.bmm(left.transpose(1, 2), right))

    def _of_scaled(self, form: Dense | Outer, scale: Tensor) -> Tensor:
        """Features of scaled gradients, which are written out some rows of the parameter at a time."""
        single = Dense(_single(form.values)) if isinstance(form, Dense) else Outer(_single(form.left), _single(form.right))
        values, count = tensor_of((single,)), samples_of(single)
        height = max(1, min(self.rows, TILE // max(1, count * self.columns)))
        out = values.new_zeros(count, self.size)
        within = None if self.left is None else values.new_zeros(count, self.left.shape[1], len(self.right_sign))
        each = tiles([(0, single)], height * self.columns, scale.flatten().to(values))
        for first, tile in zip(range(0, self.rows, height), each, strict=True):
            rows = slice(first, min(first + height, self.rows))
            columns = self._right_of(tile.view(count, -1, self.columns))
            if within is not None:
                within += self._signed_left[rows].to(values.dtype).T @ columns
            else:
                signed = columns * self.left_sign[rows, None].to(values.dtype)
                out.index_add_(1, self._features.view(self.rows, -1)[rows].flatten(), signed.flatten(1))
        return out if within is None else self._hashed(within)

    @cached_property
    def _signed_left(self) -> Tensor:
        assert self.left is not None
        return self.left * self.left_sign

    @cached_property
    def _signed_right(self) -> Tensor:
        assert self.right is not None
        return self.right * self.right_sign

    def _compressed(self, matrices: Tensor) -> Tensor:
        """Apply the bases, if there are any, and the signs: [samples, rows, columns]."""
        if self.left is None:
            matrices = matrices * self.left_sign[:, None].to(matrices.dtype)
        else:
            matrices = self._signed_left.to(matrices.dtype).T @ matrices
        return self._right_of(matrices)

    def _right_of(self, matrices: Tensor) -> Tensor:
        """Apply the base of the columns, if there is one, and their signs: [samples, rows, columns or k of right]."""
        if self.right is None:
            return matrices * self.right_sign.to(matrices.dtype)
        return matrices @ self._signed_right.to(matrices.dtype)

    def _hashed(self, signed: Tensor) -> Tensor:
        """Hash compressed matrices with signs, [samples, rows, columns], to [samples, size]."""
        if self.exact:
            return signed.flatten(1)
        out = signed.new_zeros(len(signed), self.size)
        return out.index_add_(1, self._features, signed.flatten(1))

    @cached_property
    def _features(self) -> Tensor:
        """The feature that each element is added to: [rows * columns]."""
        columns = torch.arange(len(self.right_sign), device=self.offset.device)
        return ((self.offset[:, None] + columns) % self.size).flatten()

    def _of_rows(self, form: Rows) -> Tensor:
        if self.left is not None or self.right is not None:  # looked up, but not the table of an `nn.Embedding`
            step = max(1, _BLOCK // (self.rows * self.columns))
            blocks = [some_rows(form, at, min(at + step, form.samples)) for at in range(0, form.samples, step)]
            return torch.cat([self(Dense(to_dense(block))) for block in blocks])
        values = _single(form.values)
        signed = values * self.left_sign[form.row, None].to(values.dtype) * self.right_sign.to(values.dtype)
        columns = len(self.right_sign)
        turns = -(-(self.size + columns) // self.size)  # columns past the last feature wrap around
        first = form.sample * (turns * self.size) + self.offset[form.row]
        index = first[:, None] + torch.arange(columns, device=first.device)
        out = values.new_zeros(form.samples * turns * self.size)
        return out.index_add_(0, index.flatten(), signed.flatten()).view(form.samples, turns, self.size).sum(1)

    def prefers_transforms(self, left: Tensor, right: Tensor) -> bool:
        """Whether Fourier transforms of the factors cost less than writing the gradient out, as for a head with many classes."""
        positions = left.shape[1]
        written_out = (positions + 1) * left.shape[2] * right.shape[2]
        transformed = positions * (left.shape[2] + right.shape[2] + 20 * self.size * math.log2(self.size + 1))
        return left.shape[2] * right.shape[2] > self.size and transformed < written_out

    def _of_factors(self, left: Tensor, right: Tensor) -> Tensor:
        """The same hash by another way: the hash of an outer product is the circular convolution of its factors' hashes."""
        if left.shape[1] == 0:  # no sample's loss depends on this layer
            return left.new_zeros(len(left), self.size)
        wrapped = torch.arange(right.shape[2], device=right.device) % self.size
        step = max(1, _BLOCK // (left.shape[1] * self.size))
        out = []
        for at in range(0, len(left), step):
            rows, columns = left[at : at + step], right[at : at + step]
            zeros = rows.new_zeros(*rows.shape[:2], self.size)
            of_rows = torch.fft.rfft(zeros.index_add(2, self.offset, rows))
            of_columns = torch.fft.rfft(zeros.index_add(2, wrapped, columns))
            out.append(torch.fft.irfft((of_rows * of_columns).sum(1), n=self.size))
        return torch.cat(out)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that define the map, by name."""
        held = {name: getattr(self, name) for name in (*NEEDED[1:], *OPTIONAL)}
        sizes = torch.tensor([self.rows, self.columns, self.size])
        return {"sizes": sizes, **{name: tensor for name, tensor in held.items() if tensor is not None}}

    def to(self, device: torch.device) -> Part:
        """The same map on another device."""
        return Part.of_tensors({name: tensor.to(device) for name, tensor in self.tensors().items()})

    @classmethod
    def of_tensors(cls, held: Mapping[str, Tensor]) -> Part:
        """Restore a map from its `tensors`."""
        rows, columns, size = held["sizes"].tolist()
        hashed = held["offset"], held["left_sign"], held["right_sign"]
        return cls(rows, columns, size, held.get("left"), held.get("right"), *hashed)


def draw_part(shape: Sequence[int], size: int, *, table: bool, generator: torch.Generator) -> Part:
    """Draw the map of a parameter.

    Args:
        shape: shape of the parameter; the first dimension is the rows, all others the columns, and a vector is one row.
        size: number of features, at most the number of elements.
        table: whether gradients come as rows of a table; then there are no bases.
        generator: source of randomness.

    Example:
        >>> part = draw_part([200, 300], 4096, table=False, generator=torch.Generator().manual_seed(0))
        >>> one = Dense(torch.randn(1, 60_000, generator=torch.Generator().manual_seed(1)))
        >>> ratio = part(one).norm() / one.values.norm()  # close to 1: norms are preserved on average
        >>> part(one).shape, bool(abs(ratio - 1) < 0.1)
        (torch.Size([1, 4096]), True)
    """
    rows, columns = (shape[0], math.prod(shape[1:])) if len(shape) > 1 else (1, math.prod(shape))
    if size == rows * columns:
        return Part(rows, columns, size, None, None, torch.arange(rows) * columns, torch.ones(rows), torch.ones(columns))
    few = math.ceil(math.sqrt(_OVERSAMPLING * size))
    of_left = min(rows, max(few, _OVERSAMPLING * size // columns))
    of_right = min(columns, max(few, _OVERSAMPLING * size // rows))
    compress = not table and rows * of_left + columns * of_right + of_left * of_right < rows * columns
    left = _basis(rows, of_left, generator) if compress else None
    right = _basis(columns, of_right, generator) if compress else None
    high, wide = rows if left is None else left.shape[1], columns if right is None else right.shape[1]
    offset = torch.randperm(high, generator=generator) * size // high
    return Part(rows, columns, size, left, right, offset, _signs(high, generator), _signs(wide, generator))


def _single(values: Tensor) -> Tensor:
    """Convert half precision to single precision."""
    return values if values.dtype in (torch.float32, torch.float64) else values.float()


def _basis(width: int, count: int, generator: torch.Generator) -> Tensor | None:
    """Random orthonormal columns, scaled to preserve inner products on average: [width, count]; None if nothing is compressed."""
    if count == width:
        return None
    drawn = torch.randn(width, count, generator=generator, dtype=torch.float64)
    basis: Tensor = torch.linalg.qr(drawn).Q
    return (basis * math.sqrt(width / count)).float().contiguous()


def _signs(count: int, generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2, (count,), generator=generator).mul_(2).sub_(1).float()
