"""The loop: GRPO, DaGRPO and their neighbours, from prompts to optimiser steps.

`collect` and `learn` are the algorithm, in the order of the paper:
    1. sample a group of responses per prompt                                             rollout.sample_groups
    2. mix in the demonstrations as anchors (Eq. 11)                                      anchors.mix
    3. reward R: is the answer right                                                      scoring.rewards
    4. advantage A: how much better than its group (Eq. 1, 12)                            dagrpo.group_advantages
    5. score S: right, valid, complete (Eq. 7)                                            scoring.scores
    6. mask what is not distinct enough (Eq. 8-9)                                         dagrpo.rectification_mask
    7. log-probs of the responses under the policy now, with gradient                     rollout.token_logprobs
    8. the loss (Eq. 13), its gradient, an AdamW step                                     dagrpo.policy_loss
Which of these a method uses is written in its recipe, dagrpo.METHODS. `sft`, the baseline on demonstrations, has none.

Ours, as the paper does not say: AdamW without weight decay at a constant rate, gradients clipped to norm 1.

    python train.py --method dagrpo --steps 100 --seed 0 --out runs/dagrpo
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import signal
import sys
import time
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers

import anchors as anchoring
import dagrpo
import policy as policies
import rollout
import runfolder
import scoring
import tasks
from anchors import Anchor
from cli import Parser, fail, progress
from dagrpo import Recipe
from groups import Groups, mean_over, measure, percent, records, show
from policy import Policy
from rollout import Rollouts
from tasks import Problem


@dataclass
class Run:
    """What training changes, and the settings that it reads."""

    args: argparse.Namespace
    recipe: Recipe | None  # None: sft
    policy: Policy
    optimizer: torch.optim.Optimizer
    reference: Policy | None = None  # the starting policy, if there is a KL term
    step: int = 0  # finished steps
    start_entropy: float | None = None  # nats, of the first step's rollouts (GTPO's filter asks for it)


# ---------------------------------------------------------------------------------------- one step


def collect(run: Run, problems: list[Problem], anchors: list[Anchor | None]) -> Groups:
    """Sampling, anchors, rewards, advantages, scores, masks: everything that needs no gradient."""
    args, recipe, begin = run.args, run.recipe, time.perf_counter()
    size = args.group_size + args.extra_anchor  # G, the whole mixed group
    always = args.anchor_when == "always"
    counts = [size - 1 if anchor and always else size for anchor in anchors]
    rollouts, responses, tokens = sample(run, problems, counts)
    if not always:  # hard groups only: the anchor helps where no rollout is right
        right = scoring.rewards(rollouts).any(dim=1)  # (B,)
        anchors = [None if right[b] else anchor for b, anchor in enumerate(anchors)]
    rollouts = anchoring.mix(run.policy, rollouts, anchors, size)  # Eq. 11
    if run.start_entropy is None:
        run.start_entropy = mean_over(rollouts.entropy, rollouts.mask & ~rollouts.is_anchor[:, None])
    R = scoring.rewards(rollouts)  # (B, G)
    shaped = R + scoring.overlong_penalty(rollouts, args.max_new_tokens, args.overlong_buffer)  # 0 unless asked for
    A = dagrpo.group_advantages(shaped, recipe.scale, recipe.baseline)  # (B, G)  Eq. 1, 12
    S = scoring.scores(rollouts)  # (B, G)  Eq. 7
    distinct = dagrpo.rectification_mask(A, S, args.delta)  # (B, G)  Eq. 8-9
    keep = distinct if recipe.rectify else torch.ones_like(distinct)
    return Groups(rollouts, R, S, A, distinct, keep, responses, tokens, time.perf_counter() - begin)


def sample(run: Run, problems: list[Problem], counts: list[int]) -> tuple[Rollouts, int, int]:
    """The rollouts, and how many responses and tokens they took. DAPO samples groups of equal rewards again.

    DAPO draws new prompts for that; here a group keeps its prompt, so that all methods see the same prompts.
    """

    def draw(counts: list[int]) -> Rollouts:
        return rollout.sample_groups(run.policy, problems, counts, run.args.max_new_tokens, run.args.temperature)

    rollouts = draw(counts)
    responses, tokens = len(rollouts.texts), int(rollouts.mask.sum())
    for _ in range(run.recipe.resample_rounds):
        R = scoring.rewards(rollouts)  # (B, G)
        equal = (R[:, :1] == R).all(dim=1)  # (B,)
        if not equal.any():
            break
        again = draw([count if equal[b] else 0 for b, count in enumerate(counts)])
        responses, tokens = responses + len(again.texts), tokens + int(again.mask.sum())
        stay = (~equal[rollouts.group]).nonzero().squeeze(1)
        rollouts = rollout.concat(rollouts.select(stay), again, run.policy.pad_id)
    return rollouts, responses, tokens


def learn(run: Run, groups: Groups) -> tuple[Groups, dict[str, float]]:
    """`updates_per_batch` optimiser updates, each on its share of the groups. Returns the masks as used, and figures.

    The paper samples 128 prompts and updates on 64: from the second update on, the policy is no longer the one that
    sampled, and the importance ratio has something to do.
    """
    args, recipe, begin = run.args, run.recipe, time.perf_counter()
    B, G = groups.rewards.shape
    keep, losses, norms, clipped, trained, skipped = groups.keep.clone(), [], [], 0, 0, 0
    for share in torch.arange(B).chunk(args.updates_per_batch):
        rows = (share[:, None] * G + torch.arange(G)).flatten()  # (N,) rows of this update
        part = groups.rollouts.select(rows.to(run.policy.device))
        update = dagrpo.build_update(
            recipe,
            groups.advantages[share],
            groups.keep[share],
            part.tokens,
            part.mask,
            part.logp,
            part.entropy,
            part.is_anchor,
            args.max_new_tokens,
            run.start_entropy,
        )
        keep[share] = update.keep.view(-1, G).cpu()
        loss, clips, tokens = backward(run, part, update)
        norm = torch.nn.utils.clip_grad_norm_(run.policy.model.parameters(), args.max_grad_norm)  # before clipping
        if torch.isfinite(norm):
            run.optimizer.step()
        else:
            skipped += 1
        run.optimizer.zero_grad(set_to_none=False)
        groups.rollouts.logp[rows] = part.logp  # the anchors' are known now
        losses, norms, clipped, trained = [*losses, loss], [*norms, norm.item()], clipped + clips, trained + tokens
    figures = {
        "loss": sum(losses) / len(losses),
        "grad_norm": sum(norms) / len(norms),
        "clip_fraction": clipped / max(trained, 1),
        "skipped_updates": skipped,
        "train_seconds": time.perf_counter() - begin,
    }
    return replace(groups, keep=keep), figures


def backward(run: Run, part: Rollouts, update: dagrpo.Update) -> tuple[float, int, int]:
    """Adds the gradient of one update, micro-batch by micro-batch: its loss, clipped tokens, and tokens with signal.

    Rows without weight are left out. Their gradient is zero, and the divisor (in update.weight) has counted them.
    """
    args, recipe = run.args, run.recipe
    active = dagrpo.signal_rows(update, recipe, args.kl_beta).nonzero().squeeze(1)  # (n,)
    loss_sum, clipped, tokens = 0.0, 0, 0
    for batch in rollout.micro_batches(part.lengths[active], part.prompt_ids.shape[1], args.micro_batch_tokens):
        index = active[batch.to(active.device)]
        logp, entropy = rollout.token_logprobs(
            run.policy, part, index, args.temperature, with_entropy=recipe.entropy_bonus > 0
        )
        micro = update.rows(index)
        if args.updates_per_batch == 1:
            micro = replace(micro, logp_old=logp.detach())  # nothing has moved yet: the ratio is exactly 1
        if run.reference:
            with torch.no_grad():
                reference, _ = rollout.token_logprobs(run.reference, part, index, args.temperature)
            micro = replace(micro, logp_ref=reference)
        loss = dagrpo.policy_loss(logp, micro, recipe, entropy, args.kl_beta)  # Eq. 13. A good place for a breakpoint
        loss.backward()
        loss_sum += loss.item()
        clipped += int(dagrpo.surrogate(logp.detach(), micro, recipe)[1].sum())
        tokens += int((micro.mask & ~micro.is_anchor[:, None]).sum())
        anchor = micro.is_anchor
        part.logp[index[anchor], : logp.shape[1]] = logp[anchor].detach()
    return loss_sum, clipped, tokens


def learn_sft(run: Run, anchors: list[Anchor | None], problems: list[Problem]) -> dict[str, Any]:
    """The baseline without rollouts: one update on the demonstrations of the step's prompts."""
    begin = time.perf_counter()
    pairs = [(problem.question, anchor.text) for problem, anchor in zip(problems, anchors, strict=True) if anchor]
    loss = policies.demonstration_backward(run.policy, pairs)
    norm = torch.nn.utils.clip_grad_norm_(run.policy.model.parameters(), run.args.max_grad_norm)
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=False)
    return {"loss": loss, "grad_norm": norm.item(), "train_seconds": time.perf_counter() - begin}


