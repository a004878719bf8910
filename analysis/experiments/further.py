"""What the other stages of grid.py were run for: docs/beyond.md, and what others have found about mixed methods.

Each stage has its questions, fixed with it in advance. An answer is a difference paired by seed, as in claims.py, with
its 95 % interval and uncorrected p. Whether A keeps a share s of what C gains over the baseline B is asked by
(A - B) - s (C - B): above 0, it keeps more.

    masks      is another mask ahead of Eq. 8-9?
    own        does a score without a judge keep 80 % of what the mask with the exact score gains?
    anchors    do the policy's own successes keep half of what demonstrations gain?
    flawed     is the mask a safety net against bad demonstrations?
    audit      are mixed methods ahead of SFT only where SFT is broken (2604.23747)?
    ratio      can the ratio, the baseline, or the negatives be left out (2603.18756)? Fixed in advance was accuracy;
               the other measures were added when the first 36 runs were there
    repeat     is SFT, then RL, ahead of DaGRPO within its budget? Should the advantages that a mask keeps add up to 0?

Draws a figure of each stage, as masks.png: accuracy minus the baseline's, paired by seed. That of ratio shows the
length of responses instead, because accuracy does not tell a policy that guesses from one that derives.

    python -m analysis.experiments.further    reads and writes results/worlds
"""

from __future__ import annotations

import textwrap
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from analysis.curves import places, style
from analysis.experiments.claims import BOTH, Claim, Effect, asked, questions_table
from analysis.experiments.controls import FLAWS
from analysis.experiments.grid import HALF_SFT, HALVES, OF_DR_GRPO, OUT, SAME_RATE, UPDATES, WITHOUT_STD, again
from analysis.experiments.outcomes import read_rows
from analysis.experiments.sft_bugs import BUGS
from analysis.experiments.worlds import ahead_message, draw_gaps
from harness.console import Parser, fail

OOD = ("ood mean", "accuracy, OOD")
LENGTH = ("response_length last", "tokens")
TWICE = ("dr_grpo, two passes", "dagrpo, two passes")
# stage -> its baseline, and what else is drawn beside its methods
REFERENCES = {"masks": (SAME_RATE, "dagrpo_on", "random mask"), "own": ("dr_grpo", "dagrpo_on"),
              "anchors": TWICE[:1], "flawed": ("dr_grpo", "dagrpo"),
              "audit": ("sft", "dagrpo", "luffy", BOTH), "ratio": ("grpo, updates 1",),
              "repeat": (again("dagrpo"),)}  # fmt: skip


def more_than(share: float, column: str) -> Effect:
    def effect(one: pd.DataFrame, baseline: pd.DataFrame, whole: pd.DataFrame) -> pd.Series:
        gain, whole_gain = (method[column] - baseline[column] for method in (one, whole))
        return gain - share * whole_gain

    return effect


def keeps(share: float, one: str, baseline: str, whole: str, column: str = "accuracy", unit: str = "accuracy") -> Claim:
    text = f"{100 * share:.0f} % of what {whole} gains over {baseline}?"
    return Claim("", text, (one, baseline, whole), more_than(share, column), 0.02, unit)


def questions() -> dict[str, list[Claim]]:
    found: dict[str, list[Claim]] = {stage: [] for stage in REFERENCES}
    for kind in ("soft", "pairs"):
        for other in ("dagrpo_on", "random mask", SAME_RATE):
            found["masks"] += [asked("ahead?", kind, other), asked("ahead, OOD?", kind, other, *OOD)]
    for kind in ("sure", "fluent", "steps"):
        label = f"own score {kind}"
        for measure in ((), OOD):
            found["own"].append(keeps(0.8, label, "dr_grpo", "dagrpo_on", *measure))
            found["own"] += [asked("ahead?", label, other, *measure) for other in ("dr_grpo", "dagrpo_on")]
    found["anchors"].append(asked("demonstrations help", TWICE[1], TWICE[0]))
    for label in ("own successes", "own successes, hard groups", "own successes, true ratio"):
        found["anchors"] += [keeps(0.5, label, *TWICE), asked("any help?", label, TWICE[0])]
    for flaw in FLAWS:
        for text, other in (("does the flaw hurt?", "dagrpo"), ("any help?", "dr_grpo")):
            found["flawed"] += [asked(text, f"flawed {flaw}", other), asked(text, f"flawed {flaw}", other, *OOD)]
    for kind in BUGS:
        label = f"sft, {kind}"
        found["audit"] += [asked("does the bug hurt?", label, "sft"), asked("ahead of broken SFT?", "dagrpo", label)]
    for other in ("hpt", "dagrpo", "luffy", BOTH):
        found["audit"].append(asked("ahead of SFT?", other, "sft"))
    found["audit"] += [asked("SFT first?", BOTH, "hpt"), asked("likewise, OOD", BOTH, "hpt", *OOD)]
    for n in UPDATES:
        for label in ("rgra", "reinforce", "positives"):
            for measure in ((), OOD, LENGTH):
                found["ratio"].append(asked(f"{n} updates", f"{label}, updates {n}", f"grpo, updates {n}", *measure))
    for label in (OF_DR_GRPO, WITHOUT_STD):
        found["ratio"].append(asked("without a division", label, "positives, updates 1", *LENGTH))
    for measure in ((), OOD, LENGTH, ("entropy last", "nats")):
        found["repeat"].append(asked("should A add up to 0?", "centred", again("dagrpo_on"), *measure))
    pairs = [(HALVES, other) for other in (again("dagrpo"), again("sft"), HALF_SFT)]
    for one, other in (*pairs, (again("dagrpo"), again("sft"))):
        for measure in ((), OOD, ("greedy", "accuracy, greedy")):
            found["repeat"].append(asked("half of each, or both at once?", one, other, *measure))
    return found


