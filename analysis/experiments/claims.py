"""The paper's Table 1 in small, and its claims C1-C7, each answered in each world: effect, 95 % interval, verdict.

Every claim is a difference between two methods at the same seed: the same start, prompts and problems asked. The effect
is its mean over seeds, the interval Student's t, and p is two-sided and corrected by Holm's method over the claims of
all worlds. C7 compares no methods: its effect is minus the correlation, within the groups of dr_grpo, of score gap and
cosine (conflict_seeds.py). What counts as an answer is fixed in advance:

    holds            p < 0.05 after Holm, and the effect has the claim's sign
    does not hold    the interval ends below the smallest effect that would be worth having: 2 points of accuracy, a
                     tenth of a decade of gradient norm, 0.02 nats, 1 token, a correlation of 0.1
    undecided        neither

The baseline is dr_grpo, which is GRPO as section 6 of the paper has it. C5 says two things, and holds only if both do.

    python -m analysis.experiments.claims    prints all tables, and keeps them in tables.md beside the rows
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.experiments.conflict_seeds import SeedPoint, c7_by_seed
from analysis.experiments.grid import OUT, SAME_RATE, WORLDS
from analysis.experiments.outcomes import read_rows
from analysis.saved import read_rows as read_points
from analysis.stats import markdown, signed_interval, t_interval, t_test
from harness.console import Parser, fail

LEVELS = ["level 1", "level 2", "level 3", "level 4", "level 5"]
BASELINE, START, BOTH = "dr_grpo", "warm start", "sft then dr_grpo"
C7 = "C7"  # the column of a run that conflict_seeds.csv gives
LEARNED = "learned from"  # share of the rows: A is not 0, and the mask keeps them
NAMES = ("C1", "C2", "C3", "C4", "C5", "C6", "C7")

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


def gain(one: pd.DataFrame, other: pd.DataFrame, *levels: str) -> pd.Series:
    """The mean gain on these levels; NaN without one of them."""
    gains = one.reindex(columns=LEVELS) - other.reindex(columns=LEVELS)
    return gains[list(levels)].mean(axis=1, skipna=False)


def hard(one: pd.DataFrame, other: pd.DataFrame) -> pd.Series:
    return gain(one, other, "level 4", "level 5")


def hard_more_than_easy(one: pd.DataFrame, other: pd.DataFrame) -> pd.Series:
    return hard(one, other) - gain(one, other, "level 1", "level 2")


def decades_below(column: str) -> Effect:
    """By how many powers of ten the baseline's figure is above the method's; NaN where one is 0."""

    def effect(one: pd.DataFrame, other: pd.DataFrame) -> pd.Series:
        ratio = other[column] / one[column]
        return np.log10(ratio.where((ratio > 0) & np.isfinite(ratio)))

    return effect


CLAIMS = [
    Claim("C1", "the mask alone beats GRPO", ("dagrpo_on", BASELINE), difference("accuracy"), 0.02, "accuracy"),
    Claim("C2", "anchors help most on hard prompts", ("dagrpo", "dagrpo_on"), hard_more_than_easy, 0.02, "accuracy"),
    Claim("C3", "DaGRPO beats LUFFY", ("dagrpo", "luffy"), difference("accuracy"), 0.02, "accuracy"),
    Claim("C4", "largest gradient norm is lower", ("dagrpo", BASELINE), decades_below("grad_norm max"), 0.1, "decades"),
    Claim("C5", "entropy is preserved", ("dagrpo", BASELINE), difference("entropy last"), 0.02, "nats"),
    Claim("C5", "responses are longer", ("dagrpo", BASELINE), difference("response_length last"), 1.0, "tokens"),
    Claim("C6", "out of distribution it is better", ("dagrpo", BASELINE), difference("ood mean"), 0.02, "accuracy"),
    Claim("C7", "pairs of like score conflict", (BASELINE,), lambda runs: -runs[C7], 0.1, "correlation"),
]


def asked(text: str, one: str, other: str, column: str = "accuracy", unit: str = "accuracy") -> Claim:
    return Claim("", text, (one, other), difference(column), 0.02, unit)


FURTHER = [  # asked with the claims, to understand them
    asked("RL improves its start", BASELINE, START),
    asked("the mask: sooner", "dagrpo_on", BASELINE, "reward mean", "reward, mean of the run"),
    asked("the mask: out of distribution", "dagrpo_on", BASELINE, "ood mean"),
    Claim("", "the mask: lower largest norm", ("dagrpo_on", BASELINE), decades_below("grad_norm max"), 0.1, "decades"),
    asked("the mask: longer", "dagrpo_on", BASELINE, "response_length last", "tokens"),
    asked("the mask, at the same rate", "dagrpo_on", SAME_RATE),
    asked("likewise, out of distribution", "dagrpo_on", SAME_RATE, "ood mean"),
    asked("is it distinctiveness?", "dagrpo_on", "random mask"),
    asked("likewise, out of distribution", "dagrpo_on", "random mask", "ood mean"),
    asked("likewise, sooner", "dagrpo_on", "random mask", "reward mean", "reward, mean of the run"),
    asked("or fewer terms?", "random mask", BASELINE, "reward mean", "reward, mean of the run"),
    asked("or what S knows?", "dr_grpo, S as reward", "dagrpo_on"),
    asked("likewise, sooner", "dr_grpo, S as reward", "dagrpo_on", "reward mean", "reward, mean of the run"),
    *(
        asked(f"pilot: {text}", f"{one} at 3e-5", f"{other} at 3e-5", column, unit)
        for text, one, other, column, unit in (
            ("the mask, sooner", "dagrpo_on", BASELINE, "reward mean", "reward, mean of the run"),
            ("is it distinctiveness?", "dagrpo_on", "random mask", "accuracy", "accuracy"),
            ("likewise, OOD", "dagrpo_on", "random mask", "ood mean", "accuracy"),
            ("likewise, sooner", "dagrpo_on", "random mask", "reward mean", "reward, mean of the run"),
            ("or fewer terms?", "random mask", BASELINE, "accuracy", "accuracy"),
        )
    ),
    asked("anchors help", "dagrpo", "dagrpo_on"),
    asked("DaGRPO beats GRPO", "dagrpo", BASELINE),
    asked("DaGRPO beats SFT", "dagrpo", "sft"),
    *(
        Claim("", "on levels 4 and 5", ("dagrpo", other), hard, 0.02, "accuracy")
        for other in (BASELINE, SAME_RATE, "luffy", "sft")
    ),
    asked("DaGRPO beats GRPO at the mask's rate", "dagrpo", SAME_RATE),  # added when unseen had all seeds: see its page
    asked("likewise, out of distribution", "dagrpo", SAME_RATE, "ood mean"),
    asked("out of distribution, against the start", "dagrpo", START, "ood mean"),
    asked("SFT, likewise", "sft", START, "ood mean"),
    asked("with anchors, groups have a signal", "dagrpo", BASELINE, "no_signal_groups mean", "groups of 16"),
    asked("RL after SFT beats SFT", BOTH, "sft"),
    *(
        asked(text, BOTH, mixed, column)
        for mixed in ("dagrpo", "luffy")
        for text, column in (("SFT, then RL, beats mixing", "accuracy"), ("likewise, out of distribution", "ood mean"))
    ),
    asked("with standard deviation and length", "grpo", BASELINE),
]


@dataclass(frozen=True)
class Answer:
    claim: Claim
    world: str
    seeds: int
    mean: float
    half: float  # of the 95 % interval
    p: float  # two-sided, not corrected


def answer(claim: Claim, runs: pd.DataFrame, world: str) -> Answer | None:
    """None where fewer than two seeds have all the runs that it needs."""
    parts = [by_seed(runs, label) for label in claim.labels]
    effects = [] if any(part.empty for part in parts) else claim.effect(*parts).dropna()
    if len(effects) < 2:
        return None
    mean, half, p = map(float, t_test(effects))
    return Answer(claim, world, len(effects), mean, half, 1.0 if np.isnan(p) else p)  # NaN: all effects are 0


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
    """The claims of all worlds in Markdown, with Holm's correction over all of them."""
    parts: dict[str, list[Answer]] = {}  # world and claim -> the claim's parts
    for world in worlds_of(runs):
        for claim in CLAIMS:
            if found := answer(claim, runs[runs["world"] == world], world):
                parts.setdefault(f"{world} {claim.name}", []).append(found)
    corrected = holm({name: max(a.p for a in answers) for name, answers in parts.items()}, len(NAMES) * len(WORLDS))
    lines = []
    for name, answers in parts.items():
        answered = verdict(answers, corrected[name])
        lines += [
            [a.world, f"{a.claim.name} {a.claim.text}", *cells(a), f"{corrected[name]:.3f}", answered] for a in answers
        ]
    return markdown(["world", "claim", *CELLS, "p (Holm)", "verdict"], lines)


