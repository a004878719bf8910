"""multi_gpu against train.py and against TRL's own losses, on recorded batches; and on two processes, for real.

A recorded batch holds completions, rewards, scores, and log-probs of a sampling policy that is far enough away for some
tokens to clip. `Recorded` puts it in where TRL would sample, so that everything behind that is what a run does: reward
functions, gathering, micro-batches, accelerate's backward pass. Loss and gradient are read just before the optimiser.

Where TRL's own losses depart from ours, a test shows by how much: the token divisor of several updates per batch, tiny
advantages of equal rewards, the factor on the KL term.
"""

import copy
import csv
import json
import math
import os
import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.extra
pytest.importorskip("trl", reason="needs trl: pip install -r requirements-extra.txt")

import transformers  # noqa: E402
import trl  # noqa: E402
from accelerate.utils import gather_object  # noqa: E402
from trl.experimental.gmpo import GMPOConfig, GMPOTrainer  # noqa: E402

import dagrpo  # noqa: E402
import rollout  # noqa: E402
import scoring  # noqa: E402
import tasks  # noqa: E402
import train  # noqa: E402
from harness.config import Config  # noqa: E402
from multi_gpu import trl_dagrpo  # noqa: E402
from multi_gpu.trainer import DaGRPOConfig, DaGRPOTrainer, possible  # noqa: E402
from policy import load_policy, save_policy  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
G, LONGEST, TEMPERATURE = 4, 44, 0.8
CLOSE = 2e-6  # of a gradient: the norm of the difference, over the norm


# ---------------------------------------------------------------------------------------- recorded batches


def record(policy, groups=4, anchors=False, seed=0):
    """Completions of B groups of G with R, S, and log-probs of a policy that is a standard deviation of 1 away."""
    rng = torch.Generator().manual_seed(seed)
    problems = tasks.arithmetic("train", per_level=1)[:groups]
    rows = []
    for problem in problems:
        for i in range(G):
            length = int(torch.randint(3, 21, (1,), generator=rng))
            tokens = torch.randint(4, len(policy.tokenizer), (length,), generator=rng).tolist()
            tokens += [policy.eos_id] * (i != 1)  # one of each group was cut off
            anchor = anchors and i == G - 1
            rows.append(policy.encode_response(problem.demo) if anchor else tokens)
    R = torch.tensor([[1.0, 0, 0, 1], [1, 1, 0, 1], [0, 0, 0, 0], [0, 1, 0, 1]])[:groups]
    R[2, -1] = float(anchors)  # without its anchor the third group has no signal
    S = torch.tensor([[9.0, 2, 7, 10], [4, 9, 5, 9.5], [1, 2, 8, 9], [1, 9, 2, 8]])[:groups]
    batch = {"problems": problems, "tokens": rows, "R": R, "S": S, "anchors": anchors}
    part = as_rollouts(policy, batch)
    with torch.no_grad():
        logp, _ = rollout.token_logprobs(policy, part, torch.arange(len(rows)), TEMPERATURE)
    batch["old"] = (logp + torch.randn(logp.shape, generator=rng)).masked_fill(~part.mask, 0.0)
    batch["ref"] = (logp + 0.3 * torch.randn(logp.shape, generator=rng)).masked_fill(~part.mask, 0.0)
    return batch


def as_rollouts(policy, batch):
    prompt_ids, prompt_mask = rollout.pad_prompts(policy, batch["problems"])
    width = max(map(len, batch["tokens"]))
    tokens = torch.tensor([row + [policy.pad_id] * (width - len(row)) for row in batch["tokens"]])
    mask = torch.arange(width) < torch.tensor([[len(row)] for row in batch["tokens"]])
    is_anchor = torch.tensor([batch["anchors"] and n % G == G - 1 for n in range(len(tokens))])
    old = batch["old"].clone() if "old" in batch else torch.zeros(mask.shape)
    old[is_anchor] = torch.nan  # nobody sampled them
    return rollout.Rollouts(
        problems=batch["problems"], prompt_ids=prompt_ids, prompt_mask=prompt_mask, tokens=tokens, mask=mask, logp=old,
        entropy=torch.zeros(mask.shape), group=torch.arange(len(tokens)) // G, is_anchor=is_anchor,
        ended=torch.ones(len(tokens), dtype=torch.bool), texts=[""] * len(tokens),
    )  # fmt: skip


