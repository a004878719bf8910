"""The model and its tokenizer, and the one place where device and dtype are chosen.

Any causal language model of transformers can be the policy: a hub id or a folder, with its chat template if it has one.
Weights that are trained are fp32 everywhere; a GPU multiplies in bf16 (`placement`).

The built-in one is a decoder of about 0.7 M parameters (an ordinary LlamaForCausalLM, so that nothing downstream knows
the difference) over characters. Nobody pre-trained it, so the run does: `warm_start` teaches it by SFT on a mixture of
worked and bare answers, stops while it is still often wrong, and keeps the result in a cache folder. That is the "warm
start": where every method begins. The baseline `sft` of train.py is something else, SFT on the demonstrations that
goes on from there.

The paper starts from Qwen2.5-Math-7B; no part of the method depends on which model it is.

    python policy.py    builds the warm start, or finds it in the cache, and shows what it answers
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import random
import sys
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import logging as hf_logging

import tasks
from cli import fail, need, progress

hf_logging.disable_progress_bar()  # of loading and saving: they would break ours
CACHE = Path(__file__).resolve().parent / "runs" / "warm_start"
CHARACTERS = "0123456789+-=;#"
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h


@dataclass(frozen=True)
class Policy:
    """The model that is trained, with its tokenizer. `pad_id` may equal `eos_id`: masks come from lengths, not ids."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    autocast_dtype: torch.dtype | None = None  # of matrix products; None: that of the weights
    checkpointing: bool = False  # activations are computed again in the backward pass

    def autocast(self) -> AbstractContextManager:
        """Goes around every forward pass, sampling and learning alike."""
        return torch.autocast(self.device.type, dtype=self.autocast_dtype, enabled=self.autocast_dtype is not None)

    def hidden_states(self, **inputs: Any) -> Tensor:
        """What `logits` are made of, (n, tokens, width), of the inputs that the model takes."""
        with self.autocast():
            if self.head is None:
                return self.model(**inputs).logits
            return transformer(self.model).base_model(**inputs).last_hidden_state

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits (..., V) from hidden states (..., width)."""
        return hidden if self.head is None else self.head(hidden)

    @cached_property
    def head(self) -> torch.nn.Module | None:
        """The output layer, if logits are what it makes of the last hidden states and nothing more.

        Some models scale or bound their logits further. That is asked, not looked up; of such a model `hidden_states`
        are the logits themselves.
        """
        model, ids = transformer(self.model), torch.tensor([[self.eos_id]], device=self.device)
        with torch.no_grad(), self.autocast():
            head = model.get_output_embeddings()
            same = torch.equal(head(model.base_model(ids).last_hidden_state), model(ids).logits)
        return head if same else None

    @property
    def window(self) -> int:
        """The most tokens, prompt and response together, that the model has positions for."""
        return getattr(self.model.config, "max_position_embeddings", None) or 10**9

    @property
    def eos_id(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def pad_id(self) -> int:
        return self.eos_id if self.tokenizer.pad_token_id is None else self.tokenizer.pad_token_id

    @property
    def device(self) -> torch.device:
        return self.model.device

    def encode_prompt(self, question: str) -> list[int]:
        """The prompt's token ids: the chat template where the tokenizer has one, else the question as it stands."""
        if self.tokenizer.chat_template:
            chat = [{"role": "user", "content": question}]
            return self.tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        return self.tokenizer.encode(question, add_special_tokens=False)

    def encode_response(self, text: str) -> list[int]:
        """A whole response's token ids, with the end token: stopping has to be trained too."""
        return [*self.tokenizer.encode(text, add_special_tokens=False), self.eos_id]


