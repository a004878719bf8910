"""eval.py on other benchmarks: the paper's protocol, flags, results and responses, going on, and what is refused."""

import json

import datasets
import pytest
import torch
from helpers import SHARED
from helpers import run_eval as run

import fast
import scoring
from analysis import table
from maths import benchmarks, data
from policy import load_policy, save_policy

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
