"""How good a policy is: avg@k with 95 % intervals, pass@k, and on the built-in task greedy accuracy level by level.

    greedy   the likeliest token each time, one response per problem: no luck in it, and no diversity
    avg@k    k sampled responses per problem: the share that is right, averaged over the problems. It estimates pass@1,
             the chance that one sampled response is right.
    pass@j   the chance that at least one of j sampled responses is right, estimated without bias from k >= j of them

Benchmarks of the built-in task; the problems are the same for every policy and every seed. Greedy, and avg@4 at
temperature 1: that is the distribution that was trained.
    test         the levels of training, questions that no training has seen
    ood          longer chains and larger numbers: the warm start has seen a few, RL none
    validation   as test, other questions: to choose settings by, so that test stays unseen

The paper's nine, from the hub or as NAME.parquet or .jsonl of `problem, answer` in --benchmark-dir. Asked as the paper
does (Section 6): temperature 0.6, top-p 1, at most 8,192 tokens; avg@32 on the first three, one response on the others:
    aime24 aime25 amc math500 minerva olympiadbench        mathematics, as in training
    arc_c gpqa_diamond mmlu_pro                            multiple choice, out of distribution
Each response goes into a file beside --out; a stopped evaluation goes on where it was (responses.py). Any other file
NAME in --benchmark-dir is asked like these, once.

    python eval.py --model runs/dagrpo
    python eval.py --model warm_start --benchmarks test --limit 50 --k 0
    python eval.py --model Qwen/Qwen2.5-0.5B-Instruct --benchmarks math500,gpqa_diamond --limit 8 --out runs/qwen.json
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

import benchmarks
import data
import policy as policies
import responses
import rollout
import scoring
import worker
from accuracy import Answers, pass_at, summarise
from cli import Parser, fail, one_line, progress
from policy import Policy
from tasks import Problem


@dataclass(frozen=True)
class LevelResult:
    """Of a level of a built-in benchmark."""

    level: str
    problems: int
    greedy: Answers
    sampled: Answers | None  # None: k = 0


@dataclass(frozen=True)
class BenchmarkResult:
    """Of a whole benchmark that is not built in: k sampled responses to each problem."""

    problems: int
    k: int
    sampled: Answers
    pass_at: dict[int, float]  # j -> pass@j, for j = 1, 2, 4 ... k
    too_long: int  # problems that did not fit into the model's context; counted as wrong


# ---------------------------------------------------------------------------------------- asking


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


def evaluate_sampled(
    policy: Policy, problems: list[Problem], settings: dict[str, Any], path: Path | None, overwrite: bool
) -> BenchmarkResult:
    """Asks every problem of a benchmark k times; what `path` holds already is not asked again."""
    try:
        found = responses.collect(policy, problems, settings, path, overwrite)
    except KeyboardInterrupt:
        print("stopped; the same command goes on after the last whole batch" if path else "stopped", file=sys.stderr)
        sys.exit(130)
    n, k = found.right.shape
    powers = [2**i for i in range(k.bit_length()) if 2**i < k]
    pass_at_j = {j: pass_at(found.right, j) for j in [*powers, k]}
    return BenchmarkResult(n, k, summarise(found.right, found.tokens, found.ended), pass_at_j, found.too_long)


# ---------------------------------------------------------------------------------------- the command line


def build_parser() -> Parser:
    parser = Parser(prog="eval.py", description=__doc__, usage="python eval.py --model M [flags]")
    names = ", ".join([*benchmarks.BUILT_IN, *benchmarks.PAPER])
    parser.add_argument("--model", required=True, metavar="M", help="run folder, model folder, hub id, or warm_start")
    parser.add_argument("--benchmarks", default="test,ood", metavar="A,B", help=f"of {names}")
    parser.add_argument("--benchmark-dir", metavar="DIR", help="where their files are, instead of on the hub")
    parser.add_argument("--per-level", type=int, metavar="N", help="built-in: problems a level [100; 50 of validation]")
    parser.add_argument("--limit", type=int, metavar="N", help="at most N problems of a benchmark, evenly from all")
    parser.add_argument("--k", type=int, metavar="N", help="sampled responses per problem [4, the paper's 32 or 1]")
    parser.add_argument("--temperature", type=float, metavar="T", help="of sampling [1, the paper's 0.6]")
    parser.add_argument("--max-new-tokens", type=int, metavar="T", help="longest response [64, the paper's 8192]")
    parser.add_argument("--batch", type=int, metavar="N", help="responses generated at a time [256, and 32]")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of sampling; the problems stay the same")
    told = f"stands under each question, but not of the built-in task; '': nothing [{data.INSTRUCTION}"
    told += f" Of multiple choice also: {benchmarks.CHOICE_INSTRUCTION.removeprefix(data.INSTRUCTION).strip()}]"
    parser.add_argument("--instruction", metavar="TEXT", help=told)
    where = "where results go [RUN/eval.json of a run folder RUN; RUN/benchmarks.json with benchmarks not built in]"
    parser.add_argument("--out", metavar="FILE.json", help=where)
    parser.add_argument("--overwrite", action="store_true", help="sample again what stands in the files of responses")
    return parser


def protocol(args: argparse.Namespace, name: str) -> dict[str, Any]:
    """How a benchmark is asked: as the flags say, else as is usual for the built-in ones, else as in the paper.

    >>> protocol(build_parser().parse_args(["--model", "M", "--temperature", "0.9"]), "aime24")
    {'k': 32, 'temperature': 0.9, 'max_new_tokens': 8192, 'batch': 32}
    """
    built_in = name in benchmarks.BUILT_IN
    usual = {
        "k": 4 if built_in else benchmarks.get(name).k,
        "temperature": 1.0 if built_in else benchmarks.TEMPERATURE,
        "max_new_tokens": 64 if built_in else benchmarks.MAX_NEW_TOKENS,
        "batch": 256 if built_in else 32,
    }
    return {flag: value if getattr(args, flag) is None else getattr(args, flag) for flag, value in usual.items()}


def check(args: argparse.Namespace) -> dict[str, tuple[list[Problem], int]]:
    """One clear line for what cannot work, before a model is loaded. Returns what load_problems says of each."""
    for flag in ("per_level", "limit", "max_new_tokens", "batch"):
        if getattr(args, flag) is not None and getattr(args, flag) < 1:
            fail(f"--{flag.replace('_', '-')} must be at least 1, not {getattr(args, flag)}")
    if args.k is not None and args.k < 0:
        fail(f"--k must be at least 0, not {args.k} (0: no sampling, greedy alone)")
    if args.temperature is not None and not 0 < args.temperature < float("inf"):
        fail(f"--temperature must be above 0, not {args.temperature} (greedy accuracy is told of the built-in task)")
    if args.benchmark_dir and not Path(args.benchmark_dir).is_dir():
        fail(f"--benchmark-dir {args.benchmark_dir}: there is no such folder")
    asked = dict.fromkeys(args.benchmarks.split(","))
    known = [*benchmarks.BUILT_IN, *benchmarks.PAPER]
    for name in asked:
        if name not in known and (not args.benchmark_dir or not name or Path(name).name != name):
            fail(f"--benchmarks: there is no {name!r}; choose from {', '.join(known)}")
        if args.k == 0 and name not in benchmarks.BUILT_IN:
            fail(f"--k 0: {name} is not asked greedily, as the paper does not; at least 1")
    return {name: load_problems(args, name) for name in asked}


def load_problems(args: argparse.Namespace, name: str) -> tuple[list[Problem], int]:
    """The problems of a benchmark as the model is asked, and how many rows of it cannot be used; a line says why."""
    if name in benchmarks.BUILT_IN:
        try:
            return benchmarks.built_in(name, args.per_level, args.limit), 0
        except ValueError as error:
            fail(f"--per-level {args.per_level}: {error}; ask for fewer")
    directory = Path(args.benchmark_dir) if args.benchmark_dir else None
    problems, report = benchmarks.load(name, directory, args.limit)
    if report.skipped:
        print(f"{name}: {report}", file=sys.stderr)
    instruction = benchmarks.get(name).instruction if args.instruction is None else args.instruction
    return data.instruct(problems, instruction), report.skipped.total()


def find_model(name: str) -> str | None:
    """What policy.load takes. A name that can only be a missing folder ends here, not in a traceback of the hub's."""
    if name == "warm_start":
        return None
    with one_line(f"--model {name} cannot be read", OSError):
        where = policies.resolve(name)
    if not Path(where).exists() and Path(where).parent.is_dir():
        fail(f"--model {name}: there is no such folder (and a hub id has the form owner/name)")
    return where


