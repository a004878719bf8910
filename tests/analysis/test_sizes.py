"""analysis.sizes: shapes are those of the models, and the formula's sums are right by hand."""

import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from analysis.bench import sides, sizes
from analysis.bench.growth import GrowthPoint
from analysis.bench.sizes import SHAPES
from analysis.saved import write_rows
from harness.sizes import Machine, Setting, Shape
from harness.warm_start import WarmStart, build_model, build_tokenizer
from policy import load_policy


@pytest.mark.parametrize("name", SHAPES)
def test_the_number_of_weights_is_that_of_the_model(name):
    shape = SHAPES[name]
    config, model = (Qwen2Config, Qwen2ForCausalLM) if shape.bias else (LlamaConfig, LlamaForCausalLM)
    with torch.device("meta"):
        made = model(
            config(
                vocab_size=shape.vocabulary, hidden_size=shape.width, num_hidden_layers=shape.layers,
                num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads, intermediate_size=shape.mlp,
                tie_word_embeddings=shape.tied,
            )
        )  # fmt: skip
    assert shape.weights == sum(p.numel() for p in made.parameters())


def test_the_built_in_shape_is_the_built_in_policys():
    made = build_model(WarmStart(), build_tokenizer())
    assert SHAPES["built-in"].weights == sum(p.numel() for p in made.parameters())


@pytest.mark.extra
def test_loras_weights_are_pefts(tiny_folder):
    pytest.importorskip("peft", reason="needs the extra peft")
    model = load_policy(str(tiny_folder), lora_rank=4).model
    config = model.config
    heads = (config.num_attention_heads, config.num_key_value_heads)
    shape = Shape(19, config.hidden_size, config.num_hidden_layers, *heads, config.intermediate_size, tied=False)
    assert shape.lora(4) == sum(p.numel() for p in model.parameters() if p.requires_grad)


SMALL = Shape(vocabulary=10, width=8, layers=2, heads=4, kv_heads=2, mlp=16, tied=True)
SETTING = Setting(prompts=3, group_size=4, prompt_tokens=5, new_tokens=10, micro_batch_tokens=100)


def test_memory_by_hand():
    linear = 2 * (2 * 8 * 8 + 2 * 8 * 4 + 3 * 8 * 16)
    weights = linear + 5 * 8 + 10 * 8
    found = sizes.memory(SMALL, SETTING, activation_bytes=4)
    assert (SMALL.linear, SMALL.weights) == (linear, weights)
    assert found["weights"] + found["training"] == 16 * weights
    assert sizes.memory(SMALL, SETTING, activation_bytes=2)["weights"] == (4 + 2) * weights, "autocast's copy"
    assert found["activations"] == 4 * 100 * 2 * (10 * 8 + 2 * 4 + 5 * 16)
    assert found["cache"] == 2 * 4 * 4 * 2 * 12 * 15 and found["prompts"] == 2 * 4 * 4 * 2 * 15 * 10
    assert found["logits"] == 4 * 4 * 100 * 10
    assert sizes.memory(SHAPES["SmolLM2-135M"], SETTING, 4)["logits"] == 4 * 4 * 100 * 49152
    assert sizes.memory(SHAPES["SmolLM2-135M"], replace(SETTING, micro_batch_tokens=2000), 4)["logits"] == 4 * 4 * 2**26
    assert sizes.peak(found) == 16 * weights + 0.6e9 + found["activations"] + found["prompts"] + found["logits"]


def test_checkpointing_trades_memory_for_time_and_lora_gradients_for_rank():
    checked = Setting(3, 4, 5, 10, 100, checkpointing=True)
    lora = Setting(3, 4, 5, 10, 100, lora_rank=1)
    machine = Machine(1e3, 1e3, 0.0, 4)
    plain, more = (sizes.seconds(SMALL, s, machine)["learner"] for s in (SETTING, checked))
    assert more / plain == pytest.approx(4 / 3) and sizes.seconds(SMALL, lora, machine)["learner"] / plain == 2 / 3
    one = sizes.memory(SMALL, checked, 4)["activations"]
    assert one == 4 * 100 * (8 * 2 + 10 * 8 + 2 * 4 + 5 * 16)
    assert sizes.memory(SMALL, lora, 4)["training"] == 12 * SMALL.lora(1)
    for a in (4, 2):  # a frozen base is fp32 on a CPU, bf16 on a GPU
        held = (4 if a == 4 else 6) * SMALL.lora(1)
        assert sizes.memory(SMALL, lora, a)["weights"] == a * SMALL.weights + held


def test_a_decoding_step_takes_the_longer_of_products_and_memory_and_its_small_kernels():
    F, tokens = SMALL.linear + 80, 10
    for machine, a_token in (
        (Machine(1.0, 1.0, 0.0, 4), 2 * F * 12),  # more than the bytes
        (Machine(1e12, 1.0, 0.0, 4), 4 * SMALL.weights + sizes.memory(SMALL, SETTING, 4)["cache"] / 2),
        (Machine(1e12, 1e12, 7.0, 4), 7.0 * SMALL.layers),
    ):
        found = sizes.seconds(SMALL, SETTING, machine)["sampling"]
        assert found == pytest.approx(2 * F * 15 / machine.flop + tokens * a_token)


