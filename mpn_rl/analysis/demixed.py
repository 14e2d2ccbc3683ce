"""The variance of the state that belongs to time, to the stimulus and to the choice.

Trials with equal stimulus and choice form a cell. The mean of each cell is the sum of marginal parts:

    x(t, s, c) = mean + time(t) + stimulus(t, s) + choice(t, c) + interaction(t, s, c)

Each part is the average over the variables that it does not depend on, minus the parts before it. The squares of the
parts, summed over time, cells and features, add up to the variance of the cell means. Noise adds to every part: with
K cells of n_k trials, whose variance within the cell is v_k, a part of d degrees of freedom has on average

    d / K sum_k v_k / n_k          d = 1 (time), S - 1, C - 1, (S - 1) (C - 1)

too much. This is subtracted from each part, and is the share called noise.

Source: Kobak et al. 2016 (eLife 5:e10989), the marginalisation of demixed PCA. Differs from Kobak et al.: the axis of a
part is its first principal component, not the decoder of a reduced-rank regression; the subtraction of noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from mpn_rl.analysis.confidence_intervals import MissingDataError
from mpn_rl.analysis.trials import balanced_trials, known, take

LEAST = 2  # smallest number of trials of a cell at every step
LARGEST_BATCH = 2_000_000  # values in a batch of permutations, which limits the memory


class Demixed(NamedTuple):
    """The parts of the variance, and the trial means along the axis of each part.

    shares: {part: share of the variance of the cell means without noise}, and the share of "noise"; their sum is 1.
        They are unbiased, so a part without effect may be slightly below 0.
    chance: {part: 95 % quantile of its share where it has no effect}, for the factors and their interaction.
    within: share of the variance of single trials that lies within cells.
    axes {part: (F,)}: first principal component of each part, of length 1. courses {part: (cells, T)}: the cell means
    of each half of the trials along the axis of the other half, minus their overall mean; nan at steps that are left
    out.
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


def _parts(means: np.ndarray, factors: int) -> list[np.ndarray]:
    """Time, the factors, and for two factors their interaction: the marginal parts of cell means (..., s, [c,] T, F).

    Each part broadcasts to the shape of the means.
    """
    cell_axes = tuple(range(-2 - factors, -2))
    centred = means - means.mean(axis=(*cell_axes, -2), keepdims=True)
    time = centred.mean(axis=cell_axes, keepdims=True)
    rest = centred - time
    own = [rest.mean(axis=tuple(a for a in cell_axes if a != axis), keepdims=True) for axis in cell_axes]
    return [time, *own, *([rest - own[0] - own[1]] if factors == 2 else [])]


