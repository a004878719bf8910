"""The memory and time of a training step, computed from a model's shape by the formulas below.

The model has W weights, of which U are trained: all, or LoRA's on a frozen base. It has L layers of
width d; their MLP has width f, keys and values k each. An activation takes a bytes: 4 in fp32, 2 in bf16. B prompts
have N responses: rows of P + T tokens, in micro-batches of M tokens.

    weights      4 U, and a W if the base is frozen; on a GPU 2 U more, for autocast's bf16 copy
    training     12 U             fp32 gradients and Adam's two moments
    activations  a M (10 d + 2 k + 5 f) L, kept for the backward pass; with gradient checkpointing a M d L, plus one
                 layer in full
    prompts      2 a k L (P + T) M / T, the keys and values of the rows of a micro-batch
    logits       4 * 4 * 2^26     fp32 logits, log-probs and the gradients of both, for a part of the micro-batch
                                  (LOGITS_AT_ONCE of fast/learning.py); for all M tokens, if that is less
    cache        2 a k L N (P + T) while sampling; not at the same time as activations, prompts and logits
    rest         0.6 GB           the program and its libraries

    learner      2 F (1 + b) (B P + N T) / rate of operations; F is W without the embeddings looked up; b is 2 if all
                 weights have gradients, 1 with LoRA; checkpointing adds 1, its second forward pass
    sampling     the prompts: 2 F B P / rate; then T tokens, each `a_layer` L for many small kernels, plus the longer
                 of 2 F N / rate and (the base's bytes and half of the cache) / bandwidth

Left out: attention's own products, memory that an allocator holds back, and the second copy of the weights with which a
large model samples on a CPU (fast/packed.py). `python -m analysis.bench.sizes` compares this with measurements.
"""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig

from fast.learning import LOGITS_AT_ONCE
from harness.config import Config


@dataclass(frozen=True)
class Shape:
    """A Llama-like decoder: what its config.json says."""

    vocabulary: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    mlp: int
    tied: bool  # one matrix both embeds tokens and makes logits
    bias: bool = False  # of queries, keys and values

    @property
    def kv_width(self) -> int:
        return self.kv_heads * self.width // self.heads

    @property
    def linear(self) -> int:
        """Weights of the layers' matrices."""
        return self.layers * (2 * self.width * self.width + 2 * self.width * self.kv_width + 3 * self.width * self.mlp)

    @property
    def weights(self) -> int:
        """All parameters."""
        norms = (2 * self.layers + 1) * self.width
        biases = self.layers * (self.width + 2 * self.kv_width) * self.bias
        return self.linear + norms + biases + (1 if self.tied else 2) * self.vocabulary * self.width

    def lora(self, rank: int) -> int:
        """Parameters of LoRA on every linear layer: rank * (inputs + outputs) each."""
        sides = 2 * self.width + 2 * self.width + 2 * (self.width + self.kv_width) + 3 * (self.width + self.mlp)
        return self.layers * rank * sides


@dataclass(frozen=True)
class Machine:
    flop: float  # operations a second, as large products reach
    bandwidth: float  # bytes a second
    a_layer: float  # seconds for the small kernels of one layer in a decoding step
    activation_bytes: int


@dataclass(frozen=True)
class Setting:
    prompts: int  # B
    group_size: int  # G
    prompt_tokens: int  # P
    new_tokens: int  # T
    micro_batch_tokens: int  # M
    lora_rank: int = 0
    checkpointing: bool = False


# One set of numbers for all models, from steps on an H200 (MEASURED in analysis/bench/sizes.py): 27 % of 989e12 bf16
# operations a second on paper, half of the bandwidth when summing an array, and the smallest model's time a layer.
SMALL, LARGE = 10**7, 10**12  # weights: a model with fewer needs no forecast, and none has more
GPU = Machine(0.27 * 989e12, 2e12, 0.0002, 2)


def memory(shape: Shape, s: Setting, activation_bytes: int) -> dict[str, float]:
    """Bytes by part, from the formulas above."""
    a, trained = activation_bytes, shape.lora(s.lora_rank) if s.lora_rank else shape.weights
    frozen = a * shape.weights if s.lora_rank else 0  # policy.placement
    kept = 10 * shape.width + 2 * shape.kv_width + 5 * shape.mlp  # numbers per token and layer
    layers = (shape.width * shape.layers + kept) if s.checkpointing else kept * shape.layers
    keys = 2 * a * shape.kv_width * shape.layers * (s.prompt_tokens + s.new_tokens)  # bytes per row
    return {
        "weights": frozen + (4 if a == 4 else 4 + a) * trained,  # not fp32: also autocast's copy
        "training": 12 * trained,
        "activations": a * s.micro_batch_tokens * layers,
        "prompts": keys * s.micro_batch_tokens / s.new_tokens,
        "logits": 4 * 4 * min(LOGITS_AT_ONCE, s.micro_batch_tokens * shape.vocabulary),
        "cache": keys * s.prompts * s.group_size,
        "rest": 0.6e9,
    }


