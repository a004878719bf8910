"""analysis.shared: counts against a brute-force loop over prefixes, runs made here, the figure, and bad input."""

import json
import math
from itertools import product

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dagrpo
from analysis import shared
from analysis.run_folders import read_runs
from analysis.saved import read_rows, write_rows
from analysis.shared import MASKED, NONE, PANELS, RANDOM, SharedPoint, pair_ids, tally

responses = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), min_size=2, max_size=6)
pushes = st.sampled_from([-0.5, -0.25, 0.0, 0.25, 0.75])


def slow_tally(tokens, push):
    """Prefix by prefix, as Eq. 6 is written: who holds the pair, and what do they sum to?"""
    sums = np.zeros(5)
    prefixes = {tuple(row[: t + 1]) for row in tokens for t in range(len(row))}
    for prefix in prefixes:
        holders = [push[i] for i, row in enumerate(tokens) if tuple(row[: len(prefix)]) == prefix and push[i] != 0]
        mass, net = sum(map(abs, holders)), abs(sum(holders))
        both = any(a > 0 for a in holders) and any(a < 0 for a in holders)
        sums += [len(holders), both * len(holders), mass, both * mass, mass - net]
    return sums


@settings(deadline=None, max_examples=100)
@given(responses, st.data())
def test_tally_is_that_of_a_loop_over_prefixes(tokens, data):
    push = np.array(data.draw(st.lists(pushes, min_size=len(tokens), max_size=len(tokens))))
    assert tally(tokens, push) == pytest.approx(slow_tally(tokens, push), abs=1e-9)


@settings(deadline=None, max_examples=50)
@given(responses, st.data())
def test_tally_does_not_depend_on_the_order_and_what_cancels_is_on_shared_pairs(tokens, data):
    push = np.array(data.draw(st.lists(pushes, min_size=len(tokens), max_size=len(tokens))))
    order = data.draw(st.permutations(range(len(tokens))))
    found = tally(tokens, push)
    assert tally([tokens[i] for i in order], push[order]) == pytest.approx(found, abs=1e-9)
    assert 0 <= found[1] <= found[0] and -1e-9 <= found[4] <= found[3] + 1e-9 <= found[2] + 2e-9


def test_a_word_after_another_history_is_another_pair():
    assert pair_ids([[1, 2, 3], [2, 2, 3]]) == [[0, 1, 2], [3, 4, 5]]
    assert tally([[1, 2, 3], [2, 2, 3]], np.array([0.5, -0.5])).tolist() == [6, 0, 3, 0, 0]


def test_equal_pushes_cancel_and_unequal_ones_in_part():
    assert tally([[1], [1]], np.array([0.5, -0.5])).tolist() == [2, 2, 1, 1, 1]
    assert tally([[1], [1]], np.array([0.75, -0.25])).tolist() == [2, 2, 1, 1, 0.5]
    assert tally([[1], [1]], np.array([0.75, 0.25])).tolist() == [2, 0, 1, 0, 0]  # one side only


# ---------------------------------------------------------------------------------------- runs made here

GROUP = {  # the mask at delta = 3 leaves out the second and the third: S 4.5 against 2.5
    "tokens": [[1, 2, 3], [1, 5], [1, 2, 4, 9], [7]],
    "A": [0.5, 0.5, -0.5, -0.5],
    "S": [10.0, 4.5, 2.5, 1.0],
}
NO_SIGNAL = {"tokens": [[1], [1]], "A": [0.0, 0.0], "S": [None, None]}


