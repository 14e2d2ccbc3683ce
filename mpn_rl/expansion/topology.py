r"""Neuroplastic Expansion: networks that start sparse, grow where the gradient asks for it and prune what is dormant.

Every weight matrix that is not exempt has a boolean mask; where it is false the weight, its optimiser moments and its
counterpart in the target network are zero. A layer of density 1 has no mask and is never touched. Densities of the
layers at overall density d, by their shapes (n_out, n_in):

    ERK      d_l = min(1, c (n_out + n_in) / (n_out n_in))        c such that sum_l d_l N_l = d sum_l N_l
    uniform  d_l = d

Events happen at e_k = start + k interval, k = 1..K, in environment steps, for each network with its own gradient.
Layer l is to have, after event k, with the schedule g,

    n_l(k) = n_l(0) + g(k) (n_l(K) - n_l(0))        linear  g = k / K        cosine  g = k / K + sin(pi k / K) / pi

so that it ends at its density exactly. With a rate zeta (`grow_fraction`) instead, the room shrinks by
zeta (1 - omega) at an event (constant), or cosine-annealed, zeta (1 - omega) (1 + cos(pi k / K)) / 2, until it is used
up. An event prunes first, at most p weights, then grows what is missing, among all that are absent then:

    while growing   p = omega / (1 - omega) (n_l(k) - n_l(k-1)), so at most omega per grown weight
    afterwards      p = drop (1 + cos(pi k' / K)) / 2 of the layer's weights, the k'th event since growth ended (RigL)

It prunes the smallest |w|, or weights from or onto dormant units, drawn at random. It grows those with the largest
|dL/dw|, the gradient being that of the network's last update (or the mean of its last n), or at random. New weights are
0 or drawn from N(0, 1 / n_in). A unit whose weights, in and out, are all 0 may never get a gradient: it is given one
connection in, and its weights in are drawn from N(0, 1 / n_in), which changes nothing downstream.

With `recycle`, dormant units have their weights in drawn anew, weights out, bias and moments set to 0 (ReDo).

Sources: Liu et al. 2024 (arXiv 2410.07994); Evci et al. 2020 (RigL); Mocanu et al. 2018 (ER); Sokar et al. 2023 (ReDo).
Differs from Liu et al.: the density follows its schedule exactly, and pruning decides how many weights are grown on
top, where they grow a number and prune up to a share of it.

The preset `reference` does what the public code does: masks keep the largest initial weights; ERK, no layer exempt;
every 100 steps growth by gradient, of 0.008 of the room, and 0.4 pruned per grown weight, by magnitude; new weights 0;
once grown, RigL with a drop of 0.2. Errors of that code that are not repeated: dormant units are never pruned; six
flags do nothing; the actor's clock runs at half speed; events set Adam's step counter to 0 and keep its moments; the
actor's loss adds to the gradients by which the critics grow; the room is taken to be the same for every layer, and is
negative for dense ones; an event replaces the optimiser's step; zero-valued weights are taken for absent ones; sparsity
0 never learns; a static network stays at the initial sparsity whatever its own is; the targets start out dense.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mpn_rl.config import PaperExpansionConfig, choices
from mpn_rl.expansion.hidden_units import Group, Watch, chosen, columns_of, dormancy, isolated_rows, rows_of, synapses
from mpn_rl.expansion.masks import Layer, check_fits, growth, largest, masked_layers, pruned, turnover
from mpn_rl.options import ConfigError

SNAPSHOTS = 8  # of the masks in a run, besides the first


class Topology(nn.Module):
    """The masks of a learner's networks and what changes them; equations at the top of this module.

    Call `before_step(name)` between a network's backward pass and its optimiser's step, `after_step(name)` after that,
    and `advance(step)` once per vector step with the environment steps so far. An event at e_k happens in the last
    call that is not beyond e_k, or, where the network has had no update yet, in the first after one.

    Buffers: the masks, "<network>/<parameter>" with slashes. `state_dict` has all else that a resumed run needs.

    Args:
        config: a kind of ExpansionConfig other than "none".
        networks: the trained networks by name; "actor" and "critic" have options of their own. Masked here and now.
        targets: copies of them, by the same names, that are masked alike.
        optimizers: by the same names.
        seed: of the initial masks and of every draw.
        total_steps: environment steps of the run.
    Raises: ConfigError for options that do not fit the networks or the run.
    """

    def __init__(
        self,
        config: Any,
        networks: Mapping[str, nn.Module],
        targets: Mapping[str, nn.Module],
        optimizers: Mapping[str, torch.optim.Optimizer],
        seed: int,
        total_steps: int | None,
    ) -> None:
        super().__init__()
        self.config: PaperExpansionConfig = config
        self.networks, self.optimizers = dict(networks), dict(optimizers)
        self.generator = torch.Generator().manual_seed(seed)  # on the CPU: the same draws on every device
        check_fits(config, {name: synapses(network) for name, network in networks.items()}, total_steps)
        self.events: int = ((config.expansion_end or total_steps) - config.expansion_start) // config.update_interval
        self.grown_at = next((k for k in range(self.events) if growth(config, k, self.events) == 1.0), self.events)
        self.step = 0
        self.done = dict.fromkeys(networks, 0)  # events behind
        self.updates = dict.fromkeys(networks, 0)
        self.flips = dict.fromkeys(networks, 0)  # mask entries changed since `churn` was last asked for
        self.changed: dict[str, dict[str, Tensor]] = {}  # by the last `advance`: network -> matrix -> entries
        self.sizes: dict[str, int] = {}  # weights that count for the density, those of unmasked layers included
        self.layers = {name: self._mask_layers(name) for name in networks}
        self.copies: dict[str, list[nn.Module]] = {name: [] for name in networks}
        for modules in (networks, targets):  # the network itself comes first
            for name, module in modules.items():
                self.follow(name, module)
        changing = [name for name in networks if self._changes(name)]
        n = config.grad_accumulation_n if config.grow in ("gradient", "accumulated") else 0
        self.gradients = {  # the last n, as a ring
            name: [[torch.zeros_like(layer.weight) for layer in self.layers[name]] for _ in range(n)]
            for name in changing
        }
        self.heeds_activity = config.prune == "dormant" or config.recycle
        self.watches = {name: Watch(self.networks[name]) for name in changing}
        self.activity: dict[str, dict[str, Tensor]] = {name: {} for name in changing}  # by reading layer
        self.snapshots: list[tuple[int, dict[str, Tensor]]] = []
        self._snapshot()

    # --- the start --------------------------------------------------------------------------------------

    def _changes(self, name: str) -> bool:
        """Whether events happen to this network."""
        expanded, static = _choice(self.config, name)
        return expanded and not static and (self.config.grow != "none" or self.config.recycle)

    def _mask_layers(self, name: str) -> list[Layer]:
        """Draw the masks of a network."""
        config, network = self.config, self.networks[name]
        expanded, static = _choice(config, name)
        dense = chosen(network, config.exempt) if expanded else set(synapses(network))
        weights = {key: weight for key, weight in synapses(network).items() if key not in dense}
        self.sizes[name] = sum(weight.numel() for weight in weights.values())
        own = getattr(config, f"{name}_sparsity", None)
        sparsity = config.sparsity if own is None else own
        initial = sparsity if static or config.initial_sparsity is None else config.initial_sparsity
        if expanded and not weights and initial:
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
            owner = module.get_submodule(layer.name.rpartition(".")[0])
            if hasattr(owner, "mask"):  # its state lives on its synapses
                owner.mask = layer.mask

    # --- around an update -------------------------------------------------------------------------------

    @torch.no_grad()
    def before_step(self, name: str) -> None:
        """Note the dense gradient of a network's own loss, which is in `.grad` now, and mask it there."""
        self.updates[name] += 1
        if self.updates[name] == 1 and name in self.watches:
            self.watches[name].traced()
            if not self.heeds_activity:
                self.watches[name].remove()
        places = [i for i, layer in enumerate(self.layers[name]) if layer.weight.grad is not None]
        if not places:
            return
        layers = [self.layers[name][i] for i in places]
        gradients: list[Any] = [layer.weight.grad for layer in layers]
        ring = self.gradients.get(name)
        if ring and self.done[name] < self.events:
            slots = ring[(self.updates[name] - 1) % len(ring)]
            torch._foreach_copy_([slots[i] for i in places], gradients)
        torch._foreach_mul_(gradients, [layer.keep for layer in layers])

    @torch.no_grad()
    def after_step(self, name: str) -> None:
        """Keep what does not exist at zero, whatever the optimiser does. Targets only follow what is zero."""
        if self.layers[name]:
            weights: list[Any] = [layer.weight for layer in self.layers[name]]
            torch._foreach_mul_(weights, [layer.keep for layer in self.layers[name]])

    # --- events -----------------------------------------------------------------------------------------

    @torch.no_grad()
    def advance(self, step: int) -> bool:
        """Let the events happen that are due before the next call; true where one changed a weight.

        The acting state is then to be given to `reset_state`.
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
        self._note_activity(name)
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
        """Put `count` weights where `kept` has none, and make that the layer's mask."""
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
        moved = (mask != layer.mask) | grown  # grown ones may be among those just pruned
        self.flips[name] += int((mask != layer.mask).sum())
        layer.mask.copy_(mask)
        layer.keep.copy_(mask)
        layer.active = int(mask.sum())
        for module in self.copies[name]:
            module.get_parameter(layer.name).masked_fill_(moved, 0.0)
        self._renew(name, layer.name, moved | (fresh & mask), fresh & mask)

    def _scores(self, name: str, index: int) -> Tensor:
        """What absent weights compete by, as the matrix."""
        ring = self.gradients[name]
        if not ring:
            weight = self.layers[name][index].weight
            return torch.rand(weight.shape, generator=self.generator).to(weight.device)
        noted = ring[: min(self.updates[name], len(ring))]
        return torch.stack([gradients[index] for gradients in noted]).mean(0).abs()

    def _renew(self, name: str, key: str, changed: Tensor, fresh: Tensor) -> None:
        """Set weights to 0, or where `fresh` to draws from N(0, 1 / n_in), and their moments to 0."""
        if not changed.any():
            return
        weight = self.networks[name].get_parameter(key)
        drawn = torch.randn(weight.shape, generator=self.generator) if fresh.any() else torch.zeros(weight.shape)
        drawn = drawn.to(weight.device) / math.sqrt(weight.shape[-1])
        weight.copy_(torch.where(fresh, drawn, weight.masked_fill(changed, 0.0)))
        # The optimiser's step counter, one for the whole matrix, stays.
        for moment in self.optimizers[name].state.get(weight, {}).values():
            if isinstance(moment, Tensor) and moment.shape == weight.shape:
                moment.masked_fill_(changed, 0.0)
        earlier = self.changed.setdefault(name, {}).get(key)
        self.changed[name][key] = changed if earlier is None else changed | earlier

    # --- units ------------------------------------------------------------------------------------------

    def _note_activity(self, name: str) -> None:
        """Dormancy scores of the units, from the last forward pass of an update."""
        watch = self.watches[name]
        if not self.heeds_activity:
            return
        self.activity[name] |= {reader: dormancy(x) for reader, x in watch.inputs.items() if reader in watch.sources}
        watch.inputs.clear()

    def _dormant(self, name: str, group: Group) -> Tensor:
        return self.activity[name][group.reader] <= self.config.dormancy_tau

    def _silent(self, name: str, groups: list[Group]) -> dict[str, Tensor]:
        """Of every matrix, the entries from or onto a dormant unit."""
        silent: dict[str, Tensor] = {}
        for group in groups:
            for entries in (rows_of, columns_of):
                for key, part in entries(self.networks[name], group, self._dormant(name, group)).items():
                    silent[key] = part | silent[key] if key in silent else part
        return silent

    def _recycle(self, name: str, groups: list[Group]) -> None:
        """ReDo: dormant units get new weights in, and weights out and a bias of 0, as far as these exist."""
        network = self.networks[name]
        masks = {layer.name: layer.mask for layer in self.layers[name]}
        for group in groups:
            for key, rows in rows_of(network, group, self._dormant(name, group)).items():
                self._renew(name, key, rows, rows & masks[key] if key in masks else rows)
        for group in groups:
            dormant = self._dormant(name, group)
            entries = columns_of(network, group, dormant)
            bias = getattr(network.get_submodule(group.layer), "bias", None)
            if isinstance(bias, Tensor) and len(bias) == group.units:
                entries[f"{group.layer}.bias"] = dormant
            for key, part in entries.items():
                self._renew(name, key, part, torch.zeros_like(part))

    def reset_state(self, network: nn.Module, state: Any) -> Any:
        """The acting state of `network`, with M = 0 at the synapses that the last `advance` changed."""
        name = next((name for name, known in self.networks.items() if known is network), "")
        for place, core in network.named_modules():
            if hasattr(core, "forget"):
                start = f"{place}." if place else ""
                changed = {key.removeprefix(start): part for key, part in self.changed.get(name, {}).items()}
                state = core.forget(state, changed)
        return state

    # --- what it tells ----------------------------------------------------------------------------------

    def densities(self) -> dict[str, float]:
        """Share of the weights that exist, by masked matrix ("<network>/<parameter>") and by network.

        A network's share is over all layers that are not exempt; 1 where there is none.
        """
        told = {}
        for name, layers in self.layers.items():
            absent = sum(layer.weight.numel() - layer.active for layer in layers)
            told[name] = 1.0 - absent / max(self.sizes[name], 1)
        return told | {key: layer.active / layer.weight.numel() for key, layer in self._named()}

    def churn(self) -> dict[str, float]:
        """Mask entries that changed since the last call, as a share of all that count for the density, by network."""
        told = {name: flips / max(self.sizes[name], 1) for name, flips in self.flips.items()}
        self.flips = dict.fromkeys(self.flips, 0)
        return told

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

    def get_extra_state(self) -> dict[str, Any]:
        for name in self.watches:
            self._note_activity(name)
        return {
            **{name: copy.copy(getattr(self, name)) for name in self._COUNTERS},
            "generator": self.generator.get_state(),
            "gradients": self.gradients,
            "activity": self.activity,
            "sources": {name: watch.sources for name, watch in self.watches.items()},
            "snapshots": self.snapshots,
        }

    def set_extra_state(self, saved: dict[str, Any]) -> None:
        """Called by `load_state_dict` once the masks are there."""
        for name in self._COUNTERS:
            setattr(self, name, copy.copy(saved[name]))
        self.generator.set_state(saved["generator"].cpu())
        for _, layer in self._named():
            layer.keep.copy_(layer.mask)
            layer.active = int(layer.mask.sum())
        for name, watch in self.watches.items():
            for slots, noted in zip(self.gradients[name], saved["gradients"][name], strict=True):
                for slot, gradient in zip(slots, noted, strict=True):
                    slot.copy_(gradient)
            device = next(self.networks[name].parameters()).device
            self.activity[name] = {reader: part.to(device) for reader, part in saved["activity"][name].items()}
            watch.inputs.clear()
            watch.sources = {reader: tuple(found) for reader, found in saved["sources"][name].items()}
        self.snapshots = [(step, dict(packed)) for step, packed in saved["snapshots"]]


