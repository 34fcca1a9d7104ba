"""The next way to separate a layer's samples, after one did not work."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import nn

from lightning_tracin.gradients.coverage import Coverage, Layer


def move_outwards(coverage: Coverage, modules: Mapping[str, nn.Module], layer: Layer) -> bool:
    """From now on, run the next enclosing module of a layer again; False if there is none.

    Its siblings in a `ModuleList` or `ModuleDict` (experts, which each see some of the positions) are treated the same way.
    """
    replayed = coverage.decisions.replayed
    current = replayed.get(layer.name)
    loose = layer.rule is None or layer.name in coverage.decisions.loose
    if current is None and not loose:
        current = layer.name  # start outside the layer: its own output has no line for each sample
    around = _next_around(layer.name, current, modules)
    if around is None:
        return False
    replayed[layer.name] = around
    inner = layer.name
    while not loose and inner != around:
        inner = inner.rpartition(".")[0]
        if inner != around and isinstance(modules[inner], nn.ModuleList | nn.ModuleDict):
            replayed.update({sibling.name: around for sibling in coverage.layers if sibling.name.startswith(f"{inner}.")})
    return True


def take_next_way(coverage: Coverage, modules: Mapping[str, nn.Module], layers: Collection[str]) -> None:
    """From now on, separate the samples of some layers in the next way; the last is one sample at a time."""
    for layer in coverage.batched:
        if layer.name in layers and not (_stays(coverage, layer) or move_outwards(coverage, modules, layer)):
            coverage.decisions.one_by_one.update(layer.names.values())
            coverage.decisions.replayed.pop(layer.name, None)


def try_others(coverage: Coverage, modules: Mapping[str, nn.Module], wrong: frozenset[str]) -> bool:
    """Switch each parameter whose gradients were wrong to another layout or way; False if one has none left."""
    open_still: set[str] = set()
    for layer in coverage.batched:
        if wrong.isdisjoint(layer.names.values()):
            continue
        if _another(coverage, modules, layer):
            open_still.update(layer.names.values())
    return open_still >= wrong


def _another(coverage: Coverage, modules: Mapping[str, nn.Module], layer: Layer) -> bool:
    if _stays(coverage, layer):
        return True
    if coverage.uses_rule(layer):  # the layer is never called, or its parameters are also used without it
        coverage.decisions.loose.add(layer.name)
        return True
    return move_outwards(coverage, modules, layer)


def _stays(coverage: Coverage, layer: Layer) -> bool:
    """Read the samples of a layer's own output in another way; False if there is none."""
    decisions = coverage.decisions
    if layer.name in decisions.replayed:
        return False
    if decisions.reconsider(layer.name):
        return True
    called = any(key[0] == layer.name for key in decisions.layouts)
    if called and coverage.uses_rule(layer) and layer.is_positionwise and layer.name not in decisions.owned:
        decisions.owned.add(layer.name)
        return True
    return False


def _next_around(layer: str, current: str | None, modules: Mapping[str, nn.Module]) -> str | None:
    """The innermost enclosing module (or the layer itself) that has not been tried and can be called."""
    if current == "":
        return None
    name = layer if current is None else current.rpartition(".")[0]
    while type(modules[name]).forward is nn.Module.forward:  # a container is never called
        if name == "":
            return None
        name = name.rpartition(".")[0]
    return name
