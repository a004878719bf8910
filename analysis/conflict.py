"""Do the gradients of a group's responses conflict? The paper's Figure 1, its Eq. 5, and claim C7.

    g_i = grad_theta sum_t w_it log pi(o_it | q, o_i<t)      w = 1 / divisor, dagrpo.divisor_weights
    v+ = sum of A_i g_i over A_i > 0, v- over A_i < 0        v = v+ + v- is the update (Eq. 4, 5; masked: Eq. 10)

g_i is exact: it covers all trained parameters, without projection or choice of layers. Ratios are 1, as in the first
update after sampling; no clip, KL term or entropy bonus. All we show follows from the Gram matrix of a group's g_i:

    groups.png      Figure 1: cosines and directions in an easy group, a mixed one, and a hard one with its anchor
    conflict.png    over many groups: cosine of a right and a wrong response's g against the gap of their scores (C7),
                    and the net share |v+ + v-| / (|v+| + |v-|) before and after the mask. 1: nothing cancels; 0: all;
                    0.71: v+ and v- are orthogonal and equally long

For a positive j and a negative k, the cosine of A_j g_j and A_k g_k is minus that of g_j and g_k, because A_j A_k < 0:
responses with similar gradients get pushes that conflict. So C7 says: the smaller the gap, the larger the cosine.

Where we depart from the paper: it shows one prompt, we also measure many. It does not say what spans its plane. Here it
is the first two principal components, not centred (arrows start at the true origin), of unit vectors for g and of the
vectors themselves for A g. A mask leaves fewer terms, and fewer terms cancel less: so we compare Eq. 8-9 with a random
mask that keeps as many positives and as many negatives of each group. "Group" is each group alone, as Eq. 5 is written;
"batch" first sums v+ and v- over the prompts of an update, which is what the optimiser sees.

gradients.py computes the gradients, conflict_points.py the statistics, and conflict_figures.py draws.

    python -m analysis.conflict                                       the warm start
    python -m analysis.conflict --model warm_start runs/dr_grpo/checkpoint-25 runs/dr_grpo runs/dagrpo
    python -m analysis.conflict --model DIR --data FILE.parquet --problems 2 --batch-prompts 0 --max-new-tokens 48
    python -m analysis.conflict --from-csv runs/conflict/conflict.csv             redraws both, without a model
"""

from __future__ import annotations

import json
import random
import textwrap
from argparse import Namespace
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import tasks
from analysis.conflict_figures import Response, draw_conflict, draw_groups, examples, responses
from analysis.conflict_points import DRAWS, ConflictPoint, summarise
from analysis.gradients import Measured, Sampling, measure
from analysis.saved import draw_figure, read_rows, write_rows
from anchors import prepare_anchors
from harness.config import ConfigParser, flag
from harness.console import fail, one_line
from harness.warm_start import find_start
from maths.data import INSTRUCTION, instruct, load_problems
from policy import load_policy
from tasks import Problem

MODELS = "run folders, checkpoints, model folders or hub ids, in the figure's order; warm_start: the built-in start"


@dataclass(frozen=True)
class Study(Sampling):
    """what is measured"""

    model: list[str] = field(default_factory=lambda: ["warm_start"], metadata={"help": MODELS, "metavar": "M"})
    problems: int = flag(24, "prompts per level and seed; with --data: per seed", "N")
    seeds: int = flag(2, "sampling seeds 0 ... N - 1, each with its own prompts", "N")
    world: str = flag("plain", "of the built-in task; its trained levels are used", "W", choices=list(tasks.WORLDS))
    data: str | None = flag(None, "problems for a real model, as for train.py [the built-in task]", "FILE")


LEAST = {"problems": 1, "seeds": 1, "group_size": 2, "max_new_tokens": 1, "batch_prompts": 0}


def check(args: Namespace) -> Study:
    """The settings. Ends the program with one line if a value cannot work."""
    study = Study(**{part.name: getattr(args, part.name) for part in fields(Study)})
    for name, least in LEAST.items():
        if getattr(study, name) < least:
            fail(f"--{name.replace('_', '-')} must be at least {least}, not {getattr(study, name)}")
    if not study.temperature > 0 or not study.delta >= 0:
        fail(f"--temperature must be above 0 and --delta at least 0, not {study.temperature:g} and {study.delta:g}")
    return study


