"""eval.py: what it counts of known answers, that greedy is greedy, its tables and its files."""

import json
from dataclasses import asdict

import datasets
import pytest
import torch
from helpers import SHARED

import fast
import rollout
import scoring
import tasks
from analysis import table
from eval import evaluate, main, wilson
from maths import benchmarks, data
from policy import load_policy, save_policy
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


def run(*flags):
    main([str(flag) for flag in flags])


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


# ---------------------------------------------------------------------------------------- benchmarks not built in


ROWS = {
    "aime24": [("1+1=", "2"), ("25-5+1=", "21.0"), ("7-2+4-1=", "08")],
    "math500": [("12+5-3=", "14"), ("", "1"), ("3+4=", "7")],
    "arc_c": [("1+2=", "A")],
    "mine": [("2+2=", "4"), ("9-1=", "8")],
}
DIGITS = "Please, 1+1"  # an instruction of characters that the tiny policy knows some of


@pytest.fixture
def folder(tmp_path):
    """Benchmarks as local files of both kinds; a row of math500 cannot be used."""
    (tmp_path / "files").mkdir()
    for name, rows in ROWS.items():
        rows = [{"problem": problem, "answer": answer} for problem, answer in rows]
        if name == "aime24":
            datasets.Dataset.from_list(rows).to_parquet(tmp_path / "files" / f"{name}.parquet")
        else:
            (tmp_path / "files" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "files"


@pytest.fixture
def asked(monkeypatch):
    """Notes what is sampled, and calls every response of an even number of characters right."""
    calls, sample_groups = [], fast.sample_groups

    def noted(policy, problems, counts, max_new_tokens, temperature=1.0, greedy=False):
        calls.append(([p.question for p in problems], counts, max_new_tokens, temperature, greedy))
        return sample_groups(policy, problems, counts, min(max_new_tokens, 8), temperature, greedy)

    monkeypatch.setattr(fast, "sample_groups", noted)
    monkeypatch.setattr(scoring, "verify", lambda response, answer, ended=True: len(response) % 2 == 0)
    return calls


def test_the_papers_protocol_is_the_default_and_built_in_benchmarks_keep_theirs(tiny_folder, folder, asked, tmp_path):
    out = tmp_path / "x.json"
    names = "test,aime24,math500,arc_c,mine"
    run("--model", tiny_folder, "--benchmarks", names, "--benchmark-dir", folder, "--limit", 5, "--out", out)
    built_in, sampled = [c for c in asked if c[2:4] == (64, 1.0)], [c for c in asked if c[3] == 0.6]
    assert len(asked) == len(built_in) + len(sampled) and not any(c[4] for c in sampled)
    assert sum(sum(c[1]) for c in built_in if c[4]) == 5 and sum(sum(c[1]) for c in built_in if not c[4]) == 20
    assert [sum(c[1]) for c in sampled] == [32, 32, 32, 2, 1, 2]  # 3 problems of aime24 x 32, then once each
    assert all("\\boxed{}" not in q for c in built_in for q in c[0])
    assert sampled[3][0] == [f"3+4=\n{data.INSTRUCTION}", f"12+5-3=\n{data.INSTRUCTION}"]
    assert sampled[4][0] == [f"1+2=\n{benchmarks.CHOICE_INSTRUCTION}"] and "letter" in sampled[4][0][0]
    assert {c[2] for c in sampled} == {512 - len(q) for c in sampled for q in [max(c[0], key=len)]}
    found = json.loads(out.read_text())
    assert found["settings"]["max_new_tokens"] == 64 and found["benchmarks"]["test"]["levels"][0]["problems"] == 1
    assert found["benchmarks"]["aime24"]["settings"]["max_new_tokens"] == 8192
    assert table.read_eval(out).max_new_tokens == 64


def test_k_0_asks_other_benchmarks_greedily_once(tiny_folder, folder, asked, tmp_path, capsys):
    out = tmp_path / "x.json"
    flags = ["--benchmarks", "aime24,mine", "--benchmark-dir", folder, "--k", 0, "--out", out]
    run("--model", tiny_folder, *flags)
    assert all(greedy for *_, greedy in asked) and sum(sum(counts) for _, counts, *_ in asked) == 3 + 2
    assert capsys.readouterr().out.count(" greedy ") == 2
    found = json.loads(out.read_text())["benchmarks"]["aime24"]
    assert found["k"] == found["settings"]["k"] == 0 and found["pass_at"].keys() == {"1"}
    again = len(asked)
    run("--model", tiny_folder, *flags)
    assert len(asked) == again, "what was asked is kept"


def test_flags_overrule_the_protocol(tiny_folder, folder, asked):
    flags = ("--k", 3, "--temperature", 0.9, "--max-new-tokens", 6, "--batch", 4, "--instruction", DIGITS)
    run("--model", tiny_folder, "--benchmarks", "aime24", "--benchmark-dir", folder, *flags)
    assert [(sum(c[1]), *c[2:]) for c in asked] == [(4, 6, 0.9, False), (4, 6, 0.9, False), (1, 6, 0.9, False)]
    assert asked[0][0] == [f"1+1=\n{DIGITS}", f"25-5+1=\n{DIGITS}"]
    asked.clear()
    run("--model", tiny_folder, "--benchmarks", "arc_c", "--benchmark-dir", folder, "--instruction", "")
    assert asked[0][0] == ["1+2="]


SMALL = ("--k", 4, "--max-new-tokens", 8, "--batch", 5, "--instruction", "")


def test_results_responses_and_tables_agree(tiny_folder, folder, asked, tmp_path, capsys):
    out = tmp_path / "new" / "x.json"
    names = "aime24,math500,mine"
    run("--model", tiny_folder, "--benchmarks", names, "--benchmark-dir", folder, "--out", out, *SMALL)
    captured, found = capsys.readouterr(), json.loads(out.read_text())["benchmarks"]
    assert list(found) == names.split(",") and "skipped 1: an empty question, first row 2" in captured.err
    assert (found["math500"]["problems"], found["math500"]["skipped"], found["aime24"]["skipped"]) == (2, 1, 0)
    lines = captured.out.splitlines()
    for name, part in found.items():
        records = [json.loads(line) for line in (out.parent / f"x.{name}.jsonl").read_text().splitlines()][1:]
        assert len(records) == 4 * part["problems"] and {r["benchmark"] for r in records} == {name}
        share = sum(r["right"] for r in records) / len(records)
        assert part["sampled"]["accuracy"] == part["pass_at"]["1"] == pytest.approx(share)
        assert part["sampled"]["length"] == pytest.approx(sum(r["tokens"] for r in records) / len(records))
        assert part["sampled"]["low"] <= share <= part["sampled"]["high"] and list(part["pass_at"]) == ["1", "2", "4"]
        solved = {r["index"] for r in records if r["right"]}
        assert part["pass_at"]["4"] == pytest.approx(len(solved) / part["problems"])
        (line,) = [line for line in lines if line.startswith(name)]
        assert line.split()[1:4] == [str(part["problems"]), "4", f"{share:.3f}"]
        assert f"4: {part['pass_at']['4']:.3f}" in line
    accuracy = {name: found[name]["sampled"]["accuracy"] for name in ("aime24", "math500")}
    assert benchmarks.table(str(tiny_folder), accuracy) in captured.out


def test_a_stopped_evaluation_goes_on_and_a_finished_one_is_not_repeated(
    tiny_folder, folder, asked, tmp_path, capsys, monkeypatch
):
    command = ("--model", tiny_folder, "--benchmarks", "math500,aime24", "--benchmark-dir", folder, *SMALL)
    run(*command, "--out", tmp_path / "whole.json")
    calls, out = len(asked), tmp_path / "x.json"
    asked.clear()
    noted, left = fast.sample_groups, [True, True, True, False]

    def stops(*args, **flags):
        if not left.pop(0):
            raise KeyboardInterrupt
        return noted(*args, **flags)

    with monkeypatch.context() as patch:
        patch.setattr(fast, "sample_groups", stops)
        with pytest.raises(SystemExit) as stop:
            run(*command, "--out", out)
    assert stop.value.code == 130 and "the same command goes on" in capsys.readouterr().err and not out.exists()
    with (tmp_path / "x.aime24.jsonl").open("a") as file:
        file.write('{"benchmark": "aime24", "ind')
    run(*command, "--out", out)
    assert len(asked) == calls  # nothing twice
    for name in ("math500", "aime24"):
        assert (tmp_path / f"x.{name}.jsonl").read_bytes() == (tmp_path / f"whole.{name}.jsonl").read_bytes()
    new, old = (json.loads((tmp_path / f"{name}.json").read_text())["benchmarks"] for name in ("x", "whole"))
    assert [{**part, "seconds": 0} for part in new.values()] == [{**part, "seconds": 0} for part in old.values()]
    asked.clear()
    run(*command, "--out", out)
    run(*command[:3], "aime24", *command[4:], "--out", out)  # fewer benchmarks are no other setting
    assert asked == []


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        (["--k", "2"], "k"),
        (["--temperature", "0.5"], "temperature"),
        (["--max-new-tokens", "7"], "max_new_tokens"),
        (["--batch", "3"], "batch"),
        (["--seed", "1"], "seed"),
        (["--instruction", "1"], "problems"),
        (["--limit", "1"], "problems"),
        (["--model", "{other}"], "weights"),
    ],
)
def test_other_settings_are_refused_unless_overwrite(tiny, tiny_folder, folder, asked, tmp_path, capsys, flags, name):
    command = ["--model", tiny_folder, "--benchmarks", "mine", "--benchmark-dir", folder, *SMALL]
    command += ["--out", tmp_path / "x.json"]
    run(*command)
    before, other = (tmp_path / "x.mine.jsonl").read_bytes(), load_policy(str(tiny_folder))
    with torch.no_grad():
        next(other.model.parameters())[0, 0] += 1
    save_policy(other, tmp_path / "other")
    flags = [flag.format(other=tmp_path / "other") for flag in flags]
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run(*command, *flags)
    err = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert stop.value.code == 2 and len(err) == 1 and f"another {name}: " in err[0]
    assert (tmp_path / "x.mine.jsonl").read_bytes() == before
    run(*command, *flags, "--overwrite")
    assert (tmp_path / "x.mine.jsonl").read_bytes() != before


