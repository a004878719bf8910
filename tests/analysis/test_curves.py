"""analysis.curves on run folders made here: what is computed, how lines are named, and what is drawn."""

import math

import pandas as pd
import pytest
from helpers import one_error
from helpers_curves import SFT, draw, make_run

from analysis import curves, run_folders, stats, table
from analysis.curves import PANELS, CurvePoint

# ---------------------------------------------------------------------------------------- what is computed


def test_running_mean_is_of_the_last_n_and_passes_over_empty_cells():
    def means(values, smooth):
        line = curves.curve(pd.DataFrame({"a seed": values}, dtype=float), "reward", "grpo", smooth, most=99.0)
        return list(zip(line["step"], line["mean"], strict=True))

    assert means([1.0, 2.0, 6.0, 10.0], 2) == [(0, 1.0), (1, 1.5), (2, 4.0), (3, 8.0)]
    assert means([1.0, None, 3.0, None, None], 2) == [(0, 1.0), (1, 1.0), (2, 3.0), (3, 3.0)], "no mean of nothing"
    assert means([4.0, 2.0], 100) == [(0, 4.0), (1, 3.0)]


def test_t_interval_of_known_values():
    mean, half = stats.t_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert mean == 3 and half == pytest.approx(2.7764451 * math.sqrt(2.5 / 5))


@pytest.mark.filterwarnings("error")
def test_t_intervals_of_rows_with_gaps_and_of_what_has_no_spread():
    nan = math.nan
    means, halves = stats.t_interval([[1.0, nan, 2.0, 3.0], [7.0, nan, nan, nan], [2.0] * 4, [nan] * 4])
    assert means[:3].tolist() == [2.0, 7.0, 2.0] and math.isnan(means[3])
    assert halves[0] == pytest.approx(2.484, abs=1e-3) and halves[2] == 0 and math.isnan(halves[1] + halves[3])
    mean, half = stats.t_interval([7.0])
    assert mean == 7 and math.isnan(half)


def test_one_seed_is_its_running_mean_over_the_single_steps(tmp_path):
    run = make_run(tmp_path / "a", reward=lambda step: step / 10)
    line = draw(tmp_path, run, smooth=2)["reward", "dagrpo"]
    assert [point.raw for point in line] == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    assert [point.mean for point in line] == pytest.approx([0.1, 0.15, 0.25, 0.35, 0.45, 0.55])
    assert all(math.isnan(point.low) and math.isnan(point.high) for point in line)
    assert {(point.seeds, point.smooth) for point in line} == {(1, 2)}


def test_the_band_of_two_seeds_goes_from_one_to_the_other(tmp_path, capsys):
    runs = [make_run(tmp_path / str(s), seed=s, reward=lambda step, s=s: 0.3 + 0.4 * s) for s in range(2)]
    line = draw(tmp_path, *runs)["reward", "dagrpo"]
    assert [(p.low, p.mean, p.high) for p in line] == [pytest.approx((0.3, 0.5, 0.7))] * 6
    legend = curves.draw_curves(curves.read_csv(tmp_path / "figures" / "curves.csv")).axes[5].get_legend()
    assert legend.get_title().get_text().endswith("band: from one seed to the other")


def test_several_seeds_are_smoothed_and_then_their_mean_in_its_t_interval(tmp_path):
    runs = [make_run(tmp_path / str(s), seed=s, response_length=lambda step, s=s: step + 10 * s) for s in range(3)]
    line = draw(tmp_path, *runs, smooth=2)["response_length", "dagrpo"]
    half = 4.303 * 10 / math.sqrt(3)
    assert [point.mean for point in line] == pytest.approx([11, 11.5, 12.5, 13.5, 14.5, 15.5])
    assert line[2].high == pytest.approx(12.5 + half, rel=1e-4)
    assert {(point.low, point.seeds) for point in line} == {(0.0, 3)}  # a length is not below 0
    assert all(math.isnan(point.raw) for point in line)


def test_bands_stay_where_shares_can_be(tmp_path):
    runs = [make_run(tmp_path / str(s), seed=s, kept_fraction=lambda step, s=s: 0.1 + 0.4 * s) for s in range(3)]
    line = draw(tmp_path, *runs)["kept_fraction", "dagrpo"]
    assert (line[0].low, line[0].mean, line[0].high) == (0.0, 0.5, 1.0)


