"""The paper's Table 1 in small, and its claims C1-C7, each answered: effect, 95 % interval, verdict.

Every claim is a difference between two methods at the same seed: the same start, prompts and problems asked. The effect
is its mean over seeds, the interval Student's t, and p is two-sided and corrected by Holm's method over the claims.
C7 compares no methods: its effect is minus the correlation, within the groups of dr_grpo, of score gap and cosine
(conflict_seeds.py, mean over steps 20, 40 and 60 of a seed). What counts as an answer is fixed in advance:

    holds            p < 0.05 after Holm, and the effect has the claim's sign
    does not hold    the interval ends below the smallest effect that would be worth having: 2 points of accuracy, a
                     tenth of a decade of gradient norm, 0.02 nats, 1 token, a correlation of 0.1
    undecided        neither

The baseline is dr_grpo, which is GRPO as section 6 of the paper has it; the same against grpo is shown below it
and is not part of the verdict. C5 says two things, and holds only if both do.

    python -m analysis.experiments.claims    both tables, from runs.csv and conflict_seeds.csv in results/experiments
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.experiments.conflict_seeds import SeedPoint, c7_by_seed
from analysis.experiments.grid import RUNS_CSV, read_table
from analysis.saved import read_rows
from analysis.stats import markdown, signed_interval, t_interval, t_test
from harness.console import Parser

LEVELS = ["level 1", "level 2", "level 3", "level 4", "level 5"]
BASELINE = "dr_grpo"
STAGES = ("main", "after_sft", "controls", "others")  # what else there is are settings: ablations.py shows them
CLAIMS = 7  # of Holm's correction
C7 = "C7"  # the column of a run that conflict_seeds.csv gives

Effect = Callable[..., pd.Series]  # runs of each label, their index the seed -> by how much the claim is right, by seed


@dataclass(frozen=True)
class Claim:
    """`effect` of the runs of `labels`, in order; above 0 is what the claim says."""

    name: str
    text: str
    labels: tuple[str, ...]
    effect: Effect
    worth: float
    unit: str


def difference(column: str) -> Effect:
    return lambda one, other: one[column] - other[column]  # by seed: NaN where one of them has no run


def hard_more_than_easy(one: pd.DataFrame, other: pd.DataFrame) -> pd.Series:
    """Gain on levels 4 and 5, minus gain on levels 1 and 2."""
    gains = one[LEVELS] - other[LEVELS]
    return (gains["level 4"] + gains["level 5"] - gains["level 1"] - gains["level 2"]) / 2


def decades_below(column: str) -> Effect:
    """By how many powers of ten the baseline's figure is above the method's; NaN where one is 0."""

    def effect(one: pd.DataFrame, other: pd.DataFrame) -> pd.Series:
        ratio = other[column] / one[column]
        return np.log10(ratio.where((ratio > 0) & np.isfinite(ratio)))

    return effect


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
        Claim("C7", "pairs of like score conflict", ("dr_grpo",), lambda runs: -runs[C7], 0.1, "correlation"),
    ]


def further() -> list[Claim]:
    """Asked with the claims, to understand them: controls, and what else the runs show."""
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
    half: float  # of the 95 % interval
    p: float  # two-sided, not corrected


def answer(claim: Claim, runs: pd.DataFrame) -> Answer | None:
    """None where fewer than two seeds have all the runs that it needs."""
    parts = [by_seed(runs, label) for label in claim.labels]
    effects = [] if any(part.empty for part in parts) else claim.effect(*parts).dropna()
    if len(effects) < 2:
        return None
    mean, half, p = map(float, t_test(effects))
    return Answer(claim, len(effects), mean, half, 1.0 if np.isnan(p) else p)  # NaN: all effects are 0


def by_seed(runs: pd.DataFrame, label: str) -> pd.DataFrame:
    return runs[runs["label"] == label].set_index("seed").sort_index()


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


def claims_table(runs: pd.DataFrame) -> str:
    """The claims in Markdown, with dr_grpo as GRPO; below, without verdict, with grpo, and what is further.

    p in brackets is not corrected.
    """
    parts: dict[str, list[Answer]] = {}  # a claim's name -> its parts
    for claim in claims(BASELINE):
        if found := answer(claim, runs):
            parts.setdefault(claim.name, []).append(found)
    corrected = holm({name: max(a.p for a in answers) for name, answers in parts.items()}, CLAIMS)
    lines = []
    for name, answers in parts.items():
        answered = verdict(answers, corrected[name])
        lines += [line(a, f"{corrected[name]:.3f}", answered) for a in answers]
    more = [claim for claim in claims("grpo") if "grpo" in claim.labels] + further()
    lines += [line(a, f"({a.p:.3f})", "") for claim in more if (a := answer(claim, runs))]
    return markdown(["claim", "compared", "seeds", "effect [95 % interval]", "p (Holm)", "verdict"], lines)


def line(a: Answer, p: str, answered: str) -> list[str]:
    effect = f"{signed_interval((a.mean, a.half), digits=1 if a.claim.unit == 'tokens' else 3)} {a.claim.unit}"
    return [f"{a.claim.name} {a.claim.text}".strip(), " - ".join(a.claim.labels), str(a.seeds), effect, p, answered]


def means_table(runs: pd.DataFrame) -> str:
    """Greedy accuracy of every label, mean over its seeds: the paper's Table 1 in small, in Markdown.

    Every seed has a start of its own, and some labels have fewer seeds: so they are ranked, best and second best of a
    column, by their difference to the baseline at the same seeds. That of the mean and of ood is shown, with its 95 %
    interval. Labels with fewer than three seeds are left out.
    """
    columns, baseline = [*LEVELS, "mean", "ood mean"], by_seed(runs, BASELINE)
    shown = {label: by_seed(runs, label) for label in runs["label"].unique()}
    shown = {label: mine for label, mine in shown.items() if len(mine) > 2}
    gaps = {label: (mine[columns] - baseline[columns]).dropna(how="all") for label, mine in shown.items()}
    gaps = {label: gap if len(gap) else shown[label][columns] for label, gap in gaps.items()}  # no seed in common
    ranks = pd.DataFrame({label: gap.mean() for label, gap in gaps.items()}).rank(axis=1, method="min", ascending=False)
    lines = []
    for label, mine in shown.items():
        marks = [{1: "**", 2: "*"}.get(rank, "") for rank in ranks[label]]
        cells = [f"{mark}{mine[column].mean():.3f}{mark}" for mark, column in zip(marks, columns, strict=True)]
        ends = [signed_interval(t_interval(gaps[label][column])) for column in ("mean", "ood mean")]
        cells += ["", ""] if label == BASELINE else ends
        lines.append([label, str(len(mine)), f"{mine['responses'].fillna(0).mean():.0f}", *cells])
    heads = ["method", "seeds", "responses", *(level.removeprefix("level ") for level in LEVELS), "mean", "ood"]
    return markdown([*heads, f"mean - {BASELINE}", f"ood - {BASELINE}"], lines)


def read(path: Path) -> pd.DataFrame:
    """The runs that claims are about, with C7's figure from conflict_seeds.csv, if the folder has that too."""
    runs, beside = read_table(path), path.with_name("conflict_seeds.csv")
    c7 = c7_by_seed(read_rows(SeedPoint, beside), "dr_grpo") if beside.exists() else {}
    runs[C7] = runs["seed"].map(c7).where(runs["label"] == "dr_grpo").astype(float)
    return runs[runs["stage"].isin(STAGES)]


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="python -m analysis.experiments.claims", description=__doc__)
    parser.add_argument("--runs", default=RUNS_CSV, metavar="FILE", help="of analysis.experiments.grid")
    runs = read(Path(parser.parse_args(argv).runs))
    print("Greedy accuracy by level, mean over seeds; bold: best, italic: second best, of the paired differences\n")
    print(f"{means_table(runs)}\n\n{claims_table(runs)}")


if __name__ == "__main__":
    main()
