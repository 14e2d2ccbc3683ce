"""Continual backpropagation: units of little use are drawn anew, a few at a time, during the whole run.

Source: Dohare et al. 2024, Nature 632, 768-774, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypedDict

import torch
from torch import Tensor, nn

from mpn_rl.config import ContinualBackpropConfig
from mpn_rl.contracts import Network, State, StateDict
from mpn_rl.expansion import hidden_units
from mpn_rl.expansion.hidden_units import Group, Watch, clear_moments, columns_of, forget, incoming, rows_of
from mpn_rl.expansion.plasticity_remedies import Draw, Remedy
from mpn_rl.storage.state_trees import Named, Real, Schema, StateError, Values, check, check_torch_random, like_dict


class Units(TypedDict):
    """What is known of the U hidden units of one layer."""

    utility: Tensor  # u, (U,)
    age: Tensor  # a, updates since the unit was drawn, (U,) int64
    due: float  # c, replacements that are due


class ContinualBackprop(Remedy):
    """Replace the mature units of least utility, after every update (Dohare et al. 2024).

        a_i <- a_i + 1
        u_i <- d u_i + (1 - d) mean |h_i| sum_k |w_ki|        utility of unit i, with weights w_ki onto the next layer
        c   <- c + rho #{i: a_i > m}                          for each layer
        while c >= 1: the mature unit with the least u_i / (1 - d^a_i) is replaced, and c <- c - 1

    A replaced unit gets incoming weights and a bias from a new draw of the layer's initialisation, and outgoing weights
    of 0, so the output does not jump; its u and a are 0. Until its age is m, it is protected. The mean is over the rows
    and steps of the update's last forward pass. The public code corrects u by its age as above; the paper's
    algorithm does not need to, with m much larger than 1 / (1 - d).

    - Adam's moments of the changed weights become 0; its step counter stays, since it belongs to the whole matrix.
    - In a recurrent layer, the weights from a unit back onto the layer are outgoing weights too, and with gates the
      rows of all gates are incoming ones. The M of an MPN does not enter u; its entries at changed synapses become 0.
    - Target networks are not changed: they follow the trained ones.

    Args:
        config: has rho, `replacement_rate`, m, `maturity`, and d, `utility_decay`.
        networks: the trained networks by name.
        optimizers: by the same names.
        draw: new networks by the same names.
        seed: of the draws.
    """

    def __init__(
        self,
        config: ContinualBackpropConfig,
        networks: Mapping[str, nn.Module],
        optimizers: Mapping[str, torch.optim.Optimizer],
        draw: Draw,
        seed: int,
    ) -> None:
        super().__init__(networks)
        self.config, self.optimizers, self.draw = config, dict(optimizers), draw
        self.generator = torch.Generator().manual_seed(seed)  # on the CPU: the same draws on every device
        self.watches = {name: Watch(network) for name, network in networks.items()}
        self.units: dict[str, dict[str, Units]] = {name: {} for name in networks}  # by layer, from the first update on
        # network -> weight -> mask of changed entries: since the last `advance`, and by it
        self.pending: dict[str, dict[str, Tensor]] = {}
        self.changed: dict[str, dict[str, Tensor]] = {}

    @torch.no_grad()
    def after_step(self, name: str) -> None:
        """Update the utilities of a network's units and replace those that are due."""
        watch, network, d = self.watches[name], self.networks[name], self.config.utility_decay
        if watch.tracing:
            watch.traced()
        layers: dict[str, list[Group]] = {}  # two heads may read the same units
        for group in watch.groups():
            if group.reader in watch.inputs:
                layers.setdefault(group.layer, []).append(group)
        for layer, groups in layers.items():
            activity = watch.inputs[groups[0].reader].flatten(0, -2).abs().mean(0)
            outgoing = {key for group in groups for key in group.off}
            reach = torch.stack([network.get_parameter(key).abs().sum(0) for key in sorted(outgoing)]).sum(0)
            new = Units(utility=torch.zeros_like(reach), age=torch.zeros_like(reach, dtype=torch.int64), due=0.0)
            units = self.units[name].setdefault(layer, new)
            units["utility"].lerp_(activity * reach, 1.0 - d)
            units["age"] += 1
            mature = units["age"] > self.config.maturity
            units["due"] += self.config.replacement_rate * int(mature.sum())
            if (count := min(int(units["due"]), int(mature.sum()))) > 0:
                corrected = units["utility"] / (1.0 - d ** units["age"].double())
                worst = corrected.masked_fill(~mature, torch.inf).argsort(stable=True)[:count]
                units["due"] -= count
                units["utility"][worst], units["age"][worst] = 0.0, 0
                self._replace(name, groups, torch.zeros_like(mature).index_fill_(0, worst, True))
        watch.inputs.clear()

    def _replace(self, name: str, groups: list[Group], units: Tensor) -> None:
        """Draw some of a layer's units anew. Args: units: which ones, (U,) bool."""
        network = self.networks[name]
        fresh = self.draw(int(torch.randint(2**31, (), generator=self.generator)))[name]
        onto = rows_of(network, groups[0], units)
        off: dict[str, Tensor] = {}
        for group in groups:
            off |= columns_of(network, group, units)
        for part, weight in network.get_submodule(groups[0].layer).named_parameters(recurse=False):
            if "bias" in part and weight.ndim == 1 and len(weight) % len(units) == 0:
                onto[f"{groups[0].layer}.{part}"] = units.repeat(len(weight) // len(units))
        for key, mask in onto.items():
            weight = network.get_parameter(key)
            weight.copy_(torch.where(mask, fresh.get_parameter(key).to(weight.device), weight))
        for key, mask in off.items():
            network.get_parameter(key).masked_fill_(mask, 0.0)
        changed = self.pending.setdefault(name, {})
        for entries in (onto, off):
            for key, mask in entries.items():
                clear_moments(self.optimizers[name], network.get_parameter(key), mask)
                changed[key] = changed[key] | mask if key in changed else mask

    def advance(self, step: int) -> bool:
        """Returns: whether units were replaced since the last call; pass the acting state through `reset_state`."""
        self.changed, self.pending = self.pending, {}
        return bool(self.changed)

    def reset_state(self, network: Network, state: State) -> State:
        """The acting state of `network`, cleared at the synapses of units replaced before the last `advance`."""
        return forget(self.networks, self.changed, network, state)

    def state_dict(self) -> StateDict:
        """Utilities, ages, due replacements, and the generator."""
        units = {name: {layer: {**known} for layer, known in layers.items()} for name, layers in self.units.items()}
        return {"units": units, "generator": self.generator.get_state()}

    def check_state(self, saved: object, place: str) -> None:
        """Raise a StateError where `saved` is not a state of this object, before `load_state_dict` loads it."""
        known: Schema = {
            "utility": Values(torch.float32, (None,), 0.0),
            "age": Values(torch.int64, (None,), 0),
            "due": Real(0.0),
        }
        names: Schema = {name: Named(known, r"[\w.]+") for name in self.networks}
        check(saved, like_dict(self.state_dict(), units=names), place)
        assert isinstance(saved, dict)
        check_torch_random(saved["generator"], f"{place}.generator")
        for name, layers in saved["units"].items():
            network = self.networks[name]
            for layer, units in layers.items():
                count = len(units["utility"])
                fits = layer in hidden_units.layers(network) and incoming(network, layer, count)
                if not fits or len(units["age"]) != count:
                    raise StateError(f"{place}.units.{name} has {layer!r}, which has not {count} units")

    def load_state_dict(self, saved: StateDict, /) -> None:
        """Restore what `state_dict` returned."""
        for name, layers in saved["units"].items():
            device = next(self.networks[name].parameters()).device
            self.units[name] = {
                layer: Units(utility=units["utility"].to(device), age=units["age"].to(device), due=units["due"])
                for layer, units in layers.items()
            }
        self.generator.set_state(saved["generator"].cpu())
