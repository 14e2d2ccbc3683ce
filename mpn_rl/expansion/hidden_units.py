"""What a network is made of, seen from outside: its weight matrices, its hidden units, and how active these are.

The topology engine and the plasticity metrics know any nn.Module by these means. Units are seen where the next layer
reads them, so that whatever stands between (an activation function, a LayerNorm) is included.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mpn_rl.contracts import Maskable


def synapses(network: nn.Module) -> dict[str, nn.Parameter]:
    """The trained weight matrices (units, inputs) by name, layer after layer: what may be masked.

    Those of linear layers and of torch.nn's recurrent ones, an MPN's W, and w, gates and alpha of Backpropamine,
    these with the inputs first; never biases, a LayerNorm's gains, eta, lambda, M(0), or an alpha that is no matrix.
    """
    found = {}
    for name, parameter in network.named_parameters():
        place, _, kind = name.rpartition(".")
        if kind in _maskable(network.get_submodule(place)) and parameter.requires_grad:
            found[name] = parameter
    return found


def _maskable(module: nn.Module) -> tuple[str, ...]:
    """Names of a module's own weight matrices: a core's by its own account, torch.nn's by its documentation."""
    if isinstance(module, Maskable):
        return module.maskable_weights()
    if isinstance(module, nn.RNNBase):
        return tuple(name for name, _ in module.named_parameters() if name.startswith("weight_"))
    return ("weight",) if isinstance(module, nn.Linear) else ()


def layers(network: nn.Module) -> dict[str, list[str]]:
    """The modules that have synapses of their own, by name -> the full names of these."""
    found: dict[str, list[str]] = {}
    for name in synapses(network):
        found.setdefault(name.rpartition(".")[0], []).append(name)
    return found


def incoming(network: nn.Module, layer: str, units: int) -> list[str]:
    """The synapses onto a layer's units: one row each, or as many as it has gates, `units` apart."""
    names, module = layers(network)[layer], network.get_submodule(layer)
    if isinstance(module, nn.RNNBase):
        top = f"_l{module.num_layers - 1}"
        return [name for name in names if name.endswith(top)] if module.hidden_size == units else []
    return [name for name in names if network.get_parameter(name).shape[0] == units]


def outgoing(network: nn.Module, layer: str, units: int) -> list[str]:
    """The synapses by which a layer reads its input of so many units: one column each."""
    names = layers(network)[layer]
    if isinstance(network.get_submodule(layer), nn.RNNBase):
        names = [name for name in names if name.endswith("weight_ih_l0")]
    return [name for name in names if network.get_parameter(name).shape[1] == units]


def recurrent(network: nn.Module, layer: str) -> list[str]:
    """The synapses from a layer's units back onto them: one column each."""
    module = network.get_submodule(layer)
    if not isinstance(module, nn.RNNBase):
        return []
    return [name for name in layers(network)[layer] if name.endswith(f"weight_hh_l{module.num_layers - 1}")]


def ends(network: nn.Module) -> tuple[set[str], set[str]]:
    """The first and the last layer of every chain, by name.

    A chain is a run of layers, as the network registers them, each with as many inputs as the one before has units,
    or one more where a constant is appended: two critics in one network are two chains. Recurrent weights that stand
    alone, as in Backpropamine, belong to no chain.
    """
    first, last = set(), set()
    before, units = "", -2
    for layer, names in layers(network).items():
        module = network.get_submodule(layer)
        if isinstance(module, Maskable) and not module.feedforward:
            continue
        weights = [network.get_parameter(name) for name in names]
        if weights[0].shape[1] - units not in (0, 1):
            first.add(layer)
            last.add(before)
        before, units = layer, weights[-1].shape[0] if len(weights) == 1 else weights[-1].shape[1]
    return first, (last | {before}) - {""}


def chosen(network: nn.Module, patterns: str) -> set[str]:
    """The synapses that a list of patterns names; "first" and "last" are the ends of every chain."""
    words = [word.strip() for word in patterns.split(",")]
    named = {name for name in synapses(network) for word in words if fnmatch.fnmatchcase(name, word)}
    for word, at in zip(("first", "last"), ends(network), strict=True):
        if word in words:
            named |= {name for layer in at for name in layers(network)[layer]}
    return named


