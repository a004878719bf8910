"""analysis.experiments.one_update: variants are what they are called, and a question leaves the policy as it was."""

import math
from copy import deepcopy
from dataclasses import replace

import pandas as pd
import pytest
import torch

from analysis.experiments import one_update, questions
from analysis.experiments.one_update import shared_tokens, variants
from analysis.gradients import gram, net_share, response_gradients
from dagrpo import divisor_weights
from harness.warm_start import find_start
from rollout import sample_groups
from tasks import solve

A = torch.tensor([[0.5, 0.5, -0.5, -0.5]])
S = torch.tensor([[10.0, 4.5, 3.5, 1.0]])


def test_the_variants_by_hand():
    torch.manual_seed(0)
    found = {variant: (a.tolist()[0], keep.tolist()[0]) for variant, (a, keep) in variants(A, S).items()}
    assert list(found) == [
        "dr_grpo",
        "positives alone",
        "Eq. 8-9",
        "random",
        "Eq. 8-9, centred",
        "soft",
        "gtpo",
        "grpo",
    ]
    assert found["dr_grpo"] == (A.tolist()[0], [True] * 4) == found["gtpo"] == found["grpo"]
    assert found["positives alone"][1] == [True, True, False, False]
    assert found["Eq. 8-9"][1] == [True, False, False, True], "10 - 3.5 and 4.5 - 1 are above 3, 4.5 - 3.5 is not"
    assert sum(found["random"][1][:2]) == sum(found["random"][1][2:]) == 1
    assert found["Eq. 8-9, centred"] == ([0.5, 0.5, -0.5, -0.5], [True, False, False, True]), "they add up to 0"
    wanted = [0.5 / (1 + math.exp(-gap)) for gap in (3.5, -2.0)] + [-0.5 / (1 + math.exp(-gap)) for gap in (-2.0, 0.5)]
    assert found["soft"] == (pytest.approx(wanted), [True] * 4)


def test_centred_means_that_the_kept_advantages_add_up_to_0():
    advantages = torch.tensor([[0.7, 0.7, -0.3, -1.1]])
    a, keep = variants(advantages, S)["Eq. 8-9, centred"]
    assert (a * keep).sum().item() == pytest.approx(0, abs=1e-7) and a[~keep].tolist() == advantages[~keep].tolist()


def test_a_question_is_measured_and_the_weights_are_put_back(tiny, monkeypatch):
    torch.manual_seed(1)
    monkeypatch.setattr("scoring.verify", lambda response, answer, ended=True: len(response) % 2 == 0)
    before = {name: x.clone() for name, x in tiny.model.state_dict().items()}
    rows = next(found for i in range(20) if (found := one_update.changes(tiny, solve(f"1+{i}=", "1"), "plain")))
    assert [row.variant for row in rows] == list(variants(A, S))
    assert all(math.isfinite(row.wrong) for row in rows)
    assert rows[0].wrong < rows[1].wrong, "positives alone do not push wrong ones down"
    assert all(torch.equal(x, before[name]) for name, x in tiny.model.state_dict().items())
    net = {row.variant: row.net for row in rows}
    assert net["positives alone"] == pytest.approx(1) and 0 < net["dr_grpo"] < 1


def test_the_net_share_is_that_of_the_exact_gradients(tiny):
    torch.manual_seed(0)
    rollouts, right = sample_groups(tiny, [solve("1+2=", "1")], [8], 16), torch.arange(8) < 3
    a, every, rows = (right.float() - 3 / 8)[None], torch.ones(1, 8, dtype=torch.bool), torch.arange(8)
    weight = divisor_weights(rollouts.mask, "constant", one_update.MAX_NEW_TOKENS)
    products = gram(response_gradients(tiny, rollouts, rows, weight))
    wanted = net_share(products, a[0].numpy(), every[0].numpy())
    assert one_update.step(tiny, rollouts, "dr_grpo", a, every, right)[1] == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize(
    ("variant", "total"),
    [("dr_grpo", 0.0), ("positives alone", 3 * 5 / 8), ("grpo", 64 * (3 * 5 / 8 / 2 - 5 * 3 / 8 / 4))],
)
def test_pushes_on_shared_tokens_add_up_to_0_unless_rows_or_their_weights_differ(tiny, variant, total):
    """Three right rows of 2 tokens, five wrong ones of 4, which begin alike."""
    rollouts, right = sample_groups(tiny, [solve("1+2=", "1")], [1], 4), torch.arange(8) < 3
    rollouts = rollouts.select(torch.zeros(8, dtype=torch.long))
    ends = torch.where(right, 2, 4)[:, None]  # (G, 1)
    rollouts = replace(rollouts, tokens=rollouts.tokens[:, :1].expand(8, 4), mask=torch.arange(4) < ends)
    rollouts = replace(rollouts, logp=one_update.measure(tiny, rollouts)[0])  # ratio 1
    a, weights = (right.float() - 3 / 8)[None], deepcopy(tiny.model.state_dict())
    keep = a > 0 if variant == "positives alone" else torch.ones(1, 8, dtype=torch.bool)
    push, _ = one_update.step(tiny, rollouts, variant, a, keep, right)
    tiny.model.load_state_dict(weights)
    pushes = push[:, :2].sum(dim=0) * 8 * one_update.MAX_NEW_TOKENS  # (2,)
    torch.testing.assert_close(pushes, torch.full_like(pushes, total), atol=1e-4, rtol=1e-5)


def test_the_change_along_the_push_is_beyond_dr_grpos_and_of_groups_with_a_push():
    shared = {"dr_grpo": (0.001, 0.002, 0.003), "x": (0.003, 0.001, 0.9)}
    push = {"dr_grpo": (0.0, 0.0, 0.0), "x": (1.0, -2.0, 0.0)}  # along it: +0.002 and +0.001
    rows = [
        {"question": question, "variant": variant, "shared": shared[variant][i], "push": push[variant][i]}
        for variant in shared
        for i, question in enumerate("abc")
    ]
    rows = pd.DataFrame(rows).assign(
        **dict.fromkeys(("kept", "net", "derived", "lucky", "wrong", "shared_entropy"), 0.0)
    )
    baseline, x = one_update.table(rows).splitlines()[2:]
    assert baseline.endswith("| 0.00 |  |  |") and "| 1.00 | 2: +1.5 [" in x and x.endswith("| 2: +0.0 [+0.0, +0.0] |")


def test_shared_tokens_are_those_of_all_rows_from_the_start(tiny):
    rollouts = sample_groups(tiny, [solve("1+2=", "1")], [3], 8)
    same = rollouts.select(torch.tensor([0, 0]))
    assert shared_tokens(same) == int(same.lengths[0])
    other = same.tokens.clone()
    other[1, 0] += 1
    assert shared_tokens(one_update.Rollouts(**{**vars(same), "tokens": other})) == 0


def test_the_command_line(tiny_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(questions, "find_start", lambda name, world: find_start(str(tiny_folder)))
    monkeypatch.setattr("scoring.verify", lambda response, answer, ended=True: len(response) % 2 == 0)
    one_update.main(["--questions", "3", "--csv", str(tmp_path / "new" / "one.csv")])
    assert capsys.readouterr().out.count("| dr_grpo |") == 1
    assert (tmp_path / "new" / "one.csv").read_text().count("\n") >= 1 + len(variants(A, S))
