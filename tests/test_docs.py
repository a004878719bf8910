"""What docstrings, the README and docs/ say is true: examples run, and names, files and commands exist."""

import argparse
import csv
import doctest
import importlib
import re
import runpy
import shlex
import subprocess
import sys
import warnings
from functools import cache
from pathlib import Path
from unittest.mock import patch

import pytest

import dagrpo

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("fast", "maths", "judges", "harness", "analysis", "multi_gpu", "lessons")
FILES = sorted([*ROOT.glob("*.py"), *(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))])
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in FILES}
PAGES = {
    path.name: path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
}
PAGES["lessons/README.md"] = (ROOT / "lessons" / "README.md").read_text(encoding="utf-8")
README = PAGES["README.md"]
FENCED = re.compile(r"^ *```\w*\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
every_page = pytest.mark.parametrize("page", PAGES)


def path_of(page: str) -> Path:
    return ROOT / page if (ROOT / page).exists() else ROOT / "docs" / page


def inline_code(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+(?:\n[^`\n]+)?)`", FENCED.sub("", text))


def commands(text: str) -> list[str]:
    """What a reader may type: lines of fenced blocks, put together again where \\ breaks them, and inline code."""
    fenced = "\n".join(FENCED.findall(text)).replace("\\\n", " ").splitlines()
    return [" ".join(command.split()) for command in [*fenced, *inline_code(text)]]


def test_examples_in_the_text_are_found():
    text = "a `b c` d `e\nf`\n```\npython x.py \\\n    --y    # z\n```\n`g`"
    assert commands(text) == ["python x.py --y # z", "b c", "e f", "g"]


# ---------------------------------------------------------------------------------------- docstrings


WITH_EXAMPLES = [name for name, path in MODULES.items() if ">>> " in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_the_examples_in_the_docstrings_are_true(name):
    failed, attempted = doctest.testmod(importlib.import_module(name))
    assert attempted > 0
    assert failed == 0


def test_examples_are_found_in_the_files_that_have_them():
    expected = {"dagrpo", "tasks", "scoring", "rollout", "eval", "analysis.stats", "harness.prepare", "maths.equations"}
    assert expected <= set(WITH_EXAMPLES)


# ---------------------------------------------------------------------------------------- names, files, links, targets


def test_the_readme_is_short():
    assert README.count("\n") <= 200


def resolve(name: str) -> object:
    """A module, or what is in it, by its dotted name; AttributeError if there is no such thing."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        if ".".join(parts[:end]) in MODULES or (ROOT / Path(*parts[:end]) / "__init__.py").exists():
            found = importlib.import_module(".".join(parts[:end]))
            for attribute in parts[end:]:
                found = getattr(found, attribute)
            return found
    raise AttributeError(name)


def names_in(text: str) -> list[str]:
    first = "|".join([*ROOMS, *(path.stem for path in ROOT.glob("*.py"))])
    return [code for code in inline_code(text) if re.fullmatch(rf"(?:{first})(?:\.(?!(?:py|json)\b)\w+)+", code)]


@every_page
def test_the_functions_and_modules_that_a_page_names_exist(page):
    for name in names_in(PAGES[page]):
        resolve(name)


def test_names_are_found_and_wrong_ones_noticed():
    assert {"dagrpo.policy_loss", "train.collect", "dagrpo.signal_rows"} <= set(names_in(README))
    assert "policy.placement" in names_in(PAGES["real_models.md"])
    for wrong in ("dagrpo.no_such_loss", "maths.verifier.no_such", "fast.no_such"):
        with pytest.raises(AttributeError):
            resolve(wrong)


@every_page
def test_the_files_that_a_page_names_exist(page):
    text = PAGES[page]
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not link.startswith("http")]
    for link in links:
        file, _, anchor = link.partition("#")
        target = path_of(page).parent / file
        assert target.exists(), link
        headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE) if anchor else []
        assert not anchor or anchor in {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}, link
    for code in inline_code(text):
        if re.fullmatch(r"[\w/]+\.py|(?:tests|docs|results|analysis)/[\w./]+", code):
            assert (ROOT / code).exists(), code


def test_the_readme_shows_every_file_of_the_root_and_every_room():
    tree = next(block for block in FENCED.findall(README) if block.startswith("dagrpo.py "))
    named = set(re.findall(r"([\w]+\.py|[\w]+/)", tree)) - {"experiments/", "bench/"}
    assert named == {path.name for path in ROOT.glob("*.py")} | {
        f"{room}/" for room in (*ROOMS, "docs", "tests", "results")
    }


def test_the_readme_leads_to_every_page():
    assert {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")} <= set(re.findall(r"\]\(([^)]+)\)", README))


@every_page
def test_the_make_targets_that_a_page_names_exist(page):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for command in commands(PAGES[page]):
        if command.startswith("make "):
            for target in shlex.split(command, comments=True)[1:]:
                assert "=" in target or re.search(rf"^{target}:", makefile, re.MULTILINE), command


@every_page
def test_tables_have_as_many_cells_in_every_row(page):
    text = FENCED.sub("", PAGES[page])
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        rows = table.splitlines()
        assert re.fullmatch(r"\|( -+ \|)+", rows[1]), rows[0]
        assert {row.count("|") for row in rows} == {rows[0].count("|")}, rows[0]
        assert text[: text.index(table)].endswith("\n\n"), rows[0]


def test_the_page_of_methods_has_every_method_of_a_paper():
    named = set(re.findall(r"\w+", PAGES["methods.md"]))
    assert {name for name, recipe in dagrpo.METHODS.items() if recipe.paper != "ours"} <= named  # a reader's own is new


# ---------------------------------------------------------------------------------------- flags


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


def test_the_readmes_variant_needs_no_line_but_its_own(monkeypatch):
    from test_dagrpo import test_every_recipe_is_in_one_family as families_are_whole
    from test_recipes import test_every_recipe_is_pinned as papers_are_pinned

    ((name, recipe),) = re.findall(r'^"(\w+)": (Recipe\(.*\)),$', README, re.MULTILINE)
    monkeypatch.setitem(dagrpo.METHODS, name, eval(recipe, {"Recipe": dagrpo.Recipe}))
    papers_are_pinned()
    families_are_whole()


# ---------------------------------------------------------------------------------------- the walk with the debugger


RATIOS, CLIPPED = "p (logp - update.logp_old).exp()[:, :5]", "p surrogate(logp, update, recipe)[1][:, :5]"
TYPED = [
    "u",
    "p rollouts.texts[8:]",
    "d",
    "p advantages",
    "p scores",
    "r",
    "p keep",
    "c",
    "u",
    "p part.select(index).texts",
    "d",
    "c",
    RATIOS,
    CLIPPED,
    "c",
]


@pytest.fixture(scope="module")
def walk(tiny_folder, tmp_path_factory):
    """What the debugger prints when one types what the README says, with a small model; and the run folder."""
    command = next(command for command in commands(README) if "-m pdb" in command)
    words, out = shlex.split(command)[1:], tmp_path_factory.mktemp("walk") / "run"
    words[words.index("runs/pdb")] = str(out)
    if sys.version_info[:3] == (3, 13, 0):  # as the README says
        words.insert(words.index("train.py"), "--")
    run = [sys.executable, *words, "--model", str(tiny_folder)]
    typed = "\n".join([*TYPED, "q\n"])
    done = subprocess.run(run, cwd=ROOT, input=typed, capture_output=True, text=True, timeout=300)
    return done.stdout, out


def test_the_readme_names_what_is_typed():
    typed = inline_code(README.split("## An evening with it")[1].split("## ")[0])
    assert set(TYPED) <= set(typed)
    assert "--plain" in typed


def test_the_debugger_stops_where_the_readme_says(walk):
    printed, _ = walk
    stops = re.findall(r"^(?:\(Pdb\) )?> .*?/(\w+)\.py\(\d+\)(\w+)\(\)", printed, re.MULTILINE)
    mask, loss, up = ("dagrpo", "rectification_mask"), ("dagrpo", "policy_loss"), ("train", "backward")
    collect = ("train", "collect")
    wanted = [mask, collect, mask, mask, loss, up, loss, loss]
    assert [stop for stop in stops if stop != ("train", "<module>")] == wanted
    assert "***" not in printed  # pdb's mark of an error
    answers = dict(zip(TYPED, printed.split("(Pdb) ")[1:], strict=False))
    shown = {typed: answer.split("[")[0] for typed, answer in answers.items() if typed.startswith("p ")}
    assert shown == {typed: "" if "texts" in typed else "tensor(" for typed in shown}
    assert set(re.findall(r"\d\.\d+", answers[RATIOS])) - {"1.0000"} and "nan" in answers[RATIOS]  # moved; an anchor
    assert answers[CLIPPED].count("False") > 4


def test_the_page_of_runs_explains_every_column_of_metrics(walk):
    with (walk[1] / "metrics.csv").open(encoding="utf-8", newline="") as file:
        columns = next(csv.reader(file))
    table = PAGES["runs.md"].split("## The columns")[1].split("## ")[0]
    explained = {
        code for row in re.findall(r"^\|([^|]*)\|", table, re.MULTILINE) for code in re.findall(r"`(\w+)`", row)
    }
    assert {name for name in columns if not name.startswith("reward_level_")} - explained == {"step"}
    assert {name for name in explained if not name.startswith(("judge_", "reward_level_"))} <= set(columns)
