"""eval.py on the built-in task: what it counts of known answers, that greedy is greedy, its table and its file."""

import json
from dataclasses import asdict

import pytest
import torch
from helpers import run_eval as run

import fast
import rollout
import tasks
from eval import evaluate, wilson
from policy import load_policy
from rollout import Rollouts


@pytest.fixture
def known_answers(monkeypatch):
    """A sampler that answers: greedily, level 1 right and the rest wrong; sampled, i-th responses with even i right.

    A response has 3 tokens on level 1, else 5, of which the greedy ones do not end. Notes the calls.
    """
    calls = []

    def sample_groups(policy, problems, counts, max_new_tokens, temperature=1.0, greedy=False):
        calls.append({"rows": sum(counts), "greedy": greedy, "temperature": temperature, "tokens": max_new_tokens})
        calls[-1]["random"] = torch.rand(()).item()
        group = [b for b, count in enumerate(counts) for _ in range(count)]
        place = [i for count in counts for i in range(count)]
        easy = torch.tensor([problems[b].level == "1" for b in group])
        right = [problems[b].level == "1" if greedy else i % 2 == 0 for b, i in zip(group, place, strict=True)]
        texts = [f"#{problems[b].answer}" if ok else "#x" for b, ok in zip(group, right, strict=True)]
        mask = torch.arange(5) < torch.where(easy, 3, 5)[:, None]
        empty = torch.zeros(len(group), 5)
        ended = easy | torch.tensor(not greedy)
        prompts = torch.zeros(len(problems), 1)
        is_anchor = torch.zeros_like(easy)
        return Rollouts(
            problems, prompts, prompts > 0, empty, mask, empty, empty, torch.tensor(group), is_anchor, ended, texts
        )

    monkeypatch.setattr(fast, "sample_groups", sample_groups)
    return calls


# ---------------------------------------------------------------------------------------- evaluate


def test_known_answers_are_counted_by_level(untrained, known_answers):
    problems = tasks.arithmetic("test", per_level=10)
    mixed = problems[::3] + problems[1::3] + problems[2::3]  # levels need not come in order
    results = {r.level: r for r in evaluate(untrained, mixed, 3, 0.7, 5, 8, seed=0)}
    assert set(results) == set(tasks.LEVELS) and {r.problems for r in results.values()} == {10}
    assert [results[level].greedy.accuracy for level in "12345"] == [1, 0, 0, 0, 0]
    assert [results[level].sampled.accuracy for level in "12345"] == pytest.approx([2 / 3] * 5)
    assert (results["1"].greedy.length, results["1"].greedy.ended) == (3, 1)
    assert (results["2"].greedy.length, results["2"].greedy.ended) == (5, 0)
    assert (results["2"].sampled.length, results["2"].sampled.ended) == (5, 1)
    assert (results["1"].greedy.low, results["1"].greedy.high) == wilson(10, 10)


def test_it_asks_in_batches_and_samples_at_the_temperature(untrained, known_answers):
    problems = tasks.arithmetic("test", per_level=3)  # 15
    evaluate(untrained, problems, 3, 0.7, 5, 8, seed=0)
    greedy, sampled = [[c for c in known_answers if c["greedy"] is kind] for kind in (True, False)]
    assert [call["rows"] for call in greedy] == [8, 7]
    assert [call["rows"] for call in sampled] == [6] * 7 + [3]
    assert {call["temperature"] for call in sampled} == {0.7} and {call["tokens"] for call in known_answers} == {5}


def test_k_0_does_not_sample(untrained, known_answers):
    results = evaluate(untrained, tasks.arithmetic("test", per_level=2), 0, 1.0, 5, 8, seed=0)
    assert all(call["greedy"] for call in known_answers) and {r.sampled for r in results} == {None}


def test_the_seed_decides_and_the_random_state_stays_as_it_was(untrained, known_answers):
    problems, before = tasks.arithmetic("test", per_level=1), torch.get_rng_state()
    for seed in (1, 1, 2):
        evaluate(untrained, problems, 2, 1.0, 5, 100, seed=seed)
    assert torch.equal(before, torch.get_rng_state())
    first, again, other = [c["random"] for c in known_answers if not c["greedy"]]
    assert first == again != other


def test_greedy_is_the_likeliest_token_and_the_same_whatever_the_seed(untrained):
    problems = tasks.arithmetic("test", per_level=2)
    results = [evaluate(untrained, problems, 2, 1.0, 12, 16, seed) for seed in (0, 1, 0)]
    assert [r.greedy for r in results[0]] == [r.greedy for r in results[1]]
    assert results[0] == results[2]
    row = fast.sample_groups(untrained, problems[:1], [1], 1, greedy=True)
    logits = untrained.model(torch.tensor([untrained.encode_prompt(problems[0].question)])).logits
    assert row.tokens[0, 0] == logits[0, -1].argmax()


@pytest.mark.parametrize("flags", [[], ["--plain"]])
def test_both_paths_give_the_same_greedy_answers_and_plain_takes_its_own(tiny_folder, tmp_path, monkeypatch, flags):
    other = fast if flags else rollout
    expected = evaluate(load_policy(str(tiny_folder)), tasks.arithmetic("test", 2), 0, 1.0, 20, 16, 0, path=other)
    monkeypatch.setattr(other, "sample_groups", lambda *_, **__: pytest.fail("the other path"))
    out = tmp_path / "x.json"
    small = ("--per-level", 2, "--k", 1, "--max-new-tokens", 20, "--benchmarks", "test", "--out", out)
    run("--model", tiny_folder, *small, *flags)
    levels = json.loads(out.read_text())["benchmarks"]["test"]["levels"]
    assert [level["greedy"] for level in levels] == [asdict(result.greedy) for result in expected]


# ---------------------------------------------------------------------------------------- the command


def test_a_run_folder_gets_its_eval_json(run_folder, capsys):
    flags = ("--limit", 6, "--max-new-tokens", 4, "--k", 2)
    run("--model", run_folder, *flags)
    out = capsys.readouterr().out
    found = json.loads((run_folder / "eval.json").read_text())
    assert list(found["benchmarks"]) == ["test", "ood"] and found["settings"]["k"] == 2
    assert found["seconds"] == pytest.approx(sum(part["seconds"] for part in found["benchmarks"].values()))
    levels = found["benchmarks"]["test"]["levels"]
    assert [level["problems"] for level in levels] == [2, 1, 1, 1, 1]
    assert levels[0]["greedy"].keys() == {"accuracy", "low", "high", "length", "ended"} == levels[0]["sampled"].keys()
    assert f"written: {run_folder / 'eval.json'}" in out and "ood-large" in out
    assert sorted(path.name for path in run_folder.iterdir()) == ["checkpoint", "config.json", "eval.json"]


def test_the_warm_start_is_what_load_gives_without_a_name(untrained, monkeypatch, known_answers, capsys):
    monkeypatch.setattr("eval.find_start", lambda name, world: {"warm_start": "the folder"}[name])
    monkeypatch.setattr("eval.load_policy", lambda name, trust: {"the folder": untrained}[name])
    run("--model", "warm_start", "--per-level", 5, "--k", 2, "--max-new-tokens", 5)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:5] == ["test", "1", "5", "1.000", "[0.57,"]
    assert lines[6].split() == ["test", "mean", "0.200", "0.500"]
    assert len({line.index("0.500") for line in lines[1:] if "0.500" in line}) == 1
