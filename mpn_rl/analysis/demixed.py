"""How much of what the population does goes with time, with the stimulus, with the choice.

Trials are averaged in cells of equal stimulus and choice, and the means split into marginal parts that add up to them:

    x(t, s, c) = mean + time(t) + stimulus(t, s) + choice(t, c) + interaction(t, s, c)

each part the average over what it does not name, less the parts before it. Their squares, summed over time, cells and
features, add up to the variance of the cell means.

Source: Kobak et al. 2016 (eLife 5:e10989), the marginalisation of demixed PCA. Differs from it: the axis of a part is
the first principal component of that part, not the decoder of a reduced-rank regression.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from mpn_rl.analysis.confidence_intervals import MissingDataError
from mpn_rl.analysis.trials import known, take

LEAST = 2  # trials that a cell's mean must be over at every step


class Demixed(NamedTuple):
    """The split of the variance, and the trial means along each part's own direction.

    shares: {part: share of the variance of the cell means}, sum 1; chance: their 95 % quantiles for shuffled labels.
    within: the share of single trials' variance that lies within cells, from trial to trial.
    axes {part: (F,)}: each part's first direction, of length 1; courses {part: (cells, T)}: the cell means along it,
    less their overall mean; nan at steps left out.
    cells: one (label, ...) per cell; n (cells,): their trials; factors: what the labels are of.
    """

    shares: dict[str, float]
    chance: dict[str, float]
    within: float
    axes: dict[str, np.ndarray]
    courses: dict[str, np.ndarray]
    cells: list[tuple]
    n: np.ndarray
    factors: tuple[str, ...]


def _parts(means: np.ndarray, factors: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The marginal parts of cell means (s, T, F) or (s, c, T, F), each broadcastable to them."""
    cell_axes = tuple(range(len(factors)))
    centred = means - means.mean(axis=(*cell_axes, -2), keepdims=True)
    parts = {"time": centred.mean(axis=cell_axes, keepdims=True)}
    rest = centred - parts["time"]
    for axis, factor in enumerate(factors):
        parts[factor] = rest.mean(axis=tuple(a for a in cell_axes if a != axis), keepdims=True)
    if len(factors) == 2:
        parts[" x ".join(factors)] = rest - parts[factors[0]] - parts[factors[1]]
    return parts


def _cell_means(x: np.ndarray, there: np.ndarray, cell: np.ndarray, cells: int) -> tuple[np.ndarray, np.ndarray]:
    """Means over the trials of each cell, (cells, T, F), and how many each is over, (cells, T)."""
    member = (cell == np.arange(cells)[:, None]).astype(float)  # (cells, n)
    count = member @ there
    return np.tensordot(member, x, axes=1) / np.maximum(count, 1)[..., None], count


def _shares(parts: dict[str, np.ndarray], shape: tuple[int, ...]) -> dict[str, float]:
    """Squares of each part over their sum; a part counts once for every cell and step that it is broadcast to."""
    size = np.prod(shape)
    squares = {name: float((part**2).sum() * (size / part.size)) for name, part in parts.items()}
    total = sum(squares.values())
    return {name: value / total if total > 0 else 0.0 for name, value in squares.items()}


def demixed(
    values: np.ndarray, rows: np.ndarray, factors: Mapping[str, np.ndarray], shuffles: int = 50, seed: int = 0
) -> Demixed:
    """Split the variance of the trial means by time and one or two factors.

    Args:
        values: the state of every step, (N, F); of M take its principal components (`fit_pca(...).projected`), which
            costs little and changes shares by no more than the variance they leave out.
        rows: `trials.Aligned.rows`, (n, T); steps that a cell has in fewer than two trials are left out.
        factors: one or two, {"stimulus": labels (n,), "choice": labels (n,)}; nan and "" leave a trial out.
    Raises MissingDataError where a combination of labels never occurs: then the factors cannot be told apart (an agent
        without errors, say, has no trial with one stimulus and the other choice); ask for one of them.
    """
    if not 1 <= len(factors) <= 2:
        raise ValueError(f"demixed takes one or two factors, got {len(factors)}")
    labelled = np.all([known(np.asarray(labels)) for labels in factors.values()], axis=0)
    rows, names = rows[labelled], tuple(factors)
    kinds, codes = zip(
        *(np.unique(np.asarray(f)[labelled], return_inverse=True) for f in factors.values()), strict=True
    )
    sizes = tuple(map(len, kinds))
    if min(sizes) < 2:
        raise MissingDataError(f"the {names[int(np.argmin(sizes))]} is the same in all trials")
    cell = np.ravel_multi_index(codes, sizes)
    cells = [tuple(k[i] for k, i in zip(kinds, index, strict=True)) for index in np.ndindex(sizes)]
    n = np.bincount(cell, minlength=len(cells))
    if n.min() < LEAST:
        worst = ", ".join(f"{name} {label}" for name, label in zip(names, cells[int(n.argmin())], strict=True))
        both = " and ".join(names)
        raise MissingDataError(f"too few trials ({n.min()}) have {worst} to tell the parts of {both} apart")
    x, there = np.nan_to_num(take(values, rows)).astype(float), (rows >= 0).astype(float)
    means, count = _cell_means(x, there, cell, len(cells))
    enough = count.min(axis=0) >= LEAST
    if not enough.any():
        raise MissingDataError("no step is common to trials of all conditions")
    x, there, means = x[:, enough], there[:, enough], means[:, enough]
    shape = (*sizes, *means.shape[1:])
    parts = _parts(means.reshape(shape), names)
    rng = np.random.default_rng(seed)
    by_chance = [
        _shares(_parts(_cell_means(x, there, rng.permutation(cell), len(cells))[0].reshape(shape), names), shape)
        for _ in range(shuffles)
    ]
    axes = {name: np.linalg.svd(part.reshape(-1, shape[-1]), full_matrices=False)[2][0] for name, part in parts.items()}
    middle = means.mean(axis=(0, 1))
    courses = {name: np.full((len(cells), len(enough)), np.nan) for name in parts}
    for name, axis in axes.items():
        courses[name][:, enough] = (means - middle) @ axis
    return Demixed(
        _shares(parts, shape),
        {name: float(np.quantile([share[name] for share in by_chance], 0.95)) for name in parts} if shuffles else {},
        _within(x, there, means, cell),
        axes,
        courses,
        cells,
        n,
        names,
    )


def _within(x: np.ndarray, there: np.ndarray, means: np.ndarray, cell: np.ndarray) -> float:
    """Squares about the cells' means over squares about the overall mean, single trials and steps."""
    weight = there[..., None]
    total = (((x - x.sum(axis=(0, 1)) / there.sum()) ** 2) * weight).sum()
    return float((((x - means[cell]) ** 2) * weight).sum() / total) if total > 0 else 0.0
