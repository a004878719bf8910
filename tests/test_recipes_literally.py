"""PAPER.md's tables, literally: every recipe has the gradient of a slow loop over tokens, and DaGRPO that of Eq. 13."""

import math
from dataclasses import replace
from math import log, sqrt

import pytest
import torch
from helpers import ln_2, pushes, random_case, tight, update_of
from torch import tensor
from torch.testing import assert_close

from dagrpo import METHODS, policy_loss, surrogate

pytestmark = pytest.mark.usefixtures("double_precision")

PINNED = {  # baseline, spread, ratio, clip (low, high) or none, divisor
    "grpo": ("mean", "std", "token", (0.2, 0.2), "sequence"),
    "dr_grpo": ("mean", "none", "token", (0.2, 0.2), "constant"),
    "dapo": ("mean", "std", "token", (0.2, 0.28), "tokens"),
    "gspo": ("mean", "std", "sequence", (3e-4, 4e-4), "sequence"),
    "cispo": ("mean", "std", "at most 5", None, "tokens"),
    "rloo": ("others", "none", "one", None, "constant"),
    "gtpo": ("mean", "none", "token", None, "sequence"),
    "luffy": ("mean", "none", "token", None, "constant"),
    "dagrpo_on": ("mean", "none", "token", (0.2, 0.2), "constant"),
    "dagrpo_soft": ("mean", "none", "token", (0.2, 0.2), "constant"),
    "dagrpo": ("mean", "none", "token", (0.2, 0.2), "constant"),
    "sft": ("A = 1", "none", "one", None, "tokens"),  # the mean of -log p over the demonstrations' tokens
    "reinforce": ("none", "none", "token", (0.2, 0.2), "constant"),
    "maxrl": ("mean", "mean", "token", (0.2, 0.2), "tokens"),
    "lite_ppo": ("mean", "std of all R", "token", (0.2, 0.2), "tokens"),
    "reinforce_pp": ("mean", "std of all R - m", "token", (0.2, 0.2), "tokens"),
    "rgra": ("mean", "std", "one", None, "sequence"),
    "luspo": ("mean", "std", "sequence", (2e-3, 2.5e-3), "constant"),
    "sapo": ("mean", "std", "gate", None, "sequence"),
    "gmpo": ("mean", "std", "geometric", None, "sequence"),
    "dppo_tv": ("mean", "none", "at most 20", None, "constant"),
    "dppo_kl": ("mean", "none", "at most 20", None, "constant"),
    "two_sided": ("mean", "std", "token", (0.2, 0.2), "sequence"),
    "deepseek_v32": ("mean", "none", "token", (0.2, 0.2), "sequence"),
    "top_entropy": ("mean", "std", "token", (0.2, 0.28), "tokens"),
    "chord": ("mean", "std", "token", (0.2, 0.2), "tokens"),
    "hpt": ("mean", "none", "token", (0.2, 0.2), "constant"),
}
APART = ("chord", "hpt")  # demonstrations are outside the groups
KL = {"reinforce_pp": "k2", "deepseek_v32": "k3 times the ratio"}  # the others k3


def test_every_recipe_is_pinned():
    of_papers = {name for name, recipe in METHODS.items() if recipe.paper != "ours"}
    assert of_papers == PINNED.keys(), "a recipe of a paper needs a line here; a variant of yours has the paper `ours`"


def std(values):
    mean = sum(values) / len(values)
    return sqrt(sum((x - mean) ** 2 for x in values) / (len(values) - 1)) + 1e-4


def slow_advantages(name, case):
    """B lists of G advantages, by the words of the table. Who is apart has none yet: None."""
    baseline, spread, *_ = PINNED[name]
    is_anchor = case.is_anchor.view(case.R.shape).tolist()
    R = [
        [None if name in APART and anchor else r for r, anchor in zip(*group, strict=True)]
        for group in zip(case.R.tolist(), is_anchor, strict=True)
    ]
    counted = [[r for r in group if r is not None] for group in R]
    means = [sum(group) / len(group) for group in counted]
    every = [r for group in counted for r in group]
    centred = [r - mean for group, mean in zip(counted, means, strict=True) for r in group]
    A = []
    for group, there, mean in zip(R, counted, means, strict=True):
        row = []
        for i, r in enumerate(group):
            if r is None or baseline == "A = 1":
                row.append(None if r is None else 1.0)
                continue
            others = [x for k, x in enumerate(group) if k != i and x is not None]
            difference = r - {"mean": mean, "others": sum(others) / max(len(others), 1), "none": 0.0}[baseline]
            if baseline != "none" and len(set(there)) == 1:
                difference = 0.0
            if difference and spread != "none":
                over = {"std": std(there), "mean": mean, "std of all R": std(every), "std of all R - m": std(centred)}
                difference /= over[spread]
            row.append(difference)
        A.append(row)
    return A


