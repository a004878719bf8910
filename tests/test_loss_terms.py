"""What is added to the surrogate or changes it, term by term: KL, the entropy bonus, GTPO's entropy, LUFFY's ratio."""

from dataclasses import replace
from math import log

import pytest
import torch
from helpers import anchor, every_recipe, more_rows, pushes, random_case, tight, two_responses, update_of
from torch import tensor
from torch.testing import assert_close

from dagrpo import METHODS, Update, kl_estimate, surrogate

pytestmark = pytest.mark.usefixtures("double_precision")

KL = ("k1", "k2", "k3", "k3_ratio")


def kl_case(logp, ref, old=None):
    """An update of one row with these log-probs (T,), for kl_estimate."""
    mask, old = torch.ones(1, len(logp), dtype=torch.bool), logp.detach() if old is None else old
    return Update(tensor([1.0]), tensor([True]), mask, mask / 1, old[None], tensor([False]), ref[None])


@pytest.mark.parametrize(
    ("kind", "value", "slope"),
    [
        ("k1", lambda d, r: -d, lambda d, r: 1 + 0 * d),
        ("k2", lambda d, r: d**2 / 2, lambda d, r: -d),
        ("k3", lambda d, r: d.exp() - d - 1, lambda d, r: 1 - d.exp()),
        ("k3_ratio", lambda d, r: r * (d.exp() - d - 1), lambda d, r: -r * d),
    ],
)
def test_the_kl_estimates_and_their_slopes(kind, value, slope):
    """By d = ref - logp and the ratio r = pi / pi_old; through both in k3_ratio: r (e^d - d - 1) + r (1 - e^d)."""
    logp = -torch.linspace(0.01, 8, 50).requires_grad_()
    logp.retain_grad()
    ref, ratio = -torch.linspace(8, 0.01, 50), torch.linspace(0.1, 3, 50)
    found = kl_estimate(logp[None], kl_case(logp, ref, logp.detach() - ratio.log()), kind)[0]
    d = ref - logp.detach()
    assert_close(found.detach(), value(d, ratio), **tight)
    found.sum().backward()
    assert_close(logp.grad, slope(d, ratio), **tight)


def test_whose_gradient_is_that_of_the_kl():
    """A distribution over four tokens, and the mean of each estimate's gradient over its own samples.

    KL(pi || pi_ref)'s is k2's and k3_ratio's; k1's is 0; and k3's is that of KL(pi_ref || pi), the other direction.
    """
    logits, ref = tensor([0.3, -1.0, 0.7, 0.1], requires_grad=True), tensor([1.0, 0.2, -0.4, 0.0]).log_softmax(0)
    logp = logits.log_softmax(0)
    p = logp.exp().detach()

    def gradient(value):
        return torch.autograd.grad(value, logits, retain_graph=True)[0]

    of_kl, other = gradient((logp.exp() * (logp - ref)).sum()), gradient((ref.exp() * (ref - logp)).sum())
    found = {kind: gradient((p * kl_estimate(logp[None], kl_case(logp, ref), kind)[0]).sum()) for kind in KL}
    wanted = {"k1": torch.zeros(4), "k2": of_kl, "k3": other, "k3_ratio": of_kl}
    for kind in KL:
        assert_close(found[kind], wanted[kind], **tight)
    assert not torch.allclose(of_kl, other, rtol=0.1)


@pytest.mark.parametrize("kind", KL)
def test_kl_is_zero_where_the_policies_agree_and_flat_but_for_k1(kind):
    logp = tensor([-0.3, -2.0, -9.0], requires_grad=True)
    value = kl_estimate(logp[None], kl_case(logp, logp.detach()), kind)
    value.sum().backward()
    assert not value.any()
    assert_close(logp.grad, torch.full((3,), 1.0 if kind == "k1" else 0.0))


@pytest.mark.parametrize("kind", ["k3", "k3_ratio"])
def test_k3_is_right_near_zero_in_fp32(kind):
    """k3 is d^2 / 2 there. exp(d) - d - 1 loses all digits: one value in six is below 0 for |d| about 1e-4."""
    torch.manual_seed(0)
    logp = -1e-3 * torch.rand(20_000, dtype=torch.float32)
    ref = logp + 1e-4 * torch.randn(20_000, dtype=torch.float32)
    d = (ref - logp).double()
    naive = (ref - logp).exp() - (ref - logp) - 1
    assert 0.1 < (naive < 0).float().mean() < 0.25
    found = kl_estimate(logp[None], kl_case(logp, ref), kind)[0]
    assert (found >= 0).all()
    assert_close(found.double(), d**2 / 2, rtol=1e-3, atol=1e-11)


