"""What other systems do not have, hidden: Windows has no fcntl, resource or timers, macOS no mallopt and no /proc."""

import shutil
import subprocess
import sys

import pytest
from helpers import ROOT
from transformers import AutoTokenizer

HIDDEN = """
import os, pathlib, signal, sys, types
import torch, transformers
try:
    import psutil  # accelerate's; on Linux it wants the real ones
except ImportError:
    pass
sys.modules["fcntl"] = sys.modules["resource"] = None  # an import of them fails
for name in ("alarm", "setitimer", "ITIMER_VIRTUAL", "SIGVTALRM"):
    delattr(signal, name)
del os.sysconf
exists = pathlib.Path.exists
pathlib.Path.exists = lambda self, **more: not str(self).startswith("/proc") and exists(self, **more)
"""


def test_a_run_and_its_evaluation_without_what_other_systems_do_not_have(tiny_folder, tmp_path):
    model, tokenizer = tmp_path / "model", AutoTokenizer.from_pretrained(tiny_folder)
    shutil.copytree(tiny_folder, model)
    tokenizer.chat_template = "{{ messages[0].content }}"  # is tried out with a timer, where there is one
    tokenizer.save_pretrained(model)
    small = "'--batch-prompts', '2', '--updates-per-batch', '1', '--group-size', '4', '--steps', '2'"
    code = f"{HIDDEN}\nimport train, eval, fast.memory\nfrom maths.verifier import verify\n"
    code += "fast.memory.sys = types.SimpleNamespace(platform='win32')\n"
    code += f"train.main(['--model', {str(model)!r}, {small}, '--out', 'run', '--save-every', '1'])\n"
    code += f"train.main(['--model', {str(model)!r}, {small}, '--out', 'run', '--resume'])\n"
    code += "eval.main(['--model', 'run', '--per-level', '2', '--k', '0'])\n"
    code += r"assert verify(r'\boxed{2\sqrt{3}}', r'\sqrt{12}')"
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); exec(sys.argv[1])", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "eval.json").exists() and "Traceback" not in done.stderr


def test_a_python_without_torch_is_told_what_to_do():
    """`-S`: without the environment's packages."""
    done = subprocess.run([sys.executable, "-S", "train.py"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and ". .venv/bin/activate" in done.stderr


@pytest.mark.parametrize("file", ["train.py", "eval.py"])
@pytest.mark.parametrize(("flag", "status"), [("--help", 0), ("--methd", 2)])
def test_help_and_a_mistyped_flag_are_answered_without_torch(file, flag, status):
    code = "import runpy, sys; sys.argv = sys.argv[1:]\n"
    code += "try:\n    runpy.run_path(sys.argv[0], run_name='__main__')\n"
    code += f"except SystemExit as end:\n    assert (end.code or 0) == {status} and 'torch' not in sys.modules\n"
    code += "else:\n    raise AssertionError('it did not end')"
    done = subprocess.run([sys.executable, "-c", code, file, flag], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and (done.stdout if status == 0 else done.stderr).strip(), done.stderr
