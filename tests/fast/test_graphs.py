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
import train
from fast import cuda_graphs, learning, prompt_cache
from tasks import solve

ON_GPU = torch.device("cuda")


@pytest.mark.parametrize("prompts", [["1+2=", "12+13-14+15=", "7-5="], ["1", "2", "3"]])
def test_a_static_cache_gives_the_same_samples(tiny, monkeypatch, prompts):
    """Also of prompts of one token, for which nothing is computed beforehand; rows leave the batch on their way."""
    problems = [replace(solve("1+2=", "1"), question=text) for text in prompts]
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
def test_the_models_own_pass_is_there_again(tiny, monkeypatch, on):
    """Also after an error; and short responses are not recorded."""
    made = []
    monkeypatch.setattr(cuda_graphs, "record", lambda *_: made.append(1) or (lambda inputs: f"replayed {inputs['x']}"))
    policy = SimpleNamespace(device=ON_GPU, model=tiny.model)
    cache = prompt_cache.empty_cache(tiny, prompt_cache.Static)
    with pytest.raises(RuntimeError), cuda_graphs.graphed(policy, cache, cuda_graphs.WORTH_STEPS - (not on)):
        if on:
            assert [tiny.model(x=1), tiny.model(x=2)] == ["replayed 1", "replayed 2"] and made == [1]
        else:
            tiny.model(torch.tensor([[5]]))
        raise RuntimeError
    assert "forward" not in vars(tiny.model) and len(made) == on
    assert tiny.model(torch.tensor([[5]])).logits.shape == (1, 1, len(tiny.tokenizer))


def test_a_pass_that_somebody_has_put_there_stays(tiny, monkeypatch):
    """As accelerate does."""
    monkeypatch.setattr(tiny.model, "forward", own := tiny.model.forward)
    with cuda_graphs.graphed(
        SimpleNamespace(device=ON_GPU, model=tiny.model), prompt_cache.empty_cache(tiny, prompt_cache.Static), 99
    ):
        assert tiny.model.forward is not own
    assert tiny.model.forward is own


class OnGPU(torch.Tensor):
    """A tensor on the CPU that says it is on a GPU."""

    device = property(lambda _: ON_GPU)

    def to(self, _):
        return self


@pytest.fixture
def gpu_batches(monkeypatch):
    """fast.micro_batches, which takes the rows to be on a GPU."""
    pack = learning.pack
    monkeypatch.setattr(learning, "pack", lambda *given: [rows.as_subclass(OnGPU) for rows in pack(*given)])

    def micro_batches(rollouts, rows, budget):
        batches = learning.micro_batches(rollouts, rows.as_subclass(OnGPU), budget)
        return [rows.as_subclass(torch.Tensor) for rows in batches]

    return micro_batches


@pytest.mark.parametrize("budget, on_cpu, on_gpu", [(10**9, 1, 1), (2040, 2, 3)])
def test_a_prompt_that_may_run_with_each_row_counts_for_each_row(gpu_batches, budget, on_cpu, on_gpu):
    """Two prompts with three rows each."""
    group, lengths, prompts = torch.arange(6) // 3, torch.full((6,), 10), torch.zeros(2, 1000)
    rollouts = SimpleNamespace(group=group, lengths=lengths, prompt_ids=prompts)
    for batches, count in ((fast.micro_batches, on_cpu), (gpu_batches, on_gpu)):
        found = batches(rollouts, torch.arange(6), budget)
        assert len(found) == count and sorted(torch.cat(found).tolist()) == list(range(6))


def test_prompts_are_run_once_where_that_is_worth_a_pass_more(tiny, monkeypatch):
    """Two prompts with three rows each, of which four need not run theirs; then a batch is two passes, not one."""
    policy, group, P = SimpleNamespace(device=ON_GPU, model=tiny.model), torch.arange(6) // 3, 1000
    worth = 4 * P * tiny.model.num_parameters()
    for cost, once in ((0.99 * worth, True), (1.01 * worth, False)):
        monkeypatch.setattr(learning, "A_PASS", cost)
        assert learning.worth_a_pass(policy, group, P) == once
    assert learning.worth_a_pass(tiny, group, P), "on a CPU always"


def test_prompts_that_run_with_each_row_are_the_same_update(tiny_folder, tmp_path, monkeypatch, gpu_batches):
    """And count for each row in the memory that --micro-batch-tokens bounds."""
    norms, once, cut = [], [], []

    def as_on_a_gpu(policy, group, prompt_tokens):
        pretended = SimpleNamespace(device=ON_GPU, model=policy.model)
        once.append(worth_a_pass(pretended, group, prompt_tokens))
        return once[-1]

    def batches(rollouts, rows, budget):
        found = gpu_batches(rollouts, rows, budget)
        cut.extend((len(b), int(rollouts.lengths[b].max()) + rollouts.prompt_ids.shape[1]) for b in found)
        return found

    worth_a_pass = learning.worth_a_pass
    monkeypatch.setattr(learning, "worth_a_pass", as_on_a_gpu)
    monkeypatch.setattr(fast, "micro_batches", batches)
    for cost in (0, 1e30):
        monkeypatch.setattr(learning, "A_PASS", cost)
        flags = ["--batch-prompts", "4", "--group-size", "4", "--steps", "1", "--updates-per-batch", "1"]
        flags += ["--micro-batch-tokens", "100"]
        out = tmp_path / str(cost)
        once.clear()
        train.main(["--method", "dagrpo", "--model", str(tiny_folder), "--out", str(out), *flags])
        assert any(once) == (cost == 0)
        header, row = ((out / "metrics.csv").read_text().splitlines()[i].split(",") for i in (0, 1))
        norms.append(float(row[header.index("grad_norm")]))
    assert len(cut) > 2 and any(n > 1 for n, _ in cut)
    assert all(n == 1 or n * tokens <= 100 for n, tokens in cut)
    assert norms[0] == pytest.approx(norms[1], rel=2e-5)
