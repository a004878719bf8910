"""DaGRPO on TRL: the maths of dagrpo.py on accelerate, DeepSpeed, FSDP and vLLM, for who outgrows one GPU.

    DaGRPOConfig     GRPOConfig, the name of a recipe (dagrpo.METHODS), delta, anchors
    DaGRPOTrainer    GRPOTrainer with anchors in the groups (Eq. 11), scores and masks (Eq. 7-9), and dagrpo.policy_loss
    this file, run   trains what train.py trains, by the same flags, into the same kind of run folder

It is written against TRL 1.16 and refuses any other version. Of TRL it overrides these private hooks:
    _generate_and_score_completions    which rows are anchors, before sampling; adds A, keep, is_anchor to the batch
    _generate_single_turn              an anchor takes the last place of its group; nothing is sampled there
    _calculate_rewards                 the one place where rewards of all processes meet: A, S and masks are made here
    _prepare_inputs                    one divisor per update, over all processes and micro-batches
    _compute_loss                      dagrpo.policy_loss in place of TRL's
and uses _buffered_inputs (the micro-batches to come), _get_per_token_logps_and_entropies, _metrics.

Where it departs from train.py:
  1. An update takes rows of all groups of its rollout batch, not whole groups: TRL shuffles the rows of a process. A, S
     and masks are of whole groups, wherever their rows are. gtpo, whose loss compares a group's tokens, is refused.
  2. dapo samples no group again. Masked rows go through the model too: TRL's micro-batches have a fixed size. A reward
     that could not be had (None) leaves its whole group out.
  3. With several updates per batch, logp_old comes from one more forward pass, as TRL does it, not from sampling. With
     vLLM, the factor by which TRL corrects vLLM's log-probs multiplies the weights of the loss.
  4. With vLLM, a response is sampled in the anchor's place too, and thrown away: TRL cuts its answer by position.
  5. `entropy` is the policy's as it learns, a mean over micro-batches, as is `clip_fraction`; `grad_norm` is that of a
     step's last update. The order of prompts is TRL's.

Where TRL's own losses depart from the papers, or from dagrpo.py (tests/test_trl.py measures a, b and c):
  a. dapo, cispo: with several updates per rollout batch, the token divisor is their mean, not each update's own.
  b. Equal rewards whose mean fp32 rounds give tiny advantages, which scale_rewards="group" multiplies by up to 1e4.
  c. The KL term is k3 times the importance ratio (use_bias_correction_kl), with gradient through both; here it is k3.
  d. grpo, gspo, dr_grpo: a mean of each micro-batch, then over these: ours only as long as these are equally large.
  e. Plain prompts get special tokens (a BOS, where there is one), and models no position ids: one with absolute
     positions sees left-padded prompts shifted. Both hold here too.
  f. Defaults are a linear schedule, dropout, gradient checkpointing. The command line below sets train.py's.

    accelerate launch --multi_gpu --num_processes 2 trl_dagrpo.py --steps 100 --out runs/trl

works without GPUs too, on gloo; with `--cpu` it would be a single process.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from math import nan
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset
from torch import Tensor

import dagrpo
from anchors import Anchor
from harness import config, prepare, runfolder
from harness.console import Parser, fail, need
from harness.report import mean_over
from harness.warm_start import warm_start
from judges import endpoint
from policy import Policy, resolve_model
from scoring import Scorer, verify
from tasks import Problem

trl = need("trl", "trl_dagrpo.py")
TESTED = "1.16"
if not trl.__version__.startswith(f"{TESTED}."):
    fail(f"trl_dagrpo.py is tested with trl {TESTED}, found {trl.__version__}: pip install 'trl>={TESTED},<1.17'")

# of GRPOConfig: what the recipe decides here, and what is not done
BY_RECIPE = ("loss_type", "epsilon", "epsilon_high", "delta", "importance_sampling_level", "scale_rewards")
BY_RECIPE += ("multi_objective_aggregation", "top_entropy_quantile", "entropy_coef", "use_adaptive_entropy")
BY_RECIPE += ("off_policy_mask_threshold", "use_bias_correction_kl")
# of train.py: what is not done here
REFUSED = ("resume", "insist", "lora_rank", "anchor_when", "extra_anchor", "overlong_buffer", "scale", "divisor")
REFUSED += ("random_mask", "reward_is_score")
IGNORED = ("micro_batch_tokens", "show_every", "log_rollouts_every")
OURS = "dagrpo/"  # in TRL's log; behind it the names are those of metrics.csv


@dataclass
class DaGRPOConfig(trl.GRPOConfig):
    """GRPOConfig, the name of a recipe, and what may overrule the recipe. Raises ValueError for what cannot work.

    Clip, divisor, ratio and the scale of advantages are the recipe's: TRL's own fields for them must stay as they are.
    """

    method: str = field(default="dagrpo", metadata={"help": "a recipe of dagrpo.METHODS"})
    # not `delta`: that is another thing in TRL, a bound on ratios
    rectification_delta: float = field(default=3.0, metadata={"help": "Eq. 8-9: the least distance of scores"})
    anchors: bool | None = field(default=None, metadata={"help": "the column `anchor` as group members; None: recipe"})
    anchor_ratio: str | None = field(default=None, metadata={"help": "one, shaped (LUFFY's); None: the recipe's"})
    disable_dropout: bool = field(default=True, metadata={"help": "what is trained must be what was sampled"})

    def __post_init__(self) -> None:
        known = [name for name, recipe in dagrpo.METHODS.items() if not recipe.conflict_tokens]
        if self.method not in known:
            raise ValueError(f"unknown method {self.method!r} on TRL: choose one of {', '.join(known)}")
        if not self.rectification_delta >= 0:
            raise ValueError(f"rectification_delta must be at least 0, not {self.rectification_delta}")
        if self.anchor_ratio not in (None, "one", "shaped"):
            raise ValueError(f"anchor_ratio must be one or shaped, not {self.anchor_ratio!r}")
        for default in fields(trl.GRPOConfig):
            if default.name in BY_RECIPE and getattr(self, default.name) != default.default:
                raise ValueError(f"{default.name} is for TRL's own losses: here the recipe of {self.method} decides")
        super().__post_init__()
        if self.steps_per_generation % self.gradient_accumulation_steps:
            names = "steps_per_generation must be a multiple of gradient_accumulation_steps"
            raise ValueError(f"{names}: an update has one divisor, so its rows must all be there")

    @property
    def recipe(self) -> dagrpo.Recipe:
        given = {"anchors": self.anchors, "anchor_ratio": self.anchor_ratio}
        return replace(dagrpo.METHODS[self.method], **{k: v for k, v in given.items() if v is not None})


class DaGRPOTrainer(trl.GRPOTrainer):
    """GRPOTrainer with a recipe of dagrpo.METHODS.

    `scorer` gives S (Eq. 7). It is called like a reward function of TRL, on the rows with A != 0 alone, and returns a
    score in [1, 10] for each, None or NaN where there is none; `as_function` makes one of this project's scorers. The
    column `anchor` of the dataset is a verified demonstration as text, or empty. Evaluation is TRL's own.
    """

    def __init__(self, model: Any, reward_funcs: Any, args: DaGRPOConfig, scorer: Any = None, **kwargs: Any) -> None:
        if args.recipe.rectify and scorer is None:
            raise ValueError(f"{args.method} masks by scores: give scorer=, a function like a reward function")
        if more := {"tools", "rollout_func", "environment_factory"} & {k for k, v in kwargs.items() if v is not None}:
            raise ValueError(f"{', '.join(sorted(more))}: responses of several turns are not done here")
        self.recipe, self.scorer = args.recipe, scorer
        self._first = 0  # where this process's rows begin among all N
        self._anchors: list[list[int] | None] = []  # of this process's rows: the tokens that take the row's place
        self._added: dict[str, Tensor] = {}  # what TRL's batch needs further, each (n,)
        super().__init__(model, reward_funcs, args, **kwargs)
        if self.aux_loss_enabled:
            raise ValueError("the load-balancing loss of MoE models is not done here: router_aux_loss_coef=0")

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        if not self.model.training:
            return super()._generate_and_score_completions(inputs)
        begin, self._anchors = time.perf_counter(), [None] * len(inputs)
        self._first = self.accelerator.process_index * len(inputs)
        if self.recipe.anchors:
            encode, G = Policy(None, self.processing_class).encode_response, self.num_generations
            for n, row in enumerate(inputs):
                if row.get("anchor") and (self._first + n) % G == G - 1:  # the last of its group
                    tokens = encode(row["anchor"])
                    # cut, it would teach never to stop
                    self._anchors[n] = tokens if len(tokens) <= self.max_completion_length else None
        output = super()._generate_and_score_completions(inputs) | self._added
        self._log_ours(rollout_seconds=time.perf_counter() - begin)
        return output

    def _generate_single_turn(self, prompt_ids: list, *args: Any, **kwargs: Any) -> tuple[list, list | None]:
        if not self.model.training or not any(self._anchors):
            return super()._generate_single_turn(prompt_ids, *args, **kwargs)
        rows = [n for n, anchor in enumerate(self._anchors) if anchor is None]
        if self.use_vllm or not rows:  # without a row to sample, this process would leave the others waiting
            rows = list(range(len(prompt_ids)))
        tokens, logp = super()._generate_single_turn([prompt_ids[n] for n in rows], *args, **kwargs)
        sampled = dict(zip(rows, tokens, strict=True))
        if logp is not None:  # nobody sampled an anchor: TRL takes None as "not known", and leaves its weight at 1
            known = dict(zip(rows, logp, strict=True))
            logp = [[None] * len(anchor) if anchor else known[n] for n, anchor in enumerate(self._anchors)]
        return [anchor or sampled[n] for n, anchor in enumerate(self._anchors)], logp

    def _calculate_rewards(
        self, inputs: list[dict[str, Any]], prompts: list, completions: list, completion_ids_list: list[list[int]]
    ) -> Tensor:
        by_function = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)  # (N, functions)
        if not self.model.training:
            return by_function
        R = (by_function * self.reward_weights.to(by_function.device)).nansum(dim=1)  # (N,) of all processes
        R = R.masked_fill(by_function.isnan().all(dim=1), nan).view(-1, self.num_generations)  # (B, G)
        # a group with a reward that is not to be had is left out
        A = dagrpo.group_advantages(R, self.recipe.scale, self.recipe.baseline).nan_to_num(nan=0.0)  # (B, G)  Eq. 1, 12
        mine = slice(self._first, self._first + len(inputs))
        asked = (A.flatten()[mine] != 0).nonzero().flatten().tolist() if self.scorer else []
        S = torch.full((len(inputs),), nan, device=A.device)  # (n,) of this process
        if asked:
            columns = {name: [row[name] for row in inputs] for name in inputs[0] if name != "prompt"}
            columns |= {"prompts": prompts, "completions": completions, "completion_ids": completion_ids_list}
            values = self.scorer(**{name: [column[n] for n in asked] for name, column in columns.items()})
            if len(values) != len(asked):
                raise ValueError(f"the scorer returned {len(values)} scores for {len(asked)} responses")
            S[asked] = torch.tensor([nan if value is None else float(value) for value in values], device=A.device)
        ends = [bool(ids) and ids[-1] in self.eos_token_ids for ids in completion_ids_list]
        facts = list(zip(map(len, completion_ids_list), map(bool, self._anchors), ends, strict=True))
        facts = self.accelerator.gather(torch.tensor(facts, dtype=torch.float, device=A.device))  # (N, 3)
        S = self.accelerator.gather(S).view_as(A)  # (B, G)  Eq. 7
        distinct = dagrpo.rectification_mask(A, S, self.args.rectification_delta)  # (B, G)  Eq. 8-9
        keep = distinct if self.recipe.rectify else torch.ones_like(distinct)
        added = {"advantages": A, "keep": keep, "is_anchor": facts[:, 1] > 0}
        self._added = {name: x.flatten()[mine] for name, x in added.items()}
        self._log_ours(**self._measure(R, A, S, distinct, keep, facts))
        return by_function

    def _measure(
        self, R: Tensor, A: Tensor, S: Tensor, distinct: Tensor, keep: Tensor, facts: Tensor
    ) -> dict[str, Any]:
        """A step's figures as in metrics.csv (groups.measure): rollout figures leave anchors out."""
        length, anchor, ended = facts.T.reshape(3, *A.shape)  # (B, G) each
        anchor, signal = anchor > 0, A != 0  # (B, G)
        sampled = ~anchor
        return {
            "reward": mean_over(R, sampled & ~R.isnan()),
            "response_length": mean_over(length, sampled),
            "ended_fraction": mean_over(ended, sampled),
            "no_signal_groups": (~signal).all(dim=1).sum(),
            "masked_groups": (signal.any(dim=1) & ~(signal & keep).any(dim=1)).sum(),
            "unscored_groups": (signal & S.isnan()).any(dim=1).sum() if self.scorer else None,
            "kept_fraction": mean_over(keep, signal),
            "kept_positive": mean_over(keep, A > 0),
            "kept_negative": mean_over(keep, A < 0),
            "distinct_fraction": mean_over(distinct, signal) if self.scorer else None,
            "anchors": anchor.sum(),
            "anchors_kept": mean_over(keep & signal, anchor),
            "scorer_calls": signal.sum() if self.scorer else 0,
            "responses": A.numel() if self.use_vllm else sampled.sum(),
            "tokens": length[sampled].sum(),
        }

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        inputs = super()._prepare_inputs(generation_batch)
        if self.model.training and "weight" not in inputs:  # a fresh batch: TRL has just cut it into micro-batches
            size = self.args.gradient_accumulation_steps
            for start in range(0, len(self._buffered_inputs), size):
                self._weigh(self._buffered_inputs[start : start + size])
        return inputs

    def _weigh(self, micro_batches: list[dict[str, Any]]) -> None:
        """Adds each token's weight, 1 / divisor, to the micro-batches of one update. N is of all processes."""
        mask = torch.cat([batch["completion_mask"] for batch in micro_batches])  # (n, T)
        lengths = self.accelerator.gather(mask.sum(dim=1))  # (N,)
        width = max(int(lengths.max()), mask.shape[1])
        everyone = torch.arange(width, device=mask.device) < lengths[:, None]  # (N, T)
        weight = dagrpo.divisor_weights(everyone, self.recipe.divisor, self.max_completion_length)  # (N, T)
        first = self.accelerator.process_index * len(mask)
        own = weight[first : first + len(mask), : mask.shape[1]]  # (n, T)
        for batch, part in zip(micro_batches, own.chunk(len(micro_batches)), strict=True):
            batch["weight"] = part

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        if not self.model.training:
            return super()._compute_loss(model, inputs)
        tokens, mask = inputs["completion_ids"], inputs["completion_mask"]  # (n, T)
        ids = torch.cat([inputs["prompt_ids"], tokens], dim=1)  # (n, P + T)
        attention = torch.cat([inputs["prompt_mask"], mask], dim=1)  # (n, P + T)
        log_probs = self._get_per_token_logps_and_entropies
        logp, entropy, _ = log_probs(model, ids, attention, tokens.shape[1], compute_entropy=True)  # (n, T)
        # TRL's correction of what vLLM's log-probs are off, where it is on: (n, T) or (n, 1)
        weight = inputs["weight"] * inputs.get("importance_sampling_ratio", 1.0)
        old = inputs.get("old_per_token_logps", logp.detach())  # not there: nothing has moved, and the ratio is 1
        A, keep, is_anchor = inputs["advantages"], inputs["keep"], inputs["is_anchor"]  # (n,)
        update = dagrpo.Update(A, keep, mask.bool(), weight, old, is_anchor, inputs.get("ref_per_token_logps"))
        loss = dagrpo.policy_loss(logp, update, self.recipe, entropy, self.beta)
        self._log_tokens(logp.detach(), entropy.detach(), update)
        return loss * self.accelerator.num_processes  # gradients are averaged over processes; the divisor is of all

    def _log_tokens(self, logp: Tensor, entropy: Tensor, update: dagrpo.Update) -> None:
        sampled = update.mask & ~update.is_anchor[:, None]  # (n, T)
        trained = sampled & (update.keep & (update.advantages != 0))[:, None]
        clipped = dagrpo.surrogate(logp, update, self.recipe)[1]
        sums = torch.stack([(entropy * sampled).sum(), sampled.sum(), clipped.sum(), trained.sum()])
        entropies, all_sampled, clips, all_trained = self.accelerator.reduce(sums, reduction="sum").tolist()
        self._log_ours(entropy=entropies / max(all_sampled, 1), clip_fraction=clips / max(all_trained, 1))

    def _log_ours(self, **figures: Any) -> None:
        """Into TRL's log, which takes the mean of what comes between two of its lines, and leaves out NaN."""
        for name, value in figures.items():
            self._metrics["train"][OURS + name].append(nan if value is None else float(value))