# ---------------------------------------------------------------------------------------- the run


def train_step(run: Run, pool: list[Problem], prepared: list[Anchor | None]) -> tuple[dict[str, Any], Groups | None]:
    """One step from problems to new weights: the row for metrics.csv, and the groups (None for sft)."""
    chosen = pick(len(pool), run.step, run.args.batch_prompts, run.args.seed)
    problems, anchors = [pool[i] for i in chosen], [prepared[i] for i in chosen]
    run.step += 1
    if run.recipe is None:
        return {"step": run.step, **learn_sft(run, anchors, problems)}, None
    groups = collect(run, problems, anchors if run.recipe.anchors else [None] * len(problems))
    groups, figures = learn(run, groups)
    return {"step": run.step, **measure(groups, levels=list(tasks.LEVELS)), **figures}, groups


def pick(size: int, step: int, count: int, seed: int) -> list[int]:
    """Which of `size` problems step number `step` (from 0) takes: epochs, each in an order of its own.

    A function of its arguments, so that a resumed run needs no state of a data loader, and that every method sees the
    same prompts at the same step of the same seed.

    >>> pick(3, 0, 2, seed=0), pick(3, 1, 2, seed=0)
    ([0, 2], [1, 2])
    """
    positions = [divmod(position, size) for position in range(step * count, (step + 1) * count)]
    return [_order(size, epoch, seed)[place] for epoch, place in positions]


