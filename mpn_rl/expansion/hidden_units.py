"""The weight matrices and hidden units of any nn.Module, and the activity of the units.

The topology engine and the plasticity metrics use these functions. A unit's activity is the value that the next layer
reads, so it includes everything between the two layers (an activation function, a LayerNorm).
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from mpn_rl.contracts import Maskable, Network, PartlyRecurrent, State, SynapticState


def synapses(network: nn.Module) -> dict[str, nn.Parameter]:
    """The trained weight matrices that may be masked, by name, layer after layer.

    They are those of torch.nn's linear and recurrent layers, (units, inputs), and those that a `Maskable` module names.
    """
    weights = {}
    for name, parameter in network.named_parameters():
        place, _, kind = name.rpartition(".")
        if kind in _maskable(network.get_submodule(place)) and parameter.requires_grad:
            weights[name] = parameter
    return weights


def _maskable(module: nn.Module) -> tuple[str, ...]:
    """Names of a module's own weight matrices."""
    if isinstance(module, Maskable):
        return module.maskable_weights()
    if isinstance(module, nn.RNNBase):
        return tuple(name for name, _ in module.named_parameters() if name.startswith("weight_"))
    return ("weight",) if isinstance(module, nn.Linear) else ()


def layers(network: nn.Module) -> dict[str, list[str]]:
    """The modules that have synapses of their own: {module: full names of its synapses}."""
    modules: dict[str, list[str]] = {}
    for name in synapses(network):
        modules.setdefault(name.rpartition(".")[0], []).append(name)
    return modules


def incoming(network: nn.Module, layer: str, units: int) -> list[str]:
    """The synapses onto a layer's units: one row per unit, or with gates one row per unit and gate."""
    names, module = layers(network)[layer], network.get_submodule(layer)
    if isinstance(module, nn.RNNBase):
        top = f"_l{module.num_layers - 1}"
        return [name for name in names if name.endswith(top)] if module.hidden_size == units else []
    return [name for name in names if network.get_parameter(name).shape[0] == units]


def outgoing(network: nn.Module, layer: str, units: int) -> list[str]:
    """The synapses by which a layer reads an input of `units` units: one column per unit."""
    names, module = layers(network)[layer], network.get_submodule(layer)
    if isinstance(module, nn.RNNBase):
        names = [name for name in names if name.endswith("weight_ih_l0")]
    elif isinstance(module, PartlyRecurrent):
        names = [name for name in names if name not in recurrent(network, layer)]
    return [name for name in names if network.get_parameter(name).shape[1] == units]


def recurrent(network: nn.Module, layer: str) -> list[str]:
    """The synapses from a layer's units back onto them: one column per unit."""
    module = network.get_submodule(layer)
    if isinstance(module, PartlyRecurrent):
        return [name for name in layers(network)[layer] if name.rpartition(".")[2] in module.recurrent_weights()]
    if not isinstance(module, nn.RNNBase):
        return []
    return [name for name in layers(network)[layer] if name.endswith(f"weight_hh_l{module.num_layers - 1}")]


