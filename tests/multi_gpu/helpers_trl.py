"""Recorded batches, on which TRL's loop and train.py do the same update.

A recorded batch holds completions, rewards, scores, and log-probs of a sampling policy that is far enough away for some
tokens to clip. `Recorded` puts it in where TRL would sample, so that everything behind that is what a run does: reward
functions, gathering, micro-batches, accelerate's backward pass. Loss and gradient are read just before the optimiser.
"""

import csv
import types
from pathlib import Path

import torch
import transformers
import trl
from accelerate.utils import gather_object

import dagrpo
import rollout
import tasks
import train
from harness.config import Config
from multi_gpu import trl_dagrpo
from multi_gpu.trainer import DaGRPOConfig, DaGRPOTrainer

ROOT = Path(__file__).resolve().parents[2]
G, LONGEST, TEMPERATURE = 4, 44, 0.8
CLOSE = 2e-6  # of a gradient: the norm of the difference, over the norm
SMALL = ["--batch-prompts", "4", "--group-size", "4", "--max-new-tokens", "44", "--lr", "1e-3"]


def record(policy, groups=4, anchors=False, seed=0):
    """Completions of B groups of G with R, S, and log-probs of a policy that is a standard deviation of 1 away."""
    rng = torch.Generator().manual_seed(seed)
    problems = tasks.arithmetic("train", per_level=1)[:groups]
    rows = []
    for problem in problems:
        for i in range(G):
            length = int(torch.randint(3, 21, (1,), generator=rng))
            tokens = torch.randint(4, len(policy.tokenizer), (length,), generator=rng).tolist()
            tokens += [policy.eos_id] * (i != 1)  # one of each group was cut off
            anchor = anchors and i == G - 1
            rows.append(policy.encode_response(problem.demo) if anchor else tokens)
    R = torch.tensor([[1.0, 0, 0, 1], [1, 1, 0, 1], [0, 0, 0, 0], [0, 1, 0, 1]])[:groups]
    R[2, -1] = float(anchors)  # without its anchor the third group has no signal
    S = torch.tensor([[9.0, 2, 7, 10], [4, 9, 5, 9.5], [1, 2, 8, 9], [1, 9, 2, 8]])[:groups]
    batch = {"problems": problems, "tokens": rows, "R": R, "S": S, "anchors": anchors}
    part = as_rollouts(policy, batch)
    with torch.no_grad():
        logp, _ = rollout.token_logprobs(policy, part, torch.arange(len(rows)), TEMPERATURE)
    batch["old"] = (logp + torch.randn(logp.shape, generator=rng)).masked_fill(~part.mask, 0.0)
    batch["ref"] = (logp + 0.3 * torch.randn(logp.shape, generator=rng)).masked_fill(~part.mask, 0.0)
    return batch


def as_rollouts(policy, batch):
    prompt_ids, prompt_mask = rollout.pad_prompts(policy, batch["problems"])
    width = max(map(len, batch["tokens"]))
    tokens = torch.tensor([row + [policy.pad_id] * (width - len(row)) for row in batch["tokens"]])
    mask = torch.arange(width) < torch.tensor([[len(row)] for row in batch["tokens"]])
    is_anchor = torch.tensor([batch["anchors"] and n % G == G - 1 for n in range(len(tokens))])
    old = batch["old"].clone() if "old" in batch else torch.zeros(mask.shape)
    old[is_anchor] = torch.nan  # nobody sampled them
    return rollout.Rollouts(
        problems=batch["problems"], prompt_ids=prompt_ids, prompt_mask=prompt_mask, tokens=tokens, mask=mask, logp=old,
        entropy=torch.zeros(mask.shape), group=torch.arange(len(tokens)) // G, is_anchor=is_anchor,
        ended=torch.ones(len(tokens), dtype=torch.bool), texts=[""] * len(tokens),
    )  # fmt: skip


class Recorded(trl.GRPOTrainer):
    """Samples nothing: what `batch` holds is put in."""

    batch: dict
    seen = None

    def _generate_and_score_completions(self, inputs):
        first = self.accelerator.process_index * len(inputs)
        self.seen = gather_object([row["question"] for row in inputs])
        self.rows = range(first, first + len(inputs))
        output = super()._generate_and_score_completions(inputs)
        self.sampled = self.accelerator.gather(torch.tensor([self.asked])).sum().item()
        width = output["completion_ids"].shape[1]
        for name, kept in {"old": "old_per_token_logps", "ref": "ref_per_token_logps"}.items():
            if name == "old" or self.beta:
                output[kept] = self.batch[name][first : first + len(inputs), :width]
        return output

    def _generate_single_turn(self, prompt_ids, *args, **kwargs):
        taken = getattr(self, "_anchors", None) or [None] * len(prompt_ids)
        rows = [n for n, anchor in zip(self.rows, taken, strict=True) if anchor is None or self.use_vllm]
        self.asked = len(prompt_ids)
        assert len(rows) == len(prompt_ids)
        tokens = [self.batch["tokens"][n] for n in rows]
        return tokens, ([[-1.0] * len(row) for row in tokens] if self.use_vllm else None)


