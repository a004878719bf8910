"""Each preset's flags, run to the end: a tiny random model of its kind, three steps, evaluation, a stub as judge."""

import json

import pytest
from byte_model import byte_model
from helpers import metrics
from judge_server import Reply, grades, response_part
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

import eval as evaluation
import train
from harness import sizes
from harness.config import PRESETS, parse, preset_flags

KIND = {"smollm2": LlamaConfig, "qwen": Qwen2Config, "paper": Qwen2Config}
GSM8K = [
    {"question": f"{n} eggs and {n} more?", "answer": f"{n}+{n}=<<{n}+{n}={2 * n}>>{2 * n}\n#### {2 * n}"}
    for n in range(8)
]
OPENR1 = [
    {
        "prompt": [{"role": "system", "content": "Think."}, {"role": "user", "content": f"What is {n}+{n}?"}],
        "target": [{"role": "assistant", "content": f"<think>{n}+{n}={2 * n}</think> \\boxed{{{2 * n}}}"}],
        "reward_model": {"ground_truth": str(2 * n), "style": "rule"},
    }
    for n in range(8)
]
SMALLER = {"--steps": 2, "--batch-prompts": 2, "--group-size": 4, "--max-new-tokens": 64}


def flags_of(name, tmp_path, **others):
    """The preset's own, with what is not here (model, data, judge) and what is too large in a small form."""
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, OPENR1 if name == "paper" else GSM8K)))
    ours = {"--model": byte_model(KIND[name], tmp_path / "model"), "--data": path, "--out": tmp_path / "run"}
    given = SMALLER | ours | others
    return ["--preset", name, *(str(word) for pair in given.items() for word in pair)]


@pytest.mark.parametrize("more", [[], ["--lora-rank", "4"]], ids=["all weights", "LoRA"])
@pytest.mark.parametrize("name", KIND)
def test_a_preset_runs_to_the_end_and_can_be_evaluated(name, more, tmp_path, server, even_is_right):
    if more:
        pytest.importorskip("peft", reason="needs the extra peft")
    server.reply = lambda text, number: Reply(grades(2 if len(response_part(text)[2]) % 2 else 9))  # even is right
    judge = {"--judge-url": server.url} if name == "paper" else {}
    flags = flags_of(name, tmp_path, **judge)
    train.main([*flags, *more, "--save-every", "1"])
    rows = metrics(tmp_path / "run")
    assert [row["step"] for row in rows] == ["1", "2"] and all(float(row["grad_norm"]) > 0 for row in rows)
    assert bool(server.bodies) == (name == "paper")
    train.main([*flags, *more, "--steps", "3", "--resume"])
    assert len(metrics(tmp_path / "run")) == 3
    (tmp_path / "math500.jsonl").write_text(json.dumps({"problem": "1+1?", "answer": "2"}))
    asked = ["--benchmarks", "math500", "--benchmark-dir", str(tmp_path), "--max-new-tokens", "16", "--k", "2"]
    evaluation.main(["--model", str(tmp_path / "run"), *asked])
    assert json.loads((tmp_path / "run" / "benchmarks.json").read_text())["benchmarks"]["math500"]


def test_there_is_no_other_preset_to_try():
    assert {*KIND, "builtin"} == PRESETS.keys()
    assert parse(preset_flags(["--preset", "builtin"])).batch_prompts == 16


# ---------------------------------------------------------------------------------------- what it will take


def test_the_forecast_is_the_formula_on_the_models_own_shape(tmp_path, monkeypatch):
    monkeypatch.setattr(sizes, "SMALL", 0)
    monkeypatch.setattr(sizes, "this_cpu", lambda: sizes.Machine(1e6, 1e12, 0.0, 4))
    folder = byte_model(KIND["qwen"], tmp_path / "model")
    config = parse(flags_of("qwen", tmp_path))
    described = AutoModelForCausalLM.from_pretrained(folder)
    shape = sizes.shape_of(described.config)
    assert shape.weights == pytest.approx(described.num_parameters(), rel=0.01)  # but for Qwen's biases
    said = sizes.forecast(config, str(folder), prompt_tokens=40)
    tokens = 2 * (40 + 4 * 64)
    setting = sizes.Setting(2, 4, 40, 64, tokens, checkpointing=True)
    step = sum(sizes.seconds(shape, setting, sizes.this_cpu()).values())
    assert tokens < config.micro_batch_tokens, "a micro-batch is no larger than the batch"
    assert f"{sizes.peak(sizes.memory(shape, setting, 4)) / 1e9:.1f} GB of memory" in said
    assert f"{step:,.1f} s a step on this CPU" in said and "at most 512 tokens of responses a step" in said
    assert said.count("\n") == 1 and "there are" not in said
    monkeypatch.setattr(sizes, "memory_here", lambda: 5e8)
    advice = "GB of memory (there are 0.5: give --lora-rank or a smaller model); "
    assert advice in sizes.forecast(config, str(folder), 40)


@pytest.mark.parametrize(
    ("large", "advice"),
    [
        ({"training": 8}, "--lora-rank or a smaller model"),
        ({"cache": 8, "logits": 5}, "--batch-prompts, --group-size or --max-new-tokens"),
        ({"logits": 8, "cache": 5}, "--micro-batch-tokens"),
        ({"logits": 4, "cache": 5}, None),
    ],
)
def test_what_is_too_large_for_the_memory_is_what_to_lower(large, advice):
    parts = dict.fromkeys(("weights", "training", "activations", "prompts", "logits", "cache", "rest"), 0.2) | large
    said = sizes.too_much(parts, here=6.0)
    assert (f"{advice})" in said) if advice else said == ""


def test_the_memory_of_this_machine_is_known_or_passed_over(monkeypatch):
    assert 1e8 < sizes.memory_here() < 1e15
    monkeypatch.delattr("os.sysconf")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert sizes.memory_here() == float("inf")


def test_of_a_small_model_or_one_of_unknown_shape_nothing_is_said(tmp_path, model_folder):
    config = parse(["--out", str(tmp_path / "run")])
    assert sizes.forecast(config, str(model_folder), 10) == ""
    assert sizes.forecast(config, str(tmp_path / "no model"), 10) == ""
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model_type": "mamba", "hidden_size": 4096}')  # no heads, no MLP
    assert sizes.forecast(config, str(tmp_path / "other"), 10) == ""
