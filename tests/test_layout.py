"""The house: who may import whom, and that the root stays what a person reads in one evening.

    dagrpo (torch alone), tasks (nothing)  <-  policy  <-  rollout  <-  scoring, anchors  <-  train, eval
    maths  <-  scoring       policy, rollout, scoring  <-  judges, fast  <-  harness  <-  train, eval
    analysis, multi_gpu, lessons import anything; nothing imports them

Every import counts, also one inside a function or for type hints alone. What only a command needs does not: a block
`if __name__ == "__main__"`, and a file __main__.py. harness.console (one-line errors, help, bars) and
harness.loading (what is read from a model folder) are free to all.
"""

import shutil
import subprocess
import sys
from collections.abc import Callable

import pytest
from helpers import ROOT
from helpers_layout import Tree, read, room

LEVELS = (("dagrpo", "tasks"), ("policy",), ("rollout",), ("scoring", "anchors"), ("train", "eval"))  # of the root
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}
LAST = ("analysis", "multi_gpu", "lessons")
FREE = {"harness.console": set(), "harness.loading": {"harness.console"}}  # and what of ours they import
MOST_LINES, MOST_LINES_OF_ALL = 300, 1900  # fewer than so many


# ---------------------------------------------------------------------------------------- the rules


def complain(tree: Tree, may: Callable[[str, str], bool]) -> list[str]:
    """One line for each import that `may(module, imported)` does not allow."""
    pairs = [(name, module) for name, modules in tree.ours.items() for module in sorted(modules)]
    return [f"{name} imports {module}" for name, module in pairs if module not in FREE and not may(name, module)]


def root_order(tree: Tree) -> list[str]:
    """A file of the root imports those before it; scoring also maths; train and eval also maths, fast and harness."""
    further = {"scoring": {"maths"}, "train": {"maths", "fast", "harness"}, "eval": {"maths", "fast", "harness"}}

    def may(name: str, module: str) -> bool:
        if name not in LEVEL:
            return True
        if module in LEVEL:
            return name != "tasks" and LEVEL[module] <= LEVEL[name]
        return room(module) in further.get(name, ())

    return complain(tree, may)


def dagrpo_alone(tree: Tree) -> list[str]:
    """dagrpo.py imports torch and the standard library."""
    found = tree.ours["dagrpo"] | tree.others["dagrpo"] - sys.stdlib_module_names - {"torch"}
    return [f"dagrpo imports {name or 'relatively'}" for name in sorted(found)]


def tasks_alone(tree: Tree) -> list[str]:
    """tasks.py imports nothing of ours."""
    return [f"tasks imports {name}" for name in sorted(tree.ours["tasks"])]


def leaves_alone(tree: Tree) -> list[str]:
    """harness/console.py imports nothing of ours, loading.py only that: this is why all others may import them."""
    return [f"{leaf} imports {name}" for leaf, known in FREE.items() for name in sorted(tree.ours[leaf] - known)]


def plain_path(tree: Tree) -> list[str]:
    """rollout.py never imports fast, not even by way of others."""
    seen, ahead = set(), ["rollout"]
    while ahead:
        name = ahead.pop()
        if name not in seen:
            seen.add(name)
            ahead += tree.ours[name]
    return [f"rollout imports {name}, if by way of others" for name in sorted(seen) if room(name) == "fast"]


def rooms(tree: Tree) -> list[str]:
    """maths imports tasks; judges and fast import the root and maths; harness all of these. Each imports its own."""
    readers = {name for name in LEVEL if LEVEL[name] < LEVEL["train"]}
    allowed = {"maths": {"tasks"}, "judges": {*readers, "maths"}, "fast": {*readers, "maths"}}
    allowed["harness"] = {*readers, "maths", "judges", "fast"}

    def may(name: str, module: str) -> bool:
        return room(name) not in allowed or room(module) in allowed[room(name)] | {room(name)}

    return complain(tree, may)


def last_rooms(tree: Tree) -> list[str]:
    """analysis, multi_gpu and lessons are imported by nobody but themselves; lessons show what the others have."""

    def allowed(name: str, module: str) -> bool:
        return room(module) not in LAST or room(name) in (room(module), "lessons")

    return complain(tree, allowed)


def no_circle(tree: Tree) -> list[str]:
    """No module imports itself, by way of whatever others."""
    done: set[str] = set()

    def follow(name: str, way: tuple[str, ...]) -> list[str]:
        if name in way:
            return [" -> ".join([*way[way.index(name) :], name])]
        if name in done:
            return []
        found = [circle for module in sorted(tree.ours[name]) for circle in follow(module, (*way, name))]
        done.add(name)
        return found

    return [circle for name in sorted(tree.files) for circle in follow(name, ())]


