"""What a run needs before its first step: problems, demonstrations, a scorer. What is left out is counted and shown."""

from __future__ import annotations

import hashlib
import json
import random
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import astuple, dataclass, replace
from functools import cache
from itertools import compress
from pathlib import Path

import tasks
from anchors import Anchor, prepare_anchors
from harness.config import Config
from harness.console import fail
from harness.sizes import forecast
from harness.trial import try_out
from harness.warm_start import find_start, find_tokenizer
from judges.endpoint import Endpoint
from judges.http import http_judge
from judges.local import local_judge
from judges.prompt import Counters
from maths import data, worker
from policy import Policy, load_policy
from scoring import Scorer, rule_scores
from tasks import Problem


@dataclass(frozen=True)
class Task:
    """What a run learns from."""

    problems: list[Problem]
    anchors: list[Anchor | None]  # one for each problem; None: it has no usable demonstration, or the method needs none
    fates: dict[str, int]  # of the demonstrations: usable, missing, wrong, too long
    scorer: Scorer  # Eq. 7
    judged: Counters | None  # what a judge has cost; None: the scorer is a rule

    def batch(self, config: Config, step: int) -> tuple[list[Problem], list[Anchor | None]]:
        """The problems of step number `step` (from 0), with their anchors."""
        chosen = pick(len(self.problems), step, config.batch_prompts, config.seed)
        return [self.problems[i] for i in chosen], [self.anchors[i] for i in chosen]

    @property
    def identity(self) -> str:
        """A hash of every problem and demonstration, in their order."""
        everything = [[*astuple(p), a.text if a else None] for p, a in zip(self.problems, self.anchors, strict=True)]
        return hashlib.sha256(json.dumps(everything).encode()).hexdigest()[:16]

    @property
    def levels(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(problem.level for problem in self.problems))


def pick(size: int, step: int, count: int, seed: int) -> list[int]:
    """The indices of the `count` problems, of `size`, for step number `step` (from 0). Each epoch has its own order.

    The result depends on the arguments alone: a resumed run needs no state of a data loader, and every method sees the
    same prompts at the same step of the same seed.

    >>> pick(3, 0, 2, seed=0), pick(3, 1, 2, seed=0)
    ([0, 2], [1, 1])
    """
    positions = [divmod(position, size) for position in range(step * count, (step + 1) * count)]
    return [_order(size, epoch, seed)[place] for epoch, place in positions]


@cache
def _order(size: int, epoch: int, seed: int) -> list[int]:
    order = list(range(size))
    random.Random(f"{seed} {epoch}").shuffle(order)
    return order


POOL = 2000  # built-in problems to train on: with 400, each seen six times, the policy can learn guesses by heart


def load_task(
    config: Config, demonstrate: Callable[[list[Problem]], list[Problem]] | None = None, score_all: bool = False
) -> Task:
    """The problems, demonstrations and scorer that the settings name; mistakes show before a warm start is trained.

    An experiment may hand in `demonstrate`, which gives the anchors other demonstrations, even wrong ones; the scorer
    keeps the original ones as its reference. With `score_all`, it reads S even if the method does not.
    """
    tokenizer = Policy(None, find_tokenizer(config.init_from or config.model, config.trust_remote_code))
    problems = load_problems(config)
    if begin := config.init_from or config.model:
        tokens = max(len(tokenizer.encode_prompt(problem.question)) for problem in problems[:100])
        print(forecast(config, find_start(begin), tokens), end="", file=sys.stderr)
    anchors, fates = [None] * len(problems), Counter()
    if config.recipe.anchors:
        shown = demonstrate(problems) if demonstrate else problems
        anchors, fates = prepare_anchors(tokenizer, shown, config.max_new_tokens, keep_wrong=bool(demonstrate))
        check_anchors(config, tokenizer, shown, fates)
    return Task(problems, anchors, dict(fates), *make_scorer(config, score_all))