def test_an_empty_cell_is_no_zero(tmp_path):
    a = make_run(tmp_path / "a", kept_fraction=lambda step: None if step == 2 else 0.5)
    b = make_run(tmp_path / "b", seed=1, kept_fraction=lambda step: 0.7)
    line = draw(tmp_path, a, b)["kept_fraction", "dagrpo"]
    assert [(point.seeds, round(point.mean, 3)) for point in line[:3]] == [(2, 0.6), (1, 0.7), (2, 0.6)]


def test_a_norm_that_is_not_finite_is_left_out(tmp_path):
    line = draw(tmp_path, make_run(tmp_path / "a", grad_norm=lambda step: float("inf") if step == 3 else 2.0))
    assert [point.step for point in line["grad_norm", "dagrpo"]] == [1, 2, 4, 5, 6]


def test_a_method_is_left_out_of_panels_that_it_has_nothing_for(tmp_path):
    lines = draw(tmp_path, make_run(tmp_path / "sft", method="sft", **SFT), make_run(tmp_path / "a"))
    assert {panel for panel, method in lines if method == "sft"} == {"grad_norm"}
    assert {panel for panel, method in lines if method == "dagrpo"} == set(PANELS)


def test_runs_of_different_lengths_are_drawn_as_far_as_they_all_go(tmp_path, capsys):
    runs = [make_run(tmp_path / "a", steps=6), make_run(tmp_path / "b", seed=1, steps=4)]
    line = draw(tmp_path, *runs, make_run(tmp_path / "c", method="grpo"))
    assert len(line["reward", "dagrpo"]) == 4 and len(line["reward", "grpo"]) == 6
    said, written = capsys.readouterr().err, (tmp_path / "figures" / "curves.txt").read_text()
    assert "4 to 6 steps" in said and "dagrpo" in said and "4 to 6 steps" in written


def test_a_line_that_is_just_being_written_is_not_read(tmp_path):
    run = make_run(tmp_path / "a", steps=3)
    with (run / "metrics.csv").open("a") as file:
        file.write("4,0.1")
    assert list(run_folders.read_run(run).metrics.index) == [1, 2, 3]


# ---------------------------------------------------------------------------------------- names of lines


def test_names_tell_where_a_run_began_and_in_which_flag_it_differs(tmp_path):
    start = make_run(tmp_path / "sft0", method="sft")
    began = [str(start), str(start / "checkpoint"), str(start / "checkpoint" / "model"), "some/where/model_x"]
    runs = [make_run(tmp_path / str(i), seed=i, flags={"init_from": at}) for i, at in enumerate(began)]
    runs += [make_run(tmp_path / f"d{delta}", flags={"delta": delta}, seed=9) for delta in (1.0, 3.0)]
    names = [run.method for run in run_folders.read_runs(runs)]
    assert names[:4] == ["dagrpo after sft"] * 3 + ["dagrpo after model_x"]
    assert names[4:] == ["dagrpo, delta 1.0", "dagrpo, delta 3.0"]


def test_the_same_method_and_seed_twice_is_not_two_seeds(tmp_path, capsys):
    runs = [make_run(tmp_path / name) for name in "ab"]
    assert "both dagrpo with seed 0" in one_error(capsys, curves.main, *runs, "--out", tmp_path / "f")
    assert "both dagrpo with seed 0" in one_error(capsys, table.main, runs[0], runs[0])


# ---------------------------------------------------------------------------------------- what is drawn


@pytest.fixture
def figure():
    """Two methods, one of them with a band, and a norm that falls to 0."""
    points = []
    for name in PANELS:
        points += [CurvePoint(name, "dagrpo", s, 0.1 * s, 0.05 * s, 0.2 * s, 3, None, 10) for s in (1, 2, 3)]
        points += [CurvePoint(name, "grpo", s, 0.3, None, None, 1, 0.0 if s == 2 else 0.4, 10) for s in (1, 2, 3)]
    return curves.draw_curves(pd.DataFrame(points))


def lines_of(ax):
    """The lines that hold a number, as lists of y."""
    lines = [list(map(float, line.get_ydata())) for line in ax.lines]
    return [line for line in lines if not all(map(math.isnan, line))]