# ---------------------------------------------------------------------------------------- functions as TRL calls them


def text_of(completion: str | list[dict[str, str]]) -> str:
    """A completion's text, of plain prompts and of conversations."""
    return completion if isinstance(completion, str) else completion[-1]["content"]


def right(completions: list, answer: list[str], **_: Any) -> list[float]:
    """The reward R: is the final answer right?"""
    return [float(verify(text_of(completion), wanted)) for completion, wanted in zip(completions, answer, strict=True)]


def as_function(scorer: Scorer) -> Callable[..., list[float]]:
    """One of this project's scorers (scoring.rule_scores, a judge) as a function that DaGRPOTrainer calls."""

    def scores(completions: list, question: list, answer: list, demo: list, level: list, **_: Any) -> list[float]:
        problems = map(Problem, question, answer, demo, level)
        return scorer([(problem, text_of(c)) for problem, c in zip(problems, completions, strict=True)])

    return scores


def to_dataset(pool: list[Problem], prepared: list[Anchor | None], chat: bool) -> Dataset:
    """The problems with their anchors as TRL's columns; `chat`: the tokenizer has a template."""
    rows = [{"prompt": [{"role": "user", "content": p.question}] if chat else p.question, **asdict(p)} for p in pool]
    anchors = [anchor.text if anchor else "" for anchor in prepared]
    return Dataset.from_list([row | {"anchor": text} for row, text in zip(rows, anchors, strict=True)])


