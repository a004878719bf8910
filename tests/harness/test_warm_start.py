"""warm_start.py: the tokenizer, SFT's loss, the warm start and its cache."""

from dataclasses import replace

import pytest
import torch
from helpers import gradient

import tasks
from eval import evaluate
from harness import warm_start as module
from harness.warm_start import (
    WarmStart,
    build_tokenizer,
    demonstration_backward,
    find_start,
    find_tokenizer,
    of_world,
    warm_start,
    warm_start_batches,
)
from maths import benchmarks
from policy import load_policy

SMALL = WarmStart(steps=2, batch=4, width=16, layers=1, heads=1, mlp=16)


@pytest.fixture
def pairs():
    """Questions and responses of quite different lengths, not in their order."""
    problems = tasks.arithmetic("train", per_level=2)
    return [(p.question, p.demo if i % 2 else tasks.direct(p)) for i, p in enumerate(problems)][::-1]


def test_every_character_of_the_task_is_a_token_and_comes_back(tiny):
    for problem in tasks.arithmetic("train", 5, levels=tasks.LEVELS | tasks.OOD_LEVELS):
        for text in (problem.question, problem.demo):
            ids = tiny.tokenizer.encode(text, add_special_tokens=False)
            assert len(ids) == len(text) and tiny.tokenizer.unk_token_id not in ids
            assert tiny.tokenizer.decode(ids) == text


@pytest.mark.parametrize("text", ["x", " ", "\n", "é", "\U0001f600"])
def test_any_other_character_is_one_unknown_token(tiny, text):
    assert tiny.tokenizer.encode(f"1{text}2")[1:-1] == [tiny.tokenizer.unk_token_id]


def test_sfts_gradient_is_that_of_one_padded_batch_whatever_its_parts(tiny, pairs):
    """Against transformers' own loss over the whole batch, prompts and pads at -100."""
    rows = [(tiny.encode_prompt(q), tiny.encode_response(r)) for q, r in pairs]
    width = max(len(p) + len(r) for p, r in rows)
    ids = torch.tensor([p + r + [tiny.pad_id] * (width - len(p) - len(r)) for p, r in rows])
    labels = torch.tensor([[-100] * len(p) + r + [-100] * (width - len(p) - len(r)) for p, r in rows])
    attention = torch.tensor([[1] * (len(p) + len(r)) + [0] * (width - len(p) - len(r)) for p, r in rows])
    tiny.model.zero_grad()
    whole = tiny.model(input_ids=ids, attention_mask=attention, labels=labels).loss
    whole.backward()
    wanted = gradient(tiny)
    for rows_at_once in (1, 3, 16):
        tiny.model.zero_grad()
        loss = demonstration_backward(tiny, pairs, rows_at_once)
        assert loss == pytest.approx(whole.item(), rel=1e-5)
        assert (gradient(tiny) - wanted).norm() < 1e-5 * wanted.norm()
    tiny.model.zero_grad()


def test_the_warm_start_sees_the_train_split_alone_and_both_styles():
    seen = [pair for _, batch in zip(range(40), warm_start_batches(WarmStart()), strict=False) for pair in batch]
    assert {tasks.split_of(question) for question, _ in seen} == {"train"}
    direct = sum(response.startswith("#") for _, response in seen) / len(seen)
    long = sum(question.count("+") + question.count("-") == 5 for question, _ in seen) / len(seen)
    assert 0.45 < direct < 0.55 and 0.04 < long < 0.12, "half are direct, and half of the OOD share is ood-long"


def test_the_warm_start_is_trained_once_per_setting_and_leaves_the_random_state_alone(tmp_path, monkeypatch):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    folder = warm_start(SMALL, tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    assert load_policy(str(folder)).model.num_parameters() > 0
    other = warm_start(replace(SMALL, seed=1), tmp_path)
    assert other != folder and sorted(map(str, tmp_path.iterdir())) == sorted([folder, other])
    monkeypatch.setattr(module, "train_warm_start", lambda settings: pytest.fail("trained a second time"))
    assert warm_start(SMALL, tmp_path) == folder


def test_what_comes_with_the_project_is_not_trained_and_is_nearly_what_was(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SHIPPED", tmp_path / "starts")
    assert module.shipped(SMALL) is None
    trained = load_policy(warm_start(SMALL, tmp_path / "trained")).model.state_dict()
    module.ship(SMALL)
    monkeypatch.setattr(module, "train_warm_start", lambda settings: pytest.fail("trained"))
    found = load_policy(warm_start(SMALL, tmp_path / "cache")).model.state_dict()
    assert found.keys() == trained.keys()
    for name, x in found.items():
        assert x.dtype == torch.float32
        torch.testing.assert_close(x, trained[name], rtol=2**-8, atol=1e-9)  # bf16 has 8 bits


@pytest.mark.parametrize("world", module.SHIPPED_WORLDS)
def test_the_shipped_weights_are_those_of_todays_settings(world):
    """Who changes a world or the warm start has to run python -m harness.warm_start --ship."""
    assert module.shipped_file(of_world(world)).exists()
    assert len(list(module.SHIPPED.iterdir())) == len(module.SHIPPED_WORLDS)


@pytest.mark.extra
@pytest.mark.parametrize("world", ["plain"])  # a minute or two each
def test_the_command_still_makes_an_equivalent_start(world):
    """Another machine rounds otherwise and gets other weights: as good, level by level, within 0.2 of 100 problems."""
    problems = benchmarks.built_in("test", world=world)
    policies = module.shipped(of_world(world)), module.train_warm_start(of_world(world))
    levels = [evaluate(policy, problems, 0, 1.0, 64, 256, seed=0) for policy in policies]
    accuracy = torch.tensor([[level.greedy.accuracy for level in found] for found in levels])  # (2, levels)
    lengths = torch.tensor([[level.greedy.length for level in found] for found in levels])
    assert (accuracy[0] - accuracy[1]).abs().max() < 0.2 and (accuracy[0] - accuracy[1]).mean().abs() < 0.1
    assert (lengths[0] - lengths[1]).abs().max() < 8


def test_a_killed_warm_start_leaves_no_folder_that_looks_whole(tmp_path, monkeypatch):
    def killed(policy, folder):
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "save_policy", killed)
    with pytest.raises(KeyboardInterrupt):
        warm_start(SMALL, tmp_path)
    assert not any(tmp_path.iterdir())


def test_without_a_name_a_run_begins_with_the_warm_start_and_its_tokenizer(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "warm_start", lambda settings: "the warm start")
    assert find_start(None) == find_start("warm_start") == "the warm start"
    assert find_start("owner/name") == "owner/name" and find_start(str(tiny_folder)) == str(tiny_folder)
    monkeypatch.setattr(module, "warm_start", lambda settings: pytest.fail("a tokenizer needs no model"))
    wanted = build_tokenizer().get_vocab()
    for name in (None, "warm_start", str(tiny_folder)):
        assert find_tokenizer(name).get_vocab() == wanted