@cache
def _order(size: int, epoch: int, seed: int) -> list[int]:
    order = list(range(size))
    random.Random(f"{seed} {epoch}").shuffle(order)
    return order


def train(run: Run, pool: list[Problem], prepared: list[Anchor | None]) -> None:
    """Steps until args.steps, or until somebody stops it; writes the run folder as it goes."""
    args, out, stop = run.args, Path(run.args.out), []
    for number in (signal.SIGINT, signal.SIGTERM):  # finish the step, write a checkpoint, say how to go on
        signal.signal(number, lambda number, _frame: stop.append(number))
    bar = progress(range(run.step, args.steps), desc=args.method, unit="step", initial=run.step, total=args.steps)
    for _ in bar:
        row, groups = train_step(run, pool, prepared)
        runfolder.append_metrics(out, row)
        if groups:
            if run.step % args.log_rollouts_every == 0:
                runfolder.append_rollouts(out, records(groups, run.step))
            if args.show_every and run.step % args.show_every == 0:
                bar.write(show(groups, run.step, args.delta))
            bar.set_postfix(reward=f"{row['reward']:.2f}", kept=percent(row["kept_fraction"]), refresh=False)
        else:
            bar.set_postfix(loss=f"{row['loss']:.3f}", refresh=False)
        if stop or run.step == args.steps or run.step % args.save_every == 0:
            trainer = {"step": run.step, "optimizer": run.optimizer.state_dict(), "start_entropy": run.start_entropy}
            runfolder.save_checkpoint(out, run.policy, trainer)
        if stop:
            bar.close()
            print(f"stopped after step {run.step}; add --resume to the same command to go on", file=sys.stderr)
            sys.exit(128 + stop[0])


# ---------------------------------------------------------------------------------------- the command line


