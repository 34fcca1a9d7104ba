"""Which part of the ingredients a parameter belongs to: its optimizer group, and its layer in the depth of the model.

Parts follow from the parameters' names and groups alone, so a run directory need not say them twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import takewhile

#: Labels of what stands before and behind the numbered layers.
EMBEDDINGS, HEAD = "embeddings", "head"

#: What embeddings are called: in most models, in GPT-2, in T5.
_EMBEDDING_WORDS = ("embed", "wte", "wpe", "shared.")


@dataclass(frozen=True)
class Parts:
    """The parts that a snapshot's ingredients are kept by."""

    groups: tuple[int, ...]  # of each part
    layers: tuple[str, ...]  # of each part; empty labels where ingredients are not kept by layer
    of: Mapping[str, int]  # parameter -> its part

    def __len__(self) -> int:
        return len(self.groups)

    @property
    def depths(self) -> list[str]:
        """The layers from the embeddings to the head."""
        return sorted(dict.fromkeys(self.layers), key=lambda layer: (layer != EMBEDDINGS) + (layer == HEAD))


def parts_of(groups: Mapping[str, int], per_layer: bool) -> Parts:
    """The parts of scored parameters.

    Args:
        groups: parameter -> its optimizer group, in the model's order.
        per_layer: whether a group's layers are kept apart.
    """
    labels = layer_labels(groups) if per_layer else dict.fromkeys(groups, "")
    keys = {name: (group, labels[name]) for name, group in groups.items()}
    order = {key: position for position, key in enumerate(dict.fromkeys(keys.values()))}
    return Parts(
        groups=tuple(group for group, _ in order),
        layers=tuple(label for _, label in order),
        of={name: order[key] for name, key in keys.items()},
    )


def layer_labels(names: Iterable[str]) -> dict[str, str]:
    """The layer of each parameter by its name: `embeddings`, `layer 0`, `layer 1`, ..., `head`.

    The numbered layers are the longest list of modules in the model, and every other that has at least half as many (an
    encoder's and a decoder's: `encoder layer 0`, `decoder layer 0`). Of the rest, what is named like an embedding is one, and so
    is what comes before the layers within the same module; everything else is the head.

    Args:
        names: of the parameters, in the model's order.
    """
    paths = {name: name.split(".") for name in names}
    numbered = {name: found for name, path in paths.items() if (found := _numbered(path)) is not None}
    sizes: dict[tuple[str, ...], set[int]] = {}
    for stack, number in numbered.values():
        sizes.setdefault(stack, set()).add(number)
    longest = max(map(len, sizes.values()), default=0)
    stacks = [stack for stack, numbers in sizes.items() if 2 * len(numbers) >= longest]
    shared = _common(list(paths.values()))
    labels: dict[str, str] = {}
    current: tuple[str, ...] | None = None  # the stack that was passed last
    for name, path in paths.items():
        stack, number = numbered.get(name, ((), 0))
        if name in numbered and stack in stacks:
            current = stack
            labels[name] = f"{_kind(stack, stacks)} layer {number}".strip()
        elif any(word in name.lower() for word in _EMBEDDING_WORDS):
            labels[name] = EMBEDDINGS
        elif current is None:
            inside = any(path[: shared + 1] == list(stack[: shared + 1]) for stack in stacks)
            labels[name] = EMBEDDINGS if inside else HEAD
        else:
            inside = path[: shared + 1] == list(current[: shared + 1])
            labels[name] = f"{_kind(current, stacks) if inside else ''} {HEAD}".strip()
    return labels


def _common(paths: list[list[str]]) -> int:
    """How many components all paths begin with."""
    same = [len(set(components)) == 1 for components in zip(*paths, strict=False)]
    return len(list(takewhile(bool, same)))


def _kind(stack: tuple[str, ...], stacks: list[tuple[str, ...]]) -> str:
    """What tells a list of layers from the others: `encoder`; nothing where there is one list only."""
    if len(stacks) == 1:
        return ""
    common = set.intersection(*map(set, stacks))
    return ".".join(part for part in stack if part not in common)


def _numbered(path: list[str]) -> tuple[tuple[str, ...], int] | None:
    """The first list of modules on the way to a parameter, and the position in it."""
    for depth, part in enumerate(path):
        if part.isdecimal():
            return tuple(path[:depth]), int(part)
    return None
