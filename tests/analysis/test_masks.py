"""analysis.experiments.masks: pairs and soft weights against loops and limits, and training with them."""

import json
import math

import pytest
import torch
from helpers import many, metrics, seeds
from hypothesis import given
from hypothesis import strategies as st

from analysis.experiments import controls
from analysis.experiments.masks import MASKS, pairs, soft
from dagrpo import group_advantages


def groups(seed):
    """R and S (3, 6): scores in halves, so that gaps are exact."""
    g = torch.Generator().manual_seed(seed)
    return torch.randint(2, (3, 6), generator=g).float(), torch.randint(2, 21, (3, 6), generator=g) / 2


@given(seeds, st.integers(0, 8))
@many
def test_pairs_are_the_pairs(seed, delta):
    R, S = groups(seed)
    found = pairs(R, S, delta)
    for b in range(3):
        for i in range(6):
            wanted = 0.0
            for j in range(6):
                if R[b, i] > R[b, j] and S[b, i] - S[b, j] >= delta:
                    wanted += 1 / 6
                if R[b, i] < R[b, j] and S[b, j] - S[b, i] >= delta:
                    wanted -= 1 / 6
            assert found[b, i] == pytest.approx(wanted, abs=1e-6)
    assert found.sum(dim=1).abs().max() < 1e-6, "centred, whatever is left out"
    assert (pairs(R, S, delta + 1).abs() <= found.abs() + 1e-6).all(), "a larger delta never adds a pair"


@pytest.mark.parametrize("kind", MASKS)
@given(seed=seeds)
@many
def test_where_every_gap_is_large_enough_both_are_dr_grpos_advantages(kind, seed):
    R, S = groups(seed)
    torch.testing.assert_close(MASKS[kind](R, S, -60.0), group_advantages(R), atol=1e-6, rtol=0)


def test_soft_is_half_at_delta_and_needs_every_score():
    R, S = torch.tensor([[1.0, 0.0]]), torch.tensor([[7.0, 4.0]])
    torch.testing.assert_close(soft(R, S, 3.0), torch.tensor([[0.25, -0.25]]))
    assert soft(R, S, 2.0)[0, 0] == pytest.approx(0.5 / (1 + math.exp(-1)))
    for kind in MASKS.values():
        assert not kind(R, torch.tensor([[7.0, math.nan]])).any()
        assert not kind(torch.ones(1, 2), S).any(), "no signal"


@pytest.mark.parametrize("kind", MASKS)
def test_training_takes_one_and_says_so(kind, tiny_folder, tmp_path, even_is_right):
    flags = ["--steps", "1", "--batch-prompts", "2", "--group-size", "4", "--max-new-tokens", "44", "--show-every", "0"]
    out = tmp_path / "run"
    controls.run(f"mask={kind}", ["--method", "dr_grpo", "--model", str(tiny_folder), "--out", str(out), *flags])
    assert json.loads((out / "config.json").read_text())["experiment"] == f"mask={kind}"
    assert len(metrics(out)) == 1


@pytest.mark.parametrize(
    ("name", "method", "message"),
    [("mask=hard", "dr_grpo", "mask=hard: choose from pairs"), ("mask=pairs", "dagrpo_on", "not dagrpo_on")],
)
def test_what_cannot_be_trained_with_it_is_one_line(name, method, message, capsys):
    with pytest.raises(SystemExit):
        controls.run(name, ["--method", method])
    assert message in capsys.readouterr().err