def place_output(args: argparse.Namespace) -> Path | None:
    """Where the results go, tried out before the work rather than after it. None: they are only printed."""
    run = Path(args.model)
    is_run = (run / "config.json").exists() and (run / "checkpoint").is_dir()
    only_built_in = benchmarks.BUILT_IN.keys() >= set(args.benchmarks.split(","))
    usual = run / ("eval.json" if only_built_in else "benchmarks.json")
    out = Path(args.out) if args.out else usual if is_run else None
    if out:
        try:
            if out.is_dir():
                fail(f"--out {out} is a folder: name a file in it")
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


def table_sampled(results: dict[str, BenchmarkResult]) -> str:
    """What is printed of benchmarks that are not built in: a line each."""
    head = f"{'avg@k = pass@1 [95 %]':>22s} {'tokens':>7s} {'ended':>6s}"
    lines = [f"{'benchmark':14s} {'problems':>8s} {'k':>3s}   {head}   pass@j"]
    for name, result in results.items():
        part = result.sampled
        share = f"{part.accuracy:.3f} [{part.low:.2f}, {part.high:.2f}]"
        cells = f"{share:>22s} {part.length:7.1f} {100 * part.ended:5.0f}%"
        more = "  ".join(f"{j}: {chance:.3f}" for j, chance in result.pass_at.items() if j > 1)
        long = f"  ({result.too_long} too long for the model's context, counted as wrong)" if result.too_long else ""
        lines.append(f"{name:14s} {result.problems:8d} {result.k:3d}   {cells}   {more or '-'}{long}")
    return "\n".join(lines)


