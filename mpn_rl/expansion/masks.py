"""Densities of layers, schedules of growth, and the choice of the weights to grow and prune.

The equations are in `expansion/topology.py`.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from mpn_rl.config import NEVER, PaperExpansionConfig
from mpn_rl.options import ConfigError, holds, nearest


def erk_densities(shapes: Iterable[tuple[int, ...]], density: float) -> list[float]:
    """Erdos-Renyi densities of layers, scaled to an overall density.

    A layer whose scaled density exceeds 1 is dense, and the scale is computed again for the others.
    """
    shapes = list(shapes)
    sizes = [math.prod(shape) for shape in shapes]
    dense: set[int] = set()
    while True:
        sparse = [i for i in range(len(shapes)) if i not in dense]
        budget = density * sum(sizes) - sum(sizes[i] for i in dense)
        scale = budget / sum(sum(shapes[i]) for i in sparse) if sparse else 0.0
        beyond = {i for i in sparse if scale * sum(shapes[i]) >= sizes[i]}
        if not beyond:
            return [1.0 if i in dense else scale * sum(shapes[i]) / sizes[i] for i in range(len(shapes))]
        dense |= beyond


def growth(config: PaperExpansionConfig, event: int, events: int) -> float:
    """g(k): the share of the planned growth that is done after event k of K."""
    done = event / max(events, 1)
    if config.schedule == "cosine":
        done += math.sin(math.pi * done) / math.pi
    if config.grow_fraction is not None:
        average = 0.5 if config.schedule == "cosine" else 1.0
        done *= average * events * config.grow_fraction * (1.0 - config.prune_ratio)
    return min(1.0, done)


def turnover(config: PaperExpansionConfig, event: int, events: int) -> float:
    """The share of a layer's weights that is replaced at an event, the `event`th after the end of growth."""
    return config.drop_fraction * 0.5 * (1.0 + math.cos(math.pi * event / max(events, 1)))


def largest(scores: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """A mask of the `count` largest scores; ties at the threshold are broken at random."""
    flat = torch.nan_to_num(scores.flatten(), nan=0.0, posinf=math.inf, neginf=-math.inf)
    taken = torch.zeros_like(flat, dtype=torch.bool)
    if count > 0:
        edge = flat.kthvalue(len(flat) - count + 1).values
        taken = flat > edge
        ties = (flat == edge).nonzero().flatten()
        drawn = torch.randperm(len(ties), generator=generator)[: count - int(taken.sum())]
        taken[ties[drawn.to(ties.device)]] = True
    return taken.view_as(scores)


@dataclasses.dataclass
class Layer:
    """A masked weight matrix of a network."""

    name: str
    weight: nn.Parameter
    mask: Tensor  # bool
    keep: Tensor  # the same in the weight's dtype
    start: int  # weights that exist at the start
    goal: int  # at the end
    active: int  # now


def masked_layers(
    config: PaperExpansionConfig,
    weights: Mapping[str, nn.Parameter],
    initial: float,
    final: float,
    generator: torch.Generator,
) -> list[Layer]:
    """Draw the masks of weight matrices, with overall sparsity `initial` now and `final` at the end.

    Matrices that start dense are left out.
    """
    shapes = [tuple(weight.shape) for weight in weights.values()]
    erk = config.layer_density == "erk"
    first, last = (
        erk_densities(shapes, 1.0 - share) if erk else [1.0 - share] * len(shapes) for share in (initial, final)
    )
    layers = []
    for (name, weight), before, after in zip(weights.items(), first, last, strict=True):
        start, goal = round(before * weight.numel()), round(after * weight.numel())
        if start < weight.numel():
            magnitude = config.initial_mask == "magnitude"
            draws = weight.detach().abs().cpu() if magnitude else torch.rand(weight.shape, generator=generator)
            mask = largest(draws, start, generator).to(weight.device)
            keep = mask.to(weight.dtype)
            # In the memory layout of an MPN's M, which is multiplied with the mask at every step.
            layers.append(Layer(name, weight, mask.T.contiguous().T, keep, start, goal, start))
    return layers


def pruned(layer: Layer, how: str, most: int, silent: Tensor | None, generator: torch.Generator) -> Tensor:
    """A mask of the weights to prune, at most `most`: the smallest, or (how = "dormant") random ones among `silent`."""
    if how == "magnitude":
        sizes = torch.where(layer.mask, layer.weight.detach().abs(), math.inf)
        return largest(-sizes, min(most, layer.active), generator)
    if how == "none" or silent is None or most == 0:
        return torch.zeros_like(layer.mask)
    candidates = layer.mask & silent
    draws = torch.rand(candidates.shape, generator=generator).to(candidates.device)
    return largest(draws.masked_fill(~candidates, -math.inf), min(most, int(candidates.sum())), generator)


def check_fits(config: PaperExpansionConfig, synapses: Mapping[str, Iterable[str]], total_steps: int | None) -> int:
    """The number of events. Raises: ConfigError if options do not fit the networks or the length of the run."""
    if total_steps is None:
        raise ConfigError(f"--expansion {config.name} is scheduled in environment steps: give --total-steps")
    start, end = config.expansion_start, config.expansion_end or total_steps
    if end > total_steps:
        raise ConfigError(f"--expansion-end must be at most the run's {total_steps} environment steps, got {end}")
    if start >= end:
        raise ConfigError(f"--expansion-start must lie before the events' end at step {end}, got {start}")
    values = dataclasses.asdict(config)
    unchanging = any(holds(condition, values) for condition in NEVER)
    if config.update_interval > end - start and not unchanging:
        raise ConfigError(
            f"--update-interval must be at most the {end - start} environment steps of the run or of its part from "
            f"--expansion-start to --expansion-end, got {config.update_interval}"
        )
    for name in sorted({"actor", "critic"} - set(synapses)):
        given = {f"static_{name}": False, f"{name}_sparsity": None, f"expand_{name}": True}
        for option, default in given.items():
            if getattr(config, option) != default:
                flag = "--" + option.replace("_", "-")
                raise ConfigError(f"{flag} is for td3, which has one; this learner has {', '.join(synapses)}")
    known = {key for keys in synapses.values() for key in keys}
    for word in filter(None, (word.strip() for word in config.exempt.split(","))):
        if word not in ("first", "last") and not any(fnmatch.fnmatchcase(key, word) for key in known):
            raise ConfigError(f"--exempt names no layer with {word!r}{nearest(word, known)}")
    return (end - start) // config.update_interval