class RecordedOurs(DaGRPOTrainer, Recorded):
    """DaGRPOTrainer, whose super() is Recorded."""


class Catch(transformers.TrainerCallback):
    """The gradient as the optimiser gets it."""

    gradient = None

    def on_pre_optimizer_step(self, args, state, control, model, **_):
        if self.gradient is None:
            self.gradient = {n.removeprefix("module."): p.grad.clone() for n, p in model.named_parameters()}


def lookup(batch, name):
    """R or S of the batch as a function that TRL calls."""
    table = {
        (batch["problems"][n // G].question, tuple(row)): value
        for n, (row, value) in enumerate(zip(batch["tokens"], batch[name].flatten().tolist(), strict=True))
    }

    def function(completion_ids, question, **_):
        return [table[q, tuple(ids)] for q, ids in zip(question, completion_ids, strict=True)]

    return function


def settings(out, config=DaGRPOConfig, per_device=4, micro_batches=4, **further):
    given = {"temperature": TEMPERATURE, "num_generations": G, "max_completion_length": LONGEST, "use_cpu": True}
    given |= {"bf16": False, "gradient_checkpointing": False, "report_to": "none", "save_strategy": "no"}
    given |= {"per_device_train_batch_size": per_device, "gradient_accumulation_steps": micro_batches, "max_steps": 1}
    given |= {"logging_steps": 1, "max_grad_norm": 0.0, "shuffle_dataset": False, "disable_tqdm": True}
    return config(output_dir=str(out), **(given | further))


def make(folder, batch, args, kind=Recorded):
    ours = isinstance(args, DaGRPOConfig)
    anchors = [types.SimpleNamespace(text=p.demo) if batch["anchors"] else None for p in batch["problems"]]
    catch = Catch()
    trainer = (RecordedOurs if ours else kind)(
        str(folder),
        lookup(batch, "R"),
        args,
        train_dataset=trl_dagrpo.to_dataset(batch["problems"], anchors, chat=False),
        callbacks=[catch],
        **({"scorer": lookup(batch, "S")} if ours else {}),
    )
    trainer.batch, trainer.catch = batch, catch
    return trainer


def first_step(folder, batch, args):
    """Loss, gradient and log of one update, by TRL's own loop."""
    trainer = make(folder, batch, args)
    trainer.train()
    log = trainer.state.log_history[0]
    return log["loss"], trainer.catch.gradient, log, trainer


def learner(policy, batch, method, kl_beta=0.0):
    """Loss, gradient and number of clipped tokens of train.py."""
    recipe, part = dagrpo.METHODS[method], as_rollouts(policy, batch)
    A = dagrpo.group_advantages(batch["R"], recipe.scale, recipe.baseline)
    keep = dagrpo.rectification_mask(A, batch["S"]) if recipe.rectify else torch.ones_like(A, dtype=torch.bool)
    A = dagrpo.soften(recipe, A, batch["S"])
    update = dagrpo.build_update(
        recipe, A, keep, part.tokens, part.mask, part.logp, part.entropy, part.is_anchor, LONGEST
    )
    config = Config(kl_beta=kl_beta, micro_batch_tokens=200, updates_per_batch=2, temperature=TEMPERATURE)
    policy.model.zero_grad()
    loss, clipped, _ = train.backward(train.Run(config, recipe, policy, None), part, update)
    gradient = {name: parameter.grad.clone() for name, parameter in policy.model.named_parameters()}
    policy.model.zero_grad()
    return loss, gradient, clipped, keep & (A != 0)


def distance(mine, other):
    """Of two gradients: the norm of the difference over the norm; the same parameters must have one."""
    assert mine.keys() == other.keys()
    a, b = (torch.cat([g[name].flatten() for name in sorted(g)]).double() for g in (mine, other))
    assert b.norm() > 1e-4, "nothing to compare"
    return ((a - b).norm() / b.norm()).item()


def read(out):
    with (out / "metrics.csv").open() as file:
        return list(csv.DictReader(file))