# ---------------------------------------------------------------------------------------- the command line


class RunFolder(transformers.TrainerCallback):
    """Writes TRL's log as metrics.csv: a row a step, one rollout batch with its updates."""

    def __init__(self, out: Path, updates: int) -> None:
        self.out, self.updates, self.last = out, updates, time.perf_counter()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
        if not state.is_world_process_zero or "loss" not in logs:
            return
        row = {name.removeprefix(OURS): value for name, value in logs.items() if name.startswith(OURS)}
        row |= {"loss": logs["loss"], "grad_norm": logs.get("grad_norm")}
        begin, self.last = self.last, time.perf_counter()
        row["train_seconds"] = self.last - begin - row["rollout_seconds"]
        runfolder.append_metrics(self.out, {"step": state.global_step // self.updates, **row})


def parse(argv: list[str]) -> argparse.Namespace:
    """The flags of train.py, those that TRL needs, and no flag that would be ignored in silence."""
    first = Parser(add_help=False)
    first.add_argument("--preset", choices=config.PRESETS)
    preset = first.parse_known_args(argv)[0].preset
    parser = config.build_parser(__doc__)
    parser.prog, parser.usage = "trl_dagrpo.py", "accelerate launch trl_dagrpo.py --out DIR [flags]"
    about = f"The flags above are train.py's. Not done: {', '.join(REFUSED)}. Without effect: {', '.join(IGNORED)}."
    group = parser.add_argument_group("TRL", about)
    group.add_argument("--per-device-rows", type=int, default=16, metavar="N", help="at most so many in a micro-batch")
    told = "further fields of GRPOConfig, values as JSON: use_vllm=true vllm_mode=colocate"
    group.add_argument("--trl", nargs="+", default=[], metavar="FIELD=VALUE", help=told)
    preset_flags = shlex.split(config.PRESETS[preset][1]) if preset else []
    args = parser.parse_args(["--method", "dagrpo", *preset_flags, *argv])
    config.check(args)
    for name in REFUSED:
        if getattr(args, name) != parser.get_default(name):
            fail(f"--{name.replace('_', '-')} is not done on TRL: take train.py for it")
    if args.per_device_rows < 1:
        fail(f"--per-device-rows must be at least 1, not {args.per_device_rows}")
    return args


def make_config(args: argparse.Namespace) -> DaGRPOConfig:
    """DaGRPOConfig of the flags: --batch-prompts groups a step, split among updates, processes and micro-batches."""
    updates, processes = args.updates_per_batch, int(os.environ.get("WORLD_SIZE", 1))
    rows, parts = args.batch_prompts * args.group_size, updates * processes
    if rows % parts:
        fail(f"{rows} responses a step cannot be split among {updates} updates on {processes} processes")
    per_device = max(n for n in range(1, args.per_device_rows + 1) if rows // parts % n == 0)
    micro_batches, gpu = rows // parts // per_device, torch.cuda.is_available()
    given = {"method": args.method, "rectification_delta": args.delta, "anchor_ratio": args.anchor_ratio}
    given |= {"output_dir": args.out, "seed": args.seed, "beta": args.kl_beta, "temperature": args.temperature}
    given |= {"num_generations": args.group_size, "max_completion_length": args.max_new_tokens}
    given |= {"learning_rate": args.lr, "lr_scheduler_type": "constant", "max_grad_norm": args.max_grad_norm}
    given |= {"per_device_train_batch_size": per_device, "gradient_accumulation_steps": micro_batches}
    given |= {"steps_per_generation": micro_batches * updates, "max_steps": args.steps * updates}
    given |= {"logging_steps": updates, "save_steps": args.save_every * updates, "save_total_limit": args.keep}
    given |= {"gradient_checkpointing": args.gradient_checkpointing, "bf16": gpu or args.bf16, "use_cpu": not gpu}
    known = {f.name for f in fields(DaGRPOConfig) if f.init}
    for word in args.trl:
        name, found, value = word.partition("=")
        if name not in known or not found:
            fail(f"--trl {word}: not a field of GRPOConfig with its value, as in use_vllm=true")
        try:
            given[name] = json.loads(value)
        except ValueError:
            given[name] = value
    try:
        return DaGRPOConfig(**given)
    except ValueError as error:
        fail(str(error))


def main(argv: list[str] | None = None) -> None:
    args = parse(sys.argv[1:] if argv is None else argv)
    config, out, begin = make_config(args), Path(args.out), args.init_from or args.model
    main_process = config.process_index == 0
    with config.main_process_first(local=False):  # if there is no warm start yet, one trains it for all
        if main_process:
            runfolder.claim(out, resume=False, overwrite=args.overwrite)
        where = resolve_model(begin) if begin else str(warm_start())
    tokenizer, pool = load_tokenizer(where), prepare.load_problems(args)
    prepared, fates = prepare.prepare_anchors(args, config.recipe, pool, Policy(None, tokenizer))
    scorer, _ = prepare.make_scorer(args, config.recipe)
    data = to_dataset(pool, prepared, chat=bool(tokenizer.chat_template))
    further = {"processing_class": tokenizer, "callbacks": [RunFolder(out, args.updates_per_batch)]}
    trainer = DaGRPOTrainer(where, right, config, as_function(scorer), train_dataset=data, **further)
    if main_process:
        runfolder.clear(out)
        given = vars(args) | {"recipe": asdict(config.recipe), "anchors": fates, "problems": len(pool)}
        launch = {name: given.pop(name) for name in ("per_device_rows", "trl")} | {"processes": config.world_size}
        versions = {"trl": trl.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
        about = given | {"launch": launch, "python": platform.python_version(), **versions}
        (out / "config.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    try:
        trainer.train()
    except endpoint.JudgeDown as error:
        fail(f"{error}. The checkpoints in {out} are whole models: --init-from takes one")
    trainer.save_model(str(out / "checkpoint" / "model"))
    if main_process:
        print(f"done: {out} holds the run. Next: python eval.py --model {out}; python -m analysis.curves {out}")


if __name__ == "__main__":
    main()
