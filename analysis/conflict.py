"""Do the gradients of a group's responses conflict? The paper's Figure 1, its Eq. 5, and claim C7.

    g_i = grad_theta sum_t w_it log pi(o_it | q, o_i<t)      w = 1 / divisor, dagrpo.divisor_weights
    v+ = sum of A_i g_i over A_i > 0, v- over A_i < 0        v = v+ + v- is the update (Eq. 4, 5; masked: Eq. 10)

g_i is exact: of all trained parameters, without projection or choice of layers. Ratios are 1, as in the first update
after sampling; no clip, KL term or entropy bonus. What we ask about a group follows from the Gram matrix of its g_i:

    groups.png      Figure 1: cosines and directions in an easy group, a mixed one, and a hard one with its anchor
    conflict.png    over many groups: cosine of a right and a wrong response's g against the gap of their scores (C7),
                    and the net share |v+ + v-| / (|v+| + |v-|) before and after the mask. 1: nothing cancels; 0: all;
                    0.71: v+ and v- are orthogonal and equally long

Of a positive j and a negative k the cosine of A_j g_j and A_k g_k is minus that of g_j and g_k, because A_j A_k < 0:
responses whose gradients are alike get pushes that conflict. So C7 says: the smaller the gap, the larger the cosine.

Where we depart from the paper: it shows one prompt, we also measure many. It does not say what spans its plane: here
the first two principal components, not centred (arrows start at the true origin), of unit vectors for g and of the
vectors themselves for A g. A mask leaves fewer terms, and fewer terms cancel less: so beside Eq. 8-9 stands a random
mask that keeps as many positives and as many negatives of each group. "Group" is each group alone, as Eq. 5 is written;
"batch" first sums v+ and v- over the prompts of an update, which is what the optimiser sees.

    python -m analysis.conflict                                       the warm start
    python -m analysis.conflict --model warm_start runs/dr_grpo/checkpoint-25 runs/dr_grpo runs/dagrpo
    python -m analysis.conflict --model DIR --data FILE.parquet --problems 2 --batch-prompts 0 --max-new-tokens 48
    python -m analysis.conflict --from-csv runs/conflict/conflict.csv             redraws both, without a model
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import shlex
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

import anchors as anchoring
import dagrpo
import data
import policy as policies
import rollout
import scoring
import tasks
from analysis.curves import COLOURS, MARKERS, style
from analysis.scorers import spearman
from cli import Parser, fail, progress
from policy import Policy
from rollout import Rollouts
from tasks import Problem

DRAWS = 1000  # of the bootstrap
FEWEST = 5  # groups behind a mean cosine or a correlation: of fewer, the bootstrap's interval is far too narrow
SCORES = ScalarMappable(Normalize(1, 10), "viridis")  # colours of S
ROLLOUTS, MIXED = "rollouts", "with anchor"  # G rollouts; G - 1 rollouts and the demonstration (Eq. 11)
MASKS = ("none", "random", "Eq. 8-9")
NONE, RANDOM, MASKED = MASKS
GAINS = ("Eq. 8-9 minus none", "Eq. 8-9 minus random")  # of the same groups, so their intervals are paired ones
GAP_BINS = (-9.5, -3, -0.25, 0.25, 3, 4.5, 6, 7.5, 9.5)  # delta = 3 is an edge, and equal scores are a bin
TEXT_BINS = (0.0, 0.001, 0.2, 0.4, 0.6, 0.8, 1.0)


class Group(NamedTuple):
    """A group's gradients, as far as they matter here."""

    level: str
    question: str
    texts: list[str]  # G
    gram: np.ndarray  # (G, G) inner products of g_i and g_j
    shared: np.ndarray  # (G, G) share of two responses' tokens that is their common beginning
    S: np.ndarray  # (G,)
    A: np.ndarray  # (G,)
    keep: np.ndarray  # (G,) bool, Eq. 8-9
    is_anchor: np.ndarray  # (G,) bool


# ---------------------------------------------------------------------------------------- gradients and what they tell


def response_gradients(
    policy: Policy, rollouts: Rollouts, rows: Tensor, weight: Tensor, temperature: float = 1.0
) -> Tensor:
    """g_i of the n rows, (n, D): the gradient of sum_t weight[i, t] * log pi(o_it) in all D trained parameters.

    `weight` (N, T) as dagrpo.divisor_weights makes it for the update. The sum of A_i g_i is minus the gradient of
    dagrpo.policy_loss at ratio 1 (Eq. 4). A response that occurs twice is computed once. Memory: n + 2 times the model,
    in fp32.
    """
    parameters = [p for p in policy.model.parameters() if p.requires_grad]
    found = torch.empty(len(rows), sum(p.numel() for p in parameters), device=policy.device)  # (n, D)
    first: dict[tuple[int, ...], int] = {}
    for i, row in enumerate(rows.tolist()):
        length = int(rollouts.lengths[row])
        key = (int(rollouts.group[row]), *rollouts.tokens[row, :length].tolist())
        if (same := first.setdefault(key, i)) != i and torch.equal(weight[row], weight[rows[same]]):
            found[i] = found[same]
            continue
        logp, _ = rollout.token_logprobs(policy, rollouts, rows[i : i + 1], temperature)  # (1, t)
        parts = torch.autograd.grad((logp * weight[row, :length]).sum(), parameters, materialize_grads=True)
        torch.cat([part.flatten() for part in parts], out=found[i])
    return found


