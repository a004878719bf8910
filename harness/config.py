"""The settings of a run: one frozen dataclass, whose fields are the flags of train.py.

A preset is a list of flags, as you would type them; flags that you give with it override it. The recipe of a method
(dagrpo.METHODS) follows its paper; --scale, --divisor, --kl, --anchor-ratio and --anchor-when override the recipe.

Each class here is a group of flags in --help; `Config` has them all. transformers' HfArgumentParser makes the flags.

dagrpo.py is imported where it is read: it needs torch, which takes seconds, and --help must not wait for that.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field, replace
from math import inf
from typing import TYPE_CHECKING, Any, Literal

from transformers import HfArgumentParser

import tasks
from harness.console import Parser, fail, loading_torch
from judges.endpoint import LONG, SHORT
from maths.data import INSTRUCTION

if TYPE_CHECKING:
    from dagrpo import Recipe

PRESETS = {
    "builtin": (
        "the default: the built-in arithmetic and its own small policy, two CPU cores",
        "--steps 100 --batch-prompts 16 --group-size 8 --max-new-tokens 64 --lr 3e-5 --updates-per-batch 2",
    ),
    "smollm2": (
        "SmolLM2-135M on GSM8K, a CPU",
        "--model HuggingFaceTB/SmolLM2-135M-Instruct --data openai/gsm8k:main "
        "--instruction 'Give the final answer after ####.' --steps 30 --batch-prompts 2 "
        "--group-size 8 --max-new-tokens 128 --lr 1e-5 --updates-per-batch 1 --micro-batch-tokens 2048 --save-every 10",
    ),
    "qwen": (
        "Qwen2.5-0.5B-Instruct on GSM8K, one GPU; not run yet",
        "--model Qwen/Qwen2.5-0.5B-Instruct --data openai/gsm8k:main "
        "--instruction 'Give the final answer after ####.' --steps 200 --batch-prompts 32 --group-size 8 "
        "--max-new-tokens 512 --lr 1e-6 --updates-per-batch 2 --micro-batch-tokens 16384 --gradient-checkpointing "
        "--log-rollouts-every 5",
    ),
    "paper": (
        "every setting of the paper's section 6; not run yet. Its model has a window of 4,096 tokens, and the paper "
        "does not say how 8,192 fit: give a copy whose config.json extends it",
        "--model Qwen/Qwen2.5-Math-7B --data Elliott/Openr1-Math-46k-8192 --steps 500 --batch-prompts 128 "
        "--group-size 8 --max-new-tokens 8192 --temperature 1.0 --lr 1e-6 --updates-per-batch 2 --delta 3 "
        "--scorer judge --judge-url https://api.openai.com/v1 --judge-name gpt-4o --gradient-checkpointing "
        "--micro-batch-tokens 16384 --log-rollouts-every 10",
    ),
}


def flag(default: Any, text: str, metavar: str | None = None, **more: Any) -> Any:
    """A field whose help text is `text`."""
    return field(default=default, metadata={"help": text, **({"metavar": metavar} if metavar else {}), **more})


@dataclass(frozen=True)
class Target:
    """what to train, and where to write"""

    method: str = flag("dagrpo", "one of those that `python dagrpo.py` lists, such as grpo, dr_grpo, sft", "M")
    out: str = flag("", "the run folder [runs/METHOD]", "DIR")
    steps: int = flag(100, "one rollout batch each", "N")
    seed: int = flag(0, "order of prompts, and sampling", "S")
    preset: str | None = flag(None, "flags to start from, listed at the end", "NAME", choices=list(PRESETS))
    resume: bool = flag(False, "go on from the last checkpoint in --out")
    overwrite: bool = flag(False, "replace the run in --out")
    plain: bool = flag(False, "use rollout.py instead of fast/: slower, but easy to read and to step through")


@dataclass(frozen=True)
class Start:
    """where it starts"""

    model: str | None = flag(None, "a causal LM [the built-in warm start]", "ID_OR_DIR")
    init_from: str | None = flag(None, "a run folder or model folder to start from (sft, then grpo)", "DIR")
    lora_rank: int = flag(0, "train a LoRA of this rank; 0: train all weights", "R")
    trust_remote_code: bool = flag(False, "run Python files that come with a model; without the flag they never run")


@dataclass(frozen=True)
class Problems:
    """the problems

    Without --data: the built-in arithmetic. GSM8K (question, answer with ####), MATH (problem, solution, answer) and
    OpenR1-Math (prompt, target, reward_model.ground_truth) are recognised by their columns; for other data, name the
    columns, nested ones with dots. `python -m maths.data FILE` shows what would be read.
    """

    world: str = flag("plain", f"the built-in task's world: {', '.join(tasks.WORLDS)}", "W", choices=list(tasks.WORLDS))
    levels: str | None = flag(None, "levels of the built-in task [those that the world trains on]", "L,..")
    data: str | None = flag(None, "JSONL, JSON or parquet file, or hub id[:configuration]", "FILE_OR_ID")
    data_split: str = flag("train", "the split of a hub data set", "NAME")
    data_limit: int | None = flag(None, "only the first N usable problems", "N")
    question_column: str | None = flag(None, "the column of the question", "NAME")
    answer_column: str | None = flag(None, "the column of the answer", "NAME")
    demo_column: str | None = flag(None, "the column of the demonstration", "NAME")
    level_column: str | None = flag(None, "the column of the level", "NAME")
    instruction: str | None = flag(None, f"appended to every question of --data [{INSTRUCTION}]", "TEXT")


@dataclass(frozen=True)
class GroupShape:
    """the groups"""

    batch_prompts: int = flag(16, "prompts per step", "B")
    group_size: int = flag(8, "rows per prompt, an anchor included", "G")
    max_new_tokens: int = flag(64, "longest response, end token included", "T")
    temperature: float = flag(1.0, "for sampling and for the log-probs that are trained", "X")


@dataclass(frozen=True)
class Mask:
    """mechanism 1: the mask (Eq. 8-9; dagrpo_on, dagrpo; dagrpo_soft takes half of A at delta and masks nothing)

    A right response stays if it scores at least delta more than the best wrong one, a wrong one if it scores at
    least delta less than the worst right one. Scores go from 1 to 10; the paper's delta is 3.
    """

    scorer: Literal["rule", "judge", "local"] = flag(
        "rule", "what gives S: a rule, exact on the built-in task; an OpenAI-compatible endpoint; a local model"
    )
    judge_url: str | None = flag(None, "the endpoint; its API key, if it needs one, comes from OPENAI_API_KEY", "URL")
    judge_name: str | None = flag(None, "the model, as the endpoint names it", "NAME")
    judge_model: str | None = flag(None, "the model of --scorer local", "ID_OR_DIR")
    judge_concurrency: int = flag(16, "requests at a time", "N")
    judge_timeout: float = flag(120.0, "seconds for a request and its whole reply", "X")
    judge_tokens: int | None = flag(None, f"longest reply [{SHORT}, or {LONG} for a model that thinks first]", "N")
    judge_json: Literal["auto", "json_schema", "json_object", "none"] = flag(
        "auto", "how JSON is asked for; auto: the first way that works"
    )
    judge_cache: str | None = flag(None, "keeps scores for equal prompts; runs may share it [OUT/judge.jsonl]", "FILE")
    delta: float = flag(3.0, "the least gap between scores; 0 masks only rows on the wrong side", "D")


@dataclass(frozen=True)
class Anchors:
    """mechanism 2: anchors (Eq. 11; luffy, dagrpo)

    A verified demonstration takes one of a group's G places.
    """

    anchor_when: Literal["always", "hard"] = flag("always", "hard: only if no rollout is right")
    anchor_ratio: Literal["one", "shaped"] | None = flag(None, "shaped: LUFFY's p / (p + 0.1) [the recipe's]")
    extra_anchor: bool = flag(False, "G rollouts plus an anchor, instead of G rows in all")


@dataclass(frozen=True)
class Loss:
    """the loss; without these flags the recipe decides"""

    scale: Literal["none", "group", "mean", "batch", "batch_centred"] | None = flag(
        None, "what advantages are divided by: Eq. 1 has the group's std"
    )
    divisor: Literal["constant", "sequence", "tokens"] | None = flag(None, "length normalisation (Eq. 10)")
    kl_beta: float = flag(0.0, "weight of the KL term to the starting policy (Eq. 2)", "BETA")
    kl: Literal["k1", "k2", "k3", "k3_ratio"] | None = flag(None, "how KL is estimated")
    overlong_buffer: int = flag(0, "DAPO's penalty on the last T tokens before --max-new-tokens; 0: none", "T")


@dataclass(frozen=True)
class Optimiser:
    """the optimiser"""

    lr: float = flag(3e-5, "AdamW's constant learning rate; 1e-4 is too high for the built-in task", "LR")
    updates_per_batch: int = flag(2, "updates per step; its prompts are split among them", "K")
    max_grad_norm: float = flag(1.0, "the norm is logged before it is clipped", "X")
    gradient_checkpointing: bool = flag(False, "less memory, more time")
    bf16: bool = flag(False, "multiply in bf16 on a CPU too: faster if it has bf16 units")
    micro_batch_tokens: int = flag(16384, "tokens at a time: bounds memory, does not change the gradient", "N")


@dataclass(frozen=True)
class Saving:
    """what is saved and shown"""

    save_every: int = flag(50, "steps between checkpoints", "K")
    keep: int = flag(1, "checkpoints that stay, the latest included", "N")
    log_rollouts_every: int = flag(1, "write rollouts.jsonl every K steps", "K")
    record_changes: bool = flag(False, "also write how the step changed each log-prob: one more forward pass")
    show_every: int = flag(25, "print two groups every K steps; 0: never", "K")
    report: Literal["tensorboard", "wandb"] | None = flag(None, "curves while it runs; needs requirements-extra.txt")


GROUPS = (Target, Start, Problems, GroupShape, Mask, Anchors, Loss, Optimiser, Saving)


@dataclass(frozen=True)
class Config(*reversed(GROUPS)):  # reversed, so that fields keep the order of GROUPS
    """Every setting of a run."""

    @property
    def recipe(self) -> Recipe:
        """The method's recipe, with the choices that flags override. Ends the program if there is no such method."""
        loading_torch()
        from dagrpo import METHODS

        if self.method not in METHODS:
            fail(f"--method {self.method}: there is no such method; choose from {', '.join(METHODS)}")
        names = ("anchor_ratio", "scale", "divisor", "kl")
        given = {name: getattr(self, name) for name in names if getattr(self, name)}
        hard = {"gate": 0} if self.anchor_when == "hard" else {}
        return replace(METHODS[self.method], **given, **hard)


class ConfigParser(Parser, HfArgumentParser):
    """Flags from dataclasses: a group of --help for each, named by the first line of its docstring."""

    def _add_dataclass_arguments(self, kind: type) -> None:
        title, _, description = kind.__doc__.partition("\n")
        kind._argument_group_name = title
        super()._add_dataclass_arguments(kind)
        self._action_groups[-1].description = "\n".join(line.strip() for line in description.strip().splitlines())


def build_parser(about: str | None = None, **more: Any) -> ConfigParser:
    """All flags, grouped as --help shows them, and the presets."""
    presets = "\n\n".join(f"{name}: {what}\n    {flags}" for name, (what, flags) in PRESETS.items())
    epilog = f"presets; flags that you give with a preset override it\n\n{presets}"
    usage = "python train.py [--method M] [--out DIR] [flags]"
    return ConfigParser(GROUPS, **{"prog": "train.py", "usage": usage, "description": about, "epilog": epilog} | more)


def preset_flags(argv: list[str]) -> list[str]:
    """The flags of the preset that `argv` names."""
    first = Parser(add_help=False)
    first.add_argument("--preset", choices=PRESETS)
    name = first.parse_known_args(argv)[0].preset
    return shlex.split(PRESETS[name][1]) if name else []


def parse(argv: list[str], about: str | None = None) -> Config:
    """The checked settings. A preset's flags come first, so that those given with it override them."""
    config = Config(**vars(build_parser(about).parse_args([*preset_flags(argv), *argv])))
    config = replace(config, out=config.out or f"runs/{config.method}")
    check(config)
    return config


ABOVE_ZERO = ("lr", "temperature", "max_grad_norm", "judge_timeout")
AT_LEAST_ONE = (
    "steps", "batch_prompts", "max_new_tokens", "updates_per_batch", "save_every", "keep", "log_rollouts_every",
    "micro_batch_tokens", "judge_concurrency", "judge_tokens", "data_limit", "per_level", "limit", "batch",
    "per_device_rows",
)  # fmt: skip
LEAST = dict.fromkeys(ABOVE_ZERO, 1e-30) | dict.fromkeys(AT_LEAST_ONE, 1) | {"group_size": 2}  # 0 for others
MOST = {"lora_rank": 2**12, "judge_concurrency": 2**10, "k": 2**16}  # 2**31 - 1 for others
MOST_TOKENS = 2**27  # of responses, in memory at a time: 16 times the paper's, or 2 GB for their ids and log-probs


def check_numbers(settings: Any) -> None:
    """Ends the program with one line if a number in this dataclass cannot work. Checks every numeric setting."""
    for name, value in vars(settings).items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        shown, least, most = f"--{name.replace('_', '-')}", LEAST.get(name, 0), MOST.get(name, 2**31 - 1)
        if value in (inf, -inf) or value != value:
            fail(f"{shown} must be a finite number, not {value}")
        if value < least:
            why = ": a group needs something to compare with" if name == "group_size" else ""
            fail(f"{shown} must be {'above 0' if 0 < least < 1 else f'at least {least}'}, not {value}{why}")
        if value > most:
            fail(f"{shown} must be at most {most}, not {value}")


def check_memory(rows: int, tokens: int, flags: str) -> None:
    """Ends the program with one line if `rows` responses of `tokens` tokens at a time would exhaust the memory."""
    if rows * tokens > MOST_TOKENS:
        fail(f"{flags}: {rows:,} responses of {tokens:,} tokens at a time do not fit into memory: lower one of them")


def check(config: Config) -> None:
    """Ends the program with one line if a setting cannot work, before anything is written."""
    check_numbers(config)
    rows = config.batch_prompts * (config.group_size if config.recipe.rollouts else 1)
    check_memory(rows, config.max_new_tokens, "--batch-prompts, --group-size, --max-new-tokens")
    if config.batch_prompts % config.updates_per_batch:
        prompts, updates = config.batch_prompts, config.updates_per_batch
        fail(f"--batch-prompts {prompts} must be a multiple of --updates-per-batch {updates}")
    if config.anchor_when == "hard" and not config.recipe.rollouts:
        fail(f"--anchor-when hard: {config.method} samples nothing, so no group can be hard; leave it out")
    if config.resume and config.overwrite:
        fail("--resume and --overwrite exclude each other: give one of them")
    if config.model and config.init_from:
        fail("--model and --init-from both say where to start: give one of them")
    for scorer, flags in {"judge": ("judge_url", "judge_name"), "local": ("judge_model",)}.items():
        for name in flags:
            if config.scorer == scorer and not getattr(config, name):
                fail(f"--scorer {scorer} needs --{name.replace('_', '-')}")
    if config.recipe.scale == "mean" and config.overlong_buffer:
        fail("--overlong-buffer makes rewards below 0, and the scale 'mean' divides by their mean: drop one of them")
    levels = tasks.WORLDS[config.world].levels
    if config.levels and (unknown := set(config.levels.split(",")) - set(levels)):
        fail(f"--levels: there is no level {', '.join(sorted(unknown))}; choose from {', '.join(levels)}")
