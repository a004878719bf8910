"""Do the gradients of a group's responses conflict? The paper's Figure 1, its Eq. 5, and claim C7.

    g_i = grad_theta sum_t w_it log pi(o_it | q, o_i<t)      w = 1 / divisor, dagrpo.divisor_weights
    v+ = sum of A_i g_i over A_i > 0, v- over A_i < 0        v = v+ + v- is the update (Eq. 4, 5; masked: Eq. 10)

g_i is exact: of all trained parameters, without projection or choice of layers. Ratios are 1, as in the first update
after sampling; no clip, KL term or entropy bonus. What we ask about a group follows from the Gram matrix of its g_i:

    groups.png      Figure 1: cosines and directions in an easy group, a mixed one, and a hard one with its anchor
    conflict.png    over many groups: cosine of a right and a wrong response's g against the gap of their scores (C7),
                    and the net share |v+ + v-| / (|v+| + |v-|) before and after the mask. 1: nothing cancels; 0: all;
                    0.71: v+ and v- are orthogonal and equally long

Of a positive j and a negative k the cosine of A_j g_j and A_k g_k is minus that of g_j and g_k, because A_j A_k < 0:
responses whose gradients are alike get pushes that conflict. So C7 says: the smaller the gap, the larger the cosine.

Where we depart from the paper: it shows one prompt, we also measure many. It does not say what spans its plane: here
the first two principal components, not centred (arrows start at the true origin), of unit vectors for g and of the
vectors themselves for A g. A mask leaves fewer terms, and fewer terms cancel less: so beside Eq. 8-9 stands a random
mask that keeps as many positives and as many negatives of each group. "Group" is each group alone, as Eq. 5 is written;
"batch" first sums v+ and v- over the prompts of an update, which is what the optimiser sees.

The gradients are gradients.py's, the statistics conflict_points.py's, the drawing conflict_figures.py's.

    python -m analysis.conflict                                       the warm start
    python -m analysis.conflict --model warm_start runs/dr_grpo/checkpoint-25 runs/dr_grpo runs/dagrpo
    python -m analysis.conflict --model DIR --data FILE.parquet --problems 2 --batch-prompts 0 --max-new-tokens 48
    python -m analysis.conflict --from-csv runs/conflict/conflict.csv             redraws both, without a model
"""

from __future__ import annotations

import argparse
import json
import random
import shlex
import sys
import textwrap
from pathlib import Path

import numpy as np
import torch

import tasks
from analysis.conflict_figures import Response, draw, draw_groups, examples, responses
from analysis.conflict_points import DRAWS, Point, summarise
from analysis.gradients import Measured, measure
from analysis.saved import read_rows, write_rows
from anchors import prepare_anchors
from harness.console import Parser, fail
from harness.warm_start import find_start
from maths import data
from policy import load_policy
from tasks import Problem


def redraw(source: Path, out: Path) -> None:
    """conflict.png from conflict.csv and, where it lies beside it, groups.png from groups.csv."""
    points, beside = read_rows(Point, source), source.with_name("groups.csv")
    draw(points).savefig(out / "conflict.png", dpi=90)
    if beside.exists():
        rows = read_rows(Response, beside)
        for i, model in enumerate(dict.fromkeys(row.model for row in rows)):
            chosen = [row for row in rows if row.model == model]
            draw_groups(chosen).savefig(out / ("groups_last.png" if i else "groups.png"), dpi=75)


def label(name: str) -> str:
    """What figures call a policy: method and step where it is of a run of train.py, else the folder's name."""
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


def load_problems(args: argparse.Namespace, seed: int) -> list[Problem]:
    """The seed's problems in its order, levels mixed as in training."""
    if not args.data:
        found = tasks.arithmetic("train", args.problems, seed=1 + seed)
        random.Random(seed).shuffle(found)
        return found
    found, _ = data.load_problems(args.data, limit=50 * args.problems * args.seeds)
    return data.instruct(found, data.INSTRUCTION)[seed :: args.seeds]


def measure_seeds(path: str, name: str, args: argparse.Namespace) -> Measured:
    """One policy on all seeds: problems, samples, and batches of each seed are its own."""
    policy, every = load_policy(find_start(path)), None
    for seed in range(args.seeds):
        problems = load_problems(args, seed)
        usable, fates = prepare_anchors(policy, problems, args.max_new_tokens)
        problems = [problem for problem, anchor in zip(problems, usable, strict=True) if anchor]
        if args.data:
            problems = problems[: args.problems]
        if not problems:
            fail(f"no problem has a demonstration that fits into --max-new-tokens {args.max_new_tokens}: {dict(fates)}")
        torch.manual_seed(seed)
        found = measure(policy, problems, args, f"{name}, seed {seed}")
        every = every or Measured({setup: [] for setup in found.groups}, {setup: [] for setup in found.groups})
        for setup in found.groups:
            every.groups[setup].extend(found.groups[setup])
            every.batches[setup].extend(found.batches[setup])
    return every


