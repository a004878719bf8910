"""The README's walk with the debugger stops where it says, and docs/runs.md explains every column of its metrics."""

import csv
import re
import shlex
import subprocess
import sys

import pytest
from helpers_docs import PAGES, README, ROOT, commands, inline_code

RATIOS, CLIPPED = "p (logp - update.logp_old).exp()[:, :5]", "p surrogate(logp, update, recipe)[1][:, :5]"
TYPED = [
    "u",
    "p rollouts.texts[8:]",
    "d",
    "p advantages",
    "p scores",
    "r",
    "p gap",
    "c",
    "u",
    "p part.select(index).texts",
    "d",
    "c",
    RATIOS,
    CLIPPED,
    "c",
]


@pytest.fixture(scope="module")
def walk(tiny_folder, tmp_path_factory):
    """What the debugger prints when one types what the README says, with a small model; and the run folder."""
    command = next(command for command in commands(README) if "-m pdb" in command)
    words, out = shlex.split(command)[1:], tmp_path_factory.mktemp("walk") / "run"
    words[words.index("runs/pdb")] = str(out)
    if sys.version_info[:3] == (3, 13, 0):  # as the README says
        words.insert(words.index("train.py"), "--")
    run = [sys.executable, *words, "--model", str(tiny_folder)]
    typed = "\n".join([*TYPED, "q\n"])
    done = subprocess.run(run, cwd=ROOT, input=typed, capture_output=True, text=True, timeout=300)
    return done.stdout, out


def test_the_readme_names_what_is_typed():
    typed = inline_code(README.split("## An evening with it")[1].split("## ")[0])
    assert set(TYPED) <= set(typed)
    assert "--plain" in typed


def test_the_debugger_stops_where_the_readme_says(walk):
    printed, _ = walk
    stops = re.findall(r"^(?:\(Pdb\) )?> .*?/(\w+)\.py\(\d+\)(\w+)\(\)", printed, re.MULTILINE)
    mask, loss, up = ("dagrpo", "rectification_mask"), ("dagrpo", "policy_loss"), ("train", "backward")
    collect = ("train", "collect")
    wanted = [mask, collect, mask, mask, loss, up, loss, loss]
    assert [stop for stop in stops if stop != ("train", "<module>")] == wanted
    assert "***" not in printed  # pdb's mark of an error
    answers = dict(zip(TYPED, printed.split("(Pdb) ")[1:], strict=False))
    shown = {typed: answer.split("[")[0] for typed, answer in answers.items() if typed.startswith("p ")}
    assert shown == {typed: "" if "texts" in typed else "tensor(" for typed in shown}
    assert set(re.findall(r"\d\.\d+", answers[RATIOS])) - {"1.0000"} and "nan" in answers[RATIOS]  # moved; an anchor
    assert answers[CLIPPED].count("False") > 4


def test_the_page_of_runs_explains_every_column_of_metrics(walk):
    with (walk[1] / "metrics.csv").open(encoding="utf-8", newline="") as file:
        columns = next(csv.reader(file))
    table = PAGES["runs.md"].split("## The columns")[1].split("## ")[0]
    explained = {
        code for row in re.findall(r"^\|([^|]*)\|", table, re.MULTILINE) for code in re.findall(r"`(\w+)`", row)
    }
    assert {name for name in columns if not name.startswith("reward_level_")} - explained == {"step"}
    assert {name for name in explained if not name.startswith(("judge_", "reward_level_"))} <= set(columns)
