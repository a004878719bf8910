"""The paper's Table 1 in small, and its claims C1-C7, each answered: effect, 95 % interval, verdict.

Every claim is a difference between two methods at the same seed: the same start, prompts and problems asked. The effect
is its mean over seeds, the interval Student's t, and p is two-sided and corrected by Holm's method over the claims.
C7 compares no methods: its effect is minus the correlation, within the groups of dr_grpo, of score gap and cosine
(conflict_seeds.py, mean over steps 20, 40 and 60 of a seed). What counts as an answer is fixed in advance:

    holds            p < 0.05 after Holm, and the effect has the claim's sign
    does not hold    the interval ends below the smallest effect that would be worth having: 2 points of accuracy, a
                     tenth of a decade of gradient norm, 0.02 nats, 1 token, a correlation of 0.1
    undecided        neither

The baseline is dr_grpo, which is GRPO as section 6 of the paper has it; the same against grpo stands below it and is
not part of the verdict. C5 says two things, and holds only if both do.

    python -m analysis.experiments.claims    both tables, from runs.csv and conflict_seeds.csv in results/experiments
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from scipy.stats import t as student

from analysis.experiments.conflict_seeds import Point, c7_by_seed
from analysis.experiments.grid import read_runs
from analysis.saved import read_rows
from analysis.table import signed_interval, t_interval
from harness.console import Parser

LEVELS = ("level 1", "level 2", "level 3", "level 4", "level 5")
BASELINE = "dr_grpo"
STAGES = ("main", "after_sft", "controls", "others")  # what else there is are settings: ablations.py shows them
CLAIMS = 7  # of Holm's correction
C7 = "C7"  # the column of a run that conflict_seeds.csv gives

Record = dict[str, float | None]  # a run: column -> figure
Table = dict[str, dict[int, Record]]  # label -> seed -> run


@dataclass(frozen=True)
class Claim:
    """`effect` of one seed's runs, those of `labels` in order; above 0 is what the claim says."""

    name: str
    text: str
    labels: tuple[str, ...]
    effect: Callable[..., float | None]
    worth: float
    unit: str


def difference(column: str) -> Callable[[Record, Record], float | None]:
    def effect(one: Record, other: Record) -> float | None:
        a, b = one.get(column), other.get(column)
        return None if a is None or b is None else a - b

    return effect


def hard_more_than_easy(one: Record, other: Record) -> float | None:
    """Gain on levels 4 and 5, minus gain on levels 1 and 2."""
    gains = [one[level] - other[level] for level in LEVELS]
    return (gains[3] + gains[4] - gains[0] - gains[1]) / 2


def decades_below(column: str) -> Callable[[Record, Record], float | None]:
    """By how many powers of ten the baseline's figure is above the method's."""

    def effect(one: Record, other: Record) -> float | None:
        a, b = one.get(column), other.get(column)
        return math.log10(b) - math.log10(a) if a and b else None

    return effect


def minus(x: float | None) -> float | None:
    return None if x is None else -x


def claims(baseline: str) -> list[Claim]:
    """C1-C7 with this baseline in GRPO's place."""
    accuracy, norm = "accuracy", "decades"
    return [
        Claim("C1", "the mask alone beats GRPO", ("dagrpo_on", baseline), difference("mean"), 0.02, accuracy),
        Claim("C2", "anchors help most on hard prompts", ("dagrpo", "dagrpo_on"), hard_more_than_easy, 0.02, accuracy),
        Claim("C3", "DaGRPO beats LUFFY", ("dagrpo", "luffy"), difference("mean"), 0.02, accuracy),
        Claim("C4", "largest gradient norm is lower", ("dagrpo", baseline), decades_below("grad_norm max"), 0.1, norm),
        Claim("C5", "entropy is preserved", ("dagrpo", baseline), difference("entropy last"), 0.02, "nats"),
        Claim("C5", "responses are longer", ("dagrpo", baseline), difference("response_length last"), 1.0, "tokens"),
        Claim("C6", "out of distribution it is better", ("dagrpo", baseline), difference("ood mean"), 0.02, accuracy),
        Claim("C7", "pairs of like score conflict", ("dr_grpo",), lambda run: minus(run.get(C7)), 0.1, "correlation"),
    ]


