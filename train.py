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
A method's recipe in dagrpo.METHODS says which of these steps it uses. The run folder, signals, resuming and messages
are handled around the loop, in harness/session.py.

Where the paper is silent: AdamW without weight decay at a constant rate, gradients clipped to norm 1.

A real model on real data takes the same path: --model, --data, --scorer (see the presets at the end of --help).

    python train.py    is short for: python train.py --method dagrpo --steps 100 --seed 0 --out runs/dagrpo
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

from harness.config import Config, parse

if __name__ == "__main__":  # --help and a mistyped flag are answered before the other imports, which take seconds
    parse(sys.argv[1:], __doc__)

import torch

import anchors
import dagrpo
import fast
import rollout
import scoring
from anchors import Anchor
from dagrpo import Recipe
from harness.checkpoint import load_trainer
from harness.console import one_line
from harness.prepare import fitting, load_task
from harness.report import mean_over
from harness.session import Session
from harness.warm_start import find_start
from policy import Policy, load_policy
from rollout import Groups, Rollouts
from scoring import Scorer
from tasks import Problem

Change = Callable[[Groups], Groups]


@dataclass
class Run:
    """The state that training changes, and the settings that it reads."""

    config: Config
    recipe: Recipe
    policy: Policy
    optimizer: torch.optim.Optimizer
    scorer: Scorer = scoring.rule_scores  # Eq. 7
    path: ModuleType = fast  # or rollout: the plain one
    change: Change | None = None  # an experiment's function: it changes a step's groups before they are learned from
    experiment: str = ""  # its name, for config.json
    score_all: bool = False  # ask a judge for every S, because `change` reads them all
    reference: Policy | None = None  # the starting policy, for a KL term; None with LoRA (see reference_policy)
    step: int = 0  # finished steps
    not_finite: int = 0  # updates skipped in a row because loss or gradient was not finite
    start_entropy: float | None = None  # mean entropy of the first step's rollouts, in nats (GTPO's filter reads it)


def main(
    argv: list[str] | None = None,
    change: Change | None = None,
    demonstrate: Callable[[list[Problem]], list[Problem]] | None = None,
    score_all: bool = False,
) -> None:
    """The command line. Experiments may hand in `change` and `score_all`, see Run, and `demonstrate`, see load_task."""
    config = parse(sys.argv[1:] if argv is None else argv, __doc__)
    with Session(config) as session:
        task = load_task(config, demonstrate, score_all)
        where = session.checkpoint or config.init_from or config.model or "the warm start"
        with one_line(f"{where} cannot be loaded", OSError, ValueError):
            run = start(config, task.scorer, session.checkpoint)
        run.change, run.score_all, task = change, score_all, fitting(run.policy, task, config)
        run.experiment = ", ".join(given.__name__ for given in (change, demonstrate) if given)
        for step in session.steps(run, task):
            groups = collect(run, *task.batch(config, step))
            groups, figures = learn(run, groups)
            session.record(groups, figures)
    print(f"done: {config.out} holds the run. Next: python eval.py --model {config.out}; ", end="")
    print(f"python -m analysis.curves {config.out}")


# ---------------------------------------------------------------------------------------- one step


def collect(run: Run, problems: list[Problem], demonstrations: list[Anchor | None]) -> Groups:
    """Sampling, anchors, rewards, advantages, scores, masks: everything that needs no gradient."""
    config, recipe = run.config, run.recipe
    size = config.group_size + config.extra_anchor if recipe.rollouts else 1  # G, the whole mixed group
    counts = anchors.rollout_counts(demonstrations, size, "always" if recipe.gate is None else "hard")
    rollouts, responses, tokens = sample(run, problems, counts)
    if recipe.gate is not None:
        demonstrations = anchors.only_hard(demonstrations, scoring.rewards(rollouts), recipe.gate)
    rollouts = anchors.mix(run.policy, rollouts, demonstrations, size)  # Eq. 11
    R = scoring.rewards(rollouts)  # (B, G)
    shaped = R + scoring.overlong_penalty(rollouts, config.max_new_tokens, config.overlong_buffer)  # 0 unless asked for
    apart = None if recipe.mu is None else rollouts.is_anchor.view(R.shape).cpu()  # (B, G)
    A = dagrpo.group_advantages(shaped, recipe.scale, recipe.baseline, apart)  # (B, G)  Eq. 1, 12
    everywhere = run.score_all or run.scorer is scoring.rule_scores
    asked = None if everywhere else A != 0  # a judge costs: ask it only for the scores that the mask reads
    S = scoring.scores(rollouts, run.scorer, asked)  # (B, G)  Eq. 7
    distinct = dagrpo.rectification_mask(A, S, config.delta)  # (B, G)  Eq. 8-9
    keep = distinct if recipe.rectify else torch.ones_like(distinct)
    groups = Groups(rollouts, R, S, A, distinct, keep, responses, tokens)
    return run.change(groups) if run.change else groups


