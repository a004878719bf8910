"""analysis.conflict: statistics, files, bad input."""

import math

import numpy as np
import pandas as pd
import pytest
from helpers import one_error
from helpers_conflict import make_group

import tasks
from analysis import conflict, conflict_figures, conflict_points, gradients, saved
from analysis.conflict_figures import Response
from analysis.conflict_points import ConflictPoint
from analysis.gradients import Group, net_share

# ---------------------------------------------------------------------------------------- statistics


def test_pairs_are_every_positive_with_every_negative():
    shared = np.arange(16).reshape(4, 4) / 16
    group = make_group([[1.0, 0], [0, 1.0], [1.0, 0], [1.0, 1]], [0.5, -0.5, 0.5, -0.5], [10, 1, 4.5, 3], shared=shared)
    found = {tuple(row) for row in conflict_points.pairs(group).round(3).tolist()}
    half = round(math.sqrt(0.5), 3)
    assert found == {(9, 0.062, 0), (7, 0.188, half), (3.5, 0.562, 0), (1.5, 0.688, half)}


def test_binned_means():
    x, y = np.array([0.0, 0.9, 1.0, 2.0, 3.0]), np.array([1.0, 3.0, 5.0, 7.0, 9.0])
    assert conflict_points.binned(x, y, (0, 1, 2, 2.5, 3)) == pytest.approx([2, 5, 7, 9])
    assert math.isnan(conflict_points.binned(x[:2], y[:2], (0, 1, 2))[1])


def test_bootstrap_of_a_mean_has_the_width_of_the_normal_interval():
    values = np.random.default_rng(1).normal(size=400)
    found, low, high = conflict_points.bootstrap(
        lambda i: [values[i].mean()], 400, np.random.default_rng(0), draws=2000
    )
    assert found[0] == pytest.approx(values.mean()) and (high - low)[0] == pytest.approx(2 * 1.96 / 20, rel=0.15)


def test_bootstrap_takes_whole_groups_not_pairs():
    """Sixteen equal pairs of one group are not sixteen observations: the interval must not shrink."""
    few = [make_group([[1.0, 0], [c, 1 - c]], [0.5, -0.5], [10, 10 - 9 * c]) for c in (0.0, 0.3, 0.5, 0.7, 1.0)]
    many = [
        Group(*g[:3], *(np.kron(np.ones((4, 4)), g.gram), np.ones((8, 8))), *(np.tile(x, 4) for x in g[5:]))
        for g in few
    ]
    spans = []
    for groups in (few, many):
        points = conflict_points.pair_points("m", "1", groups, np.random.default_rng(0))
        spans.append([(p.mean, p.low, p.high) for p in points if p.name == "score gap"])
    assert np.array(spans[0]) == pytest.approx(np.array(spans[1]), abs=0.15)


def test_c7_is_negative_where_close_scores_go_with_like_gradients():
    groups = [make_group([[1.0, 0], [c, 1 - c]], [0.5, -0.5], [10, 10 - 9 * (1 - c)]) for c in np.linspace(0, 1, 12)]
    points = conflict_points.summarise("m", gradients.Measured({gradients.ROLLOUTS: groups}, {gradients.ROLLOUTS: []}),
                                np.random.default_rng(0))  # fmt: skip
    gap = next(p for p in points if p.name == "score gap")
    assert gap.mean == pytest.approx(-1) and gap.high <= -0.9 and gap.n == 12


def test_bins_count_their_groups_and_need_five():
    groups = [make_group([[1.0, 0], [0, 1.0]], [0.5, -0.5], [10, 1]) for _ in range(6)]
    groups += [make_group([[1.0, 0], [0, 1.0]], [0.5, -0.5], [4.5, 1]) for _ in range(4)]
    points = conflict_points.pair_points("m", "all", groups, np.random.default_rng(0))
    assert [(p.x, p.n) for p in points if p.panel == "gap"] == [(9, 6)]


