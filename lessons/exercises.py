"""Twelve exercises. Replace a `raise NotImplementedError`, then ask whether it is right:

    python -m lessons.check 3        the third one
    python -m lessons.check          all that you have written

B prompts, G responses per prompt, N = B*G rows, T completion tokens, V vocabulary. Every body fits in one to six lines
of PyTorch. The last line of each docstring says where the project does it; look there afterwards, not before.
"""

from __future__ import annotations

import torch
from torch import Tensor


def group_advantages(rewards: Tensor) -> Tensor:
    """1. Rewards (B, G) to advantages (B, G): R minus the mean of its group, which is a row. No standard deviation.

    dagrpo.group_advantages
    """
    raise NotImplementedError


def rectification_mask(advantages: Tensor, scores: Tensor, delta: float) -> Tensor:
    """2. Eq. 8-9: which responses stay, bool (B, G), from advantages and scores (B, G).

    A positive (A > 0) stays if its score is at least `delta` above the best negative's. A negative (A < 0) stays if its
    score is at least `delta` below the worst positive's. Best and worst are over all of a side, also those that do
    not stay. Where the other side is empty, every response with A != 0 stays. Responses with A = 0 never stay.

    dagrpo.rectification_mask
    """
    raise NotImplementedError


def leave_one_out(rewards: Tensor) -> Tensor:
    """3. RLOO: rewards (B, G) to advantages (B, G), each compared with the mean of the *other* G - 1 of its group.

    dagrpo.group_advantages, baseline "leave_one_out"
    """
    raise NotImplementedError


def clipped_objective(ratio: Tensor, advantage: Tensor, low: float, high: float) -> Tensor:
    """4. Eq. 2: the clipped objective of each element, same shape. It is maximised: no minus sign, and no mean.

    It is the smaller of r * A and clip(r) * A, for both signs of A. `low` and `high` bound the ratio, as in 0.8 to 1.2.

    dagrpo.surrogate
    """
    raise NotImplementedError


def k3(logp: Tensor, logp_ref: Tensor) -> Tensor:
    """5. The estimate of KL(pi || pi_ref) per token that GRPO uses: r - log r - 1 with r = pi_ref / pi.

    It is never below 0. `logp` and `logp_ref` are log-probs of tokens that were sampled from pi.

    dagrpo.kl_estimate
    """
    raise NotImplementedError


def micro_batch_loss(objective: Tensor, mask: Tensor, rows_of_update: int, max_new_tokens: int) -> Tensor:
    """6. Dr. GRPO's loss of some rows of an update, so that the losses of its micro-batches add up to the whole one.

    `objective` (n, T) and `mask` (n, T, bool) are those of this micro-batch; the update has `rows_of_update` rows in
    all. Return a scalar to minimise: minus the masked sum of `objective`, divided by rows_of_update * max_new_tokens,
    which does not depend on how the update was cut.

    dagrpo.divisor_weights, "constant", and dagrpo.policy_loss
    """
    raise NotImplementedError


def completion_mask(tokens: Tensor, end_id: int) -> Tensor:
    """7. Tokens (N, T) to a mask (N, T), bool: True up to and including the first end token, or everywhere without one.

    The pad token may be the end token itself, so `tokens != pad` does not work.

    rollout.completion_mask
    """
    raise NotImplementedError


def maxrl_advantages(rewards: Tensor) -> Tensor:
    """8. MaxRL: rewards (B, G) of 0 and 1 to (R - mean) / mean, by group; 0 where nobody is right.

    If one response in eight is right, it counts seven times as much as a wrong one.

    dagrpo.group_advantages, scale "mean"
    """
    raise NotImplementedError


def entropy(logits: Tensor) -> Tensor:
    """9. Logits (N, T, V) to the entropy (N, T) of each next-token distribution, in nats. Logits of -inf are allowed.

    rollout.logp_and_entropy
    """
    raise NotImplementedError


def pass_at_k(right: list[int], samples: int, k: int) -> float:
    """10. The chance that at least one of k responses is right, averaged over problems, without bias.

    Problem i was sampled `samples` times, at least k, and was right `right[i]` times. Count the choices of k responses
    without a right one (math.comb); 1 - (1 - c/n)^k is too low.

    eval.pass_at
    """
    raise NotImplementedError


def random_mask(keep: Tensor, advantages: Tensor, generator: torch.Generator) -> Tensor:
    """11. The control: in each group, as many positives and as many negatives stay as in `keep`, chosen by chance.

    `keep` (B, G) is bool and False where A = 0; `advantages` (B, G).

    analysis.experiments.controls.random_mask
    """
    raise NotImplementedError


def paired_interval(a: list[float], b: list[float]) -> tuple[float, float]:
    """12. Two methods on the same seeds: the mean of the differences a - b, and the half-width of its 95 % interval.

    The interval is mean +- half-width, by Student's t with n - 1 degrees of freedom, two-sided; scipy.stats.t.ppf gives
    the quantile.

    analysis.stats.t_interval
    """
    raise NotImplementedError
