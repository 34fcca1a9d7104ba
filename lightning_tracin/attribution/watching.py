"""What a `training_step` does that a sample's own loss has no place for, seen while it runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_DROPOUTS = (
    F.dropout,
    F.dropout1d,
    F.dropout2d,
    F.dropout3d,
    F.alpha_dropout,
    F.feature_alpha_dropout,
    torch.dropout,
    torch.dropout_,
)

#: Names of functions that draw random numbers.
_DRAWS = {
    *("rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like", "bernoulli", "multinomial", "normal"),
    *("poisson", "gumbel_softmax", "rrelu"),
    *("uniform_", "normal_", "random_", "bernoulli_", "exponential_", "log_normal_", "geometric_", "cauchy_"),
}

_PRODUCTS = (torch.matmul, torch.mm, Tensor.matmul, Tensor.mm, Tensor.__matmul__, torch.cdist, F.cosine_similarity, torch.einsum)


@dataclass
class Watched:
    """What was seen.

    Attributes:
        dropout: whether dropout was in training mode.
        training: names of modules that were in training mode then.
        draws: functions that drew random numbers.
        batch_norm: whether a batch norm used the batch's own statistics.
        gradient: whether the step computed gradients itself.
        pairs: whether samples were compared with each other.
    """

    dropout: bool = False
    training: tuple[str, ...] = ()
    draws: list[str] = field(default_factory=list)
    batch_norm: bool = False
    gradient: bool = False
    pairs: bool = False


class Watching(TorchFunctionMode):
    """Watches a step run on a batch.

    Args:
        module: the module whose step it is, in evaluation mode before.
        samples: in the batch.

    Example:
        >>> with Watching(nn.Linear(1, 1).eval(), samples=4) as watching:
        ...     _ = F.dropout(torch.ones(4, 1))
        >>> watching.seen.dropout, watching.seen.training
        (True, ())
    """

    def __init__(self, module: nn.Module, samples: int) -> None:
        super().__init__()
        self._module, self._samples = module, samples
        self.seen = Watched()

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        """Call the function, and note what it does."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if func in (torch.autograd.grad, torch.autograd.backward, Tensor.backward):
            self.seen.gradient = True
        value = func(*args, **kwargs)
        if func in _DROPOUTS:
            self._note_dropout(_argument(args, kwargs, 1, "p", 0.5), _argument(args, kwargs, 2, "training", True))
        elif name == "scaled_dot_product_attention":
            self._note_dropout(_argument(args, kwargs, 4, "dropout_p", 0.0), True)
        elif name == "batch_norm" and _argument(args, kwargs, 5, "training", False):
            self.seen.batch_norm = True
        elif name in _DRAWS and name not in self.seen.draws:
            self.seen.draws.append(name)
        elif func in _PRODUCTS and isinstance(value, Tensor):
            self._note_product(args, value)
        return value

    def _note_dropout(self, probability: float, training: bool) -> None:
        if probability and training:
            self.seen.dropout = True
            self.seen.training = tuple(name or "the module" for name, one in self._module.named_modules() if one.training)

    def _note_product(self, args: tuple[Any, ...], value: Tensor) -> None:
        tensors = [one for one in args if isinstance(one, Tensor)]
        is_square = value.dim() == 2 and value.shape[0] == value.shape[1] == self._samples > 1
        if is_square and len(tensors) == 2 and not any(isinstance(one, nn.Parameter) for one in tensors):
            self.seen.pairs = True


def _argument(args: tuple[Any, ...], kwargs: dict[str, Any], position: int, name: str, default: Any) -> Any:
    return args[position] if len(args) > position else kwargs.get(name, default)