def test_net_points_compare_the_same_groups():
    alike = make_group([[1.0, 0], [1.0, 0], [0, 1.0]], [0.6, -0.3, -0.3], [10, 9, 1], keep=[True, False, True])
    points = conflict_points.net_points("m", gradients.ROLLOUTS, "all", [alike] * 3, np.random.default_rng(0))
    found = {p.name: p for p in points if p.panel != "sides"}
    before, after = net_share(alike.gram, alike.A, np.full(3, True)), net_share(alike.gram, alike.A, alike.keep)
    assert found["none"].mean == pytest.approx(before) and found["Eq. 8-9"].mean == pytest.approx(after)
    assert found["Eq. 8-9 minus none"].mean == pytest.approx(after - before) and after > before
    assert found["both sides kept"].mean == 1 and found["nothing kept"].mean == 0


def test_examples_are_an_easy_a_mixed_and_a_hard_group():
    def group(right, level, masked=False, anchor=False):
        R = np.array([1.0] * right + [0.0] * (8 - right))
        keep = np.full(8, True)
        keep[0] = not masked
        return make_group([[1.0, 0]] * 8, R - R.mean(), [10.0] * 8, keep, None, level, [anchor] + [False] * 7)

    on = [group(6, "1"), group(7, "2", masked=True), group(4, "3"), group(1, "5")]
    mixed = [group(1, "4", anchor=True), group(1, "5", anchor=True), group(2, "5", anchor=True)]
    found = conflict_figures.examples({gradients.ROLLOUTS: on, gradients.MIXED: mixed})
    assert found["easy"] is on[1] and found["mixed"] is on[2] and found["hard, with anchor"] is mixed[1]
    assert set(conflict_figures.examples({gradients.ROLLOUTS: on[:1], gradients.MIXED: []})) == {"easy"}


# ---------------------------------------------------------------------------------------- files


def test_csv_round_trip(tmp_path):
    points = [ConflictPoint("gap", "a, b", "rollouts", "all", "cosine", 1.5, 0.25, -0.5, 0.5, 7)]
    points += [ConflictPoint("net", 'q"q', "with anchor", "1", "none", None, 1e-9, 0.0, 1.0, 8)]
    rows = [Response("easy", "m", "1", "1+1=\n", text, 4.5, -0.25, False, True, "1 2") for text in ("#1,", "", "NA")]
    for kind, written in ((ConflictPoint, points), (Response, rows)):
        saved.write_rows(written, tmp_path / "rows.csv")
        found = saved.read_rows(kind, tmp_path / "rows.csv")
        assert [kind(*row) for row in found.replace(math.nan, None).itertuples(index=False)] == written
    assert found["keep"].dtype == bool and found["level"].tolist() == ["1"] * 3


