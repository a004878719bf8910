"""Compares the plain path with the fast one: do results agree, how long does each take, what is each trick worth here?

Both sample groups and take the gradient of their log-probs. Then the fast path runs again without each of its tricks in
turn, and with each of a few tricks that it does not have, as these may pay on your GPU. Times are the shortest of a few
rounds, in which all variants take turns. Sampling is timed per token, because samplers draw different responses.

    python -m fast                                                   the built-in policy
    python -m fast --model DIR --prompts 2 --max-new-tokens 32       a model of your own
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch

import fast
import rollout
from harness.config import ConfigParser, flag
from harness.console import fail, progress
from harness.warm_start import find_start
from policy import Policy, load_policy
from rollout import Rollouts
from tasks import Problem, arithmetic


@dataclass(frozen=True)
class Settings:
    """what is sampled and learned from"""

    model: str | None = flag(None, "a causal LM; without it the built-in warm start", "ID_OR_DIR")
    prompts: int = flag(8, "prompts, of levels 1 to 5", "B")
    group_size: int = flag(8, "responses per prompt", "G")
    max_new_tokens: int = flag(64, "longest response", "T")
    micro_batch_tokens: int = flag(16384, "tokens per micro-batch of the learner", "N")
    rounds: int = flag(3, "rounds; the shortest time counts", "N")


@dataclass(frozen=True)
class Trick:
    """A trick, in sampling or in the learner, and the patches that take it out of the fast path or put it in."""

    text: str
    learner: bool
    patches: dict[str, Any]


TRICKS = (
    Trick("a prompt runs once for its rows", False, {"fast.sampling.run_prompts": lambda *_: None}),
    Trick("a cache with room, not copied for every token", False, {"fast.prompt_cache.ROOM": 0}),
    Trick("ended rows leave the batch", False, {"fast.sampling.LEAVE_AT": 1.0}),
    Trick("one random number a row", False, {"fast.draw.draw": lambda p: torch.multinomial(p, 1)}),
    Trick("weights laid out once (CPU, large models)", False, {"fast.sampling.packed": lambda *_: nullcontext()}),
    Trick("recorded decoding steps (GPU)", False, {"fast.sampling.cuda_graphs.graphed": lambda *_: nullcontext()}),
    Trick("every token once, without padding", True, {"fast.learning.one_pass_works": lambda _: False}),
    Trick("micro-batches that keep prompts together", True, {"fast.micro_batches": rollout.micro_batches}),
    Trick("logits in parts that are not kept", True, {"fast.learning.LOGITS_AT_ONCE": 2**60}),
)


def fused_norm(self: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """RMSNorm as one operation; transformers has six."""
    return torch.nn.functional.rms_norm(x, x.shape[-1:], self.weight, self.variance_epsilon)


def tried(policy: Policy) -> tuple[Trick, ...]:
    """Tricks that the fast path does not have: they gain less than 5 % on a CPU, or were not measured on a GPU."""
    found = [Trick("parts of logits four times as large", True, {"fast.learning.LOGITS_AT_ONCE": 2**28})]
    kinds = {type(module) for module in policy.model.modules()}
    norms = {f"{kind.__module__}.{kind.__name__}.forward": fused_norm for kind in kinds if "RMSNorm" in kind.__name__}
    found += [Trick("RMSNorm as one operation", True, norms)] if norms else []
    layers = [kind for kind in kinds if kind.__name__.endswith("DecoderLayer")]
    compiled = {f"{k.__module__}.{k.__name__}.forward": torch.compile(k.forward, dynamic=True) for k in layers}
    return (*found, *([Trick("compiled layers", True, compiled)] if torch.cuda.is_available() else []))


def sampled(policy: Policy, path: ModuleType, problems: list[Problem], settings: Settings) -> tuple[Rollouts, float]:
    """Samples a group for every problem. Returns the rollouts, and the seconds per token."""
    torch.manual_seed(0)
    begin = now()
    found = path.sample_groups(policy, problems, [settings.group_size] * len(problems), settings.max_new_tokens)
    return found, (now() - begin) / int(found.mask.sum())


def learned(policy: Policy, path: ModuleType, rollouts: Rollouts, settings: Settings) -> tuple[float, float]:
    """Puts the gradient of the summed log-probs into .grad. Returns its norm, and the seconds that it took."""
    policy.model.zero_grad()
    begin = now()
    for rows in path.micro_batches(rollouts, torch.arange(len(rollouts.texts)), settings.micro_batch_tokens):
        path.token_logprobs(policy, rollouts, rows)[0].sum().backward()
    seconds = now() - begin
    return float(gradient(policy).norm()), seconds


def gradient(policy: Policy) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in policy.model.parameters() if p.grad is not None])


def now() -> float:
    """A clock, in seconds, read after the GPU (if there is one) has finished its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def same_results(policy: Policy, problems: list[Problem], settings: Settings) -> str:
    """How closely the two paths agree, in three lines."""
    counts = [1] * len(problems)
    greedy = [path.sample_groups(policy, problems, counts, settings.max_new_tokens, greedy=True) for path in PATHS]
    same = sum(a == b for a, b in zip(*(found.texts for found in greedy), strict=True))
    rollouts, rows = sampled(policy, fast, problems, settings)[0], torch.arange(len(problems))
    with torch.no_grad():
        plain, quick = (path.token_logprobs(policy, rollouts, rows)[0] for path in PATHS)
    learned(policy, rollout, rollouts, settings)
    other = gradient(policy)
    learned(policy, fast, rollouts, settings)
    apart = (gradient(policy) - other).norm() / other.norm()
    return (
        f"greedy responses that are the same: {same} of {len(problems)}\n"
        f"log-probs of the same tokens differ by at most {(plain - quick).abs().max():.0e}\n"
        f"gradients differ by {apart:.0e} of their norm"
    )


