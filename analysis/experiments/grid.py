"""The experiments behind the claims: worlds x methods x seeds, a run of train.py and one of eval.py each.

What is asked, fixed before the first run of a world:

    pilot       in `guess`, dr_grpo, dagrpo_on and a random mask of the same size, all at 3e-5, the first 4 seeds (6
                were planned): a first look before the rest, at the one rate that the trial found to learn
    sweep       each method at three learning rates, seed 100; the best is its own from then on, by the accuracy of 4
                sampled responses to each of 500 validation problems (in `plain` and `unseen` 250, of five levels)
    main        each method at its own rate, 10 seeds; `sft then dr_grpo` begins where the same seed's sft ended
    controls    a random mask of the same size, and dr_grpo with S as its reward: 10 seeds, at the rates of dagrpo_on
                and dr_grpo. Where the sweep gave these two different rates, also dr_grpo at that of dagrpo_on. This was
                added when half of main in `unseen` was there and showed how much a rate alone changes; in `guess` the
                first 4 seeds are the pilot's
    guessable   in `guess` with the answer modulo 2, 5 and 10, dr_grpo and dagrpo_on, both at the rate of dagrpo_on,
                3 seeds: when does masking pay? Modulo 7 was added when half of these were there: 2, 5 and 10 divide
                10, so that a chain with the right last digits is right whatever its tens are, and dr_grpo found that
    noise       in `guess` with Gaussian noise on S of 1, 2, 3 and 4, dagrpo_on, 3 seeds: how good must a judge be?
    masks       in `guess`, dagrpo_soft and `pairs`, another mask, at dagrpo_on's rate, 10 seeds: docs/beyond.md. pairs
                lost and has left the code; its rows stay
    own         in `guess`, dagrpo_on with scores that need no judge, 10 seeds: docs/beyond.md. None kept the gain, so
                they were not run in `plain`, as had been planned, and their code has left
    anchors     in `unseen`, two passes over the prompts (250 steps): dr_grpo, dagrpo, and dagrpo whose anchors are the
                policy's own successes in place of demonstrations, 5 seeds: docs/beyond.md. The successes did not keep
                half of the gain, and the stage's code has left
    flawed      in `guess`, dagrpo with anchors whose steps, or steps and answer, are wrong, 5 seeds: is the mask a
                safety net against bad demonstrations?
    audit       in `guess`, sft with each of two bugs at sft's rate, and hpt at dagrpo's, 10 seeds: are mixed methods
                ahead of SFT only where it is broken (2604.23747)?
    ratio       in `guess`, grpo, rgra (no ratio, no clip), reinforce (no baseline, no division by standard deviation or
                length) and grpo's positives alone with 1, 2 and 4 updates a batch, at the rate of grpo, 3 seeds: which
                of them can be left out (2603.18756)? When grpo's positives had ended as bare guesses, two more were
                added with 1 update, each before its first run: positives of dr_grpo, which lacks both divisions, and
                of grpo without the first. Is it the missing negatives, or one of the divisions?
    repeat      added last, in `guess`, 10 seeds: 75 steps of sft, then 75 of dr_grpo, which are as many updates as
                DaGRPO has, and fewer generated tokens (2604.23747); and dagrpo_on with A centred again over the rows
                that the mask keeps (2604.13088: should pushes add up to 0?). The starts of seeds 1 to 9 were trained
                again for it, on another machine, and differ from those above. So dagrpo_on, dagrpo and sft were run
                again, too

Rates and length follow a trial in `guess` (dr_grpo, seed 100, 400 problems): at 1e-4 and 3e-4 the reward stayed at a
guesser's third, while at 3e-5 it still rose after 200 steps. So 150 steps are a budget, not an end.
A first sweep, before any run of main, was thrown away. RL had 400 problems of level 5 then: the reward rose to 0.5 and
more, the accuracy on other problems hardly, because guesses were learned by heart. And it was judged greedily on 50
problems, then on 500, where neighbouring rates changed places by chance; sampled responses have half of that noise.

A seed decides where a run starts, the order of prompts, and the sampling. Each seed has a warm start of its own, from
other initial weights, and at the same seed all methods see the same prompts at the same step. Intervals are therefore
of paired differences over starts as well as over sampling.

A run whose row is in --out is done, on whatever machine; what was stopped goes on. So the same command can be given
again and again. Writes into --out: sweep.csv, runs.csv (a row a run) and curves.csv (a row a run and ten steps).

    python -m analysis.experiments.grid                                  everything, in this order
    python -m analysis.experiments.grid --worlds guess --stages main     a part; the sweep has to be done
"""

