"""What is written in docstrings and in the README is true: examples run, and names, files and commands exist."""

import doctest
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from harness import config

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in sorted([*ROOT.glob("*.py"), *(ROOT / "analysis").glob("*.py")])
    if ">>> " in path.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_the_docstrings_are_true(name):
    failed, attempted = doctest.testmod(importlib.import_module(name))
    assert attempted > 0
    assert failed == 0


def test_examples_are_found_in_the_files_that_have_them():
    assert {"dagrpo", "tasks", "scoring", "rollout", "train", "eval", "analysis.table"} <= set(MODULES)


def test_the_functions_that_the_readme_names_exist():
    """`dagrpo.policy_loss`, `train.py: collect`: module and function, or nothing."""
    modules = "|".join(path.stem for path in ROOT.glob("*.py"))
    names = re.findall(rf"`((?:{modules})\.(?!py\b)\w+)`", README)
    assert len(names) > 8
    for name in names:
        module, attribute = name.split(".")
        assert hasattr(importlib.import_module(module), attribute), name


def test_the_files_that_the_readme_links_to_exist():
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if not link.startswith("http")]
    assert links
    for link in links:
        assert (ROOT / link).exists(), link


def test_the_make_targets_that_the_readme_names_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"(?:^|`)make ([a-z-]+)", README, re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_flags_of_train_that_the_readme_names_exist():
    help_text = config.build_parser().format_help()
    for command in re.findall(r"python train\.py ([^\n`]*)", README):
        for flag in re.findall(r"--[a-z-]+", command):
            assert f"{flag} " in help_text or f"{flag}\n" in help_text, flag


def test_the_breakpoint_of_the_readme_stops_where_it_says(tiny_folder, tmp_path):
    command = re.search(r"python (-m pdb .*?) train\.py", README).group(1)
    argv = [part.strip("'\"") for part in re.findall(r"'[^']*'|\S+", command)]
    small = ["--method", "dagrpo", "--steps", "1", "--batch-prompts", "2", "--group-size", "2", "--show-every", "0"]
    run = [sys.executable, *argv, "train.py", *small, "--model", str(tiny_folder), "--out", str(tmp_path / "run")]
    steps = "p objective.shape\nq\n"
    done = subprocess.run(run, cwd=ROOT, input=steps, capture_output=True, text=True, timeout=120)
    assert "policy_loss" in done.stdout, done.stdout + done.stderr
