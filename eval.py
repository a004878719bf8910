"""How good a policy is: avg@k with 95 % intervals, pass@k, and on the built-in task greedy accuracy level by level.

    greedy   the likeliest token each time, one response per problem: no luck, and no diversity
    avg@k    k sampled responses per problem: the share that is right, averaged over the problems. It estimates pass@1,
             the chance that one sampled response is right.
    pass@j   the chance that at least one of j sampled responses is right, estimated without bias from k >= j of them

Benchmarks of the built-in task. Their problems are the same for every policy and every seed. They are asked greedily,
and 4 times at temperature 1 (avg@4), which is the distribution that was trained:
    test         the levels of training, questions that no training has seen
    ood          longer chains and larger numbers: the warm start has seen a few, RL none
    validation   like test, with other questions: choose settings by these, so that test stays unseen

The paper's nine, from the hub, or from --benchmark-dir as NAME.parquet or NAME.jsonl with `problem` and `answer`. As in
Section 6: temperature 0.6, top-p 1, at most 8,192 tokens; avg@32 on the first three, one response on the others:
    aime24 aime25 amc math500 minerva olympiadbench        mathematics, as in training
    arc_c gpqa_diamond mmlu_pro                            multiple choice, out of distribution
Each response is kept in a file next to --out, so a stopped evaluation can go on (harness/responses.py). Any other file
NAME in --benchmark-dir is asked in the same way, one response per problem. With --k 0 all are asked greedily.

    python eval.py --model runs/dagrpo
    python eval.py --benchmarks test --limit 50 --k 0       the warm start, greedily: ten seconds
    python eval.py --model Qwen/Qwen2.5-0.5B-Instruct --benchmarks math500,gpqa_diamond --limit 8 --out runs/qwen.json
"""

from __future__ import annotations

import math
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from harness import evaluation

if __name__ == "__main__":  # --help and a mistyped flag are answered before the other imports, which take seconds
    evaluation.read_flags(sys.argv[1:], __doc__)

import torch

import fast
import rollout
import scoring
from harness import responses
from harness.console import progress
from harness.trial import try_out
from harness.warm_start import find_start
from maths import benchmarks, worker
from policy import Policy, load_policy
from tasks import Problem


@dataclass(frozen=True)
class Answers:
    """The results of one way of answering, greedy or sampled, on the problems of a level or of a benchmark."""

    accuracy: float  # if sampled: avg@k, the estimate of pass@1
    low: float  # 95 % interval of the accuracy
    high: float
    length: float  # mean tokens of a response, end token included
    ended: float  # share of responses with an end token within max_new_tokens


@dataclass(frozen=True)
class LevelResult:
    """The results on one level of a built-in benchmark."""

    level: str
    problems: int
    greedy: Answers
    sampled: Answers | None  # None: k = 0


@dataclass(frozen=True)
class BenchmarkResult:
    """The results on a benchmark that is not built in: k sampled responses per problem, or one greedy one if k = 0."""

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
    path: ModuleType = fast,
) -> list[LevelResult]:
    """Asks every problem once greedily and, unless k is 0, samples k times at the temperature. One result per level.

    The same seed and batch give the same responses on the same machine; torch's random state is left as it was.
    """

    def ask(count: int, greedy: bool) -> torch.Tensor:
        """`count` responses to every problem, about `batch` rows at a time: right, tokens, ended, as (3, n, count)."""
        parts, at_once = [], max(1, batch // count)
        bar = f"{name} greedy" if greedy else f"{name} avg@{k}"
        for i in progress(range(0, len(problems), at_once), desc=bar, unit="batch"):
            some = problems[i : i + at_once]
            rollouts = path.sample_groups(policy, some, [count] * len(some), max_new_tokens, temperature, greedy)
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
    policy: Policy,
    problems: list[Problem],
    settings: dict[str, Any],
    kept: Path | None,
    overwrite: bool,
    path: ModuleType = fast,
) -> BenchmarkResult:
    """Asks every problem of a benchmark k times. Responses in the file `kept` are not sampled again. Ctrl-C exits."""
    try:
        found = responses.collect(policy, problems, settings, kept, overwrite, path)
    except KeyboardInterrupt:
        print("stopped; the same command goes on after the last whole batch" if kept else "stopped", file=sys.stderr)
        sys.exit(130)
    n, k = found.right.shape
    pass_at_j = {j: pass_at(found.right, j) for j in [*(2**i for i in range(k.bit_length()) if 2**i < k), k]}
    answers = summarise(found.right, found.tokens, found.ended)
    return BenchmarkResult(n, settings["k"], answers, pass_at_j, found.too_long)


# ----------------------------------------------------------------------------------- from right and wrong to numbers