class Recorded(trl.GRPOTrainer):
    """Samples nothing: what `batch` holds is put in."""

    batch: dict
    seen = None

    def _generate_and_score_completions(self, inputs):
        first = self.accelerator.process_index * len(inputs)
        self.seen = gather_object([row["question"] for row in inputs])
        self.rows = range(first, first + len(inputs))
        output = super()._generate_and_score_completions(inputs)
        self.sampled = self.accelerator.gather(torch.tensor([self.asked])).sum().item()
        width = output["completion_ids"].shape[1]
        for name, kept in {"old": "old_per_token_logps", "ref": "ref_per_token_logps"}.items():
            if name == "old" or self.beta:
                output[kept] = self.batch[name][first : first + len(inputs), :width]
        return output

    def _generate_single_turn(self, prompt_ids, *args, **kwargs):
        taken = getattr(self, "_anchors", None) or [None] * len(prompt_ids)
        rows = [n for n, anchor in zip(self.rows, taken, strict=True) if anchor is None or self.use_vllm]
        self.asked = len(prompt_ids)
        assert len(rows) == len(prompt_ids)
        tokens = [self.batch["tokens"][n] for n in rows]
        return tokens, ([[-1.0] * len(row) for row in tokens] if self.use_vllm else None)


class RecordedOurs(DaGRPOTrainer, Recorded):
    """DaGRPOTrainer, whose super() is Recorded."""


class Catch(transformers.TrainerCallback):
    """The gradient as the optimiser gets it."""

    gradient = None

    def on_pre_optimizer_step(self, args, state, control, model, **_):
        if self.gradient is None:
            self.gradient = {n.removeprefix("module."): p.grad.clone() for n, p in model.named_parameters()}


