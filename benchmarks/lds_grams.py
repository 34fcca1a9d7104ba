"""The slow, obvious reference for preconditioned scores: whole gradients of single samples, without projection.

Any whitened score follows from the inner products of all gradients, of train samples and probes (a Gram matrix), for each block
of parameters. It is small even if the gradients are long, and the inverse of the damped second-moment matrix

    F = G^T G / n + r I         G: train gradients [n, elements]

needs nothing else (Woodbury): with K = G G^T and k = G g', train sample i and a probe have g_i F^-1 g' = n [(K + n r I)^-1 k]_i.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.lds_fits import Trial
from lightning_tracin.storage.files import read_tensors, write_tensors
from lightning_tracin.storage.snapshots import Snapshot, load_weights

Floats = npt.NDArray[np.float64]
EPS = 1e-8  # torch's AdamW


@dataclass(frozen=True)
class Gram:
    """Inner products of all gradients at one snapshot: [blocks, train + probes, train + probes]."""

    values: Floats
    blocks: tuple[str, ...]
    train: int
    elements: tuple[int, ...]  # of each block


def block_of(parameter: str) -> str:
    """The block of a parameter: `embeddings`, `layer 0` and so on, or `head`, which is all the rest."""
    parts = parameter.split(".")
    if "embeddings" in parts:
        return "embeddings"
    return f"layer {parts[parts.index('layer') + 1]}" if "layer" in parts else "head"


#: The gradients of all samples are held in memory at once, so larger models have no reference.
LARGEST_ROWS = 12_000_000_000


def has_reference(made: Trial) -> bool:
    """Whether all gradients fit in memory, in single precision."""
    trained = sum(parameter.numel() for parameter in made.module.parameters() if parameter.requires_grad)
    return 4 * trained * (len(made.data.train) + len(made.data.probes)) <= LARGEST_ROWS


def gram(made: Trial, snapshot: Snapshot, adam: bool) -> Gram:
    """The Gram matrix at a snapshot, of plain gradients or of those times (sqrt(v) + eps)^(-1/2), v Adam's second moments.

    The second gives the inner product <g, g' / (sqrt(v) + eps)> of a step of Adam, symmetrically. Cached on disk.
    """
    folder = made.folder / "grams"
    paths = [folder / f"{snapshot.index:04d}-{kind}.safetensors" for kind in ("plain", "adam")]
    if not all(path.exists() for path in paths):
        moments = read_tensors(made.folder / "moments" / f"{snapshot.epoch - 1:04d}.safetensors")
        _compute(made, snapshot, moments, paths)
    blocks, sizes = _blocks(made.module)
    values = torch.stack([read_tensors(paths[adam])[block] for block in blocks]).double().numpy()
    return Gram(values, blocks, len(made.data.train), sizes)


def _blocks(module: nn.Module) -> tuple[tuple[str, ...], tuple[int, ...]]:
    sizes: dict[str, int] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            sizes[block_of(name)] = sizes.get(block_of(name), 0) + parameter.numel()
    return tuple(sizes), tuple(sizes.values())


def _compute(made: Trial, snapshot: Snapshot, moments: dict[str, Tensor], paths: Sequence[Path]) -> None:
    module = made.module
    first = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    load_weights(module, snapshot.state_dict())
    module.eval()
    names = sorted(moments, key=lambda name: block_of(name))
    rows = gradient_rows(made, names)  # some GB
    scale = torch.cat([(moments[name].sqrt() + EPS).rsqrt().flatten() for name in names])
    plain: dict[str, Tensor] = {}
    adam: dict[str, Tensor] = {}
    start = 0
    for block, of_block in itertools.groupby(names, block_of):
        end = start + sum(moments[name].numel() for name in of_block)
        part = rows[:, start:end]
        plain[block] = _symmetric(part)
        part *= scale[start:end]
        adam[block] = _symmetric(part)
        start = end
    write_tensors(paths[0], plain)
    write_tensors(paths[1], adam)
    module.load_state_dict(first)
    module.train()


def _symmetric(rows: Tensor, chunk: int = 512) -> Tensor:
    """Rows times rows transposed, of which half is computed."""
    product = torch.empty(len(rows), len(rows))
    for start in range(0, len(rows), chunk):
        end = min(start + chunk, len(rows))
        product[start:end, :end] = rows[start:end] @ rows[:end].T
        product[:start, start:end] = product[start:end, :start].T
    return product


def gradient_rows(made: Trial, names: Sequence[str]) -> Tensor:
    """Each sample's gradient with respect to the named parameters, train samples first, then probes: [samples, elements]."""
    parameters = dict(made.module.named_parameters())
    chosen = [parameters[name] for name in names]
    rows = torch.empty(len(made.data.train) + len(made.data.probes), sum(parameter.numel() for parameter in chosen))
    single = (DataLoader(part, batch_size=1, collate_fn=made.data.collate) for part in (made.data.train, made.data.probes))
    for row, batch in zip(rows, itertools.chain(*single), strict=True):
        gradients = torch.autograd.grad(made.module.model(**batch).loss, chosen)
        torch.cat([gradient.flatten() for gradient in gradients], out=row)
    return rows
