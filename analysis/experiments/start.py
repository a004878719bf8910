"""What a starting policy can do, level by level: is there something to learn, and something to mask?

Samples groups at temperature 1, as training does, and prints for each level: accuracy, entropy, length, the shares of
responses without steps, of groups with signal (not all right, not all wrong), and of their responses that Eq. 8-9 keep.

    python -m analysis.experiments.start [--world guess] [--model RUN_OR_DIR]
"""

from __future__ import annotations

import pandas as pd
import torch

import dagrpo
import rollout
import scoring
import tasks
from harness import report
from harness.console import Parser, progress
from harness.warm_start import find_start
from policy import Policy, load_policy


def describe(policy: Policy, problems: list[tasks.Problem], group_size: int, delta: float) -> dict[str, float]:
    """One row of the table: a level's problems, each asked `group_size` times."""
    rollouts = rollout.sample_groups(policy, problems, [group_size] * len(problems), max_new_tokens=64)
    R, S = scoring.rewards(rollouts), scoring.scores(rollouts)  # (B, G)
    A = dagrpo.group_advantages(R)  # (B, G)
    keep = dagrpo.rectification_mask(A, S, delta)  # (B, G)
    bare = torch.tensor([not scoring.steps(text) for text in rollouts.texts])  # (N,)
    return {
        "accuracy": R.mean().item(),
        "entropy": report.mean_over(rollouts.entropy, rollouts.mask),
        "length": rollouts.lengths.float().mean().item(),
        "direct": bare.float().mean().item(),  # bare: without a step
        "lucky": report.mean_over(bare, R.flatten() == 1),  # of the right responses, the share that is bare
        "all wrong": (R == 0).all(dim=1).float().mean().item(),
        "all right": (R == 1).all(dim=1).float().mean().item(),
        "signal": (A != 0).any(dim=1).float().mean().item(),
        "kept": report.mean_over(keep, A != 0),
        "kept +": report.mean_over(keep, A > 0),
        "kept -": report.mean_over(keep, A < 0),
    }


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="python -m analysis.experiments.start", description=__doc__)
    parser.add_argument("--model", metavar="ID_OR_DIR", help="a run or model folder [the warm start]")
    parser.add_argument("--world", choices=tasks.WORLDS, default="plain", help="of the built-in task")
    parser.add_argument("--per-level", type=int, default=64, metavar="N", help="problems of each level (split train)")
    parser.add_argument("--group-size", type=int, default=8, metavar="G", help="responses per problem")
    parser.add_argument("--delta", type=float, default=3.0, help="of Eq. 8-9")
    args = parser.parse_args(argv)
    policy, world = load_policy(find_start(args.model, args.world)), tasks.WORLDS[args.world]
    torch.manual_seed(0)
    rows = {}
    for name, form in progress((world.levels | world.ood).items(), desc="levels"):
        problems = tasks.arithmetic("train", args.per_level, seed=1, levels={name: form})
        rows[name] = describe(policy, problems, args.group_size, args.delta)
    print(pd.DataFrame.from_dict(rows, orient="index").to_string(float_format="{:.2f}".format, na_rep="-"))


if __name__ == "__main__":
    main()