from __future__ import annotations

import json
import os
import sys
from functools import partial
from pathlib import Path

import tasks
from analysis.experiments.controls import FLAWS
from analysis.experiments.outcomes import BIN, collect, finished, missing, read_rows, start_result
from analysis.experiments.processes import Job, call, side_by_side
from analysis.experiments.sft_bugs import BUGS
from harness.console import Parser, fail
from harness.warm_start import of_world, warm_start_folder

WORLDS = ("guess", "plain", "unseen")
METHODS = ("dr_grpo", "dagrpo_on", "dagrpo", "grpo", "luffy", "sft")
RATES, SWEEP_SEED, SEEDS, FEWER_SEEDS = ("1e-5", "3e-5", "1e-4"), 100, 10, 3
STEPS, K = 150, "4"
PILOT_RATE = "3e-5"
SAME_RATE = "dr_grpo at 3e-5"  # the control at the rate of dagrpo_on, which the sweep gave 3e-5 in every world
PILOT = (("dr_grpo", "dr_grpo", ""), ("dagrpo_on", "dagrpo_on", ""), ("random mask", "dagrpo_on", "random_mask"))
LAST_DIGIT = (2, 5, 10)  # moduli at which the last digit of a total decides
MODULI = {modulus: f"guess{modulus}" for modulus in (*LAST_DIGIT, 7)}  # worlds like `guess`
SIGMAS = ("1", "2", "3", "4")
UPDATES = ("1", "2", "4")  # a batch
OF_DR_GRPO, WITHOUT_STD = "positives of dr_grpo, updates 1", "positives without std, updates 1"
HALF, HALF_SFT, HALVES = ("--steps", "75"), "sft, 75 steps", "sft then dr_grpo, 75 + 75"
OUT = "results/worlds"
SETTINGS = ["--steps", str(STEPS), "--save-every", "50", "--keep", "3", "--show-every", "0"]
SETTINGS += ["--log-rollouts-every", str(BIN)]
START = "import sys, json, eval; from harness.warm_start import of_world, warm_start; "
START += "world, seed, asked = json.loads(sys.argv[1]); "
START += "eval.main(['--world', world, '--model', warm_start(of_world(world, seed)), *asked])"
PROGRAM = "import sys, json, train, eval; from analysis.experiments import controls; "
PROGRAM += "control, a, b = json.loads(sys.argv[1]); "
PROGRAM += "controls.run(control, a) if control else train.main(a); eval.main(b)"


