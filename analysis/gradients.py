"""The gradient of each response of a group, exactly, and what their inner products say about conflict (Eq. 4, 5).

    g_i = grad_theta sum_t w_it log pi(o_it | q, o_i<t)      w = 1 / divisor, dagrpo.divisor_weights
    v+ = sum of A_i g_i over A_i > 0, v- over A_i < 0        v = v+ + v- is the update (Eq. 4, 5; masked: Eq. 10)

g_i covers all trained parameters, without projection or choice of layers. Ratios are 1, as in the first update after
sampling; no clip, KL term or entropy bonus. All that we ask about a group follows from the Gram matrix of its g_i, so
only that matrix is kept. conflict.py makes figures of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

import dagrpo
import rollout
import scoring
from analysis.experiments.controls import random_like
from anchors import mix, prepare_anchors
from harness.config import flag
from harness.console import progress
from policy import Policy
from rollout import Rollouts
from tasks import Problem

ROLLOUTS, MIXED = "rollouts", "with anchor"  # G rollouts; G - 1 rollouts and the demonstration (Eq. 11)
MASKS = ("none", "random", "Eq. 8-9")
NONE, RANDOM, MASKED = MASKS


class Group(NamedTuple):
    """A group that has signal: its responses, and the inner products of their gradients."""

    level: str
    question: str
    texts: list[str]  # G
    gram: np.ndarray  # (G, G) inner products of g_i and g_j
    shared: np.ndarray  # (G, G) share of two responses' tokens that is their common beginning
    S: np.ndarray  # (G,)
    A: np.ndarray  # (G,)
    keep: np.ndarray  # (G,) bool, Eq. 8-9
    is_anchor: np.ndarray  # (G,) bool


@dataclass(frozen=True)
class Sampling:
    """how groups are sampled, masked and weighed"""

    group_size: int = flag(8, "responses per group", "G")
    max_new_tokens: int = flag(64, "longest response, end token included", "T")
    temperature: float = flag(1.0, "of sampling", "X")
    batch_prompts: int = flag(16, "prompts per batch; 0: no batches, which saves 12 times the model's memory", "B")
    delta: float = flag(3.0, "of Eq. 8-9", "X")
    divisor: Literal["constant", "sequence", "tokens"] = flag("constant", "of the recipe")


# ---------------------------------------------------------------------------------------- gradients and their products


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
    """Cosines (n, n) from inner products (n, n); with `weights` (n,): of weights[i] * g_i. NaN where a vector is 0."""
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


def chance_mask(advantages: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """A random mask of one group, (G,), that keeps as many positives and as many negatives as `keep` does."""
    return random_like(torch.from_numpy(advantages)[None], torch.from_numpy(keep)[None])[0].numpy()


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


def measure(policy: Policy, problems: list[Problem], how: Sampling, name: str = "gradients") -> Measured:
    """Samples G responses to each problem and adds its demonstration as one more row: the same gradients serve the
    group of G rollouts and that of G - 1 with the anchor. Groups without signal have no v and are left out."""
    size, found = how.batch_prompts or 1, Measured({ROLLOUTS: [], MIXED: []}, {ROLLOUTS: [], MIXED: []})
    for at in progress(range(0, len(problems), size), desc=name, unit="batch"):
        part = problems[at : at + size]
        prepared, _ = prepare_anchors(policy, part, how.max_new_tokens)
        counts = [how.group_size] * len(part)
        rollouts = rollout.sample_groups(policy, part, counts, how.max_new_tokens, how.temperature)
        rollouts = mix(policy, rollouts, prepared, how.group_size + 1)
        sums: dict[str, Any] = dict.fromkeys(found.groups, 0.0)
        for setup, group, gradients, members in groups_of(policy, rollouts, how):
            found.groups[setup].append(group)
            if how.batch_prompts:
                sums[setup] = sums[setup] + side_weights(group).to(gradients) @ gradients[members]  # (6, D)
        for setup, total in sums.items():
            if isinstance(total, Tensor):
                found.batches[setup].append(batch_shares(gram(total)))
    return found


def groups_of(policy: Policy, rollouts: Rollouts, how: Sampling) -> Iterator[tuple[str, Group, Tensor, list[int]]]:
    """Yields setup, group, gradients (G + 1, D), members: each group with signal, in both setups. `rollouts` has G + 1
    rows per problem, which both setups share; `members` are the G rows of this one."""
    R, S = scoring.rewards(rollouts), scoring.scores(rollouts)  # (B, G + 1)
    # the divisor counts G + 1 rows instead of G: a common factor, which changes no cosine and no share
    weight = dagrpo.divisor_weights(rollouts.mask, how.divisor, how.max_new_tokens)  # (N, T)
    more = R.shape[1]
    setups = {ROLLOUTS: list(range(more - 1)), MIXED: [*range(more - 2), more - 1]}
    for b, problem in enumerate(rollouts.problems):
        A = {setup: dagrpo.group_advantages(R[b : b + 1, members])[0] for setup, members in setups.items()}  # (G,)
        if not any(a.any() for a in A.values()):
            continue
        rows = torch.arange(b * more, (b + 1) * more, device=policy.device)
        gradients = response_gradients(policy, rollouts, rows, weight, how.temperature)  # (G + 1, D)
        products, shared = gram(gradients), shared_text(rollouts.tokens[rows], rollouts.mask[rows])
        for setup, i in setups.items():
            if A[setup].any():
                keep = dagrpo.rectification_mask(A[setup][None], S[b : b + 1, i], how.delta)[0]  # (G,)
                texts = [rollouts.texts[n] for n in rows[i].tolist()]
                arrays = [x.numpy() for x in (S[b, i], A[setup], keep, rollouts.is_anchor[rows[i]].cpu())]
                square = np.ix_(i, i)
                group = Group(problem.level, problem.question, texts, products[square], shared[square], *arrays)
                yield setup, group, gradients, i


def side_weights(group: Group) -> Tensor:
    """|A_i| on G+ and on G-, under each of MASKS: (6, G). Times the gradients: v+ and -v- of the group, three times."""
    rows = []
    for keep in (np.ones_like(group.keep), chance_mask(group.A, group.keep), group.keep):
        rows += [(group.A * keep).clip(min=0), -(group.A * keep).clip(max=0)]
    return torch.tensor(np.array(rows))


def batch_shares(products: np.ndarray) -> list[float]:
    """A batch's net share under each of MASKS, from the inner products (6, 6) of its v+ and -v- under each."""
    both = np.array([True, True])
    return [net_share(products[m : m + 2, m : m + 2], np.array([1.0, -1.0]), both) for m in (0, 2, 4)]
