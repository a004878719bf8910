"""Folders and files that may not be written, or not be read: one clear line, exit 2, and what was there stays whole.

Permission bits bind nobody who has root's two capabilities to overlook them: the programs are called in a process that
has given these up. It is one process for all cases, as the imports take seconds.
"""

import ctypes
import json
import os
import shutil
import subprocess
import sys
import time

import pytest
from helpers import ROOT

DRIVER = """
import contextlib, importlib, io, json, sys, traceback
import torch
torch.set_num_threads(1)
for name, argv in json.load(sys.stdin):
    said, code = io.StringIO(), 0
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            importlib.import_module(name).main(argv)
        except SystemExit as stop:
            code = stop.code
        except BaseException:
            code = 1
            traceback.print_exc()
    print(json.dumps([code, said.getvalue()]), flush=True)
"""
TRAIN = ["--method", "dagrpo", "--steps", "3", "--batch-prompts", "2", "--group-size", "2", "--max-new-tokens", "44"]
TRAIN += ["--show-every", "0"]
RESUME = [*TRAIN, "--model", "{top}/model", "--resume", "--out"]
START = [*TRAIN, "--out", "{top}/new", "--init-from"]
EVAL = ["--k", "0", "--limit", "1", "--model"]
# name -> module, flags, what the line says. The folders are made by `top`; an unwritable one is read-only, a closed
# one can be neither read nor entered.
CASES = {
    "train, --out below a file": ("train", [*RESUME, "{top}/file/run"], "cannot be made (Not a directory)"),
    "train, --out in /proc": ("train", [*RESUME, "/proc/run"], "cannot be made"),
    "train, --out new in a read-only folder": ("train", [*RESUME, "{top}/fixed/new"], "cannot be made (Permission"),
    "train, --out read-only": ("train", [*RESUME, "{top}/fixed/run"], "no permission"),
    "train, --out closed": ("train", [*RESUME, "{top}/closed"], "no permission"),
    "train, --out cannot be entered": ("train", [*RESUME, "{top}/listed"], "no permission"),
    "train, --out in a closed folder": ("train", [*RESUME, "{top}/closed/run"], "cannot be made (Permission"),
    "train, the lock is another's": ("train", [*RESUME, "{top}/lock"], "Permission denied"),
    "train, config.json closed": ("train", [*RESUME, "{top}/config"], "config.json cannot be read"),
    "train, weights closed": ("train", [*RESUME, "{top}/weights"], "weights/checkpoint/model cannot be loaded"),
    "train, trainer.pt closed": (
        "train",
        [*RESUME, "{top}/trainer"],
        "trainer.pt cannot be read, or is of another run: Permission",
    ),
    "train, trainer.pt cut": ("train", [*RESUME, "{top}/cut"], "trainer.pt cannot be read"),
    "train, --data closed": ("train", [*RESUME, "{top}/new", "--data", "{top}/data.jsonl"], "cannot be read (Perm"),
    "train, --data in a closed folder": ("train", [*RESUME, "{top}/new", "--data", "{top}/closed/d.jsonl"], "Permiss"),
    "train, --init-from closed": (
        "train",
        [*START, "{top}/closed"],
        "{top}/closed cannot be loaded: Permission",
    ),
    "train, --init-from with closed weights": (
        "train",
        [*START, "{top}/weights"],
        "weights/checkpoint/model cannot be loaded: ",
    ),
    "eval, --out below a file": ("eval", [*EVAL, "{top}/model", "--out", "{top}/file/e.json"], "cannot be written"),
    "eval, --out in /proc": ("eval", [*EVAL, "{top}/model", "--out", "/proc/e.json"], "cannot be written"),
    "eval, --out read-only": ("eval", [*EVAL, "{top}/model", "--out", "{top}/fixed/e.json"], "cannot be written (Perm"),
    "eval, --out closed": ("eval", [*EVAL, "{top}/model", "--out", "{top}/closed/e.json"], "cannot be written (Perm"),
    "eval, the run is read-only": ("eval", [*EVAL, "{top}/fixed/run"], "cannot be written (Permission"),
    "eval, --model closed": ("eval", [*EVAL, "{top}/closed"], "closed cannot be read: Permission"),
    "eval, weights closed": ("eval", [*EVAL, "{top}/weights"], "cannot be loaded"),
    "curves, --out below a file": ("analysis.curves", ["{top}/fixed/run", "--out", "{top}/file/x"], "cannot be writ"),
    "curves, --out read-only": ("analysis.curves", ["{top}/fixed/run", "--out", "{top}/fixed"], "cannot be written"),
    "curves, run closed": ("analysis.curves", ["{top}/closed", "--out", "{top}/new"], "cannot be read (Permission"),
    "curves, --from-csv closed": ("analysis.curves", ["--from-csv", "{top}/data.jsonl"], "cannot be read (Permission"),
    "table, --csv full": ("analysis.table", ["{top}/fixed/run", "--csv", "/dev/full"], "No space left"),
    "table, --csv read-only": ("analysis.table", ["{top}/fixed/run", "--csv", "{top}/fixed/t"], "cannot be written"),
    "table, run closed": ("analysis.table", ["{top}/closed"], "cannot be read (Permission"),
}