@every_recipe
def test_kl_pulls_rollouts_to_the_reference_and_leaves_anchors_alone(name):
    """What kl_beta adds to a push: -beta * slope / divisor on rollouts, masked ones too; by its recipe's estimate.

    In sft all rows are anchors: it adds nothing.
    """
    recipe = METHODS[name]
    for seed in (0, 1, 2, 5):
        case = random_case(seed, recipe)
        added = pushes(case, recipe, kl_beta=0.25)[0] - pushes(case, recipe)[0]
        d, ratio = case.ref - case.new, (case.new - case.old).exp()
        slope = {"k2": -d, "k3": 1 - d.exp(), "k3_ratio": -ratio * d}[recipe.kl]
        pull = -0.25 * slope * update_of(case, recipe).weight
        assert not added[case.is_anchor].any()
        assert case.is_anchor.all() != recipe.rollouts
        assert_close(added[~case.is_anchor], pull[~case.is_anchor], **tight)


def test_luffys_anchor_ratio_has_the_derivative_of_p_over_p_plus_a_tenth():
    """Value p / (p + 0.1), and by dp/dlogp = p the slope 0.1 p / (p + 0.1)^2: largest, 1/4, at p = 0.1."""
    case = more_rows(two_responses(), tensor([[0.0, 1.0, 0.0]]), tensor([[1.0, 1.0, 1.0]]), **anchor)
    case = replace(case, is_anchor=tensor([True] * 3))
    p = tensor([[0.9, 0.5, 0.2, 0.1], [0.05, 0.01, 0.3, 0.7], [1.0, 1e-4, 0.1, 0.1]])
    update = replace(update_of(case, METHODS["luffy"]), advantages=tensor([1.0, -1.0, 3.0]))
    logp = p.log().requires_grad_()
    objective, _ = surrogate(logp, update, METHODS["luffy"])
    sign = tensor([[1.0], [-1.0], [3.0]])
    assert_close(objective, sign * p / (p + 0.1), **tight)
    objective.sum().backward()
    assert_close(logp.grad, sign * 0.1 * p / (p + 0.1) ** 2, **tight)


@pytest.mark.parametrize("divisor", ["constant", "sequence", "tokens"])
def test_the_entropy_bonus_goes_through_the_divisor(divisor):
    """0.001 / divisor on every completion token, of whichever advantage, anchors included."""
    case, recipe = random_case(4, METHODS["luffy"]), replace(METHODS["luffy"], divisor=divisor)
    over = {
        "constant": 8 * case.max_new_tokens,
        "sequence": 8 * case.mask.sum(1, keepdim=True),
        "tokens": case.mask.sum(),
    }
    assert_close(pushes(case, recipe)[1], case.mask * 0.001 / over[divisor], **tight)


def test_gtpo_pushes_a_group_of_equal_rewards_by_its_entropy_alone():
    """A = 0, so -0.1 H is all: H = 0.5 and 0.2; 1/(2 * 4) and 1/(2 * 3); the ratio; and no token is in conflict."""
    case = replace(two_responses(), R=tensor([[1.0, 1.0]]))
    push, _ = pushes(case, METHODS["gtpo"])
    wanted = [[-0.05 * r / 8 for r in (1, 1.25, 6, 0.5)], [-0.02 * r / 6 for r in (6, 0.5, 1.25, 0)]]
    assert_close(push, tensor(wanted), **tight)
    assert not pushes(case, METHODS["dr_grpo"])[0].any()


@pytest.mark.parametrize(
    ("start", "kept"),
    [(0.5, [True, True, False]), (log(2) - 1e-9, [True, True, False]), (log(2), [True] * 3), (2.0, [True] * 3)],
)
def test_gtpo_filters_uncertain_rows_only_if_the_start_was_certain(start, kept):
    """Mean entropies 0.2, ln 2 and 0.8 (pads apart): above ln 2 is left out, at ln 2 it stays."""
    rows = {name: getattr(two_responses(), name)[:1] for name in anchor}
    rows |= {"entropy_old": tensor([[0.7, 0.9, 1.0, 0.6]])}
    case = more_rows(two_responses(), tensor([[0.0, 1.0, 1.0]]), tensor([[1.0] * 3]), **rows)
    case.entropy_old[0], case.entropy_old[1, :3] = log(2), 0.2
    update = update_of(replace(case, start_entropy=start), METHODS["gtpo"])
    assert update.keep[[1, 0, 2]].tolist() == kept
    assert update_of(replace(case, start_entropy=start), METHODS["dr_grpo"]).keep.all()
