"""The command line of train.py: its flags as --help teaches them, the presets, and what is refused.

A preset is a list of flags, written as one would type them: what you add behind it overrules it. The recipe of a method
(dagrpo.METHODS) says what its paper says; --scale, --divisor and --anchor-ratio overrule the recipe.
"""

from __future__ import annotations

import argparse
import shlex
from dataclasses import replace

import controls
import dagrpo
import data
import tasks
from cli import Parser, fail
from dagrpo import Recipe

PRESETS = {
    "builtin": (
        "the default: the built-in arithmetic and its own small policy, two CPU cores",
        "--steps 100 --batch-prompts 16 --group-size 8 --max-new-tokens 64 --lr 3e-5 --updates-per-batch 2",
    ),
    "smollm2": (
        "SmolLM2-135M on GSM8K, a CPU",
        "--model HuggingFaceTB/SmolLM2-135M-Instruct --data openai/gsm8k:main "
        "--instruction 'Give the final answer after ####.' --steps 30 --batch-prompts 2 "
        "--group-size 8 --max-new-tokens 128 --lr 1e-5 --updates-per-batch 1 --micro-batch-tokens 2048 --save-every 10",
    ),
    "qwen": (
        "Qwen2.5-0.5B-Instruct on GSM8K, one GPU; not run yet",
        "--model Qwen/Qwen2.5-0.5B-Instruct --data openai/gsm8k:main "
        "--instruction 'Give the final answer after ####.' --steps 200 --batch-prompts 32 --group-size 8 "
        "--max-new-tokens 512 --lr 1e-6 --updates-per-batch 2 --micro-batch-tokens 16384 --gradient-checkpointing "
        "--log-rollouts-every 5",
    ),
    "paper": (
        "every setting of the paper's section 6; not run yet. Its model has a window of 4,096 tokens, and the paper "
        "does not say how 8,192 fit: give a copy whose config.json extends it",
        "--model Qwen/Qwen2.5-Math-7B --data Elliott/Openr1-Math-46k-8192 --steps 500 --batch-prompts 128 "
        "--group-size 8 --max-new-tokens 8192 --temperature 1.0 --lr 1e-6 --updates-per-batch 2 --delta 3 "
        "--scorer judge --judge-url https://api.openai.com/v1 --judge-name gpt-4o --gradient-checkpointing "
        "--micro-batch-tokens 16384 --log-rollouts-every 10",
    ),
}