def dormancy(activity: Tensor) -> Tensor:
    """s_i = E|h_i| / mean_k E|h_k| (Sokar et al. 2023): (..., units) -> (units,); all 0 in a silent layer."""
    size = activity.flatten(0, -2).abs().mean(0)
    return size / size.mean().clamp_min(torch.finfo(size.dtype).tiny)


class Group(NamedTuple):
    """The hidden units of a layer, which others read: the synapses onto them (rows) and from them (columns)."""

    layer: str
    reader: str
    units: int
    onto: list[str]
    off: list[str]


class Watch:
    """Notes what every layer reads, in forward passes that record gradients.

    `inputs` holds a layer's last input (..., units) by its name, where that depends on trained weights: an
    observation is no activity of units. `sources` says of which layer these units are, and how many; it is found
    once, by walking back through autograd's graph from the input to the output of another layer, while `tracing`.
    A layer is seen when its module is called.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network, self.tracing = network, True
        self.inputs: dict[str, Tensor] = {}
        self.sources: dict[str, tuple[str, int]] = {}
        self._outputs: dict[Any, str] = {}  # autograd's nodes
        self._handles = [
            network.get_submodule(layer).register_forward_hook(self._note(layer)) for layer in layers(network)
        ]

    def _note(self, layer: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def note(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if not torch.is_grad_enabled():
                return
            x = args[0]
            if x.requires_grad:
                self.inputs[layer] = x.detach()
                if self.tracing and layer not in self.sources:
                    self._trace(layer, x)
            if self.tracing:
                self._outputs[(output[0] if isinstance(output, tuple) else output).grad_fn] = layer

        return note

    def _trace(self, reader: str, x: Tensor) -> None:
        """Find the layer whose output x is a function of, unit by unit, if there is one."""
        seen, ahead = set(), [x.grad_fn]
        while ahead:
            node = ahead.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            source = self._outputs.get(node)
            if source is None:
                ahead += [earlier for earlier, _ in node.next_functions]
            elif incoming(self.network, source, x.shape[-1]):
                self.sources[reader] = (source, x.shape[-1])
                return

    def groups(self) -> list[Group]:
        """The units that were found, a group for each layer that reads them."""
        network, found = self.network, []
        for reader, (source, units) in self.sources.items():
            off = outgoing(network, reader, units) + recurrent(network, source)
            found.append(Group(source, reader, units, incoming(network, source, units), off))
        return found

    def traced(self) -> None:
        """The sources are known: let the graph go."""
        self.tracing = False
        self._outputs.clear()

    def remove(self) -> None:
        """Take the hooks away; what was noted stays."""
        self.traced()
        for handle in self._handles:
            handle.remove()


def rows_of(network: nn.Module, group: Group, units: Tensor) -> dict[str, Tensor]:
    """The entries of the synapses onto some of a group's units, (units,) bool: their rows, one per gate."""
    found = {}
    for name in group.onto:
        weight = network.get_parameter(name)
        found[name] = units.repeat(len(weight) // group.units)[:, None].expand(weight.shape)
    return found


def columns_of(network: nn.Module, group: Group, units: Tensor) -> dict[str, Tensor]:
    """The entries of the synapses from some of a group's units."""
    return {name: units.expand(network.get_parameter(name).shape) for name in group.off}


def isolated_rows(network: nn.Module, groups: list[Group]) -> dict[str, Tensor]:
    """Of every matrix, the rows (n,) of units all of whose weights are zero: onto them, and off to any reader."""
    live: dict[str, Tensor] = {}  # units by layer
    for group in groups:
        parts = [network.get_parameter(name).ne(0).any(1).view(-1, group.units).any(0) for name in group.onto]
        parts += [network.get_parameter(name).ne(0).any(0) for name in group.off]
        live[group.layer] = torch.stack([*parts, live.get(group.layer, torch.zeros_like(parts[0]))]).any(0)
    found: dict[str, Tensor] = {}
    for group in groups:
        if not live[group.layer].all():
            found |= {name: rows[:, 0] for name, rows in rows_of(network, group, ~live[group.layer]).items()}
    return found
