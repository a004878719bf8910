"""dagrpo.py as a file: what it needs, the page that it prints, and that its recipes do not change."""

import math
import re
import shutil
import subprocess
import sys
from dataclasses import FrozenInstanceError

import pytest
import torch
from helpers import ROOT

import dagrpo
from analysis import eight
from analysis.eight import look, note
from analysis.families import FAMILIES, cite
from dagrpo import METHODS
from scoring import EXAMPLE

pytestmark = pytest.mark.usefixtures("double_precision")


def test_a_copy_of_the_file_needs_torch_alone(tmp_path):
    """In a folder of its own, without the project on the path."""
    shutil.copy(dagrpo.__file__, tmp_path)
    code = (
        "import sys, dagrpo; print(dagrpo.__file__, sorted({'scoring', 'transformers', 'harness'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == f"{tmp_path / 'dagrpo.py'} []\n"


def test_python_dagrpo_begins_with_the_families_and_shows_two_recipes():
    command = [sys.executable, "dagrpo.py"]
    text = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert text.index("Group a") < text.index("The recipes") < text.index("\n1. Advantage")
    assert [name for name in METHODS if f"\n  {name}:" in text] == ["dr_grpo", "dagrpo"]


def test_the_page_shows_what_is_asked_for(capsys):
    """All: every recipe's advantages and pushes; sft has no response whose tokens could be compared."""
    eight.main(["--all"])
    text = capsys.readouterr().out
    for name, recipe in METHODS.items():
        assert len(re.findall(rf"^  {name} ", text, re.MULTILINE)) == 3
        assert text.count(f"\n  {name}: {cite(recipe)}\n") == 2 * recipe.rollouts
    eight.main(["gspo", "luffy"])
    text = capsys.readouterr().out
    assert [name for name in METHODS if f"\n  {name}:" in text] == ["gspo", "luffy"]
    with pytest.raises(SystemExit):
        eight.main(["grpoo"])
    said = capsys.readouterr().err
    assert "there is no recipe grpoo" in said and said.count("\n") == 1


def test_every_recipe_is_in_one_family():
    of_papers = [name for name, recipe in METHODS.items() if recipe.paper != "ours"]  # a reader's own has no family
    assert [name for members in FAMILIES.values() for name in members] == of_papers


def test_the_page_is_right_about_the_shared_tokens():
    """At ratio 1 the shared pushes cancel exactly where signs are opposite and weights equal, and it says so."""
    for name in ("dr_grpo", "grpo", "dapo", "gspo", "rloo", "maxrl", "sapo", "luffy"):
        view = look(METHODS[name])
        shared = EXAMPLE[0].index(";") + 1
        net = view.push[0, 0, :shared] + view.push[0, 3, :shared]
        assert not net.any() and view.push[0, 0, :shared].all()
        notes = [note(METHODS[name], view, 0, i) for i in range(7)]
        assert notes == [""] * 7
    assert look(METHODS["dagrpo"]).push[0, 0].any() and not look(METHODS["dagrpo"]).push[0, 3].any()


def test_the_page_says_why_a_push_is_zero_or_small():
    clipped = look(METHODS["gspo"], moved=True)
    assert not clipped.push[0, 0].any() and note(METHODS["gspo"], clipped, 0, 0) == "its one ratio is clipped"
    assert clipped.push[0, 3].any() and note(METHODS["gspo"], clipped, 0, 3) == ""
    p = math.exp(-0.3)
    for name, wanted in (("luffy", 0.1 * p / (p + 0.1) ** 2), ("chord", p * (1 - p))):
        view = look(METHODS[name])
        said = note(METHODS[name], view, 1, 7)
        assert f"= {wanted:.2f} at" in said
    hard = look(METHODS["luffy"])
    assert (hard.A[1, :7] < 0).all() and hard.A[1, 7] > 0 and hard.push[1, 7].any()
    assert (
        not look(METHODS["dr_grpo"]).A[1].any() and note(METHODS["dr_grpo"], look(METHODS["dr_grpo"]), 1, 0) == "A = 0"
    )
    assert note(METHODS["dagrpo"], look(METHODS["dagrpo"]), 0, 1) == "masked"


def test_the_page_shows_the_soft_weights(capsys):
    """A = .5 and a gap of 1, so .5 sigmoid(1 - 3) = .06; dagrpo_on masks that response."""
    eight.main(["dagrpo_soft", "dagrpo_on"])
    text = capsys.readouterr().out
    assert re.search(r"^  dagrpo_soft +\+\.49 +\+\.06 ", text, re.MULTILINE)
    assert re.search(r"^  dagrpo_on +\+\.50 \[\+\.50\] ", text, re.MULTILINE)
    assert "   dagrpo_soft multiplies A by sigmoid(gap - 3)" in text and "Why dagrpo_soft" not in text


def test_recipes_and_updates_cannot_be_changed_in_place():
    with pytest.raises(FrozenInstanceError):
        METHODS["dagrpo"].rectify = False
    update = dagrpo.Update(*[torch.zeros(1)] * 6)
    with pytest.raises(FrozenInstanceError):
        update.keep = torch.ones(1)