def test_command_writes_figures_that_redraw_from_the_csv(tiny_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(conflict, "DRAWS", 20)
    monkeypatch.setattr(conflict_points.bootstrap, "__defaults__", (20,))
    levels = {name: tasks.LEVELS[name] for name in ("1", "2")}
    monkeypatch.setattr(tasks.arithmetic, "__defaults__", (0, levels))
    out, again = tmp_path / "out", tmp_path / "again"
    flags = ["--problems", "3", "--seeds", "1", "--group-size", "4", "--max-new-tokens", "24", "--batch-prompts", "3"]
    conflict.main(["--model", str(tiny_folder), *flags, "--out", str(out)])
    assert "C7" in capsys.readouterr().out
    conflict.main(["--from-csv", str(out / "conflict.csv"), "--out", str(again)])
    for name in ("conflict.png", "groups.png"):
        assert (out / name).read_bytes() == (again / name).read_bytes()
    written = (out / "conflict.txt").read_text()
    assert "sampling seeds 0" in written and "--problems 3" in written and f"--from-csv {out}" in written


def figure_points():
    rows = [("gap", "cosine", x) for x in (1.0, 4.0)] + [("text", "cosine", x) for x in (0.0, 0.5)]
    points = [ConflictPoint(panel, m, "rollouts", "all", name, x, 0.5, 0.4, 0.7, 9)
              for m in ("warm_start", "a, step 1", "a, step 2") for panel, name, x in rows]  # fmt: skip
    return points + [ConflictPoint("net", m, setup, "all", mask, None, 0.6, 0.5, 0.8, 9)
                     for m in ("warm_start", "a, step 1", "a, step 2") for setup in conflict_figures.NET_PANELS
                     for mask in gradients.MASKS]  # fmt: skip


def test_the_figure_draws_the_last_step_of_a_method_and_every_policy():
    points = pd.DataFrame(figure_points())
    points.loc[(points["name"] == "Eq. 8-9") & (points["model"] == "warm_start"), "mean"] = 0.55
    figure = conflict_figures.draw_conflict(points)
    assert "random by +0.000 to +0.000, Eq. 8-9 by -0.050 to +0.000" in figure.get_suptitle()
    gap, net = figure.axes[0], figure.axes[1]
    assert [text.get_text() for text in gap.get_legend().get_texts()] == ["warm_start", "a, step 2"]
    assert [text.get_text() for text in net.get_xticklabels()] == ["warm_start", "a\nstep 1", "a\nstep 2"]
    assert len(net.containers) == 3 and net.containers[0].lines[0].get_ydata().tolist() == [0.6] * 3


def test_masked_responses_are_hatched_and_hollow():
    group = make_group([[1.0, 0.2], [0.5, 1], [0.1, -1]], [0.6, -0.3, -0.3], [10, 9, 1], keep=[True, False, True])
    figure = conflict_figures.draw_groups(pd.DataFrame(conflict_figures.responses("easy", "m", group)))
    assert len(figure.axes[0].patches) == 0 and len(figure.axes[1].patches) == 5  # a row and a column of three
    faces = [line.get_markerfacecolor() for line in figure.axes[3].lines if line.get_marker() in "^v"]
    assert [face == "white" for face in faces] == [False, True, False]
    before, after = (float(word) for word in figure.axes[3].get_title().split() if word.startswith("0."))
    assert figure.get_suptitle().endswith(f"easy: {before:.2f} before, {after:.2f} after the mask")
    assert before == pytest.approx(net_share(group.gram, group.A, np.full(3, True)), abs=0.006)
    assert after == pytest.approx(net_share(group.gram, group.A, group.keep), abs=0.006)


def test_labels_of_policies(tmp_path):
    run = tmp_path / "run"
    for name, step in (("checkpoint", "50"), ("checkpoint-25", "25")):
        (run / name).mkdir(parents=True)
        (run / name / "step").write_text(step)
    (run / "config.json").write_text('{"method": "dagrpo"}')
    assert conflict.label(str(run)) == "dagrpo, step 50"
    assert conflict.label(str(run / "checkpoint-25")) == "dagrpo, step 25"
    assert conflict.label("warm_start") == "warm_start" and conflict.label("hub/Some-1B") == "Some-1B"


# ---------------------------------------------------------------------------------------- bad input


def test_bad_input_is_one_line(tmp_path, capsys):
    assert "--problems must be at least 1" in one_error(capsys, conflict.main, "--problems", 0)
    assert "--group-size must be at least 2" in one_error(capsys, conflict.main, "--group-size", 1)
    assert "--delta" in one_error(capsys, conflict.main, "--delta", -1)
    assert "cannot be read" in one_error(capsys, conflict.main, "--from-csv", tmp_path / "no.csv")
    (tmp_path / "bad.csv").write_text("a,b\n1,2\n")
    assert "damaged" in one_error(capsys, conflict.main, "--from-csv", tmp_path / "bad.csv")
    (tmp_path / "empty.csv").write_text(",".join(vars(figure_points()[0])) + "\n")
    assert "nothing to draw" in one_error(capsys, conflict.main, "--from-csv", tmp_path / "empty.csv")
    assert "holds no model" in one_error(capsys, conflict.main, "--model", tmp_path, "--out", tmp_path / "o")
    (tmp_path / "file").write_text("")
    assert "choose another folder" in one_error(capsys, conflict.main, "--out", tmp_path / "file" / "x")


def test_no_usable_demonstration_is_one_line(tiny_folder, tmp_path, capsys):
    err = one_error(
        capsys, conflict.main, "--model", tiny_folder, "--problems", 1, "--max-new-tokens", 2, "--out", tmp_path / "o"
    )
    assert "fits into --max-new-tokens 2" in err