def lookup(batch, name):
    """R or S of the batch as a function that TRL calls."""
    table = {
        (batch["problems"][n // G].question, tuple(row)): value
        for n, (row, value) in enumerate(zip(batch["tokens"], batch[name].flatten().tolist(), strict=True))
    }

    def function(completion_ids, question, **_):
        return [table[q, tuple(ids)] for q, ids in zip(question, completion_ids, strict=True)]

    return function


def settings(out, config=DaGRPOConfig, per_device=4, micro_batches=4, **further):
    given = {"temperature": TEMPERATURE, "num_generations": G, "max_completion_length": LONGEST, "use_cpu": True}
    given |= {"bf16": False, "gradient_checkpointing": False, "report_to": "none", "save_strategy": "no"}
    given |= {"per_device_train_batch_size": per_device, "gradient_accumulation_steps": micro_batches, "max_steps": 1}
    given |= {"logging_steps": 1, "max_grad_norm": 0.0, "shuffle_dataset": False, "disable_tqdm": True}
    return config(output_dir=str(out), **(given | further))


def make(folder, batch, args, kind=Recorded):
    ours = isinstance(args, DaGRPOConfig)
    anchors = [types.SimpleNamespace(text=p.demo) if batch["anchors"] else None for p in batch["problems"]]
    catch = Catch()
    trainer = (RecordedOurs if ours else kind)(
        str(folder),
        lookup(batch, "R"),
        args,
        train_dataset=trl_dagrpo.to_dataset(batch["problems"], anchors, chat=False),
        callbacks=[catch],
        **({"scorer": lookup(batch, "S")} if ours else {}),
    )
    trainer.batch, trainer.catch = batch, catch
    return trainer


def first_step(folder, batch, args):
    """Loss, gradient and log of one update, by TRL's own loop."""
    trainer = make(folder, batch, args)
    trainer.train()
    log = trainer.state.log_history[0]
    return log["loss"], trainer.catch.gradient, log, trainer


def learner(policy, batch, method, kl_beta=0.0):
    """Loss, gradient and number of clipped tokens of train.py."""
    recipe, part = dagrpo.METHODS[method], as_rollouts(policy, batch)
    A = dagrpo.group_advantages(batch["R"], recipe.scale, recipe.baseline)
    keep = dagrpo.rectification_mask(A, batch["S"]) if recipe.rectify else torch.ones_like(A, dtype=torch.bool)
    update = dagrpo.build_update(
        recipe, A, keep, part.tokens, part.mask, part.logp, part.entropy, part.is_anchor, LONGEST
    )
    config = Config(kl_beta=kl_beta, micro_batch_tokens=200, updates_per_batch=2, temperature=TEMPERATURE)
    policy.model.zero_grad()
    loss, clipped, _ = train.backward(train.Run(config, recipe, policy, None), part, update)
    gradient = {name: parameter.grad.clone() for name, parameter in policy.model.named_parameters()}
    policy.model.zero_grad()
    return loss, gradient, clipped, keep & (A != 0)


def distance(mine, other):
    """Of two gradients: the norm of the difference over the norm; the same parameters must have one."""
    assert mine.keys() == other.keys()
    a, b = (torch.cat([g[name].flatten() for name in sorted(g)]).double() for g in (mine, other))
    assert b.norm() > 1e-4, "nothing to compare"
    return ((a - b).norm() / b.norm()).item()


# ---------------------------------------------------------------------------------------- parity


def test_what_needs_whole_groups_or_no_rollouts_is_refused(tmp_path):
    refused = {name for name, recipe in dagrpo.METHODS.items() if not possible(recipe)}
    assert refused == {"gtpo", "sft", "chord", "hpt", "top_entropy"}
    for name in refused:
        with pytest.raises(ValueError, match="no method"):
            settings(tmp_path, method=name)


@pytest.mark.parametrize("method", [name for name, recipe in dagrpo.METHODS.items() if possible(recipe)])
def test_loss_and_gradient_are_those_of_train_py(tiny, tiny_folder, tmp_path, method):
    batch = record(tiny, anchors=dagrpo.METHODS[method].anchors)
    loss, gradient, clipped, learned = learner(tiny, batch, method)
    trl_loss, trl_gradient, log, trainer = first_step(tiny_folder, batch, settings(tmp_path, method=method))
    assert trl_loss == pytest.approx(loss, rel=1e-5, abs=1e-7)
    assert distance(trl_gradient, gradient) < CLOSE
    recipe = dagrpo.METHODS[method]
    if recipe.clip != (0, math.inf):
        assert clipped > 0 and log["dagrpo/clip_fraction"] > 0
    if dagrpo.METHODS[method].rectify:
        assert 0 < learned.sum() < (batch["R"].numel() - G * (not batch["anchors"])), "some are masked, some kept"
    assert trainer.sampled == batch["R"].numel() - 4 * batch["anchors"], "nothing is sampled in an anchor's place"


def test_the_ratio_of_anchors_can_be_luffys(tiny, tiny_folder, tmp_path, monkeypatch):
    batch = record(tiny, anchors=True)
    monkeypatch.setitem(
        dagrpo.METHODS, "shaped", dagrpo.Recipe("ours", rectify=True, anchors=True, anchor_ratio="shaped")
    )
    _, gradient, _, _ = learner(tiny, batch, "shaped")
    _, of_trl, _, _ = first_step(tiny_folder, batch, settings(tmp_path, method="dagrpo", anchor_ratio="shaped"))
    assert distance(of_trl, gradient) < CLOSE
    assert distance(of_trl, learner(tiny, batch, "dagrpo")[1]) > 0.01


NATIVE = {
    "grpo": {"loss_type": "grpo"},
    "dr_grpo": {"loss_type": "dr_grpo", "scale_rewards": "none"},
    "dapo": {"loss_type": "dapo", "epsilon_high": 0.28},
    "gspo": {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 3e-4, "epsilon_high": 4e-4},
    "cispo": {"loss_type": "cispo", "epsilon_high": 5.0},
    "two_sided": {"loss_type": "grpo", "delta": 4.0},
    "lite_ppo": {"loss_type": "dapo", "scale_rewards": "batch"},
    "sapo": {"loss_type": "sapo"},
    "deepseek_v32": {"loss_type": "grpo", "scale_rewards": "none", "off_policy_mask_threshold": 0.5},
}


@pytest.mark.parametrize("method", NATIVE)
def test_trls_own_losses_are_ours_with_one_update_per_batch(tiny, tiny_folder, tmp_path, method):
    batch = record(tiny)
    native = settings(tmp_path / "trl", trl.GRPOConfig, **NATIVE[method])
    loss, gradient, _, _ = first_step(tiny_folder, batch, native)
    our_loss, ours, log, _ = first_step(tiny_folder, batch, settings(tmp_path / "ours", method=method))
    assert our_loss == pytest.approx(loss, rel=1e-5, abs=1e-7) and distance(ours, gradient) < CLOSE
    assert log["dagrpo/clip_fraction"] > 0 or method == "sapo"


def test_deepseeks_mask_and_kl_are_trls(tiny, tiny_folder, tmp_path):
    """With its KL term too, k3 times the ratio; and the mask does something here."""
    batch, native = record(tiny), {"beta": 0.1, "use_bias_correction_kl": True, **NATIVE["deepseek_v32"]}
    batch["old"][:2] += 1.0  # a right row and a wrong one have become less likely: the wrong one is left out
    loss, gradient, _, _ = first_step(tiny_folder, batch, settings(tmp_path / "trl", trl.GRPOConfig, **native))
    args = settings(tmp_path / "ours", method="deepseek_v32", beta=0.1)
    our_loss, ours, _, _ = first_step(tiny_folder, batch, args)
    assert our_loss == pytest.approx(loss, rel=1e-5, abs=1e-7) and distance(ours, gradient) < CLOSE
    args = settings(tmp_path / "all", trl.GRPOConfig, **native | {"off_policy_mask_threshold": None})
    assert distance(ours, first_step(tiny_folder, batch, args)[1]) > 0.01


def test_departure_trls_luspo_does_not_divide_by_the_longest_response(tiny, tiny_folder, tmp_path):
    batch, how = record(tiny), {"importance_sampling_level": "sequence", "epsilon": 2e-3, "epsilon_high": 2.5e-3}
    native = settings(tmp_path / "trl", trl.GRPOConfig, loss_type="luspo", **how)
    loss, gradient, _, _ = first_step(tiny_folder, batch, native)
    our_loss, ours, _, _ = first_step(tiny_folder, batch, settings(tmp_path / "ours", method="luspo"))
    assert our_loss * LONGEST == pytest.approx(loss, rel=1e-5, abs=1e-6)
    assert distance({name: g * LONGEST for name, g in ours.items()}, gradient) < CLOSE


class RecordedGMPO(Recorded, GMPOTrainer):
    """TRL's experimental trainer."""


def test_gmpo_is_trls(tiny, tiny_folder, tmp_path):
    batch, args = record(tiny), settings(tmp_path / "trl", GMPOConfig)
    trainer = make(tiny_folder, batch, args, RecordedGMPO)
    trainer.train()
    our_loss, ours, log, _ = first_step(tiny_folder, batch, settings(tmp_path / "ours", method="gmpo"))
    assert our_loss == pytest.approx(trainer.state.log_history[0]["loss"], rel=1e-5, abs=1e-7)
    assert distance(ours, trainer.catch.gradient) < CLOSE and log["dagrpo/clip_fraction"] > 0


@pytest.mark.parametrize("method", ["dapo", "cispo"])
def test_departure_trls_token_divisor_is_the_mean_over_the_updates(tiny, tiny_folder, tmp_path, method):
    batch, two = record(tiny), {"micro_batches": 2, "steps_per_generation": 4}
    native = settings(tmp_path / "trl", trl.GRPOConfig, **two, **NATIVE[method])
    _, gradient, _, trainer = first_step(tiny_folder, batch, native)
    _, ours, _, _ = first_step(tiny_folder, batch, settings(tmp_path / "ours", method=method, **two))
    own = sum(int(part["completion_mask"].sum()) for part in trainer._buffered_inputs[:2])
    factor = sum(map(len, batch["tokens"])) / 2 / own
    assert abs(factor - 1) > 0.01
    assert distance(ours, {name: g * factor for name, g in gradient.items()}) < CLOSE


def test_departure_equal_rewards_give_trl_tiny_advantages_and_us_none(tiny, tiny_folder, tmp_path):
    batch = record(tiny)
    eight = {"num_generations": 8}  # the mean of eight times 0.7 is not 0.7 in fp32
    native = make(tiny_folder, batch, settings(tmp_path / "trl", trl.GRPOConfig, **eight, **NATIVE["grpo"]))
    ours = make(tiny_folder, batch, settings(tmp_path / "ours", method="grpo", **eight))
    for trainer in (native, ours):
        trainer.reward_funcs = [lambda completions, **_: [0.7] * len(completions)]
        trainer.train()
    assert 0 < native._buffered_inputs[0]["advantages"].abs().max() < 1e-2
    assert all((part["advantages"] == 0).all() for part in ours._buffered_inputs)


def test_departure_trl_multiplies_its_kl_term_by_the_ratio(tiny, tiny_folder, tmp_path):
    batch = record(tiny)
    _, ours, _, _ = first_step(tiny_folder, batch, settings(tmp_path / "ours", method="dr_grpo", beta=0.1))
    for corrected in (False, True):
        native = {"beta": 0.1, "use_bias_correction_kl": corrected, **NATIVE["dr_grpo"]}
        _, gradient, _, _ = first_step(tiny_folder, batch, settings(tmp_path / "trl", trl.GRPOConfig, **native))
        assert (distance(ours, gradient) < CLOSE) == (not corrected)


@pytest.mark.parametrize("method", ["dapo", "dagrpo", "gspo"])
@pytest.mark.parametrize("shape", [(1, 16), (8, 2), (16, 1)])
def test_the_micro_batch_changes_nothing(tiny, tiny_folder, tmp_path, method, shape):
    batch = record(tiny, anchors=method == "dagrpo")
    loss, gradient, _, _ = learner(tiny, batch, method)
    args = settings(tmp_path, method=method, per_device=shape[0], micro_batches=shape[1])
    trl_loss, trl_gradient, _, _ = first_step(tiny_folder, batch, args)
    assert trl_loss == pytest.approx(loss, rel=1e-5, abs=1e-7) and distance(trl_gradient, gradient) < CLOSE


def test_every_update_of_a_batch_has_its_own_token_divisor(tiny, tiny_folder, tmp_path):
    two = settings(tmp_path, method="dapo", micro_batches=2, steps_per_generation=4, max_steps=2)
    _, _, _, trainer = first_step(tiny_folder, record(tiny), two)
    for update in (trainer._buffered_inputs[:2], trainer._buffered_inputs[2:]):
        assert sum(part["weight"].sum() for part in update) == pytest.approx(1.0, rel=1e-5)


# ---------------------------------------------------------------------------------------- what is logged


def test_the_log_can_be_recounted(tiny, tiny_folder, tmp_path):
    batch = record(tiny, anchors=True)
    batch["S"][3, 1] = torch.nan  # no score: its group is masked
    _, _, log, _ = first_step(tiny_folder, batch, settings(tmp_path, method="dagrpo"))
    A = dagrpo.group_advantages(batch["R"])
    keep, signal, lengths = dagrpo.rectification_mask(A, batch["S"]), A != 0, list(map(len, batch["tokens"]))
    sampled = [n for n in range(16) if n % G != G - 1]
    expected = {
        "kept_positive": keep[A > 0].float().mean(), "kept_negative": keep[A < 0].float().mean(),
        "kept_fraction": keep[signal].float().mean(), "anchors": 4, "anchors_kept": keep[:, -1].float().mean(),
        "no_signal_groups": 0, "masked_groups": (~keep.any(dim=1)).sum(), "unscored_groups": 1,
        "scorer_calls": signal.sum(), "responses": 12, "tokens": sum(lengths[n] for n in sampled),
        "reward": batch["R"][:, :-1].mean(), "response_length": sum(lengths[n] for n in sampled) / 12,
        "ended_fraction": 8 / 12,
    }  # fmt: skip
    assert {name: log[f"dagrpo/{name}"] for name in expected} == pytest.approx(
        {name: float(value) for name, value in expected.items()}
    )
    assert 0 < expected["kept_positive"] < 1


def test_a_group_without_signal_costs_no_score(tiny, tiny_folder, tmp_path):
    batch, asked = record(tiny), []
    trainer = make(tiny_folder, batch, settings(tmp_path, method="dagrpo_on"))
    scores, trainer.scorer = trainer.scorer, lambda **columns: asked.extend(columns["question"]) or scores(**columns)
    trainer.train()
    log = trainer.state.log_history[0]
    assert len(asked) == 12 == log["dagrpo/scorer_calls"] and log["dagrpo/no_signal_groups"] == 1
    assert batch["problems"][2].question not in asked


def test_a_demonstration_that_is_too_long_leaves_its_place_to_a_rollout(tiny, tiny_folder, tmp_path):
    batch = record(tiny, anchors=True)
    longest = max(len(batch["tokens"][n]) for n in range(G - 1, 16, G))
    short = settings(tmp_path, method="dagrpo", max_completion_length=longest - 1)
    _, _, log, trainer = first_step(tiny_folder, batch, short)
    assert log["dagrpo/anchors"] == 3 and trainer.sampled == 13


def test_with_vllm_all_rows_are_asked_for_and_anchors_have_no_log_probs(tiny, tiny_folder, tmp_path):
    batch = record(tiny, anchors=True)
    trainer = make(tiny_folder, batch, settings(tmp_path, method="dagrpo", max_steps=1))
    trainer.model.train()
    trainer.rows, trainer.use_vllm = range(16), True
    trainer._anchors = [batch["tokens"][n] if n % G == G - 1 else None for n in range(16)]
    tokens, logp = trainer._generate_single_turn([[5]] * 16, None, {}, G)
    assert trainer.asked == 16 and tokens == batch["tokens"]
    assert all((set(row) == {None}) == (n % G == G - 1) and len(row) == len(tokens[n]) for n, row in enumerate(logp))


def test_what_ends_a_turn_in_the_chat_template_ends_responses_and_anchors(tiny, tmp_path):
    tokenizer = copy.deepcopy(tiny.tokenizer)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}<unk>\n{% endfor %}"
    policy = replace(tiny, tokenizer=tokenizer)
    save_policy(policy, tmp_path / "model")
    trainer = make(tmp_path / "model", record(policy, anchors=True), settings(tmp_path, method="dagrpo"))
    ends = [tokenizer.unk_token_id, tokenizer.eos_token_id]
    assert trainer.eos_token_ids == trainer.generation_config.eos_token_id == ends
    trainer.train()
    last = [
        int(tokens[mask.bool()][-1])
        for batch in trainer._buffered_inputs
        for tokens, mask, anchor in zip(
            batch["completion_ids"], batch["completion_mask"], batch["is_anchor"], strict=True
        )
        if anchor
    ]
    assert last == [ends[0]] * 4


def test_this_projects_scorers_and_chats_are_taken():
    problem = tasks.solve("12+5-3=", "2")
    columns = {name: [getattr(problem, name)] * 2 for name in ("question", "answer", "demo", "level")}
    chat = [[{"role": "assistant", "content": text}] for text in ("12+5=17;17-3=14;#14", "#9")]
    assert trl_dagrpo.as_function(scoring.rule_scores)(completions=chat, **columns) == [10.0, 1.0]
    assert trl_dagrpo.right(completions=["#14", "#9"], answer=["14", "14"]) == [1.0, 0.0]
    assert trl_dagrpo.to_dataset([problem], [None], chat=True)[0]["prompt"] == [{"role": "user", "content": "12+5-3="}]


# ---------------------------------------------------------------------------------------- two processes

DISTRIBUTED = ("dapo", "gspo", "dagrpo")


def launch(*command, **env):
    """On two processes, gloo on CPUs. `--cpu` would be accelerate's word for one process."""
    accelerate = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    accelerate += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | env
    command = [*accelerate, "--main_process_port", "0", *map(str, command)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def worker(folder, where, per_device, micro_batches):
    """What each process does: the first step of every method on its recorded batch; process 0 writes the results."""
    results = {}
    for method, batch in torch.load(Path(where) / "batches.pt", weights_only=False).items():
        args = settings(where, method=method, per_device=int(per_device), micro_batches=int(micro_batches))
        loss, gradient, log, trainer = first_step(folder, batch, args)
        results[method] = {"loss": loss, "gradient": gradient, "log": log, "questions": trainer.seen}
        results[method]["processes"] = trainer.accelerator.num_processes
        main = trainer.accelerator.is_main_process
    if main:
        torch.save(results, Path(where) / "results.pt")


def test_two_processes_have_the_loss_and_gradient_of_one(tiny, tiny_folder, tmp_path):
    """3 groups of 4 on two processes: the second group has rows on both."""
    batches = {name: record(tiny, groups=3, anchors=dagrpo.METHODS[name].anchors) for name in DISTRIBUTED}
    torch.save(batches, tmp_path / "batches.pt")
    launch(Path(__file__).resolve(), tiny_folder, tmp_path, 3, 2, PYTHONPATH=str(ROOT))
    results = torch.load(tmp_path / "results.pt", weights_only=False)
    for method, batch in batches.items():
        two = results[method]
        loss, gradient, _, _ = learner(tiny, batch, method)
        assert two["processes"] == 2 and two["loss"] == pytest.approx(loss, rel=1e-5, abs=1e-7)
        assert distance(two["gradient"], gradient) < CLOSE
        one = settings(tmp_path, method=method, per_device=3, micro_batches=4)
        one_loss, one_gradient, log, _ = first_step(tiny_folder, batch, one)
        assert two["loss"] == pytest.approx(one_loss, rel=1e-5, abs=1e-7)
        assert distance(two["gradient"], one_gradient) < CLOSE
        assert two["questions"] == [p.question for p in batch["problems"] for _ in range(G)], "groups are whole"
        for name in ("kept_fraction", "anchors", "scorer_calls", "reward", "tokens", "response_length"):
            assert two["log"][f"dagrpo/{name}"] == pytest.approx(log[f"dagrpo/{name}"])


SMALL = ["--batch-prompts", "4", "--group-size", "4", "--max-new-tokens", "44", "--lr", "1e-3"]


def read(out):
    with (out / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_two_processes_train_the_built_in_task(tiny_folder, tmp_path):
    out = tmp_path / "run"
    launch(ROOT / "multi_gpu" / "trl_dagrpo.py", "--steps", 2, "--out", out, "--model", tiny_folder, *SMALL)
    rows = read(out)
    assert [row["step"] for row in rows] == ["1", "2"]
    assert all(row["anchors"] == "4" and row["responses"] == "12" for row in rows)
    assert json.loads((out / "config.json").read_text())["launch"]["processes"] == 2
    assert load_policy(str(out)).model.num_parameters() > 0


if __name__ == "__main__":
    worker(*sys.argv[1:])
