"""analysis.experiments.methods: every method with the flags that were written down, its table, and drawing again."""

import json
from pathlib import Path

import pandas as pd
import pytest

from analysis.curves import CurvePoint
from analysis.experiments import grid, methods
from analysis.experiments.methods import Result
from dagrpo import METHODS
from harness.config import parse


def test_every_method_has_the_same_flags_and_starts():
    jobs = methods.jobs(list(METHODS), seeds=3, steps=60)
    assert len(jobs) == 3 * len(METHODS) and len({job.name for job in jobs}) == len(jobs)
    for job in jobs:
        config = parse(json.loads(grid.command(job, Path("/root"))[-1])[1])
        assert (config.method, config.seed) == (job.method, job.seed)
        assert (config.steps, config.batch_prompts, config.levels, config.lr) == (60, 8, "3,4,5", 3e-5)
        assert config.init_from == str(grid.start_of("plain", job.seed))


RESULTS = pd.DataFrame(
    [
        Result("grpo", 0, 0.2, 0.5, 3840, 20),
        Result("grpo", 1, 0.3, 0.7, 3840, 30),
        Result("hpt", 0, 0.2, 0.6, 3840, 20),
    ]
)


def test_the_table_is_each_methods_gain_over_its_own_starts():
    grpo, hpt = methods.table(RESULTS).splitlines()[2:]
    # gains of 0.3 and 0.4: 12.706 times their standard deviation, 0.0707, over the root of 2
    assert grpo == "| grpo | 2 | 0.600 | +0.350 [-0.285, +0.985] | 3840 | 25 |"
    assert hpt == "| hpt | 1 | 0.600 | +0.400 | 3840 | 20 |"


def test_it_is_drawn_and_printed_again_from_its_csvs(tmp_path, capsys):
    points = [
        CurvePoint("reward", name, step, 0.1 * step, None, None, 1, None, 10) for name in METHODS for step in (1, 2)
    ]
    methods.write(RESULTS, pd.DataFrame(points), tmp_path)
    said, png = capsys.readouterr().out, (tmp_path / "methods.png").read_bytes()
    (tmp_path / "methods.png").unlink()
    methods.main(["--from", str(tmp_path)])
    assert capsys.readouterr().out == said and (tmp_path / "methods.png").read_bytes() == png
    assert said.strip() in (tmp_path / "methods.txt").read_text()


@pytest.mark.parametrize(
    "flags", [["--methods", "grpo,x"], ["--seeds", "0"], ["--root", "/nowhere", "--from", "/nowhere"]]
)
def test_what_cannot_work_is_one_line(flags, capsys):
    with pytest.raises(SystemExit):
        methods.main(flags)
    assert capsys.readouterr().err.count("\n") == 1