def ends(network: nn.Module) -> tuple[set[str], set[str]]:
    """The first and the last layer of every chain, by name.

    A chain is a sequence of layers, in the order in which the network registers them. Each layer has as many inputs as
    the one before has units, or one more for a constant input. Two critics in one network are two chains. A `Maskable`
    module whose weights are recurrent, as in Backpropamine, belongs to no chain.
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
    """The synapses that match a comma-separated list of patterns; "first" and "last" mean the ends of every chain."""
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
    """The hidden units that one layer outputs and another reads, with the synapses onto and from them."""

    layer: str  # outputs the units
    reader: str  # reads them
    units: int
    onto: list[str]  # synapses onto the units: their rows
    off: list[str]  # synapses from the units: their columns


Output: TypeAlias = Tensor | tuple[Tensor, object]  # of a layer; torch's recurrent layers also return their state


class Watch:
    """Records what every layer reads, in forward passes that record gradients.

    `inputs` holds the last input (..., units) of each layer by its name. An input that does not depend on trained
    weights, such as an observation, is left out. `sources` holds the layer that outputs these units, and their number.
    While `tracing`, it is filled by walking back through autograd's graph, from the input to another layer's output.
    Only layers that are called as modules are recorded.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network, self.tracing = network, True
        self.inputs: dict[str, Tensor] = {}
        self.sources: dict[str, tuple[str, int]] = {}
        self._outputs: dict[torch.autograd.graph.Node | None, str] = {}
        self._handles = [
            network.get_submodule(layer).register_forward_hook(self._note(layer)) for layer in layers(network)
        ]

    def _note(self, layer: str) -> Callable[[nn.Module, tuple[Tensor, ...], Output], None]:
        def note(module: nn.Module, args: tuple[Tensor, ...], output: Output) -> None:
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
        """Find the layer from whose output x is computed, unit by unit, if there is one."""
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
        """The traced units, one group for each layer that reads them."""
        network, groups = self.network, []
        for reader, (source, units) in self.sources.items():
            off = outgoing(network, reader, units) + recurrent(network, source)
            groups.append(Group(source, reader, units, incoming(network, source, units), off))
        return groups

    def traced(self) -> None:
        """Stop tracing and release the graph."""
        self.tracing = False
        self._outputs.clear()

    def remove(self) -> None:
        """Remove the hooks; the records stay."""
        self.traced()
        for handle in self._handles:
            handle.remove()


def rows_of(network: nn.Module, group: Group, units: Tensor) -> dict[str, Tensor]:
    """Masks of the synapses onto some of a group's units, (units,) bool: their rows, one per gate."""
    rows = {}
    for name in group.onto:
        weight = network.get_parameter(name)
        rows[name] = units.repeat(len(weight) // group.units)[:, None].expand(weight.shape)
    return rows


def columns_of(network: nn.Module, group: Group, units: Tensor) -> dict[str, Tensor]:
    """Masks of the synapses from some of a group's units, (units,) bool: their columns."""
    return {name: units.expand(network.get_parameter(name).shape) for name in group.off}


def isolated_rows(network: nn.Module, groups: list[Group]) -> dict[str, Tensor]:
    """The units without any nonzero weight onto or from them, by matrix, as bool (rows,)."""
    live: dict[str, Tensor] = {}  # units by layer
    for group in groups:
        parts = [network.get_parameter(name).ne(0).any(1).view(-1, group.units).any(0) for name in group.onto]
        parts += [network.get_parameter(name).ne(0).any(0) for name in group.off]
        live[group.layer] = torch.stack([*parts, live.get(group.layer, torch.zeros_like(parts[0]))]).any(0)
    isolated: dict[str, Tensor] = {}
    for group in groups:
        if not live[group.layer].all():
            isolated |= {name: rows[:, 0] for name, rows in rows_of(network, group, ~live[group.layer]).items()}
    return isolated


def clear_moments(optimizer: torch.optim.Optimizer, weight: nn.Parameter, entries: Tensor) -> None:
    """Set an optimiser's moments of some entries of a weight to 0; the step counter belongs to the whole weight."""
    for moment in optimizer.state.get(weight, {}).values():
        if isinstance(moment, Tensor) and moment.shape == weight.shape:
            moment.masked_fill_(entries, 0.0)


def forget(
    networks: Mapping[str, nn.Module], changed: Mapping[str, Mapping[str, Tensor]], network: Network, state: State
) -> State:
    """A network's state, cleared at changed synapses.

    Args:
        networks: by name; `network` may be none of them.
        changed: true where a weight is new or gone, by network and weight, in the weight's shape.
        network: whose state it is.
        state: of its core.
    """
    name = next((name for name, known in networks.items() if id(known) == id(network)), "")
    for place, core in network.named_modules():
        if isinstance(core, SynapticState):
            start = f"{place}." if place else ""
            own = {key.removeprefix(start): part for key, part in changed.get(name, {}).items()}
            state = core.forget(state, own)
    return state
