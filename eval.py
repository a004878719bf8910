"""How good a policy is, level by level: greedy accuracy, and avg@k at a temperature, with 95 % intervals.

    greedy   the likeliest token each time, one response per problem: no luck in it, and no diversity
    avg@k    k sampled responses per problem: the share that is right, averaged over the problems. It estimates pass@1,
             the chance that one sampled response is right.

The paper samples at temperature 0.6: avg@32 on its small benchmarks, pass@1 on the others. Here the temperature is 1
unless you say otherwise: that is the distribution that was trained, and on the built-in task nothing else is.

Benchmarks of the built-in task; the problems are the same for every policy and every seed:
    test         the levels of training, questions that no training has seen
    ood          longer chains and larger numbers: the warm start has seen a few, RL none
    validation   as test, other questions: to choose settings by, so that test stays unseen

    python eval.py --model runs/dagrpo
    python eval.py --model warm_start --benchmarks test --limit 50 --k 0
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError

import policy as policies
import rollout
import scoring
import tasks
from cli import Parser, fail, progress
from policy import Policy
from tasks import Problem

# split, levels, problems per level (level 1 has no more than about 60 questions in the split validation)
BENCHMARKS = {
    "test": ("test", tasks.LEVELS, 100),
    "ood": ("test", tasks.OOD_LEVELS, 100),
    "validation": ("validation", tasks.LEVELS, 50),
}


@dataclass(frozen=True)
class Answers:
    """What one way of answering, greedy or sampled, came to on the problems of a level."""

    accuracy: float  # of sampled responses: avg@k, the estimate of pass@1
    low: float  # 95 % interval of the accuracy
    high: float
    length: float  # mean tokens of a response, end token included
    ended: float  # share that came to its end token within max_new_tokens


@dataclass(frozen=True)
class LevelResult:
    level: str
    problems: int
    greedy: Answers
    sampled: Answers | None  # None: k = 0


def benchmark(name: str, per_level: int | None = None, limit: int | None = None) -> list[Problem]:
    """The problems of a benchmark, level by level; `limit` in all, taken evenly from the levels."""
    split, levels, usual = BENCHMARKS[name]
    problems = tasks.arithmetic(split, per_level or usual, levels=levels)
    by_level = [[problem for problem in problems if problem.level == level] for level in levels]
    turns = [problem for turn in zip(*by_level, strict=True) for problem in turn]  # one of each level, then the next
    chosen = set(turns[:limit])
    return [problem for problem in problems if problem in chosen]


def wilson(right: float, n: float) -> tuple[float, float]:
    """The 95 % Wilson interval of a share: `right` of `n`. Unlike mean +- 1.96 sd it has a width at 0 and at n too.

    >>> [round(x, 3) for x in (*wilson(0, 10), *wilson(8, 10))]
    [0.0, 0.278, 0.49, 0.943]
    """
    z = 1.959964
    centre = (right + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * math.sqrt(right * (n - right) / n + z * z / 4)
    return max(0.0, centre - half), min(1.0, centre + half)


def interval(right: torch.Tensor) -> tuple[float, float]:
    """The 95 % interval of the accuracy, from right (n, k): Wilson's, for as many responses as these are worth.

    Problems are the unit, not responses: k responses to one problem are more or less right or wrong together, so they
    tell less of the next problem than k problems would. The spread of the problems' own means shows how much less: that
    of k independent responses would be p (1 - p) / k. So they are worth between n and n * k.
    """
    n, k = right.shape
    p, spread = right.mean().item(), right.mean(dim=1).var(correction=0).item()
    worth = n * min(max(p * (1 - p) / spread, 1.0), k) if spread > 0 else n  # no spread to judge by: the safe side
    return wilson(p * worth, worth)


def evaluate(
    policy: Policy,
    problems: list[Problem],
    k: int,
    temperature: float,
    max_new_tokens: int,
    batch: int,
    seed: int,
    name: str = "",
) -> list[LevelResult]:
    """Asks every problem once greedily and, unless k is 0, k times at the temperature. One result per level.

    The same seed and batch give the same responses on the same machine; torch's random state is left as it was.
    """

    def ask(count: int, greedy: bool) -> torch.Tensor:
        """`count` responses to every problem, about `batch` rows at a time: right, tokens, ended, as (3, n, count)."""
        parts, at_once = [], max(1, batch // count)
        bar = f"{name} greedy" if greedy else f"{name} avg@{k}"
        for i in progress(range(0, len(problems), at_once), desc=bar, unit="batch"):
            some = problems[i : i + at_once]
            rollouts = rollout.sample_groups(policy, some, [count] * len(some), max_new_tokens, temperature, greedy)
            tokens, ended = (x.view(len(some), count).cpu() for x in (rollouts.lengths, rollouts.ended))
            parts.append(torch.stack([x.double() for x in (scoring.rewards(rollouts), tokens, ended)]))
        return torch.cat(parts, dim=1)

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        greedy, sampled = ask(1, greedy=True), ask(k, greedy=False) if k else None
    results = []
    for level in dict.fromkeys(problem.level for problem in problems):
        rows = torch.tensor([problem.level == level for problem in problems])  # (n,) bool
        answers = [None if part is None else summarise(*part[:, rows]) for part in (greedy, sampled)]
        results.append(LevelResult(level, int(rows.sum()), *answers))
    return results


def summarise(right: torch.Tensor, length: torch.Tensor, ended: torch.Tensor) -> Answers:
    """From (n, k) each."""
    accuracy, tokens, share = (values.mean().item() for values in (right, length, ended))
    return Answers(accuracy, *interval(right), tokens, share)


def build_parser() -> Parser:
    parser = Parser(prog="eval.py", description=__doc__, usage="python eval.py --model M [flags]")
    parser.add_argument("--model", required=True, metavar="M", help="run folder, model folder, hub id, or warm_start")
    parser.add_argument("--benchmarks", default="test,ood", metavar="A,B", help=f"of {', '.join(BENCHMARKS)}")
    parser.add_argument("--per-level", type=int, metavar="N", help="problems of each level [100; 50 of validation]")
    parser.add_argument("--limit", type=int, metavar="N", help="at most N problems of a benchmark, from all levels")
    parser.add_argument("--k", type=int, default=4, metavar="N", help="sampled responses per problem; 0: greedy only")
    parser.add_argument("--temperature", type=float, default=1.0, metavar="T", help="of sampling")
    parser.add_argument("--max-new-tokens", type=int, default=64, metavar="T", help="longest response, end included")
    parser.add_argument("--batch", type=int, default=256, metavar="N", help="responses generated at a time")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of sampling; the problems stay the same")
    parser.add_argument("--out", metavar="FILE.json", help="where results go; of a run folder RUN: RUN/eval.json")
    return parser


def check(args: argparse.Namespace) -> dict[str, list[Problem]]:
    """One clear line for what cannot work, before a model is loaded. Returns the problems of each benchmark."""
    for flag in ("per_level", "limit", "max_new_tokens", "batch"):
        if getattr(args, flag) is not None and getattr(args, flag) < 1:
            fail(f"--{flag.replace('_', '-')} must be at least 1, not {getattr(args, flag)}")
    if args.k < 0:
        fail(f"--k must be at least 0, not {args.k} (0: no sampling, greedy alone)")
    if not 0 < args.temperature < float("inf"):
        fail(f"--temperature must be above 0, not {args.temperature} (greedy accuracy is always told)")
    names = dict.fromkeys(args.benchmarks.split(","))
    for name in sorted(names.keys() - BENCHMARKS):
        fail(f"--benchmarks: there is no benchmark {name!r}; choose from {', '.join(BENCHMARKS)}")
    try:
        return {name: benchmark(name, args.per_level, args.limit) for name in names}
    except ValueError as error:
        fail(f"--per-level {args.per_level}: {error}; ask for fewer")


def find_model(name: str) -> str | None:
    """What policy.load takes. A name that can only be a missing folder ends here, not in a traceback of the hub's."""
    if name == "warm_start":
        return None
    where = policies.resolve(name)
    if not Path(where).exists() and Path(where).parent.is_dir():
        fail(f"--model {name}: there is no such folder (and a hub id has the form owner/name)")
    return where