def test_the_csv_is_what_is_drawn(figure):
    mean, raw, other = lines_of(figure.axes[0])
    assert mean == pytest.approx([0.1, 0.2, 0.3]) and raw == [0.4, 0.0, 0.4] and other == [0.3, 0.3, 0.3]
    band = figure.axes[0].collections[0].get_paths()[0].vertices
    assert {(x, round(y, 9)) for x, y in band} >= {(1, 0.05), (1, 0.2), (3, 0.15), (3, 0.6)}


def test_the_gradient_norm_has_a_log_axis_with_a_gap_where_it_is_0(figure):
    scales = [ax.get_yscale() for ax in figure.axes[:5]]
    norm = list(PANELS).index("grad_norm")
    assert scales.pop(norm) == "log" and set(scales) == {"linear"}
    assert math.isnan(lines_of(figure.axes[norm])[1][1])
    low, high = figure.axes[norm].get_ylim()
    assert 0.01 < low < 0.1 and high > 0.6


def test_axes_name_their_units_and_the_legend_its_seeds(figure):
    assert {ax.get_xlabel() for ax in figure.axes[:5]} == {"step"}
    assert [ax.get_ylabel() for ax in figure.axes[1:3]] == ["tokens", "nats per token"]
    legend = figure.axes[5].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["dagrpo (3 seeds)", "grpo (1 seed)"]
    assert "10 steps" in legend.get_title().get_text() and "95 % t-interval" in legend.get_title().get_text()


def test_the_title_has_reward_and_length_at_the_end():
    ends = {"dr_grpo": (0.3, 20.0), "sft": (None, None), "dagrpo": (0.25, 31.5), "luffy": (0.4, 20.0)}
    points = [
        CurvePoint(panel, method, step, mean + step, math.nan, math.nan, 1, math.nan, 10)
        for method, means in ends.items()
        for panel, mean in zip(("reward", "response_length"), means, strict=True)
        for step in (-1, 0)
        if mean is not None
    ]
    points.append(CurvePoint("entropy", "sft", 0, 0.1, 0.0, 0.2, 3, math.nan, 10))  # of another panel
    assert curves.message(pd.DataFrame(points)) == (
        "Reward at the end: dr_grpo 0.30, luffy +0.10, dagrpo -0.05\n"
        "Response length at the end: dr_grpo 20.0, dagrpo +11.5, luffy +0.0 (1 seed each: no verdict)"
    )
    assert curves.message(pd.DataFrame(points[:0], columns=list(vars(points[0])))) == "Training curves"


def test_lines_differ_without_their_colours_too():
    looks = [curves.style(i, 50) for i in range(11)]
    assert len({(str(look["linestyle"]), look["marker"]) for look in looks}) == 11
    assert len({(look["color"], str(look["linestyle"])) for look in looks}) == 11


def test_nothing_is_cut_off(tmp_path):
    flags = [{"delta": float(d), "anchor_ratio": "shaped", "updates_per_batch": d} for d in range(1, 8)]
    runs = run_folders.read_runs(make_run(tmp_path / str(i), flags=f) for i, f in enumerate(flags))
    lines = [curves.curve(curves.over_seeds([r], name), name, r.method, 2, 99.0) for name in PANELS for r in runs]
    figure = curves.draw_curves(pd.concat(lines))
    figure.draw_without_rendering()
    page = figure.bbox
    texts = [t for ax in figure.axes for t in (ax.title, ax.xaxis.label, ax.yaxis.label)]
    for part in [*texts, figure.axes[5].get_legend()]:
        box = part.get_window_extent()
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= page.x1 and box.y1 <= page.y1
    assert figure.axes[5].get_legend().get_window_extent().x0 > figure.axes[4].bbox.x1


def test_redrawn_from_the_csv_it_is_the_same_picture(tmp_path):
    runs = [make_run(tmp_path / f"{m}{s}", method=m, seed=s) for m in ("grpo", "dagrpo") for s in (0, 1)]
    draw(tmp_path, *runs, make_run(tmp_path / "sft", method="sft", **SFT), smooth=3)
    first, again = tmp_path / "figures", tmp_path / "again"
    curves.main(["--from-csv", str(first / "curves.csv"), "--out", str(again)])
    assert (first / "curves.png").read_bytes() == (again / "curves.png").read_bytes()
    caption = (first / "curves.txt").read_text()
    assert "last 3 steps" in caption and "grpo: 2 seeds (0, 1), 6 steps" in caption and str(runs[0]) in caption
    assert f"--from-csv {first / 'curves.csv'}" in caption and "--smooth 3" in caption
