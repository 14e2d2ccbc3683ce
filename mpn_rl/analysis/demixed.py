"""The variance of the state that belongs to time, to the stimulus and to the choice.

Trials with equal stimulus and choice form a cell. The mean of each cell is the sum of marginal parts:

    x(t, s, c) = mean + time(t) + stimulus(t, s) + choice(t, c) + interaction(t, s, c)

Each part is the average over the variables that it does not depend on, minus the parts before it. The squares of the
parts, summed over time, cells and features, add up to the variance of the cell means.

Source: Kobak et al. 2016 (eLife 5:e10989), the marginalisation of demixed PCA. Differs from Kobak et al.: the axis of a
part is its first principal component, not the decoder of a reduced-rank regression.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from mpn_rl.analysis.confidence_intervals import MissingDataError
from mpn_rl.analysis.trials import known, take

LEAST = 2  # smallest number of trials of a cell at every step


class Demixed(NamedTuple):
    """The parts of the variance, and the trial means along the axis of each part.

    shares: {part: share of the variance of the cell means}, with sum 1. chance: their 95 % quantiles under shuffling.
    within: share of the variance of single trials that lies within cells.
    axes {part: (F,)}: first principal component of each part, of length 1. courses {part: (cells, T)}: the cell means
    along it, minus their overall mean; nan at steps that are left out.
    cells: one (label, ...) per cell. n (cells,): number of trials. factors: names of the labels.
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
    """The marginal parts of cell means (s, T, F) or (s, c, T, F); each part broadcasts to their shape."""
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
    """Means over the trials of each cell, (cells, T, F), and their numbers of trials, (cells, T)."""
    member = (cell == np.arange(cells)[:, None]).astype(float)  # (cells, n)
    count = member @ there
    return np.tensordot(member, x, axes=1) / np.maximum(count, 1)[..., None], count


def _shares(parts: dict[str, np.ndarray], shape: tuple[int, ...]) -> dict[str, float]:
    """Sum of squares of each part over the total; a part counts once per cell and step to which it broadcasts."""
    size = np.prod(shape)
    squares = {name: float((part**2).sum() * (size / part.size)) for name, part in parts.items()}
    total = sum(squares.values())
    return {name: value / total if total > 0 else 0.0 for name, value in squares.items()}


def demixed(
    values: np.ndarray, rows: np.ndarray, factors: Mapping[str, np.ndarray], shuffles: int = 50, seed: int = 0
) -> Demixed:
    """Split the variance of the trial means by time and one or two factors.

    Args:
        values: the state of every step, (N, F). For M, use its principal components (`fit_pca(...).projected`): they
            cost little and change the shares by at most the variance that they leave out.
        rows: `trials.Aligned.rows`, (n, T); steps that a cell has in fewer than two trials are left out.
        factors: one or two, {"stimulus": labels (n,), "choice": labels (n,)}; nan and "" leave a trial out.
        shuffles: number of permutations of trials over cells.
        seed: of the permutations.

    Raises: MissingDataError where a combination of labels has too few trials. Then the factors cannot be separated:
        for example, an agent without errors has no trial with one stimulus and the other choice. Use one factor.
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
        raise MissingDataError(f"too few trials ({n.min()}) have {worst} to separate the parts of {both}")
    x, there = np.nan_to_num(take(values, rows)).astype(float), (rows >= 0).astype(float)
    means, count = _cell_means(x, there, cell, len(cells))
    enough = count.min(axis=0) >= LEAST
    if not enough.any():
        raise MissingDataError("no step is common to trials of all conditions")
    x, there, means = x[:, enough], there[:, enough], means[:, enough]
    shape = (*sizes, *means.shape[1:])
    parts = _parts(means.reshape(shape), names)
    rng = np.random.default_rng(seed)
    shuffled = [
        _shares(_parts(_cell_means(x, there, rng.permutation(cell), len(cells))[0].reshape(shape), names), shape)
        for _ in range(shuffles)
    ]
    axes = {name: np.linalg.svd(part.reshape(-1, shape[-1]), full_matrices=False)[2][0] for name, part in parts.items()}
    middle = means.mean(axis=(0, 1))
    weight = there[..., None]
    total = (((x - x.sum(axis=(0, 1)) / there.sum()) ** 2) * weight).sum()
    courses = {name: np.full((len(cells), len(enough)), np.nan) for name in parts}
    for name, axis in axes.items():
        courses[name][:, enough] = (means - middle) @ axis
    return Demixed(
        _shares(parts, shape),
        {name: float(np.quantile([share[name] for share in shuffled], 0.95)) for name in parts} if shuffles else {},
        float((((x - means[cell]) ** 2) * weight).sum() / total) if total > 0 else 0.0,
        axes,
        courses,
        cells,
        n,
        names,
    )
