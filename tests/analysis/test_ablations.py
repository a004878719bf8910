"""analysis.ablations: differences are paired and against the right method, and rates are collected from all runs."""

import pandas as pd
import pytest

from analysis.experiments import ablations
from analysis.experiments.ablations import by_rate, changes
from analysis.experiments.grid import write_table


def result(stage, label, method, seed, mean, lr=1e-4, kept=0.5):
    figures = {"lr": lr, "mean": mean, "ood mean": 0.0, "kept_fraction last": kept}
    return {"stage": stage, "label": label, "method": method, "seed": seed, **figures}


ROWS = [
    *(result("main", "dr_grpo", "dr_grpo", seed, 0.1 * seed) for seed in range(4)),
    *(result("main", "dagrpo_on", "dagrpo_on", seed, 0.5 + 0.1 * seed, kept=0.9) for seed in range(4)),
    *(result("controls", "random mask", "dagrpo_on", seed, 0.4 + 0.1 * seed) for seed in range(3)),
    *(result("others", "dapo", "dapo", seed, 0.2 + 0.1 * seed) for seed in range(2)),
    *(result("rates", "dr_grpo, rate 3e-4", "dr_grpo", seed, 0.05, lr=3e-4) for seed in range(2)),
    result("main", "warm start", "warm start", 0, 0.3, lr=None, kept=None),
]


def test_a_change_is_against_its_method_at_the_same_seed():
    mask, dapo = changes(pd.DataFrame(ROWS))
    assert (mask.label, mask.against, mask.seeds) == ("random mask", "dagrpo_on", 3)
    assert mask.mean == pytest.approx((-0.1, 0.0), abs=1e-9), "paired: the seeds' own differences are gone"
    assert (dapo.against, dapo.seeds) == ("dr_grpo", 2) and dapo.mean[0] == pytest.approx(0.2)
    assert mask.kept == 0.5 and mask.accuracy == pytest.approx(0.5)


def test_rates_come_from_their_stage_and_from_main():
    found = by_rate(pd.DataFrame(ROWS))
    assert list(found) == ["dr_grpo"] and found["dr_grpo"] == {
        1e-4: [0.0, 0.1],
        3e-4: [0.05, 0.05],
    }


def test_figures_and_table_from_a_csv(tmp_path, capsys):
    write_table(ROWS, tmp_path / "runs.csv")
    ablations.main(["--runs", str(tmp_path / "runs.csv")])
    assert "| random mask | dagrpo_on | 3 | 0.500 | -0.100 [-0.100, -0.100] |" in capsys.readouterr().out
    assert all((tmp_path / name).stat().st_size > 5_000 for name in ("rates.png", "ablations.png"))


@pytest.mark.parametrize("text", ["", "nonsense\n", "stage,label,method,seed,lr,mean\nmain,grpo,grpo,x,1,1\n"])
def test_a_damaged_table_is_one_line(tmp_path, capsys, text):
    (tmp_path / "runs.csv").write_text(text)
    with pytest.raises(SystemExit):
        ablations.main(["--runs", str(tmp_path / "runs.csv")])
    assert capsys.readouterr().err.count("\n") == 1
