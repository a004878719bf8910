"""Code that comes with a checkpoint or a model is not run: one clear line instead."""

import json
import os
import shutil

import pytest
import torch
import transformers
from helpers import run

import eval
import judges.__main__ as judges
import train
from analysis import viewer
from harness import checkpoint


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def ends_in_one_line(capsys, function, *args):
    with pytest.raises(SystemExit) as stop:
        function(*args)
    err = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2 and err[-1].startswith("error: ")
    return err[-1]


def test_pickled_code_in_a_checkpoint_is_not_run(tmp_path, capsys):
    torch.save({"step": 1, "random": Evil(tmp_path / "ran")}, tmp_path / "trainer.pt")
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])
    assert "trainer.pt cannot be read" in ends_in_one_line(capsys, checkpoint.load_trainer, tmp_path, optimizer)
    assert not (tmp_path / "ran").exists()
    torch.load(tmp_path / "trainer.pt", weights_only=False)
    assert (tmp_path / "ran").exists(), "it would have been"


def with_code(tiny_folder, folder, where):
    """A model folder whose configuration or tokenizer asks for a Python file beside it, which makes a folder."""
    shutil.copytree(tiny_folder, folder)
    config, new = json.loads((folder / where).read_text()), {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}}
    if where == "config.json":
        new = {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}}
    (folder / where).write_text(json.dumps(config | new | {"tokenizer_class": "EvilTokenizer"}))
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(folder.parent / 'ran')!r})\n")
    return str(folder)


def programs(model, tiny, out):
    """Every program that loads a model, as its main and its flags."""
    begin = ["--method", "dagrpo", "--steps", "1", "--levels", "1", "--out", out]
    local = ["--scorer", "local", "--judge-model"]
    return {
        "train --model": (train.main, [*begin, "--model", model]),
        "train --init-from": (train.main, [*begin, "--init-from", model]),
        "train --judge-model": (train.main, [*begin, "--model", tiny, *local, model]),
        "eval": (eval.main, ["--model", model, "--k", "0"]),
        "judges": (judges.main, ["--model", model]),
        "TRL": (trl_main, ["--steps", "1", "--levels", "1", "--out", out, "--model", model]),
    }


def trl_main(argv):
    pytest.importorskip("trl")
    from multi_gpu import trl_dagrpo

    trl_dagrpo.main(argv)


@pytest.fixture
def says_yes(tmp_path, monkeypatch):
    """Somebody who says yes to everything that transformers asks, and its folder for code."""
    monkeypatch.setattr("builtins.input", lambda _: "y")
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))


@pytest.mark.parametrize("where", ["config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("program", programs("", "", ""))
def test_code_that_comes_with_a_model_is_not_run(tiny_folder, tmp_path, capsys, says_yes, program, where):
    model = with_code(tiny_folder, tmp_path / "model", where)
    main, flags = programs(model, str(tiny_folder), str(tmp_path / "run"))[program]
    said = ends_in_one_line(capsys, main, flags)
    assert "cannot be loaded" in said or "TRL cannot train" in said
    assert not (tmp_path / "ran").exists()


def test_the_viewer_runs_no_code_either(tiny_folder, tmp_path, capsys, says_yes):
    run(tiny_folder, tmp_path / "run", "--levels", "1", steps=1)
    model = with_code(tiny_folder, tmp_path / "model", "tokenizer_config.json")
    said = ends_in_one_line(capsys, viewer.main, [str(tmp_path / "run"), "--tokenizer", model])
    assert "cannot be loaded" in said and not (tmp_path / "ran").exists()


@pytest.mark.parametrize("program", ["train --model", "train --judge-model", "eval", "TRL"])
def test_code_is_run_where_a_flag_asks_for_it(tiny_folder, tmp_path, says_yes, program):
    """Otherwise the tests above would show nothing. Then it fails: there is no model in that code."""
    model = with_code(tiny_folder, tmp_path / "model", "config.json")
    main, flags = programs(model, str(tiny_folder), str(tmp_path / "run"))[program]
    with pytest.raises(SystemExit):
        main([*flags, "--trust-remote-code"])
    assert (tmp_path / "ran").exists()


def test_the_flag_is_in_the_runs_config(tiny_folder, tmp_path):
    for flags in ([], ["--trust-remote-code"]):
        run(tiny_folder, tmp_path / "run", "--levels", "1", "--overwrite", *flags, steps=1)
        assert json.loads((tmp_path / "run" / "config.json").read_text())["trust_remote_code"] is bool(flags)