def peak(parts: dict[str, float]) -> float:
    """The most bytes in use at once: sampling and learning do not need their memory at the same time."""
    learner = parts["activations"] + parts["prompts"] + parts["logits"]
    return parts["weights"] + parts["training"] + parts["rest"] + max(learner, parts["cache"])


def seconds(shape: Shape, s: Setting, machine: Machine) -> dict[str, float]:
    """Seconds of sampling and of the learner, if all rows have signal and full length."""
    F, rows = shape.linear + shape.vocabulary * shape.width, s.prompts * s.group_size
    tokens = s.prompts * s.prompt_tokens + rows * s.new_tokens
    passes = 1 + (1 if s.lora_rank else 2) + s.checkpointing
    weight_bytes = machine.activation_bytes * shape.weights  # as autocast rounds them
    cache = memory(shape, s, machine.activation_bytes)["cache"] / 2  # half full, on average
    large = max(2 * F * rows / machine.flop, (weight_bytes + cache) / machine.bandwidth)
    a_token = machine.a_layer * shape.layers + large
    sampling = 2 * F * s.prompts * s.prompt_tokens / machine.flop + s.new_tokens * a_token
    return {"sampling": sampling, "learner": 2 * F * passes * tokens / machine.flop}


# ---------------------------------------------------------------------------------------- before a run starts


def shape_of(described: Any) -> Shape | None:
    """The shape that a model's config.json describes; None if it names its sizes differently."""
    text = described.get_text_config()
    names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    found = [getattr(text, name, None) for name in names]
    if not all(isinstance(number, int) and number > 0 for number in found):
        return None
    vocabulary, width, layers, heads, mlp = found
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    return Shape(vocabulary, width, layers, heads, kv_heads, mlp, bool(getattr(text, "tie_word_embeddings", False)))


def this_cpu() -> Machine:
    """This CPU: half of the rate that a large product reaches now; typical bandwidth and `a_layer` of two cores."""
    a, took = torch.rand(1024, 1024), []
    for _ in range(5):
        begin = time.perf_counter()
        a @ a
        took.append(time.perf_counter() - begin)
    return Machine(0.5 * 2 * 1024**3 / min(took), 1e10, 0.0005, 4)


def memory_here() -> float:
    """Bytes of the GPU, or without one of this computer; infinity where the system does not say."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # native Windows has no sysconf
        return math.inf


def too_much(parts: dict[str, float], here: float) -> str:
    """What to lower if this needs more than the `here` bytes that there are, in parentheses; "" if it does not."""
    if peak(parts) <= here:
        return ""
    learner = parts["activations"] + parts["prompts"] + parts["logits"]
    if parts["weights"] + parts["training"] + parts["rest"] > here:
        advice = "give --lora-rank or a smaller model"
    elif parts["cache"] > learner:
        advice = "lower --batch-prompts, --group-size or --max-new-tokens"
    else:
        advice = "lower --micro-batch-tokens"
    return f" (there are {here / 1e9:.1f}: {advice})"


def forecast(config: Config, name: str, prompt_tokens: int) -> str:
    """One line on the memory and time that a run of the model `name` takes, before its weights are loaded.

    "" if the model's shape is unknown or impossible, or the model is so small that there is nothing to say.

    Assumes prompts of `prompt_tokens` tokens and full-length responses, all with signal: most steps take less time.
    """
    try:
        shape = shape_of(AutoConfig.from_pretrained(name, trust_remote_code=config.trust_remote_code))
    except Exception:  # an adapter, or no model: the line about that comes when it is loaded
        return ""
    if shape is None or not SMALL <= shape.weights <= LARGE:
        return ""
    machine, where = (GPU, "an H200") if torch.cuda.is_available() else (this_cpu(), "this CPU")
    B, G, T = config.batch_prompts, config.group_size if config.recipe.rollouts else 1, config.max_new_tokens
    tokens = min(config.micro_batch_tokens, B * (prompt_tokens + G * T))
    setting = Setting(B, G, prompt_tokens, T, tokens, config.lora_rank, config.gradient_checkpointing)
    took = seconds(shape, setting, machine)
    step = took["learner"] + (took["sampling"] if config.recipe.rollouts else 0)
    trained = shape.lora(config.lora_rank) if config.lora_rank else shape.weights
    parts = memory(shape, setting, machine.activation_bytes)
    gb, short = peak(parts) / 1e9, too_much(parts, memory_here())
    return (
        f"{name}: {shape.weights / 1e6:,.0f} M weights. About (harness/sizes.py): {gb:.1f} GB of memory{short}; "
        f"{step:,.1f} s a step on {where}, {step * config.steps / 60:,.0f} min in all; at most {B * G * T:,} tokens of "
        f"responses a step; {12 * trained / 1e9:.1f} GB a checkpoint\n"
    )
