"""Which sample each line of a layer's output belongs to, read from gradients instead of shapes.

Experts see the tokens that are routed to them, recurrent encoders put time first, and a model may sort its samples. Then the
first dimension does not tell whose a line is, though its size may look as if it did; only the loss knows. For a line that one
sample uses, the gradient of the sum of the losses is that sample's gradient. With a weight for each loss, it is the same
gradient times its owner's weight. So the ratio of the two names the owner, and a line that no single weight explains mixes
samples.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

#: What a line may deviate from a single owner's weight: of its own gradient, and of the largest gradient of any line.
_OWN, _LARGEST = 1e-3, 1e-6

#: Ratios that are compared with weights at a time (8 MB): with many samples, all of them take more than a step's activations.
_BLOCK = 1_000_000


class LineOwners:
    """The owners of the lines of some layers' outputs, in one batch.

    Args:
        samples: number of samples in the batch.

    Example:
        >>> owners, lines = LineOwners(samples=2), torch.tensor([[1.0], [2.0], [3.0]], requires_grad=True)
        >>> output = 5 * lines
        >>> position = owners.watch(output)
        >>> losses = torch.stack([output[2, 0], output[:2].sum()])  # the last line is the first sample's
        >>> owners.mark(losses)
        >>> owners.of(position, torch.ones(3, 1)).tolist()
        [1, 1, 0]
    """

    def __init__(self, samples: int) -> None:
        self._samples = samples
        self._outputs: list[GradientEdge] = []
        self._marked: tuple[Tensor | None, ...] = ()
        self._weights = torch.empty(0)

    @property
    def is_watching(self) -> bool:
        """Whether any output is watched."""
        return bool(self._outputs)

    @property
    def is_marked(self) -> bool:
        """Whether the owners can be told."""
        return bool(self._marked)

    def watch(self, output: Tensor) -> int:
        """Watch an output as it is now, whatever is done to it in place later; returns its position for `of`."""
        self._outputs.append(get_gradient_edge(output))
        return len(self._outputs) - 1

    def mark(self, losses: Tensor) -> None:
        """Differentiate the weighted sum of the samples' losses, [samples], by all watched outputs; the graph is kept."""
        self._weights = marks(self._samples, losses)
        weighted = (losses * self._weights).sum()
        if self._outputs and weighted.requires_grad:
            self._marked = torch.autograd.grad(weighted, self._outputs, retain_graph=True, allow_unused=True)

    def forget(self) -> None:
        """Let go of the graph."""
        self._outputs, self._marked = [], ()

    def of(self, position: int, gradient: Tensor) -> Tensor | None:
        """The owners of an output's lines, see `owners_of`; None if there are none, or nothing has been marked.

        Args:
            position: of the output, from `watch`.
            gradient: [..., width], of the sum of the samples' losses.
        """
        marked = self._marked[position] if self._marked else None
        return None if marked is None else owners_of(lines(gradient), lines(marked), self._weights)


def lines(tensor: Tensor) -> Tensor:
    """All dimensions but the last in one: [lines, width]; integers, which are looked up one by one: [lines]."""
    return tensor.reshape(-1, tensor.shape[-1]) if tensor.is_floating_point() else tensor.reshape(-1)


def marks(samples: int, like: Tensor) -> Tensor:
    """A different weight for each sample: [samples], between 1 and 2, far apart and unevenly so."""
    generator = torch.Generator().manual_seed(samples)
    jitter = torch.rand(samples, generator=generator, dtype=torch.float64) * 0.4
    return (1 + (torch.arange(samples) + jitter) / samples).to(like)


def owners_of(gradient: Tensor, marked: Tensor, weights: Tensor) -> Tensor | None:
    """The sample that each line belongs to.

    Args:
        gradient: [lines, width], of the sum of the samples' losses.
        marked: [lines, width], of their sum with these weights.
        weights: [samples], all different.

    Returns:
        [lines], int64, on the CPU; -1 for a line whose gradient is zero. None if a line belongs to no single sample.

    Example:
        >>> gradient, weights = torch.tensor([[1.0, 2.0], [3.0, 0.0], [0.0, 0.0]]), torch.tensor([1.0, 1.5])
        >>> owners_of(gradient, torch.tensor([[1.5, 3.0], [3.0, 0.0], [0.0, 0.0]]), weights).tolist()
        [1, 0, -1]
        >>> owners_of(gradient[:1], torch.tensor([[1.0, 3.0]]), weights) is None
        True
    """
    gradient, marked, weights = gradient.double(), marked.double(), weights.double()
    sizes = gradient.norm(dim=1)
    ratio = (gradient * marked).sum(1) / sizes.square().clamp_min(torch.finfo(torch.float64).tiny)
    step = max(1, _BLOCK // len(weights))
    owners = torch.cat([(some[:, None] - weights).abs_().argmin(1) for some in torch.split(ratio, step)])
    off = (marked - weights[owners, None] * gradient).norm(dim=1)
    is_single = (off <= _OWN * sizes + _LARGEST * (sizes.amax() if len(sizes) else 0)).all()  # not finite counts as mixed
    found = torch.cat([owners.masked_fill(sizes == 0, -1), is_single.long()[None]]).cpu()  # one wait for an accelerator, not two
    return found[:-1] if found[-1] else None


def by_owner(tensor: Tensor, owners: Tensor, samples: int) -> Tensor:
    """Lines put together by sample: [lines, ...] -> [samples, most, ...], zero where a sample has fewer lines than others.

    Args:
        tensor: [lines, ...], on any device.
        owners: [lines], on the CPU, see `owners_of`.
        samples: number of samples.

    Example:
        >>> by_owner(torch.tensor([10, 20, 30, 40]), torch.tensor([1, 0, -1, 1]), samples=2).tolist()
        [[20, 0], [10, 40]]
    """
    order = torch.argsort(owners, stable=True)
    order = order[owners[order] >= 0]
    mine = owners[order]
    counts = torch.bincount(mine, minlength=samples)
    place = torch.arange(len(mine)) - (counts.cumsum(0) - counts)[mine]
    grouped = tensor.new_zeros(samples, max(1, int(counts.max())), *tensor.shape[1:])
    grouped[mine.to(tensor.device), place.to(tensor.device)] = tensor[order.to(tensor.device)]
    return grouped
