"""eval.py: its statistics, what it counts of known answers, that greedy is greedy, its files, and bad input."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import eval as evaluation
import policy as policies
import rollout
import tasks
from rollout import Rollouts

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def untrained():
    settings = policies.WarmStart(width=32, layers=1, heads=2, mlp=32)
    tokenizer = policies.build_tokenizer()
    model = policies.build_model(settings, tokenizer)
    return policies.Policy(model.eval(), tokenizer)


@pytest.fixture
def model_folder(untrained, tmp_path):
    policies.save(untrained, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def run_folder(untrained, tmp_path):
    policies.save(untrained, tmp_path / "run" / "checkpoint" / "model")
    (tmp_path / "run" / "config.json").write_text('{"method": "dagrpo", "seed": 0}')
    return tmp_path / "run"


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

    monkeypatch.setattr(rollout, "sample_groups", sample_groups)
    return calls


def run(*flags):
    evaluation.main([str(flag) for flag in flags])


# ---------------------------------------------------------------------------------------- statistics


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (50, 100, 0.4038, 0.5962), (8, 10, 0.4902, 0.9433)],
)
def test_wilson_gives_the_known_intervals(right, n, low, high):
    assert evaluation.wilson(right, n) == pytest.approx((low, high), abs=1e-4)


def width(right):
    low, high = evaluation.interval(right.double())
    return high - low


def test_copies_of_a_response_tell_nothing_new():
    once = (torch.arange(40) % 4 == 0)[:, None]  # (n, 1), a quarter is right
    assert evaluation.interval(once.double()) == pytest.approx(evaluation.wilson(10, 40))
    assert evaluation.interval(once.expand(40, 8).double()) == pytest.approx(evaluation.wilson(10, 40))


def test_independent_responses_count_almost_as_problems_would():
    right = (torch.rand(400, 8, generator=torch.Generator().manual_seed(0)) < 0.3).double()
    low, high = evaluation.wilson(right.sum().item(), 3200)
    assert high - low <= width(right) < 1.2 * (high - low)


def test_alike_responses_lie_between_the_two():
    chance = torch.rand(400, 1, generator=torch.Generator().manual_seed(0))  # every problem has its own
    right = torch.rand(400, 8, generator=torch.Generator().manual_seed(1)) < chance
    share = right.double().mean().item()
    widths = [high - low for low, high in (evaluation.wilson(share * n, n) for n in (3200, 400))]
    assert 1.2 * widths[0] < width(right) < 0.95 * widths[1]


def test_the_interval_covers_what_it_should():
    """Whole experiments, 300 of them: their intervals miss the true value (0.5) in about 5 %."""
    random = torch.Generator().manual_seed(0)
    missed = 0
    for _ in range(300):
        chance = torch.rand(60, 1, generator=random)
        low, high = evaluation.interval((torch.rand(60, 4, generator=random) < chance).double())
        missed += not low <= 0.5 <= high
    assert 0.02 <= missed / 300 <= 0.08


def test_all_wrong_is_not_certain():
    assert evaluation.interval(torch.zeros(100, 4).double()) == evaluation.wilson(0, 100)


# ---------------------------------------------------------------------------------------- evaluate


def test_known_answers_are_counted_by_level(untrained, known_answers):
    problems = tasks.arithmetic("test", per_level=10)
    mixed = problems[::3] + problems[1::3] + problems[2::3]  # levels need not come in order
    results = {r.level: r for r in evaluation.evaluate(untrained, mixed, 3, 0.7, 5, 8, seed=0)}
    assert set(results) == set(tasks.LEVELS) and {r.problems for r in results.values()} == {10}
    assert [results[level].greedy.accuracy for level in "12345"] == [1, 0, 0, 0, 0]
    assert [results[level].sampled.accuracy for level in "12345"] == pytest.approx([2 / 3] * 5)
    assert (results["1"].greedy.length, results["1"].greedy.ended) == (3, 1)
    assert (results["2"].greedy.length, results["2"].greedy.ended) == (5, 0)
    assert (results["2"].sampled.length, results["2"].sampled.ended) == (5, 1)
    assert (results["1"].greedy.low, results["1"].greedy.high) == evaluation.wilson(10, 10)


def test_it_asks_in_batches_and_samples_at_the_temperature(untrained, known_answers):
    problems = tasks.arithmetic("test", per_level=3)  # 15
    evaluation.evaluate(untrained, problems, 3, 0.7, 5, 8, seed=0)
    greedy, sampled = [[c for c in known_answers if c["greedy"] is kind] for kind in (True, False)]
    assert [call["rows"] for call in greedy] == [8, 7]
    assert [call["rows"] for call in sampled] == [6] * 7 + [3]
    assert {call["temperature"] for call in sampled} == {0.7} and {call["tokens"] for call in known_answers} == {5}


def test_k_0_does_not_sample(untrained, known_answers):
    results = evaluation.evaluate(untrained, tasks.arithmetic("test", per_level=2), 0, 1.0, 5, 8, seed=0)
    assert all(call["greedy"] for call in known_answers) and {r.sampled for r in results} == {None}


def test_the_seed_decides_and_the_random_state_stays_as_it_was(untrained, known_answers):
    problems, before = tasks.arithmetic("test", per_level=1), torch.get_rng_state()
    for seed in (1, 1, 2):
        evaluation.evaluate(untrained, problems, 2, 1.0, 5, 100, seed=seed)
    assert torch.equal(before, torch.get_rng_state())
    first, again, other = [c["random"] for c in known_answers if not c["greedy"]]
    assert first == again != other


def test_greedy_is_the_likeliest_token_and_the_same_whatever_the_seed(untrained):
    problems = tasks.arithmetic("test", per_level=2)
    results = [evaluation.evaluate(untrained, problems, 2, 1.0, 12, 16, seed) for seed in (0, 1, 0)]
    assert [r.greedy for r in results[0]] == [r.greedy for r in results[1]]
    assert results[0] == results[2]
    row = rollout.sample_groups(untrained, problems[:1], [1], 1, greedy=True)
    logits = untrained.model(torch.tensor([untrained.encode_prompt(problems[0].question)])).logits
    assert row.tokens[0, 0] == logits[0, -1].argmax()


# ---------------------------------------------------------------------------------------- benchmarks


def test_benchmarks_are_of_their_split_and_always_the_same():
    for name, split in (("test", "test"), ("ood", "test"), ("validation", "validation")):
        problems = evaluation.benchmark(name)
        assert problems == evaluation.benchmark(name)
        assert {tasks.split_of(p.question) for p in problems} == {split}
    assert {p.level for p in evaluation.benchmark("ood")} == set(tasks.OOD_LEVELS)
    assert len(evaluation.benchmark("test")) == 500 and len(evaluation.benchmark("ood", per_level=7)) == 14


def test_limit_is_of_the_whole_benchmark_and_leaves_no_level_out():
    some, whole = evaluation.benchmark("test", limit=12), evaluation.benchmark("test")
    assert [sum(p.level == level for p in some) for level in tasks.LEVELS] == [3, 3, 2, 2, 2]
    assert some == [p for p in whole if p in some]
    assert evaluation.benchmark("test", limit=10**6) == whole


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


def test_a_model_folder_is_only_printed_unless_out_is_given(model_folder, tmp_path, capsys):
    before = set(model_folder.iterdir())
    run("--model", model_folder, "--benchmarks", "ood", "--limit", 2, "--k", 0, "--max-new-tokens", 4)
    assert "avg@" not in capsys.readouterr().out and set(model_folder.iterdir()) == before
    out = tmp_path / "new" / "x.json"
    run("--model", model_folder, "--benchmarks", "ood", "--limit", 2, "--k", 0, "--max-new-tokens", 4, "--out", out)
    assert json.loads(out.read_text())["benchmarks"]["ood"]["levels"][0]["sampled"] is None


def test_the_warm_start_is_what_load_gives_without_a_name(untrained, monkeypatch, known_answers, capsys):
    monkeypatch.setattr(policies, "load", lambda name: {None: untrained}[name])
    run("--model", "warm_start", "--per-level", 5, "--k", 2, "--max-new-tokens", 5)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:5] == ["test", "1", "5", "1.000", "[0.57,"]
    assert lines[6].split() == ["test", "mean", "0.200", "0.500"]
    assert len({line.index("0.500") for line in lines[1:] if "0.500" in line}) == 1


def test_a_failing_evaluation_leaves_the_old_result(run_folder, monkeypatch):
    (run_folder / "eval.json").write_text("old")

    def stop(*_args):
        raise KeyboardInterrupt

    monkeypatch.setattr(rollout, "sample_groups", stop)
    with pytest.raises(KeyboardInterrupt):
        run("--model", run_folder)
    assert (run_folder / "eval.json").read_text() == "old"
    assert not list(run_folder.glob("*.partial"))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--benchmarks", "test,aime"], "'aime'"),
        (["--benchmarks", ""], "''"),
        (["--k", "-1"], "--k must be at least 0"),
        (["--k", "x"], "--k"),
        (["--temperature", "0"], "--temperature must be above 0"),
        (["--temperature", "nan"], "--temperature must be above 0"),
        (["--limit", "0"], "--limit must be at least 1"),
        (["--per-level", "0"], "--per-level must be at least 1"),
        (["--per-level", "400"], "level 1 has no 400"),
        (["--batch", "0"], "--batch must be at least 1"),
        (["--max-new-tokens", "0"], "--max-new-tokens must be at least 1"),
        (["--out", "{tmp}"], "is a folder"),
        (["--out", "{tmp}/file/x.json"], "cannot be written"),
        (["--model", "{tmp}/none"], "holds no model"),
        (["--model", "{tmp}/file"], "holds no model"),
        (["--model", "no-such-folder"], "there is no such folder"),
        (["--model", "tests/no-such-folder"], "there is no such folder"),
    ],
)
def test_bad_input_gets_one_line_before_a_model_is_loaded(model_folder, tmp_path, monkeypatch, capsys, flags, said):
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(policies, "load", lambda name: pytest.fail("the model was loaded first"))
    with pytest.raises(SystemExit) as stop:
        run("--model", model_folder, *(flag.format(tmp=tmp_path) for flag in flags))
    captured = capsys.readouterr()
    assert stop.value.code == 2 and captured.out == ""
    assert captured.err.count("\n") == 1 and captured.err.startswith("error: ") and said in captured.err


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_damaged_model_gets_one_line(model_folder, capsys, file):
    (model_folder / file).write_text("{")
    with pytest.raises(SystemExit) as stop:
        run("--model", model_folder)
    assert stop.value.code == 2 and capsys.readouterr().err.startswith(
        f"error: --model {model_folder} cannot be loaded"
    )


def test_what_the_hub_does_not_have_gets_a_line(monkeypatch, capsys):
    def load(name):
        raise OSError("nobody/nothing is not a valid model identifier\nand a long story")

    monkeypatch.setattr(policies, "load", load)
    with pytest.raises(SystemExit) as stop:
        run("--model", "nobody/nothing")
    err = capsys.readouterr().err
    assert stop.value.code == 2 and err.count("\n") == 1 and "no such folder here" in err and "long story" not in err


def test_help_teaches():
    done = subprocess.run([sys.executable, "eval.py", "--help"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "pass@1" in done.stdout and "python eval.py --model runs/dagrpo" in done.stdout
