"""analysis.experiments.own_scores: candidates by hand on a group of four, the orderings, and training with one."""

import json
import math
from dataclasses import replace

import pandas as pd
import pytest
import torch
from helpers import metrics

import rollout
import scoring
import tasks
from analysis.experiments import controls, own_scores
from analysis.experiments.own_scores import OWN, agree, fluent, own_score, sure
from analysis.experiments.own_scores import own_scores as scores_of
from dagrpo import group_advantages, rectification_mask
from rollout import Groups

PROBLEM = tasks.solve("12+5-3=", "2")
TEXTS = ["12+5=17;17-3=14;#14", "#14", "12+5=16;16-3=13;#13", "12+5=17;17-3=14;#1"]


@pytest.fixture
def group(untrained):
    """Four responses with log-probs of our choice: -0.1 on every token, -1 on those of the second's answer."""
    rollouts = rollout.sample_groups(untrained, [PROBLEM], [4], 24)
    ids = [untrained.encode_response(text) for text in TEXTS]
    lengths = torch.tensor(list(map(len, ids)))
    mask = torch.arange(int(lengths.max())) < lengths[:, None]  # (N, T)
    logp = torch.full(mask.shape, -0.1).masked_fill(~mask, 0.0)
    logp[1, 1:4] = -1.0
    tokens = torch.nn.utils.rnn.pad_sequence(list(map(torch.tensor, ids)), batch_first=True)
    return replace(rollouts, tokens=tokens, mask=mask, logp=logp, entropy=logp * 0, texts=TEXTS)


def test_sure_is_the_probability_of_the_answers_tokens(group):
    """14 and the end: three tokens; 1 and the end: two."""
    assert sure(group).tolist() == pytest.approx([math.exp(-x) for x in (0.3, 3, 0.3, 0.2)])
    without = replace(group, texts=["12+5=17", *TEXTS[1:]])
    assert sure(without)[0] == 0, "no answer is marked"


def test_agree_counts_responses_with_other_steps_alone(group):
    """The first: of the bare one and the one with a wrong step, one has 14; the last has its steps and is not asked."""
    assert agree(group).tolist() == pytest.approx([1 / 2, 1 / 3, 0, 0])
    alone = replace(group, texts=["#14", "#14", "#13", "#"])
    assert agree(alone).tolist() == [0, 0, 0, 0]


def test_fluent_is_the_mean_probability_of_all_tokens(group):
    assert fluent(group)[0] == pytest.approx(math.exp(-0.1))
    assert fluent(group)[1] == pytest.approx((math.exp(-0.1) + 3 * math.exp(-1)) / 4)


@pytest.mark.parametrize("kind", OWN)
def test_a_score_is_in_its_range_and_the_mask_follows_from_it(group, kind):
    R = scoring.rewards(group)
    S, A = scores_of(kind, group, R), group_advantages(R)
    assert (S >= 1).all() and (S <= 10).all() and S.shape == (1, 4)
    nothing = torch.zeros_like(R, dtype=torch.bool)
    found = own_score(Groups(group, R, S * 0, A, nothing, nothing, 4, 0), kind)
    assert torch.equal(found.scores, S)
    assert torch.equal(found.keep, rectification_mask(A, S)) and torch.equal(found.distinct, found.keep)


def test_the_exact_score_orders_as_itself_and_the_table_has_every_candidate(tiny, monkeypatch, tmp_path):
    monkeypatch.setattr(scoring, "verify", lambda response, answer, ended=True: len(response) % 2 == 0)
    rows = own_scores.orderings(tiny, tasks.arithmetic("validation", 4), "plain", "tiny")
    found = pd.DataFrame(rows)
    exact = found[found["kind"] == "exact"]
    assert (exact["correlation"].dropna() > 1 - 1e-9).all() and (exact["same_mask"] == 1).all()
    shown = own_scores.table(found)
    assert all(f"| tiny | {kind} |" in shown for kind in ("exact", *OWN))


def test_training_takes_one_and_says_so(tiny_folder, tmp_path, even_is_right):
    flags = ["--steps", "1", "--batch-prompts", "2", "--group-size", "4", "--max-new-tokens", "44", "--show-every", "0"]
    out = tmp_path / "run"
    controls.run("own_score=sure", ["--method", "dagrpo_on", "--model", str(tiny_folder), "--out", str(out), *flags])
    assert json.loads((out / "config.json").read_text())["experiment"] == "own_score=sure"
    assert len(metrics(out)) == 1


@pytest.mark.parametrize(
    ("name", "method", "message"),
    [
        ("own_score=luck", "dagrpo_on", "own_score=luck: choose from sure"),
        ("own_score=sure", "dagrpo", "not dagrpo"),
        ("own_score=sure", "dr_grpo", "not dr_grpo"),
    ],
)
def test_what_cannot_be_trained_with_it_is_one_line(name, method, message, capsys):
    with pytest.raises(SystemExit):
        controls.run(name, ["--method", method])
    assert message in capsys.readouterr().err