def slow_loss(name, case, new, entropy, kl_beta):
    """The loss of a whole update, sequence by sequence and token by token; `new`, `entropy` are lists of scalars."""
    *_, ratio_kind, clip, divisor = PINNED[name]
    B, G = case.R.shape
    lengths = case.mask.sum(1).tolist()
    is_anchor = case.is_anchor.tolist()
    of_rollouts = sum(t for t, anchor in zip(lengths, is_anchor, strict=True) if not anchor)
    of_anchors = sum(lengths) - of_rollouts
    shown = [any(is_anchor[b * G : (b + 1) * G]) for b in range(B)]
    if name == "top_entropy":
        there = sorted(h for n in range(B * G) for h in case.entropy_old[n, : lengths[n]].tolist())
        place = 0.8 * (len(there) - 1)
        k = int(place)
        quantile = there[k] + (place - k) * (there[min(k + 1, len(there) - 1)] - there[k])
    total = tensor(0.0)
    for b, A in enumerate(slow_advantages(name, case)):
        S = case.S[b].tolist()
        rows = range(b * G, (b + 1) * G)
        positive, negative = ([i for i in range(G) if A[i] is not None and A[i] * sign > 0] for sign in (1, -1))
        for i, n in enumerate(rows):
            tokens, length = case.tokens[n].tolist(), lengths[n]
            advantage, keep, token_weights = A[i], True, [1.0] * length
            if advantage is None:
                advantage = 1.0
            if name.startswith("dagrpo") and A[i] != 0:  # Eq. 8, 9
                mine, other = (positive, negative) if A[i] > 0 else (negative, positive)
                gaps = [(S[i] - S[k]) if A[i] > 0 else (S[k] - S[i]) for k in other]
                scored = not any(math.isnan(S[k]) for k in mine + other)
                keep = scored and all(gap >= 3.0 for gap in gaps)
                if name == "dagrpo_soft" and scored:
                    keep, advantage = True, A[i] / (1 + math.exp(3.0 - min(gaps, default=math.inf)))
            if name == "gtpo":
                shared = {1: [], -1: []}  # per direction: is the token at t in both signs, counted from that end?
                for way in (1, -1):
                    for t in range(length):
                        place = t if way == 1 else t - length
                        both = [
                            any(
                                -lengths[m] <= place < lengths[m]
                                and case.tokens[m, place % lengths[m]].item() == tokens[t]
                                for m in (rows[k] for k in side)
                            )
                            for side in (positive, negative)
                        ]
                        shared[way].append(all(both))
                for t in range(length):
                    if all(shared[1][: t + 1]) or all(shared[-1][t:]):
                        token_weights[t] = 2.0 if A[i] > 0 else 0.0
                row_entropy = sum(case.entropy_old[n, :length].tolist()) / length
                advantage = A[i] - 0.1 * row_entropy
                keep = case.start_entropy >= ln_2 or row_entropy <= ln_2
            if name == "top_entropy":
                token_weights = [float(h >= quantile) for h in case.entropy_old[n, :length].tolist()]
            logs = [new[n][t] - case.old[n, t] for t in range(length)]  # log r
            if name == "deepseek_v32" and advantage < 0 and sum(-x.item() for x in logs) / length > 0.5:
                keep = False
            if ratio_kind == "geometric":  # each clipped on A's side
                bound = (
                    (lambda x: x if x.item() < 0.4 else tensor(0.4))
                    if advantage > 0
                    else (lambda x: x if x.item() > -0.4 else tensor(-0.4))
                )
                logs = [bound(x) for x in logs]
            row_ratio = (sum(logs, tensor(0.0)) / length).exp()
            for t in range(length):
                lp, over = new[n][t], None
                if is_anchor[n]:
                    p = lp.exp()
                    term = advantage * {
                        "sft": lambda lp, p: lp,
                        "hpt": lambda lp, p: lp,
                        "dagrpo": lambda lp, p: (lp - lp.detach()).exp(),
                        "luffy": lambda lp, p: p / (p + 0.1),
                        "chord": lambda lp, p: (p * (1 - p)).item() * lp,
                    }[name](lp, p)
                elif ratio_kind == "one":
                    term = advantage * lp
                elif ratio_kind.startswith("at most"):
                    term = min(logs[t].exp().item(), float(ratio_kind.split()[-1])) * advantage * lp
                elif ratio_kind == "gate":
                    tau = 1.0 if advantage > 0 else 1.05
                    term = advantage * 4 / tau / (1 + (-tau * (logs[t].exp() - 1)).exp())
                else:
                    ratio = row_ratio if ratio_kind in ("sequence", "geometric") else logs[t].exp()
                    term = ratio * advantage
                    if name == "two_sided" and advantage < 0 and ratio.item() > 4:
                        term = tensor(4 * advantage)
                    if clip:
                        bounded = min(max(ratio.item(), 1 - clip[0]), 1 + clip[1]) * advantage
                        term = term if term.item() <= bounded else tensor(bounded)
                if name.startswith("dppo"):
                    p, q = lp.exp().item(), case.old[n, t].exp().item()
                    far = abs(p - q) > 0.15
                    if name == "dppo_kl":
                        far = q * log(q / p) + (1 - q) * log((1 - q) / (1 - p)) > 0.05
                    term = tensor(0.0) if far and (p > q) == (advantage > 0) else term
                term = term if keep else tensor(0.0)
                if name == "luffy":
                    term = term + 0.001 * entropy[n][t]
                if kl_beta and not is_anchor[n]:
                    d = case.ref[n, t] - lp
                    ratio = (lp - case.old[n, t]).exp()
                    kls = {"k2": d * d / 2, "k3 times the ratio": ratio * (d.exp() - d - 1)}
                    term = term - kl_beta * kls.get(KL.get(name), d.exp() - d - 1)
                term = term * token_weights[t]  # part of Update.weight, so it falls on a KL term too
                over = {"constant": B * G * case.max_new_tokens, "sequence": B * G * length, "tokens": sum(lengths)}
                if name in APART:  # (1 - mu) rollouts + mu demonstrations, group by group
                    mu = {"chord": 0.1, "hpt": 1.0}[name]
                    over["tokens"] = of_rollouts
                    share = (1 - mu if shown[b] else 1.0) / over[divisor]
                    total = total - term * (mu * sum(shown) / B / of_anchors if is_anchor[n] else share)
                else:
                    total = total - term / over[divisor]
    return total