def build_parser() -> Parser:
    """All flags, grouped as --help shows them."""
    parser = Parser(prog="train.py", description=__doc__, usage="python train.py --method M --out DIR [flags]")
    names = ["sft", *dagrpo.METHODS]

    group = parser.add_argument_group("what to train, and where to write")
    group.add_argument("--method", required=True, choices=names, metavar="M", help=f"one of {', '.join(names)}")
    group.add_argument("--out", required=True, metavar="DIR", help="the run folder")
    group.add_argument("--steps", type=int, default=100, metavar="N", help="one rollout batch each")
    group.add_argument("--seed", type=int, default=0, metavar="S", help="order of prompts, and sampling")
    group.add_argument("--resume", action="store_true", help="go on from the last checkpoint in --out")
    group.add_argument("--overwrite", action="store_true", help="replace the run in --out")

    group = parser.add_argument_group("where it starts")
    group.add_argument("--model", metavar="ID_OR_DIR", help="a causal LM; without it the built-in warm start")
    group.add_argument("--init-from", metavar="DIR", help="a run folder or model folder to start from (sft, then grpo)")
    group.add_argument("--levels", default=",".join(tasks.LEVELS), metavar="L,..", help="levels of the built-in task")

    group = parser.add_argument_group("the groups")
    group.add_argument("--batch-prompts", type=int, default=16, metavar="B", help="prompts per step")
    group.add_argument("--group-size", type=int, default=8, metavar="G", help="rows per prompt, an anchor included")
    group.add_argument("--max-new-tokens", type=int, default=64, metavar="T", help="longest response, end included")
    group.add_argument(
        "--temperature", type=float, default=1.0, metavar="X", help="of sampling, and of the log-probs trained"
    )

    group = parser.add_argument_group(
        "mechanism 1: the mask (Eq. 8-9; dagrpo_on, dagrpo)",
        "A right response stays if it scores at least delta more than the best wrong one, a wrong one if it scores at\n"
        "least delta less than the worst right one. Scores go from 1 to 10; the paper's delta is 3.",
    )
    group.add_argument("--delta", type=float, default=3.0, metavar="D", help="0 masks only what is on the wrong side")

    group = parser.add_argument_group(
        "mechanism 2: anchors (Eq. 11; luffy, dagrpo)",
        "A verified demonstration takes one of a group's G places.",
    )
    group.add_argument(
        "--anchor-when", choices=["always", "hard"], default="always", help="hard: if no rollout is right"
    )
    group.add_argument(
        "--anchor-ratio", choices=["one", "shaped"], help="shaped: p / (p + 0.1), LUFFY's [the recipe's]"
    )
    group.add_argument("--extra-anchor", action="store_true", help="G rollouts and an anchor, instead of G in all")
    group.add_argument("--keep-wrong-anchors", action="store_true", help="also demonstrations with a wrong answer")

    group = parser.add_argument_group("the loss; what is not given is as the recipe says")
    group.add_argument("--scale", choices=["none", "group"], help="divide advantages by the group's std? (Eq. 1)")
    group.add_argument("--divisor", choices=["constant", "sequence", "tokens"], help="length normalisation (Eq. 10)")
    group.add_argument(
        "--kl-beta", type=float, default=0.0, metavar="BETA", help="weight of KL to the starting policy (Eq. 2)"
    )
    group.add_argument("--overlong-buffer", type=int, default=0, metavar="T", help="DAPO: penalty on the last T tokens")

    group = parser.add_argument_group("the optimiser")
    group.add_argument("--lr", type=float, default=1e-4, metavar="LR", help="AdamW's, constant")
    group.add_argument("--updates-per-batch", type=int, default=2, metavar="K", help="prompts are split among them")
    group.add_argument(
        "--max-grad-norm", type=float, default=1.0, metavar="X", help="the norm is logged before it is clipped"
    )
    group.add_argument("--micro-batch-tokens", type=int, default=16384, metavar="N", help="bounds memory, no gradient")

    group = parser.add_argument_group("what is saved and shown")
    group.add_argument("--save-every", type=int, default=50, metavar="K", help="steps between checkpoints")
    group.add_argument("--log-rollouts-every", type=int, default=1, metavar="K", help="thins rollouts.jsonl")
    group.add_argument("--show-every", type=int, default=25, metavar="K", help="print two groups; 0: never")
    return parser


def check(args: argparse.Namespace) -> None:
    """One clear line for a value that cannot work, before anything is written."""
    at_least = {"steps": 1, "batch_prompts": 1, "group_size": 2, "max_new_tokens": 1, "updates_per_batch": 1}
    at_least |= {"save_every": 1, "log_rollouts_every": 1, "show_every": 0, "micro_batch_tokens": 1, "delta": 0}
    at_least |= {"kl_beta": 0, "overlong_buffer": 0}
    for name, least in at_least.items():
        if not getattr(args, name) >= least:
            why = ": a group needs something to compare with" if name == "group_size" else ""
            fail(f"--{name.replace('_', '-')} must be at least {least}, not {getattr(args, name)}{why}")
    for name in ("lr", "temperature", "max_grad_norm"):
        if not 0 < getattr(args, name) < float("inf"):
            fail(f"--{name.replace('_', '-')} must be above 0, not {getattr(args, name)}")
    if args.batch_prompts % args.updates_per_batch:
        fail(f"--batch-prompts {args.batch_prompts} cannot be split into --updates-per-batch {args.updates_per_batch}")
    if args.resume and args.overwrite:
        fail("--resume and --overwrite exclude each other")
    if args.model and args.init_from:
        fail("--model and --init-from both say where to start: give one of them")
    unknown = set(args.levels.split(",")) - set(tasks.LEVELS)
    if unknown:
        fail(f"--levels: there is no level {', '.join(sorted(unknown))}; choose from {', '.join(tasks.LEVELS)}")