def further() -> list[Claim]:
    """Asked beside the claims, to understand them: controls, and what else the runs tell."""
    accuracy = "accuracy"
    return [
        Claim("", "RL improves its start", ("dr_grpo", "warm start"), difference("mean"), 0.02, accuracy),
        Claim("", "with the mask, too", ("dagrpo_on", "warm start"), difference("mean"), 0.02, accuracy),
        Claim("", "DaGRPO beats GRPO", ("dagrpo", "dr_grpo"), difference("mean"), 0.02, accuracy),
        Claim("", "DaGRPO beats SFT", ("dagrpo", "sft"), difference("mean"), 0.02, accuracy),
        Claim("", "anchors help", ("dagrpo", "dagrpo_on"), difference("mean"), 0.02, accuracy),
        Claim("", "Eq. 8-9 beat a random mask", ("dagrpo_on", "random mask"), difference("mean"), 0.02, accuracy),
        Claim("", "S as reward helps", ("dr_grpo, S as reward", "dr_grpo"), difference("mean"), 0.02, accuracy),
        Claim("", "RL after SFT beats SFT", ("sft then dr_grpo", "sft"), difference("mean"), 0.02, accuracy),
        Claim(
            "", "gradient norm per kept row is lower", ("dagrpo", "dr_grpo"),
            decades_below("grad_norm per kept row"), 0.1, "decades",
        ),
    ]  # fmt: skip


@dataclass(frozen=True)
class Answer:
    claim: Claim
    seeds: int
    mean: float
    half: float | None  # of the 95 % interval
    p: float  # two-sided, not corrected


def answer(claim: Claim, table: Table) -> Answer | None:
    """None where fewer than two seeds have all the runs that it needs."""
    runs = [table.get(label, {}) for label in claim.labels]
    seeds = sorted(set.intersection(*(set(by_seed) for by_seed in runs)))
    effects = [e for seed in seeds if (e := claim.effect(*(by_seed[seed] for by_seed in runs))) is not None]
    if len(effects) < 2:
        return None
    mean, half = t_interval(effects)
    spread = half / float(student.ppf(0.975, len(effects) - 1))  # the standard error
    p = 2 * float(student.sf(abs(mean) / spread, len(effects) - 1)) if spread else float(mean == 0)
    return Answer(claim, len(effects), mean, half, p)


def holm(ps: dict[str, float], tests: int) -> dict[str, float]:
    """Holm's correction of each p for `tests` tests; those that are not among `ps` count as larger than all.

    >>> holm({"a": 0.01, "b": 0.04}, tests=2)
    {'a': 0.02, 'b': 0.04}
    """
    corrected, worst = {}, 0.0
    for i, (name, p) in enumerate(sorted(ps.items(), key=lambda item: item[1])):
        worst = max(worst, min(1.0, (tests - i) * p))
        corrected[name] = worst
    return corrected


def verdict(answers: list[Answer], p: float) -> str:
    """Of the parts of one claim, with the corrected p of its weakest."""
    if all(a.mean > 0 for a in answers) and p < 0.05:
        return "holds"
    if any(a.mean + a.half < a.claim.worth for a in answers):
        return "does not hold"
    return "undecided"


def show(table: Table) -> str:
    """The claims as a table in Markdown, with dr_grpo as GRPO; below, without verdict, with grpo, and what is further.

    p in brackets is not corrected.
    """
    lines = ["| claim | compared | seeds | effect [95 % interval] | p (Holm) | verdict |", "| --- " * 6 + "|"]
    parts: dict[str, list[Answer]] = {}  # a claim's name -> its parts
    for claim in claims(BASELINE):
        if found := answer(claim, table):
            parts.setdefault(claim.name, []).append(found)
    corrected = holm({name: max(a.p for a in answers) for name, answers in parts.items()}, CLAIMS)
    for name, answers in parts.items():
        answered = verdict(answers, corrected[name])
        lines += [line(a, f"{corrected[name]:.3f}", answered) for a in answers]
    beside = [claim for claim in claims("grpo") if "grpo" in claim.labels] + further()
    lines += [line(a, f"({a.p:.3f})", "") for claim in beside if (a := answer(claim, table))]
    return "\n".join(lines)


