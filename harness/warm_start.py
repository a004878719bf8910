"""The warm start: the small policy that a run begins with when --model names no other.

There is no pre-trained model to download, so this trains one: a decoder over characters with about 0.7 M parameters, an
ordinary LlamaForCausalLM to the rest of the code. SFT teaches it the built-in task with a mixture of worked and bare
answers, and stops while it is still often wrong. The result is kept in a cache folder; every method begins there. The
method `sft` of train.py is something else: it goes on from here, with SFT on the demonstrations.

The warm starts of seed 0 in the worlds of SHIPPED_WORLDS come with the project, as bf16 weights in harness/starts: so
all machines begin from the same numbers, and nobody waits. Others are trained when they are first needed.

    python -m harness.warm_start --world guess --seed 1    trains one, and says where it is
    python -m harness.warm_start --ship                    trains the ones in harness/starts again
"""

from __future__ import annotations

import hashlib
import json
import random
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch.nn.functional import cross_entropy
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

import tasks
from harness.console import Parser, progress
from policy import Policy, load_tokenizer, resolve_model, save_policy

CACHE = Path(__file__).resolve().parents[1] / "runs" / "warm_start"
SHIPPED = Path(__file__).with_name("starts")
SHIPPED_WORLDS = ("plain", "guess")
CHARACTERS = "0123456789+-=;#"


@dataclass(frozen=True)
class WarmStart:
    """What decides the warm start's weights; its hash names the cache folder."""

    world: str = "plain"
    steps: int = 680
    batch: int = 64
    lr: float = 1e-3
    seed: int = 0
    width: int = 128
    layers: int = 4
    heads: int = 4
    mlp: int = 288
    ood_share: float = 0.16  # share of the problems: out of distribution, seen a little
    direct_share: float = 0.5  # share of the answers: bare; the others are worked, so length is the policy's choice
    level_weights: tuple[float, ...] = (2, 2, 2, 1.5, 0.5)  # easy levels more often, so that hard ones stay hard


def of_world(name: str, seed: int = 0) -> WarmStart:
    """The settings of the warm start of this world of tasks.WORLDS."""
    return WarmStart(world=name, seed=seed, **tasks.WORLDS[name].start)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A fast tokenizer over characters: what is not one of CHARACTERS becomes <unk>."""
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<bos>", "<eos>", "<unk>", *CHARACTERS])}
    characters = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    characters.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    characters.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=characters,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )


def build_model(settings: WarmStart, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """The untrained built-in decoder; its initial weights follow `settings.seed`."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.width,
        intermediate_size=settings.mlp,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        max_position_embeddings=512,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(settings.seed)
    return LlamaForCausalLM(config)


def demonstration_backward(policy: Policy, pairs: list[tuple[str, str]], rows_at_once: int = 16) -> float:
    """Adds the gradient of SFT's loss, and returns the loss: the mean negative log-likelihood of the responses' tokens.

    `pairs` are (question, response). End tokens count, prompts do not, and every token has the same weight. Rows run
    `rows_at_once`, sorted by length: padding costs as much as tokens do, so this takes 40 % less time than all at once.
    Padding is on the right, because nothing is generated from these rows.
    """
    rows = [(policy.encode_prompt(question), policy.encode_response(response)) for question, response in pairs]
    rows.sort(key=lambda row: len(row[0]) + len(row[1]))
    total, loss_sum = sum(len(response) for _, response in rows), 0.0
    for i in range(0, len(rows), rows_at_once):
        part = rows[i : i + rows_at_once]
        width = max(len(prompt + response) for prompt, response in part)

        def pad(row: list[int], value: int, width: int = width) -> list[int]:
            return row + [value] * (width - len(row))

        ids = torch.tensor([pad(p + r, policy.pad_id) for p, r in part], device=policy.device)  # (n, P + T)
        attention = torch.tensor([pad([1] * len(p + r), 0) for p, r in part], device=policy.device)
        with policy.autocast():  # the logits at a position are for the token after it: (n, P + T - 1, V)
            logits = policy.model(input_ids=ids, attention_mask=attention, use_cache=False).logits[:, :-1]
        labels = torch.tensor([pad([-100] * len(p) + r, -100)[1:] for p, r in part], device=policy.device)
        loss = cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), reduction="sum") / total  # -100: left out
        loss.backward()
        loss_sum += loss.item()
    return loss_sum


def warm_start_batches(settings: WarmStart) -> Iterator[list[tuple[str, str]]]:
    """Endless batches of (question, response) from the train split, with a few of the out-of-distribution forms."""
    rng = random.Random(f"warm start {settings.seed}")
    world = tasks.WORLDS[settings.world]
    seen = tasks.arithmetic("train", 400, levels=world.levels)
    ood = tasks.arithmetic("train", 400, levels=world.ood)
    by_level = [[p for p in seen if p.level == level] for level in world.levels]
    while True:
        batch = []
        for _ in range(settings.batch):
            level = rng.choices(by_level, settings.level_weights)[0]
            problem = rng.choice(ood if rng.random() < settings.ood_share else level)
            response = tasks.direct(problem) if rng.random() < settings.direct_share else problem.demo
            batch.append((problem.question, response))
        yield batch


