"""evaluation.py: eval.py's flags, one line for what cannot work, and where the results go."""

import json
import subprocess
import sys

import pytest
from helpers import ROOT

import eval
import fast
from eval import main
from harness import loading


def run(*flags):
    main([str(flag) for flag in flags])


def test_a_failing_evaluation_leaves_the_old_result(run_folder, monkeypatch):
    (run_folder / "eval.json").write_text("old")

    def stop(*_args):
        raise KeyboardInterrupt

    monkeypatch.setattr(fast, "sample_groups", stop)
    with pytest.raises(KeyboardInterrupt):
        run("--model", run_folder)
    assert (run_folder / "eval.json").read_text() == "old"
    assert not list(run_folder.glob("*.partial"))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--benchmarks", "test,aime"], "'aime'"),
        (["--benchmarks", "mine"], "'mine'"),
        (["--benchmarks", "../mine", "--benchmark-dir", "{tmp}"], "'../mine'"),
        (["--benchmarks", "mine", "--benchmark-dir", "{tmp}"], "has no mine in it"),
        (["--benchmarks", "aime24", "--benchmark-dir", "{tmp}"], "has no aime24 in it"),
        (["--benchmarks", "aime24", "--benchmark-dir", "{tmp}/none"], "there is no such folder"),
        (["--benchmarks", "aime24", "--benchmark-dir", "{tmp}/file"], "there is no such folder"),
        (["--benchmarks", ""], "''"),
        (["--k", "-1"], "--k must be at least 0"),
        (["--k", "x"], "--k"),
        (["--temperature", "0"], "--temperature must be above 0"),
        (["--temperature", "nan"], "--temperature must be a finite number, not nan"),
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
    monkeypatch.setattr(eval, "load_policy", lambda *_, **__: pytest.fail("the model was loaded first"))
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
    assert stop.value.code == 2 and capsys.readouterr().err.startswith(f"error: {model_folder} cannot be loaded: ")


def test_what_the_hub_does_not_have_gets_a_line(monkeypatch, capsys):
    def load(name, **_):
        raise OSError("nobody/nothing is not a valid model identifier\nand a long story")

    monkeypatch.setattr(loading.AutoTokenizer, "from_pretrained", load)
    with pytest.raises(SystemExit) as stop:
        run("--model", "nobody/nothing")
    err = capsys.readouterr().err
    assert stop.value.code == 2 and err.count("\n") == 1 and "no such folder here" in err and "long story" not in err


def test_help_teaches():
    done = subprocess.run([sys.executable, "eval.py", "--help"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "pass@1" in done.stdout and "python eval.py --model runs/dagrpo" in done.stdout


def test_a_model_folder_is_only_printed_unless_out_is_given(model_folder, tmp_path, capsys):
    before = set(model_folder.iterdir())
    run("--model", model_folder, "--benchmarks", "ood", "--limit", 2, "--k", 0, "--max-new-tokens", 4)
    assert "avg@" not in capsys.readouterr().out and set(model_folder.iterdir()) == before
    out = tmp_path / "new" / "x.json"
    run("--model", model_folder, "--benchmarks", "ood", "--limit", 2, "--k", 0, "--max-new-tokens", 4, "--out", out)
    assert json.loads(out.read_text())["benchmarks"]["ood"]["levels"][0]["sampled"] is None
