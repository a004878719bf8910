"""The policy: a causal language model and its tokenizer, and the one place where device and dtype are chosen.

Any causal language model of transformers can be the policy: a hub id or a folder, with its chat template if it has one.
Weights that are trained are fp32 everywhere; a GPU multiplies in bf16 (`placement`).

The paper starts from Qwen2.5-Math-7B; no part of the method depends on which model it is. Here a run without --model
starts from the warm start, a small model of the project's own: harness/warm_start.py.

    python policy.py    loads the warm start, shows how it encodes a problem, and what it answers
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from jinja2 import TemplateError
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import logging as hf_logging

from harness import loading
from harness.console import fail, need

hf_logging.disable_progress_bar()  # bars of loading and saving would break ours
NO_END = "no token ends a response: give the tokenizer an eos_token"


@dataclass(frozen=True)
class Policy:
    """The model that is trained, with its tokenizer. `pad_id` may be an end token: masks come from lengths, not ids."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    autocast_dtype: torch.dtype | None = None  # of matrix products; None: the weights' dtype
    checkpointing: bool = False  # gradient checkpointing: the backward pass computes activations again

    def autocast(self) -> AbstractContextManager:
        """The context of every forward pass, in sampling and in learning."""
        return torch.autocast(self.device.type, dtype=self.autocast_dtype, enabled=self.autocast_dtype is not None)

    @property
    def window(self) -> int:
        """The most tokens, prompt and response together, that the model has positions for."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None) or 10**9

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The tokens that end a response; the first is the one that demonstrations are trained with.

        Chat models end a turn with a special token (<end_of_turn>, <|end|>), which need not be the tokenizer's eos. So
        three sources are asked: the chat template, the tokenizer, and the model's generation_config. An id in the last
        one counts only if it is an added token: a config that was made without a tokenizer may name any word.
        """
        own = getattr(getattr(self.model, "generation_config", None), "eos_token_id", None)
        listed = own if isinstance(own, list) else [own]
        added = [token for token in listed if token in self.tokenizer.added_tokens_decoder]
        found = [turn_end(self.tokenizer), self.tokenizer.eos_token_id, *added]
        return tuple(dict.fromkeys(token for token in found if token is not None))

    @property
    def eos_id(self) -> int:
        """The end token that demonstrations are trained with."""
        return self.end_ids[0]

    @property
    def pad_id(self) -> int:
        return self.eos_id if self.tokenizer.pad_token_id is None else self.tokenizer.pad_token_id

    @property
    def device(self) -> torch.device:
        return self.model.device

    def encode_prompt(self, question: str) -> list[int]:
        """The prompt's token ids: the chat template where the tokenizer has one, else the question as it is.

        Without a template, a BOS token comes first if the tokenizer puts one before every text: base models such as
        Gemma's and Llama 3's have never seen a text without it.
        """
        if self.tokenizer.chat_template:
            chat = [{"role": "user", "content": question}]
            template = self.tokenizer.apply_chat_template
            return template(chat, add_generation_prompt=True, return_dict=False, sanitize_control_tokens=True)
        ids, bos = self.encode_text(question), self.tokenizer.bos_token_id
        adds_bos = bos is not None and self.tokenizer.encode("")[:1] == [bos]
        return [bos, *ids] if adds_bos else ids

    def encode_response(self, text: str) -> list[int]:
        """A whole response's token ids, with the end token: stopping has to be trained too."""
        return [*self.encode_text(text), self.eos_id]

    def encode_text(self, text: str) -> list[int]:
        """Text as data: a control token written out in it, such as <|im_end|>, becomes ordinary tokens."""
        return self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)

    @cached_property
    def token_ids(self) -> tuple[int, list[int]]:
        """How many ids there are up to the last one with a token, and which of these ids have no token."""
        known = set(self.tokenizer.get_vocab().values())
        return max(known) + 1, sorted(set(range(max(known))) - known)

    def of_tokens(self, logits: Tensor) -> Tensor:
        """Logits (..., V) of ids with a token, from the model's logits (..., outputs), for sampling and for learning.

        Vocabularies are padded (Qwen2.5: 151,936 outputs, 151,665 tokens). An id without a token decodes to nothing, so
        the text that is scored would not be what was sampled. Ids after the last token are cut off, gaps become -inf.
        """
        size, gaps = self.token_ids
        logits = logits[..., :size]
        return logits.index_fill(-1, torch.tensor(gaps, device=logits.device), -torch.inf) if gaps else logits


