"""Time and memory of a step of this project and of a step of TRL's GRPOTrainer, measured in turn.

Both have the same model, prompts, group size, response length, precision and gradient checkpointing. Each runs in its
own process, one after the other, for several rounds; we report medians and ratios. There are two cases:

    all     every row carries signal: both learn from all N rows
    kept    half of the rows are masked, as Eq. 8-9 would: here they need no forward pass, TRL runs them all the same

How many rows a real run keeps is in its metrics.csv (kept_rows). What each side does is in sides.py.

We also compare sampling with plain `generate` of the same prompts, and both with the machine's limits: the learner with
the rate of large matrix products, decoding with the bandwidth of the memory.

    python -m analysis.bench.step                               the built-in task
    python -m analysis.bench.step --model DIR --prompts 2 --prompt-tokens 160 --json bench.json
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from analysis.bench.sides import SIDES, Case, peak_gb
from harness.console import Parser, fail, need, progress


def measure(case: Case) -> dict[str, float]:
    """Runs `case.who` in its own process. Returns the numbers of its side (SIDES), and its peak memory in GB."""
    command = [sys.executable, "-m", "analysis.bench.step", "--child", json.dumps(asdict(case))]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], env=os.environ)
    if done.returncode == -signal.SIGKILL:
        fail(f"the system killed the measurement of {case.who}, probably out of memory: use fewer --prompts or tokens")
    if done.returncode:
        fail(f"the measurement of {case.who} ended with {done.returncode}: {done.stderr.strip()[-400:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def summary(rounds: list[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Medians over the rounds, of times and of ratios. Above 1: faster here; for memory ratios, more memory here."""
    first = rounds[0].items()
    whole = {who: {name: statistics.median(r[who][name] for r in rounds) for name in found} for who, found in first}

    def ratio(of: Callable[[dict[str, dict[str, float]]], float]) -> float:
        return statistics.median(map(of, rounds))

    ratios: dict[str, Any] = {}
    for who, suffix in (("kept", ""), ("all", "_all_rows")):
        for part in ("step", "learner"):  # per token, without padding: the sides sample different responses
            ratios[f"{part}_ratio_vs_trl{suffix}"] = ratio(
                lambda r, w=who, p=part: r["trl"][p] / r["trl"]["tokens"] / (r[w][p] / r[w]["tokens"])
            )
        ratios[f"peak_memory_ratio_vs_trl{suffix}"] = ratio(lambda r, w=who: r[w]["peak_gb"] / r["trl"]["peak_gb"])
    ratios["rollout_ratio_vs_generate"] = ratio(lambda r: r["generate"]["plain"] / r["generate"]["ours"])
    ratios["kept_share"] = {who: whole[who]["kept"] for who in ("kept", "all")}
    return {"ratios": ratios, "medians": whole}


def machine_share(case: Case, whole: dict[str, dict[str, float]]) -> dict[str, float]:
    """The share of the machine's limits that learner and decoding reach; decoding reads the weights once per token."""
    limit, mine = whole["limits"], whole["all"]
    rates = {"learner_share_of_matmul_rate": mine["flop"] / mine["learner"] / limit["flop_per_second"]}
    steps = case.new_tokens / mine["rollout"]
    rates |= {"decoding_share_of_bandwidth": mine["bytes"] * steps / limit["bytes_per_second"]}
    return rates | {"decoding_ms_a_step": 1e3 / steps}