def gram(gradients: Tensor) -> np.ndarray:
    """Inner products (n, n) of gradients (n, D), summed in fp64, a part of the columns at a time."""
    parts = (part.double() for part in gradients.split(1 << 20, dim=1))
    return sum(part @ part.T for part in parts).cpu().numpy()


def cosines(products: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Cosines (n, n) from inner products (n, n); with `weights` (n,) of weights[i] * g_i. NaN where a vector is 0."""
    if weights is not None:
        products = products * np.outer(weights, weights)
    norm = np.sqrt(np.diag(products))  # (n,)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.clip(products / np.outer(norm, norm), -1, 1)


def length(products: np.ndarray, weights: np.ndarray) -> float:
    """The norm of sum_i weights[i] * g_i."""
    return float(np.sqrt(max(weights @ products @ weights, 0.0)))


def net_share(products: np.ndarray, advantages: np.ndarray, keep: np.ndarray) -> float:
    """|v+ + v-| / (|v+| + |v-|) of Eq. 5, of the kept terms: in [0, 1]. NaN if nothing is kept.

    >>> A, both = np.array([0.5, -0.5]), np.array([True, True])
    >>> same, orthogonal = np.ones((2, 2)), np.eye(2)
    >>> net_share(same, A, both), round(net_share(orthogonal, A, both), 3), net_share(same, A, np.array([True, False]))
    (0.0, 0.707, 1.0)
    """
    terms = advantages * keep  # (G,)
    parts = length(products, terms.clip(min=0)) + length(products, terms.clip(max=0))
    return length(products, terms) / parts if parts else float("nan")


def sides_cosine(products: np.ndarray, advantages: np.ndarray, keep: np.ndarray) -> float:
    """The cosine of v+ and v-: below 0 they pull against each other, however long either is. NaN if one is 0."""
    up, down = (advantages * keep).clip(min=0), (advantages * keep).clip(max=0)  # (G,)
    norms = length(products, up) * length(products, down)
    return float(up @ products @ down) / norms if norms else float("nan")


def random_mask(advantages: np.ndarray, keep: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A mask (G,) that keeps as many positives and as many negatives as `keep` does, which ones by chance."""
    mask = keep.copy()
    for side in (advantages > 0, advantages < 0):
        mask[side] = rng.permutation(keep[side])
    return mask


def plane(products: np.ndarray) -> tuple[np.ndarray, float]:
    """Coordinates (n, 2) of vectors in the plane of their first two principal components, and the share of their
    squared lengths that lies in it. Not centred. Signs are fixed: the larger end of each axis is positive."""
    values, vectors = np.linalg.eigh(products)  # ascending
    values, vectors = values[::-1].clip(min=0), vectors[:, ::-1]
    found = vectors[:, :2] * np.sqrt(values[:2])
    found = found * np.where(found.max(axis=0) >= -found.min(axis=0), 1, -1)
    return found, float(values[:2].sum() / values.sum()) if values.sum() else float("nan")


def shared_text(tokens: Tensor, mask: Tensor) -> np.ndarray:
    """From tokens (G, T) and mask (G, T): 2 * common beginning / (|o_i| + |o_j|), (G, G). The pairs of Eq. 6."""
    same = (tokens[:, None] == tokens[None]) & mask[:, None] & mask[None]  # (G, G, T)
    common = same.cumprod(dim=2).sum(dim=2)  # (G, G)
    lengths = mask.sum(dim=1)  # (G,)
    return (2 * common / (lengths[:, None] + lengths[None])).cpu().numpy()


# ---------------------------------------------------------------------------------------- measuring a policy


class Measured(NamedTuple):
    groups: dict[str, list[Group]]  # ROLLOUTS, MIXED -> the groups that have signal
    batches: dict[str, list[list[float]]]  # likewise -> a batch's net share under each of MASKS


def measure(
    policy: Policy, problems: list[Problem], args: argparse.Namespace, rng: np.random.Generator, name: str = "gradients"
) -> Measured:
    """Samples G responses to each problem and adds its demonstration as one more row: the same gradients serve the
    group of G rollouts and that of G - 1 with the anchor. Groups without signal have no v and are left out."""
    size, found = args.batch_prompts or 1, Measured({ROLLOUTS: [], MIXED: []}, {ROLLOUTS: [], MIXED: []})
    for at in progress(range(0, len(problems), size), desc=name, unit="batch"):
        part = problems[at : at + size]
        prepared, _ = anchoring.prepare(policy, part, args.max_new_tokens)
        counts = [args.group_size] * len(part)
        rollouts = rollout.sample_groups(policy, part, counts, args.max_new_tokens, args.temperature)
        rollouts = anchoring.mix(policy, rollouts, prepared, args.group_size + 1)
        sums: dict[str, Any] = dict.fromkeys(found.groups, 0.0)
        for setup, group, gradients, members in groups_of(policy, rollouts, args):
            found.groups[setup].append(group)
            if args.batch_prompts:
                sums[setup] = sums[setup] + side_weights(group, rng).to(gradients) @ gradients[members]  # (6, D)
        for setup, total in sums.items():
            if isinstance(total, Tensor):
                found.batches[setup].append(batch_shares(gram(total)))
    return found


def groups_of(
    policy: Policy, rollouts: Rollouts, args: argparse.Namespace
) -> Iterator[tuple[str, Group, Tensor, list[int]]]:
    """Each group with signal, in both setups; `rollouts` has G + 1 rows a problem. With the gradients of these,
    (G + 1, D), and which of them are the group's."""
    R, S = scoring.rewards(rollouts), scoring.scores(rollouts)  # (B, G + 1)
    # over G + 1 rows instead of G: a common factor, which changes no cosine and no share
    weight = dagrpo.divisor_weights(rollouts.mask, args.divisor, args.max_new_tokens)  # (N, T)
    more = R.shape[1]
    setups = {ROLLOUTS: list(range(more - 1)), MIXED: [*range(more - 2), more - 1]}
    for b, problem in enumerate(rollouts.problems):
        A = {setup: dagrpo.group_advantages(R[b : b + 1, members])[0] for setup, members in setups.items()}  # (G,)
        if not any(a.any() for a in A.values()):
            continue
        rows = torch.arange(b * more, (b + 1) * more, device=policy.device)
        gradients = response_gradients(policy, rollouts, rows, weight, args.temperature)  # (G + 1, D)
        products, shared = gram(gradients), shared_text(rollouts.tokens[rows], rollouts.mask[rows])
        for setup, i in setups.items():
            if A[setup].any():
                keep = dagrpo.rectification_mask(A[setup][None], S[b : b + 1, i], args.delta)[0]  # (G,)
                texts = [rollouts.texts[n] for n in rows[i].tolist()]
                arrays = [x.numpy() for x in (S[b, i], A[setup], keep, rollouts.is_anchor[rows[i]].cpu())]
                square = np.ix_(i, i)
                group = Group(problem.level, problem.question, texts, products[square], shared[square], *arrays)
                yield setup, group, gradients, i


def side_weights(group: Group, rng: np.random.Generator) -> Tensor:
    """|A_i| on G+ and on G-, under each of MASKS: (6, G). Times the gradients: v+ and -v- of the group, three times."""
    rows = []
    for keep in (np.ones_like(group.keep), random_mask(group.A, group.keep, rng), group.keep):
        rows += [(group.A * keep).clip(min=0), -(group.A * keep).clip(max=0)]
    return torch.tensor(np.array(rows))


def batch_shares(products: np.ndarray) -> list[float]:
    """A batch's net share under each of MASKS, from the inner products (6, 6) of its v+ and -v- under each."""
    both = np.array([True, True])
    return [net_share(products[m : m + 2, m : m + 2], np.array([1.0, -1.0]), both) for m in (0, 2, 4)]


# ---------------------------------------------------------------------------------------- over many groups


@dataclass(frozen=True)
class Point:
    """A row of conflict.csv."""

    panel: str  # gap, text: binned cosines; spearman; net: net share, gain: its change; sides: v+, v-; share; norm
    model: str
    setup: str  # ROLLOUTS, MIXED; of batches with ", batch" behind it
    level: str  # "all", or one
    name: str  # the mask, or what the cosine is correlated with
    x: float | None  # mean of the bin
    mean: float
    low: float  # 95 % interval, bootstrap over groups (or batches)
    high: float
    n: int  # groups (or batches) that it is the mean of


def pairs(group: Group) -> np.ndarray:
    """Of every positive j and negative k: S_j - S_k, the share of their text that is common, cosine of g_j and g_k."""
    j, k = (x.flatten() for x in np.meshgrid((group.A > 0).nonzero()[0], (group.A < 0).nonzero()[0], indexing="ij"))
    return np.stack([group.S[j] - group.S[k], group.shared[j, k], cosines(group.gram)[j, k]], axis=1)  # (pairs, 3)


def bootstrap(
    statistic: Callable[[np.ndarray], Any], n: int, rng: np.random.Generator, draws: int = DRAWS
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A statistic (k,) of n things that are given by their index, and the ends of its 95 % percentile interval."""
    drawn = np.array([statistic(index) for index in rng.integers(n, size=(draws, n))], dtype=float)  # (draws, k)
    some = ~np.isnan(drawn).all(axis=0)  # percentiles of nothing are a warning
    ends = np.full((2, drawn.shape[1]), np.nan)
    ends[:, some] = np.nanpercentile(drawn[:, some], [2.5, 97.5], axis=0)
    return np.array(statistic(np.arange(n)), dtype=float), *ends


def binned(x: np.ndarray, y: np.ndarray, edges: tuple[float, ...]) -> list[float]:
    """The mean of y in each bin of x, edges[i] <= x < edges[i + 1], the last one closed; NaN in an empty one."""
    place = np.clip(np.searchsorted(edges, x, side="right") - 1, 0, len(edges) - 2)
    count, total = (np.bincount(place, weights=w, minlength=len(edges) - 1) for w in (None, y))
    with np.errstate(invalid="ignore"):
        return (total / count).tolist()


def pair_points(model: str, level: str, groups: list[Group], rng: np.random.Generator) -> list[Point]:
    """C7: the cosine of right-wrong pairs against their score gap, and against the text that they share."""
    parts = [pairs(group) for group in groups]
    within = np.array([spearman(part[:, 0].tolist(), part[:, 2].tolist()) for part in parts])

    def correlations(index: np.ndarray) -> list[float]:
        gap, text, cosine = np.concatenate([parts[i] for i in index]).T.tolist()
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
        Point(panel, model, ROLLOUTS, level, name, at, *values, n)
        for (panel, name, at), values, n in zip(rows, found, groups_in, strict=True)
    ]
    return [point for point in points if point.n >= FEWEST and not np.isnan(point.mean)]


def net_points(model: str, setup: str, level: str, groups: list[Group], rng: np.random.Generator) -> list[Point]:
    """The net share of groups under each mask; what the mask leaves of a group; the same where it leaves both sides."""
    table = []
    for group in groups:
        every, keep = np.ones_like(group.keep), group.keep
        chance = [net_share(group.gram, group.A, random_mask(group.A, keep, rng)) for _ in range(10)]
        before, after = (net_share(group.gram, group.A, mask) for mask in (every, keep))
        both = (keep & (group.A > 0)).any() and (keep & (group.A < 0)).any()
        sides = [before, np.mean(chance), after] if both else [np.nan] * 3
        norm = length(group.gram, group.A * keep) / (length(group.gram, group.A) or np.nan)
        gain = [after - before, after - np.mean(chance)]
        angles = [sides_cosine(group.gram, group.A, mask) for mask in (every, keep)]
        table.append([before, np.mean(chance), after, *gain, *sides, *angles, both, not keep.any(), norm])
    values = np.array(table, dtype=float)  # (groups, 13)

    def means(index: np.ndarray) -> np.ndarray:
        there = ~np.isnan(values[index])
        with np.errstate(invalid="ignore"):
            return np.where(there, values[index], 0).sum(axis=0) / there.sum(axis=0)

    rows = [("net", mask) for mask in MASKS] + [("gain", name) for name in GAINS]
    rows += [("net", f"{mask}, both sides kept") for mask in MASKS]
    rows += [
        ("sides", NONE),
        ("sides", MASKED),
        ("share", "both sides kept"),
        ("share", "nothing kept"),
        ("norm", "|v| after / before"),
    ]
    counts = (~np.isnan(values)).sum(axis=0)
    found = zip(*bootstrap(means, len(groups), rng), counts.tolist(), strict=True)
    points = [Point(p, model, setup, level, name, None, *v) for (p, name), v in zip(rows, found, strict=True)]
    return [point for point in points if not np.isnan(point.mean)]


def batch_points(model: str, setup: str, batches: list[list[float]], rng: np.random.Generator) -> list[Point]:
    values = np.array(batches).reshape(-1, len(MASKS))  # (batches, 3)
    values = values[~np.isnan(values).any(axis=1)]
    if not len(values):
        return []
    values = np.column_stack([values, values[:, 2] - values[:, 0], values[:, 2] - values[:, 1]])  # (batches, 5)
    found = zip(*bootstrap(lambda index: values[index].mean(axis=0), len(values), rng), strict=True)
    rows = [("net", mask) for mask in MASKS] + [("gain", name) for name in GAINS]
    return [
        Point(panel, model, f"{setup}, batch", "all", name, None, *v, len(values))
        for (panel, name), v in zip(rows, found, strict=True)
    ]


def summarise(model: str, measured: Measured, rng: np.random.Generator) -> list[Point]:
    """All points of one policy."""
    points = []
    for setup, groups in measured.groups.items():
        levels = {"all": groups} | {
            level: [g for g in groups if g.level == level] for level in sorted({g.level for g in groups})
        }
        for level, some in levels.items() if len(levels) > 2 else [("all", groups)]:
            if some:
                points += pair_points(model, level, some, rng) if setup == ROLLOUTS else []
                points += net_points(model, setup, level, some, rng)
        points += batch_points(model, setup, measured.batches[setup], rng)
    return points


# ---------------------------------------------------------------------------------------- one group: Figure 1


@dataclass(frozen=True)
class Response:
    """A row of groups.csv: one response of one of the three groups of Figure 1, ordered by score."""

    prompt: str
    model: str
    level: str
    question: str
    text: str
    S: float
    A: float
    keep: bool
    anchor: bool
    products: str  # its inner products with the group's g_1 ... g_G


def examples(groups: dict[str, list[Group]]) -> dict[str, Group]:
    """An easy, a mixed and a hard group: the first found where the mask leaves something out, else the first found.

    Easy: at least three in four are right, from the lowest level. Hard: nothing is right but the anchor, from the
    highest. What is not there is left out.
    """

    def right(group: Group) -> float:
        return float((group.A > 0).mean())

    on, mixed = (sorted(groups[setup], key=lambda group: group.level) for setup in (ROLLOUTS, MIXED))
    kinds = {
        "easy": [group for group in on if right(group) >= 0.75],
        "mixed": [group for group in groups[ROLLOUTS] if 0.3 < right(group) < 0.7],
        "hard, with anchor": [g for g in reversed(mixed) if not (~g.is_anchor & (g.A > 0)).any()],
    }
    return {kind: min(some, key=lambda group: group.keep.all()) for kind, some in kinds.items() if some}


def responses(prompt: str, model: str, group: Group) -> list[Response]:
    order = np.lexsort((group.texts, -group.S))  # equal responses side by side
    numbers = [(float(s), float(a), bool(k), bool(is_anchor)) for s, a, k, is_anchor in zip(*group[-4:], strict=True)]
    products = [" ".join(f"{x:.6g}" for x in row[order]) for row in group.gram]
    name = (prompt, model, group.level, group.question)
    return [Response(*name, group.texts[i], *numbers[i], products[i]) for i in order]


def draw_groups(rows: list[Response]) -> Figure:
    """Figure 1: a row for each group; cosines and directions, of g and of A g."""
    prompts = list(dict.fromkeys(row.prompt for row in rows))
    figure = Figure(figsize=(15, 0.8 + 3.7 * len(prompts)), layout="constrained")
    axes = figure.subplots(len(prompts), 4, squeeze=False, width_ratios=(1, 1, 1.05, 1.05))
    for line, prompt in zip(axes, prompts, strict=True):
        draw_group(line, [row for row in rows if row.prompt == prompt])
    matrices = axes[0, 0].images[0]
    figure.colorbar(matrices, ax=axes[:, :2], location="bottom", shrink=0.5, aspect=50, label="cosine")
    figure.colorbar(SCORES, ax=axes[:, 2:], location="bottom", shrink=0.5, aspect=50, label="score S")
    return figure


def draw_group(axes: np.ndarray, rows: list[Response]) -> None:
    products = np.array([row.products.split() for row in rows], dtype=float)  # (G, G)
    A, keep = np.array([row.A for row in rows]), np.array([row.keep for row in rows])
    unit, norm = cosines(products), np.sqrt(np.diag(products))
    labels = [f"{clip(row.text)} {row.S:4.1f} {'+' if row.A > 0 else '-'}{'a' if row.anchor else ' '}" for row in rows]
    first = rows[0]
    draw_matrix(axes[0], unit, np.zeros_like(keep), labels)
    axes[0].set_title(f"{first.prompt}: {clip(first.question, 30)} (level {first.level})\ncosine of g", fontsize=10)
    draw_matrix(axes[1], cosines(products, A), ~keep, ["+" if a > 0 else "-" for a in A])
    axes[1].set_title("cosine of A g\n(hatched: gone after the mask)", fontsize=10)
    scale = np.where(norm > 0, norm, 1)
    draw_plane(axes[2], products / np.outer(scale, scale), rows, None)
    axes[2].set_title(f"directions of g\n{axes[2].get_title()}", fontsize=10)
    draw_plane(axes[3], products * np.outer(A, A), rows, keep)
    shares = [net_share(products, A, mask) for mask in (np.ones_like(keep), keep)]
    told = f"net share {shares[0]:.2f} before, {shares[1]:.2f} after the mask" if keep.any() else "all masked"
    axes[3].set_title(f"A g; {axes[3].get_title()}\n{told}", fontsize=10)


def clip(text: str, most: int = 22) -> str:
    text = " ".join(text.split()).replace("$", r"\$")  # matplotlib reads $ as mathematics
    return text if len(text) <= most else text[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"


def draw_matrix(ax: Axes, values: np.ndarray, masked: np.ndarray, labels: list[str]) -> None:
    ax.imshow(values, vmin=-1, vmax=1, cmap="RdBu")
    for (i, j), value in np.ndenumerate(values):
        if masked[i] or masked[j]:
            ax.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, fill=False, edgecolor="0.35", hatch="////", linewidth=0))
        if not np.isnan(value):
            look = {"ha": "center", "va": "center", "fontsize": 7.5, "color": "w" if abs(value) > 0.6 else "k"}
            ax.text(j, i, f"{round(value, 1) + 0.0:.1f}", **look)  # + 0.0: no -0.0
    ax.set_yticks(range(len(labels)), labels, fontsize=8, family="monospace")
    ax.set_xticks([])


def draw_plane(ax: Axes, products: np.ndarray, rows: list[Response], keep: np.ndarray | None) -> None:
    """Lines from the origin, coloured by S, triangles up for A > 0. With `keep`: masked ones dashed, and the sums."""
    points, inside = plane(products)  # (G, 2)
    for at, row, kept in zip(points, rows, [True] * len(rows) if keep is None else keep, strict=True):
        colour, edge = SCORES.to_rgba(row.S), "red" if row.anchor else "0.3"
        ax.plot(*zip((0, 0), at, strict=True), color=colour, linestyle="-" if kept else (0, (2, 2)), linewidth=1.6)
        look = {"markersize": 9, "markeredgecolor": edge, "markerfacecolor": colour if kept else "white"}
        ax.plot(*at, marker="^" if row.A > 0 else "v", **look)
    if keep is not None:
        for of, colour, name in ((points, "0.6", "net before"), (points[keep], "k", "net after")):
            arrow = {"arrowstyle": "-|>", "color": colour, "linewidth": 3, "shrinkA": 0, "shrinkB": 0}
            ax.annotate("", of.sum(axis=0), (0, 0), arrowprops=arrow)
            ax.plot(*of.sum(axis=0), alpha=0)  # an arrow does not widen the axes
            ax.plot([], [], color=colour, linewidth=3, label=name)
        ax.legend(fontsize=8, loc="best", frameon=False)
    places = Counter(map(tuple, (points / (np.abs(points).max() or 1)).round(2).tolist()))
    for place, times in places.items():
        if times > 1 and np.hypot(*place) > 0.1:  # near the origin they would lie on top of each other
            at = np.array(place) * np.abs(points).max()
            ax.annotate(f"\N{MULTIPLICATION SIGN}{times}", at, (6, 4), textcoords="offset points", fontsize=9)
    ax.axhline(0, color="0.8", linewidth=0.7, zorder=0)
    ax.axvline(0, color="0.8", linewidth=0.7, zorder=0)
    ax.margins(0.17)
    ax.set_aspect("equal", adjustable="datalim")
    ax.set(xticks=[], yticks=[], xlabel="1st component", ylabel="2nd component")
    ax.set_title(f"{100 * inside:.0f} % of squared length in the plane")


# ---------------------------------------------------------------------------------------- the figure over many groups

PAIR_PANELS = {
    "gap": {
        "title": "Are pairs of like score alike in gradient?",
        "xlabel": "score gap: S of the right one - S of the wrong",
    },
    "text": {"title": "Are pairs of like text?", "xlabel": "share of their tokens that is a common beginning"},
}
NET_PANELS = {
    ROLLOUTS: "Net share of a group, rollouts only",
    MIXED: "Net share of a group with anchor",
    f"{ROLLOUTS}, batch": "Net share of a batch, rollouts only",
    f"{MIXED}, batch": "Net share of a batch with anchors",
}


def method_of(model: str) -> str:
    return model.split(", step ")[0]


def draw(points: list[Point]) -> Figure:
    """Six panels: cosine against gap and against shared text; the net share of groups and of batches, by policy."""
    figure = Figure(figsize=(15, 8.6), layout="constrained")
    axes = figure.subplots(2, 3)
    models = list(dict.fromkeys(point.model for point in points))
    last = list({method_of(model): model for model in models}.values())  # of several steps of a method, the last
    for ax, panel in ((axes[0, 0], "gap"), (axes[1, 0], "text")):
        for i, model in enumerate(last):
            line = [p for p in points if (p.panel, p.model, p.level) == (panel, model, "all")]
            error_bars(ax, [p.x for p in line], line, label=model, **(style(i, 2) | {"marker": "o"}))
        ax.set(ylabel="cosine of g, right and wrong response", **PAIR_PANELS[panel])
        other = ax.secondary_yaxis("right", functions=(np.negative, np.negative))
        other.set_ylabel("cosine of A g; -1: they cancel")
        ax.axhline(0, color="0.6", linewidth=0.8)
        ax.grid(alpha=0.3)
    axes[0, 0].axvline(3, color="0.4", linestyle=":", linewidth=1)
    axes[0, 0].legend(fontsize=8)
    for ax, (setup, title) in zip(axes[:, 1:].T.flatten(), NET_PANELS.items(), strict=True):
        draw_net(ax, [p for p in points if (p.panel, p.setup, p.level) == ("net", setup, "all")], models)
        ax.set(title=title, ylabel="|v+ + v-| / (|v+| + |v-|)", ylim=(0, 1.02))
    axes[0, 1].legend(fontsize=8, title="mask", loc="lower right")
    return figure


def error_bars(ax: Axes, x: list[float], line: list[Point], **look: Any) -> None:
    sides = [[max(p.mean - p.low, 0) for p in line], [max(p.high - p.mean, 0) for p in line]]
    ax.errorbar(x, [p.mean for p in line], sides, capsize=2, elinewidth=1, **look)


def draw_net(ax: Axes, points: list[Point], models: list[str]) -> None:
    for i, mask in enumerate(MASKS):
        line = [p for p in points if p.name == mask]
        at = [models.index(p.model) + 0.18 * (i - 1) for p in line]
        error_bars(ax, at, line, label=mask, color=COLOURS[i], linestyle="none", marker=MARKERS[1 + i], markersize=6)
    ax.set_xticks(range(len(models)), [model.replace(", step ", "\nstep ") for model in models], fontsize=8)
    ax.set_xlim(-0.6, len(models) - 0.4)
    ax.axhline(2**-0.5, color="0.4", linestyle=":", linewidth=1)
    ax.grid(axis="y", alpha=0.3)


# ---------------------------------------------------------------------------------------- files and command line


def write_rows(rows: list[Any], path: Path) -> None:
    """Dataclasses of one kind as a CSV."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(field.name for field in fields(rows[0]))
        for row in rows:
            writer.writerow(f"{x:.6g}" if isinstance(x, float) else x for x in astuple(row))


def read_rows(kind: type, path: Path) -> list[Any]:
    """What write_rows has written, as dataclasses of this kind; an empty cell is None. Ends with one line otherwise."""
    hints = get_type_hints(kind)
    makes = {name: {bool: "True".__eq__, int: int, str: str}.get(hint, float) for name, hint in hints.items()}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            found = [
                kind(**{name: make(row[name]) if row[name] or make is str else None for name, make in makes.items()})
                for row in csv.DictReader(file)
            ]
    except OSError as error:
        fail(f"{path}: cannot be read ({error.strerror})")
    except (KeyError, ValueError, TypeError, csv.Error):
        fail(f"{path}: not a CSV that this program has written, or it is damaged")
    return found or fail(f"{path}: there is nothing to draw in it")


def redraw(source: Path, out: Path) -> None:
    """conflict.png from conflict.csv and, where it lies beside it, groups.png from groups.csv."""
    points, beside = read_rows(Point, source), source.with_name("groups.csv")
    draw(points).savefig(out / "conflict.png", dpi=90)
    if beside.exists():
        rows = read_rows(Response, beside)
        for i, model in enumerate(dict.fromkeys(row.model for row in rows)):
            chosen = [row for row in rows if row.model == model]
            draw_groups(chosen).savefig(out / ("groups_last.png" if i else "groups.png"), dpi=75)


def label(name: str) -> str:
    """What figures call a policy: method and step where it is of a run of train.py, else the folder's name."""
    folder = Path(name)
    checkpoint = folder / "checkpoint" if (folder / "checkpoint").exists() else folder
    for place in (folder, folder.parent):
        try:
            method = json.loads((place / "config.json").read_text(encoding="utf-8"))["method"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        step = checkpoint / "step"
        return f"{method}, step {step.read_text().strip()}" if step.exists() else method
    return folder.name


def load_problems(args: argparse.Namespace, seed: int) -> list[Problem]:
    """The seed's problems in its order, levels mixed as in training."""
    if not args.data:
        found = tasks.arithmetic("train", args.problems, seed=1 + seed)
        random.Random(seed).shuffle(found)
        return found
    found, _ = data.load_problems(args.data, limit=50 * args.problems * args.seeds)
    return data.instruct(found, data.INSTRUCTION)[seed :: args.seeds]


def measure_seeds(path: str, name: str, args: argparse.Namespace) -> Measured:
    """One policy on all seeds: problems, samples, and batches of each seed are its own."""
    policy, every = policies.load(None if path == "warm_start" else path), None
    for seed in range(args.seeds):
        problems = load_problems(args, seed)
        usable, fates = anchoring.prepare(policy, problems, args.max_new_tokens)
        problems = [problem for problem, anchor in zip(problems, usable, strict=True) if anchor]
        if args.data:
            problems = problems[: args.problems]
        if not problems:
            fail(f"no problem has a demonstration that fits into --max-new-tokens {args.max_new_tokens}: {dict(fates)}")
        torch.manual_seed(seed)
        found = measure(policy, problems, args, np.random.default_rng(seed), f"{name}, seed {seed}")
        every = every or Measured({setup: [] for setup in found.groups}, {setup: [] for setup in found.groups})
        for setup in found.groups:
            every.groups[setup].extend(found.groups[setup])
            every.batches[setup].extend(found.batches[setup])
    return every


PRINTED = {
    "spearman": "Spearman correlation with the cosine of g, right-wrong pairs (C7: that of the gap is negative)",
    "net": "net share, by mask",
    "gain": "change of the net share, paired",
    "sides": "cosine of v+ and v-: below 0 they pull against each other",
    "share": "share of groups",
    "norm": "length of a group's v",
}


def tell(points: list[Point]) -> str:
    """The findings as text, with 95 % intervals."""
    lines = []
    for panel, title in PRINTED.items():
        lines += ["", title]
        for p in points:
            if (p.panel, p.level) == (panel, "all"):
                value = f"{p.mean:+.3f} [{p.low:+.3f}, {p.high:+.3f}]"
                lines.append(f"  {p.model:22s} {p.setup:20s} {p.name:26s} {value}  n = {p.n}")
    return "\n".join(lines[1:])


CAPTION = """\
conflict.png. Left: the mean cosine of the gradients g of a right and a wrong response to one prompt, binned by the gap
of their scores S (above; dotted: 3, the default delta) and by the share of their tokens that is a common beginning
(below). The right axis is minus the left: the cosine of the advantage-weighted gradients, which are what an update adds
up. Of several steps of a method the last is drawn. Middle: net share |v+ + v-| / (|v+| + |v-|) of Eq. 5, the mean over
groups that have signal and, after a mask, something left. Right: the same of v+ and v- summed over the prompts of a
batch. 1: nothing cancels; dotted: v+ and v- are orthogonal and equally long. "Eq. 8-9" is the mask, "random" one that
keeps as many of each side. A group of which a mask leaves one side has net share 1. Bars: 95 % bootstrap intervals over
groups (batches); the spread over training seeds is not in them. Bins with pairs of fewer than 5 groups are left out.

groups.png (the first policy; groups_last.png: the last). The responses of an easy, a mixed and a hard group, ordered by
score: the first group found in which the mask leaves something out, else the first found. +, -: sign of A; a: anchor.
Triangles up: A > 0, down: A < 0; hollow and dashed: masked; red rim: anchor. Planes: the first two principal
components, not centred, of unit vectors for g and of the vectors themselves for A g; x3: three arrows in one place."""


def caption(args: argparse.Namespace, models: list[str], argv: list[str]) -> str:
    what = f"{args.data}, {args.problems} problems" if args.data else f"{args.problems} problems a level (split train)"
    told = f"Policies: {'; '.join(models)}. Gradients of all parameters, ratio 1. {what} and seed; sampling seeds "
    told += (
        f"{', '.join(map(str, range(args.seeds)))}; G = {args.group_size}; batches of {args.batch_prompts} prompts; "
    )
    told += f"at most {args.max_new_tokens} tokens; temperature {args.temperature:g}; delta = {args.delta:g}; "
    told += f"divisor {args.divisor}; {DRAWS} bootstrap draws."
    again = ["--from-csv", str(args.out / "conflict.csv")]
    commands = [shlex.join(["python", "-m", "analysis.conflict", *flags]) for flags in (argv, again)]
    body = f"{CAPTION}\n\n{textwrap.fill(told, 118)}"
    return f"{body}\n\ndrawn by:    {commands[0]}\ndrawn again: {commands[1]}\n"


def build_parser() -> Parser:
    parser = Parser(prog="python -m analysis.conflict", description=__doc__)
    add = parser.add_argument
    models = "run folders, checkpoints, model folders or hub ids, in the figure's order; warm_start: where runs begin"
    add("--model", nargs="+", default=["warm_start"], metavar="M", help=models)
    add("--problems", type=int, default=24, metavar="N", help="prompts of each level and seed; with --data in all")
    add("--seeds", type=int, default=2, metavar="N", help="sampling seeds 0 ... N - 1, each with its own prompts")
    batches = "prompts of a batch; 0: no batches, which saves 12 times the model's memory"
    add("--batch-prompts", type=int, default=16, metavar="B", help=batches)
    add("--group-size", type=int, default=8, metavar="G", help="responses of a group")
    add("--max-new-tokens", type=int, default=64, metavar="T", help="of a response")
    add("--temperature", type=float, default=1.0, metavar="X", help="of sampling")
    add("--delta", type=float, default=3.0, metavar="X", help="of Eq. 8-9")
    add("--divisor", choices=("constant", "sequence", "tokens"), default="constant", help="of the recipe")
    add("--data", metavar="FILE", help="problems for a real model, as of train.py; without it the built-in ones")
    add("--out", metavar="DIR", help="where to write [runs/conflict; of --from-csv: beside the CSV]")
    add("--from-csv", metavar="FILE", help="draw this conflict.csv, and groups.csv beside it, without a model")
    return parser


def check(args: argparse.Namespace) -> None:
    for flag, least in (("problems", 1), ("seeds", 1), ("group_size", 2), ("max_new_tokens", 1), ("batch_prompts", 0)):
        if getattr(args, flag) < least:
            fail(f"--{flag.replace('_', '-')} must be at least {least}, not {getattr(args, flag)}")
    if not args.temperature > 0 or not args.delta >= 0:
        fail(f"--temperature must be above 0 and --delta not below 0, not {args.temperature:g} and {args.delta:g}")


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    args = build_parser().parse_args(argv)
    check(args)
    source = Path(args.from_csv) if args.from_csv else None
    args.out = out = Path(args.out or (source.parent if source else "runs/conflict"))
    try:
        out.mkdir(parents=True, exist_ok=True)
        if source is None:
            write(args, argv)
        redraw(source or out / "conflict.csv", out)
    except OSError as error:
        fail(f"--out {out}: cannot be written ({error.strerror}); choose another folder")
    print(f"written: {out / 'conflict.png'} and what belongs to it")


def write(args: argparse.Namespace, argv: list[str]) -> None:
    """The CSVs and the caption."""
    names = [label(name) for name in args.model]
    names = [name if names.count(name) == 1 else path for name, path in zip(names, args.model, strict=True)]
    points, shown = [], []
    for name, path in zip(names, args.model, strict=True):
        measured = measure_seeds(path, name, args)
        points += summarise(name, measured, np.random.default_rng(0))
        if path in (args.model[0], args.model[-1]):
            shown += [row for kind, group in examples(measured.groups).items() for row in responses(kind, name, group)]
    if not points:
        fail("no group had right and wrong responses: nothing to compare. Take more --problems, or easier ones")
    print(tell(points))
    write_rows(points, args.out / "conflict.csv")
    write_rows(shown, args.out / "groups.csv")
    (args.out / "conflict.txt").write_text(caption(args, names, argv), encoding="utf-8")


if __name__ == "__main__":
    main()
