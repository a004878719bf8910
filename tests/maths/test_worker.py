"""The process that math-verify runs in: its time limit holds, it is replaced when it dies, and none is left over."""

import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from helpers import ROOT

import eval as evaluation
import scoring
import train
from maths import worker

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="looks at processes as Unix has them")

# Says true to what contains "yes". Hangs inside C code, where no signal handler of Python's would run; dies; is slow.
STUB = """
import json, os, re, sys, time
print("ready", flush=True)
for line in sys.stdin:
    if "hang" in line:
        re.match("(a+)+$", "a" * 64 + "b")
    if "die" in line:
        os._exit(3)
    if "slow" in line:
        time.sleep(1)
    print(json.dumps("yes" in line), flush=True)
"""


@pytest.fixture
def stub(monkeypatch):
    worker._stop()
    worker._ask.cache_clear()
    monkeypatch.setattr(worker, "COMMAND", [sys.executable, "-S", "-c", STUB])
    monkeypatch.setattr(worker, "LIMIT", 5.0)
    yield
    worker._stop()
    worker._ask.cache_clear()


def pid():
    return worker._process.pid


def is_gone(number):
    """No such process, or (where nobody reaps orphans) one that has ended."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait_until_gone(number):
    for _ in range(100):
        if is_gone(number):
            return
        time.sleep(0.1)
    raise AssertionError(f"process {number} is still there")


def test_verdicts_come_from_one_process_and_are_kept(stub):
    assert worker.equal("yes", "1") and not worker.equal("no", "1")
    first = pid()
    assert worker.parses("yes") and not worker.parses("no")
    assert pid() == first
    os.kill(first, signal.SIGSTOP)  # a stopped worker could not answer
    assert worker.equal("yes", "1")
    os.kill(first, signal.SIGCONT)


@pytest.mark.parametrize("where", ["main thread", "other thread"])
def test_the_time_limit_holds_against_c_code(stub, monkeypatch, where):
    assert worker.equal("yes", "1")
    monkeypatch.setattr(worker, "LIMIT", 0.5)
    first, verdicts, begin = pid(), [], time.perf_counter()
    if where == "main thread":
        verdicts.append(worker.equal("yes hang", "1"))
    else:
        thread = threading.Thread(target=lambda: verdicts.append(worker.equal("yes hang", "1")))
        thread.start()
        thread.join(30)
    assert verdicts == [False]
    assert 0.4 < time.perf_counter() - begin < 10
    with pytest.raises(ChildProcessError):  # nothing to wait for: the worker was reaped and is no zombie
        os.waitpid(first, os.WNOHANG)
    monkeypatch.setattr(worker, "LIMIT", 5.0)
    assert worker.equal("yes", "2") and pid() != first
    begin = time.perf_counter()
    assert not worker.equal("yes hang", "1")
    assert time.perf_counter() - begin < 0.1, "the verdict was kept"


def test_answers_that_ran_out_of_time_are_counted_once_however_often_they_are_asked(stub, monkeypatch):
    worker.take_timeouts()
    assert worker.equal("yes", "1") and not worker.equal("no", "1")
    assert not worker.equal("yes die", "1"), "it has died, and not of the time"
    monkeypatch.setattr(worker, "LIMIT", 0.5)
    assert not worker.equal("yes hang", "1") and not worker.equal("yes hang", "1")
    assert not worker.equal("yes hang", "2")
    assert worker.parses("hang"), "a gold answer: nothing is known of it, so its row stays"
    assert worker.take_timeouts() == 3
    assert worker.take_timeouts() == 0
    begin = time.perf_counter()
    assert not worker.equal("yes hang", "1") and time.perf_counter() - begin < 0.1
    assert worker.take_timeouts() == 1, "a kept verdict is one of the step that asks for it again"


def slow_if_long(response, answer, ended=True):
    """A verifier that runs out of time on every response of 12 characters and more."""
    return worker.equal(response if len(response) < 12 else f"hang {response}", answer)


def test_a_run_shows_how_many_answers_ran_out_of_time(stub, monkeypatch, tiny_folder, tmp_path):
    monkeypatch.setattr(worker, "LIMIT", 0.3)
    monkeypatch.setattr(scoring, "verify", slow_if_long)
    assert not worker.equal("hang", "before the first step")
    flags = ["--batch-prompts", "2", "--group-size", "3", "--max-new-tokens", "44", "--show-every", "0", "--steps", "2"]
    train.main(["--method", "dagrpo", "--model", str(tiny_folder), "--out", str(tmp_path), *flags])
    over = {1: set(), 2: set()}
    for group in map(json.loads, (tmp_path / "rollouts.jsonl").open()):
        over[group["step"]] |= {(text, group["answer"]) for text in group["responses"] if len(text) >= 12}
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    assert [int(row["verifier_timeouts"]) for row in rows] == [len(over[1]), len(over[2])]
    assert over[1] and all(float(row["reward"]) == 0 for row in rows)


def test_an_evaluation_says_how_many_answers_ran_out_of_time(stub, monkeypatch, tiny_folder, capsys):
    monkeypatch.setattr(worker, "LIMIT", 0.3)
    monkeypatch.setattr(scoring, "verify", slow_if_long)
    asked = ["--benchmarks", "test", "--per-level", "1", "--k", "0"]
    evaluation.main(["--model", str(tiny_folder), *asked])
    assert "answers took over 0.3 s to verify: counted as wrong" in capsys.readouterr().err
    monkeypatch.setattr(scoring, "verify", lambda response, answer, ended=True: True)
    evaluation.main(["--model", str(tiny_folder), *asked])
    assert "to verify" not in capsys.readouterr().err


def test_a_question_that_kills_the_worker_is_answered_no(stub):
    assert not worker.equal("yes die", "1")
    assert worker.equal("yes", "1")


def test_a_worker_that_somebody_else_has_killed_is_replaced_and_asked_again(stub):
    assert worker.equal("yes", "1")
    first = pid()
    os.kill(first, signal.SIGKILL)
    assert worker.equal("yes", "2"), "killed between two questions"
    timer = threading.Timer(0.4, os.kill, (pid(), signal.SIGKILL))
    timer.start()
    assert worker.equal("yes slow", "3"), "killed within one"
    timer.join()
    assert pid() != first


def test_after_ctrl_c_the_next_question_does_not_get_the_reply_to_the_last_one(stub):
    assert worker.equal("yes", "1")

    def interrupt(number, frame):
        raise KeyboardInterrupt

    old = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(KeyboardInterrupt):
            worker.equal("yes slow", "1")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    assert not worker.equal("no", "1")


def test_many_threads_get_their_own_replies(stub):
    words = [f"{'yes' if i % 3 else 'no'} {i}" for i in range(60)]
    verdicts = {}
    threads = [threading.Thread(target=lambda w=w: verdicts.update({w: worker.equal(w, "1")})) for w in words]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert verdicts == {word: word.startswith("yes") for word in words}


def test_a_gold_answer_that_a_stall_has_hit_is_asked_again(stub, monkeypatch):
    """Otherwise it would be unreadable for the rest of the run, which `verify` raises for, and its row dropped."""
    worker.take_timeouts()
    monkeypatch.setattr(worker, "LIMIT", 1.0)
    for gold, readable in (("yes", True), ("no", False)):
        worker.equal("yes", gold)
        os.kill(pid(), signal.SIGSTOP)
        assert worker.parses(gold) == readable
    assert worker.take_timeouts() == 0


@pytest.mark.parametrize(("deaths", "starts"), [(2, True), (3, False)])
def test_a_worker_that_is_killed_while_it_starts_is_started_again(stub, monkeypatch, tmp_path, deaths, starts):
    dies = f"""
