"""Damaged and crafted run folders, models that are none: one line and exit code 2 within seconds, and nothing is lost.

Every case damages a copy of one good run and calls a program on it, in this process.
"""

import json
import os
import shutil
import time

import pytest
import torch
from helpers import run
from safetensors.torch import load_file, save_file

import eval
from analysis import viewer

DEEP = "[" * 100_000
SHORT = ["--levels", "1", "--batch-prompts", "2", "--group-size", "2"]  # and what helpers.run adds


@pytest.fixture(scope="module")
def good(tiny_folder, tmp_path_factory):
    """A run of two steps, with an adapter of its model and a model that has a chat template beside it."""
    out = tmp_path_factory.mktemp("good") / "run"
    run(tiny_folder, out, *SHORT, steps=2)
    return out


def resume(folder, model):
    run(model, folder, *SHORT, "--resume", steps=3)


def begin(folder, model):
    run(folder / "checkpoint" / "model", folder / "new", *SHORT, steps=1)


def evaluate(folder, model):
    eval.main(["--model", str(folder), "--k", "0", "--limit", "1", "--max-new-tokens", "4"])


def view(folder, model):
    viewer.main([str(folder)])


# ------------------------------------------------------------------------------- ways to damage a file of a run folder


def text(name, content):
    """The file holds this, as bytes or as text."""

    def damage(folder):
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return damage


def gone(name):
    def damage(folder):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return damage


def a_folder(name):
    def damage(folder):
        gone(name)(folder)
        (folder / name).mkdir()

    return damage


def cut(name, share=0.5):
    def damage(folder):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: int(len(whole) * share)])

    return damage


def entries(name, **new):
    """A JSON object with other values; ... takes an entry out."""

    def damage(folder):
        path = folder / name
        content = json.loads(path.read_text()) | new
        path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))

    return damage


def lines(name, change):
    """A text file with its list of lines changed, or replaced by what `change` returns."""

    def damage(folder):
        path = folder / name
        rows = path.read_text().splitlines(keepends=True)
        path.write_text("".join(change(rows) or rows))

    return damage


def groups(**new):
    """Every group of rollouts.jsonl with other values, and config.json untouched; ... takes an entry out."""

    def change(rows):
        records = [json.loads(row) | new for row in rows]
        return [json.dumps({k: v for k, v in record.items() if v is not ...}) + "\n" for record in records]

    return lines("rollouts.jsonl", change)


def deep_group(rows):
    return [row[:-2] + ', "more": ' + DEEP + "]" * len(DEEP) + "}\n" for row in rows]


def trainer(change):
    """trainer.pt with its dict changed, or replaced by what `change` returns."""

    def damage(folder):
        path = folder / "checkpoint" / "trainer.pt"
        content = torch.load(path)
        other = change(content)
        torch.save(content if other is None else other, path)

    return damage


def first(**new):
    """The optimiser's state of the first parameter with other values, made from the old one; ... takes one out."""

    def change(content):
        state = content["optimizer"]["state"][0]
        for name, make in new.items():
            if make is ...:
                del state[name]
            else:
                state[name] = make(state.get(name))

    return trainer(change)


MODEL = "checkpoint/model/"


def weights(change):
    def damage(folder):
        path = folder / MODEL / "model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path, metadata={"format": "pt"})

    return damage


def weight(new):
    return weights(lambda tensors: tensors.update({"model.norm.weight": new(tensors["model.norm.weight"])}))


def config(**new):
    return entries(MODEL + "config.json", **new)


def template(words):
    return text(MODEL + "chat_template.jinja", words)


def adapter(**new):
    return text(MODEL + "adapter_config.json", json.dumps(new))