def load_problems(config: Config) -> list[Problem]:
    """The problems to train on: the built-in ones, or those of --data. A line says what was skipped, and why."""
    if not config.data:
        world = tasks.WORLDS[config.world]
        names = config.levels.split(",") if config.levels else world.trained
        levels = {name: world.levels[name] for name in names}
        # levels 1 and 2 do not have that many different questions
        many = all((form.largest - form.smallest + 1) ** form.operands >= 4 * POOL for form in levels.values())
        return tasks.arithmetic("train", POOL // len(levels if many else tasks.LEVELS), levels=levels)
    columns = {part: getattr(config, f"{part}_column") for part in ("question", "answer", "demo", "level")}
    pool, report = data.load_problems(config.data, **columns, split=config.data_split, limit=config.data_limit)
    print(f"{config.data}: {report}", file=sys.stderr)
    return data.instruct(pool, data.INSTRUCTION if config.instruction is None else config.instruction)


def check_anchors(config: Config, tokenizer: Policy, problems: list[Problem], fates: Counter[str]) -> None:
    """Prints how many demonstrations were rejected, and why. Ends the program if the flags are to blame."""
    if slow := worker.take_timeouts():  # taken now: they do not count for the first step
        print(f"{slow} demonstrations took over {worker.LIMIT:g} s to verify: counted as wrong", file=sys.stderr)
    if fates["too long"] and (not config.data or not fates["usable"]):
        longest = max(len(tokenizer.encode_response(p.demo)) for p in problems)
        fail(
            f"{fates['too long']} of {len(problems)} demonstrations do not fit into --max-new-tokens "
            f"{config.max_new_tokens}: the longest has {longest} tokens with its end token; raise it, or train on "
            "other problems"
        )
    if rejected := {fate: n for fate, n in fates.items() if fate != "usable"}:
        print(f"anchors: {fates['usable']} of {len(problems)} usable; rejected: {rejected}", file=sys.stderr)
    if not config.recipe.rollouts and not fates["usable"]:
        fail(f"{config.method} needs demonstrations, and none of these problems has a usable one: see --demo-column")


def fitting(policy: Policy, task: Task, config: Config) -> Task:
    """The task without problems whose prompt leaves no room for a response in the model's window. Prints their number.

    A method without rollouts also drops the problems without an anchor: it could not learn from them.
    """
    try_out(policy)
    room = policy.window - config.max_new_tokens
    fit = [len(policy.encode_prompt(problem.question)) <= room for problem in task.problems]
    if not any(fit):
        tokens = config.max_new_tokens
        fail(f"no prompt fits into the model's window of {policy.window} tokens: lower --max-new-tokens, now {tokens}")
    if not all(fit):
        print(f"{fit.count(False)} of {len(fit)} problems left out: prompts of over {room} tokens", file=sys.stderr)
    if not config.recipe.rollouts:
        fit = [fits and anchor is not None for fits, anchor in zip(fit, task.anchors, strict=True)]
    return replace(task, problems=list(compress(task.problems, fit)), anchors=list(compress(task.anchors, fit)))


def make_scorer(config: Config, score_all: bool = False) -> tuple[Scorer, Counters | None]:
    """The scorer that --scorer names, and a judge's counters. A judge is asked only if scores are read: by a
    recipe that masks, or by an experiment (`score_all`). Otherwise S is the rule's.
    """
    if config.scorer == "rule" or not (config.recipe.rectify or config.recipe.soft_mask or score_all):
        if config.scorer != "rule":
            print(f"{config.method} uses no scores: no judge is asked", file=sys.stderr)
        return rule_scores, None
    counters = Counters()
    if config.scorer == "local":
        judge = load_policy(find_start(config.judge_model), trust=config.trust_remote_code)
        return local_judge(judge, counters), counters
    cache = Path(config.judge_cache or Path(config.out) / "judge.jsonl")
    endpoint = Endpoint(
        config.judge_url,
        config.judge_name,
        cache,
        concurrency=config.judge_concurrency,
        timeout=config.judge_timeout,
        json_mode=config.judge_json,
        reply_tokens=config.judge_tokens,
    )
    return http_judge(endpoint, counters), counters