def draw(runs: pd.DataFrame, stage: str) -> Figure:
    """A row per world: how far each label is ahead of the stage's baseline."""
    baseline, *references = REFERENCES[stage]
    made = runs[runs["stage"] == stage]
    runs, worlds = runs[runs["label"].isin([*REFERENCES[stage], *made["label"]])], list(dict.fromkeys(made["world"]))
    figure = Figure(figsize=(10, 0.9 + 2.9 * len(worlds)), layout="constrained")
    for row, world in zip(figure.subplots(len(worlds), 2, squeeze=False, sharey="row"), worlds, strict=True):
        draw_gaps(row, runs, world, dict.fromkeys([*references, *made["label"]]), baseline, world)
    figure.suptitle(textwrap.fill(ahead_message(runs, worlds, baseline), 100), fontsize=11)
    return figure


def draw_ratio(curves: pd.DataFrame) -> Figure:
    """Response length against the step: a panel for each number of updates, thin lines for the seeds."""
    curves = curves[curves["stage"] == "ratio"]
    curves = curves.assign(updates=curves["label"].str[-1], label=curves["label"].str.partition(", updates")[0])
    figure, look = Figure(figsize=(11, 3.8), layout="constrained"), places(dict.fromkeys(curves["label"]))
    for ax, updates in zip(figure.subplots(1, len(UPDATES), sharey=True), UPDATES, strict=True):
        for label, rows in curves[curves["updates"] == updates].groupby("label"):
            seeds = rows.pivot(index="step", columns="seed", values="response_length")
            line = style(look[label], len(seeds))
            ax.plot(seeds.index - 4.5, seeds, color=line["color"], linewidth=0.6, alpha=0.5)
            ax.plot(seeds.index - 4.5, seeds.mean(axis=1), label=label, **line)
        ax.set(xlabel="step", ylabel="response length, tokens", title=f"updates a batch: {updates}")
        ax.label_outer()
        ax.grid(alpha=0.3)
    figure.axes[0].set_ylim(bottom=0)  # of all: they share it
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=8, handlelength=3.5)
    figure.suptitle(length_message(curves), fontsize=11)
    return figure


def length_message(curves: pd.DataFrame) -> str:
    last = curves[(curves["step"] == curves["step"].max()) & (curves["updates"] == "1")]
    ends = last.groupby("label")["response_length"].mean()
    short = [f"{label} {tokens:.1f}" for label, tokens in ends.items() if tokens < ends["grpo"] / 2]
    return f"Under half of grpo's {ends['grpo']:.1f} tokens at the end, with 1 update: {', '.join(short) or 'nobody'}"


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="python -m analysis.experiments.further", description=__doc__)
    parser.add_argument("--results", default=OUT, metavar="DIR", help="of analysis.experiments.grid")
    folder = Path(parser.parse_args(argv).results)
    runs = read_rows(folder / "runs.csv")
    stages = [stage for stage in REFERENCES if stage in set(runs["stage"])]
    if not stages:
        fail(f"{folder} has no run of {', '.join(REFERENCES)} yet; python -m analysis.experiments.grid makes them")
    for stage in stages:
        for world in dict.fromkeys(runs.loc[runs["stage"] == stage, "world"]):
            print(f"{stage}, {world}\n\n{questions_table(questions()[stage], runs, world)}\n")
        figure = draw_ratio(read_rows(folder / "curves.csv")) if stage == "ratio" else draw(runs, stage)
        figure.savefig(folder / f"{stage}.png", dpi=100)
    print(f"written: {', '.join(str(folder / f'{stage}.png') for stage in stages)}")


if __name__ == "__main__":
    main()
