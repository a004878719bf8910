"""What docstrings, the README and docs/ say is true: examples run, and names, files, links and targets exist."""

import doctest
import importlib
import re
import shlex
from pathlib import Path

import pytest
from helpers_docs import FENCED, MODULES, PAGES, README, ROOMS, ROOT, commands, every_page, inline_code, path_of

import dagrpo


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


def test_the_readmes_variant_needs_no_line_but_its_own(monkeypatch):
    from test_dagrpo_file import test_every_recipe_is_in_one_family as families_are_whole
    from test_recipes_literally import test_every_recipe_is_pinned as papers_are_pinned

    ((name, recipe),) = re.findall(r'^"(\w+)": (Recipe\(.*\)),$', README, re.MULTILINE)
    monkeypatch.setitem(dagrpo.METHODS, name, eval(recipe, {"Recipe": dagrpo.Recipe}))
    papers_are_pinned()
    families_are_whole()