PRINTED = {
    "spearman": "Spearman correlation with the cosine of g, right-wrong pairs (C7: that of the gap is negative)",
    "net": "net share, by mask",
    "gain": "change of the net share, paired",
    "sides": "cosine of v+ and v-: below 0 they pull against each other",
    "share": "share of groups",
    "norm": "length of a group's v",
}


def tell(points: list[Point]) -> str:
    """The findings as text, with 95 % intervals."""
    lines = []
    for panel, title in PRINTED.items():
        lines += ["", title]
        for p in points:
            if (p.panel, p.level) == (panel, "all"):
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


def caption(args: argparse.Namespace, models: list[str], argv: list[str]) -> str:
    what = f"{args.data}, {args.problems} problems" if args.data else f"{args.problems} problems a level (split train)"
    told = f"Policies: {'; '.join(models)}. Gradients of all parameters, ratio 1. {what} and seed; sampling seeds "
    told += (
        f"{', '.join(map(str, range(args.seeds)))}; G = {args.group_size}; batches of {args.batch_prompts} prompts; "
    )
    told += f"at most {args.max_new_tokens} tokens; temperature {args.temperature:g}; delta = {args.delta:g}; "
    told += f"divisor {args.divisor}; {DRAWS} bootstrap draws."
    again = ["--from-csv", str(args.out / "conflict.csv")]
    commands = [shlex.join(["python", "-m", "analysis.conflict", *flags]) for flags in (argv, again)]
    body = f"{CAPTION}\n\n{textwrap.fill(told, 118)}"
    return f"{body}\n\ndrawn by:    {commands[0]}\ndrawn again: {commands[1]}\n"


def build_parser() -> Parser:
    parser = Parser(prog="python -m analysis.conflict", description=__doc__)
    add = parser.add_argument
    models = "run folders, checkpoints, model folders or hub ids, in the figure's order; warm_start: where runs begin"
    add("--model", nargs="+", default=["warm_start"], metavar="M", help=models)
    add("--problems", type=int, default=24, metavar="N", help="prompts of each level and seed; with --data in all")
    add("--seeds", type=int, default=2, metavar="N", help="sampling seeds 0 ... N - 1, each with its own prompts")
    batches = "prompts of a batch; 0: no batches, which saves 12 times the model's memory"
    add("--batch-prompts", type=int, default=16, metavar="B", help=batches)
    add("--group-size", type=int, default=8, metavar="G", help="responses of a group")
    add("--max-new-tokens", type=int, default=64, metavar="T", help="of a response")
    add("--temperature", type=float, default=1.0, metavar="X", help="of sampling")
    add("--delta", type=float, default=3.0, metavar="X", help="of Eq. 8-9")
    add("--divisor", choices=("constant", "sequence", "tokens"), default="constant", help="of the recipe")
    add("--data", metavar="FILE", help="problems for a real model, as of train.py; without it the built-in ones")
    add("--out", metavar="DIR", help="where to write [runs/conflict; of --from-csv: beside the CSV]")
    add("--from-csv", metavar="FILE", help="draw this conflict.csv, and groups.csv beside it, without a model")
    return parser


def check(args: argparse.Namespace) -> None:
    for flag, least in (("problems", 1), ("seeds", 1), ("group_size", 2), ("max_new_tokens", 1), ("batch_prompts", 0)):
        if getattr(args, flag) < least:
            fail(f"--{flag.replace('_', '-')} must be at least {least}, not {getattr(args, flag)}")
    if not args.temperature > 0 or not args.delta >= 0:
        fail(f"--temperature must be above 0 and --delta not below 0, not {args.temperature:g} and {args.delta:g}")


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    args = build_parser().parse_args(argv)
    check(args)
    source = Path(args.from_csv) if args.from_csv else None
    args.out = out = Path(args.out or (source.parent if source else "runs/conflict"))
    try:
        out.mkdir(parents=True, exist_ok=True)
        if source is None:
            write(args, argv)
        redraw(source or out / "conflict.csv", out)
    except OSError as error:
        fail(f"--out {out}: cannot be written ({error.strerror}); choose another folder")
    print(f"written: {out / 'conflict.png'} and what belongs to it")


def write(args: argparse.Namespace, argv: list[str]) -> None:
    """The CSVs and the caption."""
    names = [label(name) for name in args.model]
    names = [name if names.count(name) == 1 else path for name, path in zip(names, args.model, strict=True)]
    points, shown = [], []
    for name, path in zip(names, args.model, strict=True):
        measured = measure_seeds(path, name, args)
        points += summarise(name, measured, np.random.default_rng(0))
        if path in (args.model[0], args.model[-1]):
            shown += [row for kind, group in examples(measured.groups).items() for row in responses(kind, name, group)]
    if not points:
        fail("no group had right and wrong responses: nothing to compare. Take more --problems, or easier ones")
    print(tell(points))
    write_rows(points, args.out / "conflict.csv")
    write_rows(shown, args.out / "groups.csv")
    (args.out / "conflict.txt").write_text(caption(args, names, argv), encoding="utf-8")


if __name__ == "__main__":
    main()
