"""cuda_graphs.py as far as it goes without a GPU: the cache gives the same samples; its switches. See test_gpu.py."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from transformers import (
    FalconConfig,
    FalconForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MptConfig,
    MptForCausalLM,
)

import fast
from fast import cuda_graphs, prompt_cache, sampling
from tasks import solve

ON_GPU = torch.device("cuda")


@pytest.mark.parametrize("prompts", [["1+2=", "12+13-14+15=", "7-5="], ["1", "2", "3"]])
def test_a_static_cache_gives_the_same_samples(tiny, monkeypatch, prompts):
    """Also of prompts of one token, for which nothing is computed beforehand; rows leave the batch on their way."""
    problems = [replace(solve("1+2=", "1"), question=text) for text in prompts]
    monkeypatch.setattr(sampling, "LEAVE_AT", 0.5)  # as with a static cache: draws are made for the rows that are there
    found = []
    for kind in (prompt_cache.Growing, prompt_cache.Static):
        monkeypatch.setattr(cuda_graphs, "cache_kind", lambda _, kind=kind: kind)
        torch.manual_seed(3)
        found.append(fast.sample_groups(tiny, problems, [4, 4, 4], max_new_tokens=30))
    growing, static = found
    assert growing.ended.any() and len(set(growing.lengths.tolist())) > 4
    assert torch.equal(static.tokens, growing.tokens)
    torch.testing.assert_close(static.logp, growing.logp, atol=1e-5, rtol=0)


@pytest.mark.parametrize("room", [1, 7])
def test_its_room_grows_a_part_at_a_time(tiny, problems, monkeypatch, room):
    """Greedily, as rows that ended leave at other times then, and draws are made for the rows that are there."""
    expected = fast.sample_groups(tiny, problems, [1, 1, 1], 30, greedy=True)
    monkeypatch.setattr(cuda_graphs, "cache_kind", lambda _: prompt_cache.Static)
    monkeypatch.setattr(prompt_cache, "STATIC_ROOM", room)
    rooms, make_room = [], prompt_cache.Static.make_room
    monkeypatch.setattr(prompt_cache.Static, "make_room", lambda layer, n: rooms.append(n) or make_room(layer, n))
    found = fast.sample_groups(tiny, problems, [1, 1, 1], 30, greedy=True)
    P, T = found.prompt_ids.shape[1], found.tokens.shape[1]
    assert rooms == sorted(rooms) and len(set(rooms)) >= T / room, "as many parts as it takes"
    assert max(rooms) <= P + T - 1 + room and torch.equal(found.tokens, expected.tokens)
    torch.testing.assert_close(found.logp, expected.logp, atol=1e-5, rtol=0)


def test_it_too_keeps_keys_as_attention_sees_them():
    layer, x = prompt_cache.Static(), torch.randn(2, 1, 3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        layer.begin(x, x)
        layer.make_room(5)
        keys, values = layer.update(x[:, :, :1], x[:, :, :1])
    assert keys.dtype == values.dtype == torch.bfloat16 and keys.shape == (2, 1, 5, 4)
    assert torch.equal(keys[:, :, :4], torch.cat([x, x[:, :, :1]], dim=2).bfloat16()) and not keys[:, :, 4:].any()


def test_only_a_gpu_and_a_model_whose_steps_are_alike_get_it(tiny):
    small = {"vocab_size": 20, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    small |= {"num_attention_heads": 2, "num_key_value_heads": 1}
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    llama = LlamaForCausalLM(LlamaConfig(**small, rope_parameters=rope | {"rope_type": "linear"}))
    others = {
        "a sliding window": MistralForCausalLM(MistralConfig(**small, sliding_window=6)),
        "positions that depend on the length": LlamaForCausalLM(LlamaConfig(**small, rope_parameters=rope)),
        "alibi": FalconForCausalLM(
            FalconConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, alibi=True)
        ),
        "numbers read back": MptForCausalLM(MptConfig(d_model=8, n_heads=2, n_layers=1, vocab_size=20)),
    }
    for name, model in {"tiny": tiny.model, "linear": llama, **others}.items():
        kinds = [
            cuda_graphs.cache_kind(SimpleNamespace(device=torch.device(device), model=model))
            for device in ("cuda", "cpu")
        ]
        assert kinds == [prompt_cache.Growing if name in others else prompt_cache.Static, prompt_cache.Growing], name


@pytest.mark.parametrize("on", [True, False])
def test_the_second_step_is_recorded_once_and_then_the_models_own_pass_is_there_again(tiny, monkeypatch, on):
    """Also after an error; and short responses are not recorded."""
    token = torch.tensor([[5]])
    made = []
    monkeypatch.setattr(cuda_graphs, "record", lambda *_: made.append(1) or (lambda inputs: f"replayed {inputs['x']}"))
    policy = SimpleNamespace(device=ON_GPU, model=tiny.model)
    cache = prompt_cache.empty_cache(tiny, prompt_cache.Static)
    with pytest.raises(RuntimeError), cuda_graphs.graphed(policy, cache, cuda_graphs.WORTH_STEPS - (not on)):
        if on:
            assert tiny.model(input_ids=token).logits.shape == (1, 1, len(tiny.tokenizer)) and not made, "a real one"
            assert [tiny.model(x=1), tiny.model(x=2)] == ["replayed 1", "replayed 2"] and made == [1]
        else:
            tiny.model(token)
        raise RuntimeError
    assert "forward" not in vars(tiny.model) and len(made) == on
    assert tiny.model(token).logits.shape == (1, 1, len(tiny.tokenizer))


def test_a_pass_that_somebody_has_put_there_stays(tiny, monkeypatch):
    """As accelerate does."""
    monkeypatch.setattr(tiny.model, "forward", own := tiny.model.forward)
    with cuda_graphs.graphed(
        SimpleNamespace(device=ON_GPU, model=tiny.model), prompt_cache.empty_cache(tiny, prompt_cache.Static), 99
    ):
        assert tiny.model.forward is not own
    assert tiny.model.forward is own
