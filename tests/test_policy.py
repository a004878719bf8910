"""policy.py: the tokenizer, SFT's loss, the warm start and its cache, and where models are found."""

import platform
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import tasks
from harness.warm_start import WarmStart, demonstration_backward, warm_start, warm_start_batches
from policy import load_policy, resolve_model, save_policy

SMALL = WarmStart(steps=2, batch=4, width=16, layers=1, heads=1, mlp=16)


@pytest.fixture
def pairs():
    """Questions and responses of quite different lengths, not in their order."""
    problems = tasks.arithmetic("train", per_level=2)
    return [(p.question, p.demo if i % 2 else tasks.direct(p)) for i, p in enumerate(problems)][::-1]


def gradients(policy):
    return torch.cat([p.grad.flatten() for p in policy.model.parameters()])


def test_every_character_of_the_task_is_a_token_and_comes_back(tiny):
    for problem in tasks.arithmetic("train", 5, levels=tasks.LEVELS | tasks.OOD_LEVELS):
        for text in (problem.question, problem.demo):
            ids = tiny.tokenizer.encode(text, add_special_tokens=False)
            assert len(ids) == len(text) and tiny.tokenizer.unk_token_id not in ids
            assert tiny.tokenizer.decode(ids) == text


@pytest.mark.parametrize("text", ["x", " ", "\n", "é", "\U0001f600"])
def test_any_other_character_is_one_unknown_token(tiny, text):
    assert tiny.tokenizer.encode(f"1{text}2")[1:-1] == [tiny.tokenizer.unk_token_id]


def test_a_response_ends_with_the_end_token_and_a_prompt_does_not(tiny):
    assert tiny.encode_response("#1")[-1] == tiny.eos_id
    assert tiny.eos_id not in tiny.encode_prompt("1+2=")


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
    wanted = gradients(tiny).clone()
    for rows_at_once in (1, 3, 16):
        tiny.model.zero_grad()
        loss = demonstration_backward(tiny, pairs, rows_at_once)
        assert loss == pytest.approx(whole.item(), rel=1e-5)
        assert (gradients(tiny) - wanted).norm() < 1e-5 * wanted.norm()
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
    assert other != folder and sorted(tmp_path.iterdir()) == sorted([folder, other])
    monkeypatch.setattr(harness.warm_start, "train_warm_start", lambda settings: pytest.fail("trained a second time"))
    assert warm_start(SMALL, tmp_path) == folder


def test_a_killed_warm_start_leaves_no_folder_that_looks_whole(tmp_path, monkeypatch):
    def killed(policy, folder):
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(harness.warm_start, "save_policy", killed)
    with pytest.raises(KeyboardInterrupt):
        warm_start(SMALL, tmp_path)
    assert not any(tmp_path.iterdir())


def test_a_saved_policy_comes_back_in_fp32_and_eval_mode(tiny, tiny_folder):
    loaded = load_policy(str(tiny_folder))
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32} and not loaded.model.training
    for name, weight in tiny.model.state_dict().items():
        assert torch.equal(weight, loaded.model.state_dict()[name])


@pytest.mark.parametrize("inside", ["checkpoint/model", "model", "."])
def test_a_run_folder_its_checkpoint_and_the_model_itself_are_found(tiny, tmp_path, inside):
    save_policy(tiny, tmp_path / inside)
    assert resolve_model(str(tmp_path)) == str(tmp_path / inside)


def test_a_hub_id_stays_as_it_is_and_a_folder_without_a_model_is_one_clear_line(tmp_path, capsys):
    assert resolve_model("owner/name") == "owner/name"
    with pytest.raises(SystemExit) as stop:
        resolve_model(str(tmp_path))
    assert stop.value.code == 2 and "holds no model" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_freed_memory_is_kept():
    """A tensor of 128 MB where one of 256 MB was: no page of it comes from the system anew."""
    code = """
import resource, torch, policy
policy.keep_freed_memory()
torch.ones(2**26)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(2**25)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    root = Path(__file__).parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1000  # 128 MB are 32,768 pages
