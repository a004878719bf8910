"""The losses (Eq. 2, 10-13 and the recipes' papers): closed forms, and a slow loop against the tensor code.

A push is -dloss/dlogp of a token: what gradient descent adds to its log-prob, up to the step size. What holds of any
batch is in test_loss.py.
"""

import math
from dataclasses import replace
from math import log, sqrt

import pytest
import torch
from helpers import (
    NAN,
    anchor,
    every_recipe,
    ln_2,
    more_rows,
    pushes,
    random_case,
    tight,
    two_responses,
    undistinct_rows,
    update_of,
)
from torch import tensor
from torch.testing import assert_close

from dagrpo import METHODS, policy_loss, surrogate

pytestmark = pytest.mark.usefixtures("double_precision")

# ---------------------------------------------------------------------------------------- closed forms, by hand


# scale "group": the mean is 1/2, the unbiased std of (1, 0) is sqrt(1/4 + 1/4) = sqrt(1/2)
a = 0.5 / (sqrt(0.5) + 1e-4)


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        # sequence: 1/(2 rows * 4 tokens) = 1/8 and 1/(2 * 3) = 1/6.  A = +a, -a.  A * ratio / divisor where not clipped
        ("grpo", [a / 8, 0, 0, a / 16], [-6 * a / 6, 0, -1.25 * a / 6]),
        # constant: 1/(2 * 10) = 1/20.  A = +1/2, -1/2.  1/40; 1/2 * 1/40;  6/40, 1.25/40
        ("dr_grpo", [0.025, 0, 0, 0.0125], [-0.15, 0, -0.03125]),
        # tokens: 1/7.  The upper clip is 1.28, so the token at 1.25 is in
        ("dapo", [a / 7, 1.25 * a / 7, 0, 0.5 * a / 7], [-6 * a / 7, 0, -1.25 * a / 7]),
        # one ratio a row: (1 * 1.25 * 6 * .5)^(1/4) = 3.75^(1/4) > 1.0004 and A > 0: clipped;  (6 * .5 * 1.25)^(1/3)
        # = 3.75^(1/3) and A < 0: kept.  All 3 terms have 1/3 of the ratio's gradient: A * ratio / (2 * 3) on each token
        ("gspo", [0, 0, 0, 0], [-(3.75 ** (1 / 3)) * a / 6] * 3),
        # min(ratio, 5) * A / 7 for every token
        ("cispo", [a / 7, 1.25 * a / 7, 5 * a / 7, 0.5 * a / 7], [-5 * a / 7, -0.5 * a / 7, -1.25 * a / 7]),
        # A = 1 - 0, 0 - 1 against the other; ratio 1; 1/20
        ("rloo", [0.05] * 4, [-0.05] * 3),
        # A = 1/2 - 0.1 * 0.5 = 0.45 and -1/2 - 0.1 * 0.2 = -0.52; 1/8 and 1/6; conflict tokens 2 and 0; no clip
        # 0.45/8 * (2 * 1, 1.25, 6, 2 * 0.5);  0.52/6 * 0.5
        ("gtpo", [0.1125, 0.0703125, 0.3375, 0.05625], [0, -0.26 / 6, 0]),
    ],
)
def test_closed_form_of_the_recipes_without_anchors_and_masks(name, right, wrong):
    push, _ = pushes(two_responses(), METHODS[name])
    assert_close(push, tensor([right, [*wrong, 0.0]]), **tight)