def transformer(model: PreTrainedModel) -> PreTrainedModel:
    """The model of transformers, also inside LoRA's wrapper."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@dataclass(frozen=True)
class WarmStart:
    """What decides the warm start's weights; its hash names the cache folder."""

    steps: int = 680
    batch: int = 64
    lr: float = 1e-3
    seed: int = 0
    width: int = 128
    layers: int = 4
    heads: int = 4
    mlp: int = 288
    ood_share: float = 0.16  # of the chains: seen a little
    direct_share: float = 0.5  # of the answers, the rest is worked: length is the policy's choice
    level_weights: tuple[float, ...] = (2, 2, 2, 1.5, 0.5)  # easy levels more often, so that hard ones stay hard


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

    `pairs` are (question, response). End tokens count, prompts do not, and every token weighs the same, whatever part
    of the batch it is in. The parts are of rows of like length, as padding costs what tokens cost: 40 % less time than
    in one piece. Padding goes to the right, as nothing is generated from these rows.
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
    seen = tasks.arithmetic("train", 400)
    ood = tasks.arithmetic("train", 400, levels=tasks.OOD_LEVELS)
    by_level = [[p for p in seen if p.level == level] for level in tasks.LEVELS]
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

    def rate(step: int) -> float:  # 50 steps up, then flat, then down to nothing over the last 30 %
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
    return {**asdict(settings), "levels": repr((tasks.LEVELS, tasks.OOD_LEVELS)), "characters": CHARACTERS}


def warm_start_folder(settings: WarmStart, cache: Path = CACHE) -> Path:
    """Where the warm start of these settings is, or will be."""
    key = hashlib.sha256(json.dumps(_what_decides(settings), sort_keys=True).encode()).hexdigest()[:12]
    return cache / key


def warm_start(settings: WarmStart | None = None, cache: Path = CACHE) -> Path:
    """The folder of the warm start: trained now if it is not in the cache yet (same settings, same folder).

    Written aside and renamed, so that a killed run leaves no half model, and two runs at once do no harm.
    """
    settings = settings or WarmStart()
    folder = warm_start_folder(settings, cache)
    if folder.exists():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    state = torch.get_rng_state()  # a run must not depend on whether it found its warm start or made it
    policy = train_warm_start(settings)
    torch.set_rng_state(state)
    with tempfile.TemporaryDirectory(dir=cache) as aside:
        made = Path(aside) / folder.name
        save(policy, made)
        (made / "warm_start.json").write_text(json.dumps(_what_decides(settings), indent=1))
        try:
            made.rename(folder)
        except OSError:
            if not folder.exists():  # another run has been faster otherwise
                raise
    return folder


# ---------------------------------------------------------------------------------------- any model


def save(policy: Policy, folder: Path) -> None:
    """Model and tokenizer as an ordinary folder that from_pretrained loads; of a model with LoRA the adapter alone."""
    policy.model.save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)


def resolve(name: str) -> str:
    """A run folder, or its checkpoint, as the model folder inside it; a hub id as it is.

    Ends the program with one line if `name` can only be a path and holds no model.
    """
    for inner in ("checkpoint/model", "model", "."):
        folder = Path(name) / inner
        if (folder / "tokenizer_config.json").exists() and any(
            (folder / file).exists() for file in ("config.json", "adapter_config.json")
        ):
            return str(folder)
    if Path(name).exists() or name.startswith((".", "/", "runs/")) or name.count("/") > 1:
        fail(f"{name} holds no model: give a run folder of train.py, a model folder, or a hub id")
    return name