def grid(world: str, rates: dict[str, str]) -> list[Job]:
    """All jobs of a world, stage by stage. `rates`: the learning rate of each method, once its sweep is done."""
    jobs = [
        Job(world, "sweep", f"{method} {rate}", method, SWEEP_SEED, ("--lr", rate))
        for method in METHODS
        for rate in RATES
    ]

    def add(stage: str, label: str, method: str, seeds: int = SEEDS, at: str = world, rate_of: str = "",
            flags: tuple[str, ...] = (), **more: str) -> None:  # fmt: skip
        flags = ("--lr", rates.get(rate_of or method, "?"), *flags)
        jobs.extend(Job(at, stage, label, method, seed, flags, **more) for seed in range(seeds))

    if world == "guess":
        for label, method, control in PILOT:
            flags = ("--lr", PILOT_RATE)
            jobs += [Job(world, "pilot", f"{label} at 3e-5", method, n, flags, control=control) for n in range(4)]
    for method in METHODS:
        add("main", method, method)
    add("main", "sft then dr_grpo", "dr_grpo", after="main/sft")
    add("controls", "random mask", "dagrpo_on", control="random_mask")
    add("controls", "dr_grpo, S as reward", "dr_grpo", control="score_as_reward")
    of_mask = rates.get("dagrpo_on")
    if of_mask and rates.get("dr_grpo", of_mask) != of_mask:
        add("controls", f"dr_grpo at {of_mask}", "dr_grpo", rate_of="dagrpo_on")
    if world == "guess":
        for modulo, at in MODULI.items():
            for method in ("dr_grpo", "dagrpo_on"):
                add("guessable", f"{method}, modulo {modulo}", method, FEWER_SEEDS, at, rate_of="dagrpo_on")
        for sigma in SIGMAS:
            add("noise", f"dagrpo_on, noise {sigma}", "dagrpo_on", FEWER_SEEDS, control=f"score_noise={sigma}")
        add("masks", "soft", "dagrpo_soft", rate_of="dagrpo_on")
        for flaw in FLAWS:
            add("flawed", f"flawed {flaw}", "dagrpo", SEEDS // 2, control=f"flawed_{flaw}")
        for kind in BUGS:
            add("audit", f"sft, {kind}", "sft", control=f"sft_bug={kind}")
        add("audit", "hpt", "hpt", rate_of="dagrpo")
        for updates in UPDATES:
            flags = ("--updates-per-batch", updates)
            for method in ("grpo", "rgra", "reinforce"):
                add("ratio", f"{method}, updates {updates}", method, FEWER_SEEDS, flags=flags, rate_of="grpo")
            add("ratio", f"positives, updates {updates}", "grpo", FEWER_SEEDS, flags=flags, control="positives")
        for label, method, more in ((OF_DR_GRPO, "dr_grpo", ()), (WITHOUT_STD, "grpo", ("--scale", "none"))):
            flags = ("--updates-per-batch", "1", *more)
            add("ratio", label, method, FEWER_SEEDS, flags=flags, rate_of="grpo", control="positives")
        for method in ("dagrpo_on", "dagrpo", "sft"):
            add("repeat", again(method), method)
        add("repeat", "centred", "dagrpo_on", control="centred")
        add("repeat", HALF_SFT, "sft", flags=HALF)
        add("repeat", HALVES, "dr_grpo", flags=HALF, after=f"repeat/{HALF_SFT}")
    return jobs


def again(method: str) -> str:
    return f"{method} again"


def best_rates(world: str, out: Path) -> dict[str, str]:
    """For each method whose sweep is whole, the rate with the best accuracy on the validation problems."""
    swept = read_rows(out / "sweep.csv").query("world == @world")
    whole = swept.groupby("method").filter(lambda rows: len(rows) == len(RATES))
    best = whole.loc[whole.groupby("method")["validation"].idxmax()] if len(whole) else whole
    return dict(zip(best["method"], best["lr"], strict=True))


# ---------------------------------------------------------------------------------------- running


def start_of(world: str, seed: int) -> Path:
    """The folder of a seed's warm start, whether it is there yet or not."""
    return warm_start_folder(of_world(world, seed))


def command(job: Job, root: Path) -> list[str]:
    """A process of its own for train.py and eval.py, in which torch is imported once."""
    out, world = str(root / job.name), ["--world", job.world]
    begin = root / job.world / job.after / f"seed{job.seed}" if job.after else start_of(job.world, job.seed)
    train = ["--method", job.method, *world, "--seed", str(job.seed), "--out", out, "--resume", *SETTINGS]
    asked = ["--benchmarks", "validation" if job.is_sweep else "test,ood", *problems_of(job.world, job.is_sweep)]
    both = [job.control, [*train, *job.flags, "--init-from", str(begin)], [*world, "--model", out, "--k", K, *asked]]
    return [sys.executable, "-c", PROGRAM, json.dumps(both)]


def problems_of(world: str, validation: bool = False) -> list[str]:
    """Flags of eval.py: the levels that RL trains on, 500 problems in all; 250 to validate on levels 1 to 5."""
    trained = tasks.WORLDS[world].trained
    most = 50 if validation and len(trained) > 1 else 500  # level 1 has no 100 questions in this split
    return ["--levels", ",".join(trained), "--per-level", str(min(most, 500 // len(trained)))]


def make_start(world: str, seed: int, root: Path) -> str | None:
    folder = start_result(world, seed, root)
    asked = ["--k", K, "--out", str(folder / "eval.json"), *problems_of(world)]
    return call([sys.executable, "-c", START, json.dumps([world, seed, asked])], folder)


def run(job: Job, root: Path) -> str | None:
    return call(command(job, root), root / job.name)


def run_stage(jobs: list[Job], root: Path, workers: int) -> None:
    """The jobs of one stage that are not done yet, after the warm starts that they need."""
    waiting = [job for job in jobs if not finished(root / job.name)]
    waiting.sort(key=lambda job: (job.after is not None, job.seed))  # whole sets of methods first
    starts = sorted({(job.world, job.seed) for job in waiting})
    starts = [start for start in starts if not finished(start_result(*start, root))]
    side_by_side([partial(make_start, *start, root) for start in starts], "warm starts", workers)
    for later in (False, True):  # a run that begins where another one ends comes after it
        works = [partial(run, job, root) for job in waiting if (job.after is not None) == later]
        side_by_side(works, f"{jobs[0].world}, {jobs[0].stage}", workers)


STAGES = ("pilot", "sweep", "main", "controls", "guessable", "noise", "masks", "flawed", "audit", "ratio", "repeat")


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="python -m analysis.experiments.grid", description=__doc__)
    parser.add_argument("--root", default="runs/worlds", metavar="DIR", help="where the runs go")
    parser.add_argument("--out", default=OUT, metavar="DIR", help="where the tables are")
    parser.add_argument("--worlds", default=",".join(WORLDS), metavar="A,B", help=f"of {', '.join(WORLDS)}")
    parser.add_argument("--stages", default=",".join(STAGES), metavar="A,B", help=f"of {', '.join(STAGES)}")
    parser.add_argument("--seeds", type=int, default=SEEDS, metavar="N", help="only the first N of each")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), metavar="N", help="runs at once, a core each")
    args = parser.parse_args(argv)
    root, out = Path(args.root).resolve(), Path(args.out)
    for flag, known in (("worlds", WORLDS), ("stages", STAGES)):
        if unknown := set(getattr(args, flag).split(",")) - set(known):
            fail(f"--{flag}: there is no {', '.join(sorted(unknown))}; choose from {', '.join(known)}")
    if min(args.workers, args.seeds) < 1:
        fail("--workers and --seeds must be at least 1")
    for world in args.worlds.split(","):
        for stage in (stage for stage in STAGES if stage in args.stages.split(",")):
            jobs = [job for job in grid(world, best_rates(world, out)) if job.stage == stage]
            jobs = missing([job for job in jobs if job.is_sweep or job.seed < args.seeds], out)
            if unknown := sorted({job.method for job in jobs if "?" in job.flags}):
                fail(f"stage {stage} needs the learning rate of {', '.join(unknown)}: run the stage sweep first")
            if jobs:
                run_stage(jobs, root, args.workers)
                collect(jobs, root, out)
    print(f"{out}: next: python -m analysis.experiments.claims")


if __name__ == "__main__":
    main()
