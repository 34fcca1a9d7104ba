"""The gradients of one batch as they arrive: what has come, what is still due, and what this batch cannot give."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack

import torch

from lightning_tracin.errors import TracInError
from lightning_tracin.gradients.forms import Form, merged
from lightning_tracin.gradients.layouts import Decisions
from lightning_tracin.gradients.owners import LineOwners

#: Receives a parameter's name and its per-sample gradients, once per batch and parameter.
Consumer = Callable[[str, tuple[Form, ...]], None]


class UnresolvedError(TracInError):
    """Some parameters' gradients could not be separated by sample; those of all others have been delivered."""

    def __init__(self, reasons: Mapping[str, str]) -> None:
        name, reason = next(iter(reasons.items()))
        more = f" (and of {len(reasons) - 1} more)" if len(reasons) > 1 else ""
        super().__init__(
            f"The samples' gradients of {name}{more} cannot be told apart: {reason}; leave these out with `parameters=[...]`."
        )
        self.names = frozenset(reasons)


class Arrivals:
    """One batch's gradients. A parameter with several uses is delivered once, as a sum, after the last of them.

    Args:
        samples: number of samples in the batch.
        consumer: called once for each parameter.
        decisions: which layers have been verified.
        is_strict: whether only what has been verified may be delivered.

    Attributes:
        due: parameter -> number of gradients still to arrive.
        unresolved: parameter -> why its gradients cannot come from this batch.
        seen: layers that the loss has reached.
        graph: closed by `release`; what refers to the graph. The graph's hooks refer to this object, and neither would ever leave
            the memory: Python's garbage collector does not see hooks.

    Example:
        >>> from lightning_tracin.gradients.forms import Dense
        >>> batch = Arrivals(2, lambda name, forms: print(name, forms[0].values.tolist()), Decisions(), is_strict=False)
        >>> batch.due.update(["scale", "scale"])
        >>> batch.arrive("scale", Dense(torch.tensor([[1.0], [2.0]])))
        >>> batch.arrive("scale", Dense(torch.tensor([[5.0], [5.0]])))
        scale [[6.0], [7.0]]
    """

    def __init__(self, samples: int, consumer: Consumer, decisions: Decisions, is_strict: bool) -> None:
        self.samples = samples
        self.owners = LineOwners(samples)
        self.in_backward = False
        self.due: Counter[str] = Counter()
        self.unresolved: dict[str, str] = {}
        self.seen: set[str] = set()
        self.is_strict = is_strict
        self.graph = ExitStack()
        self.graph.callback(self.owners.forget)
        self._consumer = consumer
        self._decisions = decisions
        self._awaited: Counter[str] = Counter()  # module -> its calls without gradients, which checkpointing may repeat
        self._arrived: dict[str, list[Form]] = {}

    def release(self) -> None:
        """Let go of the graph."""
        self.graph.close()

    def counts(self, name: str, parameters: Collection[str]) -> bool | None:
        """Whether this call of a module supplies the gradients of these parameters; None means ignore the call altogether."""
        if not torch.is_grad_enabled():
            self._awaited[name] += 1
            self.due.update(parameters)
            return None
        if not self.in_backward:
            return True
        if not self._awaited[name]:
            return False
        self._awaited[name] -= 1
        self.due.subtract(parameters)
        return True

    def is_trusted(self, layer: str, names: Collection[str]) -> bool:
        """Whether the way that a layer's samples are separated may be used; if not, its parameters are unresolved."""
        self.seen.add(layer)
        if self.is_known(layer):
            return True
        self.unresolve(names, "no batch that was verified has reached their layer")
        return False

    def is_known(self, layer: str) -> bool:
        """Whether nothing about a layer has to be verified in this batch."""
        return not self.is_strict or self.samples == 1 or layer in self._decisions.verified

    def unresolve(self, names: Collection[str], reason: str) -> None:
        """Do not deliver these parameters."""
        self.unresolved.update(dict.fromkeys(names, reason))

    def arrive(self, name: str, form: Form) -> None:
        """Take one use of a parameter, and deliver the parameter if it was the last."""
        self.add(name, form)
        self.due[name] -= 1
        if self.due[name] == 0:
            self._deliver(name)

    def add(self, name: str, form: Form) -> None:
        """Take one use of a parameter that waits for the end of the backward pass."""
        self._arrived.setdefault(name, []).append(form)

    def deliver_rest(self) -> None:
        """Deliver the parameters some of whose uses the loss does not reach."""
        for name in list(self._arrived):
            self._deliver(name)

    def _deliver(self, name: str) -> None:
        forms = self._arrived.pop(name)
        if name not in self.unresolved:
            with torch.no_grad():
                self._consumer(name, merged(forms))
