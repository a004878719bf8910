"""DaGRPO on TRL: the maths of dagrpo.py on accelerate, DeepSpeed, FSDP and vLLM, for those who outgrow one GPU.

    DaGRPOConfig     GRPOConfig with the name of a recipe (dagrpo.METHODS), delta and the ratio of anchors
    DaGRPOTrainer    GRPOTrainer with anchors in the groups (Eq. 11), scores and masks (Eq. 7-9), and dagrpo.policy_loss

It is written against TRL 1.16 and refuses any other version. It overrides these private hooks of TRL:
    _generate_and_score_completions    chooses the anchors' rows before sampling; adds A, keep, is_anchor to the batch
    _generate_single_turn              an anchor takes the last place of its group; nothing is sampled there
    _calculate_rewards                 the one place where rewards of all processes meet: A, S and masks are made here
    _prepare_inputs                    one divisor per update, over all processes and micro-batches
    _compute_loss                      dagrpo.policy_loss in place of TRL's
and uses _buffered_inputs (the micro-batches to come), _get_per_token_logps_and_entropies, _metrics.

Where it departs from train.py:
  1. An update takes rows from all groups of its rollout batch, not whole groups, because TRL shuffles the rows of a
     process. A, S and masks are still those of whole groups. These are refused: gtpo, chord and hpt, whose weights
     depend on the rest of a row's group; top_entropy, which needs sampling's entropies; sft, which samples nothing.
  2. dapo does not sample groups again. Masked rows go through the model too: TRL's micro-batches have a fixed size. A
     missing reward (None) leaves its whole group out.
  3. With several updates per batch, logp_old comes from one more forward pass, as TRL does it, not from sampling. With
     vLLM, the factor by which TRL corrects vLLM's log-probs multiplies the weights of the loss.
  4. With vLLM, a response is sampled in the anchor's place too, and thrown away: TRL cuts vLLM's output by position.
     An end-of-turn token that only the chat template names must be added to the stop tokens in generation_kwargs.
  5. `entropy` is that of the policy as it learns; it and `clip_fraction` are means over micro-batches; `grad_norm` is
     that of a step's last update. The order of prompts is TRL's.

Where TRL's own losses depart from the papers, or from dagrpo.py (tests/multi_gpu/test_trl.py measures a, b, c and e):
  a. dapo, cispo: with several updates per rollout batch, the token divisor is their mean, not each update's own.
  b. Equal rewards whose mean fp32 rounds give tiny advantages, which scale_rewards="group" multiplies by up to 1e4.
  c. The KL term is k3 times the importance ratio (use_bias_correction_kl), with gradient through both; here that is
     the recipe's choice: k3_ratio is deepseek_v32's, k3 most others'.
  d. grpo, gspo, dr_grpo, sapo, gmpo: a mean over each micro-batch, then a mean over micro-batches. It equals that of
     dagrpo.py only if these are equally large.
  e. luspo: its divisor lacks the longest response's length, so loss and gradient are max_completion_length times
     dagrpo.py's.
  f. Plain prompts get special tokens. Models get no position ids, so one with absolute positions sees left-padded
     prompts shifted. Ids of a padded vocabulary that have no token can be drawn. All three hold here too.
  g. Defaults are a linear schedule, dropout, gradient checkpointing. The command, trl_dagrpo.py, sets train.py's.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, fields, replace
from math import nan
from typing import Any

import torch
from torch import Tensor

import dagrpo
from harness.console import fail, need
from harness.report import mean_over
from policy import Policy

trl = need("trl", "trl_dagrpo.py")
TESTED = "1.16"
if not trl.__version__.startswith(f"{TESTED}."):
    fail(f"trl_dagrpo.py is tested with trl {TESTED}, found {trl.__version__}: pip install 'trl>={TESTED},<1.17'")

# fields of GRPOConfig that keep their defaults: the recipe decides, or this trainer does not support them
BY_RECIPE = ("loss_type", "epsilon", "epsilon_high", "delta", "importance_sampling_level", "scale_rewards")
BY_RECIPE += ("multi_objective_aggregation", "top_entropy_quantile", "entropy_coef", "use_adaptive_entropy")
BY_RECIPE += ("off_policy_mask_threshold", "use_bias_correction_kl", "sapo_temperature_pos", "sapo_temperature_neg")
PREFIX = "dagrpo/"  # in TRL's log; after it, the names are those of metrics.csv


def possible(recipe: dagrpo.Recipe) -> bool:
    """Can the recipe be trained on TRL? Point 1 at the head of this file says which cannot."""
    whole_groups = recipe.conflict_tokens or recipe.mu is not None
    return recipe.rollouts and not whole_groups and recipe.top_entropy == 1


@dataclass
class DaGRPOConfig(trl.GRPOConfig):
    """GRPOConfig, the name of a recipe, and what may overrule the recipe. Raises ValueError for what cannot work.

    Clip, divisor, ratio and the scale of advantages are the recipe's: TRL's own fields for them must stay as they are.
    """

    method: str = field(default="dagrpo", metadata={"help": "a recipe of dagrpo.METHODS"})
    # not named `delta`: in TRL that is a bound on ratios
    rectification_delta: float = field(default=3.0, metadata={"help": "Eq. 8-9: the least gap between scores"})
    anchor_ratio: str | None = field(default=None, metadata={"help": "one, shaped (LUFFY's); None: the recipe's"})
    disable_dropout: bool = field(default=True, metadata={"help": "the policy trained must be the one sampled from"})

    def __post_init__(self) -> None:
        known = [name for name, recipe in dagrpo.METHODS.items() if possible(recipe)]
        if self.method not in known:
            raise ValueError(f"there is no method {self.method!r} on TRL: choose one of {', '.join(known)}")
        if not self.rectification_delta >= 0:
            raise ValueError(f"rectification_delta must be at least 0, not {self.rectification_delta}")
        if self.anchor_ratio not in (None, "one", "shaped"):
            raise ValueError(f"anchor_ratio must be one or shaped, not {self.anchor_ratio!r}")
        for default in fields(trl.GRPOConfig):
            if default.name in BY_RECIPE and getattr(self, default.name) != default.default:
                raise ValueError(f"{default.name} is for TRL's own losses: drop it, {self.method}'s recipe decides")
        super().__post_init__()
        if self.steps_per_generation % self.gradient_accumulation_steps:
            names = "steps_per_generation must be a multiple of gradient_accumulation_steps"
            raise ValueError(f"{names}: an update has one divisor, so its rows must all be there")

    @property
    def recipe(self) -> dagrpo.Recipe:
        recipe = dagrpo.METHODS[self.method]
        return replace(recipe, anchor_ratio=self.anchor_ratio) if self.anchor_ratio else recipe


class DaGRPOTrainer(trl.GRPOTrainer):
    """GRPOTrainer with a recipe of dagrpo.METHODS.

    `scorer` gives S (Eq. 7). It is called like a reward function of TRL, on the rows with A != 0 alone, and returns a
    score in [1, 10] for each, None or NaN for a missing one. The column `anchor` of the dataset is a verified
    demonstration as text, or empty. Evaluation is TRL's own.
    """

    def __init__(self, model: Any, reward_funcs: Any, args: DaGRPOConfig, scorer: Any = None, **kwargs: Any) -> None:
        if (args.recipe.rectify or args.recipe.soft_mask) and scorer is None:
            raise ValueError(f"{args.method} masks by scores: give scorer=, a function like a reward function")
        if more := {"tools", "rollout_func", "environment_factory"} & {k for k, v in kwargs.items() if v is not None}:
            raise ValueError(f"{', '.join(sorted(more))}: responses of several turns are not supported here")
        self.recipe, self.scorer = args.recipe, scorer
        self._first = 0  # where this process's rows begin among all N
        self._anchors: list[list[int] | None] = []  # for each row of this process: the tokens that replace it
        self._added: dict[str, Tensor] = {}  # to be added to TRL's batch, each (n,)
        super().__init__(model, reward_funcs, args, **kwargs)
        self.eos_token_ids = list(self._policy.end_ids)  # TRL's own list lacks the chat template's end of a turn
        if not self.use_vllm:
            self.generation_config.eos_token_id = self.generation_kwargs["eos_token_id"] = self.eos_token_ids
        if self.aux_loss_enabled:
            raise ValueError("the load-balancing loss of MoE models is not supported: set router_aux_loss_coef=0")

    @property
    def _policy(self) -> Policy:
        return Policy(self.accelerator.unwrap_model(self.model), self.processing_class)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        if not self.model.training:
            return super()._generate_and_score_completions(inputs)
        begin, self._anchors = time.perf_counter(), [None] * len(inputs)
        self._first = self.accelerator.process_index * len(inputs)
        if self.recipe.anchors:
            encode, G = self._policy.encode_response, self.num_generations
            for n, row in enumerate(inputs):
                if row.get("anchor") and (self._first + n) % G == G - 1:  # the last of its group
                    tokens = encode(row["anchor"])
                    # if it were cut, it would teach never to stop
                    self._anchors[n] = tokens if len(tokens) <= self.max_completion_length else None
        output = super()._generate_and_score_completions(inputs) | self._added
        self._log_figures(rollout_seconds=time.perf_counter() - begin)
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
        # a missing reward leaves its group out
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
        softened = dagrpo.soften(self.recipe, A, S, self.args.rectification_delta)
        added = {"advantages": softened, "keep": keep, "is_anchor": facts[:, 1] > 0}
        self._added = {name: x.flatten()[mine] for name, x in added.items()}
        self._log_figures(**self._measure(R, A, S, distinct, keep, facts))
        return by_function

    def _measure(
        self, R: Tensor, A: Tensor, S: Tensor, distinct: Tensor, keep: Tensor, facts: Tensor
    ) -> dict[str, Any]:
        """A step's figures, named as in metrics.csv (harness/report.py): those of rollouts leave anchors out."""
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
        """Adds each token's weight, 1 / divisor, to the micro-batches of one update. N counts all processes' rows."""
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
        # TRL's correction of vLLM's inexact log-probs, if it is on: (n, T) or (n, 1)
        weight = inputs["weight"] * inputs.get("importance_sampling_ratio", 1.0)
        old = inputs.get("old_per_token_logps", logp.detach())  # if missing, nothing has moved: ratio 1
        A, keep, is_anchor = inputs["advantages"], inputs["keep"], inputs["is_anchor"]  # (n,)
        update = dagrpo.Update(A, keep, mask.bool(), weight, old, is_anchor, inputs.get("ref_per_token_logps"))
        loss = dagrpo.policy_loss(logp, update, self.recipe, entropy, self.beta)
        self._log_tokens(logp.detach(), entropy.detach(), update)
        return loss * self.accelerator.num_processes  # gradients are averaged over processes; the divisor counts all

    def _log_tokens(self, logp: Tensor, entropy: Tensor, update: dagrpo.Update) -> None:
        sampled = update.mask & ~update.is_anchor[:, None]  # (n, T)
        trained = sampled & (update.keep & (update.advantages != 0))[:, None]
        clipped = dagrpo.surrogate(logp, update, self.recipe)[1]
        sums = torch.stack([(entropy * sampled).sum(), sampled.sum(), clipped.sum(), trained.sum()])
        entropies, all_sampled, clips, all_trained = self.accelerator.reduce(sums, reduction="sum").tolist()
        self._log_figures(entropy=entropies / max(all_sampled, 1), clip_fraction=clips / max(all_trained, 1))

    def _log_figures(self, **figures: Any) -> None:
        """Adds to TRL's log, which takes the mean of what comes between two of its lines, and leaves out NaN."""
        for name, value in figures.items():
            self._metrics["train"][PREFIX + name].append(nan if value is None else float(value))