class Evil:
    """Makes a folder when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("ran",)


def fill(value):
    return lambda x: torch.full_like(x, value)


RUNS = {  # --resume
    "trainer without random": trainer(lambda c: c.pop("random") and None),
    "trainer without step": trainer(lambda c: c.pop("step") and None),
    "trainer without optimizer": trainer(lambda c: c.pop("optimizer") and None),
    "trainer without start_entropy": trainer(lambda c: [c.pop("start_entropy"), None][1]),
    "trainer a list": trainer(lambda c: [1, 2]),
    "trainer a text": trainer(lambda c: "x"),
    "trainer a tensor": trainer(lambda c: torch.zeros(3)),
    "trainer a module": trainer(lambda c: torch.nn.Linear(1, 1)),
    "trainer with code": trainer(lambda c: c.update(random=Evil())),
    "trainer empty": text("checkpoint/trainer.pt", ""),
    "trainer of text": text("checkpoint/trainer.pt", "{}"),
    "trainer of noise": text("checkpoint/trainer.pt", bytes(range(256)) * 40),
    "trainer cut": cut("checkpoint/trainer.pt"),
    "trainer cut at its end": cut("checkpoint/trainer.pt", 0.99),
    "trainer gone": gone("checkpoint/trainer.pt"),
    "trainer a folder": a_folder("checkpoint/trainer.pt"),
    "step a text": trainer(lambda c: c.update(step="2")),
    "step not whole": trainer(lambda c: c.update(step=2.5)),
    "step a switch": trainer(lambda c: c.update(step=True)),
    "step below 0": trainer(lambda c: c.update(step=-1)),
    "step huge": trainer(lambda c: c.update(step=10**30)),
    "step another": trainer(lambda c: c.update(step=1)),
    "step file gone": gone("checkpoint/step"),
    "step file a path": text("checkpoint/step", "../../x"),
    "step file not UTF-8": text("checkpoint/step", b"\xff"),
    "entropy not a number": trainer(lambda c: c.update(start_entropy=float("nan"))),
    "entropy a text": trainer(lambda c: c.update(start_entropy="x")),
    "random a list": trainer(lambda c: c.update(random=[])),
    "random without cpu": trainer(lambda c: c.update(random={"cuda": []})),
    "random too short": trainer(lambda c: c["random"].update(cpu=torch.zeros(8, dtype=torch.uint8))),
    "random of floats": trainer(lambda c: c["random"].update(cpu=torch.zeros(5056))),
    "random all zero": trainer(lambda c: c["random"].update(cpu=torch.zeros(5056, dtype=torch.uint8))),
    "optimizer a list": trainer(lambda c: c.update(optimizer=[])),
    "optimizer without state": trainer(lambda c: c["optimizer"].pop("state") and None),
    "state a list": trainer(lambda c: c["optimizer"].update(state=[1])),
    "state of one parameter": trainer(lambda c: c["optimizer"].update(state={0: c["optimizer"]["state"][0]})),
    "state of one parameter more": trainer(lambda c: c["optimizer"]["state"].update({99: c["optimizer"]["state"][0]})),
    "state by other names": trainer(lambda c: c["optimizer"]["state"].update({"0": c["optimizer"]["state"].pop(0)})),
    "state a tensor": trainer(lambda c: c["optimizer"]["state"].update({0: torch.zeros(3)})),
    "exp_avg too small": first(exp_avg=lambda x: torch.zeros(1)),
    "exp_avg empty": first(exp_avg=lambda x: torch.zeros(0)),
    "exp_avg transposed": first(exp_avg=lambda x: x.T.contiguous().T),
    "exp_avg one number everywhere": first(exp_avg=lambda x: torch.zeros(1).expand_as(x)),
    "exp_avg sparse": first(exp_avg=lambda x: x.to_sparse()),
    "exp_avg half": first(exp_avg=lambda x: x.half()),
    "exp_avg whole numbers": first(exp_avg=lambda x: x.long()),
    "exp_avg NaN": first(exp_avg=fill(float("nan"))),
    "exp_avg infinite": first(exp_avg=fill(float("inf"))),
    "exp_avg None": first(exp_avg=lambda x: None),
    "exp_avg a text": first(exp_avg=lambda x: "x"),
    "exp_avg missing": first(exp_avg=...),
    "exp_avg_sq below 0": first(exp_avg_sq=fill(-1.0)),
    "exp_avg_sq too small": first(exp_avg_sq=lambda x: torch.zeros(1)),
    "exp_avg_sq missing": first(exp_avg_sq=...),
    "a state too many": first(max_exp_avg_sq=lambda x: torch.zeros(1)),
    "AdamW's step NaN": first(step=lambda x: torch.tensor(float("nan"))),
    "AdamW's step below 0": first(step=lambda x: torch.tensor(-5.0)),
    "AdamW's step a list": first(step=lambda x: torch.zeros(3)),
    "AdamW's step a number": first(step=lambda x: 3.0),
    "checkpoint a file": text("checkpoint", "x"),
    "checkpoint empty": a_folder("checkpoint"),
    "checkpoint without a model": gone("checkpoint/model"),
    "checkpoint without config.json": gone("checkpoint/config.json"),
    "checkpoint of another method": entries("checkpoint/config.json", method="grpo"),
    "checkpoint of another seed": entries("checkpoint/config.json", seed=5),
    "checkpoint of other problems": entries("checkpoint/config.json", content="x"),
    "checkpoint of another recipe": entries("checkpoint/config.json", recipe={}),
    "checkpoint of an experiment": entries("checkpoint/config.json", experiment="random_mask"),
    "config a list": text("config.json", "[]"),
    "config null": text("config.json", "null"),
    "config a number": text("config.json", "5"),
    "config a text": text("config.json", '"x"'),
    "config pairs that are none": text("config.json", '["ab", "cd"]'),
    "config empty": text("config.json", ""),
    "config no entries": text("config.json", "{}"),
    "config cut": cut("config.json"),
    "config deep": text("config.json", DEEP),
    "config not UTF-8": text("config.json", b'{"method": "\xff"}'),
    "config gone": gone("config.json"),
    "config a folder": a_folder("config.json"),
    "config without its rate": entries("config.json", lr=...),
    "config with a rate of text": entries("config.json", lr="x"),
    "config of other problems": entries("config.json", problems=3),
    "metrics gone": gone("metrics.csv"),
    "metrics empty": text("metrics.csv", ""),
    "metrics a folder": a_folder("metrics.csv"),
    "metrics without rows": lines("metrics.csv", lambda rows: rows[:1]),
    "metrics without step 1": lines("metrics.csv", lambda rows: [rows[0], rows[2]]),
    "metrics with step 1 twice": lines("metrics.csv", lambda rows: [*rows[:2], *rows[1:]]),
    "metrics not UTF-8": text("metrics.csv", b"step\n1,\xff\n2,\xff\n"),
    "metrics with noise": lines("metrics.csv", lambda rows: [*rows[:2], "noise\n", *rows[2:]]),
    "metrics with NUL": lines("metrics.csv", lambda rows: [*rows[:2], "\0\0\0\n"]),
    "metrics with half steps": lines("metrics.csv", lambda rows: [rows[0], "1.0,2\n", "2.0,2\n"]),
    "metrics with 5000 digits": lines("metrics.csv", lambda rows: [rows[0], "1" * 5000 + ",2\n"]),
    "rollouts with a list": lines("rollouts.jsonl", lambda rows: ["[]\n", *rows]),
    "rollouts with null": lines("rollouts.jsonl", lambda rows: ["null\n", *rows]),
    "rollouts with a text": lines("rollouts.jsonl", lambda rows: ['"x"\n', *rows]),
    "rollouts with an empty line": lines("rollouts.jsonl", lambda rows: ["\n", *rows]),
    "rollouts with half a line": lines("rollouts.jsonl", lambda rows: [rows[0][:50] + "\n", *rows[1:]]),
    "rollouts deep": lines("rollouts.jsonl", lambda rows: [DEEP + "\n", *rows]),
    "rollouts without a step": groups(step=...),
    "rollouts with a step of text": groups(step="1"),
    "rollouts with a step not whole": groups(step=1.5),
    "rollouts with a step infinite": groups(step=float("inf")),
    "rollouts backwards": lines("rollouts.jsonl", lambda rows: rows[::-1]),
    "rollouts not UTF-8": text("rollouts.jsonl", b'{"step": 1, "x": "\xff"}\n'),
    "rollouts a folder": a_folder("rollouts.jsonl"),
}
MODELS = {  # eval.py and train.py --model
    "config gone": gone(MODEL + "config.json"),
    "config empty": text(MODEL + "config.json", ""),
    "config a list": text(MODEL + "config.json", "[]"),
    "config null": text(MODEL + "config.json", "null"),
    "config no entries": text(MODEL + "config.json", "{}"),
    "config cut": cut(MODEL + "config.json"),
    "config deep": text(MODEL + "config.json", DEEP),
    "config not UTF-8": text(MODEL + "config.json", b"\xff"),
    "a billion layers": config(num_hidden_layers=10**9),
    "layers of text": config(num_hidden_layers="x"),
    "layers without weights": config(num_hidden_layers=3),
    "wide": config(hidden_size=10**9),
    "wide inside": config(intermediate_size=10**10),
    "no heads": config(num_attention_heads=0),
    "uneven heads": config(num_attention_heads=3),
    "heads below 0": config(num_attention_heads=-1),
    "a vocabulary of 10^12": config(vocab_size=10**12),
    "a vocabulary too small": config(vocab_size=3),
    "an activation that there is not": config(hidden_act="x"),
    "an epsilon of text": config(rms_norm_eps="x"),
    "a rope that there is not": config(rope_parameters={"rope_type": "x"}),
    "a rope of text": config(rope_parameters={"rope_type": "default", "rope_theta": "x"}),
    "a type that there is not": config(model_type="x"),
    "a type that is a list": config(model_type=[]),
    "an encoder": config(model_type="bert"),
    "an encoder and a decoder": config(model_type="t5"),
    "attention that there is not": config(attn_implementation="x"),
    "attention from the hub": config(_attn_implementation="x/y"),
    "code of its own": config(model_type="x", auto_map={"AutoConfig": "x.C", "AutoModelForCausalLM": "x.M"}),
    "a quantization that needs a package": config(quantization_config={"quant_method": "awq"}),
    "weights gone": gone(MODEL + "model.safetensors"),
    "weights empty": text(MODEL + "model.safetensors", ""),
    "weights of text": text(MODEL + "model.safetensors", "{}"),
    "weights cut": cut(MODEL + "model.safetensors"),
    "weights cut at their end": cut(MODEL + "model.safetensors", 0.99),
    "weights with a huge header": text(MODEL + "model.safetensors", b"\xff" * 7 + b"\x7f{}"),
    "weights with a deep header": text(MODEL + "model.safetensors", (10**5).to_bytes(8, "little") + DEEP.encode()),
    "weights a folder": a_folder(MODEL + "model.safetensors"),
    "a tensor missing": weights(lambda x: x.pop("model.norm.weight")),
    "all tensors but one missing": weights(lambda x: [x.pop(name) for name in [*x][1:]]),
    "a tensor by another name": weights(lambda x: x.update(norm=x.pop("model.norm.weight"))),
    "a tensor too short": weight(lambda x: x[:5].clone()),
    "a tensor empty": weight(lambda x: torch.zeros(0)),
    "a tensor with an axis more": weight(lambda x: x[None].clone()),
    "a weight NaN": weight(lambda x: torch.cat([x[1:], torch.tensor([float("nan")])])),
    "a weight infinite": weight(lambda x: torch.cat([x[1:], torch.tensor([float("inf")])])),
    "weights too large for their logits": weights(lambda x: x["lm_head.weight"].fill_(3e38)),
    "an index out of the folder": lambda folder: [
        gone(MODEL + "model.safetensors")(folder),
        text(MODEL + "model.safetensors.index.json", '{"weight_map": {"a": "../../trainer.pt"}}')(folder),
    ],
    "pickled weights with code": lambda folder: [
        gone(MODEL + "model.safetensors")(folder),
        torch.save({"model.norm.weight": Evil()}, folder / MODEL / "pytorch_model.bin"),
    ],
    "tokenizer gone": gone(MODEL + "tokenizer.json"),
    "tokenizer empty": text(MODEL + "tokenizer.json", ""),
    "tokenizer a list": text(MODEL + "tokenizer.json", "[]"),
    "tokenizer no entries": text(MODEL + "tokenizer.json", "{}"),
    "tokenizer cut": cut(MODEL + "tokenizer.json"),
    "tokenizer deep": text(MODEL + "tokenizer.json", DEEP),
    "tokenizer not UTF-8": text(MODEL + "tokenizer.json", b"\xff"),
    "tokenizer without a model": entries(MODEL + "tokenizer.json", model=None),
    "tokenizer with a splitter that there is not": entries(MODEL + "tokenizer.json", pre_tokenizer={"type": "x"}),
    "tokenizer settings a list": text(MODEL + "tokenizer_config.json", "[]"),
    "tokenizer settings null": text(MODEL + "tokenizer_config.json", "null"),
    "tokenizer settings gone": gone(MODEL + "tokenizer_config.json"),
    "tokenizer settings cut": cut(MODEL + "tokenizer_config.json"),
    "tokenizer with code of its own": entries(
        MODEL + "tokenizer_config.json", tokenizer_class="X", auto_map={"AutoTokenizer": ["x.T", None]}
    ),
    "no end token": entries(MODEL + "tokenizer_config.json", eos_token=...),
    "an end token that is a number": entries(MODEL + "tokenizer_config.json", eos_token=5),
    "an end token that is a list": entries(MODEL + "tokenizer_config.json", eos_token=[]),
    "an end token that the model does not know": entries(MODEL + "tokenizer_config.json", eos_token="<other>"),
    "special tokens that are a number": entries(MODEL + "tokenizer_config.json", additional_special_tokens=5),
    "a template that is no template": template("{% for %}"),
    "a template that refuses": template("{{ raise_exception('no') }}"),
    "a template that divides by 0": template("{{ 1 // 0 }}"),
    "a template that asks for what is not there": template("{{ messages[5].content.x.y }}"),
    "a template that writes nothing": template("{{ '' }}"),
    "a template that calls itself": template("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"),
    "a template that looks around": template("{{ ''.__class__.__mro__[1].__subclasses__() }}"),
    "a template that counts for long": template("{% for i in range(10**9) %}{% endfor %}"),
    "a template that does not end": template(
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    ),
    "a template that is a number": entries(MODEL + "tokenizer_config.json", chat_template=5),
    "an adapter of nothing": adapter(),
    "an adapter of no model": adapter(peft_type="LORA", base_model_name_or_path=None),
    "an adapter of a model that there is not": adapter(peft_type="LORA", base_model_name_or_path="/nowhere"),
    "an adapter of another kind": adapter(peft_type="X", base_model_name_or_path="/nowhere"),
    "an adapter that is a list": text(MODEL + "adapter_config.json", "[]"),
    "settings of sampling that are a list": text(MODEL + "generation_config.json", "[]"),
}
VIEWS = {  # analysis.viewer
    "delta infinite": entries("config.json", delta=float("inf")),
    "delta NaN": entries("config.json", delta=float("nan")),
    "delta a text": entries("config.json", delta="3"),
    "delta null": entries("config.json", delta=None),
    "delta of 400 digits": entries("config.json", delta=10**400),
    "max_new_tokens of text": entries("config.json", max_new_tokens="x"),
    "max_new_tokens below 1": entries("config.json", max_new_tokens=0),
    "max_new_tokens infinite": entries("config.json", max_new_tokens=float("inf")),
    "recipe a list": entries("config.json", recipe=[]),
    "recipe with other clips": entries("config.json", recipe={"clip": ["a", "b"]}),
    "recipe with one clip": entries("config.json", recipe={"clip": [1.0]}),
    "recipe with a scale that there is not": entries("config.json", recipe={"clip": [0.8, 1.2], "scale": "x"}),
    "recipe with a bonus of text": entries("config.json", recipe={"clip": [0.8, 1.2], "entropy_bonus": "x"}),
    "a method that there is not": entries("config.json", method="x"),
    "a method that is a list": entries("config.json", method=[]),
    "config a list": text("config.json", "[]"),
    "config deep": text("config.json", DEEP),
    "config not UTF-8": text("config.json", b"\xff"),
    "rollouts gone": gone("rollouts.jsonl"),
    "rollouts empty": text("rollouts.jsonl", ""),
    "rollouts lists": text("rollouts.jsonl", "[]\n[]\n"),
    "rollouts null": text("rollouts.jsonl", "null\n"),
    "rollouts deep": text("rollouts.jsonl", DEEP + "\n"),
    "rollouts deep inside": lines("rollouts.jsonl", deep_group),
    "rollouts not UTF-8": text("rollouts.jsonl", b"\xff\n"),
    "R of 400 digits": groups(R=[10**400, 0]),
    "R of 5000 digits": text("rollouts.jsonl", '{"step": ' + "1" * 5000 + "}\n"),
    "R infinite": groups(R=[float("inf"), 0]),
    "R of text": groups(R=["1", "0"]),
    "A beyond fp32": groups(A=[1e300, -1e300]),
    "S of lists": groups(S=[[], []]),
    "S a text": groups(S="ab"),
    "logp of text": groups(tokens=[[5], [6]], logp=[["x"], ["y"]]),
    "logp infinite": groups(tokens=[[5], [6]], logp=[[float("-inf")], [0.0]]),
    "tokens below 0": groups(tokens=[[-1], [6]], logp=[[0.0], [0.0]]),
    "tokens that the tokenizer does not have": groups(tokens=[[10**30], [6]], logp=[[0.0], [0.0]]),
    "tokens of text": groups(tokens=["a", "b"], logp=[[0.0], [0.0]]),
    "tokens that are switches": groups(tokens=[[True], [6]], logp=[[0.0], [0.0]]),
    "keep of numbers": groups(keep=[3, "x"]),
    "is_anchor of text": groups(is_anchor=["a", "b"]),
    "responses of numbers": groups(responses=[1, 2]),
    "one row": groups(R=[1.0]),
    "step of 400 digits": groups(step=10**400),
    "step a switch": groups(step=True),
    "question a number": groups(question=5),
    "tokenizer gone": gone(MODEL + "tokenizer_config.json"),
    "tokenizer cut": cut(MODEL + "tokenizer.json"),
}
CASES = [
    *((resume, f"resume: {name}", damage) for name, damage in RUNS.items()),
    *(
        (program, f"{program.__name__}: {name}", damage)
        for program in (begin, evaluate)
        for name, damage in MODELS.items()
    ),
    *((view, f"view: {name}", damage) for name, damage in VIEWS.items()),
]


@pytest.mark.parametrize(("program", "damage"), [(p, d) for p, _, d in CASES], ids=[name for _, name, _ in CASES])
def test_a_damaged_folder_is_one_line(good, tiny_folder, tmp_path, monkeypatch, capsys, program, damage):
    folder = shutil.copytree(good, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    damage(folder)
    capsys.readouterr()
    begun = time.perf_counter()
    with pytest.raises(SystemExit) as stop:
        program(folder, tiny_folder)
    err = capsys.readouterr().err
    assert stop.value.code == 2 and err.startswith("error: ") and err.count("\n") == 1, err
    assert len(err) < 600, "a line that can be read"
    assert time.perf_counter() - begun < 30
    assert not (tmp_path / "ran").exists() and not (folder / "new" / "config.json").exists()


@pytest.mark.parametrize("program", [resume, begin, evaluate, view])
def test_a_folder_that_is_not_damaged_is_not_refused(good, tiny_folder, tmp_path, program):
    program(shutil.copytree(good, tmp_path / "run"), tiny_folder)
