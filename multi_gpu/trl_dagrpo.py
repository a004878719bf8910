"""train.py on several GPUs: the same flags, the same kind of run folder, and TRL's loop with the trainer of trainer.py.

    accelerate launch --multi_gpu --num_processes 2 multi_gpu/trl_dagrpo.py --steps 100 --out runs/trl

works without GPUs too, on gloo; with accelerate's `--cpu`, it would start a single process. The run folder has no
rollouts.jsonl. The head of trainer.py lists where this departs from train.py.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

# accelerate runs this file as a script: Python then looks for modules in multi_gpu/, not in the project's root
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import transformers
from datasets import Dataset

from anchors import Anchor
from harness import runfolder
from harness.config import GROUPS, Config, ConfigParser, build_parser, check, flag, preset_flags
from harness.console import fail, one_line
from harness.prepare import load_task
from harness.warm_start import find_start
from judges.prompt import JudgeDown
from multi_gpu.trainer import PREFIX, DaGRPOConfig, DaGRPOTrainer, trl
from policy import load_tokenizer
from scoring import Scorer, verify
from tasks import Problem

REFUSED = ("resume", "plain", "lora_rank", "anchor_when", "extra_anchor", "overlong_buffer", "scale", "divisor", "kl",
           "record_changes", "report")  # fmt: skip
IGNORED = ("micro_batch_tokens", "show_every", "log_rollouts_every")
TRL_HELP = "further fields of GRPOConfig, values as JSON: use_vllm=true vllm_mode=colocate"


# ---------------------------------------------------------------------------------------- the flags


@dataclass(frozen=True)
class Launch:
    __doc__ = f"""TRL

    The default of --method is dagrpo. Of the flags above,
    these are refused: {", ".join(REFUSED)};
    these have no effect: {", ".join(IGNORED)}.
    """

    per_device_rows: int = flag(16, "at most so many rows in a micro-batch of one device", "N")
    trl: list[str] | None = field(default=None, metadata={"help": TRL_HELP, "metavar": "FIELD=VALUE"})


@dataclass(frozen=True)
class TrlConfig(Launch, Config):
    """Every setting of a run on TRL: train.py's, and Launch's."""


def parse(argv: list[str]) -> TrlConfig:
    """The checked settings. Ends the program with one line for a flag of REFUSED."""
    usage = "accelerate launch multi_gpu/trl_dagrpo.py --out DIR [flags]"
    about = {"prog": "trl_dagrpo.py", "usage": usage, "description": __doc__, "epilog": build_parser().epilog}
    given = ConfigParser((*GROUPS, Launch), **about).parse_args(["--method", "dagrpo", *preset_flags(argv), *argv])
    config = TrlConfig(**vars(given))
    check(config)
    for setting in fields(config):
        if setting.name in REFUSED and getattr(config, setting.name) != setting.default:
            fail(f"--{setting.name.replace('_', '-')} is not supported on TRL: use train.py for it")
    return config


def training_arguments(config: TrlConfig) -> DaGRPOConfig:
    """What TRL's trainer takes: --batch-prompts groups a step, split among updates, processes and micro-batches."""
    updates, processes = config.updates_per_batch, int(os.environ.get("WORLD_SIZE", 1))
    rows, parts = config.batch_prompts * config.group_size, updates * processes
    if rows % parts:
        fail(f"{rows} responses a step cannot be split among {updates} updates on {processes} processes")
    per_device = max(n for n in range(1, min(rows, config.per_device_rows) + 1) if rows // parts % n == 0)
    micro_batches, gpu = rows // parts // per_device, torch.cuda.is_available()
    given = {
        "method": config.method,
        "rectification_delta": config.delta,
        "anchor_ratio": config.anchor_ratio,
        "output_dir": config.out,
        "seed": config.seed,
        "beta": config.kl_beta,
        "temperature": config.temperature,
        "num_generations": config.group_size,
        "max_completion_length": config.max_new_tokens,
        "learning_rate": config.lr,
        "lr_scheduler_type": "constant",
        "max_grad_norm": config.max_grad_norm,
        "per_device_train_batch_size": per_device,
        "gradient_accumulation_steps": micro_batches,
        "steps_per_generation": micro_batches * updates,
        "max_steps": config.steps * updates,
        "logging_steps": updates,
        "save_steps": config.save_every * updates,
        "save_total_limit": config.keep,
        "gradient_checkpointing": config.gradient_checkpointing,
        "bf16": gpu or config.bf16,
        "trust_remote_code": config.trust_remote_code,
        "chat_template_kwargs": {"sanitize_control_tokens": True},  # a question is text: see policy.encode_prompt
        "use_cpu": not gpu,
    }
    known = {setting.name for setting in fields(DaGRPOConfig) if setting.init}
    for word in config.trl or []:
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


# ---------------------------------------------------------------------------------------- as TRL calls it


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


def to_dataset(problems: list[Problem], anchors: list[Anchor | None], chat: bool) -> Dataset:
    """The problems with their anchors as TRL's columns; `chat`: the tokenizer has a template."""
    rows = []
    for problem, anchor in zip(problems, anchors, strict=True):
        prompt = [{"role": "user", "content": problem.question}] if chat else problem.question
        rows.append({"prompt": prompt, **asdict(problem), "anchor": anchor.text if anchor else ""})
    return Dataset.from_list(rows)


class MetricsWriter(transformers.TrainerCallback):
    """Writes TRL's log as metrics.csv: a row a step, one rollout batch with its updates."""

    def __init__(self, out: Path, updates: int) -> None:
        self.out, self.updates, self.last = out, updates, time.perf_counter()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
        if not state.is_world_process_zero or "loss" not in logs:
            return
        row = {name.removeprefix(PREFIX): value for name, value in logs.items() if name.startswith(PREFIX)}
        row |= {"loss": logs["loss"], "grad_norm": logs.get("grad_norm")}
        begin, self.last = self.last, time.perf_counter()
        row["train_seconds"] = self.last - begin - row["rollout_seconds"]
        runfolder.append_metrics(self.out, {"step": state.global_step // self.updates, **row})


# ---------------------------------------------------------------------------------------- the run


def main(argv: list[str] | None = None) -> None:
    config = parse(sys.argv[1:] if argv is None else argv)
    args, out = training_arguments(config), Path(config.out)
    with ExitStack() as held:
        with args.main_process_first(local=False):  # if there is no warm start yet, one process trains it for all
            if args.process_index == 0:
                held.enter_context(runfolder.claim(out, resume=False, overwrite=config.overwrite))
            task, start = load_task(config), find_start(config.init_from or config.model, config.world)
        tokenizer = load_tokenizer(start, config.trust_remote_code)
        tokenizer.split_special_tokens = not tokenizer.chat_template  # sanitize_control_tokens, for plain prompts
        with one_line(f"TRL cannot train {start}", OSError, ValueError):
            trainer = DaGRPOTrainer(
                start,
                right,
                args,
                as_function(task.scorer),
                train_dataset=to_dataset(task.problems, task.anchors, chat=bool(tokenizer.chat_template)),
                processing_class=tokenizer,
                callbacks=[MetricsWriter(out, config.updates_per_batch)],
            )
        if args.process_index == 0:
            runfolder.clear(out)
            about = asdict(config) | {"recipe": asdict(args.recipe), "anchors": task.fates}
            launch = {name: about.pop(name) for name in ("per_device_rows", "trl")} | {"processes": args.world_size}
            about |= {"problems": len(task.problems), "launch": launch, "trl": trl.__version__}
            runfolder.write_config(out, about)
        try:
            trainer.train()
        except JudgeDown as error:
            fail(f"{error}. The checkpoints in {out} are whole models: --init-from takes one")
        trainer.save_model(str(out / "checkpoint" / "model"))
    if args.process_index == 0:
        print(f"done: {out} holds the run. Next: python eval.py --model {out}; python -m analysis.curves {out}")


if __name__ == "__main__":
    main()