def test_a_run_folder_keeps_its_eval_json_for_the_built_in_task(run_folder, folder, asked):
    run("--model", run_folder, "--benchmarks", "mine", "--benchmark-dir", folder, *SMALL)
    names = sorted(path.name for path in run_folder.iterdir())
    assert names == ["benchmarks.json", "benchmarks.mine.jsonl", "checkpoint", "config.json"]


def test_what_does_not_fit_into_the_context_is_said(tiny_folder, folder, asked, capsys):
    (folder / "mine.jsonl").write_text(
        '{"problem": "1+1=", "answer": "2"}\n{"problem": "%s", "answer": "1"}' % ("1" * 600)
    )
    run("--model", tiny_folder, "--benchmarks", "mine", "--benchmark-dir", folder, *SMALL)
    assert "(1 too long for the model's context, counted as wrong)" in capsys.readouterr().out
    assert sum(len(c[0]) for c in asked) == 1


def test_nothing_is_kept_without_a_place(tiny_folder, folder, asked, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.rglob("*"))
    run("--model", tiny_folder, "--benchmarks", "mine", "--benchmark-dir", folder, *SMALL)
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.extra
def test_all_nine_benchmarks_are_asked(tiny_folder, tmp_path, capsys):
    where = SHARED / "data" / "benchmarks"
    if not where.is_dir():
        pytest.skip("there is no ../shared/data/benchmarks")
    names, out = ",".join(benchmarks.PAPER), tmp_path / "x.json"
    small = ("--limit", 8, "--k", 2, "--max-new-tokens", 8, "--out", out)
    run("--model", tiny_folder, "--benchmarks", names, "--benchmark-dir", where, *small)
    found = json.loads(out.read_text())["benchmarks"]
    assert list(found) == list(benchmarks.PAPER) and all(6 <= part["problems"] <= 8 for part in found.values())
    assert "AIME 24/25" in capsys.readouterr().out