def bind():
    """Before exec: the process that follows has neither CAP_DAC_OVERRIDE (1) nor CAP_DAC_READ_SEARCH (2)."""
    for capability in (1, 2):
        ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP; fails where there is nothing to drop


def tree(top):
    """Every file below, with its bytes."""
    return {str(path.relative_to(top)): path.read_bytes() for path in sorted(top.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def outcomes(tiny_folder, tmp_path_factory):
    """What each case has ended with. At the end all that was there before must still be there, unchanged."""
    top = tmp_path_factory.mktemp("permissions")
    shutil.copytree(tiny_folder, top / "model")
    train = [sys.executable, "train.py", *TRAIN, "--model", str(top / "model"), "--steps", "1", "--out"]
    (top / "fixed").mkdir()
    subprocess.run([*train, str(top / "fixed" / "run")], cwd=ROOT, check=True, capture_output=True)
    for name in ("lock", "config", "weights", "trainer", "cut"):
        shutil.copytree(top / "fixed" / "run", top / name)
    (top / "file").write_text("a file, not a folder")
    (top / "data.jsonl").write_text('{"question": "1+1", "answer": "#### 2"}\n')
    (top / "closed").mkdir()
    (top / "listed").mkdir()
    trainer = top / "cut" / "checkpoint" / "trainer.pt"
    trainer.write_bytes(trainer.read_bytes()[:1000])
    level = {"level": "1", "problems": 9, "greedy": {"accuracy": 0.5}}
    evaluated = {"benchmarks": {"test": {"levels": [level]}}, "settings": {"max_new_tokens": 44}}
    (top / "fixed" / "run" / "eval.json").write_text(json.dumps(evaluated))
    before = tree(top)
    for name, mode in {
        "fixed": 0o555,
        "fixed/run": 0o555,
        "closed": 0o000,
        "listed": 0o666,
        "lock/.lock": 0o444,
        "config/config.json": 0o000,
        "weights/checkpoint/model/model.safetensors": 0o000,
        "trainer/checkpoint/trainer.pt": 0o000,
        "data.jsonl": 0o000,
    }.items():
        (top / name).chmod(mode)
    asked = [[module, [flag.format(top=top) for flag in argv]] for module, argv, _ in CASES.values()]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER],
        cwd=top / "fixed",
        env=env,
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        preexec_fn=bind,
    )
    yield dict(zip(CASES, map(json.loads, done.stdout.splitlines()), strict=True)), top, before


@pytest.mark.extra
@pytest.mark.parametrize("case", CASES)
def test_no_permission_is_one_clear_line(outcomes, case):
    code, said = outcomes[0][case]
    last = said.strip().splitlines()[-1]
    assert code == 2 and "Traceback" not in said, said
    assert last.startswith("error: ") and CASES[case][2].format(top=outcomes[1]) in last


@pytest.mark.extra
def test_no_permission_changes_nothing(outcomes):
    _, top, before = outcomes
    for path in [top, *top.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    after = tree(top)
    assert before.keys() <= after.keys()
    assert [name for name, content in before.items() if after[name] != content] == []


@pytest.mark.extra
def test_a_folder_that_becomes_read_only_keeps_its_checkpoint(tiny_folder, tmp_path):
    """As when a disk is mounted read-only after an error."""
    out = tmp_path / "run"
    flags = [*TRAIN, "--model", str(tiny_folder), "--steps", "100000", "--save-every", "2", "--out", str(out)]
    command = [sys.executable, "train.py", *flags]
    process = subprocess.Popen(
        command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, preexec_fn=bind
    )
    while not (out / "checkpoint").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    out.chmod(0o555)
    err = process.communicate(timeout=120)[1]
    out.chmod(0o755)
    last = err.strip().splitlines()[-1]
    assert process.returncode == 2 and "Traceback" not in err
    assert "Permission denied" in last and "allow writing. The checkpoint is of step" in last
    step = int((out / "checkpoint" / "step").read_text())
    goes_on = [*command[:-4], "--save-every", "2", "--out", str(out), "--resume", "--steps", str(step + 1)]
    subprocess.run(goes_on, cwd=ROOT, check=True, capture_output=True)
