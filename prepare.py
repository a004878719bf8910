"""What a run needs before its first step: problems, anchors, a scorer. What is left out is counted and told."""

from __future__ import annotations

import argparse
import sys
from itertools import compress
from pathlib import Path

import anchors as anchoring
import controls
import data
import judge
import policy as policies
import scoring
import tasks
import worker
from anchors import Anchor
from cli import fail
from dagrpo import Recipe
from policy import Policy
from scoring import Scorer
from tasks import Problem


def load_problems(args: argparse.Namespace) -> list[Problem]:
    """The problems to train on: the built-in ones, or those of --data. A line tells what was skipped, and why."""
    if not args.data:
        levels = {name: tasks.LEVELS[name] for name in args.levels.split(",")}
        return tasks.arithmetic("train", per_level=400, levels=levels)
    columns = {part: getattr(args, f"{part}_column") for part in ("question", "answer", "demo", "level")}
    pool, report = data.load_problems(args.data, **columns, split=args.data_split, limit=args.data_limit)
    print(f"{args.data}: {report}", file=sys.stderr)
    instruction = data.INSTRUCTION if args.instruction is None else args.instruction
    return data.instruct(pool, instruction)


def prepare_anchors(
    args: argparse.Namespace, recipe: Recipe | None, pool: list[Problem], tokens_only: Policy
) -> tuple[list[Anchor | None], dict[str, int]]:
    """The demonstrations that the method needs, and their fates, counted; a line says what was rejected."""
    if recipe and not recipe.anchors:
        return [None] * len(pool), {}
    keep_wrong = args.keep_wrong_anchors or args.anchor_flaw == "answer"
    shown = controls.flawed(pool, args.anchor_flaw) if args.anchor_flaw else pool  # the scorer's reference stays
    prepared, fates = anchoring.prepare(tokens_only, shown, args.max_new_tokens, keep_wrong)
    if slow := worker.take_timeouts():  # of the demonstrations, not of the first step
        print(f"{slow} demonstrations' answers took the verifier over {worker.LIMIT:g} s: wrong", file=sys.stderr)
    if fates["too long"] and (not args.data or not fates["usable"]):  # a mistake in the flags
        longest = max(len(tokens_only.encode_response(p.demo)) for p in pool)
        fail(
            f"{fates['too long']} of {len(pool)} demonstrations do not fit into --max-new-tokens {args.max_new_tokens}:"
            f" the longest has {longest} tokens with its end token; raise it, or train on other problems"
        )
    if rejected := {fate: n for fate, n in fates.items() if fate != "usable"}:
        print(f"anchors: {fates['usable']} of {len(pool)} usable; rejected: {rejected}", file=sys.stderr)
    if recipe is None and not fates["usable"]:
        fail("sft learns from demonstrations, and none of these problems has a usable one")
    return prepared, dict(fates)


def fitting(
    policy: Policy, pool: list[Problem], prepared: list[Anchor | None], max_new_tokens: int, sft: bool = False
) -> tuple[list[Problem], list[Anchor | None]]:
    """The problems whose prompt leaves room for the response in the model's window; a line counts the others.

    With `sft`, of these only the ones that have a demonstration: there is nothing else to learn from.
    """
    if sft:
        pool, prepared = list(compress(pool, prepared)), list(compress(prepared, prepared))
    room = policy.window - max_new_tokens
    fit = [len(policy.encode_prompt(problem.question)) <= room for problem in pool]
    if not any(fit):
        fail(f"no prompt fits: the model's window is {policy.window} tokens, --max-new-tokens {max_new_tokens} of them")
    if not all(fit):
        print(f"{fit.count(False)} of {len(fit)} problems left out: prompts of over {room} tokens", file=sys.stderr)
    return list(compress(pool, fit)), list(compress(prepared, fit))


def make_scorer(args: argparse.Namespace, recipe: Recipe | None) -> tuple[Scorer, judge.Counters | None]:
    """What --scorer names. Only a recipe that masks reads scores: for others nobody is asked, and S is the rule's."""
    if args.scorer == "rule" or not (recipe and recipe.rectify):
        if args.scorer != "rule":
            print(f"{args.method} uses no scores: no judge is asked", file=sys.stderr)
        rule = scoring.rule_scores
        return (controls.noisy(rule, args.score_noise) if args.score_noise else rule), None
    counters = judge.Counters()
    if args.scorer == "local":
        return judge.local_judge(policies.load(args.judge_model), counters), counters
    cache = Path(args.judge_cache or Path(args.out) / "judge.jsonl")
    endpoint = judge.Endpoint(args.judge_url, args.judge_name, cache, concurrency=args.judge_concurrency)
    return judge.http_judge(endpoint, counters), counters