PATHS = (rollout, fast)


def seconds_of(policy: Policy, problems: list[Problem], settings: Settings) -> dict[Any, list[float]]:
    """The seconds of each round, by (path or trick, is it the learner?). In a round all variants take turns."""
    rollouts = sampled(policy, fast, problems, settings)[0]
    works: dict[Any, Callable[[], float]] = {}
    for path in PATHS:
        works[path, False] = lambda path=path: sampled(policy, path, problems, settings)[1]
        works[path, True] = lambda path=path: learned(policy, path, rollouts, settings)[1]
    for trick in (*TRICKS, *tried(policy)):
        works[trick.text, trick.learner] = lambda trick=trick: without(trick, works[fast, trick.learner])
    found = defaultdict(list)
    for turn in progress(range(settings.rounds + 1), desc="rounds", unit="round"):
        for key, work in works.items():
            seconds = work()
            if turn:  # the first warms up
                found[key].append(seconds)
    return found


def without(trick: Trick, work: Callable[[], float]) -> float:
    with ExitStack() as stack:
        for name, value in trick.patches.items():
            stack.enter_context(patch(name, value))
        return work()


def main() -> None:
    settings = Settings(**vars(ConfigParser((Settings,), prog="python -m fast", description=__doc__).parse_args()))
    if min(settings.prompts, settings.group_size, settings.max_new_tokens, settings.rounds) < 1:
        fail("--prompts, --group-size, --max-new-tokens and --rounds must be at least 1")
    policy = load_policy(find_start(settings.model))
    problems = arithmetic("train", per_level=-(-settings.prompts // 5))[: settings.prompts]
    print(
        f"{policy.model.num_parameters():,} parameters on {policy.device}, {torch.get_num_threads()} threads;", end=" "
    )
    print(f"{settings.prompts} prompts x {settings.group_size} responses of at most {settings.max_new_tokens} tokens\n")
    print(same_results(policy, problems, settings) + "\n")
    least = {key: min(values) for key, values in seconds_of(policy, problems, settings).items()}
    print(f"{'':48s}{'sampling':>16s}{'learner':>12s}\n{'':48s}{'ms a token':>16s}{'s':>12s}")
    for path in PATHS:
        print(f"{path.__name__:48s}{1000 * least[path, False]:16.3f}{least[path, True]:12.3f}")
    for title, tricks in (("without one trick", TRICKS), ("with one that it does not have", tried(policy))):
        print(f"\nthe fast path {title}; 1.00 is the time of the fast path:")
        for trick in tricks:
            times = f"{least[trick.text, trick.learner] / least[fast, trick.learner]:.2f}"
            print(f"  {trick.text:46s}{'' if trick.learner else times:>16s}{times if trick.learner else '':>12s}")


if __name__ == "__main__":
    sys.exit(main())
