"""analysis.curves and analysis.table as commands: bad input gets one line; --help and --watch."""

import json
import os
import subprocess
import sys

import pytest
from helpers import ROOT, one_error
from helpers_curves import make_run

from analysis import curves, saved, table


def spoil(run, file, text):
    if text is None:
        (run / file).unlink()
    else:
        (run / file).write_text(text)


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("metrics.csv", None, "metrics.csv cannot be read"),
        ("config.json", None, "config.json cannot be read"),
        ("config.json", "{}", "names no method, or no seed"),
        ("config.json", "{", "config.json is damaged"),
        ("metrics.csv", "", "is empty"),
        ("metrics.csv", "step,reward\n", "is empty"),
        ("metrics.csv", "reward\n0.5\n", "is damaged"),
        ("metrics.csv", "step,reward\n1,high\n", "is damaged"),
        ("metrics.csv", "step,reward\n1,0.5,7\n", "is damaged"),
    ],
)
def test_a_folder_that_is_no_run_gets_one_line(tmp_path, capsys, file, text, said):
    run = make_run(tmp_path / "a")
    spoil(run, file, text)
    for main in (curves.main, table.main):
        line = one_error(capsys, main, run)
        assert said in line and str(run) in line


def test_other_bad_input_gets_one_line(tmp_path, capsys):
    run, file = make_run(tmp_path / "a"), tmp_path / "file"
    file.write_text("panel,method\nreward,x\n")
    assert "no-such" in one_error(capsys, curves.main, tmp_path / "no-such")
    assert "one of the two" in one_error(capsys, curves.main)
    assert "one of the two" in one_error(capsys, curves.main, run, "--from-csv", file)
    assert "--smooth" in one_error(capsys, curves.main, run, "--smooth", "0")
    assert "not a CSV that this program" in one_error(capsys, curves.main, "--from-csv", file)
    assert "cannot be read" in one_error(capsys, curves.main, "--from-csv", tmp_path / "none.csv")
    assert "cannot be written" in one_error(capsys, curves.main, run, "--out", file / "below")
    assert "cannot be written" in one_error(capsys, table.main, run, "--csv", file / "below")
    assert "cannot be read" in one_error(capsys, table.main, run, "--baseline", f"{tmp_path / 'none.json'}:start")
    assert "not a result of eval.py" in one_error(capsys, table.main, run, "--baseline", f"{file}:start")
    file.write_text('{"settings": {"max_new_tokens": 64}, "benchmarks": {}}')
    assert "no results on the benchmarks" in one_error(capsys, table.main, run, "--baseline", f"{file}:start")
    (run / "eval.json").unlink()
    assert f"python eval.py --model {run}" in one_error(capsys, table.main, run)


@pytest.mark.parametrize("module", ["curves", "table"])
def test_help_says_what_it_does_and_nothing_of_torch_is_loaded(module):
    code = f"import sys, runpy; sys.argv = ['x', '--help']; runpy.run_module('analysis.{module}', run_name='__main__')"
    watch = f"import atexit, sys; atexit.register(lambda: print('torch' in sys.modules)); {code}"
    done = subprocess.run([sys.executable, "-c", watch], cwd=ROOT, env=os.environ, capture_output=True, text=True)
    assert done.returncode == 0 and "RUN" in done.stdout and done.stdout.endswith("False\n")


def test_watch_draws_again_until_the_runs_have_ended(tmp_path, monkeypatch, capsys):
    run = make_run(tmp_path / "run", steps=4)
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"steps": 6}))
    slept = []

    def time_goes_on(seconds):
        slept.append(seconds)
        with (run / "metrics.csv").open("a") as file:
            file.write(f"{4 + len(slept)},0.5,1,1,1,1,1,1,1\n")

    monkeypatch.setattr(saved.time, "sleep", time_goes_on)
    curves.main([str(run), "--watch", "--out", str(tmp_path / "figures")])
    assert slept == [10, 10]
    assert capsys.readouterr().out.count("written:") == 3
    assert curves.read_csv(tmp_path / "figures" / "curves.csv")["step"].max() == 6


def test_watch_ends_with_a_line_where_there_is_no_run(tmp_path, capsys):
    assert "is not a run folder" in one_error(capsys, curves.main, tmp_path / "nothing", "--watch")
