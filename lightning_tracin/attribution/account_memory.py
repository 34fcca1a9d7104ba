"""How much memory an account takes, known before the fit except for the rows of embeddings that it touches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from humanize import naturalsize
from torch import Tensor
from torch.optim import Optimizer

from lightning_tracin.attribution.update_rules import rule_of
from lightning_tracin.gradients.group_split import GroupSplit

#: A group's vectors of a parameter: the gradient since the last step, the first moment, and the sum of the window's updates.
_VECTORS = 3


@dataclass(frozen=True)
class AccountMemory:
    r"""Most memory of an account, in bytes.

    Attributes:
        vector: of one vector of all trainable parameters but tables of embeddings.
        beside: what does not grow with the groups: the weights where a window began, and what weight decay (or, for an optimizer
            without a rule, momentum) did.
        tables: of one vector of the tables of embeddings, if all of their rows are touched.

    Example:
        >>> memory = AccountMemory(vector=1_000, beside=5_000, tables=4_000)
        >>> memory.known(groups=2), memory.of_rows(groups=2)
        (11000, 24000)
        >>> print(memory.described(["de", "en"]).replace(", ", ",\n"))
        3 vectors of 1.0 kB for each of 2 train groups and 5.0 kB beside them (11.0 kB in all),
        and the rows of embeddings that each group touches (at most 24.0 kB)
    """

    vector: int
    beside: int
    tables: int

    def known(self, groups: int) -> int:
        """All but the rows of tables."""
        return _VECTORS * self.vector * groups + self.beside

    def of_rows(self, groups: int) -> int:
        """The rows of tables, if every group touches all of them."""
        return _VECTORS * self.tables * groups

    def described(self, groups: Sequence[str]) -> str:
        """In words."""
        count = len(groups)
        many = f"each of {count} train groups" if count else "each train group"
        line = f"{_VECTORS} vectors of {naturalsize(self.vector)} for {many} and {naturalsize(self.beside)} beside them"
        if count:
            line += f" ({naturalsize(self.known(count))} in all)"
        if self.tables:
            most = self.of_rows(max(1, count))
            line += (
                f", and the rows of embeddings that each group touches (at most {naturalsize(most)}{'' if count else ' each'})"
            )
        return line


def account_memory(split: GroupSplit, optimizers: Sequence[Optimizer]) -> AccountMemory:
    """The memory of an account of the parameters that are trainable now.

    Args:
        split: splits their gradients.
        optimizers: the fit's.
    """
    trainable = {name: one for name, one in split.parameters.items() if one.requires_grad}
    tables = sum(one.nbytes for name, one in trainable.items() if name in split.tables)
    weights = sum(one.nbytes for one in trainable.values())
    return AccountMemory(weights - tables, weights + sum(map(_of_no_group, optimizers)), tables)


def _of_no_group(optimizer: Optimizer) -> int:
    """Bytes of the sources that are no group."""
    rule = rule_of(optimizer)
    total = 0
    for group in optimizer.param_groups:
        trainable: list[Tensor] = [one for one in group["params"] if one.requires_grad]
        if rule is None:  # the weights before a step, and momentum
            vectors = 2
        elif not group.get("weight_decay", 0):
            vectors = 0
        elif group.get("decoupled_weight_decay", False):
            vectors = 1
        else:  # the weights before a step, decay's own moment and its sum
            vectors = 3
        total += vectors * sum(one.nbytes for one in trainable)
    return total
