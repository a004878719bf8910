"""The HTTP judge against a server that is not ours: `transformers serve`, which JUDGE_MODEL=DIR gives another model."""

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
from math import isnan

import pytest
import torch
from judge_server import pairs
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from judges.endpoint import Endpoint
from judges.http import http_judge
from judges.prompt import Counters, JudgeDown

pytestmark = pytest.mark.extra

CHAIN = ("<say>", "```json\n", '{"answer": 8,', ' "reasoning": 6,', ' "steps": 5,', ' "score": 7}', "\n```", "<end>")


def save_chain(folder):
    """A Llama that says CHAIN after any prompt: each token's embedding is a direction, which the head takes on by one.

    Its layer adds nothing. A prompt ends with <say>, as its chat template says.
    """
    vocabulary = {token: number for number, token in enumerate([*CHAIN, "?"])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    words.pre_tokenizer, words.decoder = pre_tokenizers.Split(Regex(r"\s+"), "removed"), decoders.Fuse()
    template = "{% for message in messages %}{{ message['content'] }}{% endfor %} <say>"
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="<end>", pad_token="?", unk_token="?", chat_template=template
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<say>"]})
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"bos_token_id": None, "eos_token_id": vocabulary["<end>"], "pad_token_id": vocabulary["?"]}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(vocabulary), tie_word_embeddings=False, **size, **ends))
    with torch.no_grad():
        model.model.layers[0].self_attn.o_proj.weight.zero_()
        model.model.layers[0].mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(len(vocabulary), 16))
        model.lm_head.weight.copy_(model.model.embed_tokens.weight.roll(1, dims=0) * 20)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@contextlib.contextmanager
def serve(model, log):
    """`transformers serve MODEL` on a free port of loopback: its base URL. Skips where its packages are missing."""
    for package in ("openai", "fastapi", "uvicorn"):
        pytest.importorskip(package, reason=f"transformers serve needs {package}: the extra `serving`")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", model, "--device", "cpu"]
    command += ["--dtype", "float32", "--host", "127.0.0.1", "--port", str(port)]
    with log.open("w") as file:
        server = subprocess.Popen(command, stdout=file, stderr=file, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    try:
        direct, end = urllib.request.build_opener(urllib.request.ProxyHandler({})), time.monotonic() + 180
        while True:
            assert server.poll() is None and time.monotonic() < end, log.read_text()[-2000:]
            with contextlib.suppress(OSError), direct.open(f"http://127.0.0.1:{port}/health", timeout=5):
                break
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.mark.usefixtures("no_proxy")
def test_a_judge_behind_transformers_serve(tmp_path, capsys):
    save_chain(tmp_path / "model")
    model = str(tmp_path / "model")
    with serve(model, tmp_path / "log") as url:
        counters = Counters()
        judge = http_judge(Endpoint(url, model), counters)
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and "max_tokens 256 (requests to find out: 1)" in said and "no score" not in said
        assert judge(pairs("#58", "#59", "#58")) == [7, 7, 7]
        assert (counters.calls, counters.failures, counters.cache_hits) == (2, 0, 1) and counters.tokens > 100
        for wrong, words in ((Endpoint(url, "other"), "pinned to"), (Endpoint(url[:-3], model), "end in /v1")):
            with pytest.raises(SystemExit):
                http_judge(wrong, Counters())
            assert words in capsys.readouterr().err


@pytest.mark.usefixtures("no_proxy")
def test_a_model_of_ones_own_behind_transformers_serve(tmp_path, capsys):
    """A score or NaN for each response, whatever the model says."""
    model = os.environ.get("JUDGE_MODEL") or pytest.skip("JUDGE_MODEL names no model folder")
    with serve(model, tmp_path / "log") as url:
        judge = http_judge(Endpoint(url, model, retries=0, timeout=600, reply_tokens=40), Counters())
        print(capsys.readouterr().err)
        with contextlib.suppress(JudgeDown):
            assert all(isnan(score) or 1 <= score <= 10 for score in judge(pairs("#58", "#59")))
