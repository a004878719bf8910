"""Over many groups: cosines of right-wrong pairs against their score gap (C7), and how much cancels (Eq. 5).

Every number is a ConflictPoint: a mean with its 95 % bootstrap interval. The bootstrap draws groups (or batches), not
pairs, because the pairs of one group are not independent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.gradients import (
    MASKED,
    MASKS,
    NONE,
    ROLLOUTS,
    Group,
    Measured,
    chance_mask,
    cosines,
    length,
    net_share,
    sides_cosine,
)
from analysis.stats import spearman

DRAWS = 1000  # of the bootstrap
FEWEST = 5  # groups behind a mean cosine or a correlation: with fewer, the bootstrap's interval is far too narrow
GAINS = ("Eq. 8-9 minus none", "Eq. 8-9 minus random")  # differences within the same groups
GAP_BINS = (-9.5, -3, -0.25, 0.25, 3, 4.5, 6, 7.5, 9.5)  # delta = 3 is an edge, and equal scores are a bin
TEXT_BINS = (0.0, 0.001, 0.2, 0.4, 0.6, 0.8, 1.0)


@dataclass(frozen=True)
class ConflictPoint:
    """A row of conflict.csv."""

    panel: str  # gap, text: binned cosines; spearman; net: net share, gain: its change; sides: v+, v-; share; norm
    model: str
    setup: str  # ROLLOUTS or MIXED; for batches with ", batch" at its end
    level: str  # "all", or one
    name: str  # the mask, or what the cosine is correlated with
    x: float | None  # mean of x in the bin; empty: not binned
    mean: float
    low: float  # 95 % interval, bootstrap over groups (or batches)
    high: float
    n: int  # groups (or batches) that it is the mean of


def pairs(group: Group) -> np.ndarray:
    """For every positive j and negative k: S_j - S_k, the share of text in common, and the cosine of g_j and g_k."""
    j, k = (x.flatten() for x in np.meshgrid((group.A > 0).nonzero()[0], (group.A < 0).nonzero()[0], indexing="ij"))
    return np.stack([group.S[j] - group.S[k], group.shared[j, k], cosines(group.gram)[j, k]], axis=1)  # (pairs, 3)


def bootstrap(
    statistic: Callable[[np.ndarray], Any], n: int, rng: np.random.Generator, draws: int = DRAWS
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A statistic (k,) of n things, given by their indices (n,), and the ends of its 95 % percentile interval."""
    drawn = np.array([statistic(index) for index in rng.integers(n, size=(draws, n))], dtype=float)  # (draws, k)
    some = ~np.isnan(drawn).all(axis=0)  # numpy warns about percentiles of nothing
    ends = np.full((2, drawn.shape[1]), np.nan)
    ends[:, some] = np.nanpercentile(drawn[:, some], [2.5, 97.5], axis=0)
    return np.array(statistic(np.arange(n)), dtype=float), *ends


def binned(x: np.ndarray, y: np.ndarray, edges: tuple[float, ...]) -> list[float]:
    """The mean of y in each bin of x, edges[i] <= x < edges[i + 1], the last bin closed; NaN if a bin is empty."""
    place = np.clip(np.searchsorted(edges, x, side="right") - 1, 0, len(edges) - 2)
    count, total = (np.bincount(place, weights=w, minlength=len(edges) - 1) for w in (None, y))
    with np.errstate(invalid="ignore"):
        return (total / count).tolist()


