"""The formula of harness/sizes.py against measurements: memory and time of a training step by model and length.

In the table, the first numbers are computed and the second ones measured on a GPU. Below it: measured memory divided by
computed memory, on that GPU, and on a CPU for the cases of analysis.bench.growth.

    python -m analysis.bench.sizes                   reads results/growth/growth.csv and results/bench/sizes_h200.json
    python -m analysis.bench.sizes --measure FILE    on a GPU: measures the lines that fit, with random weights
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast, Qwen2Config

from analysis.bench.growth import GrowthPoint
from analysis.bench.sides import Case
from analysis.bench.step import measure
from analysis.saved import read_rows
from analysis.stats import markdown
from harness.console import Parser, fail, first_line
from harness.sizes import GPU, Setting, Shape, memory, peak, seconds
from harness.warm_start import build_tokenizer
from policy import Policy, save_policy

SHAPES = {
    "built-in": Shape(19, 128, 4, 4, 4, 288, tied=False),
    "SmolLM2-135M": Shape(49152, 576, 30, 9, 3, 1536, tied=True),
    "Qwen2.5-0.5B": Shape(151936, 896, 24, 14, 2, 4864, tied=True, bias=True),
    "Qwen2.5-1.5B": Shape(151936, 1536, 28, 12, 2, 8960, tied=True, bias=True),
    "Qwen2.5-Math-7B": Shape(152064, 3584, 28, 28, 4, 18944, tied=False, bias=True),
}
MEASURED = "results/bench/sizes_h200.json"
ON_GPU = [
    ("Qwen2.5-0.5B", Setting(16, 8, 256, 512, 16384)),
    ("Qwen2.5-1.5B", Setting(16, 8, 256, 1024, 16384, checkpointing=True)),
    ("Qwen2.5-Math-7B", Setting(16, 8, 512, 1024, 16384, lora_rank=64, checkpointing=True)),
    ("Qwen2.5-Math-7B", Setting(16, 8, 512, 4096, 16384, lora_rank=64, checkpointing=True)),
    ("Qwen2.5-Math-7B", Setting(64, 8, 512, 4096, 16384, lora_rank=64, checkpointing=True)),
]


def measured(name: str, s: Setting, found: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The measurement in `found` of this line of ON_GPU, if there is one."""
    return next((line for line in found if {"model": name, **asdict(s)}.items() <= line.items()), None)


def sizes_table(found: list[dict[str, Any]]) -> str:
    """Markdown: the lines of ON_GPU, computed, and measured if they are in `found`."""
    lines = []
    for name, s in ON_GPU:
        shape = SHAPES[name]
        trained = (f"LoRA {s.lora_rank}" if s.lora_rank else "all") + (", checkpointing" if s.checkpointing else "")
        took = seconds(shape, s, GPU)
        gb = peak(memory(shape, s, GPU.activation_bytes)) / 1e9
        cells = [f"{gb:.0f}", f"{took['sampling']:.1f}", f"{took['learner']:.1f}"]
        if line := measured(name, s, found):
            there = (line["peak_gb"], line["rollout"], line["learner"])
            cells = [f"{cell}; {x:.1f}" for cell, x in zip(cells, there, strict=True)]
        rows, tokens = f"{s.prompts} x {s.group_size}", f"{s.prompt_tokens} + {s.new_tokens}"
        lines.append([name, f"{shape.weights / 1e9:.2f} B", rows, tokens, trained, *cells])
    return markdown(["model", "weights", "B x G", "P + T", "trained", "memory, GB", "sampling, s", "learner, s"], lines)


# ---------------------------------------------------------------------------------------- measured


def random_model(shape: Shape, folder: Path) -> None:
    """Saves an untrained model of this shape: bf16 weights; the built-in task's tokenizer, filled up with words.

    Without the words, most of the outputs would be ids without a token, which are left out (Policy.of_tokens).
    """
    kind = Qwen2Config if shape.bias else LlamaConfig
    config = kind(
        vocab_size=shape.vocabulary, hidden_size=shape.width, intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads,
        tie_word_embeddings=shape.tied, max_position_embeddings=8192,
    )  # fmt: skip
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    tokenizer = build_tokenizer()
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    described["model"]["vocab"] |= {f"<{i}>": i for i in range(len(tokenizer), shape.vocabulary)}
    filled = Tokenizer.from_str(json.dumps(described))
    names = {name: getattr(tokenizer, name) for name in ("pad_token", "bos_token", "eos_token", "unk_token")}
    save_policy(Policy(model, PreTrainedTokenizerFast(tokenizer_object=filled, **names)), folder)


