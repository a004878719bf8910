"""A real model learns: SFT on demonstrations, then RL from there, each evaluated; what `make laptop` runs.

    before    the model as it is
    sft       a short SFT on demonstrations, without which a small model is hardly ever right
    METHODS   each from where the seed's SFT has ended
    sft more  the control of a sceptic: SFT that goes on, for as many passes of a row through the model as RL takes

After each: greedy accuracy and avg@4 at temperature 1 on problems that no training has seen. Writes into --out as it
goes, and goes on where it was stopped: data/, a run folder for each of the above, report.md (tables with intervals, ten
responses before and after), curves.png.

    python -m analysis.real_run --plan laptop --model HuggingFaceTB/SmolLM2-135M-Instruct --out runs/laptop
    python -m analysis.real_run --plan gpu --model DIR --train gsm8k_train.parquet --test gsm8k_test.parquet --out DIR
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.run_folders import read_run
from analysis.stats import markdown, signed_interval, t_interval
from harness.checkpoint import find_checkpoint
from harness.console import Parser, fail, one_line, visible
from maths import puzzles

METHODS = ("dr_grpo", "dagrpo")
TEST = "unseen"  # the name of the benchmark
HOW = {"greedy": "0", "sampled": "4"}  # --k of eval.py
SFT_PASSES, RL_PASSES = 3, 2.5  # of a row: 3 to learn from it; 1 to sample it, and half are learned from


@dataclass(frozen=True)
class Plan:
    """The settings of every run. Batches are rows: of demonstrations in SFT, B x G of responses in RL."""

    about: str
    sft_steps: int
    sft_batch: int
    sft_lr: str
    steps: int  # of a method
    prompts: int  # B
    group_size: int  # G
    tokens: int  # T
    lr: str
    seeds: int
    problems: int  # of the evaluation
    puzzle: tuple[str, list[int], int] | None = None  # kind, sizes, largest number; None: --train and --test
    instruction: str = ""
    more: tuple[str, ...] = ()  # further flags of train.py

    @property
    def more_sft(self) -> int:
        """Steps of SFT with the cost of a method."""
        return round(self.steps * self.prompts * self.group_size * RL_PASSES / (self.sft_batch * SFT_PASSES))


PLANS = {
    "laptop": Plan(
        "chains of sums in English, sized for two CPU cores", 24, 16, "1e-5", 60, 4, 8, 48, "1e-5", 2, 200,
        puzzle=("chains", [3, 4, 5], 20), more=("--updates-per-batch", "1"),
    ),
    "gpu": Plan(
        "GSM8K, sized for one H100", 60, 64, "2e-5", 60, 16, 8, 256, "5e-6", 1, 500,
        instruction="Give the final answer after ####.", more=("--micro-batch-tokens", "65536"),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Stage:
    """A run and its evaluation. `begin` is the stage that it starts from; "before" has no run of its own."""

    name: str
    seed: int
    begin: str
    method: str
    steps: int

    @property
    def folder(self) -> str:
        return f"{self.name.replace(' ', '_')}_{self.seed}"

    def work(self, plan: Plan) -> int:
        """Passes of a row through the model: the unit of the time that is left."""
        sft, rl = plan.sft_batch * SFT_PASSES, plan.prompts * plan.group_size * RL_PASSES
        return round(self.steps * (sft if self.method == "sft" else rl) + plan.problems * 5)


def stages(plan: Plan) -> list[Stage]:
    """Before is of one seed: there is nothing random in it but the sampling of its evaluation."""
    found = [Stage("before", 0, "", "", 0)]
    for seed in range(plan.seeds):
        found.append(Stage("sft", seed, "before", "sft", plan.sft_steps))
        found += [Stage(method, seed, "sft", method, plan.steps) for method in METHODS]
        found.append(Stage("sft more", seed, "sft", "sft", plan.more_sft))
    return found


# ---------------------------------------------------------------------------------------- running


def make_data(plan: Plan, out: Path, train: str | None, test: str | None) -> Path:
    """The file to train on; the test's is data/unseen.* next to it."""
    data = out / "data"
    data.mkdir(parents=True, exist_ok=True)
    if not plan.puzzle:
        if not train or not test:
            fail("this plan needs --train FILE and --test FILE: JSONL, JSON or parquet, for example GSM8K's two")
        with one_line("--train and --test must be files that can be read", OSError):
            shutil.copyfile(test, data / f"{TEST}{Path(test).suffix}")
            Path(train).open("rb").close()
        return Path(train)
    kind, sizes, largest = plan.puzzle
    rows_needed = plan.sft_batch * (plan.sft_steps + plan.more_sft)  # no demonstration twice
    for name, split, count in (("train", "train", max(rows_needed, 4000)), (TEST, "test", plan.problems)):
        with one_line("--problems, --steps", ValueError):  # there are not so many
            rows = puzzles.rows(kind, sizes, count, split, largest=largest)
        (data / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return data / "train.jsonl"


def call(*command: str) -> None:
    """A process of its own, whose progress is seen; ends the program where it fails."""
    code = subprocess.run([sys.executable, *command]).returncode
    if code:
        killed = " (killed: is there too little memory?)" if code == -9 else ""
        what = f"{' '.join(command[:4])} ... ended with status {code}{killed}"
        fail(f"{what}, see above; the same command goes on from there")


def run(plan: Plan, stage: Stage, model: str, train: Path, out: Path) -> None:
    """Trains and evaluates, unless that is done."""
    folder = out / stage.folder
    if stage.steps and not finished(folder, stage.steps):
        begin = ["--model", model] if stage.begin == "before" else ["--init-from", str(out / f"sft_{stage.seed}")]
        batch = plan.sft_batch if stage.method == "sft" else plan.prompts
        # other demonstrations, in another order, than those of the first SFT
        seed = stage.seed + 1000 * (stage.name == "sft more")
        settings = {
            "--method": stage.method, "--steps": stage.steps, "--seed": seed, "--out": folder, "--data": train,
            "--instruction": plan.instruction, "--batch-prompts": batch, "--group-size": plan.group_size,
            "--max-new-tokens": plan.tokens, "--lr": plan.sft_lr if stage.method == "sft" else plan.lr,
            "--show-every": 0, "--save-every": 10,
        }  # fmt: skip
        call("train.py", *begin, *(str(word) for pair in settings.items() for word in pair), *plan.more, "--resume")
    policy = str(folder) if stage.steps else model
    asked = ["--benchmarks", TEST, "--benchmark-dir", str(out / "data"), "--limit", str(plan.problems)]
    asked += ["--instruction", plan.instruction, "--max-new-tokens", str(plan.tokens), "--temperature", "1"]
    for how, k in HOW.items():
        result = folder / f"{how}.json"
        if not result.exists():
            call("eval.py", "--model", policy, *asked, "--k", k, "--batch", "64", "--out", str(result))


def finished(folder: Path, steps: int) -> bool:
    checkpoint = find_checkpoint(folder) if folder.exists() else None
    return checkpoint is not None and int((checkpoint / "step").read_text()) >= steps


# ---------------------------------------------------------------------------------------- what came out


def right(out: Path, stage: Stage, how: str) -> np.ndarray:
    """The share of right responses to each problem, (n,), in the order of the problems."""
    lines = (out / stage.folder / f"{how}.{TEST}.jsonl").read_text(encoding="utf-8").splitlines()[1:]
    return pd.DataFrame(map(json.loads, lines)).groupby("index")["right"].mean().to_numpy()


def report(plan: Plan, model: str, out: Path, done: list[Stage]) -> str:
    """Markdown: accuracy after each stage, differences, what training looked like, ten responses before and after."""
    lines = []
    for stage in done:
        results = [json.loads((out / stage.folder / f"{how}.json").read_text(encoding="utf-8")) for how in HOW]
        found = [result["benchmarks"][TEST]["sampled"] for result in results]
        shares = [f"{part['accuracy']:.3f} [{part['low']:.2f}, {part['high']:.2f}]" for part in found]
        lines.append([stage.name, str(stage.seed), *shares, *trained(out, stage)])
    heads = ["", "seed", "greedy [95 %]", "avg@4 [95 %]", "reward, last 10", "tokens, last 10", "no signal", "s a step"]
    parts = [f"# {model}: {plan.about}", markdown(heads, lines)]
    parts.append(
        f"{plan.problems} unseen problems; intervals over problems. `no signal`: the share of groups in which every "
        "advantage is 0, over the run. Differences are paired by problem, and are of the mean over seeds:"
    )
    names = dict.fromkeys(stage.name for stage in done)
    pairs = [("sft", "before"), *((m, "sft") for m in METHODS), *((m, "sft more") for m in METHODS), METHODS[::-1]]
    parts.append(
        markdown(
            ["", "greedy", "avg@4"],
            [[f"{a} - {b}", *(difference(out, done, a, b, how) for how in HOW)]
             for a, b in pairs if {a, b} <= names.keys()],
        )
    )  # fmt: skip
    return "\n\n".join([*parts, responses(out, done)]) + "\n"


def difference(out: Path, done: list[Stage], a: str, b: str, how: str) -> str:
    means = [np.mean([right(out, stage, how) for stage in done if stage.name == name], axis=0) for name in (a, b)]
    return signed_interval(t_interval(means[0] - means[1]))


def trained(out: Path, stage: Stage) -> list[str]:
    """Four cells about a run."""
    if not stage.steps:
        return ["", "", "", ""]
    metrics = read_run(out / stage.folder).metrics
    seconds = f"{metrics[['rollout_seconds', 'train_seconds']].sum(axis=1).median():.1f}"
    if stage.method == "sft":
        return ["", "", "", seconds]
    last, groups = metrics.tail(10), json.loads((out / stage.folder / "config.json").read_text())["batch_prompts"]
    silent = f"{metrics['no_signal_groups'].mean() / groups:.0%}"
    return [f"{last['reward'].mean():.2f}", f"{last['response_length'].mean():.0f}", silent, seconds]


def responses(out: Path, done: list[Stage], count: int = 10) -> str:
    """The greedy responses to the first problems, before and after the last method of seed 0."""
    after = [stage for stage in done if stage.seed == 0 and stage.name in METHODS][-1:]
    asked = []
    for stage in [done[0], *after]:
        lines = (out / stage.folder / f"greedy.{TEST}.jsonl").read_text(encoding="utf-8").splitlines()[1:]
        asked.append(sorted(map(json.loads, lines), key=lambda line: line["index"])[:count])
    parts = ["## Ten responses, before and after"]
    for same in zip(*asked, strict=True):
        parts.append(f"**{visible(same[0]['question'])}** ({visible(same[0]['answer'])})")
        for stage, line in zip([done[0], *after], same, strict=True):
            mark = "right" if line["right"] else "wrong"
            parts.append(f"{stage.name}, {mark}:\n\n```\n{visible(line['response'].strip()[:600])}\n```")
    return "\n\n".join(parts)


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="python -m analysis.real_run", description=__doc__)
    about = "; ".join(f"{name}: {plan.about}" for name, plan in PLANS.items())
    parser.add_argument("--plan", default="laptop", choices=list(PLANS), help=about)
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct", metavar="ID_OR_DIR")
    parser.add_argument("--out", default="", metavar="DIR", help="where everything goes [runs/PLAN]")
    parser.add_argument("--train", metavar="FILE", help="of the plan gpu: problems with solutions")
    parser.add_argument("--test", metavar="FILE", help="of the plan gpu: problems to evaluate on")
    for name in ("seeds", "steps", "sft_steps", "sft_batch", "prompts", "group_size", "tokens", "problems"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, metavar="N", help="instead of the plan's")
    args = parser.parse_args(argv)
    given = {name: value for name, value in vars(args).items() if isinstance(value, int)}
    if any(value < 1 for value in given.values()):
        fail("numbers must be at least 1")
    plan, out = replace(PLANS[args.plan], **given), Path(args.out or f"runs/{args.plan}")
    train = make_data(plan, out, args.train, args.test)
    todo, begin, done = stages(plan), time.perf_counter(), []
    whole = sum(stage.work(plan) for stage in todo)
    for number, stage in enumerate(todo, 1):
        before = sum(earlier.work(plan) for earlier in done)
        spent = time.perf_counter() - begin
        left = f", about {spent * (whole - before) / before / 60:.0f} min left" if before and spent > 60 else ""
        print(f"[{number} of {len(todo)}] {stage.name}, seed {stage.seed}{left}", file=sys.stderr)
        run(plan, stage, args.model, train, out)
        done.append(stage)
        (out / "report.md").write_text(report(plan, args.model, out, done), encoding="utf-8")
    runs = [str(out / stage.folder) for stage in todo if stage.name in METHODS]
    call("-m", "analysis.curves", *runs, "--out", str(out))
    print(f"what came out: {out}/report.md and curves.png. Next: python -m analysis.viewer {runs[-1]}")


if __name__ == "__main__":
    main()
