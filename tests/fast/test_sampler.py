"""draw.py: tokens are drawn by inversion, whatever the vocabulary's size; what is ruled out is not drawn."""

import math

import numpy as np
import pytest
import torch

from fast.draw import Sampler, draw


def test_a_draw_is_by_inversion(monkeypatch):
    """u is given: what is drawn is the index in whose share of [0, 1) it lies, also at the shares' borders."""
    probability = torch.tensor([[0.0, 0.25, 0.0, 0.5, 0.25, 0.0]])
    shares = {0.0: 1, 0.2: 1, 0.25: 3, 0.5: 3, 0.74: 3, 0.75: 4, 1 - 2**-53: 4}
    for u, index in shares.items():
        monkeypatch.setattr(torch, "rand", lambda n, *_, u=u, **__: torch.full((n, 1), u, dtype=torch.float64))
        assert draw(probability).tolist() == [[index]]


def test_small_probabilities_of_a_large_vocabulary_are_drawn(monkeypatch):
    """In fp32 a sum near 1 does not grow by 1e-9, and the words behind it could never be drawn."""
    rare = torch.full((1, 150_000), 1e-9, dtype=torch.float64)
    rare[0, 0] = 1 - rare[0, 1:].sum()
    share = float(rare.float().double()[0, 1:].sum() / rare.float().double().sum())
    for part in (0.25, 0.5, 0.9):
        u = 1 - share + part * share
        monkeypatch.setattr(torch, "rand", lambda n, *_, u=u, **__: torch.full((n, 1), u, dtype=torch.float64))
        assert abs(draw(rare.float()).item() - part * 150_000) < 5


@pytest.mark.parametrize("size", [5, 1024, 1025, 3000])
def test_drawing_in_two_stages_is_one_inversion(monkeypatch, size):
    """Beside numpy's search in all cumulative sums; every second probability is 0, and never drawn."""
    rng = np.random.default_rng(size)
    weights = rng.random(size) * (np.arange(size) % 2 == 0)
    probability = torch.tensor(weights / weights.sum(), dtype=torch.float64)
    u = torch.tensor(rng.random(2000))[:, None]
    monkeypatch.setattr(torch, "rand", lambda *_, **__: u)
    expected = np.searchsorted(np.cumsum(probability.numpy()), u[:, 0].numpy(), side="right")
    assert draw(probability.expand(len(u), size))[:, 0].tolist() == expected.tolist()


def test_a_token_that_is_ruled_out_is_never_drawn_and_spoils_no_entropy():
    scores = torch.full((100, 6), -torch.inf)
    scores[:, [1, 4]] = torch.tensor([0.0, math.log(3.0)])
    sampler = Sampler(temperature=1.0, greedy=False)
    drawn = sampler(None, scores).argmax(dim=1)  # as `generate` reads it
    assert set(drawn.tolist()) == {1, 4}
    expected = torch.where(drawn == 1, math.log(1 / 4), math.log(3 / 4))
    torch.testing.assert_close(sampler.logp[0], expected)
    entropy = -0.25 * math.log(0.25) - 0.75 * math.log(0.75)
    torch.testing.assert_close(sampler.entropy[0], torch.full((100,), entropy))