def train_warm_start(settings: WarmStart) -> Policy:
    """The built-in policy, trained for `settings.steps` steps: 1 to 2 minutes on two cores."""
    tokenizer = build_tokenizer()
    policy = Policy(build_model(settings, tokenizer), tokenizer)
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=settings.lr, betas=(0.9, 0.99))
    decay_from = 0.7 * settings.steps

    def rate(step: int) -> float:  # 50 steps up, then flat, then down to 0 over the last 30 %
        return min((step + 1) / 50, 1.0, (settings.steps - step) / (settings.steps - decay_from))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    bar = progress(range(settings.steps), desc="warm start", unit="step")
    for _, pairs in zip(bar, warm_start_batches(settings), strict=False):
        loss = demonstration_backward(policy, pairs)
        torch.nn.utils.clip_grad_norm_(policy.model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
    return policy


def _what_decides(settings: WarmStart) -> dict[str, Any]:
    world = tasks.WORLDS[settings.world]
    return {**asdict(settings), "levels": repr((world.levels, world.ood)), "characters": CHARACTERS}


def warm_start_folder(settings: WarmStart, cache: Path = CACHE) -> Path:
    """Where the warm start of these settings is, or will be."""
    key = hashlib.sha256(json.dumps(_what_decides(settings), sort_keys=True).encode()).hexdigest()[:12]
    return cache / key


def shipped_file(settings: WarmStart) -> Path:
    """Where this warm start's weights are, if they come with the project."""
    return SHIPPED / f"{settings.world}-{warm_start_folder(settings).name}.safetensors"


def shipped(settings: WarmStart) -> Policy | None:
    """The warm start of these settings as it comes with the project; None if it does not."""
    if not shipped_file(settings).exists():
        return None
    tokenizer = build_tokenizer()
    policy = Policy(build_model(settings, tokenizer), tokenizer)
    policy.model.load_state_dict(load_file(shipped_file(settings)))  # copied into fp32
    return policy


def ship(settings: WarmStart) -> Path:
    """Trains the warm start and writes its weights in bf16: half the size, and almost the same policy."""
    SHIPPED.mkdir(exist_ok=True)
    weights = train_warm_start(settings).model.state_dict()
    save_file({name: x.bfloat16().contiguous() for name, x in weights.items()}, shipped_file(settings))
    return shipped_file(settings)


def warm_start(settings: WarmStart | None = None, cache: Path = CACHE) -> str:
    """The warm start's folder in the cache. If it is not there yet, the shipped weights go there, or it is trained now.

    It is written under another name and renamed, so a kill leaves no half model, and two runs at once do no harm.
    """
    settings = settings or WarmStart()
    folder = warm_start_folder(settings, cache)
    if folder.exists():
        return str(folder)
    cache.mkdir(parents=True, exist_ok=True)
    state = torch.get_rng_state()  # a run must not depend on whether it found its warm start or made it
    policy = shipped(settings) or train_warm_start(settings)
    torch.set_rng_state(state)
    with tempfile.TemporaryDirectory(dir=cache) as aside:
        made = Path(aside) / folder.name
        save_policy(policy, made)
        (made / "warm_start.json").write_text(json.dumps(_what_decides(settings), indent=1))
        try:
            made.rename(folder)
        except OSError:
            if not folder.exists():  # it exists if another run was faster
                raise
    return str(folder)


def find_start(name: str | None, world: str = "plain") -> str:
    """The model folder or hub id of a --model flag: None and "warm_start" mean the world's, trained if need be."""
    return warm_start(of_world(world)) if name in (None, "warm_start") else resolve_model(name)


def find_tokenizer(name: str | None, trust: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of `find_start(name)`; does not train a warm start."""
    return build_tokenizer() if name in (None, "warm_start") else load_tokenizer(name, trust)


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="python -m harness.warm_start", description=__doc__)
    parser.add_argument("--world", default="plain", choices=list(tasks.WORLDS), help="the world of tasks.WORLDS")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="for initial weights and training data")
    parser.add_argument("--ship", action="store_true", help=f"train seed 0 of {', '.join(SHIPPED_WORLDS)} again")
    args = parser.parse_args(argv)
    for world in SHIPPED_WORLDS if args.ship else ():
        print(f"written: {ship(of_world(world))}")
    if not args.ship:
        folder = warm_start(of_world(args.world, args.seed))
        print(f"the warm start is in {folder}. Next: python eval.py --world {args.world} --model {folder}")


if __name__ == "__main__":
    main()
