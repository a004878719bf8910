"""The soak's report: figures that cannot be recounted are named, and the figure can be drawn again from its CSV."""

import csv
import json
import mmap

import pytest

import scoring
import train
from analysis import soak
from harness import runfolder


@pytest.fixture(scope="module")
def run(tiny_folder, tmp_path_factory):
    """Six steps. Even lengths count as right, as the tiny policy never is: here and in the recount."""
    patch = pytest.MonkeyPatch()
    for module in (scoring, soak):
        patch.setattr(module, "verify", lambda response, answer, ended=True: len(response) % 2 == 0)
    out = tmp_path_factory.mktemp("soak") / "run"
    small = ["--batch-prompts", "4", "--group-size", "4", "--max-new-tokens", "44", "--show-every", "0"]
    flags = ["--method", "dagrpo", "--delta", "2", "--steps", "6", "--model", str(tiny_folder), "--out", str(out)]
    train.main([*flags, *small])
    yield out
    patch.undo()


@pytest.fixture
def copy(run, tmp_path):
    for name in ("config.json", "metrics.csv", "rollouts.jsonl"):
        (tmp_path / name).write_text((run / name).read_text())
    return tmp_path


def report(out, code=0):
    with pytest.raises(SystemExit) as stop:
        soak.main([str(out)])
    assert stop.value.code == code
    return (out / "soak.txt").read_text()


def test_every_figure_of_a_run_is_borne_out_by_its_rollouts(copy):
    said = report(copy)
    assert "6 steps, 24 groups" in said and "all as in metrics.csv" in said
    assert "72 responses" in said and "24 anchors" in said
    rows = list(csv.DictReader((copy / "soak.csv").open()))
    assert [int(row["step"]) for row in rows] == list(range(1, 7))
    assert all(100 < float(row["memory_mb"]) < 1e5 and float(row["open_files"]) > 2 for row in rows)


def edited(path, change):
    lines = path.read_text().splitlines()
    change(lines)
    path.write_text("\n".join(lines) + "\n")


def metric(name, value):
    def change(lines):
        cells = lines[3].split(",")
        cells[lines[0].split(",").index(name)] = value
        lines[3] = ",".join(cells)

    return "metrics.csv", change


def rollout(name, index, value):
    def change(lines):
        group = json.loads(lines[8])
        group[name][index] = value(group[name][index]) if callable(value) else value
        lines[8] = json.dumps(group)

    return "rollouts.jsonl", change


UNTRUE = {
    **{name: (*metric(name, "0.123"), f"step 3: {name} is 0.123") for name in ("reward", "score", "kept_fraction")},
    **{name: (*metric(name, "99"), f"step 3: {name} is 99.0") for name in ("tokens", "no_signal_groups", "kept_rows")},
    "masked_groups": (*metric("masked_groups", "7"), "step 3: masked_groups"),
    "a response is another": (*rollout("responses", 0, lambda text: text + "1"), "step 3: reward"),
    "a row is no anchor": (*rollout("is_anchor", -1, False), "step 3: anchors"),
    "a score is missing": (*rollout("S", 0, None), "step 3"),
    "a group is missing": ("rollouts.jsonl", lambda lines: lines.pop(9), "step 3: response_length"),
    "a step is missing": ("rollouts.jsonl", lambda lines: lines.__delitem__(slice(8, 12)), "step 3: no groups"),
    "a step stands twice": ("rollouts.jsonl", lambda lines: lines.extend(lines[:4]), "step 1: its groups stand twice"),
}


@pytest.mark.parametrize("case", UNTRUE)
def test_what_is_not_true_is_named(copy, case):
    name, change, message = UNTRUE[case]
    edited(copy / name, change)
    said = report(copy, code=1)
    assert "differ from metrics.csv" in said and message in said


def test_a_damaged_file_is_one_clear_line(copy, capsys):
    edited(copy / "rollouts.jsonl", lambda lines: lines.append('{"step": 6, "gro'))
    with pytest.raises(SystemExit) as stop:
        soak.main([str(copy)])
    err = capsys.readouterr().err
    assert stop.value.code == 2 and err.startswith("error: ") and err.count("\n") == 1 and "is damaged" in err


def test_the_figure_can_be_drawn_again(copy, tmp_path):
    report(copy)
    first = (copy / "soak.png").read_bytes()
    (copy / "soak.png").unlink()
    with pytest.raises(SystemExit):
        soak.main(["--from-csv", str(copy / "soak.csv")])
    assert (copy / "soak.png").read_bytes() == first


def test_open_files_threads_and_memory_are_counted():
    before = runfolder.usage()
    hold, files = mmap.mmap(-1, 50_000_000), [open("/dev/null") for _ in range(7)]  # noqa: SIM115, PTH123
    hold[::4096] = bytes(len(hold[::4096]))  # malloc would take what other tests have freed: policy.keep_freed_memory
    after = runfolder.usage()
    for file in files:
        file.close()
    assert after["open_files"] == before["open_files"] + 7
    assert 40 < after["memory_mb"] - before["memory_mb"] < 70 and len(hold) == 50_000_000
    assert runfolder.usage()["open_files"] == before["open_files"] and after["threads"] >= 1


def test_figures_that_come_later_get_columns_of_their_own(tmp_path):
    """A resumed run may have others: a newer version adds some. No figure may slip into another's column."""
    runfolder.append_metrics(tmp_path, {"step": 1, "reward": 0.5, "old": 3})
    runfolder.append_metrics(tmp_path, {"step": 2, "new": 7, "reward": 0.25})
    runfolder.append_metrics(tmp_path, {"step": 3, "reward": None, "new": 8})
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    shown = [[row[name] for name in ("step", "reward", "old", "new")] for row in rows]
    assert shown == [["1", "0.5", "3", ""], ["2", "0.25", "", "7"], ["3", "", "", "8"]]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]
