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

A real model on real data goes the same way: --model, --data, --scorer (see the presets at the end of --help).

Ours, as the paper does not say: AdamW without weight decay at a constant rate, gradients clipped to norm 1.

    python train.py --method dagrpo --steps 100 --seed 0 --out runs/dagrpo
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import random
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from tqdm import tqdm

import anchors as anchoring
import controls
import dagrpo
import flags
import judge
import policy as policies
import prepare
import rollout
import runfolder
import scoring
from anchors import Anchor
from cli import fail, first_line, one_line, progress
from dagrpo import Recipe
from groups import Groups, mean_over, measure, percent, records, show
from policy import Policy
from rollout import Rollouts
from scoring import Scorer
from tasks import Problem

MOST_NOT_FINITE = 5  # updates in a row


@dataclass
class Run:
    """What training changes, and the settings that it reads."""

    args: argparse.Namespace
    recipe: Recipe | None  # None: sft
    policy: Policy
    optimizer: torch.optim.Optimizer
    scorer: Scorer = scoring.rule_scores  # Eq. 7
    judged: judge.Counters | None = None  # what a judge has cost; None: the scorer is a rule
    levels: tuple[str, ...] = ()  # of all problems
    reference: Policy | None = None  # the starting policy, if there is a KL term
    step: int = 0  # finished steps
    not_finite: int = 0  # updates in a row that were skipped for their gradient
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
    if args.reward_is_score:
        shaped = controls.score_as_reward(rollouts, run.scorer)
    A = dagrpo.group_advantages(shaped, recipe.scale, recipe.baseline)  # (B, G)  Eq. 1, 12
    asked = A != 0 if run.judged else None  # a judge costs: it is asked only where its answer is read
    S = scoring.scores(rollouts, run.scorer, asked)  # (B, G)  Eq. 7
    distinct = dagrpo.rectification_mask(A, S, args.delta)  # (B, G)  Eq. 8-9
    if args.random_mask:
        distinct = controls.random_mask(A, distinct)
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
        stay = (~equal[rollouts.group.cpu()]).nonzero().squeeze(1)
        rollouts = rollout.concat(rollouts.select(stay), again, run.policy.pad_id)
    return rollouts, responses, tokens