def build_parser(description: str | None = None) -> Parser:
    """All flags, grouped as --help shows them."""
    presets = "\n\n".join(f"{name}: {what}\n    {flags}" for name, (what, flags) in PRESETS.items())
    parser = Parser(
        prog="train.py",
        description=description,
        usage="python train.py --method M --out DIR [flags]",
        epilog=f"presets; what you give beside them overrules them\n\n{presets}",
    )
    names = ["sft", *dagrpo.METHODS]

    group = parser.add_argument_group("what to train, and where to write")
    group.add_argument("--method", required=True, choices=names, metavar="M", help=f"one of {', '.join(names)}")
    group.add_argument("--out", required=True, metavar="DIR", help="the run folder")
    group.add_argument("--steps", type=int, default=100, metavar="N", help="one rollout batch each")
    group.add_argument("--seed", type=int, default=0, metavar="S", help="order of prompts, and sampling")
    group.add_argument("--preset", choices=PRESETS, metavar="NAME", help="flags to begin with, listed at the end")
    group.add_argument("--resume", action="store_true", help="go on from the last checkpoint in --out")
    group.add_argument("--insist", action="store_true", help="resume although other flags have changed")
    group.add_argument("--overwrite", action="store_true", help="replace the run in --out")

    group = parser.add_argument_group("where it starts")
    group.add_argument("--model", metavar="ID_OR_DIR", help="a causal LM; without it the built-in warm start")
    group.add_argument("--init-from", metavar="DIR", help="a run folder or model folder to start from (sft, then grpo)")
    group.add_argument("--lora-rank", type=int, default=0, metavar="R", help="train a LoRA; 0: all weights")

    group = parser.add_argument_group(
        "the problems",
        "Without --data the built-in arithmetic. Known by their columns are GSM8K (question, answer with ####), MATH\n"
        "(problem, solution, answer) and OpenR1-Math (prompt, target, reward_model.ground_truth); for others, name\n"
        "the columns, nested ones with dots. `python data.py FILE` shows what would be read.",
    )
    group.add_argument("--levels", default=",".join(tasks.LEVELS), metavar="L,..", help="levels of the built-in task")
    group.add_argument("--data", metavar="FILE_OR_ID", help="JSONL, JSON or parquet file, or hub id[:configuration]")
    group.add_argument("--data-split", default="train", metavar="NAME", help="of a hub id")
    group.add_argument("--data-limit", type=int, metavar="N", help="only the first N usable problems")
    for part in ("question", "answer", "demo", "level"):
        group.add_argument(f"--{part}-column", metavar="NAME", help=f"where the {part} stands")
    group.add_argument("--instruction", metavar="TEXT", help=f"behind every question of --data [{data.INSTRUCTION}]")

    group = parser.add_argument_group("the groups")
    group.add_argument("--batch-prompts", type=int, default=16, metavar="B", help="prompts per step")
    group.add_argument("--group-size", type=int, default=8, metavar="G", help="rows per prompt, an anchor included")
    group.add_argument("--max-new-tokens", type=int, default=64, metavar="T", help="longest response, end included")
    group.add_argument(
        "--temperature", type=float, default=1.0, metavar="X", help="of sampling, and of the log-probs trained"
    )

    group = parser.add_argument_group(
        "mechanism 1: the mask (Eq. 8-9; dagrpo_on, dagrpo)",
        "A right response stays if it scores at least delta more than the best wrong one, a wrong one if it scores at\n"
        "least delta less than the worst right one. Scores go from 1 to 10; the paper's delta is 3.",
    )
    group.add_argument(
        "--scorer",
        choices=["rule", "judge", "local"],
        default="rule",
        help="S by rule, exact on the built-in task; by an OpenAI-compatible endpoint; by a local model",
    )
    group.add_argument("--judge-url", metavar="URL", help="the endpoint; its key, if any, from OPENAI_API_KEY")
    group.add_argument("--judge-name", metavar="NAME", help="the endpoint's name of the model")
    group.add_argument("--judge-model", metavar="ID_OR_DIR", help="of --scorer local")
    group.add_argument("--judge-concurrency", type=int, default=16, metavar="N", help="requests at a time")
    group.add_argument("--judge-cache", metavar="FILE", help="scores by content; runs may share it [OUT/judge.jsonl]")
    group.add_argument("--delta", type=float, default=3.0, metavar="D", help="0 masks only what is on the wrong side")

    group = parser.add_argument_group(
        "mechanism 2: anchors (Eq. 11; luffy, dagrpo)",
        "A verified demonstration takes one of a group's G places.",
    )
    group.add_argument(
        "--anchor-when", choices=["always", "hard"], default="always", help="hard: if no rollout is right"
    )
    group.add_argument(
        "--anchor-ratio", choices=["one", "shaped"], help="shaped: p / (p + 0.1), LUFFY's [the recipe's]"
    )
    group.add_argument("--extra-anchor", action="store_true", help="G rollouts and an anchor, instead of G in all")
    group.add_argument("--keep-wrong-anchors", action="store_true", help="also demonstrations with a wrong answer")

    group = parser.add_argument_group("the loss; what is not given is as the recipe says")
    group.add_argument("--scale", choices=["none", "group"], help="divide advantages by the group's std? (Eq. 1)")
    group.add_argument("--divisor", choices=["constant", "sequence", "tokens"], help="length normalisation (Eq. 10)")
    group.add_argument(
        "--kl-beta", type=float, default=0.0, metavar="BETA", help="weight of KL to the starting policy (Eq. 2)"
    )
    group.add_argument("--overlong-buffer", type=int, default=0, metavar="T", help="DAPO: penalty on the last T tokens")

    group = parser.add_argument_group("controls for experiments, explained in controls.py; none is part of DaGRPO")
    group.add_argument("--random-mask", action="store_true", help="mask as many as Eq. 8-9 would, at random")
    group.add_argument("--reward-is-score", action="store_true", help="advantages from S instead of R")
    group.add_argument("--score-noise", type=float, default=0.0, metavar="SIGMA", help="standard deviation, added to S")
    group.add_argument("--anchor-flaw", choices=controls.FLAWS, help="anchors with wrong steps, or a wrong answer too")

    group = parser.add_argument_group("the optimiser")
    group.add_argument(
        "--lr", type=float, default=3e-5, metavar="LR", help="AdamW's, constant; on the built-in task 1e-4 is too high"
    )
    group.add_argument("--updates-per-batch", type=int, default=2, metavar="K", help="prompts are split among them")
    group.add_argument(
        "--max-grad-norm", type=float, default=1.0, metavar="X", help="the norm is logged before it is clipped"
    )
    group.add_argument("--gradient-checkpointing", action="store_true", help="less memory, more time")
    group.add_argument(
        "--bf16", action="store_true", help="multiply in bf16 on a CPU too: pays where it has units for it"
    )
    group.add_argument("--micro-batch-tokens", type=int, default=16384, metavar="N", help="bounds memory, no gradient")

    group = parser.add_argument_group("what is saved and shown")
    group.add_argument("--save-every", type=int, default=50, metavar="K", help="steps between checkpoints")
    group.add_argument("--keep", type=int, default=1, metavar="N", help="checkpoints that stay, the latest included")
    group.add_argument("--log-rollouts-every", type=int, default=1, metavar="K", help="thins rollouts.jsonl")
    group.add_argument("--show-every", type=int, default=25, metavar="K", help="print two groups; 0: never")
    return parser