class _Trials:
    """Trials of one design: their values x (n, T, F), which steps exist, there (n, T), and the sizes of the factors."""

    def __init__(self, x: np.ndarray, there: np.ndarray, sizes: tuple[int, ...]) -> None:
        self.x, self.there, self.sizes = x * there[..., None], there, sizes

    def about_own_mean(self) -> _Trials:
        """The values minus the mean of their trial over time."""
        middle = self.x.sum(axis=1) / np.maximum(self.there.sum(axis=1), 1)[:, None]
        return _Trials(self.x - middle[:, None], self.there, self.sizes)

    def members(self, cell: np.ndarray) -> np.ndarray:
        """Whether each trial is in each cell, (..., n) -> (..., cells, n)."""
        return (cell[..., None, :] == np.arange(np.prod(self.sizes))[:, None]).astype(float)

    def means(self, members: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Means of each cell, (..., cells, T, F), and numbers of trials, (..., cells, T)."""
        count = members @ self.there
        total = (members @ self.x.reshape(len(self.x), -1)).reshape(*count.shape, -1)
        return total / np.maximum(count, 1)[..., None], count

    def noise(self, members: np.ndarray) -> np.ndarray:
        """The mean over cells of v_k / n_k, summed over steps and features, (...)."""
        means, count = self.means(members)
        within = members @ (self.x**2).sum(axis=-1) - count * (means**2).sum(axis=-1)
        per_cell = (within.clip(min=0) / np.maximum(count - 1, 1) / np.maximum(count, 1)).sum(axis=-1)
        return per_cell.mean(axis=-1)

    def squares(self, cell: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The sum of squares of each part over cells, steps and features, and what noise adds to those after time.

        Args: cell: of each trial, (..., n).

        Returns: (parts, ...) and (parts - 1, ...).
        """
        members = self.members(cell)
        flat = self.means(members)[0]
        means = flat.reshape(*cell.shape[:-1], *self.sizes, *flat.shape[-2:])
        axes = tuple(range(cell.ndim - 1, means.ndim))
        size = np.prod([means.shape[axis] for axis in axes])
        parts = _parts(means, len(self.sizes))
        total = [(part**2).sum(axis=axes) * size / np.prod([part.shape[axis] for axis in axes]) for part in parts]
        freedom = np.array([size - 1 for size in self.sizes])
        freedom = np.append(freedom, freedom.prod()) if len(freedom) == 2 else freedom
        return np.array(total), np.multiply.outer(freedom, self.noise(members))


def demixed(
    values: np.ndarray,
    rows: np.ndarray,
    factors: Mapping[str, np.ndarray],
    shuffles: int = 200,
    seed: int = 0,
    strata: np.ndarray | None = None,
) -> Demixed:
    """Split the variance of the trial means by time and one or two factors.

    The chance level of a factor comes from permutations of its labels among trials with the same other label (and
    stratum). That of the interaction comes from permutations of what the sum of the other parts leaves over. Time has
    none.

    Args:
        values: the state of every step, (N, F). For M, use its principal components (`fit_pca(...).projected`): they
            cost little and change the shares by at most the variance that they leave out.
        rows: `trials.Aligned.rows`, (n, T); steps that a cell has in fewer than two trials are left out.
        factors: one or two, {"stimulus": labels (n,), "choice": labels (n,)}; nan and "" leave a trial out.
        shuffles: number of permutations for each part.
        seed: of the permutations, the halves of the trials and the matching.
        strata: the groups in which the cells are matched, (n,): of each, the same number of trials from every cell is
            used. Errors are rare where the evidence is strong: without matching by evidence, its effect would count
            as one of choice and interaction. None: no matching.

    Raises: MissingDataError where a combination of labels has too few trials. Then the factors cannot be separated:
        for example, an agent without errors has no trial with one stimulus and the other choice. Use one factor.
    """
    if not 1 <= len(factors) <= 2:
        raise ValueError(f"demixed takes one or two factors, got {len(factors)}")
    labelled = np.all([known(np.asarray(labels)) for labels in factors.values()], axis=0)
    if strata is not None:
        labelled &= known(strata)
    names = tuple(factors)
    kinds, codes = zip(
        *(np.unique(np.asarray(f)[labelled], return_inverse=True) for f in factors.values()), strict=True
    )
    sizes = tuple(map(len, kinds))
    if min(sizes) < 2:
        raise MissingDataError(f"the {names[int(np.argmin(sizes))]} is the same in all trials")
    rows, cell = rows[labelled], np.ravel_multi_index(codes, sizes)
    cells = [tuple(k[i] for k, i in zip(kinds, index, strict=True)) for index in np.ndindex(sizes)]
    stratum = np.zeros(len(cell), int)
    if strata is not None:
        stratum = np.unique(strata[labelled], return_inverse=True)[1]
        kept = balanced_trials(cell, len(cells), stratum, seed)
        rows, cell, stratum = rows[kept], cell[kept], stratum[kept]
    n = np.bincount(cell, minlength=len(cells))
    if n.min() < LEAST:
        worst = ", ".join(f"{name} {label}" for name, label in zip(names, cells[int(n.argmin())], strict=True))
        matched = "" if strata is None else " at equal evidence"
        raise MissingDataError(
            f"too few trials ({n.min()}){matched} have {worst} to separate the parts of {' and '.join(names)}"
        )
    x, there = np.nan_to_num(take(values, rows)).astype(float), (rows >= 0).astype(float)
    enough = np.array([there[cell == own].sum(axis=0) for own in range(len(cells))]).min(axis=0) >= LEAST
    if not enough.any():
        raise MissingDataError("no step is common to trials of all conditions")
    data = _Trials(x[:, enough], there[:, enough], sizes)
    part_names = ["time", *names, *([" x ".join(names)] if len(names) == 2 else [])]
    squares, noise = data.squares(cell)
    noise = np.append(data.about_own_mean().noise(data.members(cell)), noise)  # time excludes the mean over time
    total = float(squares.sum())
    shares = dict(zip(part_names, ((squares - noise) / (total or 1.0)).tolist(), strict=True))
    rng = np.random.default_rng(seed)
    shuffled = {} if not total else _shuffled(data, cell, stratum, shuffles, rng)
    flat = data.means(data.members(cell))[0]
    means = flat.reshape(*sizes, *flat.shape[-2:])
    spread = data.x - data.there[..., None] * data.x.sum(axis=(0, 1)) / data.there.sum()
    within = ((data.x - data.there[..., None] * flat[cell]) ** 2).sum()
    axes = dict(zip(part_names, map(_axis, _parts(means, len(names))), strict=True))
    courses = {name: np.full((len(cells), len(enough)), np.nan) for name in part_names}
    for name, course in zip(part_names, _courses(data, cell, list(axes.values()), rng), strict=True):
        courses[name][:, enough] = course
    return Demixed(
        shares | {"noise": float(noise.sum()) / (total or 1.0)},
        {
            part_names[i]: float(np.quantile(ratio, 0.95, method="higher") * noise[i]) / total
            for i, ratio in shuffled.items()
        },
        float(within / (spread**2).sum()) if (spread**2).sum() > 0 else 0.0,
        axes,
        courses,
        cells,
        n,
        names,
    )


def _shuffled(
    data: _Trials, cell: np.ndarray, stratum: np.ndarray, shuffles: int, rng: np.random.Generator
) -> dict[int, np.ndarray]:
    """Squares of each part without noise, over noise, where it has no effect, {place of the part: (shuffles,)}."""
    codes = np.unravel_index(cell, data.sizes)
    factors = len(data.sizes)
    batch = max(1, LARGEST_BATCH // (data.x[0].size * int(np.prod(data.sizes)) + data.x.shape[0]))
    result = {}

    def draw(place: int, trials: _Trials, groups: np.ndarray, code: np.ndarray, rest: np.ndarray) -> None:
        """Permute `code` within groups; `rest` is what each cell's number adds to it."""
        values = []
        for start in range(0, shuffles, batch):
            orders = np.array([_permuted(groups, rng) for _ in range(min(batch, shuffles - start))])
            squares, noise = trials.squares(code[orders] + rest)
            values.append(squares[place] / np.maximum(noise[place - 1], 1e-300) - 1)
        if values:
            result[place] = np.concatenate(values)

    strides = (data.sizes[-1], 1) if factors == 2 else (1,)
    for place in range(factors):
        others = cell - codes[place] * strides[place]
        draw(1 + place, data, others + int(np.prod(data.sizes)) * stratum, codes[place] * strides[place], others)
    if factors == 2:
        flat = data.means(data.members(cell))[0]
        means = flat.reshape(*data.sizes, *flat.shape[-2:])
        additive = (means - _parts(means, 2)[3]).reshape(flat.shape)
        rest = _Trials(data.x - additive[cell], data.there, data.sizes)
        draw(3, rest, stratum, cell, np.zeros(len(cell), int))
    return result


def _permuted(groups: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random permutation of the places (n,) that keeps every place within its group."""
    order = np.empty(len(groups), int)
    order[np.argsort(groups, kind="stable")] = np.lexsort((rng.random(len(groups)), groups))
    return order


def _axis(part: np.ndarray) -> np.ndarray:
    """The first principal component of a part, (F,)."""
    return np.linalg.svd(part.reshape(-1, part.shape[-1]), full_matrices=False)[2][0]


def _courses(data: _Trials, cell: np.ndarray, axes: list[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
    """The cell means of each half of the trials along each part's axis in the other half, (cells, T) per part."""
    half = np.empty(len(cell), int)
    order = np.lexsort((rng.random(len(cell)), cell))
    half[order] = np.arange(len(cell)) - np.searchsorted(cell[order], cell[order])
    (first, n), (second, m) = (data.means(data.members(cell) * (half % 2 == which)) for which in (0, 1))
    result = []
    for place, axis in enumerate(axes):
        courses = []
        for own, other, count in ((first, second, n), (second, first, m)):
            means = other.reshape(*data.sizes, *other.shape[-2:])
            direction = _axis(_parts(means, len(data.sizes))[place])
            course = (own - own.mean(axis=(0, 1))) @ direction * (1.0 if direction @ axis >= 0 else -1.0)
            courses.append(np.where(count > 0, course, np.nan))
        both = np.stack(courses)
        seen = ~np.isnan(both)
        result.append(np.where(seen.any(axis=0), np.nansum(both, axis=0) / np.maximum(seen.sum(axis=0), 1), np.nan))
    return result
