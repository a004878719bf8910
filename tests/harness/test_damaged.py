"""Damaged and crafted run folders, models that are none: one line and exit code 2 within seconds, and nothing is lost.

Every case damages a copy of one good run and calls a program on it, in this process.
"""

import shutil
import time

import pytest
import torch
from helpers import run
from helpers_damage import (
    DEEP,
    MODEL,
    Evil,
    a_folder,
    cut,
    deep_group,
    entries,
    fill,
    first,
    gone,
    groups,
    lines,
    text,
    trainer,
)
from helpers_damaged_models import MODELS

import eval
from analysis import viewer

SHORT = ["--levels", "1", "--batch-prompts", "2", "--group-size", "2"]  # and what helpers.run adds


@pytest.fixture(scope="module")
def good(tiny_folder, tmp_path_factory):
    """A run of two steps."""
    out = tmp_path_factory.mktemp("good") / "run"
    run(tiny_folder, out, *SHORT, steps=2)
    return out


def resume(folder, model):
    run(model, folder, *SHORT, "--resume", steps=3)


def begin(folder, model):
    run(folder / "checkpoint" / "model", folder / "new", *SHORT, steps=1)


def evaluate(folder, model):
    eval.main(["--model", str(folder), "--k", "0", "--limit", "1", "--max-new-tokens", "4"])


def view(folder, model):
    viewer.main([str(folder)])