def no_relative_import(tree: Tree) -> list[str]:
    return [f"{name} imports relatively" for name, others in tree.others.items() if "" in others]


def eight_files(tree: Tree) -> list[str]:
    """These eight are all in the root."""
    there = {name for name, path in tree.files.items() if "." not in name and path.name != "__init__.py"}
    return [f"{name}.py: in the root or not?" for name in sorted(there ^ LEVEL.keys())]


def short_files(tree: Tree) -> list[str]:
    """Each file has fewer than 300 lines, the eight of the root fewer than 1,900 together."""
    lines = {name: path.read_text(encoding="utf-8").count("\n") for name, path in tree.files.items()}
    found = [f"{tree.files[name].name} has {count} lines" for name, count in lines.items() if count >= MOST_LINES]
    root = sum(count for name, count in lines.items() if name in LEVEL)
    return found + [f"the root has {root} lines"] * (root >= MOST_LINES_OF_ALL)


RULES = {
    rule.__name__: rule
    for rule in (
        root_order, dagrpo_alone, tasks_alone, leaves_alone, plain_path, rooms, last_rooms, no_circle,
        no_relative_import, eight_files, short_files,
    )
}  # fmt: skip


@pytest.mark.parametrize("rule", RULES)
def test_the_house_is_in_order(rule):
    assert RULES[rule](read(ROOT)) == []


def test_files_of_tests_are_short_too():
    lines = {path.name: path.read_text(encoding="utf-8").count("\n") for path in (ROOT / "tests").rglob("*.py")}
    assert len(lines) > 80 and max(lines.values()) < MOST_LINES


def test_the_tree_is_read():
    """The rules would hold of a tree without imports, too."""
    tree = read(ROOT)
    assert {"torch", "dataclasses"} <= tree.others["dagrpo"]
    assert tree.ours["policy"] == set(FREE)
    assert {"policy", "rollout", "fast.draw"} <= tree.ours["fast.learning"]
    assert {"dagrpo", "fast", "harness.session", "rollout"} <= tree.ours["train"]
    assert "rollout" in tree.ours["scoring"], "for type hints alone"
    assert {"analysis.experiments.controls", "multi_gpu.trl_dagrpo", "judges.http", "maths.worker"} <= tree.files.keys()


# ---------------------------------------------------------------------------------------- the rules can fail


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """The project's modules, copied."""
    copy = tmp_path_factory.mktemp("house")
    for path in read(ROOT).files.values():
        to = copy / path.relative_to(ROOT)
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, to)
    return copy


@pytest.fixture
def house(original, tmp_path):
    return shutil.copytree(original, tmp_path / "house")