@pytest.mark.parametrize("name", PINNED)
@pytest.mark.parametrize("kl_beta", [0.0, 0.05])
def test_the_gradient_is_that_of_the_slow_loop(name, kl_beta):
    recipe = METHODS[name]
    gradients, bounded = [], set()
    for seed in range(15):
        case = random_case(seed, recipe)
        new, entropy = (
            [[x.requires_grad_() for x in row] for row in part.clone()] for part in (case.new, case.entropy)
        )
        leaves = [x for part in (new, entropy) for row in part for x in row]
        loss = slow_loss(name, case, new, entropy, kl_beta)
        slow = (
            torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True) if loss.requires_grad else None
        )
        slow = torch.stack(slow).view(2, *case.new.shape) if slow else torch.zeros(2, *case.new.shape)
        assert_close(torch.stack(pushes(case, recipe, kl_beta=kl_beta)), -slow, **tight)
        gradients.append(slow[0])
        update = update_of(case, recipe)
        clipped = surrogate(case.new, update, recipe)[1]
        signs = update.advantages.sign()[:, None].expand_as(clipped)
        sampled = update.mask & (update.keep & ~update.is_anchor)[:, None]
        bounded |= set(zip(signs[sampled].tolist(), clipped[sampled].tolist(), strict=True))
    assert (torch.stack(gradients) != 0).any()
    if recipe.rollouts and recipe.clip != (0, math.inf):
        signs = (1.0,) if recipe.baseline == "none" else (1.0, -1.0)  # reinforce has no A below 0
        assert bounded >= {(sign, clipped) for sign in signs for clipped in (True, False)}, "both sides of every bound"


def test_dagrpos_gradient_is_eq_13_assembled_from_each_responses_own():
    """Eq. 13 at ratio 1 on real parameters: sum_i A_i M_i grad log pi(o_i) / (N * max_new_tokens), one i at a time."""
    torch.manual_seed(0)
    recipe, case = METHODS["dagrpo"], random_case(1, METHODS["dagrpo"])
    R = tensor([[1.0, 1.0, 0.0, 1.0], [1.0, 0.0, 0.0, 1.0]])
    S = tensor([[10.0, 4.0, 4.5, 10.0], [7.5, 1.0, 4.5, 10.0]])
    model = torch.nn.Sequential(torch.nn.Embedding(4, 3), torch.nn.Linear(3, 4))  # a bigram model; 3 is the prompt
    context = torch.cat([torch.full((8, 1), 3), case.tokens[:, :-1]], dim=1)
    logp = model(context).log_softmax(-1).gather(2, case.tokens[:, :, None]).squeeze(2)  # (N, T)
    update = update_of(replace(case, R=R, S=S, old=logp.detach()), recipe)
    policy_loss(logp, update, recipe).backward()
    # A: group 1's mean is 3/4, group 2's 1/2. M, delta 3: in group 1 the negative has S = 4.5 and the worst positive
    # 4 (masked, as is that positive); 10 - 4.5 stays. In group 2 7.5 - 4.5 >= 3 is the smallest gap: all stay.
    A_times_M = [0.25, 0.0, 0.0, 0.25, 0.5, -0.5, -0.5, 0.5]
    wanted = [torch.zeros_like(p) for p in model.parameters()]
    for i, coefficient in enumerate(A_times_M):
        length = int(case.mask[i].sum())
        alone = model(context[i, :length]).log_softmax(-1)[range(length), case.tokens[i, :length]].sum()  # log pi(o_i)
        for whole, part in zip(wanted, torch.autograd.grad(alone, list(model.parameters())), strict=True):
            whole += coefficient * part / (8 * case.max_new_tokens)
    for parameter, gradient in zip(model.parameters(), wanted, strict=True):
        assert gradient.abs().max() > 1e-6
        assert_close(-parameter.grad, gradient, **tight)