def turn_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that the chat template puts after the assistant's turn; None if it puts none."""
    if not tokenizer.chat_template:
        return None
    chat = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "ANSWER"}]
    try:
        text = tokenizer.apply_chat_template(chat, tokenize=False)
    except TemplateError:  # the template takes a prompt only
        return None
    _, found, behind = text.rpartition("ANSWER")
    ids = tokenizer.encode(behind.strip(), add_special_tokens=False)
    return ids[0] if found and ids and ids[0] in tokenizer.added_tokens_decoder else None


def pad_left(policy: Policy, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Rows of token ids as one tensor (n, P), padded on the left, and its mask, bool (n, P)."""
    width = max(map(len, rows))
    ids = torch.tensor([[policy.pad_id] * (width - len(row)) + list(row) for row in rows], device=policy.device)
    lengths = torch.tensor([len(row) for row in rows], device=policy.device)
    return ids, torch.arange(width, device=policy.device) >= width - lengths[:, None]


def positions_of(attention: Tensor) -> Tensor:
    """Positions (n, tokens) of a left-padded batch: counted from the first real token.

    The trap: if padding counted, a model with absolute positions would see another row.
    """
    return (attention.cumsum(dim=1) - 1).clamp(min=0)


def transformer(model: PreTrainedModel) -> PreTrainedModel:
    """The transformers model itself, without LoRA's wrapper if it has one."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def save_policy(policy: Policy, folder: Path) -> None:
    """Writes model and tokenizer to a folder that from_pretrained loads; of a model with LoRA, only the adapter."""
    policy.model.save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)


def resolve_model(name: str) -> str:
    """The model folder inside a run folder or a checkpoint; other names, such as hub ids, unchanged.

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


def load_tokenizer(name: str, trust: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer that `load_policy(name)` would load, for checks before the model is loaded."""
    with loading.loading(name):
        tokenizer = loading.load_tokenizer(resolve_model(name), trust)
        if not Policy(None, tokenizer).end_ids:
            raise ValueError(NO_END)
        return tokenizer


@dataclass(frozen=True)
class Placement:
    """Where the model is, and in which precision."""

    device: str
    weights: torch.dtype
    autocast: torch.dtype | None  # of matrix products; None: the weights' dtype


def placement(cuda: bool, lora: bool, bf16: bool = False) -> Placement:
    """The one place that chooses device and dtype. Apple's MPS is not supported: there the CPU is used.

    Weights that are trained are fp32: a small update to a bf16 weight rounds to nothing. A GPU still multiplies in
    bf16, by autocast; a CPU does so only if `bf16` is set: some CPUs have units for it, others get slower. With LoRA
    the base's weights are not trained, so on a GPU they can be bf16.
    """
    if not cuda:
        return Placement("cpu", torch.float32, torch.bfloat16 if bf16 else None)
    return Placement("cuda", torch.bfloat16 if lora else torch.float32, torch.bfloat16)


