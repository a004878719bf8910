"""analysis.experiments.further: its questions are about runs that the grid makes, and its arithmetic is right."""

import pandas as pd
import pytest

from analysis.experiments import further, grid
from analysis.experiments.further import REFERENCES, SAME_RATE, keeps, questions
from analysis.experiments.worlds import ahead_message

FAR = {label: 0.1 * i for i, label in enumerate([SAME_RATE, "dagrpo_on", "random mask", "soft", "pairs"])}


def rows(labels):
    """Two seeds of each label in guess; the second is better by 0.01 for all, so that pairs have no spread."""
    found = [("guess", "masks" if i > 2 else "main", label, "m", seed, mean + 0.01 * seed)
             for i, (label, mean) in enumerate(labels.items()) for seed in (0, 1)]  # fmt: skip
    table = pd.DataFrame(found, columns=["world", "stage", "label", "method", "seed", "accuracy"])
    return table.assign(**{"ood mean": table["accuracy"] / 2, "lr": "1e-5"})


def test_every_question_is_about_runs_of_the_grid():
    made = {
        (job.stage, job.label)
        for world in grid.WORLDS
        for job in grid.grid(world, dict.fromkeys([*grid.METHODS, "hpt"], "1e-5") | {"dagrpo_on": "3e-5"})
    }
    made.add(("masks", "pairs"))  # its code has left, its rows stay
    left = {"own", "anchors"}  # likewise of whole stages
    assert questions().keys() == REFERENCES.keys() <= {*grid.STAGES, *left}
    for stage, asked in questions().items():
        if stage in left:
            continue
        for label in (label for claim in asked for label in claim.labels):
            assert {(stage, label), ("main", label), ("controls", label)} & made, f"{stage}: {label}"
        assert {label for at, label in made if at == stage} <= {label for claim in asked for label in claim.labels} | {
            REFERENCES[stage][0]
        }, "what is run and not asked about"


@pytest.mark.parametrize(("mine", "effect"), [(0.5, 0.1), (0.4, 0.0), (0.0, -0.4)])
def test_a_share_of_a_gain_by_hand(mine, effect):
    one, baseline, whole = (pd.DataFrame({"accuracy": [x]}) for x in (mine, 0.0, 0.5))
    assert keeps(0.8, "a", "b", "c").effect(one, baseline, whole).tolist() == pytest.approx([effect])


def test_tables_and_figures_of_the_stages_that_there_are(tmp_path, capsys):
    rows(FAR).to_csv(tmp_path / "runs.csv", index=False)
    further.main(["--results", str(tmp_path)])
    said = capsys.readouterr().out
    assert "| ahead? | soft - dagrpo_on | 2 | +0.200 [+0.200, +0.200] accuracy |" in said
    assert "| ahead, OOD? | pairs - dr_grpo at 3e-5 | 2 | +0.200 [+0.200, +0.200] accuracy, OOD |" in said
    assert (tmp_path / "masks.png").stat().st_size > 10_000 and not (tmp_path / "own.png").exists()


def test_the_title_names_who_is_ahead_in_every_world():
    gains = {
        "guess": {"all": 0.1, "more": 0.3, "one": 0.2, "unsure": 0.1},
        "plain": {"all": 0.2, "more": 0.1, "one": 0.0},
    }
    found = [
        (world, label, seed, 0.1 * seed + gain + 0.01 * seed * (30 if label == "unsure" else 1))
        for world, labels in gains.items()
        for label, gain in ({"dr_grpo": 0.0, "unsure": 0.1} | labels).items()
        for seed in (0, 1, 2)
    ]
    runs = pd.DataFrame(found, columns=["world", "label", "seed", "accuracy"])
    assert ahead_message(runs, ["guess", "plain"]).endswith(
        "in guess, plain ahead of dr_grpo, with an interval above 0: more / all"
    )
    assert ahead_message(runs, ["guess"]).endswith(
        "in guess ahead of dr_grpo, with an interval above 0: more / one / all"
    )
    assert ahead_message(runs, ["plain"], "more").endswith("in plain ahead of more, with an interval above 0: all")
    assert ahead_message(runs[runs["label"] != "all"], ["plain"], "more").endswith("above 0: nobody")


def test_without_such_runs_it_says_what_makes_them(tmp_path, capsys):
    rows(dict(list(FAR.items())[:2])).to_csv(tmp_path / "runs.csv", index=False)
    with pytest.raises(SystemExit):
        further.main(["--results", str(tmp_path)])
    assert "python -m analysis.experiments.grid" in capsys.readouterr().err


def test_lengths_under_each_number_of_updates():
    lengths = {"grpo, updates 1": 20.0, "positives, updates 1": 3.0, "grpo, updates 4": 30.0}
    curves = pd.DataFrame(
        [("ratio", label, seed, step, mean + seed - step / 10)
         for label, mean in lengths.items() for seed in (0, 2) for step in (10, 20)],
        columns=["stage", "label", "seed", "step", "response_length"],
    )  # fmt: skip
    figure = further.draw_ratio(pd.concat([curves, curves.assign(stage="main", response_length=99.0)]))
    drawn = [{line.get_label(): line.get_ydata().tolist() for line in ax.lines} for ax in figure.axes]
    assert (drawn[0]["grpo"], drawn[0]["positives"]) == ([20.0, 19.0], [3.0, 2.0])
    assert drawn[2]["grpo"] == [30.0, 29.0] and not drawn[1]
    assert figure.get_suptitle().startswith("Under half of grpo's 19.0 tokens")
    assert figure.get_suptitle().endswith("with 1 update: positives 2.0")