def sample(run: Run, problems: list[Problem], counts: list[int]) -> tuple[Rollouts, int, int]:
    """The rollouts, and how many responses and tokens were generated. DAPO samples groups of equal rewards again.

    DAPO itself draws new prompts for that. Here a group keeps its prompt, so that all methods see the same prompts.
    """

    def draw(counts: list[int]) -> Rollouts:
        config = run.config
        return run.path.sample_groups(run.policy, problems, counts, config.max_new_tokens, config.temperature)

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
    """`updates_per_batch` optimiser updates, each on its share of the groups. Returns the masks as used, and metrics.

    The paper samples 128 prompts and updates on 64: from the second update on, the policy is no longer the one that
    sampled, and the importance ratio has something to do. Without rollouts there is no ratio, so one update is made.
    """
    config, recipe, begin = run.config, run.recipe, time.perf_counter()
    rollouts, device, (B, G) = groups.rollouts, run.policy.device, groups.rewards.shape
    if run.start_entropy is None:
        run.start_entropy = mean_over(rollouts.entropy, rollouts.mask & ~rollouts.is_anchor[:, None])
    A = dagrpo.soften(recipe, groups.advantages, groups.scores, config.delta)  # (B, G)
    keep, losses, norms, clipped, trained, skipped = groups.keep.clone(), [], [], 0, 0, 0
    for share in torch.arange(B).chunk(config.updates_per_batch if recipe.rollouts else 1):
        rows = (share[:, None] * G + torch.arange(G)).flatten()  # (N,) rows of this update
        part = rollouts.select(rows.to(device))
        update = dagrpo.build_update(
            recipe,
            A[share].to(device),
            groups.keep[share].to(device),
            part.tokens,
            part.mask,
            part.logp,
            part.entropy,
            part.is_anchor,
            config.max_new_tokens,
            run.start_entropy,
        )
        keep[share] = update.keep.view(-1, G).cpu()
        loss, clips, tokens = backward(run, part, update)
        norm, done = optimizer_step(run, loss)
        rollouts.logp[rows] = part.logp  # `backward` has filled in the anchors'
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


def backward(run: Run, part: Rollouts, update: dagrpo.Update) -> tuple[float, int, int]:
    """Adds one update's gradient, one micro-batch at a time. Returns its loss, clipped tokens and trained tokens.

    Rows that can have no gradient are left out; the divisor (update.weight) has counted them. Tokens: of rollouts only.
    """
    config, recipe, path = run.config, run.recipe, run.path
    active = dagrpo.signal_rows(update, recipe, config.kl_beta).nonzero().squeeze(1)  # (n,)
    loss_sum, clipped, tokens = 0.0, 0, 0
    for index in path.micro_batches(part, active, config.micro_batch_tokens):
        with_entropy = recipe.entropy_bonus > 0
        logp, entropy = path.token_logprobs(run.policy, part, index, config.temperature, with_entropy)  # (n, t)
        micro = update.rows(index)
        if config.updates_per_batch == 1:
            micro = replace(micro, logp_old=logp.detach())  # the policy has not moved: the ratio is exactly 1
        if config.kl_beta:
            with torch.no_grad(), reference_policy(run) as reference:
                micro = replace(micro, logp_ref=path.token_logprobs(reference, part, index, config.temperature)[0])
        loss = dagrpo.policy_loss(logp, micro, recipe, entropy, config.kl_beta)  # Eq. 13. A good place for a breakpoint
        loss.backward()
        loss_sum += loss.item()
        clipped += int(dagrpo.surrogate(logp.detach(), micro, recipe)[1].sum())
        tokens += int((micro.mask & ~micro.is_anchor[:, None]).sum())
        anchor = micro.is_anchor
        part.logp[index[anchor], : logp.shape[1]] = logp[anchor].detach()
    return loss_sum, clipped, tokens


def optimizer_step(run: Run, loss: float) -> tuple[float, bool]:
    """Returns the gradient's norm before clipping, and whether a step was taken: it is if loss and norm are finite."""
    parameters = [parameter for parameter in run.policy.model.parameters() if parameter.requires_grad]
    for parameter in parameters:  # without signal, AdamW takes a step with gradient 0 instead of skipping it
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    norm = torch.nn.utils.clip_grad_norm_(parameters, run.config.max_grad_norm)
    done = math.isfinite(loss) and bool(torch.isfinite(norm))
    if done:
        run.optimizer.step()
    run.not_finite = 0 if done else run.not_finite + 1
    run.optimizer.zero_grad()  # to None, so that gradients take no memory while the next batch is sampled
    return norm.item(), done


@contextmanager
def reference_policy(run: Run) -> Iterator[Policy]:
    """The starting policy: a second model, or with LoRA the policy with its adapter switched off."""
    with nullcontext() if run.reference else run.policy.model.disable_adapter():
        yield run.reference or run.policy


# ---------------------------------------------------------------------------------------- the beginning


def start(config: Config, scorer: Scorer = scoring.rule_scores, checkpoint: Path | None = None) -> Run:
    """The policy (of the checkpoint, if there is one), its optimiser and, for a KL term, the reference."""
    begin, model = find_start(config.init_from or config.model, config.world), checkpoint and checkpoint / "model"
    torch.manual_seed(config.seed)
    how = {"checkpointing": config.gradient_checkpointing, "bf16": config.bf16, "trust": config.trust_remote_code}
    if config.lora_rank:
        policy = load_policy(begin, config.lora_rank, adapter=model, **how)
    else:
        policy = load_policy(str(model or begin), **how)
    parameters = [parameter for parameter in policy.model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=config.lr, weight_decay=0.0, fused=True)  # fused: one pass over memory
    run = Run(config, config.recipe, policy, optimizer, scorer, rollout if config.plain else fast)
    if not config.plain:
        fast.keep_freed_memory()
    if config.kl_beta and not config.lora_rank:
        run.reference = load_policy(begin, bf16=config.bf16, trust=config.trust_remote_code)
    if checkpoint:
        trainer = load_trainer(checkpoint, optimizer)
        run.step, run.start_entropy = trainer["step"], trainer["start_entropy"]
    return run


if __name__ == "__main__":
    main()