def bench_table(result: dict[str, Any], rows: int) -> str:
    lines = [f"{'':26s}{'s a step':>9s}{'sampling':>9s}{'learner':>9s}{'sampled':>9s}{'learned':>9s}{'peak':>7s}"]
    lines.append(f"{'':26s}{'':9s}{'s':>9s}{'s':>9s}{'tokens/s':>9s}{'tokens/s':>9s}{'GB':>7s}")
    names = {"trl": "TRL", "all": "here, all rows", "kept": "here, kept rows"}
    for who, name in names.items():
        m = result["medians"][who]
        share = m.get("kept", 1.0)
        rates = (m["tokens"] / m["rollout"], share * m["tokens"] / m["learner"])
        seconds = "".join(f"{m[x]:9.2f}" for x in ("step", "rollout", "learner"))
        lines.append(
            f"{f'{name} ({share * rows:.0f} of {rows})':26s}{seconds}{rates[0]:9.0f}{rates[1]:9.0f}{m['peak_gb']:7.2f}"
        )
    flat = {k: v for k, v in chain(result["ratios"].items(), result["machine"].items()) if not isinstance(v, dict)}
    return "\n".join([*lines, "", *(f"{name:36s} {value:6.2f}" for name, value in flat.items())])


def check_memory(case: Case) -> None:
    """Ends the program now if memory would run out after hours: TRL makes the fp32 logits of all rows at once (CPU)."""
    if torch.cuda.is_available() or not case.model:
        return
    size = AutoConfig.from_pretrained(case.model).get_text_config().vocab_size
    logits = 4 * case.prompts * case.group_size * (case.new_tokens + 1) * size / 1e9
    needed = 4 * logits + 6  # logits, log-softmax, the gradients of both; weights, gradients and Adam of 0.3 B
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    print(f"TRL's side will take about {needed:.0f} GB, of {free:.0f} GB that are free", file=sys.stderr)
    if needed > free:
        fail(f"--prompts {case.prompts} does not fit into memory: use fewer, or fewer --new-tokens")


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="python -m analysis.bench.step", description=__doc__)
    parser.add_argument("--model", metavar="DIR", help="a model folder or hub id; without it the built-in policy")
    numbers = {
        "prompts": "B",
        "group-size": "G, a multiple of 4",
        "prompt-tokens": "P, with --model",
        "new-tokens": "T",
        "micro-batch-tokens": "of this project",
        "steps": "counted per round",
    }
    for name, about in numbers.items():
        default = getattr(Case, name.replace("-", "_"))
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=about)
    parser.add_argument("--ends", action="store_true", help="responses end at different lengths, T / 2 on average")
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing, on both sides")
    parser.add_argument("--bf16", action="store_true", help="products in bf16 on a CPU, on both sides")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="rounds of all measurements")
    parser.add_argument("--json", metavar="FILE", help="also write everything there")
    parser.add_argument("--child", help="a measurement, used by this program itself")
    args = parser.parse_args(argv)
    if args.child:
        case = Case(**json.loads(args.child))
        figures = SIDES[case.who](case)
        print(json.dumps(figures | {"peak_gb": peak_gb()}))
        return
    need("trl", "the comparison with TRL")
    args.prompts = args.prompts or (2 if args.model else 16)
    if min(args.prompts, args.new_tokens, args.steps, args.rounds, args.micro_batch_tokens) < 1 or args.group_size % 4:
        fail("all numbers must be at least 1, and --group-size a multiple of 4")
    case = Case(**{name: getattr(args, name) for name in asdict(Case()) if hasattr(args, name)})
    check_memory(case)
    rounds = []
    for _ in progress(range(args.rounds), desc="rounds", unit="round"):
        rounds.append({who: measure(replace(case, who=who)) for who in SIDES})
        if args.json:  # as it goes
            write(case, rounds, Path(args.json))
    print(bench_table(write(case, rounds, args.json and Path(args.json)), case.prompts * case.group_size))


def write(case: Case, rounds: list[dict[str, dict[str, float]]], path: Path | None) -> dict[str, Any]:
    result = summary(rounds)
    result |= {"machine": machine_share(case, result["medians"]), "rounds": rounds}
    result["case"] = asdict(case) | {"model": case.model and Path(case.model).name}
    result |= {"threads": torch.get_num_threads(), "torch": torch.__version__, "cores": os.cpu_count()}
    result |= {"gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None}
    if path:
        path.write_text(json.dumps(result["ratios"] | result, indent=1) + "\n", encoding="utf-8")
    return result


if __name__ == "__main__":
    main()
