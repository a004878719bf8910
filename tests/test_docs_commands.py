"""The commands in the README and docs/ are ones that there are, with flags that they have."""

import argparse
import importlib
import re
import runpy
import shlex
import warnings
from functools import cache
from unittest.mock import patch

from helpers_docs import MODULES, PAGES, ROOT, commands, every_page, inline_code


class Parsing(BaseException):
    """Raised with the parser of a command when it is about to parse."""


@cache
def flags_of(program: str, argument: str = "") -> frozenset[str]:
    """All flags of a file or module of ours: it is run until its parser, --help's own, begins to parse."""

    def begin(parser, *_, **__):
        if not parser.add_help:  # the one that looks for --preset only
            return argparse.Namespace(preset=None), []
        raise Parsing(parser)

    with (
        patch.object(argparse.ArgumentParser, "parse_known_args", begin),
        patch("sys.argv", [program, argument]),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", message=".*found in sys.modules")  # imported already: it runs once more
        try:
            if program.endswith(".py"):
                runpy.run_path(str(ROOT / program), run_name="__main__")
            else:
                runpy.run_module(program, run_name="__main__", alter_sys=True)
        except Parsing as found:
            return frozenset(found.args[0]._option_string_actions)
    raise AssertionError(f"{program} parses no flags")


def ours(command: str) -> tuple[str, list[str]] | None:
    """A command's file or module, if it is one of ours, and the words behind it."""
    if not re.match(r"(\S*python|accelerate) ", command):
        return None
    words = shlex.split(command, comments=True)
    if words[1:3] == ["-m", "pdb"] or words[0] == "accelerate":
        place = next(i for i, word in enumerate(words) if word.endswith(".py"))
    elif words[1:2] == ["-m"]:
        place = 2
    else:
        place = 1
    program = words[place]
    if program in ("-c", "pytest"):
        return None
    return program, words[place + 1 :]


COMMANDS = {page: [found for command in commands(text) if (found := ours(command))] for page, text in PAGES.items()}


def test_commands_are_found():
    assert ("train.py", ["--method", "sft", "--steps", "60", "--out", "runs/sft"]) in COMMANDS["README.md"]
    assert {"train.py", "eval.py", "analysis.viewer", "fast"} <= {program for program, _ in COMMANDS["README.md"]}
    assert "multi_gpu/trl_dagrpo.py" in {program for program, _ in COMMANDS["multi_gpu.md"]}
    assert "--resume" in flags_of("train.py") and "--k" in flags_of("eval.py")
    assert "--insist" not in flags_of("train.py")


@every_page
def test_the_commands_of_a_page_exist_with_their_flags(page):
    for program, words in COMMANDS[page]:
        if program.endswith(".py"):
            assert (ROOT / program).exists(), program
        else:
            assert program in MODULES or f"{program}.__main__" in MODULES, program
        flags = {word for word in words if word.startswith("--")}
        if not flags or (program.startswith("multi_gpu") and not importlib.util.find_spec("trl")):
            continue
        named = words[0] if program.endswith("controls") else ""
        assert flags <= flags_of(program, named), program


@every_page
def test_the_flags_that_a_page_names_alone_exist(page):
    """`--divisor sequence` belongs to some command of ours; those with an underscore are accelerate's."""
    programs = {program for program, words in COMMANDS[page] if any(word.startswith("--") for word in words)}
    programs = {p for p in programs if not p.startswith("multi_gpu") and not p.endswith("controls")}
    known = frozenset().union(*map(flags_of, {"train.py", "eval.py", *programs}))
    for code in inline_code(PAGES[page]):
        if code.startswith("--"):
            assert {flag for flag in re.findall(r"--[\w-]+", code) if "_" not in flag} <= known, code