def make_recipe(args: argparse.Namespace) -> Recipe | None:
    """The method's recipe, with the choices that flags override. None for sft."""
    if args.method == "sft":
        return None
    given = {name: getattr(args, name) for name in ("anchor_ratio", "scale", "divisor") if getattr(args, name)}
    return replace(dagrpo.METHODS[args.method], **given)


def prepare_anchors(
    args: argparse.Namespace, recipe: Recipe | None, pool: list[Problem]
) -> tuple[list[Anchor | None], dict[str, int]]:
    """The demonstrations that the method needs, and their fates, counted; a line says what was rejected."""
    if recipe and not recipe.anchors:
        return [None] * len(pool), {}
    tokens_only = Policy(None, policies.load_tokenizer(args.init_from or args.model))  # before a warm start is trained
    prepared, fates = anchoring.prepare(tokens_only, pool, args.max_new_tokens, args.keep_wrong_anchors)
    if fates["too long"]:  # in the built-in task this is a mistake in the flags: all its demonstrations fit into 64
        longest = max(len(tokens_only.encode_response(p.demo)) for p in pool)
        fail(
            f"{fates['too long']} of {len(pool)} demonstrations do not fit into --max-new-tokens {args.max_new_tokens}:"
            f" the longest has {longest} tokens with its end token; raise it, or train on other --levels"
        )
    if rejected := {fate: n for fate, n in fates.items() if fate != "usable"}:
        print(f"anchors: {fates['usable']} of {len(pool)} usable; rejected: {rejected}", file=sys.stderr)
    return prepared, dict(fates)


def start(args: argparse.Namespace, recipe: Recipe | None, checkpoint: Path | None) -> Run:
    """The policy (of the checkpoint, if there is one), its optimiser and, for a KL term, the reference."""
    begin = args.init_from or args.model
    torch.manual_seed(args.seed)
    policy = policies.load(str(checkpoint / "model") if checkpoint else begin)
    parameters = list(policy.model.parameters())
    for parameter in parameters:  # a step without signal is a step with gradient 0, not one that AdamW skips
        parameter.grad = torch.zeros_like(parameter)
    optimizer = torch.optim.AdamW(parameters, lr=args.lr, weight_decay=0.0)
    run = Run(args, recipe, policy, optimizer, policies.load(begin) if args.kl_beta and recipe else None)
    if checkpoint:
        trainer = runfolder.load_trainer(checkpoint)
        optimizer.load_state_dict(trainer["optimizer"])
        run.step, run.start_entropy = trainer["step"], trainer["start_entropy"]
    return run


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    check(args)
    out, recipe = Path(args.out), make_recipe(args)
    going_on = runfolder.claim(out, args.resume, args.overwrite)
    levels = {name: tasks.LEVELS[name] for name in args.levels.split(",")}
    pool = tasks.arithmetic("train", per_level=400, levels=levels)
    prepared, fates = prepare_anchors(args, recipe, pool)
    run = start(args, recipe, runfolder.find_checkpoint(out) if going_on else None)
    if going_on:
        runfolder.cut_back(out, run.step)
        print(f"going on after step {run.step} of {args.steps}", file=sys.stderr)
    else:
        if args.resume:
            print(f"{out} holds no checkpoint: starting from the beginning", file=sys.stderr)
        runfolder.clear(out)
        config = vars(args) | {"recipe": recipe and asdict(recipe), "anchors": fates, "problems": len(pool)}
        config |= {"python": platform.python_version(), "torch": torch.__version__}
        config |= {"transformers": transformers.__version__, "threads": torch.get_num_threads()}
        (out / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    train(run, pool, prepared)
    print(f"done: {out} holds the run. Next: python eval.py --model {out}; python -m analysis.curves {out}")


if __name__ == "__main__":
    main()
