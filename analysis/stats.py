"""What tables and figures show of several seeds: means with their intervals, and rank correlations."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
from scipy import stats


def t_test(values: Any) -> tuple[Any, Any, Any]:
    """Over the last axis of `values`, NaN left out: the mean, half the width of its 95 % t-interval, and p against 0.

    p is two-sided. A single value has no spread: its half-width and p are NaN.

    >>> [round(float(x), 3) for x in t_test([1.0, 2.0, 3.0])]
    [2.0, 2.484, 0.074]
    """
    with warnings.catch_warnings(action="ignore", category=RuntimeWarning):  # single values have no spread
        test = stats.ttest_1samp(values, 0, axis=-1, nan_policy="omit")
        low, high = test.confidence_interval()
        return np.nanmean(values, axis=-1), (high - low) / 2, test.pvalue


def t_interval(values: Any) -> tuple[Any, Any]:
    """The mean over the last axis, and half the width of its 95 % t-interval: see t_test."""
    return t_test(values)[:2]


def signed_interval(interval: tuple[float, float], digits: int = 3) -> str:
    """A difference and the half-width of its interval as tables show them; a single value has no interval.

    >>> signed_interval((0.1, 0.25)), signed_interval((0.1, math.nan))
    ('+0.100 [-0.150, +0.350]', '+0.100')
    """
    mean, half = interval
    ends = "" if math.isnan(half) else f" [{mean - half:+.{digits}f}, {mean + half:+.{digits}f}]"
    return f"{mean:+.{digits}f}{ends}"


def spearman(a: Any, b: Any) -> float:
    """Spearman's rank correlation of two sequences. NaN if one side is all the same, or empty.

    >>> round(spearman([1, 2, 3, 4], [9, 7, 7, 1]), 4), spearman([1, 2], [5, 5])
    (-0.9487, nan)
    """
    if not len(a) or np.ptp(a) == 0 or np.ptp(b) == 0:
        return math.nan
    return float(stats.spearmanr(a, b).statistic)


def markdown(heads: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    """A table in Markdown."""
    heads = list(heads)
    rule = "| --- " * len(heads) + "|"
    return "\n".join([f"| {' | '.join(heads)} |", rule, *(f"| {' | '.join(line)} |" for line in lines)])