def pair_points(model: str, level: str, groups: list[Group], rng: np.random.Generator) -> list[ConflictPoint]:
    """C7: the cosine of right-wrong pairs against their score gap, and against the text that they share."""
    parts = [pairs(group) for group in groups]
    within = np.array([spearman(part[:, 0], part[:, 2]) for part in parts])

    def correlations(index: np.ndarray) -> list[float]:
        gap, text, cosine = np.concatenate([parts[i] for i in index]).T
        inside = within[index][~np.isnan(within[index])]
        return [spearman(gap, cosine), inside.mean() if len(inside) else np.nan, spearman(text, cosine)]

    def bins(index: np.ndarray) -> list[float]:
        gap, text, cosine = np.concatenate([parts[i] for i in index]).T
        return binned(gap, cosine, GAP_BINS) + binned(text, cosine, TEXT_BINS)

    gap, text, _ = np.concatenate(parts).T
    x = binned(gap, gap, GAP_BINS) + binned(text, text, TEXT_BINS)
    rows = [("spearman", name, None) for name in ("score gap", "score gap within groups", "shared text")]
    found = list(zip(*bootstrap(correlations, len(parts), rng), strict=True))
    groups_in = [len(parts), int((~np.isnan(within)).sum()), len(parts)]
    if level == "all":
        panels = ["gap"] * (len(GAP_BINS) - 1) + ["text"] * (len(TEXT_BINS) - 1)
        rows += [(panel, "cosine", at) for panel, at in zip(panels, x, strict=True)]
        found += zip(*bootstrap(bins, len(parts), rng), strict=True)
        filled = [binned(p[:, 0], p[:, 0], GAP_BINS) + binned(p[:, 1], p[:, 1], TEXT_BINS) for p in parts]
        groups_in += (~np.isnan(filled)).sum(axis=0).tolist()
    points = [
        ConflictPoint(panel, model, ROLLOUTS, level, name, at, *values, n)
        for (panel, name, at), values, n in zip(rows, found, groups_in, strict=True)
    ]
    return [point for point in points if point.n >= FEWEST and not np.isnan(point.mean)]


def net_points(
    model: str, setup: str, level: str, groups: list[Group], rng: np.random.Generator
) -> list[ConflictPoint]:
    """The net share of groups under each mask, over all and where both sides are kept; and what the mask leaves."""
    figures = []
    for group in groups:
        every, keep = np.ones_like(group.keep), group.keep
        chance = [net_share(group.gram, group.A, chance_mask(group.A, keep)) for _ in range(10)]
        before, after = (net_share(group.gram, group.A, mask) for mask in (every, keep))
        both = (keep & (group.A > 0)).any() and (keep & (group.A < 0)).any()
        sides = [before, np.mean(chance), after] if both else [np.nan] * 3
        norm = length(group.gram, group.A * keep) / (length(group.gram, group.A) or np.nan)
        gain = [after - before, after - np.mean(chance)]
        angles = [sides_cosine(group.gram, group.A, mask) for mask in (every, keep)]
        figures.append([before, np.mean(chance), after, *gain, *sides, *angles, both, not keep.any(), norm])
    values = np.array(figures, dtype=float)  # (groups, 13)

    def means(index: np.ndarray) -> np.ndarray:
        there = ~np.isnan(values[index])
        with np.errstate(invalid="ignore"):
            return np.where(there, values[index], 0).sum(axis=0) / there.sum(axis=0)

    rows = [("net", mask) for mask in MASKS] + [("gain", name) for name in GAINS]
    rows += [("net", f"{mask}, both sides kept") for mask in MASKS]
    rows += [("sides", NONE), ("sides", MASKED), ("share", "both sides kept"), ("share", "nothing kept")]
    rows += [("norm", "|v| after / before")]
    counts = (~np.isnan(values)).sum(axis=0)
    found = zip(*bootstrap(means, len(groups), rng), counts.tolist(), strict=True)
    points = [ConflictPoint(p, model, setup, level, name, None, *v) for (p, name), v in zip(rows, found, strict=True)]
    return [point for point in points if not np.isnan(point.mean)]


def batch_points(model: str, setup: str, batches: list[list[float]], rng: np.random.Generator) -> list[ConflictPoint]:
    values = np.array(batches).reshape(-1, len(MASKS))  # (batches, 3)
    values = values[~np.isnan(values).any(axis=1)]
    if not len(values):
        return []
    values = np.column_stack([values, values[:, 2] - values[:, 0], values[:, 2] - values[:, 1]])  # (batches, 5)
    found = zip(*bootstrap(lambda index: values[index].mean(axis=0), len(values), rng), strict=True)
    rows = [("net", mask) for mask in MASKS] + [("gain", name) for name in GAINS]
    return [
        ConflictPoint(panel, model, f"{setup}, batch", "all", name, None, *v, len(values))
        for (panel, name), v in zip(rows, found, strict=True)
    ]


def summarise(model: str, measured: Measured, rng: np.random.Generator) -> list[ConflictPoint]:
    """All points of one policy."""
    points = []
    for setup, groups in measured.groups.items():
        levels = sorted({group.level for group in groups})
        for level in ["all"] * bool(groups) + levels * (len(levels) > 1):
            some = [group for group in groups if level in ("all", group.level)]
            points += pair_points(model, level, some, rng) if setup == ROLLOUTS else []
            points += net_points(model, setup, level, some, rng)
        points += batch_points(model, setup, measured.batches[setup], rng)
    return points