def make_run(folder, groups=(GROUP,), method="dagrpo", seed=0, steps=3, divisor="constant", level="1"):
    folder.mkdir(parents=True)
    config = {"method": method, "seed": seed, "delta": 3.0, "init_from": None, "recipe": {"divisor": divisor}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "metrics.csv").write_text("step,reward\n" + "".join(f"{s},0.5\n" for s in range(1, steps + 1)))
    lines = [g | {"step": s, "level": level} for s in range(1, steps + 1) for g in groups]
    (folder / "rollouts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def points_of(tmp_path, *runs, smooth=1):
    """The points as they come back from the file."""
    write_rows(shared.points_of(read_runs(runs), smooth), tmp_path / "p.csv")
    return list(read_rows(SharedPoint, tmp_path / "p.csv").itertuples())


def last_line(capsys, *argv):
    """What a command that must fail says at the end: a progress bar may stand before it."""
    with pytest.raises(SystemExit) as stop:
        shared.main([str(arg) for arg in argv])
    lines = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and lines[-1].startswith("error: ") and "Traceback" not in "".join(lines)
    return lines[-1]


def at_step(points, name, mask, step=1):
    return next(p.mean for p in points if (p.panel, p.mask, p.step, p.level) == (name, mask, step, "all"))


def test_figures_of_a_known_group(tmp_path):
    points = points_of(tmp_path, make_run(tmp_path / "a", [GROUP, NO_SIGNAL]))
    # 1 is held by three, 1 2 by a positive and a negative: 5 of 10 tokens; they cancel 1.0 of 1.5, and 1 + 1 of 2.5
    assert at_step(points, "shared tokens", NONE) == pytest.approx(5 / 10)
    assert at_step(points, "cancelled there", NONE) == pytest.approx(2 / 2.5)
    assert at_step(points, "cancelled in all", NONE) == pytest.approx(2 / 5)
    assert at_step(points, "shared tokens", MASKED) == 0  # what is left, 1 2 3 and 7, has nothing in common
    assert not [p for p in points if (p.panel, p.mask) == ("cancelled there", MASKED)]  # no share of nothing
    assert "0.500" in shared.summary(pd.DataFrame(points))


def test_the_mask_is_the_one_of_eq_8_and_9_also_where_the_method_has_none(tmp_path):
    keep = dagrpo.rectification_mask(*(shared.torch.tensor([GROUP[x]]) for x in "AS"))[0]
    assert keep.tolist() == [True, False, False, True]
    plain = points_of(tmp_path, make_run(tmp_path / "a", method="dr_grpo"))
    assert at_step(plain, "shared tokens", MASKED) == 0


@pytest.mark.parametrize("divisor", ["constant", "sequence", "tokens"])
def test_pushes_have_the_recipes_divisor(tmp_path, divisor):
    points = points_of(tmp_path, make_run(tmp_path / "a", divisor=divisor))
    lengths = np.array([len(row) for row in GROUP["tokens"]])
    mask = shared.torch.arange(4) < shared.torch.tensor(lengths)[:, None]
    weight = dagrpo.divisor_weights(mask, divisor, 8).amax(dim=1).numpy()
    found = slow_tally(GROUP["tokens"], np.array(GROUP["A"]) * weight)
    assert at_step(points, "cancelled in all", NONE) == pytest.approx(found[4] / found[2], rel=1e-4)
    assert at_step(points, "cancelled there", NONE) == pytest.approx(found[4] / found[3], rel=1e-4)


def test_a_missing_score_masks_its_group_and_nothing_else(tmp_path):
    unscored = GROUP | {"S": [10.0, None, 2.5, 1.0]}
    points = points_of(tmp_path, make_run(tmp_path / "a", [unscored]))
    assert at_step(points, "shared tokens", NONE) == 0.5
    assert not [p for p in points if p.mask == MASKED]


def test_seeds_have_a_band_and_levels_their_own_points(tmp_path):
    alike = GROUP | {"A": [0.5, -0.5, 0.5, -0.5]}
    runs = [make_run(tmp_path / "a"), make_run(tmp_path / "b", [alike, GROUP], seed=1, level="2")]
    points = points_of(tmp_path, *runs, make_run(tmp_path / "c", method="dr_grpo"))
    band = next(p for p in points if (p.method, p.step, p.mask, p.panel) == ("dagrpo", 1, NONE, "cancelled in all"))
    assert band.seeds == 2 and 0 <= band.low <= band.mean <= band.high <= 1 and math.isnan(band.raw)
    every = {(p.level, p.seeds) for p in points if p.step == 0 and (p.method, p.mask) == ("dagrpo", NONE)}
    assert every == {("1", 1), ("2", 1), ("every", 2)}
    assert {p.mask for p in points if p.step} == {NONE, MASKED} and RANDOM in {p.mask for p in points}


def test_redrawn_from_the_csv_it_is_the_same_picture(tmp_path):
    runs = [make_run(tmp_path / f"{m}{s}", method=m, seed=s) for m, s in product(("grpo", "dagrpo"), (0, 1))]
    shared.main([*map(str, runs), "--out", str(tmp_path / "f"), "--smooth", "2"])
    first, again = tmp_path / "f", tmp_path / "again"
    shared.main(["--from-csv", str(first / "shared.csv"), "--out", str(again)])
    assert (first / "shared.png").read_bytes() == (again / "shared.png").read_bytes()
    caption = (first / "shared.txt").read_text()
    assert "over 2 steps" in caption and "grpo: 2 seeds (0, 1), 3 steps" in caption and str(runs[0]) in caption


def test_the_csv_is_what_is_drawn(tmp_path):
    points = points_of(tmp_path, make_run(tmp_path / "a"))
    figure = shared.draw_shared(pd.DataFrame(points))
    assert [ax.get_ylabel() for ax in figure.axes[:3]] == list(PANELS.values())
    drawn = [list(line.get_ydata()) for line in figure.axes[0].lines]
    assert [0.5, 0.5, 0.5] in drawn
    ends = pd.DataFrame(points).query("panel == 'cancelled in all' and level == 'every'").set_index("mask")["mean"]
    assert figure.get_suptitle().endswith(
        f"none {ends['none']:.2f}, random {ends['random']:.2f}, Eq. 8-9 {ends['Eq. 8-9']:.2f}"
    )


@pytest.mark.parametrize(("levels", "shown"), [("1", ["all"]), ("12", ["1", "2", "all"])])
def test_a_single_level_is_not_drawn_twice(tmp_path, levels, shown):
    runs = [make_run(tmp_path / level, seed=i, level=level) for i, level in enumerate(levels)]
    figure = shared.draw_shared(pd.DataFrame(points_of(tmp_path, *runs)))
    (ax,) = [ax for ax in figure.axes if ax.get_title() == "Cancelled in all, by level"]
    assert [label.get_text() for label in ax.get_xticklabels()] == shown


def test_a_line_that_is_just_being_written_is_not_read(tmp_path):
    run = make_run(tmp_path / "a")
    with (run / "rollouts.jsonl").open("a") as file:
        file.write('{"step": 4, "lev')
    assert {p.step for p in points_of(tmp_path, run)} == {0, 1, 2, 3}


def test_bad_input_is_one_line(tmp_path, capsys):
    assert "one of the two" in last_line(capsys)
    assert "--smooth must be" in last_line(capsys, tmp_path, "--smooth", 0)
    assert "not a run folder" in last_line(capsys, tmp_path)
    run = make_run(tmp_path / "a")
    (run / "rollouts.jsonl").write_text("{}\n")
    assert "damaged" in last_line(capsys, run, "--out", tmp_path / "f")
    (run / "rollouts.jsonl").write_text("nothing\n")
    assert "damaged" in last_line(capsys, run, "--out", tmp_path / "f")
    (run / "rollouts.jsonl").unlink()
    assert "cannot be read" in last_line(capsys, run, "--out", tmp_path / "f")
    dull = make_run(tmp_path / "b", [NO_SIGNAL])
    assert "no group with signal" in last_line(capsys, dull, "--out", tmp_path / "f")
    (tmp_path / "bad.csv").write_text("panel,method\nx,y\n")
    assert "damaged" in last_line(capsys, "--from-csv", tmp_path / "bad.csv")