def measure_on_gpu() -> Iterator[dict[str, Any]]:
    """Measures the lines of ON_GPU that fit by the formula: the second step of a process each, or the first if long.

    Few responses end early.
    """
    free = torch.cuda.get_device_properties(0).total_memory
    with tempfile.TemporaryDirectory() as models:
        for name, s in ON_GPU:
            shape, folder = SHAPES[name], Path(models) / name
            if peak(memory(shape, s, GPU.activation_bytes)) > free:
                continue
            if not folder.exists():
                random_model(shape, folder)
                torch.cuda.empty_cache()
            warm = int(s.new_tokens <= 1024)  # a slow start matters little in a step of minutes
            case = Case(str(folder), **asdict(s), whole=True, warm=warm, steps=1)
            yield {"model": name, "gpu": torch.cuda.get_device_name()} | asdict(s) | measure(case)


def over_computed_on_gpu(found: list[dict[str, Any]]) -> list[float]:
    """Measured peak memory divided by the formula's, for the measured lines of ON_GPU."""
    lines = [(name, s, measured(name, s, found)) for name, s in ON_GPU]
    return [
        1e9 * line["peak_gb"] / peak(memory(SHAPES[name], s, GPU.activation_bytes)) for name, s, line in lines if line
    ]


def over_computed(points: pd.DataFrame) -> list[float]:
    """Measured peak memory divided by the formula's, for analysis.bench.growth's processes on SmolLM2."""
    ratios = []
    for p in points.itertuples():
        tokens = min(p.micro_batch_tokens, p.prompt_tokens + p.group_size * p.new_tokens)  # of one prompt
        setting = Setting(1, p.group_size, p.prompt_tokens, p.new_tokens, tokens)
        ratios.append(1e9 * p.peak_gb / peak(memory(SHAPES["SmolLM2-135M"], setting, activation_bytes=4)))
    return ratios


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="python -m analysis.bench.sizes", description=__doc__)
    parser.add_argument(
        "--growth", default="results/growth/growth.csv", metavar="FILE", help="the CSV of analysis.bench.growth"
    )
    parser.add_argument("--measured", default=MEASURED, metavar="FILE", help="what --measure has written")
    parser.add_argument("--measure", metavar="FILE", help="measure on this machine's GPU, and write JSON there")
    args = parser.parse_args(argv)
    path = Path(args.measure or args.measured)
    if args.measure and not torch.cuda.is_available():
        fail("--measure: there is no GPU here")
    try:
        if args.measure:
            found = []
            path.write_text("[]\n", encoding="utf-8")  # fails now, not after minutes
            for line in measure_on_gpu():
                found.append(line)
                path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")  # as it goes
        found = json.loads(path.read_text(encoding="utf-8"))
        on_gpu = over_computed_on_gpu(found)
    except (OSError, ValueError, AttributeError, KeyError) as error:  # the last two: JSON of something else
        fail(f"{path}: {first_line(error)}. Give a place to write, or a file that --measure has written")
    if not on_gpu:
        fail(f"{path} holds no line of the table: none fits this GPU, or another program has written it")
    print("One GPU, micro-batches of 16,384 tokens, all rows with signal. First number: computed;")
    print(f"second: measured on {found[0]['gpu']}, random weights.\n\n{sizes_table(found)}")
    on_cpu = over_computed(read_rows(GrowthPoint, Path(args.growth)))
    print("\nMeasured over computed memory:")
    for where, ratios in (("on the GPU", on_gpu), ("on a CPU", on_cpu)):
        print(f"{where}, {len(ratios)} cases: {min(ratios):.2f} to {max(ratios):.2f}")


if __name__ == "__main__":
    main()