def questions_table(claims: list[Claim], runs: pd.DataFrame, world: str) -> str:
    """The answers to other questions in one world, in Markdown; p is not corrected."""
    found = (answer(claim, runs[runs["world"] == world], world) for claim in claims)
    return markdown(["question", *CELLS, "p"], [[a.claim.text, *cells(a), f"{a.p:.3f}"] for a in found if a])


CELLS = ["compared", "seeds", "effect [95 % interval]"]


def cells(a: Answer) -> list[str]:
    """A question about three methods names the first: its text has the other two."""
    compared = " - ".join(a.claim.labels) if len(a.claim.labels) < 3 else a.claim.labels[0]
    effect = f"{signed_interval((a.mean, a.half), digits=1 if a.claim.unit == 'tokens' else 3)} {a.claim.unit}"
    return [compared, str(a.seeds), effect]


def worlds_of(runs: pd.DataFrame) -> list[str]:
    return [world for world in WORLDS if world in set(runs["world"])]


COLUMNS = {  # of a run -> heading, digits
    "accuracy": ("accuracy", 3), "level 4": ("level 4", 3), "level 5": ("level 5", 3), "ood mean": ("ood", 3),
    "greedy": ("greedy", 3), "reward mean": ("reward, mean", 3), "response_length last": ("length", 1),
    "entropy last": ("entropy", 3), "grad_norm max": ("largest norm", 2), "kept_fraction mean": ("kept", 2),
    LEARNED: ("learned from", 2), "tokens": ("generated tokens", 0),
}  # fmt: skip