def load_tokenizer(name: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of what `load` would load, for what can be checked before a model is there."""
    return AutoTokenizer.from_pretrained(resolve(name)) if name else build_tokenizer()


@dataclass(frozen=True)
class Placement:
    """Where the model stands, and in which numbers."""

    device: str
    weights: torch.dtype
    autocast: torch.dtype | None


def placement(cuda: bool, lora: bool, bf16: bool = False) -> Placement:
    """The one place that chooses device and dtype.

    Weights that are trained are fp32: a small update to a bf16 weight rounds to nothing. A GPU multiplies in bf16 all
    the same, by autocast; a CPU only where `bf16` asks for it: some have units for it, on others it is slower. With
    LoRA the weights of the base are not trained, so that on a GPU they can be bf16.
    """
    if not cuda:
        return Placement("cpu", torch.float32, torch.bfloat16 if bf16 else None)
    return Placement("cuda", torch.bfloat16 if lora else torch.float32, torch.bfloat16)


def keep_freed_memory() -> None:
    """Tells glibc to keep what is freed for what comes next: a fifth of a learner's pass on a CPU with SmolLM2.

    What glibc gives back to the system, it gets again page by page, each filled with zeros at its first use. A pass
    frees and takes gigabytes, in pieces above the size (32 MB) from which glibc always does so. Other C libraries, as
    on macOS, know no such settings.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mallopt(M_MMAP_MAX, 0)  # no piece in a mapping of its own
        mallopt(M_TRIM_THRESHOLD, -1)  # nothing is given back from the heap's end, however much is free


def load(
    name: str | None = None,
    lora_rank: int = 0,
    adapter: Path | None = None,
    checkpointing: bool = False,
    bf16: bool = False,
) -> Policy:
    """The policy `name`: a hub id, a model folder or a run folder of train.py; None for the warm start.

    `lora_rank` adds a fresh LoRA, or `adapter`, a saved one that goes on being trained. `checkpointing` recomputes
    activations in the backward pass instead of keeping them. `bf16` is about a CPU's products, see `placement`. The
    model stays in eval mode: dropout would make the distribution that is trained another one than that which was
    sampled.
    """
    where = resolve(name) if name else str(warm_start())
    place = placement(torch.cuda.is_available(), lora=bool(lora_rank), bf16=bf16)
    if (Path(where) / "adapter_config.json").exists():  # what LoRA has learned becomes part of the weights
        peft = need("peft", "a model with LoRA")
        base = peft.PeftConfig.from_pretrained(where).base_model_name_or_path
        model = AutoModelForCausalLM.from_pretrained(base, dtype=place.weights)
        model = peft.PeftModel.from_pretrained(model, where).merge_and_unload().requires_grad_(True)
        model.name_or_path = base
    else:
        model = AutoModelForCausalLM.from_pretrained(where, dtype=place.weights)
    if lora_rank:
        model = add_lora(model, lora_rank, adapter)
    if checkpointing:
        model.activation_checkpointing_enable()
        for module in model.modules():  # transformers checkpoints in training mode alone. The layer's own flag is not
            if isinstance(module, GradientCheckpointingLayer):  # read by the dropout inside it, which stays off
                module.training = True
                module._can_checkpoint_with_cache = True  # ours gives the same answer twice: kvcache.py
    return Policy(model.to(place.device), load_tokenizer(where), place.autocast, checkpointing)


def add_lora(model: PreTrainedModel, rank: int, adapter: Path | None) -> PreTrainedModel:
    """LoRA (arXiv 2106.09685) on every linear layer: the base is frozen, and the low-rank factors are fp32."""
    peft = need("peft", "--lora-rank")
    if adapter:
        return peft.PeftModel.from_pretrained(model, str(adapter), is_trainable=True).eval()
    linear = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    return peft.get_peft_model(model, linear).eval()


if __name__ == "__main__":
    policy = load()
    print(f"{sum(p.numel() for p in policy.model.parameters()):,} parameters, {len(policy.tokenizer)} tokens")
    for problem in tasks.arithmetic("test", per_level=1) + tasks.arithmetic("test", 1, levels=tasks.OOD_LEVELS):
        ids = torch.tensor([policy.encode_prompt(problem.question)], device=policy.device)
        mask = torch.ones_like(ids)
        out = policy.model.generate(ids, attention_mask=mask, max_new_tokens=80, do_sample=False)
        text = policy.tokenizer.decode(out[0], skip_special_tokens=True)
        print(f"level {problem.level:9s} {text}   (right: {problem.answer})")
