"""Runs made here for the tests of analysis.viewer and of its page: a byte tokenizer, groups, and what a page holds."""

import json
import math
from dataclasses import asdict

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import dagrpo
from dagrpo import METHODS

ATTACK = (
    "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\"> & \u2028 é {{csp}}"
)
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
TOKENIZER = Tokenizer(models.BPE({c: i for i, c in enumerate([*ALPHABET, "<end>"])}, []))  # a token a byte
TOKENIZER.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
TOKENIZER.decoder = decoders.ByteLevel()
TOKENIZER = PreTrainedTokenizerFast(tokenizer_object=TOKENIZER, eos_token="<end>")
LIMIT = 40  # max_new_tokens


def make_record(responses, R, S, step=1, group=0, method="dagrpo", anchor=True, logp=None, **texts):
    tokens = [[*TOKENIZER.encode(text), TOKENIZER.eos_token_id] for text in responses]
    A = dagrpo.group_advantages(torch.tensor([R]), METHODS[method].scale, METHODS[method].baseline)[0]
    S = [math.nan if s is None else float(s) for s in S]
    record = {
        "step": step,
        "group": group,
        "level": "1",
        "question": "q",
        "answer": "a",
        "demonstration": "d",
        "responses": responses,
        "tokens": tokens,
        "logp": logp or [[-0.5 - t / 100 for t in range(len(row))] for row in tokens],
        "R": R,
        "S": [None if math.isnan(s) else s for s in S],
        "A": A.tolist(),
        "keep": dagrpo.rectification_mask(A[None], torch.tensor([S]))[0].tolist(),
        "is_anchor": [anchor and i == len(R) - 1 for i in range(len(R))],
    }
    return record | texts


def random_record(rng, step=1, group=0):
    """Responses of few letters, so that much is shared; scores as a judge may give them, now and then none."""
    G = rng.choice([2, 4, 8])
    responses = ["".join(rng.choice("ab") for _ in range(rng.randint(1, 6))) for _ in range(G)]
    S = [None if rng.random() < 0.03 else rng.randint(10, 100) / 10 for _ in range(G)]
    R = [rng.choice([0.0, 1.0]) for _ in range(G)]
    if G > 2 and rng.random() < 0.3:  # a row with A = 0 beside others: its score is not read, nor its absence
        R = [0.0, 1.0, *[0.5] * (G - 2)]
    return make_record(responses, R, S, step, group, anchor=rng.random() < 0.7)


def write_run(folder, records, method="dagrpo", delta=3.0, tail=""):
    (folder / "checkpoint" / "model").mkdir(parents=True)
    TOKENIZER.save_pretrained(folder / "checkpoint" / "model")
    (folder / "checkpoint" / "model" / "config.json").write_text('{"model_type": "llama"}')
    config = {"method": method, "recipe": asdict(METHODS[method]), "delta": delta, "max_new_tokens": LIMIT}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "rollouts.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records) + tail)
    return folder


def page_data(path):
    html = path.read_text()
    start = html.index('id="data">') + len('id="data">')
    return json.loads(html[start : html.index("</script>", start)])


def unpack(runs):
    return [value for n, value in zip(runs[::2], runs[1::2], strict=True) for _ in range(n)]


def brute_force_nets(tokens, A, push):
    """Eq. 6 by looking at every history: (i, t) -> net push, of the tokens on both sides."""
    nets = {}
    for i, row in enumerate(tokens):
        for t in range(len(row)):
            rows = [j for j, other in enumerate(tokens) if other[: t + 1] == row[: t + 1]]
            if any(A[j] > 0 for j in rows) and any(A[j] < 0 for j in rows):
                nets[i, t] = sum(push[j][t] for j in rows)
    return nets