def show(args: argparse.Namespace, results: dict[str, list[LevelResult] | BenchmarkResult]) -> None:
    """Prints the tables of what was run: of the built-in benchmarks, of the others, and the paper's Table 1."""
    levels = {name: result for name, result in results.items() if isinstance(result, list)}
    sampled = {name: result for name, result in results.items() if isinstance(result, BenchmarkResult)}
    if levels:
        print(table(levels, protocol(args, next(iter(levels)))["k"]))
    if sampled:
        print(table_sampled(sampled))
        accuracy = {name: result.sampled.accuracy for name, result in sampled.items() if name in benchmarks.PAPER}
        if accuracy:
            print("\n" + benchmarks.table(args.model, accuracy))


def load_policy(name: str) -> Policy:
    """The model of --model, or one line that says why not."""
    where = find_model(name)
    try:
        return policies.load(where)
    except (OSError, ValueError, SafetensorError) as error:  # of the hub, of damaged files, of unknown models
        where = "" if Path(name).exists() else " (no such folder here, so looked up on the hub)"
        fail(f"--model {name} cannot be loaded{where}: {str(error).strip().splitlines()[0]}")


def write(args: argparse.Namespace, policy: Policy, out: Path, results: dict[str, Any], parts: dict[str, Any]) -> None:
    """The results as JSON, renamed when whole: a killed evaluation leaves what was there before."""
    first = next((name for name in results if name in benchmarks.BUILT_IN), next(iter(results)))
    record = {"settings": vars(args) | protocol(args, first), "benchmarks": parts}
    record |= {"seconds": sum(part["seconds"] for part in parts.values())}
    record |= {"model": policy.model.name_or_path, "device": str(policy.device), "torch": torch.__version__}
    partial = Path(f"{out}.partial")
    try:
        partial.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        partial.replace(out)
    except OSError as error:
        fail(f"--out {out}: cannot be written ({error.strerror}); make room, or choose another file")
    print(f"written: {out}")


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    find_model(args.model)
    problems, out = check(args), place_output(args)
    policy = load_policy(args.model)
    results, parts = {}, {}
    for name, (asked, skipped) in problems.items():
        begin, how = time.perf_counter(), protocol(args, name)
        if name in benchmarks.BUILT_IN:
            results[name] = evaluate(policy, asked, *how.values(), args.seed, name)
            part = {"levels": list(map(asdict, results[name]))}
        else:
            about = {"seed": args.seed, "problems": responses.hash_problems(asked)}
            settings = {"benchmark": name, **how, **about, "weights": responses.hash_weights(policy)}
            path = out and out.with_name(f"{out.stem}.{name}.jsonl")
            results[name] = evaluate_sampled(policy, asked, settings, path, args.overwrite)
            part = {"settings": settings, "skipped": skipped, **asdict(results[name])}
        if slow := worker.take_timeouts():  # of those that were checked now
            print(f"{name}: {slow} answers took the verifier over {worker.LIMIT:g} s: wrong", file=sys.stderr)
        parts[name] = {"seconds": round(time.perf_counter() - begin, 2), **part}
    show(args, results)
    if out:
        write(args, policy, out, results, parts)


if __name__ == "__main__":
    main()
