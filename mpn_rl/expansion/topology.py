r"""Neuroplastic Expansion: networks that start sparse, grow weights with large gradients and prune dormant units.

Every weight matrix that is not exempt has a boolean mask. Where the mask is false, the weight, its optimiser moments
and its counterpart in the target network are zero. A layer of density 1 has no mask and never changes. Densities of the
layers at overall density d, by their shapes (n_out, n_in):

    ERK      d_l = min(1, c (n_out + n_in) / (n_out n_in))        c such that sum_l d_l N_l = d sum_l N_l
    uniform  d_l = d

Events happen at e_k = start + k interval, k = 1..K, in environment steps, for each network with its own gradient.
After event k, layer l has n_l(k) weights, with the schedule g:

    n_l(k) = n_l(0) + g(k) (n_l(K) - n_l(0))        linear  g = k / K        cosine  g = k / K + sin(pi k / K) / pi

so it ends at exactly its density. With a rate zeta (`grow_fraction`), an event instead grows a share of
n_l(K) - n_l(0), zeta (1 - omega) (constant) or zeta (1 - omega) (1 + cos(pi k / K)) / 2 (cosine), until all of it has
grown. An event first prunes at most p weights, then grows absent weights until the layer has n_l(k):

    while growing   p = omega / (1 - omega) (n_l(k) - n_l(k-1)), so at most omega per grown weight
    afterwards      p = drop (1 + cos(pi k' / K)) / 2 of the layer's weights, the k'th event since growth ended (RigL)

It prunes the smallest |w|, or random weights from or onto dormant units. It grows the weights with the largest |dL/dw|,
where the gradient is that of the network's last update (or the mean of its last n), or random ones. New weights are 0
or drawn from N(0, 1 / n_in). A unit whose incoming and outgoing weights are all 0 may never get a gradient. It gets one
incoming connection, and its incoming weights are drawn from N(0, 1 / n_in), which changes nothing downstream.

With `recycle`, an event draws the incoming weights of dormant units again and sets their outgoing weights, bias and
moments to 0 (ReDo).

Sources: Liu et al. 2024 (arXiv 2410.07994); Evci et al. 2020 (RigL); Mocanu et al. 2018 (ER); Sokar et al. 2023 (ReDo).
Differs from Liu et al.: the density follows its schedule exactly, and an event grows as many weights more as it prunes;
they grow a fixed number and prune up to a share of it.

The preset `reference` does what the public code does: masks keep the largest initial weights; ERK, no layer exempt;
every 100 steps, growth by gradient of 0.008 of n_l(K) - n_l(0), and 0.4 weights pruned per grown weight, by magnitude;
new weights are 0; after growth, RigL with a drop of 0.2. It does not repeat these errors of that code: dormant units
are never pruned; six flags do nothing; the actor's clock runs at half speed; events set Adam's step counter to 0 and
keep its moments; the actor's loss adds to the gradients by which the critics grow; n_l(K) - n_l(0) is the same for all
layers, and negative for dense ones; an event replaces the optimiser's step; weights of value 0 count as absent;
sparsity 0 never learns; a static network stays at the initial sparsity, whatever its own is; the targets start dense.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mpn_rl.config import PaperExpansionConfig, choices
from mpn_rl.contracts import MaskedState, Network, State, StateDict
from mpn_rl.expansion import hidden_units
from mpn_rl.expansion.hidden_units import (
    Group,
    Watch,
    chosen,
    clear_moments,
    columns_of,
    dormancy,
    forget,
    incoming,
    isolated_rows,
    rows_of,
    synapses,
)
from mpn_rl.expansion.masks import Layer, check_fits, growth, largest, masked_layers, pruned, turnover
from mpn_rl.options import ConfigError, nearest
from mpn_rl.storage.state_trees import (
    Anything,
    Many,
    Named,
    Schema,
    StateError,
    Text,
    Values,
    Whole,
    check,
    check_torch_random,
    like_dict,
)

SNAPSHOTS = 8  # of the masks in a run, after the initial one


class Topology(nn.Module):
    """The masks of a learner's networks, and the events that change them; equations at the top of this module.

    Call `before_step(name)` between a network's backward pass and its optimiser's step, `after_step(name)` after that,
    and `advance(step)` once per vector step with the environment steps so far. An event at e_k happens in the last
    call with step <= e_k, or, if the network has had no update by then, in the first call after its first update.

    The masks are buffers named "<network>/<parameter>", with slashes. `state_dict` has everything that a resumed run
    needs.

    Args:
        config: a kind of ExpansionConfig other than "none".
        networks: the trained networks by name, which the constructor masks; "actor" and "critic" have options of their
            own.
        targets: copies of the networks, by the same names, which get the same masks.
        optimizers: by the same names.
        seed: of all random numbers.
        total_steps: environment steps of the run.

    Raises: ConfigError for options that do not fit the networks or the run.
    """

    def __init__(
        self,
        config: PaperExpansionConfig,
        networks: Mapping[str, nn.Module],
        targets: Mapping[str, nn.Module],
        optimizers: Mapping[str, torch.optim.Optimizer],
        seed: int,
        total_steps: int | None,
    ) -> None:
        super().__init__()
        self.config = config
        self.networks, self.optimizers = dict(networks), dict(optimizers)
        self.generator = torch.Generator().manual_seed(seed)  # on the CPU: the same draws on every device
        weights = {name: synapses(network) for name, network in networks.items()}
        self.events = check_fits(config, weights, total_steps)
        self.grown_at = next((k for k in range(self.events) if growth(config, k, self.events) == 1.0), self.events)
        self.step = 0
        self.done = dict.fromkeys(networks, 0)  # events so far
        self.updates = dict.fromkeys(networks, 0)
        self.flips = dict.fromkeys(networks, 0)  # mask entries changed since the last call of `churn`
        # By the last `advance`: network -> weight -> mask of changed entries.
        self.changed: dict[str, dict[str, Tensor]] = {}
        self.sizes: dict[str, int] = {}  # weights that count for the density, those of unmasked layers included
        self.layers = {name: self._mask_layers(name) for name in networks}
        self.copies: dict[str, list[nn.Module]] = {name: [] for name in networks}
        for modules in (networks, targets):  # the network itself comes first
            for name, module in modules.items():
                self.follow(name, module)
        moves = config.grow != "none" or config.recycle
        changing = [name for name in networks if moves and (own := _choice(config, name)).expand and not own.static]
        n = config.grad_accumulation_n if config.grow in ("gradient", "accumulated") else 0
        self.gradients = {  # the last n, as a ring
            name: [[torch.zeros_like(layer.weight) for layer in self.layers[name]] for _ in range(n)]
            for name in changing
        }
        self.uses_activity = config.prune == "dormant" or config.recycle
        self.watches = {name: Watch(self.networks[name]) for name in changing}
        # Dormancy scores by reading layer.
        self.activity: dict[str, dict[str, Tensor]] = {name: {} for name in changing}
        self.snapshots: list[tuple[int, dict[str, Tensor]]] = []
        self._snapshot()

    # --- the start --------------------------------------------------------------------------------------

    def _mask_layers(self, name: str) -> list[Layer]:
        """Draw the masks of a network."""
        config, network, choice = self.config, self.networks[name], _choice(self.config, name)
        dense = chosen(network, config.exempt) if choice.expand else set(synapses(network))
        weights = {key: weight for key, weight in synapses(network).items() if key not in dense}
        self.sizes[name] = sum(weight.numel() for weight in weights.values())
        sparsity = config.sparsity if choice.sparsity is None else choice.sparsity
        initial = sparsity if choice.static or config.initial_sparsity is None else config.initial_sparsity
        if choice.expand and not weights and initial:
            raise ConfigError(f"--exempt {config.exempt!r} leaves no layer of {name} to expand; exempt fewer")
        layers = masked_layers(config, weights, initial, sparsity, self.generator)
        for layer in layers:
            self.register_buffer(f"{name}/{layer.name.replace('.', '/')}", layer.mask)
        return layers

    @torch.no_grad()
    def follow(self, name: str, module: nn.Module) -> None:
        """Mask a network or a copy of it (a target, a running average), now and at every event."""
        self.copies[name].append(module)
        for layer in self.layers[name]:
            module.get_parameter(layer.name).mul_(layer.keep)
            place, _, weight = layer.name.rpartition(".")
            owner = module.get_submodule(place)
            if isinstance(owner, MaskedState):
                owner.set_mask(weight, layer.mask)

    # --- around an update -------------------------------------------------------------------------------

    @torch.no_grad()
    def before_step(self, name: str) -> None:
        """Record the dense gradient of a network's own loss from `.grad`, and mask it there."""
        self.updates[name] += 1
        if self.updates[name] == 1 and name in self.watches:
            self.watches[name].traced()
            if not self.uses_activity:
                self.watches[name].remove()
        layers = self.layers[name]
        gradients = {i: layer.weight.grad for i, layer in enumerate(layers) if layer.weight.grad is not None}
        if not gradients:
            return
        ring = self.gradients.get(name)
        if ring and self.done[name] < self.events:
            slots = ring[(self.updates[name] - 1) % len(ring)]
            torch._foreach_copy_([slots[i] for i in gradients], list(gradients.values()))
        torch._foreach_mul_(list(gradients.values()), [layers[i].keep for i in gradients])

    @torch.no_grad()
    def after_step(self, name: str) -> None:
        """Set absent weights to zero again after the optimiser's step. Targets stay zero by averaging zeros."""
        if self.layers[name]:
            weights: list[Tensor] = [layer.weight for layer in self.layers[name]]
            torch._foreach_mul_(weights, [layer.keep for layer in self.layers[name]])

    # --- events -----------------------------------------------------------------------------------------

    @torch.no_grad()
    def advance(self, step: int) -> bool:
        """Run the events that are due before the next call.

        Args: step: environment steps so far.
        Returns: whether an event changed a weight. If so, pass the acting state through `reset_state`.
        """
        ahead, self.step, self.changed = max(step - self.step, 1), step, {}
        due = min((step + ahead - 1 - self.config.expansion_start) // self.config.update_interval, self.events)
        for name in self.watches:
            if due > self.done[name] and self.updates[name]:
                before, self.done[name] = self.done[name], due
                self._event(name)
                if due * SNAPSHOTS // self.events > before * SNAPSHOTS // self.events:
                    self._snapshot()
        return bool(self.changed)

    def _event(self, name: str) -> None:
        config, event, groups = self.config, self.done[name], self.watches[name].groups()
        self._record_activity(name)
        if config.recycle:
            self._recycle(name, groups)
        if config.grow == "none":
            return
        share = growth(config, event, self.events)
        silent = self._silent(name, groups) if config.prune == "dormant" else {}
        isolated = isolated_rows(self.networks[name], groups)
        for index, layer in enumerate(self.layers[name]):
            net = layer.start + round((layer.goal - layer.start) * share) - layer.active
            most = config.prune_ratio / (1.0 - config.prune_ratio) * net
            grown_at = 0 if layer.start == layer.goal else self.grown_at
            if event > grown_at and net == 0:
                most = turnover(config, event - grown_at, self.events) * layer.active
            gone = pruned(layer, config.prune, int(most + 1e-9), silent.get(layer.name), self.generator)
            kept = layer.mask & ~gone
            self._grow(name, index, kept, net + layer.active - int(kept.sum()), isolated.get(layer.name))

    def _grow(self, name: str, index: int, kept: Tensor, count: int, isolated: Tensor | None) -> None:
        """Grow `count` weights where `kept` is false, and update the layer's mask."""
        layer = self.layers[name][index]
        scores = self._scores(name, index)
        fresh = torch.zeros_like(kept)
        if isolated is not None:
            rows = (isolated & ~kept.any(1)).nonzero().flatten()
            columns = torch.randint(kept.shape[1], (len(rows),), generator=self.generator).to(rows.device)
            scores[rows, columns] = math.inf
            fresh |= isolated[:, None]
        scores[kept] = -math.inf
        grown = largest(scores, min(count, kept.numel() - int(kept.sum())), self.generator)
        if self.config.new_weights == "lecun":
            fresh |= grown
        mask = kept | grown
        moved = (mask != layer.mask) | grown  # a pruned weight may grow again in the same event
        self.flips[name] += int((mask != layer.mask).sum())
        layer.mask.copy_(mask)
        layer.keep.copy_(mask)
        layer.active = int(mask.sum())
        for module in self.copies[name]:
            module.get_parameter(layer.name).masked_fill_(moved, 0.0)
        self._renew(name, layer.name, moved | (fresh & mask), fresh & mask)

    def _scores(self, name: str, index: int) -> Tensor:
        """The scores by which absent weights are chosen to grow, in the shape of the matrix."""
        ring = self.gradients[name]
        if not ring:
            weight = self.layers[name][index].weight
            return torch.rand(weight.shape, generator=self.generator).to(weight.device)
        recorded = ring[: min(self.updates[name], len(ring))]
        return torch.stack([gradients[index] for gradients in recorded]).mean(0).abs()

    def _renew(self, name: str, key: str, changed: Tensor, fresh: Tensor) -> None:
        """Set `changed` weights and their moments to 0, and `fresh` weights to draws from N(0, 1 / n_in)."""
        if not changed.any():
            return
        weight = self.networks[name].get_parameter(key)
        drawn = torch.randn(weight.shape, generator=self.generator) if fresh.any() else torch.zeros(weight.shape)
        drawn = drawn.to(weight.device) / math.sqrt(weight.shape[-1])
        weight.copy_(torch.where(fresh, drawn, weight.masked_fill(changed, 0.0)))
        clear_moments(self.optimizers[name], weight, changed)
        earlier = self.changed.setdefault(name, {}).get(key)
        self.changed[name][key] = changed if earlier is None else changed | earlier

    # --- units ------------------------------------------------------------------------------------------

    def _record_activity(self, name: str) -> None:
        """Dormancy scores of the units, from the last forward pass of an update."""
        watch = self.watches[name]
        if not self.uses_activity:
            return
        self.activity[name] |= {reader: dormancy(x) for reader, x in watch.inputs.items() if reader in watch.sources}
        watch.inputs.clear()

    def _dormant(self, name: str, group: Group) -> Tensor:
        return self.activity[name][group.reader] <= self.config.dormancy_tau

    def _silent(self, name: str, groups: list[Group]) -> dict[str, Tensor]:
        """Masks of the weights from or onto a dormant unit, by matrix."""
        silent: dict[str, Tensor] = {}
        for group in groups:
            for entries in (rows_of, columns_of):
                for key, part in entries(self.networks[name], group, self._dormant(name, group)).items():
                    silent[key] = part | silent[key] if key in silent else part
        return silent

    def _recycle(self, name: str, groups: list[Group]) -> None:
        """ReDo: dormant units get new incoming weights, and outgoing weights and a bias of 0, where these exist."""
        network = self.networks[name]
        masks = {layer.name: layer.mask for layer in self.layers[name]}
        for group in groups:
            for key, rows in rows_of(network, group, self._dormant(name, group)).items():
                self._renew(name, key, rows, rows & masks[key] if key in masks else rows)
        for group in groups:
            dormant = self._dormant(name, group)
            entries = columns_of(network, group, dormant)
            own = dict(network.get_submodule(group.layer).named_parameters(recurse=False))
            if "bias" in own and len(own["bias"]) == group.units:
                entries[f"{group.layer}.bias"] = dormant
            for key, part in entries.items():
                self._renew(name, key, part, torch.zeros_like(part))

    def reset_state(self, network: Network, state: State) -> State:
        """The acting state of `network`, cleared at the synapses that the last `advance` changed."""
        return forget(self.networks, self.changed, network, state)

    # --- for the log -----------------------------------------------------------------------------------

    def densities(self) -> dict[str, float]:
        """Share of the weights that exist, by masked matrix ("<network>/<parameter>") and by network.

        A network's share is over all layers that are not exempt; it is 1 if all are.
        """
        shares = {}
        for name, layers in self.layers.items():
            absent = sum(layer.weight.numel() - layer.active for layer in layers)
            shares[name] = 1.0 - absent / max(self.sizes[name], 1)
        return shares | {key: layer.active / layer.weight.numel() for key, layer in self._named()}

    def churn(self) -> dict[str, float]:
        """Mask entries that changed since the last call, as a share of the weights of layers not exempt, by network."""
        shares = {name: flips / max(self.sizes[name], 1) for name, flips in self.flips.items()}
        self.flips = dict.fromkeys(self.flips, 0)
        return shares

    def history(self) -> dict[str, np.ndarray]:
        """The masks over time: "step" (S,), and by "<network>/<parameter>" bool (S, units, inputs)."""
        masks = {"step": np.array([step for step, _ in self.snapshots])}
        for key, layer in self._named():
            bits = np.stack([packed[key].numpy() for _, packed in self.snapshots])
            flat = np.unpackbits(bits, axis=1, count=layer.mask.numel())
            masks[key] = flat.reshape(len(bits), *layer.mask.shape).astype(bool)
        return masks

    def _snapshot(self) -> None:
        packed = {key: torch.from_numpy(np.packbits(layer.mask.cpu().numpy())) for key, layer in self._named()}
        if self.snapshots and self.snapshots[-1][0] == self.step:
            self.snapshots.pop()
        self.snapshots.append((self.step, packed))

    def _named(self) -> Iterator[tuple[str, Layer]]:
        for name, layers in self.layers.items():
            for layer in layers:
                yield f"{name}/{layer.name}", layer

    # --- saving -----------------------------------------------------------------------------------------

    _COUNTERS = ("step", "done", "updates", "flips")

    def get_extra_state(self) -> StateDict:
        """For `state_dict`: all but the masks."""
        for name in self.watches:
            self._record_activity(name)
        return {
            **{name: copy.copy(getattr(self, name)) for name in self._COUNTERS},
            "generator": self.generator.get_state(),
            "gradients": self.gradients,
            "activity": self.activity,
            "sources": {name: watch.sources for name, watch in self.watches.items()},
            "snapshots": self.snapshots,
        }

    def check_state(self, saved: object, place: str) -> None:
        """Raise a StateError where `saved` is not a state of this topology, before `load_state_dict` loads it."""
        check(saved, like_dict(self.state_dict(), _extra_state=Anything()), place)
        own, inner = self.get_extra_state(), f"{place}._extra_state"
        extra: StateDict = saved["_extra_state"]  # type: ignore[index]
        packed = {key: Values(torch.uint8, (-(-layer.mask.numel() // 8),)) for key, layer in self._named()}
        varying: dict[str, Schema] = {
            "done": {name: Whole(0, self.events) for name in self.networks},
            "activity": {name: Named(Values(torch.float32, (None,), 0.0), r"[\w.]+") for name in self.watches},
            "sources": {name: Named((Text(), Whole(1)), r"[\w.]+") for name in self.watches},
            "snapshots": Many((Whole(), packed), SNAPSHOTS + 1),
        }
        check(extra, like_dict(own, **varying), inner)
        check_torch_random(extra["generator"], f"{inner}.generator")
        for name, sources in extra["sources"].items():
            known, active = hidden_units.layers(self.networks[name]), extra["activity"][name]
            if self.uses_activity and active.keys() != sources.keys():
                raise StateError(f"{inner}.activity.{name} is not that of {', '.join(sources)}")
            for reader, (source, units) in sources.items():
                traced = reader in known and source in known and incoming(self.networks[name], source, units)
                if not traced or (self.uses_activity and len(active[reader]) != units):
                    raise StateError(f"{inner}.sources.{name} has {reader!r}, which does not read {units} units")
        steps = [step for step, _ in extra["snapshots"]]
        if not steps or steps != sorted(steps) or steps[-1] > extra["step"]:
            raise StateError(f"{inner}.snapshots are not in the order of their steps")

    def set_extra_state(self, saved: StateDict) -> None:
        """For `load_state_dict`, which loads the masks first."""
        for name in self._COUNTERS:
            setattr(self, name, copy.copy(saved[name]))
        self.generator.set_state(saved["generator"].cpu())
        for _, layer in self._named():
            layer.keep.copy_(layer.mask)
            layer.active = int(layer.mask.sum())
        for name, watch in self.watches.items():
            for slots, recorded in zip(self.gradients[name], saved["gradients"][name], strict=True):
                for slot, gradient in zip(slots, recorded, strict=True):
                    slot.copy_(gradient)
            device = next(self.networks[name].parameters()).device
            self.activity[name] = {reader: part.to(device) for reader, part in saved["activity"][name].items()}
            watch.inputs.clear()
            watch.sources = {reader: tuple(source) for reader, source in saved["sources"][name].items()}
            if self.updates[name]:
                watch.traced()
                if not self.uses_activity:
                    watch.remove()
        self.snapshots = [(step, dict(packed)) for step, packed in saved["snapshots"]]


class Choice(NamedTuple):
    """The options that a network may have of its own."""

    expand: bool = True  # else it is dense
    static: bool = False  # whether its masks never change
    sparsity: float | None = None  # None: that of all networks


def _choice(config: PaperExpansionConfig, network: str) -> Choice:
    if network == "actor":
        return Choice(config.expand_actor, config.static_actor, config.actor_sparsity)
    if network == "critic":
        return Choice(config.expand_critic, config.static_critic, config.critic_sparsity)
    return Choice()


class STL_Scheduler:  # noqa: N801
    """A network's topology with the name and arguments of the published class.

    Call the object once per training step, after `loss.backward()`, and step the optimiser if it returns true. It
    always does; the published class skips the step at an event:

        scheduler = STL_Scheduler(model, optimizer, sparsity=0.25, T_end=100_000)
        loss.backward()
        if scheduler():
            optimizer.step()

    Args:
        model, optimizer: the network and its optimiser.
        sparsity: share of the weights absent at the end; at the start it is `initial_stl_sparsity`.
        T_end: calls until the last event.
        static_topo: keep the masks, at `sparsity` from the start.
        zeta: share of the planned growth that one event adds.
        delta: calls between events; if it exceeds T_end, no event happens.
        init_method: "zero" or "lecun", for new weights.
        grad_accumulation_n: gradients whose mean chooses the weights that grow.
        random_grow: grow weights at random instead.
        use_simple_metric: prune the smallest weights; else those of dormant units. Differs from the published class,
            which prunes the smallest in both cases.
        seed: not in the published class.
        options: further fields of `config.PaperExpansionConfig`; the defaults are those of the preset "reference".
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        sparsity: float,
        T_end: float,
        static_topo: bool = False,
        zeta: float = 0.0008,
        delta: int = 10000,
        init_method: str = "zero",
        *,
        initial_stl_sparsity: float = 0.8,
        grad_accumulation_n: int = 1,
        random_grow: bool = False,
        use_simple_metric: bool = True,
        seed: int = 0,
        **options: Any,
    ) -> None:
        if not 1 <= T_end < math.inf:
            raise ConfigError(f"T_end must be a number of calls, at least 1, got {T_end}")
        calls, delta = int(T_end), int(delta)
        known = [field.name for field in dataclasses.fields(PaperExpansionConfig)]
        for name in options:
            if name not in known:
                raise ConfigError(f"STL_Scheduler has no argument {name!r}{nearest(name, known)}")
        values = {"sparsity": sparsity, "grow_fraction": zeta, "update_interval": delta, "new_weights": init_method}
        values["initial_sparsity"] = None if static_topo else max(initial_stl_sparsity, sparsity)
        values |= {"prune": "magnitude" if use_simple_metric else "dormant", "grad_accumulation_n": grad_accumulation_n}
        values["grow"] = "random" if random_grow else "accumulated" if grad_accumulation_n > 1 else "gradient"
        if static_topo:
            values |= {"grow": "none", "prune": "none"}
        config = choices("expansion")["reference"].build(**{**values, **options})
        self.topology = Topology(config, {"model": model}, {}, {"model": optimizer}, seed, max(calls, delta))
        self.topology.events = calls // delta
        self.calls = 0

    def __call__(self) -> bool:
        """Grow and prune if an event is due, then mask the gradient. Returns: whether to step the optimiser."""
        self.topology.after_step("model")
        self.topology.advance(self.calls)
        self.topology.before_step("model")
        self.calls += 1
        return True

    def state_dict(self) -> StateDict:
        return {"calls": self.calls, "topology": self.topology.state_dict()}

    def load_state_dict(self, saved: StateDict) -> None:
        self.calls = saved["calls"]
        self.topology.load_state_dict(saved["topology"])