def means(table: Table) -> str:
    """Greedy accuracy of every label, mean over its seeds: the paper's Table 1 in small, in Markdown.

    Every seed has a start of its own, and some labels have fewer seeds: so they are ranked, best and second best of a
    column, by their difference to the baseline at the same seeds. That of the mean and of ood is shown, with its 95 %
    interval. Labels with fewer than three seeds are left out.
    """
    columns = {**{level: level.removeprefix("level ") for level in LEVELS}, "mean": "mean", "ood mean": "ood"}
    heads = ["method", "seeds", "responses", *columns.values(), f"mean - {BASELINE}", f"ood - {BASELINE}"]
    shown = {label: by_seed for label, by_seed in table.items() if len(by_seed) > 2}
    gaps = {
        label: {c: paired(by_seed, table.get(BASELINE, {}), c) for c in columns} for label, by_seed in shown.items()
    }
    lines = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    for label, by_seed in shown.items():
        cells = [label, str(len(by_seed)), f"{average(by_seed, 'responses'):.0f}"]
        for column in columns:
            better = sum(gap[column][0] > gaps[label][column][0] for gap in gaps.values())
            mark = ("**", "*", "")[min(better, 2)]
            cells.append(f"{mark}{average(by_seed, column):.3f}{mark}")
        for column in ("mean", "ood mean"):
            cells.append("" if label == BASELINE else signed_interval(gaps[label][column]))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def average(by_seed: dict[int, Record], column: str) -> float:
    return sum(run[column] or 0.0 for run in by_seed.values()) / len(by_seed)


def paired(one: dict[int, Record], other: dict[int, Record], column: str) -> tuple[float, float | None]:
    """Mean and half-width of the difference over the seeds that both have; of `one` alone where they share none."""
    seeds = sorted(set(one) & set(other)) or sorted(one)
    return t_interval([one[seed][column] - (other[seed][column] if seed in other else 0.0) for seed in seeds])


def line(a: Answer, p: str, verdict: str) -> str:
    effect = f"{signed_interval((a.mean, a.half), digits=1 if a.claim.unit == 'tokens' else 3)} {a.claim.unit}"
    compared = " - ".join(a.claim.labels)
    return f"| {f'{a.claim.name} {a.claim.text}'.strip()} | {compared} | {a.seeds} | {effect} | {p} | {verdict} |"


def read(path: Path) -> Table:
    """runs.csv of analysis.experiments.grid: the runs of every label, by seed."""
    table: Table = {}
    for row in read_runs(path):
        if row["stage"] in STAGES:
            figures = {name: x for name, x in row.items() if name not in ("stage", "label", "method")}
            table.setdefault(row["label"], {})[row["seed"]] = figures
    return table


def add_conflict(table: Table, path: Path) -> None:
    """C7's figure of dr_grpo's runs, from conflict_seeds.csv; nothing where there is no such file."""
    if path.exists():
        for seed, found in c7_by_seed(read_rows(Point, path), "dr_grpo").items():
            table.get("dr_grpo", {}).setdefault(seed, {})[C7] = found


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="python -m analysis.experiments.claims", description=__doc__)
    parser.add_argument(
        "--runs", default="results/experiments/runs.csv", metavar="FILE", help="of analysis.experiments.grid"
    )
    args = parser.parse_args(argv)
    table = read(Path(args.runs))
    add_conflict(table, Path(args.runs).with_name("conflict_seeds.csv"))
    print("Greedy accuracy by level, mean over seeds; bold: best, italic: second best, of the paired differences\n")
    print(means(table) + "\n\n" + show(table))


if __name__ == "__main__":
    main()