def test_closed_form_of_gspo_at_its_narrow_clip():
    """Mean log-ratios of +3.5e-4, +4.5e-4 (A > 0) and -2.5e-4, -3.5e-4 (A < 0): the second and the last are out."""
    case = two_responses()
    means = tensor([3.5e-4, 4.5e-4, -2.5e-4, -3.5e-4])[:, None]
    spread = tensor([0.3, -0.5, 0.2, 0.0])  # sums to 0: single tokens are far outside
    case = replace(
        more_rows(case, tensor([[1.0, 1.0, 0.0, 0.0]]), tensor([[10.0, 10.0, 1.0, 1.0]])),
        **{part: torch.zeros(4, 4) for part in ("new", "ref", "entropy", "entropy_old")},
        old=-(means + spread),
        tokens=torch.zeros(4, 4),
        mask=torch.ones(4, 4, dtype=torch.bool),
        is_anchor=torch.zeros(4, dtype=torch.bool),
    )
    # A = +-1/2 over the std of (1, 1, 0, 0), sqrt(4 * 1/4 / 3) = sqrt(1/3); divisor 4 rows * 4 tokens
    A = 0.5 / (sqrt(1 / 3) + 1e-4)
    push, _ = pushes(case, METHODS["gspo"])
    wanted = tensor([A * math.exp(3.5e-4) / 16, 0.0, -A * math.exp(-2.5e-4) / 16, 0.0])
    assert_close(push, wanted[:, None].expand(4, 4), **tight)


def test_closed_form_of_luffy():
    """R = 1, 0, 1: A = 1/3, -2/3, 1/3; constant 1/(3 * 10); no clip; the anchor's tokens weigh 0.1 p / (p + 0.1)^2.

    Rollouts: ratio * 1/90 and ratio * -2/90. The anchor: d/dlogp p/(p + 0.1) = 0.1 p / (p + 0.1)^2 = 0.04/0.25 = 0.16
    and 0.01/0.04 = 0.25. The entropy bonus: 0.001/30 on each of the 4 + 3 + 2 tokens.
    """
    case = more_rows(two_responses(), tensor([[1.0, 0.0, 1.0]]), tensor([[10.0, 1.0, 10.0]]), **anchor)
    push, on_entropy = pushes(case, METHODS["luffy"])
    rows = [[1.0, 1.25, 6.0, 0.5], [-12.0, -1.0, -2.5, 0.0], [0.16, 0.25, 0.0, 0.0]]
    assert_close(push, tensor(rows) / 90, **tight)
    assert_close(on_entropy, case.mask * (0.001 / 30), **tight)


def test_closed_form_of_dagrpo_without_anchors():
    """R = 1, 0, 1, 0: A = +-1/2. Constant 1/(4 * 10), also over the masked rows: 1/80 times the ratio."""
    rows = undistinct_rows()
    case = more_rows(two_responses(), tensor([[1.0, 0.0, 1.0, 0.0]]), tensor([[10.0, 1.0, 6.0, 4.0]]), **rows)
    push, _ = pushes(case, METHODS["dagrpo_on"])
    wanted = [[1 / 80, 0, 0, 0.5 / 80], [-6 / 80, 0, -1.25 / 80, 0], [0.0] * 4, [0.0] * 4]
    assert_close(push, tensor(wanted), **tight)


def test_closed_form_of_dagrpo():
    """R = 1, 0, 1, 0, 1: A = 0.4, -0.6. Constant 1/(5 * 10): 0.008 and -0.012 times the ratio; anchors have none."""
    case = more_rows(two_responses(), tensor([[0.0, 0.0]]), tensor([[0.0, 0.0]]), **undistinct_rows())
    case = more_rows(case, tensor([[1.0, 0.0, 1.0, 0.0, 1.0]]), tensor([[10.0, 1.0, 6.0, 4.0, 10.0]]), **anchor)
    push, _ = pushes(case, METHODS["dagrpo"])
    wanted = [[0.008, 0, 0, 0.004], [-0.072, 0, -0.015, 0], [0.0] * 4, [0.0] * 4, [0.008, 0.008, 0, 0]]
    assert_close(push, tensor(wanted), **tight)


