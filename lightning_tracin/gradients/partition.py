"""Which part of the ingredients a parameter belongs to, by its optimizer group and its layer.

Parts follow from the parameters' names and groups alone, so a run directory does not store them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import takewhile

#: Labels of the parameters before and after the numbered layers.
EMBEDDINGS, HEAD = "embeddings", "head"

#: Parts of the names of embeddings: in most models, in GPT-2, in T5.
_EMBEDDING_WORDS = ("embed", "wte", "wpe", "shared.")


@dataclass(frozen=True)
class Parts:
    """The parts by which a snapshot's ingredients are stored."""

    groups: tuple[int, ...]  # optimizer group of each part
    layers: tuple[str, ...]  # layer of each part; empty labels if ingredients are not stored by layer
    of: Mapping[str, int]  # parameter -> its part

    def __len__(self) -> int:
        return len(self.groups)

    @property
    def depths(self) -> list[str]:
        """The layers in order, from the embeddings to the head."""
        return depths_of(self.layers)


def depths_of(layers: Iterable[str]) -> list[str]:
    """The layers, each once, from the embeddings to the head.

    Example:
        >>> depths_of(["head", "layer 0", "embeddings", "layer 0"])
        ['embeddings', 'layer 0', 'head']
    """
    return sorted(dict.fromkeys(layers), key=lambda layer: (layer != EMBEDDINGS) + (layer == HEAD))


def parts_of(groups: Mapping[str, int], per_layer: bool) -> Parts:
    """The parts of scored parameters.

    Args:
        groups: parameter -> its optimizer group, in the model's order.
        per_layer: whether each layer of a group is a part of its own.

    Example:
        >>> parts = parts_of({"embed.weight": 0, "layers.0.weight": 0, "layers.0.bias": 1}, per_layer=True)
        >>> parts.groups, parts.layers
        ((0, 0, 1), ('embeddings', 'layer 0', 'layer 0'))
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
    """The layer of each parameter, by its name: `embeddings`, `layer 0`, `layer 1`, ..., `head`.

    The numbered layers are the longest list of modules in the model, and any other list at least half as long (an encoder's and
    a decoder's: `encoder layer 0`, `decoder layer 0`). All other parameters are embeddings if they are named like one, or come
    before the layers in the same module; the rest is the head.

    Args:
        names: names of the parameters, in the model's order.

    Example:
        >>> layer_labels(["bert.embeddings.weight", "bert.layer.0.weight", "bert.layer.1.weight", "classifier.weight"])
        ... # doctest: +NORMALIZE_WHITESPACE
        {'bert.embeddings.weight': 'embeddings', 'bert.layer.0.weight': 'layer 0', 'bert.layer.1.weight': 'layer 1',
         'classifier.weight': 'head'}
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
    current: tuple[str, ...] | None = None  # the last stack seen
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
    """The number of leading components that all paths share."""
    same = [len(set(components)) == 1 for components in zip(*paths, strict=False)]
    return len(list(takewhile(bool, same)))


def _kind(stack: tuple[str, ...], stacks: list[tuple[str, ...]]) -> str:
    """The part of the path that distinguishes one list of layers, such as `encoder`; empty if there is only one list."""
    if len(stacks) == 1:
        return ""
    common = set.intersection(*map(set, stacks))
    return ".".join(part for part in stack if part not in common)


def _numbered(path: list[str]) -> tuple[tuple[str, ...], int] | None:
    """The first list of modules in a parameter's path, and the position in it; None if there is none."""
    for depth, part in enumerate(path):
        if part.isdecimal():
            return tuple(path[:depth]), int(part)
    return None