RUNS = {  # --resume
    "trainer without random": trainer(lambda c: c.pop("random") and None),
    "trainer without step": trainer(lambda c: c.pop("step") and None),
    "trainer without optimizer": trainer(lambda c: c.pop("optimizer") and None),
    "trainer without start_entropy": trainer(lambda c: [c.pop("start_entropy"), None][1]),
    "trainer a list": trainer(lambda c: [1, 2]),
    "trainer a text": trainer(lambda c: "x"),
    "trainer a tensor": trainer(lambda c: torch.zeros(3)),
    "trainer a module": trainer(lambda c: torch.nn.Linear(1, 1)),
    "trainer with code": trainer(lambda c: c.update(random=Evil())),
    "trainer empty": text("checkpoint/trainer.pt", ""),
    "trainer of text": text("checkpoint/trainer.pt", "{}"),
    "trainer of noise": text("checkpoint/trainer.pt", bytes(range(256)) * 40),
    "trainer cut": cut("checkpoint/trainer.pt"),
    "trainer cut at its end": cut("checkpoint/trainer.pt", 0.99),
    "trainer gone": gone("checkpoint/trainer.pt"),
    "trainer a folder": a_folder("checkpoint/trainer.pt"),
    "step a text": trainer(lambda c: c.update(step="2")),
    "step not whole": trainer(lambda c: c.update(step=2.5)),
    "step a switch": trainer(lambda c: c.update(step=True)),
    "step below 0": trainer(lambda c: c.update(step=-1)),
    "step huge": trainer(lambda c: c.update(step=10**30)),
    "step another": trainer(lambda c: c.update(step=1)),
    "step file gone": gone("checkpoint/step"),
    "step file a path": text("checkpoint/step", "../../x"),
    "step file not UTF-8": text("checkpoint/step", b"\xff"),
    "entropy not a number": trainer(lambda c: c.update(start_entropy=float("nan"))),
    "entropy a text": trainer(lambda c: c.update(start_entropy="x")),
    "random a list": trainer(lambda c: c.update(random=[])),
    "random without cpu": trainer(lambda c: c.update(random={"cuda": []})),
    "random too short": trainer(lambda c: c["random"].update(cpu=torch.zeros(8, dtype=torch.uint8))),
    "random of floats": trainer(lambda c: c["random"].update(cpu=torch.zeros(5056))),
    "random all zero": trainer(lambda c: c["random"].update(cpu=torch.zeros(5056, dtype=torch.uint8))),
    "optimizer a list": trainer(lambda c: c.update(optimizer=[])),
    "optimizer without state": trainer(lambda c: c["optimizer"].pop("state") and None),
    "state a list": trainer(lambda c: c["optimizer"].update(state=[1])),
    "state of one parameter": trainer(lambda c: c["optimizer"].update(state={0: c["optimizer"]["state"][0]})),
    "state of one parameter more": trainer(lambda c: c["optimizer"]["state"].update({99: c["optimizer"]["state"][0]})),
    "state by other names": trainer(lambda c: c["optimizer"]["state"].update({"0": c["optimizer"]["state"].pop(0)})),
    "state a tensor": trainer(lambda c: c["optimizer"]["state"].update({0: torch.zeros(3)})),
    "exp_avg too small": first(exp_avg=lambda x: torch.zeros(1)),
    "exp_avg empty": first(exp_avg=lambda x: torch.zeros(0)),
    "exp_avg transposed": first(exp_avg=lambda x: x.T.contiguous().T),
    "exp_avg one number everywhere": first(exp_avg=lambda x: torch.zeros(1).expand_as(x)),
    "exp_avg sparse": first(exp_avg=lambda x: x.to_sparse()),
    "exp_avg half": first(exp_avg=lambda x: x.half()),
    "exp_avg whole numbers": first(exp_avg=lambda x: x.long()),
    "exp_avg NaN": first(exp_avg=fill(float("nan"))),
    "exp_avg infinite": first(exp_avg=fill(float("inf"))),
    "exp_avg None": first(exp_avg=lambda x: None),
    "exp_avg a text": first(exp_avg=lambda x: "x"),
    "exp_avg missing": first(exp_avg=...),
    "exp_avg_sq below 0": first(exp_avg_sq=fill(-1.0)),
    "exp_avg_sq too small": first(exp_avg_sq=lambda x: torch.zeros(1)),
    "exp_avg_sq missing": first(exp_avg_sq=...),
    "a state too many": first(max_exp_avg_sq=lambda x: torch.zeros(1)),
    "AdamW's step NaN": first(step=lambda x: torch.tensor(float("nan"))),
    "AdamW's step below 0": first(step=lambda x: torch.tensor(-5.0)),
    "AdamW's step a list": first(step=lambda x: torch.zeros(3)),
    "AdamW's step a number": first(step=lambda x: 3.0),
    "checkpoint a file": text("checkpoint", "x"),
    "checkpoint empty": a_folder("checkpoint"),
    "checkpoint without a model": gone("checkpoint/model"),
    "checkpoint without config.json": gone("checkpoint/config.json"),
    "checkpoint of another method": entries("checkpoint/config.json", method="grpo"),
    "checkpoint of another seed": entries("checkpoint/config.json", seed=5),
    "checkpoint of other problems": entries("checkpoint/config.json", content="x"),
    "checkpoint of another recipe": entries("checkpoint/config.json", recipe={}),
    "checkpoint of an experiment": entries("checkpoint/config.json", experiment="random_mask"),
    "config a list": text("config.json", "[]"),
    "config null": text("config.json", "null"),
    "config a number": text("config.json", "5"),
    "config a text": text("config.json", '"x"'),
    "config pairs that are none": text("config.json", '["ab", "cd"]'),
    "config empty": text("config.json", ""),
    "config no entries": text("config.json", "{}"),
    "config cut": cut("config.json"),
    "config deep": text("config.json", DEEP),
    "config not UTF-8": text("config.json", b'{"method": "\xff"}'),
    "config gone": gone("config.json"),
    "config a folder": a_folder("config.json"),
    "config without its rate": entries("config.json", lr=...),
    "config with a rate of text": entries("config.json", lr="x"),
    "config of other problems": entries("config.json", problems=3),
    "metrics gone": gone("metrics.csv"),
    "metrics empty": text("metrics.csv", ""),
    "metrics a folder": a_folder("metrics.csv"),
    "metrics without rows": lines("metrics.csv", lambda rows: rows[:1]),
    "metrics without step 1": lines("metrics.csv", lambda rows: [rows[0], rows[2]]),
    "metrics with step 1 twice": lines("metrics.csv", lambda rows: [*rows[:2], *rows[1:]]),
    "metrics not UTF-8": text("metrics.csv", b"step\n1,\xff\n2,\xff\n"),
    "metrics with noise": lines("metrics.csv", lambda rows: [*rows[:2], "noise\n", *rows[2:]]),
    "metrics with NUL": lines("metrics.csv", lambda rows: [*rows[:2], "\0\0\0\n"]),
    "metrics with a column less": lines("metrics.csv", lambda rows: [rows[0].replace(",", "-", 1), *rows[1:]]),
    "metrics with a row too long": lines("metrics.csv", lambda rows: [*rows[:2], rows[2][:-1] + ",1\n"]),
    "metrics with half steps": lines("metrics.csv", lambda rows: [rows[0], "1.0,2\n", "2.0,2\n"]),
    "metrics with 5000 digits": lines("metrics.csv", lambda rows: [rows[0], "1" * 5000 + ",2\n"]),
    "rollouts with a list": lines("rollouts.jsonl", lambda rows: ["[]\n", *rows]),
    "rollouts with null": lines("rollouts.jsonl", lambda rows: ["null\n", *rows]),
    "rollouts with a text": lines("rollouts.jsonl", lambda rows: ['"x"\n', *rows]),
    "rollouts with an empty line": lines("rollouts.jsonl", lambda rows: ["\n", *rows]),
    "rollouts with half a line": lines("rollouts.jsonl", lambda rows: [rows[0][:50] + "\n", *rows[1:]]),
    "rollouts deep": lines("rollouts.jsonl", lambda rows: [DEEP + "\n", *rows]),
    "rollouts without a step": groups(step=...),
    "rollouts with a step of text": groups(step="1"),
    "rollouts with a step not whole": groups(step=1.5),
    "rollouts with a step infinite": groups(step=float("inf")),
    "rollouts backwards": lines("rollouts.jsonl", lambda rows: rows[::-1]),
    "rollouts not UTF-8": text("rollouts.jsonl", b'{"step": 1, "x": "\xff"}\n'),
    "rollouts a folder": a_folder("rollouts.jsonl"),
}
VIEWS = {  # analysis.viewer
    "delta infinite": entries("config.json", delta=float("inf")),
    "delta NaN": entries("config.json", delta=float("nan")),
    "delta a text": entries("config.json", delta="3"),
    "delta null": entries("config.json", delta=None),
    "delta of 400 digits": entries("config.json", delta=10**400),
    "max_new_tokens of text": entries("config.json", max_new_tokens="x"),
    "max_new_tokens below 1": entries("config.json", max_new_tokens=0),
    "max_new_tokens infinite": entries("config.json", max_new_tokens=float("inf")),
    "recipe a list": entries("config.json", recipe=[]),
    "recipe with other clips": entries("config.json", recipe={"clip": ["a", "b"]}),
    "recipe with one clip": entries("config.json", recipe={"clip": [1.0]}),
    "recipe with a scale that there is not": entries("config.json", recipe={"clip": [0.8, 1.2], "scale": "x"}),
    "recipe with a bonus of text": entries("config.json", recipe={"clip": [0.8, 1.2], "entropy_bonus": "x"}),
    "a method that there is not": entries("config.json", method="x"),
    "a method that is a list": entries("config.json", method=[]),
    "config a list": text("config.json", "[]"),
    "config deep": text("config.json", DEEP),
    "config not UTF-8": text("config.json", b"\xff"),
    "rollouts gone": gone("rollouts.jsonl"),
    "rollouts empty": text("rollouts.jsonl", ""),
    "rollouts lists": text("rollouts.jsonl", "[]\n[]\n"),
    "rollouts null": text("rollouts.jsonl", "null\n"),
    "rollouts deep": text("rollouts.jsonl", DEEP + "\n"),
    "rollouts deep inside": lines("rollouts.jsonl", deep_group),
    "rollouts not UTF-8": text("rollouts.jsonl", b"\xff\n"),
    "R of 400 digits": groups(R=[10**400, 0]),
    "R of 5000 digits": text("rollouts.jsonl", '{"step": ' + "1" * 5000 + "}\n"),
    "R infinite": groups(R=[float("inf"), 0]),
    "R of text": groups(R=["1", "0"]),
    "A beyond fp32": groups(A=[1e300, -1e300]),
    "S of lists": groups(S=[[], []]),
    "S a text": groups(S="ab"),
    "logp of text": groups(tokens=[[5], [6]], logp=[["x"], ["y"]]),
    "logp infinite": groups(tokens=[[5], [6]], logp=[[float("-inf")], [0.0]]),
    "tokens below 0": groups(tokens=[[-1], [6]], logp=[[0.0], [0.0]]),
    "tokens that the tokenizer does not have": groups(tokens=[[10**30], [6]], logp=[[0.0], [0.0]]),
    "tokens of text": groups(tokens=["a", "b"], logp=[[0.0], [0.0]]),
    "tokens that are switches": groups(tokens=[[True], [6]], logp=[[0.0], [0.0]]),
    "keep of numbers": groups(keep=[3, "x"]),
    "is_anchor of text": groups(is_anchor=["a", "b"]),
    "responses of numbers": groups(responses=[1, 2]),
    "one row": groups(R=[1.0]),
    "step of 400 digits": groups(step=10**400),
    "step a switch": groups(step=True),
    "question a number": groups(question=5),
    "tokenizer gone": gone(MODEL + "tokenizer_config.json"),
    "tokenizer cut": cut(MODEL + "tokenizer.json"),
}
CASES = [
    *((resume, f"resume: {name}", damage) for name, damage in RUNS.items()),
    *(
        (program, f"{program.__name__}: {name}", damage)
        for program in (begin, evaluate)
        for name, damage in MODELS.items()
    ),
    *((view, f"view: {name}", damage) for name, damage in VIEWS.items()),
]


@pytest.mark.parametrize(("program", "damage"), [(p, d) for p, _, d in CASES], ids=[name for _, name, _ in CASES])
def test_a_damaged_folder_is_one_line(good, tiny_folder, tmp_path, monkeypatch, capsys, program, damage):
    folder = shutil.copytree(good, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    damage(folder)
    capsys.readouterr()
    begun = time.perf_counter()
    with pytest.raises(SystemExit) as stop:
        program(folder, tiny_folder)
    err = capsys.readouterr().err
    assert stop.value.code == 2 and err.startswith("error: ") and err.count("\n") == 1, err
    assert len(err) < 600, "a line that can be read"
    assert time.perf_counter() - begun < 30
    assert not (tmp_path / "ran").exists() and not (folder / "new" / "config.json").exists()


@pytest.mark.parametrize("program", [resume, begin, evaluate, view])
def test_a_folder_that_is_not_damaged_is_not_refused(good, tiny_folder, tmp_path, program):
    program(shutil.copytree(good, tmp_path / "run"), tiny_folder)