def place_output(args: argparse.Namespace) -> Path | None:
    """Where the results go, tried out before the work rather than after it. None: they are only printed."""
    run = Path(args.model)
    is_run = (run / "config.json").exists() and (run / "checkpoint").is_dir()
    out = Path(args.out) if args.out else run / "eval.json" if is_run else None
    if out and out.is_dir():
        fail(f"--out {out} is a folder: name a file in it")
    if out:
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            Path(f"{out}.partial").touch()
            Path(f"{out}.partial").unlink()
        except OSError as error:
            fail(f"--out {out}: cannot be written ({error.strerror}); choose another file")
    return out


def table(results: dict[str, list[LevelResult]], k: int) -> str:
    """What is printed: a line a level, and their mean."""

    def cells(part: Answers) -> str:
        share = f"{part.accuracy:.3f} [{part.low:.2f}, {part.high:.2f}]"
        return f"   {share:>22s} {part.length:7.1f} {100 * part.ended:5.0f}%"

    columns = ["greedy [95 %]", f"avg@{k} = pass@1 [95 %]"] if k else ["greedy [95 %]"]
    head = "".join(f"   {column:>22s} {'tokens':>7s} {'ended':>6s}" for column in columns)
    lines = [f"{'benchmark':11s} {'level':10s} {'problems':>8s}{head}"]
    for name, levels in results.items():
        rows = [[part for part in (level.greedy, level.sampled) if part] for level in levels]
        for level, row in zip(levels, rows, strict=True):
            lines.append(f"{name:11s} {level.level:10s} {level.problems:8d}" + "".join(map(cells, row)))
        means = [sum(part.accuracy for part in column) / len(levels) for column in zip(*rows, strict=True)]
        lines.append(f"{name:11s} {'mean':19s}" + "".join(f"   {f'{mean:.3f}':>9s}{'':28s}" for mean in means).rstrip())
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    problems, where, out = check(args), find_model(args.model), place_output(args)
    try:
        policy = policies.load(where)
    except (OSError, ValueError, SafetensorError) as error:  # of the hub, of damaged files, of unknown models
        where = "" if Path(args.model).exists() else " (no such folder here, so looked up on the hub)"
        fail(f"--model {args.model} cannot be loaded{where}: {str(error).strip().splitlines()[0]}")
    how = (args.k, args.temperature, args.max_new_tokens, args.batch, args.seed)
    results, seconds = {}, {}
    for name, asked in problems.items():
        begin = time.perf_counter()
        results[name] = evaluate(policy, asked, *how, name)
        seconds[name] = round(time.perf_counter() - begin, 2)
    print(table(results, args.k))
    if out:
        parts = {name: {"seconds": seconds[name], "levels": list(map(asdict, results[name]))} for name in results}
        record = {"settings": vars(args), "benchmarks": parts, "seconds": sum(seconds.values())}
        record |= {"model": policy.model.name_or_path, "device": str(policy.device), "torch": torch.__version__}
        partial = Path(f"{out}.partial")  # renamed when whole: a killed evaluation leaves what was there before
        partial.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        partial.replace(out)
        print(f"written: {out}")


if __name__ == "__main__":
    main()