def test_closed_form_of_sft():
    """Two demonstrations of 4 and 3 tokens, each a group of its own, A = 1 whatever R: log p, each of 7 tokens 1/7.

    The loss is the mean of -log p, and every p is 0.4; ratios, clip and scores play no part.
    """
    recipe, case = METHODS["sft"], two_responses()
    alone = tensor([[1.0], [0.0]])  # (B, 1)
    case = replace(case, R=alone, S=alone * NAN, is_anchor=tensor([True, True]), old=torch.full((2, 4), NAN))
    push, _ = pushes(case, recipe)
    assert_close(push, case.mask / 7, **tight)
    loss = policy_loss(case.new, update_of(case, recipe), recipe)
    assert loss.item() == pytest.approx(-log(0.4), rel=1e-12)


def test_an_anchor_can_be_masked_and_a_wrong_one_is_pushed_down():
    """PAPER.md's safety net: it is Eq. 8-9 like for any row. A = +-1/2, constant 1/(2 * 10)."""
    case = two_responses()
    case = replace(
        case, is_anchor=tensor([False, True]), old=torch.full((2, 4), NAN).where(tensor([[0], [1]]) == 1, case.new)
    )
    for R, S, wanted in (
        ([0.0, 1.0], [4.0, 6.5], 0.0),
        ([0.0, 1.0], [4.0, 7.0], 0.025),
        ([1.0, 0.0], [10.0, 1.0], -0.025),
    ):
        push, _ = pushes(replace(case, R=tensor([R]), S=tensor([S])), METHODS["dagrpo"])
        assert_close(push[1], tensor([wanted] * 3 + [0.0]), **tight)


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("dr_grpo", [0, 1, 1, 0], [0, 1, 0]),
        ("dapo", [0, 0, 1, 0], [0, 1, 0]),
        ("gspo", [1, 1, 1, 1], [0, 0, 0]),
        ("cispo", [0, 0, 1, 0], [1, 0, 0]),
        ("rloo", [0, 0, 0, 0], [0, 0, 0]),
    ],
)
def test_the_clip_says_which_tokens_it_touched(name, right, wrong):
    case = two_responses()
    _, clipped = surrogate(case.new, update_of(case, METHODS[name]), METHODS[name])
    assert clipped.int().tolist() == [right, [*wrong, 0]]


def test_neither_masked_rows_nor_anchors_count_as_clipped():
    case = more_rows(two_responses(), tensor([[1.0, 0.0, 1.0]]), tensor([[10.0, 8.0, 10.0]]), **anchor)
    _, clipped = surrogate(case.new, update_of(case, METHODS["dagrpo"]), METHODS["dagrpo"])
    assert not clipped.any()


def test_min_for_both_signs_of_the_advantage():
    """A token that went up (ratio 2) though A < 0 must be pulled back; max would leave it. And the mirror image."""
    recipe = METHODS["dr_grpo"]
    case = two_responses()
    update = replace(update_of(case, recipe), advantages=tensor([-1.0, 1.0]))
    logp = (update.logp_old + tensor([[log(2.0)], [log(0.5)]])).requires_grad_()
    objective, clipped = surrogate(logp, update, recipe)
    assert_close(objective[update.mask], tensor([-2.0] * 4 + [0.5] * 3), **tight)  # max: -1.2 and 0.8
    assert not clipped.any()
    objective[update.mask].sum().backward()
    assert_close(logp.grad, tensor([[-2.0] * 4, [0.5] * 3 + [0.0]]), **tight)  # max: 0


# ---------------------------------------------------------------------------------------- PAPER.md's table, literally

PINNED = {  # baseline, std, ratio, clip (low, high) or none, divisor
    "grpo": ("mean", True, "token", (0.2, 0.2), "sequence"),
    "dr_grpo": ("mean", False, "token", (0.2, 0.2), "constant"),
    "dapo": ("mean", True, "token", (0.2, 0.28), "tokens"),
    "gspo": ("mean", True, "sequence", (3e-4, 4e-4), "sequence"),
    "cispo": ("mean", True, "cispo", None, "tokens"),
    "rloo": ("others", False, "one", None, "constant"),
    "gtpo": ("mean", False, "token", None, "sequence"),
    "luffy": ("mean", False, "token", None, "constant"),
    "dagrpo_on": ("mean", False, "token", (0.2, 0.2), "constant"),
    "dagrpo": ("mean", False, "token", (0.2, 0.2), "constant"),
    "sft": (
        "none",
        False,
        "one",
        None,
        "tokens",
    ),  # not in the table: the mean of -log p over the demonstrations' tokens
}