def parse(argv: list[str], description: str | None = None) -> argparse.Namespace:
    """The checked flags. Those of a preset come first, so that what stands beside it overrules it."""
    first = Parser(add_help=False)
    first.add_argument("--preset", choices=PRESETS)
    name = first.parse_known_args(argv)[0].preset
    args = build_parser(description).parse_args([*shlex.split(PRESETS[name][1] if name else ""), *argv])
    check(args)
    return args


def check(args: argparse.Namespace) -> None:
    """One clear line for a value that cannot work, before anything is written."""
    at_least = {"steps": 1, "batch_prompts": 1, "group_size": 2, "max_new_tokens": 1, "updates_per_batch": 1}
    at_least |= {
        "save_every": 1,
        "keep": 1,
        "log_rollouts_every": 1,
        "show_every": 0,
        "micro_batch_tokens": 1,
        "delta": 0,
    }
    at_least |= {"score_noise": 0, "kl_beta": 0, "overlong_buffer": 0, "lora_rank": 0, "judge_concurrency": 1}
    at_least |= {"data_limit": 1} if args.data_limit is not None else {}
    for name, least in at_least.items():
        if not getattr(args, name) >= least:
            why = ": a group needs something to compare with" if name == "group_size" else ""
            fail(f"--{name.replace('_', '-')} must be at least {least}, not {getattr(args, name)}{why}")
    for name in ("lr", "temperature", "max_grad_norm"):
        if not 0 < getattr(args, name) < float("inf"):
            fail(f"--{name.replace('_', '-')} must be above 0, not {getattr(args, name)}")
    if args.batch_prompts % args.updates_per_batch:
        fail(f"--batch-prompts {args.batch_prompts} cannot be split into --updates-per-batch {args.updates_per_batch}")
    if args.resume and args.overwrite:
        fail("--resume and --overwrite exclude each other")
    check_controls(args)
    if args.model and args.init_from:
        fail("--model and --init-from both say where to start: give one of them")
    for scorer, flags in {"judge": ("judge_url", "judge_name"), "local": ("judge_model",)}.items():
        for name in flags:
            if args.scorer == scorer and not getattr(args, name):
                fail(f"--scorer {scorer} needs --{name.replace('_', '-')}")
    unknown = set(args.levels.split(",")) - set(tasks.LEVELS)
    if unknown:
        fail(f"--levels: there is no level {', '.join(sorted(unknown))}; choose from {', '.join(tasks.LEVELS)}")


def check_controls(args: argparse.Namespace) -> None:
    """A control that the method does not notice would be a run that is taken for another one."""
    recipe = dagrpo.METHODS.get(args.method)  # None: sft
    masks, mixes = bool(recipe and recipe.rectify), bool(recipe is None or recipe.anchors)
    if args.random_mask and not masks:
        fail(f"--random-mask is for methods that mask: {args.method} does not")
    if args.reward_is_score and recipe is None:
        fail("--reward-is-score is for methods with rewards: sft has none")
    if args.score_noise and not (masks or args.reward_is_score):
        fail(f"--score-noise is for methods that read scores: {args.method} does not")
    if args.score_noise and args.scorer != "rule":
        fail("--score-noise is for the rule scorer: a judge has noise of its own")
    if args.anchor_flaw and not mixes:
        fail(f"--anchor-flaw is for methods with demonstrations: {args.method} has none")
    if args.anchor_flaw and args.data:
        fail("--anchor-flaw spoils demonstrations of the built-in task: leave --data out")


def make_recipe(args: argparse.Namespace) -> Recipe | None:
    """The method's recipe, with the choices that flags override. None for sft."""
    if args.method == "sft":
        return None
    given = {name: getattr(args, name) for name in ("anchor_ratio", "scale", "divisor") if getattr(args, name)}
    return replace(dagrpo.METHODS[args.method], **given)
