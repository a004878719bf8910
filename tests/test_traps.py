"""docs/traps.md: its bugs can be put into the code as it is, and (marked extra) the tests that it names then fail."""

import re
import shutil
import subprocess
import sys

import pytest
import torch
from helpers import ROOT

from harness.warm_start import build_tokenizer
from policy import Policy, placement

TRAP = re.compile(r"### (.+?)\n(.+?)```diff\n# (\S+)\n-(.*?)\n\+(.*?)\n```\n`python (-m pytest .+?)`\n", re.DOTALL)
TEXT = (ROOT / "docs" / "traps.md").read_text(encoding="utf-8")
TRAPS = TRAP.findall(TEXT)
each_trap = pytest.mark.parametrize("trap", TRAPS, ids=[trap[0] for trap in TRAPS])


def words(command):
    return [word.strip('"') for word in re.findall(r'"[^"]*"|\S+', command)]


def test_a_prompt_goes_through_the_chat_template_with_the_turn_of_the_assistant_begun():
    tokenizer = build_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}+{{ m.content }}{% endfor %}{% if add_generation_prompt %}#{% endif %}"
    )
    chat = Policy(None, tokenizer)
    assert tokenizer.decode(chat.encode_prompt("1+2=")) == "+1+2=#"
    assert chat.encode_response("#3")[-1] == tokenizer.eos_token_id


def test_trained_weights_are_fp32():
    for cuda, bf16 in ((False, False), (False, True), (True, False), (True, True)):
        assert placement(cuda, lora=False, bf16=bf16).weights == torch.float32


def test_every_trap_has_a_bug_and_a_test():
    assert len(TRAPS) == TEXT.count("\n### ") >= 20


@each_trap
def test_the_line_is_there_once_and_so_is_the_test(trap):
    _, _, file, line, bug, command = trap
    assert (ROOT / file).read_text(encoding="utf-8").count(line) == 1
    assert bug != line
    _, _, tests, _, chosen = words(command)
    names = re.findall(r"def (test_\w+)", (ROOT / tests).read_text(encoding="utf-8"))
    assert any(word in name for word in chosen.replace(" or ", " and ").split(" and ") for name in names)


def run_in(folder, *given):
    unused = ["-p", "no:cacheprovider", "-p", "no:nbmake"]  # nbmake imports for two seconds
    command = [sys.executable, "-B", "-m", "pytest", *given, *unused]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    """A copy of the project in which the tests of all traps pass: or their failing would mean nothing."""
    folder = tmp_path_factory.mktemp("copied")
    for part in [*ROOT.glob("*.py"), ROOT / "pyproject.toml"]:
        shutil.copy(part, folder)
    for name in ("analysis", "fast", "harness", "judges", "maths", "multi_gpu", "tests", "docs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    _, _, tests, _, chosen = zip(*(words(trap[-1]) for trap in TRAPS), strict=True)
    good = run_in(folder, *sorted(set(tests)), "-k", " or ".join(f"({words})" for words in chosen))
    assert good.returncode == 0, good.stdout
    return folder


@pytest.mark.extra
@each_trap
def test_the_bug_makes_the_test_fail(trap, copied):
    _, _, file, line, bug, command = trap
    path = copied / file
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(line, bug), encoding="utf-8")
    try:
        bad = run_in(copied, *words(command)[2:], "-x")
    finally:
        path.write_text(text, encoding="utf-8")
    assert bad.returncode == 1 and " failed" in bad.stdout, bad.stdout
    assert "error" not in bad.stdout.splitlines()[-1], "it must fail, not break"
