"""The tables of the experiments, in results/worlds and on the page about them, are those of the committed rows."""

import shutil
from pathlib import Path

import pytest

from analysis.experiments import claims, grid

RESULTS = Path(__file__).parents[2] / grid.OUT
PAGE = RESULTS.parents[1] / "docs/experiments.md"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("worlds")
    for name in ("runs.csv", "conflict_seeds.csv"):
        shutil.copy(RESULTS / name, folder)
    claims.main(["--results", str(folder)])
    return (folder / "tables.md").read_text(encoding="utf-8")


def test_the_tables_are_those_of_the_rows(made):
    assert (RESULTS / "tables.md").read_text(encoding="utf-8") == made


def test_so_are_those_of_the_page(made):
    worlds = PAGE.read_text(encoding="utf-8").partition("## World guess")[2].splitlines()
    heads = ("| method | seeds |", "| world | claim |")
    starts = [n for n, line in enumerate(worlds) if line.startswith(heads)]
    assert len(starts) == len(grid.WORLDS) + 1
    for n in starts:
        table = worlds[n : worlds.index("", n) if "" in worlds[n:] else None]
        assert len(table) > 10 and set(table) <= set(made.splitlines())