def label(name: str) -> str:
    """A policy's name in figures: method and step if a run of train.py made it, else the folder's name."""
    folder = Path(name)
    checkpoint = folder / "checkpoint" if (folder / "checkpoint").exists() else folder
    for place in (folder, folder.parent):
        try:
            method = json.loads((place / "config.json").read_text(encoding="utf-8"))["method"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        step = checkpoint / "step"
        return f"{method}, step {step.read_text().strip()}" if step.exists() else method
    return folder.name


def problems_of(study: Study, seed: int) -> list[Problem]:
    """The problems of this seed, in an order of its own; levels are mixed, as in training."""
    if not study.data:
        world = tasks.WORLDS[study.world]
        levels = {name: world.levels[name] for name in world.trained}
        found = tasks.arithmetic("train", study.problems, seed=1 + seed, levels=levels)
        random.Random(seed).shuffle(found)
        return found
    found, _ = load_problems(study.data, limit=50 * study.problems * study.seeds)
    return instruct(found, INSTRUCTION)[seed :: study.seeds]


def measure_seeds(path: str, name: str, study: Study) -> Measured:
    """Measures one policy on all seeds. Each seed has its own problems, samples and batches."""
    with one_line(f"--model {path} cannot be loaded", OSError, ValueError):
        policy, every = load_policy(find_start(path, study.world)), None
    for seed in range(study.seeds):
        problems = problems_of(study, seed)
        usable, fates = prepare_anchors(policy, problems, study.max_new_tokens)
        problems = [problem for problem, anchor in zip(problems, usable, strict=True) if anchor]
        if study.data:
            problems = problems[: study.problems]
        if not problems:
            fail(
                f"no problem has a demonstration that fits into --max-new-tokens {study.max_new_tokens}: {dict(fates)}"
            )
        torch.manual_seed(seed)
        found = measure(policy, problems, study, f"{name}, seed {seed}")
        every = every or Measured({setup: [] for setup in found.groups}, {setup: [] for setup in found.groups})
        for setup in found.groups:
            every.groups[setup].extend(found.groups[setup])
            every.batches[setup].extend(found.batches[setup])
    return every


PRINTED = {
    "spearman": "Spearman correlation with the cosine of g, right-wrong pairs (C7 says: negative for the gap)",
    "net": "net share, by mask",
    "gain": "change of the net share, paired",
    "sides": "cosine of v+ and v-: below 0 they pull against each other",
    "share": "share of groups",
    "norm": "length of a group's v",
}


def findings(points: pd.DataFrame) -> str:
    """What was found, as text, with 95 % intervals."""
    lines = []
    for panel, title in PRINTED.items():
        lines += ["", title]
        for p in points[(points["panel"] == panel) & (points["level"] == "all")].itertuples():
            value = f"{p.mean:+.3f} [{p.low:+.3f}, {p.high:+.3f}]"
            lines.append(f"  {p.model:22s} {p.setup:20s} {p.name:26s} {value}  n = {p.n}")
    return "\n".join(lines[1:])


CAPTION = """\
conflict.png. Left: the mean cosine of the gradients g of a right and a wrong response to one prompt, binned by the gap
of their scores S (above; dotted: 3, the default delta) and by the share of their tokens that is a common beginning
(below). The right axis is minus the left: the cosine of the advantage-weighted gradients, which are what an update adds
up. Of several steps of a method the last is drawn. Middle: net share |v+ + v-| / (|v+| + |v-|) of Eq. 5, the mean over
groups that have signal and, after a mask, something left. Right: the same of v+ and v- summed over the prompts of a
batch. 1: nothing cancels; dotted: v+ and v- are orthogonal and equally long. "Eq. 8-9" is the mask, "random" one that
keeps as many of each side. A group of which a mask leaves one side has net share 1. Bars: 95 % bootstrap intervals over
groups (batches); the spread over training seeds is not in them. Bins with pairs of fewer than 5 groups are left out.

groups.png (the first policy; groups_last.png: the last). The responses of an easy, a mixed and a hard group, ordered by
score: the first group found in which the mask leaves something out, else the first found. +, -: sign of A; a: anchor.
Triangles up: A > 0, down: A < 0; hollow and dashed: masked; red rim: anchor. Planes: the first two principal
components, not centred, of unit vectors for g and of the vectors themselves for A g; x3: three arrows in one place."""


def caption(study: Study, models: list[str]) -> str:
    what = (
        f"{study.data}, {study.problems} problems"
        if study.data
        else f"World {study.world}, {study.problems} problems a level (split train)"
    )
    seeds = ", ".join(map(str, range(study.seeds)))
    how = f"""
        Policies: {"; ".join(models)}. Gradients of all parameters, ratio 1. {what} and seed; sampling seeds {seeds};
        G = {study.group_size}; batches of {study.batch_prompts} prompts; at most {study.max_new_tokens} tokens;
        temperature {study.temperature:g}; delta = {study.delta:g}; divisor {study.divisor}; {DRAWS} bootstrap draws."""
    return f"{CAPTION}\n\n{textwrap.fill(' '.join(how.split()), 118)}"


def write(study: Study, path: Path) -> str:
    """Measures every policy; writes conflict.csv, and groups.csv into its folder; returns the caption."""
    names = [label(name) for name in study.model]
    names = [name if names.count(name) == 1 else model for name, model in zip(names, study.model, strict=True)]
    points, shown = [], []
    for name, model in zip(names, study.model, strict=True):
        measured = measure_seeds(model, name, study)
        points += summarise(name, measured, np.random.default_rng(0))
        if model in (study.model[0], study.model[-1]):
            shown += [row for kind, group in examples(measured.groups).items() for row in responses(kind, name, group)]
    if not points:
        fail("no group had right and wrong responses: nothing to compare. Use more --problems, or easier ones")
    print(findings(pd.DataFrame(points)))
    write_rows(points, path)
    write_rows(shown, path.with_name("groups.csv"))
    return caption(study, names)


def redraw(source: Path, out: Path) -> None:
    """conflict.png from conflict.csv; groups.png and groups_last.png from groups.csv, if its folder has one."""
    draw_conflict(read_rows(ConflictPoint, source)).savefig(out / "conflict.png", dpi=90)
    if (beside := source.with_name("groups.csv")).exists():
        for i, (_, rows) in enumerate(read_rows(Response, beside).groupby("model", sort=False)):
            draw_groups(rows).savefig(out / ("groups_last.png" if i else "groups.png"), dpi=75)


def main(argv: list[str] | None = None) -> None:
    parser = ConfigParser((Study,), prog="python -m analysis.conflict", description=__doc__)
    draw_figure(parser, argv, check, write, redraw, default_out="runs/conflict")


if __name__ == "__main__":
    main()
