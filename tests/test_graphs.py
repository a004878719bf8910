"""graphs.py as far as it goes without a GPU: its cache gives the same samples, and its switches. See test_gpu.py."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

import graphs
import kvcache
import rollout
import train
from policy import Policy
from tasks import solve

ON_GPU = torch.device("cuda")


@pytest.mark.parametrize("prompts", [["1+2=", "12+13-14+15=", "7-5="], ["1", "2", "3"]])
def test_a_static_cache_gives_the_same_samples(tiny, monkeypatch, prompts):
    """Also of prompts of one token, for which nothing is computed beforehand; rows leave the batch on their way."""
    problems = [replace(solve("1+2=", "1"), question=text) for text in prompts]
    found = []
    for kind in (kvcache.Growing, kvcache.Static):
        monkeypatch.setattr(graphs, "cache_kind", lambda _, kind=kind: kind)
        torch.manual_seed(3)
        found.append(rollout.sample_groups(tiny, problems, [4, 4, 4], max_new_tokens=30))
    growing, static = found
    assert growing.ended.any() and len(set(growing.lengths.tolist())) > 4
    assert torch.equal(static.tokens, growing.tokens)
    torch.testing.assert_close(static.logp, growing.logp, atol=1e-5, rtol=0)


@pytest.mark.parametrize("room", [1, 7, 30])
def test_its_room_grows_a_part_at_a_time(tiny, problems, monkeypatch, room):
    """Greedily, as rows that ended leave at other times then, and draws are made for the rows that are there."""
    expected = rollout.sample_groups(tiny, problems, [1, 1, 1], 30, greedy=True)
    monkeypatch.setattr(graphs, "cache_kind", lambda _: kvcache.Static)
    monkeypatch.setattr(kvcache, "STATIC_ROOM", room)
    rooms, make_room = [], kvcache.Static.make_room
    monkeypatch.setattr(kvcache.Static, "make_room", lambda layer, n: rooms.append(n) or make_room(layer, n))
    found = rollout.sample_groups(tiny, problems, [1, 1, 1], 30, greedy=True)
    P, T = found.prompt_ids.shape[1], found.tokens.shape[1]
    assert rooms == sorted(rooms) and len(set(rooms)) >= T / room, "as many parts as it takes"
    assert max(rooms) <= P + T - 1 + room and torch.equal(found.tokens, expected.tokens)
    torch.testing.assert_close(found.logp, expected.logp, atol=1e-5, rtol=0)


def test_it_too_keeps_keys_as_attention_sees_them():
    layer, x = kvcache.Static(), torch.randn(2, 1, 3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        layer.begin(x, x)
        layer.make_room(5)
        keys, values = layer.update(x[:, :, :1], x[:, :, :1])
    assert keys.dtype == values.dtype == torch.bfloat16 and keys.shape == (2, 1, 5, 4)
    assert torch.equal(keys[:, :, :4], torch.cat([x, x[:, :, :1]], dim=2).bfloat16()) and not keys[:, :, 4:].any()


def test_only_a_gpu_and_a_model_of_full_attention_get_it(tiny):
    windows = MistralConfig(
        vocab_size=20, hidden_size=8, intermediate_size=8, num_hidden_layers=1, sliding_window=6,
        num_attention_heads=2, num_key_value_heads=1,
    )  # fmt: skip
    sliding = MistralForCausalLM(windows)
    for device, model, static in (("cuda", tiny.model, True), ("cpu", tiny.model, False), ("cuda", sliding, False)):
        policy = SimpleNamespace(device=torch.device(device), model=model)
        assert graphs.cache_kind(policy) is (kvcache.Static if static else kvcache.Growing)


@pytest.mark.parametrize("on", [True, False])
def test_the_models_own_pass_is_there_again(tiny, monkeypatch, on):
    """Also after an error; and short responses are not recorded."""
    made = []
    monkeypatch.setattr(graphs, "record", lambda *_: made.append(1) or (lambda inputs: f"replayed {inputs['x']}"))
    policy = SimpleNamespace(device=ON_GPU, model=tiny.model)
    cache = kvcache.empty_cache(tiny, kvcache.Static)
    with pytest.raises(RuntimeError), graphs.graphed(policy, cache, graphs.WORTH_STEPS - (not on)):
        if on:
            assert [tiny.model(x=1), tiny.model(x=2)] == ["replayed 1", "replayed 2"] and made == [1]
        else:
            tiny.model(torch.tensor([[5]]))
        raise RuntimeError
    assert "forward" not in vars(tiny.model) and len(made) == on
    assert isinstance(tiny, Policy) and tiny.model(torch.tensor([[5]])).logits.shape == (1, 1, len(tiny.tokenizer))


def test_prompts_are_run_once_where_that_is_worth_a_second_pass(tiny):
    group = torch.arange(6) // 3  # two prompts, four rows that need not run theirs
    weights = tiny.model.num_parameters()
    worth = rollout.WORTH_SHARING / weights / 4
    policy = SimpleNamespace(device=ON_GPU, model=tiny.model)
    assert rollout.worth_sharing(policy, group, round(1.01 * worth))
    assert not rollout.worth_sharing(policy, group, round(0.99 * worth)) and rollout.worth_sharing(tiny, group, 1)


def test_prompts_that_run_with_each_row_count_for_each_row(tiny, tiny_folder, tmp_path, monkeypatch):
    """Of the memory that --micro-batch-tokens bounds; the update is the same."""
    batches, norms, real = [], [], rollout.micro_batches

    def spy(lengths, budget, group, prompt_tokens):
        batches.append((lengths, prompt_tokens))
        return real(lengths, budget, group, prompt_tokens)

    monkeypatch.setattr(rollout, "micro_batches", spy)
    for share in (True, False):
        monkeypatch.setattr(rollout, "worth_sharing", lambda *_, share=share: share)
        flags = ["--batch-prompts", "4", "--group-size", "4", "--steps", "1", "--updates-per-batch", "1"]
        out = tmp_path / str(share)
        train.main(["--method", "dagrpo", "--model", str(tiny_folder), "--out", str(out), *flags])
        header, row = ((out / "metrics.csv").read_text().splitlines()[i].split(",") for i in (0, 1))
        norms.append(float(row[header.index("grad_norm")]))
    (shared, once), (alone, nothing) = batches
    assert once > 1 and nothing == 0 and torch.equal(alone, shared + once)
    assert norms[0] == pytest.approx(norms[1], rel=2e-5)