def test_the_table_prints_and_the_formula_is_held_against_what_was_measured(capsys, tmp_path):
    says = sizes.peak(sizes.memory(SHAPES["SmolLM2-135M"], Setting(1, 8, 100, 10, 180), activation_bytes=4))
    points = [GrowthPoint("", 8, 100, 10, 1.0, 1.0, 1.0, 1.5e-9 * says, budget, "m") for budget in (180, 2048)]
    write_rows(points, tmp_path / "growth.csv")
    sizes.main(["--growth", str(tmp_path / "growth.csv")])
    out = capsys.readouterr().out
    assert "2 cases: 1.50 to 1.50" in out, "a group that is smaller than a micro-batch does not fill it"
    assert out.count("Qwen2.5-Math-7B") == 3
    for line in json.loads(Path(sizes.MEASURED).read_text()):
        cells = rf"\d+; {line['peak_gb']:.1f} \| [\d.]+; {line['rollout']:.1f} \| [\d.]+; {line['learner']:.1f} \|"
        assert re.search(cells, out), "computed; measured"


def test_lines_that_fit_are_measured_with_random_weights(capsys, tmp_path, monkeypatch):
    """On a pretended GPU, in this process instead of one of its own; the last line has more rows than fit."""
    tiny = Shape(vocabulary=300, width=16, layers=2, heads=2, kv_heads=1, mlp=32, tied=True, bias=True)
    lines = [Setting(2, 4, 6, 5, 64), Setting(2, 4, 6, 5, 64, checkpointing=True), Setting(10**6, 8, 600, 5, 64)]
    monkeypatch.setattr(sizes, "SHAPES", {"tiny": tiny})
    monkeypatch.setattr(sizes, "ON_GPU", [("tiny", s) for s in lines])
    monkeypatch.setattr(sizes.torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=8e9))
    monkeypatch.setattr(sizes.torch.cuda, "get_device_name", lambda: "pretended")
    monkeypatch.setattr(sides.scoring, "rewards", sides.scoring.rewards)  # put back afterwards
    monkeypatch.setattr(sizes, "measure", lambda case: sides.ours(case) | {"peak_gb": 1.25})
    found = list(sizes.measure_on_gpu())
    assert [line["checkpointing"] for line in found] == [False, True]
    assert all(line["tokens"] == 2 * 4 * 5 and line["kept"] == 1 and line["gpu"] == "pretended" for line in found)
    table = sizes.sizes_table(found).splitlines()
    took = f"0.0; {found[1]['rollout']:.1f} | 0.0; {found[1]['learner']:.1f}"
    assert len(table) == 5 and f"| 2 x 4 | 6 + 5 | all, checkpointing | 1; 1.2 | {took} |" in table[3]
    assert table[4].count(";") == 0, "not measured"


def test_memory_of_the_gpu_is_held_against_the_formula_too(capsys, tmp_path):
    name, s = sizes.ON_GPU[0]
    took = 2e-9 * sizes.peak(sizes.memory(SHAPES[name], s, 2))
    line = {"model": name, "gpu": "x", "peak_gb": took, "rollout": 1.0, "learner": 1.0, **asdict(s)}
    (tmp_path / "x.json").write_text(json.dumps([line]))
    sizes.main(["--measured", str(tmp_path / "x.json")])
    assert "on the GPU, 1 cases: 2.00 to 2.00" in capsys.readouterr().out


def test_of_a_long_line_the_first_step_is_measured(monkeypatch):
    monkeypatch.setattr(sizes.torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=1e12))
    monkeypatch.setattr(sizes.torch.cuda, "get_device_name", lambda: "pretended")
    monkeypatch.setattr(sizes, "random_model", lambda shape, folder: folder.mkdir())
    monkeypatch.setattr(sizes, "measure", lambda case: {"steps not counted": case.warm, "T": case.new_tokens})
    warm = {line["T"]: line["steps not counted"] for line in sizes.measure_on_gpu()}
    assert warm == {512: 1, 1024: 1, 4096: 0}


@pytest.mark.parametrize("text", [None, "[", "[]", "[{}]", '{"model": 1}'])
def test_a_file_without_measurements_is_one_clear_line(capsys, tmp_path, text):
    if text:
        (tmp_path / "x.json").write_text(text)
    with pytest.raises(SystemExit):
        sizes.main(["--measured", str(tmp_path / "x.json")])
    assert capsys.readouterr().err.count("\n") == 1


def test_without_a_gpu_there_is_nothing_to_measure(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(sizes.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        sizes.main(["--measure", str(tmp_path / "x.json")])
    assert "there is no GPU here" in capsys.readouterr().err and not (tmp_path / "x.json").exists()