IN_A_FUNCTION = "def late():\n    import {}\n"
VIOLATIONS = [  # rule, file, what is added to it, and what the complaint says
    ("root_order", "policy.py", "import rollout", "policy imports rollout"),
    ("root_order", "rollout.py", "from scoring import verify", "rollout imports scoring"),
    ("root_order", "anchors.py", "import train", "anchors imports train"),
    ("root_order", "anchors.py", "from maths.verifier import verify", "anchors imports maths.verifier"),
    ("root_order", "policy.py", "from harness.warm_start import warm_start", "policy imports harness.warm_start"),
    ("root_order", "policy.py", IN_A_FUNCTION.format("harness.warm_start"), "policy imports harness.warm_start"),
    ("root_order", "scoring.py", "from harness import report", "scoring imports harness.report"),
    ("root_order", "scoring.py", "import judges.http", "scoring imports judges.http"),
    ("root_order", "train.py", "from judges.prompt import JudgeDown", "train imports judges.prompt"),
    ("root_order", "eval.py", "import analysis.table", "eval imports analysis.table"),
    ("root_order", "tasks.py", "import dagrpo", "tasks imports dagrpo"),
    ("dagrpo_alone", "dagrpo.py", "import numpy as np", "dagrpo imports numpy"),
    ("dagrpo_alone", "dagrpo.py", "import tasks", "dagrpo imports tasks"),
    ("dagrpo_alone", "dagrpo.py", "from harness.console import fail", "dagrpo imports harness.console"),
    ("dagrpo_alone", "dagrpo.py", "from . import tasks", "dagrpo imports relatively"),
    ("tasks_alone", "tasks.py", "from harness.console import fail", "tasks imports harness.console"),
    ("leaves_alone", "harness/console.py", "import tasks", "harness.console imports tasks"),
    ("leaves_alone", "harness/loading.py", "import policy", "harness.loading imports policy"),
    ("plain_path", "rollout.py", "from fast.draw import draw", "rollout imports fast.draw"),
    ("plain_path", "policy.py", IN_A_FUNCTION.format("fast"), "rollout imports fast.learning"),
    ("rooms", "maths/rows.py", "import scoring", "maths.rows imports scoring"),
    ("rooms", "maths/data.py", "from harness import runfolder", "maths.data imports harness.runfolder"),
    ("rooms", "judges/http.py", "from harness.config import Config", "judges.http imports harness.config"),
    ("rooms", "judges/local.py", "import fast", "judges.local imports fast"),
    ("rooms", "fast/draw.py", "import train", "fast.draw imports train"),
    ("rooms", "fast/draw.py", "from harness.warm_start import warm_start", "fast.draw imports harness.warm_start"),
    ("rooms", "harness/session.py", "from train import Run", "harness.session imports train"),
    ("rooms", "harness/prepare.py", "import analysis.saved", "harness.prepare imports analysis.saved"),
    ("last_rooms", "train.py", IN_A_FUNCTION.format("analysis.curves"), "train imports analysis.curves"),
    ("last_rooms", "fast/draw.py", "import multi_gpu", "fast.draw imports multi_gpu"),
    ("last_rooms", "harness/report.py", "from analysis import table", "harness.report imports analysis.table"),
    ("no_circle", "tasks.py", "import scoring", "tasks -> scoring"),
    ("no_circle", "fast/draw.py", IN_A_FUNCTION.format("fast.learning"), "fast.draw -> fast.learning"),
    ("no_circle", "scoring.py", "if TYPE_CHECKING:\n    from anchors import Anchor", "scoring -> anchors"),
    ("no_relative_import", "fast/draw.py", "from .memory import keep_freed_memory", "fast.draw imports relatively"),
    ("eight_files", "controls.py", "", "controls.py"),
    ("short_files", "tasks.py", "\n" * 300, "tasks.py has "),
]


@pytest.mark.parametrize(("rule", "file", "code", "said"), VIOLATIONS)
def test_a_violation_is_found(house, rule, file, code, said):
    assert RULES[rule](read(house)) == []
    with (house / file).open("a") as opened:
        opened.write(code + "\n" * (not code.endswith("\n")))
    assert any(said in line for line in RULES[rule](read(house)))


def test_every_rule_is_seen_to_fail():
    assert {rule for rule, *_ in VIOLATIONS} == RULES.keys()


def test_a_file_that_is_missing_in_the_root_is_found(house):
    (house / "anchors.py").unlink()
    assert any("anchors.py" in line for line in eight_files(read(house)))


def test_all_eight_files_together_have_a_limit_too(house):
    for name in LEVEL:
        (house / f"{name}.py").write_text("\n" * 237)
    assert short_files(read(house)) == []  # 1,896
    (house / "tasks.py").write_text("\n" * 241)
    assert short_files(read(house)) == ["the root has 1900 lines"]


@pytest.mark.parametrize("file", ["tasks.py", "policy.py", "fast/draw.py", "harness/report.py", "dagrpo.py"])
def test_a_command_may_import_anything(house, file):
    for path, code in ((file, 'if __name__ == "__main__":\n    import analysis.table, train, fast\n'),
                       ("judges/__main__.py", "import analysis.table\n")):  # fmt: skip
        with (house / path).open("a") as opened:
            opened.write(code)
    tree = read(house)
    assert [line for name, rule in RULES.items() if name != "short_files" for line in rule(tree)] == []


# ---------------------------------------------------------------------------------------- what an import loads


def loaded_by(module: str, *names: str) -> set[str]:
    """Which of these are loaded with the module."""
    code = f"import sys, {module}; print(*{set(names)} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_a_string_is_scored_without_transformers():
    heavy = ("transformers", "rollout", "policy")
    assert loaded_by("scoring", *heavy) == set()
    assert loaded_by("rollout", *heavy) == set(heavy), "the question can be answered with yes"


@pytest.mark.extra
def test_the_notebooks_are_among_the_extra_tests():
    chosen = ["-m", "extra", "--nbmake", "--collect-only", "tests/test_tasks.py", "lessons"]
    found = subprocess.run([sys.executable, "-m", "pytest", *chosen], cwd=ROOT, capture_output=True, text=True).stdout
    assert [path.name for path in sorted((ROOT / "lessons").glob("*.ipynb")) if path.name not in found] == []
