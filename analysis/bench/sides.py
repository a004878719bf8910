"""What analysis.bench.step compares, each in a process of its own: our step, TRL's, plain `generate`, the machine.

The benchmark sets rewards and scores, so that the shares of kept rows are exact; half of each group is right. TRL runs
the N rows of a step at once, this project in micro-batches. Sampling time includes the rewards on TRL's side, and the
rewards, scores and masks on ours.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor

import fast
import fast.draw
import fast.sampling
import rollout
import scoring
import tasks
import train
from harness.config import parse
from harness.console import need
from harness.warm_start import find_start
from policy import Policy, load_policy, placement, transformer
from rollout import Rollouts


@dataclass(frozen=True)
class Case:
    """What is measured. `model` None: the built-in policy and its problems, whose prompts have their own lengths."""

    model: str | None = None
    prompts: int = 0  # B; 0: 16 of the built-in task, 2 of `model`
    group_size: int = 8  # G
    prompt_tokens: int = 160  # P, of `model`
    new_tokens: int = 64  # T
    micro_batch_tokens: int = 1024
    checkpointing: bool = False
    bf16: bool = False  # products in bf16 on a CPU, on both sides
    whole: bool = False  # every response has all T tokens: the end token is one that is hardly ever drawn
    ends: bool = False  # responses end at different lengths, T / 2 on average, alike on both sides: `Ends`
    lora_rank: int = 0  # on this project's side
    warm: int = 2  # steps that are not counted: the first use of memory can be slow
    steps: int = 2
    who: str = "all"  # one of SIDES


class Ends(LogitsProcessor):
    """Ends responses at different lengths, by the same rule on both sides: a hash of the row's last two tokens.

    On either side, each token is the last one with a probability of about 2 / T, and no row ends otherwise.
    """

    def __init__(self, eos_id: int, new_tokens: int) -> None:
        self.eos_id, self.every = eos_id, max(2, new_tokens // 2)

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        last = (ids[:, -1] * 7919 + ids[:, -2] * 104729 + ids.shape[1] * 31) % self.every == 0  # (n,)
        scores = scores.masked_fill(last[:, None], -torch.inf)
        scores[:, self.eos_id] = torch.where(last, 0.0, -torch.inf)
        return scores


def end_in_samples(policy: Policy, ends: Ends) -> None:
    """From here on, responses that fast/ samples end as `ends` says."""
    fast.sampling.sampling_works(policy)  # its check must come first: it needs the model's own distribution
    sampler = fast.draw.Sampler.__call__
    fast.draw.Sampler.__call__ = lambda self, ids, scores: sampler(self, ids, ends(ids, scores))


def questions(policy: Policy, case: Case) -> list[str]:
    """B prompts: the built-in task's, or text of P tokens."""
    if case.model is None:
        pool = tasks.arithmetic("train", case.prompts)
        return [problem.question for problem in pool[:: len(pool) // case.prompts][: case.prompts]]
    made = []
    for i in range(case.prompts):
        text = "+".join(str(i + j) for j in range(case.prompt_tokens))  # every tokenizer knows digits
        made.append(policy.tokenizer.decode(policy.tokenizer.encode(text)[: case.prompt_tokens]))
    return made


def never_drawn(policy: Policy, pool: list[tasks.Problem]) -> str:
    """The token that is least likely after the first prompt."""
    ids, mask = rollout.pad_prompts(policy, pool[:1])
    with torch.no_grad():
        logits = policy.model(input_ids=ids, attention_mask=mask.long()).logits[0, -1, : len(policy.tokenizer)]
    return policy.tokenizer.convert_ids_to_tokens(int(logits.argmin()))


def alternate(rollouts: Rollouts) -> torch.Tensor:
    """R (B, G): every second response is right."""
    return (torch.arange(len(rollouts.texts)) % 2 == 0).float().view(len(rollouts.problems), -1)


def ours(case: Case) -> dict[str, float]:
    """Steps of train.py on given rewards and scores."""
    shape = ["--batch-prompts", case.prompts, "--group-size", case.group_size, "--max-new-tokens", case.new_tokens]
    memory = ["--micro-batch-tokens", case.micro_batch_tokens, "--updates-per-batch", 1, "--lr", 1e-6]
    memory += ["--gradient-checkpointing"] if case.checkpointing else []
    memory += ["--bf16"] if case.bf16 else []
    memory += ["--lora-rank", case.lora_rank] if case.lora_rank else []
    model = ["--model", case.model] if case.model else []
    config = parse(["--method", "dagrpo_on", "--out", "nowhere", *map(str, [*shape, *memory, *model])])
    # of 4 neighbours two are right, with S 10 and 5, and two wrong, with 1 and 5: Eq. 8-9 keep the first of each
    scores = [10.0, 1.0, 5.0, 5.0] if case.who == "kept" else [10.0, 1.0]
    run = train.start(config, lambda pairs: [scores[i % len(scores)] for i in range(len(pairs))])
    run.policy.tokenizer.chat_template = run.policy.model.generation_config.eos_token_id = None  # one end token
    pool = [tasks.Problem(question, "0", "", "1") for question in questions(run.policy, case)]
    if case.ends:
        end_in_samples(run.policy, Ends(run.policy.eos_id, case.new_tokens))
    if case.whole:
        run.policy.tokenizer.eos_token = never_drawn(run.policy, pool)
    scoring.rewards = alternate
    steps = []
    for _ in range(case.warm + case.steps):
        begin = now()
        groups = train.collect(run, pool, [None] * len(pool))
        sampled = now()
        groups, _ = train.learn(run, groups)
        steps.append({"step": now() - begin, "rollout": sampled - begin, "learner": now() - sampled})
        kept = (groups.keep & (groups.advantages != 0)).float().mean().item()
        steps[-1] |= {"tokens": groups.tokens, "kept": kept}
    return medians(steps, case) | learner_work(run.policy, pool, groups.rollouts, steps[-1]["kept"])


def learner_work(policy: Policy, pool: list[tasks.Problem], rollouts: Rollouts, kept: float) -> dict[str, float]:
    """Operations of the learner's products (2 per weight and token forward, 4 backward), and bytes of the weights."""
    model = transformer(policy.model)
    head = model.get_output_embeddings().weight.numel()
    weights = sum(p.numel() for p in model.parameters() if p.dim() == 2) - head
    if model.get_output_embeddings().weight is not model.get_input_embeddings().weight:
        weights -= model.get_input_embeddings().weight.numel()
    prompts, responses = int(rollouts.prompt_mask.sum()), kept * int(rollouts.mask.sum())
    size = policy.autocast_dtype.itemsize if policy.autocast_dtype else 4  # bytes per weight, as sampling reads it
    return {"flop": 6 * (weights * (prompts + responses) + head * responses), "bytes": size * (weights + head)}


def plain_generate(case: Case) -> dict[str, float]:
    """Seconds per token of plain `generate` on every prompt G times, and of sample_groups with the same sampling."""
    policy = load_policy(find_start(case.model), bf16=case.bf16)
    policy.tokenizer.chat_template = None
    pool = [tasks.Problem(question, "0", "", "1") for question in questions(policy, case)]
    ids, mask = (x.repeat_interleave(case.group_size, dim=0) for x in rollout.pad_prompts(policy, pool))
    sampling = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "max_new_tokens": case.new_tokens}
    policy.model.generation_config = GenerationConfig()
    config = GenerationConfig(**sampling, eos_token_id=policy.eos_id, pad_token_id=policy.pad_id)
    ends = [Ends(policy.eos_id, case.new_tokens)] if case.ends else []
    for processor in ends:
        end_in_samples(policy, processor)
    steps = []
    for seed in range(case.warm + case.steps):
        torch.manual_seed(seed)
        begin = now()
        with torch.no_grad(), policy.autocast():
            out = policy.model.generate(
                input_ids=ids, attention_mask=mask.long(), generation_config=config, logits_processor=ends
            )
        plain = now() - begin
        generated, _ = rollout.completion_mask(out[:, ids.shape[1] :], policy.end_ids)
        torch.manual_seed(seed)
        begin = now()
        rollouts = fast.sample_groups(policy, pool, [case.group_size] * len(pool), case.new_tokens)
        mine = now() - begin
        # per token, because the two draw responses of different lengths
        steps.append({"plain": plain / int(generated.sum()), "ours": mine / int(rollouts.mask.sum())})
    return medians(steps, case)


def trl(case: Case) -> dict[str, float]:
    """Steps of TRL's GRPOTrainer, with the loss of Dr. GRPO."""
    need("trl", "the comparison with TRL")
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    policy = load_policy(find_start(case.model), bf16=case.bf16)
    policy.tokenizer.chat_template = None
    rows, out = case.prompts * case.group_size, tempfile.mkdtemp()
    config = GRPOConfig(
        output_dir=out, max_steps=case.warm + case.steps, per_device_train_batch_size=rows,
        num_generations=case.group_size, max_completion_length=case.new_tokens, temperature=1.0, top_p=1.0, top_k=0,
        beta=0.0, learning_rate=1e-6, loss_type="dr_grpo", scale_rewards="none",
        gradient_checkpointing=case.checkpointing,
        bf16=policy.autocast_dtype is not None, use_cpu=not torch.cuda.is_available(), report_to="none",
        save_strategy="no", disable_tqdm=True, logging_strategy="no", dataloader_pin_memory=False,
    )  # fmt: skip

    def reward(completions: list[str], **_: Any) -> list[float]:
        return [float(i % 2 == 0) for i in range(len(completions))]

    steps: list[dict[str, float]] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.begin = now()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            steps.append({"step": now() - self.begin} | sampled)
            steps[-1]["learner"] = steps[-1]["step"] - sampled["rollout"]

    prompts = Dataset.from_dict({"prompt": questions(policy, case) * (case.warm + case.steps)})
    trainer = GRPOTrainer(
        model=policy.model, reward_funcs=reward, args=config, train_dataset=prompts, callbacks=[Clock()],
        processing_class=policy.tokenizer,
    )  # fmt: skip
    if case.ends:
        policy.model.generate = partial(policy.model.generate, logits_processor=[Ends(policy.eos_id, case.new_tokens)])
    generate, sampled = trainer._generate_and_score_completions, {}

    def timed(inputs: Any) -> Any:
        begin = now()
        result = generate(inputs)
        sampled.update(rollout=now() - begin, tokens=int(result["completion_mask"].sum()))
        return result

    trainer._generate_and_score_completions = timed
    trainer.train()
    return medians(steps, case)


def limits(case: Case) -> dict[str, float]:
    """The machine's limits: operations per second in large products of this precision, bytes per second from memory."""
    place = placement(torch.cuda.is_available(), bool(case.lora_rank), case.bf16)
    width = 8192 if place.device == "cuda" else 2048
    a = torch.randn(width, width, dtype=place.autocast, device=place.device)
    x = torch.ones(2**28, device=place.device)
    return {"flop_per_second": 2 * width**3 / fastest(lambda: a @ a), "bytes_per_second": 4 * 2**28 / fastest(x.sum)}


def now() -> float:
    """Seconds on a clock, read once a GPU has finished its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_gb() -> float:
    """The most memory the process has used, in GB; on a GPU by tensors, without what PyTorch holds in reserve."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def fastest(work: Callable[[], Any], times: int = 5) -> float:
    """Seconds of the shortest run: a limit is what the machine reaches when nothing disturbs it."""
    seconds = []
    for _ in range(times):
        begin = now()
        work()
        seconds.append(now() - begin)
    return min(seconds)


def medians(steps: list[dict[str, float]], case: Case) -> dict[str, float]:
    return {name: statistics.median(step[name] for step in steps[case.warm :]) for name in steps[0]}


SIDES = {"trl": trl, "all": ours, "kept": ours, "generate": plain_generate, "limits": limits}
