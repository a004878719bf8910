"""Code that comes with a checkpoint or a model is not run: one clear line instead."""

import json
import os
import shutil

import pytest
import torch

import eval
import train
from harness import runfolder


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
    assert "trainer.pt cannot be read" in ends_in_one_line(capsys, runfolder.load_trainer, tmp_path, optimizer)
    assert not (tmp_path / "ran").exists()
    torch.load(tmp_path / "trainer.pt", weights_only=False)
    assert (tmp_path / "ran").exists(), "it would have been"


def test_code_that_comes_with_a_model_is_not_run(tiny_folder, tmp_path, capsys):
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\n")
    flags = ["--method", "dagrpo", "--steps", "1", "--out", str(tmp_path / "run"), "--model", str(folder)]
    assert "cannot be loaded" in ends_in_one_line(capsys, train.main, flags)
    assert "cannot be loaded" in ends_in_one_line(capsys, eval.main, ["--model", str(folder), "--k", "0"])
    assert not (tmp_path / "ran").exists()