def wilson(right: float, n: float) -> tuple[float, float]:
    """The 95 % Wilson interval of the share right / n. Unlike mean +- 1.96 sd, it has a width even at 0 and at n.

    >>> [round(x, 3) for x in (*wilson(0, 10), *wilson(8, 10))]
    [0.0, 0.278, 0.49, 0.943]
    """
    z = 1.959964
    centre = (right + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * math.sqrt(right * (n - right) / n + z * z / 4)
    return max(0.0, centre - half), min(1.0, centre + half)


def interval(right: torch.Tensor) -> tuple[float, float]:
    """The 95 % interval of the accuracy, from right (n, k): Wilson's, at the effective sample size, `worth`.

    The unit is the problem: the k responses to one problem tend to be right or wrong together, so they say less about
    the next problem than responses to k problems would. The variance of the problems' means shows how much less: for
    independent responses it would be p (1 - p) / k. The effective sample size is between n and n * k.
    """
    n, k = right.shape
    p, spread = right.mean().item(), right.mean(dim=1).var(correction=0).item()
    worth = n * min(max(p * (1 - p) / spread, 1.0), k) if spread > 0 else n  # no spread: take the least
    return wilson(p * worth, worth)


def pass_at(right: torch.Tensor, j: int) -> float:
    """The chance that at least one of j responses is right, from right (n, k), k >= j: mean of 1 - C(k-c, j) / C(k, j).

    c is how many of a problem's k responses are right. The fraction is the share of the choices of j from these k
    that hold no right one. The naive 1 - (1 - c/k)^j is too low (Chen et al. 2021, arXiv 2107.03374).

    >>> pass_at(torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 0]]), 2)
    0.25
    """
    k = right.shape[1]
    wrong = (k - right.sum(dim=1)).long().tolist()  # n
    return sum(1 - math.comb(w, j) / math.comb(k, j) for w in wrong) / len(wrong)


def summarise(right: torch.Tensor, length: torch.Tensor, ended: torch.Tensor) -> Answers:
    """Means, and the interval of the accuracy, from tensors (n, k)."""
    accuracy, tokens, share = (values.mean().item() for values in (right, length, ended))
    return Answers(accuracy, *interval(right), tokens, share)


# ---------------------------------------------------------------------------------------- what is printed


def table(results: dict[str, list[LevelResult]], k: int) -> str:
    """The printed table of built-in benchmarks: one line per level, and the mean over levels."""

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
    """The printed table of benchmarks that are not built in: one line each."""
    head = f"{'avg@k = pass@1 [95 %]':>22s} {'tokens':>7s} {'ended':>6s}"
    lines = [f"{'benchmark':14s} {'problems':>8s} {'k':>6s}   {head}   pass@j"]
    for name, result in results.items():
        part = result.sampled
        share = f"{part.accuracy:.3f} [{part.low:.2f}, {part.high:.2f}]"
        cells = f"{share:>22s} {part.length:7.1f} {100 * part.ended:5.0f}%"
        more = "  ".join(f"{j}: {chance:.3f}" for j, chance in result.pass_at.items() if j > 1)
        long = f"  ({result.too_long} too long for the model's context, counted as wrong)" if result.too_long else ""
        lines.append(f"{name:14s} {result.problems:8d} {result.k or 'greedy':>6}   {cells}   {more or '-'}{long}")
    return "\n".join(lines)


def show(settings: evaluation.Settings, results: dict[str, list[LevelResult] | BenchmarkResult]) -> None:
    """Prints tables of what was run: built-in benchmarks, the others, and the paper's nine as a row of its Table 1."""
    levels = {name: result for name, result in results.items() if isinstance(result, list)}
    sampled = {name: result for name, result in results.items() if isinstance(result, BenchmarkResult)}
    if levels:
        print(table(levels, settings.protocol(next(iter(levels)))["k"]))
    if sampled:
        print(table_sampled(sampled))
        accuracy = {name: result.sampled.accuracy for name, result in sampled.items() if name in benchmarks.PAPER}
        if accuracy:
            print("\n" + benchmarks.table(settings.model, accuracy))


def main(argv: list[str] | None = None) -> None:
    settings, problems, out = evaluation.parse(sys.argv[1:] if argv is None else argv, __doc__)
    policy = load_policy(find_start(settings.model, settings.world), trust=settings.trust_remote_code)
    try_out(policy)
    path = rollout if settings.plain else fast
    results, parts = {}, {}
    for name, (asked, skipped) in problems.items():
        begin, how = time.perf_counter(), settings.protocol(name)
        if name in benchmarks.BUILT_IN:
            results[name] = evaluate(policy, asked, **how, seed=settings.seed, name=name, path=path)
            part = {"levels": list(map(asdict, results[name]))}
        else:
            about = {"seed": settings.seed, "problems": responses.hash_problems(asked)}
            given = {"benchmark": name, **how, **about, "weights": responses.hash_weights(policy)}
            kept = out and out.with_name(f"{out.stem}.{name}.jsonl")
            results[name] = evaluate_sampled(policy, asked, given, kept, settings.overwrite, path)
            part = {"settings": given, "skipped": skipped, **asdict(results[name])}
        if slow := worker.take_timeouts():  # of those that were checked now
            print(f"{name}: {slow} answers took over {worker.LIMIT:g} s to verify: counted as wrong", file=sys.stderr)
        parts[name] = {"seconds": round(time.perf_counter() - begin, 2), **part}
    show(settings, results)
    if out:
        evaluation.write(settings, policy, out, parts)


if __name__ == "__main__":
    main()