def load_policy(
    name: str,
    lora_rank: int = 0,
    adapter: Path | None = None,
    checkpointing: bool = False,
    bf16: bool = False,
    trust: bool = False,
) -> Policy:
    """The policy `name`: a hub id, a model folder or a run folder of train.py. Ends the program if it cannot be used.

    `lora_rank` adds a fresh LoRA, or the saved one in the folder `adapter`, to train it further. `checkpointing`
    recomputes activations in the backward pass instead of keeping them. `bf16` makes a CPU multiply in bf16 (see
    `placement`). `trust` runs code that comes with the model. The model stays in eval mode: with dropout, the
    distribution that is trained would not be the one that was sampled.
    """
    place = placement(torch.cuda.is_available(), lora=bool(lora_rank), bf16=bf16)
    with loading.loading(name):
        where = resolve_model(name)
        tokenizer = loading.load_tokenizer(where, trust)
        if (Path(where) / "adapter_config.json").exists():  # what LoRA has learned becomes part of the weights
            peft = need("peft", "a model with LoRA")
            base = peft.PeftConfig.from_pretrained(where).base_model_name_or_path
            model = loading.load_model(base, place.weights, trust)
            model = peft.PeftModel.from_pretrained(model, where).merge_and_unload().requires_grad_(True)
            model.name_or_path = base
        else:
            model = loading.load_model(where, place.weights, trust)
        policy = Policy(model.to(place.device), tokenizer, place.autocast, checkpointing)
        if lora_rank:
            policy = replace(policy, model=add_lora(model, lora_rank, adapter).to(place.device))
        if why := fault(policy):
            raise ValueError(why)
    if checkpointing:
        policy.model.activation_checkpointing_enable()
        for module in policy.model.modules():  # transformers checkpoints only in training mode. A layer's own flag
            if isinstance(module, GradientCheckpointingLayer):  # does not switch on the dropout inside it
                module.training = True
    return policy


@torch.no_grad()
def fault(policy: Policy, optimizer: torch.optim.Optimizer | None = None) -> str | None:
    """Why this policy cannot be used, or None if it can. Asked after loading, and before a checkpoint is replaced."""
    if not replace(policy, model=None).end_ids:
        return NO_END
    size = policy.model.get_input_embeddings().weight.shape[0]
    if max(policy.eos_id, policy.pad_id, policy.tokenizer.vocab_size - 1) >= size:
        return f"its tokenizer has ids that the model's {size} embeddings do not cover: use the model's own tokenizer"
    states = optimizer.state.values() if optimizer else ()
    for name, value in [*policy.model.named_parameters(), *(item for state in states for item in state.items())]:
        if not value.isfinite().all():
            return f"{name} is not finite"
    ids = torch.tensor([policy.encode_prompt(loading.PROBE)], device=policy.device)  # (1, P)
    with policy.autocast():
        logits = policy.model(input_ids=ids, use_cache=False).logits  # (1, P, V)
    return None if logits.isfinite().all() else "its logits are not finite"


def add_lora(model: PreTrainedModel, rank: int, adapter: Path | None) -> PreTrainedModel:
    """Adds LoRA (arXiv 2106.09685) to every linear layer: the base is frozen, and the low-rank factors are fp32."""
    peft = need("peft", "--lora-rank")
    if adapter:
        return peft.PeftModel.from_pretrained(model, str(adapter), is_trainable=True).eval()
    linear = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    return peft.get_peft_model(model, linear).eval()


if __name__ == "__main__":
    from harness.warm_start import warm_start
    from tasks import LEVELS, OOD_LEVELS, arithmetic

    policy = load_policy(warm_start())
    print(f"{policy.model.num_parameters():,} parameters, {len(policy.tokenizer)} tokens, on {policy.device}\n")
    for problem in arithmetic("test", per_level=1, levels=LEVELS | OOD_LEVELS):
        ids = torch.tensor([policy.encode_prompt(problem.question)], device=policy.device)  # (1, P)
        out = policy.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=80, do_sample=False)
        answer = policy.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
        print(f"level {problem.level:9s} question {problem.question:20s} right {problem.answer:4s} says {answer}")
    print(
        f"\nthe last prompt as tokens: {ids[0].tolist()}, and its demonstration: {policy.encode_response(problem.demo)}"
    )
