"""The next way to tell a layer's samples apart, where one has turned out not to fit."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from lightning_tracin.gradients.coverage import Coverage, Layer
from lightning_tracin.gradients.layouts import Layout


def move_outwards(coverage: Coverage, modules: Mapping[str, nn.Module], layer: Layer) -> bool:
    """Compute the next module around a layer again from now on; False if there is none.

    Layers beside it in a list (experts, each of which sees some of the positions) go the same way.
    """
    replayed = coverage.decisions.replayed
    current = replayed.get(layer.name)
    loose = layer.rule is None or layer.name in coverage.decisions.loose
    if current is None and not loose:
        current = layer.name  # itself it has no line for each sample: that is why it is here
    around = _next_around(layer.name, current, modules)
    if around is None:
        return False
    replayed[layer.name] = around
    inner = layer.name
    while not loose and inner != around:
        inner = inner.rpartition(".")[0]
        if inner != around and isinstance(modules[inner], nn.ModuleList | nn.ModuleDict):
            replayed.update({beside.name: around for beside in coverage.layers if beside.name.startswith(f"{inner}.")})
    return True


def try_others(coverage: Coverage, modules: Mapping[str, nn.Module], wrong: frozenset[str]) -> bool:
    """Take another layout or way for each parameter whose gradients came out wrong; False if one has none left."""
    open_still: set[str] = set()
    for layer in coverage.layers:
        if wrong.isdisjoint(layer.names.values()):
            continue
        if _another(coverage, modules, layer):
            open_still.update(layer.names.values())
    return open_still >= wrong


def _another(coverage: Coverage, modules: Mapping[str, nn.Module], layer: Layer) -> bool:
    decisions = coverage.decisions
    if decisions.reconsider(layer.name):
        return True
    ruled = layer.rule is not None and layer.name not in decisions.loose and layer.name not in decisions.replayed
    if ruled and not _called(coverage, layer):
        decisions.loose.add(layer.name)
        return True
    return (not ruled or _flat(coverage, layer)) and move_outwards(coverage, modules, layer)


def _called(coverage: Coverage, layer: Layer) -> bool:
    return any(isinstance(key, tuple) and key[0] == layer.name for key in coverage.decisions.layouts)


def _flat(coverage: Coverage, layer: Layer) -> bool:
    layouts = coverage.decisions.layouts.items()
    return any(layout is Layout.FLAT for key, layout in layouts if isinstance(key, tuple) and key[0] == layer.name)


def _next_around(layer: str, current: str | None, modules: Mapping[str, nn.Module]) -> str | None:
    """The innermost module around a layer (or the layer itself) that has not been tried and can be called."""
    if current == "":
        return None
    name = layer if current is None else current.rpartition(".")[0]
    while type(modules[name]).forward is nn.Module.forward:  # a container, which is never called
        if name == "":
            return None
        name = name.rpartition(".")[0]
    return name