def learn(run: Run, groups: Groups) -> tuple[Groups, dict[str, float]]:
    """`updates_per_batch` optimiser updates, each on its share of the groups. Returns the masks as used, and figures.

    The paper samples 128 prompts and updates on 64: from the second update on, the policy is no longer the one that
    sampled, and the importance ratio has something to do.
    """
    args, recipe, begin = run.args, run.recipe, time.perf_counter()
    device, (B, G) = run.policy.device, groups.rewards.shape
    keep, losses, norms, clipped, trained, skipped = groups.keep.clone(), [], [], 0, 0, 0
    for share in torch.arange(B).chunk(args.updates_per_batch):
        rows = (share[:, None] * G + torch.arange(G)).flatten()  # (N,) rows of this update
        part = groups.rollouts.select(rows.to(device))
        update = dagrpo.build_update(
            recipe,
            groups.advantages[share].to(device),
            groups.keep[share].to(device),
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
        norm, done = optimizer_step(run, loss)
        groups.rollouts.logp[rows] = part.logp  # the anchors' are known now
        losses, norms, clipped, trained = [*losses, loss], [*norms, norm], clipped + clips, trained + tokens
        skipped += not done
    figures = {
        "loss": sum(losses) / len(losses),
        "grad_norm": sum(norms) / len(norms),
        "clip_fraction": clipped / max(trained, 1),
        "skipped_updates": skipped,
        "train_seconds": time.perf_counter() - begin,
    }
    return replace(groups, keep=keep), figures


def optimizer_step(run: Run, loss: float) -> tuple[float, bool]:
    """The gradient's norm before clipping, and whether a step was taken: not with one that is not finite."""
    parameters = [parameter for parameter in run.policy.model.parameters() if parameter.requires_grad]
    for parameter in parameters:  # a step without signal is one with gradient 0, not one that AdamW skips
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    norm = torch.nn.utils.clip_grad_norm_(parameters, run.args.max_grad_norm)
    done = math.isfinite(loss) and bool(torch.isfinite(norm))
    if done:
        run.optimizer.step()
    run.not_finite = 0 if done else run.not_finite + 1
    run.optimizer.zero_grad()  # None: no memory for gradients while the next batch is sampled
    return norm.item(), done


def backward(run: Run, part: Rollouts, update: dagrpo.Update) -> tuple[float, int, int]:
    """Adds the gradient of one update, micro-batch by micro-batch: its loss, clipped tokens, and tokens with signal.

    Rows without weight are left out. Their gradient is zero, and the divisor (in update.weight) has counted them.
    """
    args, recipe = run.args, run.recipe
    active = dagrpo.signal_rows(update, recipe, args.kl_beta).nonzero().squeeze(1)  # (n,)
    loss_sum, clipped, tokens = 0.0, 0, 0
    rows = part.lengths[active], part.group[active], part.prompt_ids.shape[1]
    batches, share = rollout.plan(run.policy, *rows, args.micro_batch_tokens)
    for batch in batches:
        index = active[batch.to(active.device)]
        logp, entropy = rollout.token_logprobs(
            run.policy, part, index, args.temperature, recipe.entropy_bonus > 0, share
        )
        micro = update.rows(index)
        if args.updates_per_batch == 1:
            micro = replace(micro, logp_old=logp.detach())  # nothing has moved yet: the ratio is exactly 1
        if args.kl_beta:
            with torch.no_grad(), reference_policy(run) as reference_model:
                reference, _ = rollout.token_logprobs(reference_model, part, index, args.temperature, share=share)
            micro = replace(micro, logp_ref=reference)
        loss = dagrpo.policy_loss(logp, micro, recipe, entropy, args.kl_beta)  # Eq. 13. A good place for a breakpoint
        loss.backward()
        loss_sum += loss.item()
        clipped += int(dagrpo.surrogate(logp.detach(), micro, recipe)[1].sum())
        tokens += int((micro.mask & ~micro.is_anchor[:, None]).sum())
        anchor = micro.is_anchor
        part.logp[index[anchor], : logp.shape[1]] = logp[anchor].detach()
    return loss_sum, clipped, tokens


@contextmanager
def reference_policy(run: Run) -> Iterator[Policy]:
    """The starting policy: a second model, or with LoRA the policy without what it has learned."""
    with nullcontext() if run.reference else run.policy.model.disable_adapter():
        yield run.reference or run.policy


def learn_sft(run: Run, anchors: list[Anchor | None], problems: list[Problem]) -> dict[str, Any]:
    """The baseline without rollouts: one update on the demonstrations of the step's prompts."""
    begin = time.perf_counter()
    pairs = [(problem.question, anchor.text) for problem, anchor in zip(problems, anchors, strict=True) if anchor]
    loss = policies.demonstration_backward(run.policy, pairs)
    norm, done = optimizer_step(run, loss)
    seconds = time.perf_counter() - begin
    return {"loss": loss, "grad_norm": norm, "skipped_updates": int(not done), "train_seconds": seconds}


# ---------------------------------------------------------------------------------------- the run


def train_step(run: Run, pool: list[Problem], prepared: list[Anchor | None]) -> tuple[dict[str, Any], Groups | None]:
    """One step from problems to new weights: the row for metrics.csv, and the groups (None for sft)."""
    chosen = pick(len(pool), run.step, run.args.batch_prompts, run.args.seed)
    problems, anchors = [pool[i] for i in chosen], [prepared[i] for i in chosen]
    if run.recipe is None:
        row, groups = learn_sft(run, anchors, problems), None
    else:
        groups = collect(run, problems, anchors if run.recipe.anchors else [None] * len(problems))
        groups, figures = learn(run, groups)
        row = measure(groups, run.levels) | figures
        if run.judged:
            row |= {"judge_saved": int((groups.advantages == 0).sum()), **run.judged.take()}
    run.step += 1
    return {"step": run.step, **row}, groups


def pick(size: int, step: int, count: int, seed: int) -> list[int]:
    """Which of `size` problems step number `step` (from 0) takes: epochs, each in an order of its own.

    A function of its arguments, so that a resumed run needs no state of a data loader, and that every method sees the
    same prompts at the same step of the same seed.

    >>> pick(3, 0, 2, seed=0), pick(3, 1, 2, seed=0)
    ([0, 2], [1, 1])
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

    def on_signal(number: int, _frame: Any) -> None:  # finish the step, write a checkpoint, say how to go on
        if stop:  # asked a second time: at once
            sys.exit(128 + number)
        stop.append(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    bar = progress(range(run.step, args.steps), desc=args.method, unit="step", initial=run.step, total=args.steps)
    for _ in bar:
        before = runfolder.random_state()
        try:
            row, groups = train_step(run, pool, prepared)
        except (judge.JudgeDown, FloatingPointError) as why:
            runfolder.set_random_state(before)  # on resume the step is taken again, as it would have been
            if isinstance(why, judge.JudgeDown):
                save(run)
            bar.close()
            fail(f"{why}. {how_to_go_on(run)}")
        runfolder.append_metrics(out, row)
        if groups and run.step % args.log_rollouts_every == 0:
            runfolder.append_rollouts(out, records(groups, run.step))
        if row.get("skipped_updates"):
            look_into(run, groups, bar)
        tell(run, row, groups, bar)
        if stop or run.step == args.steps or run.step % args.save_every == 0:
            save(run)
        if stop:
            bar.close()
            print(f"stopped after step {run.step}; add --resume to the same command to go on", file=sys.stderr)
            sys.exit(128 + stop[0])


def tell(run: Run, row: dict[str, Any], groups: Groups | None, bar: tqdm) -> None:
    """What a person sees of a step."""
    if groups is None:
        bar.set_postfix(loss=f"{row['loss']:.3f}", refresh=False)
        return
    if run.args.show_every and run.step % run.args.show_every == 0:
        bar.write(show(groups, run.step, run.args.delta))
    bar.set_postfix(reward=f"{row['reward']:.2f}", kept=percent(row["kept_fraction"]), refresh=False)


def look_into(run: Run, groups: Groups | None, bar: tqdm) -> None:
    """A gradient was not finite: the groups are saved, and after MOST_NOT_FINITE updates in a row the run ends."""
    bar.write(f"step {run.step}: an update was skipped, its gradient was not finite")
    if groups:
        runfolder.append_rollouts(Path(run.args.out), records(groups, run.step), "nonfinite.jsonl")
        bar.write("its groups are in nonfinite.jsonl")
    if run.not_finite >= MOST_NOT_FINITE:
        bar.close()
        fail(f"{run.not_finite} gradients in a row were not finite: lower --lr. {how_to_go_on(run)}")


def how_to_go_on(run: Run) -> str:
    folder = runfolder.find_checkpoint(Path(run.args.out))
    if folder is None:
        return "There is no checkpoint yet"
    return f"The checkpoint is of step {(folder / 'step').read_text()}: add --resume to the same command to go on"


def save(run: Run) -> None:
    trainer = {"step": run.step, "optimizer": run.optimizer.state_dict(), "start_entropy": run.start_entropy}
    runfolder.save_checkpoint(Path(run.args.out), run.policy, trainer, run.args.keep)


# ---------------------------------------------------------------------------------------- the beginning


def start(args: argparse.Namespace, recipe: Recipe | None, checkpoint: Path | None) -> Run:
    """The policy (of the checkpoint, if there is one), its optimiser and, for a KL term, the reference."""
    policies.keep_freed_memory()
    begin, model = args.init_from or args.model, checkpoint and checkpoint / "model"
    torch.manual_seed(args.seed)
    how = {"checkpointing": args.gradient_checkpointing, "bf16": args.bf16}
    if args.lora_rank:
        policy = policies.load(begin, args.lora_rank, adapter=model, **how)
    else:
        policy = policies.load(str(model) if model else begin, **how)
    parameters = [parameter for parameter in policy.model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=args.lr, weight_decay=0.0, fused=True)  # in one pass over memory
    run = Run(args, recipe, policy, optimizer)
    if args.kl_beta and recipe and not args.lora_rank:
        run.reference = policies.load(begin, bf16=args.bf16)
    if checkpoint:
        trainer = runfolder.load_trainer(checkpoint)
        optimizer.load_state_dict(trainer["optimizer"])
        run.step, run.start_entropy = trainer["step"], trainer["start_entropy"]
    return run


def begin_folder(run: Run, going_on: bool, fates: dict[str, int], problems: int) -> None:
    """Cuts a run that goes on back to its checkpoint; of a new one, writes config.json. No key is among the flags."""
    args, out = run.args, Path(run.args.out)
    if going_on:
        runfolder.cut_back(out, run.step)
        print(f"going on after step {run.step} of {args.steps}", file=sys.stderr)
        return
    if args.resume:
        print(f"{out} holds no checkpoint: starting from the beginning", file=sys.stderr)
    runfolder.clear(out)
    config = vars(args) | {"recipe": run.recipe and asdict(run.recipe), "anchors": fates, "problems": problems}
    config |= {"python": platform.python_version(), "torch": torch.__version__}
    config |= {"transformers": transformers.__version__, "threads": torch.get_num_threads()}
    (out / "config.json").write_text(json.dumps(config, indent=1) + "\n")


def main(argv: list[str] | None = None) -> None:
    args = flags.parse(sys.argv[1:] if argv is None else argv, __doc__)
    out, recipe = Path(args.out), flags.make_recipe(args)
    going_on = runfolder.claim(out, args.resume, args.overwrite)
    if going_on and not args.insist and (differ := runfolder.changed(out, vars(args))):
        fail(f"--resume: this would be another run: {'; '.join(differ)}. Take the same flags, or --insist")
    with runfolder.lock(out):
        checkpoint = runfolder.find_checkpoint(out) if going_on else None
        begin = f"{checkpoint or args.init_from or args.model or 'the warm start'} cannot be loaded"
        with one_line(begin, OSError, ValueError, SafetensorError):
            tokens_only = Policy(None, policies.load_tokenizer(args.init_from or args.model))  # before a warm start
        pool = prepare.load_problems(args)
        prepared, fates = prepare.prepare_anchors(args, recipe, pool, tokens_only)
        scorer, judged = prepare.make_scorer(args, recipe)
        with one_line(begin, OSError, ValueError, SafetensorError):
            run = start(args, recipe, checkpoint)
        pool, prepared = prepare.fitting(run.policy, pool, prepared, args.max_new_tokens, sft=recipe is None)
        run.scorer, run.judged, run.levels = scorer, judged, tuple(dict.fromkeys(problem.level for problem in pool))
        try:
            begin_folder(run, going_on, fates, len(pool))
            train(run, pool, prepared)
        except OSError as error:
            fail(f"--out {out}: {first_line(error)}. Make room, or allow writing. {how_to_go_on(run)}")
    print(f"done: {out} holds the run. Next: python eval.py --model {out}; python -m analysis.curves {out}")


if __name__ == "__main__":
    main()