def test_methods_has_the_ten_recipes_and_sft():
    assert METHODS.keys() >= PINNED.keys()


def slow_loss(name, case, new, entropy, kl_beta):
    """The loss of a whole update, sequence by sequence and token by token; `new`, `entropy` are lists of scalars."""
    baseline, std, ratio_kind, clip, divisor = PINNED[name]
    B, G = case.R.shape
    lengths = case.mask.sum(1).tolist()
    total = tensor(0.0)
    for b in range(B):
        R, S = case.R[b].tolist(), case.S[b].tolist()
        rows = range(b * G, (b + 1) * G)
        A = []
        for i in range(G):
            others = [R[k] for k in range(G) if baseline == "mean" or k != i]
            A.append(1.0 if baseline == "none" else R[i] - sum(others) / len(others))
            if std and len(set(R)) > 1:
                mean = sum(R) / G
                A[i] /= sqrt(sum((r - mean) ** 2 for r in R) / (G - 1)) + 1e-4
        positive, negative = [i for i in range(G) if A[i] > 0], [i for i in range(G) if A[i] < 0]
        for i, n in enumerate(rows):
            tokens, length = case.tokens[n].tolist(), lengths[n]
            advantage, keep, token_weights = A[i], True, [1.0] * length
            if name in ("dagrpo", "dagrpo_on") and A[i] != 0:  # Eq. 8, 9
                mine, other = (positive, negative) if A[i] > 0 else (negative, positive)
                gaps = [(S[i] - S[k]) if A[i] > 0 else (S[k] - S[i]) for k in other]
                keep = all(gap >= 3.0 for gap in gaps) and not any(math.isnan(S[k]) for k in mine + other)
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
            if ratio_kind == "sequence":
                mean_log_ratio = sum((new[n][t] - case.old[n, t] for t in range(length)), tensor(0.0)) / length
            for t in range(length):
                lp = new[n][t]
                if case.is_anchor[n]:
                    if name == "sft":
                        term = lp * advantage
                    else:
                        ratio = (lp - lp.detach()).exp() if name == "dagrpo" else lp.exp() / (lp.exp() + 0.1)
                        term = ratio * advantage
                elif ratio_kind == "one":
                    term = advantage * lp
                elif ratio_kind == "cispo":
                    term = min((lp - case.old[n, t]).exp().item(), 5.0) * advantage * lp
                else:
                    ratio = mean_log_ratio.exp() if ratio_kind == "sequence" else (lp - case.old[n, t]).exp()
                    term = ratio * advantage
                    if clip:
                        bounded = min(max(ratio.item(), 1 - clip[0]), 1 + clip[1]) * advantage
                        term = term if term.item() <= bounded else tensor(bounded)
                term = term if keep else tensor(0.0)
                if name == "luffy":
                    term = term + 0.001 * entropy[n][t]
                if kl_beta and not case.is_anchor[n]:
                    log_ratio = case.ref[n, t] - lp
                    term = term - kl_beta * (log_ratio.exp() - log_ratio - 1)
                term = term * token_weights[t]  # GTPO's is part of Update.weight, so it falls on a KL term too
                over = {"constant": B * G * case.max_new_tokens, "sequence": B * G * length, "tokens": sum(lengths)}
                total = total - term / over[divisor]
    return total


@every_recipe
@pytest.mark.parametrize("kl_beta", [0.0, 0.05])
def test_the_gradient_is_that_of_the_slow_loop(name, kl_beta):
    if name not in PINNED:
        pytest.skip("a recipe that PAPER.md does not pin")
    recipe = METHODS[name]
    gradients = []
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
    assert (torch.stack(gradients) != 0).any()


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