def _choice(config: PaperExpansionConfig, name: str) -> tuple[bool, bool]:
    """Whether a network is expanded at all, and whether its masks never change."""
    return getattr(config, f"expand_{name}", True), getattr(config, f"static_{name}", False)


class STL_Scheduler:  # noqa: N801
    """A network's topology behind the name and arguments of the published class.

    Call the object once per training step, after `loss.backward()`, and step the optimiser if it says so, which it
    always does (the published one skips the step at an event):

        scheduler = STL_Scheduler(model, optimizer, sparsity=0.25, T_end=100_000)
        loss.backward()
        if scheduler():
            optimizer.step()

    Args:
        sparsity: share of the weights absent at the end; at the start it is `initial_sparsity`.
        T_end: calls until the last event. delta: calls between events; none happens where it exceeds T_end.
        static_topo: keep the masks, at `sparsity` from the start.
        zeta: share of the room to grow that one event takes.
        init_method: "zero" or "lecun", for new weights.
        initial_sparsity, seed, options: further ones, `options` being fields of `config.PaperExpansionConfig`; what
            is not given is as in the preset "reference".
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        sparsity: float,
        T_end: int,
        static_topo: bool = False,
        zeta: float = 0.0008,
        delta: int = 10000,
        init_method: str = "zero",
        *,
        initial_sparsity: float = 0.8,
        seed: int = 0,
        **options: Any,
    ) -> None:
        values = {"sparsity": sparsity, "grow_fraction": zeta, "update_interval": delta, "new_weights": init_method}
        values["initial_sparsity"] = None if static_topo else max(initial_sparsity, sparsity)
        if static_topo:
            values |= {"grow": "none", "prune": "none"}
        config = choices("expansion")["reference"].build(**{**values, **options})
        self.topology = Topology(config, {"model": model}, {}, {"model": optimizer}, seed, max(T_end, delta))
        self.topology.events = T_end // delta
        self.calls = 0

    def __call__(self) -> bool:
        """Mask the gradient; grow and prune first where that is due. Returns: whether to step the optimiser."""
        self.topology.after_step("model")
        self.topology.advance(self.calls)
        self.topology.before_step("model")
        self.calls += 1
        return True

    def state_dict(self) -> dict[str, Any]:
        return {"calls": self.calls, "topology": self.topology.state_dict()}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.calls = saved["calls"]
        self.topology.load_state_dict(saved["topology"])
