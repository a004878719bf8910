"""Ways to damage a file of a run folder, or of the model in it; each is a function of the folder."""

import json
import os
import shutil

import torch
from safetensors.torch import load_file, save_file

DEEP = "[" * 100_000


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