import os, pathlib
count = pathlib.Path({str(tmp_path / "deaths")!r})
count.write_text(count.read_text() + "x" if count.exists() else "x")
if len(count.read_text()) <= {deaths}:
    os.kill(os.getpid(), 9)
{STUB}"""
    monkeypatch.setattr(worker, "COMMAND", [sys.executable, "-S", "-c", dies])
    if starts:
        assert worker.equal("yes", "1")
    else:
        with pytest.raises(RuntimeError, match="did not start"):
            worker.equal("yes", "1")


def test_a_worker_that_cannot_start_is_an_error_and_not_a_verdict(stub, monkeypatch):
    monkeypatch.setattr(worker, "COMMAND", [sys.executable, "-S", "-c", "raise SystemExit(1)"])
    for _ in range(2):
        with pytest.raises(RuntimeError, match="did not start"):
            worker.equal("yes", "1")


@pytest.mark.parametrize("end", ["pass", "os.kill(os.getpid(), signal.SIGKILL)", "raise ValueError", "os._exit(0)"])
def test_the_worker_ends_with_the_program(end):
    program = f"""
import os, signal, sys
from maths import worker
worker.COMMAND = [sys.executable, "-S", "-c", {STUB!r}]
assert worker.equal("yes", "1")
print(worker._process.pid, flush=True)
{end}
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    wait_until_gone(int(done.stdout))


def test_a_forked_process_starts_its_own_worker_and_does_not_keep_the_parents_alive():
    program = f"""
import os, signal, sys, time
from maths import worker
worker.COMMAND = [sys.executable, "-S", "-c", {STUB!r}]
assert worker.equal("yes", "1")
first = worker._process.pid
child = os.fork()
if child == 0:
    assert worker.equal("yes", "2") and worker._process.pid != first
    worker._stop()
    print("child", flush=True)
    os.close(1), os.close(2)
    time.sleep(20)  # outlives its parent
    os._exit(0)
time.sleep(1)
assert worker.equal("yes", "3") and worker._process.pid == first
print(first, child, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("child\n"), done.stderr
    first, child = map(int, done.stdout.split()[1:])
    try:
        wait_until_gone(first)
    finally:
        os.kill(child, signal.SIGKILL)


def test_the_worker_loads_neither_torch_nor_transformers():
    """Otherwise it would start slowly, and hold their memory a second time."""
    asks = "print([name for name in ('torch', 'transformers', 'numpy') if name in sys.modules])"
    command = [
        *worker.COMMAND[:-1],
        worker.COMMAND[-1].replace("worker.serve()", f"from maths import symbolic; {asks}"),
    ]
    assert subprocess.run(command, capture_output=True, text=True, timeout=60).stdout.strip() == "[]"


def test_math_verify_itself_and_its_time_limit(monkeypatch):
    assert worker.equal(r"2\sqrt{3}", r"\sqrt{12}") and not worker.equal(r"2\sqrt{3}", r"\sqrt{13}")
    monkeypatch.setattr(worker, "LIMIT", 1.0)
    begin = time.perf_counter()
    assert not worker.equal("3", "9^{9^{9^{9}}} - 1")
    assert time.perf_counter() - begin < 5
    monkeypatch.setattr(worker, "LIMIT", 5.0)
    assert worker.equal(r"3\sqrt{3}", r"\sqrt{27}")