def means_table(runs: pd.DataFrame) -> str:
    """A world's methods in Markdown, each the mean over its seeds; and how far it is ahead of dr_grpo, seed by seed.

    accuracy and ood are of sampled responses, accuracy on the levels that RL trains on, and by level where they are
    several. Length and entropy are those of the last ten steps. An update learns from the rows, anchors included, that
    have A != 0 and are kept.
    """
    several = runs["level 4"].notna().any()
    columns = {name: head for name, head in COLUMNS.items() if several or "level" not in name}
    baseline, lines = by_seed(runs, BASELINE), []
    for label in runs["label"].unique():
        mine = by_seed(runs, label)
        means = [f"{mine[name].mean():.{digits}f}".replace("nan", "") for name, (_, digits) in columns.items()]
        gap = (mine["accuracy"] - baseline["accuracy"]).dropna()
        ahead = signed_interval(t_interval(gap)) if len(gap) > 1 and label != BASELINE else ""
        lines.append([label, str(len(mine)), *means, ahead])
    heads = [head for head, _ in columns.values()]
    return markdown(["method", "seeds", *heads, f"accuracy - {BASELINE}"], lines)


def read(folder: Path) -> pd.DataFrame:
    """The runs that claims are about, with C7's figure from conflict_seeds.csv, if the folder has that too."""
    runs = read_rows(folder / "runs.csv")
    if runs.empty:
        fail(f"{folder} holds no run yet; python -m analysis.experiments.grid makes them")
    runs, c7 = runs[runs["stage"].isin(("pilot", "main", "controls"))].copy(), folder / "conflict_seeds.csv"
    found = c7_by_seed(read_points(SeedPoint, c7), BASELINE) if c7.exists() else {}
    signal = 1 - runs["no_signal_groups mean"] / 16  # of 16 prompts; with S as the reward a bound
    runs[LEARNED] = signal * runs["kept_fraction mean"]
    runs[C7] = runs["seed"].map(found).where((runs["label"] == BASELINE) & (runs["world"] == "guess")).astype(float)
    return runs


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="python -m analysis.experiments.claims", description=__doc__)
    parser.add_argument("--results", default=OUT, metavar="DIR", help="of analysis.experiments.grid")
    folder = Path(parser.parse_args(argv).results)
    runs, parts = read(folder), ["# Tables of the experiments, made by `python -m analysis.experiments.claims`\n"]
    for world in worlds_of(runs):
        here = runs[runs["world"] == world]
        parts += [f"## World {world}\n\n{means_table(here)}\n", f"{questions_table(FURTHER, here, world)}\n"]
    tables = "\n".join([*parts, f"## The claims\n\n{claims_table(runs)}\n"])
    print(tables, end="")
    (folder / "tables.md").write_text(tables, encoding="utf-8")


if __name__ == "__main__":
    main()
