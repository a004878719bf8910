"""multi_gpu against train.py and against TRL's own losses, on the recorded batches of helpers_trl.py.

Where TRL's own losses depart from ours, a test shows by how much: the token divisor of several updates per batch, tiny
advantages of equal rewards, the factor on the KL term.
"""

import math

import pytest

pytestmark = pytest.mark.extra
pytest.importorskip("trl", reason="needs trl: pip install -r requirements-extra.txt")

import trl  # noqa: E402
from helpers_trl import CLOSE, LONGEST, G, Recorded, distance, first_step, learner, make, record, settings  # noqa: E402
from trl.experimental.gmpo import GMPOConfig, GMPOTrainer  # noqa: E402

import dagrpo  # noqa: E402
from multi_gpu.trainer import possible  # noqa: E402


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
