"""What a recipe asks of train.collect: statistics of the whole batch, demonstrations outside their group, a gate."""

from dataclasses import replace

import pytest
import torch
from helpers import groups_of, run

import dagrpo
import train
from anchors import only_hard, prepare_anchors
from dagrpo import group_advantages
from harness.config import parse

pytestmark = pytest.mark.usefixtures("even_is_right")


@pytest.fixture
def collected(tiny_folder, problems):
    """A step's groups of a recipe, before it is learned from: three problems, G = 4, cut into three updates."""

    def collect(recipe, seed):
        flags = ["--method", "dr_grpo", "--out", "x", "--group-size", "4", "--batch-prompts", "3"]
        flags += ["--max-new-tokens", "44", "--updates-per-batch", "3", "--seed", str(seed)]
        run = train.start(parse([*flags, "--model", str(tiny_folder)]))
        run.recipe = recipe
        anchors, _ = prepare_anchors(run.policy, problems, max_new_tokens=44)
        shown = anchors if recipe.anchors else [None] * 3
        return train.collect(run, problems, shown)

    return collect


@pytest.mark.parametrize("name", ["lite_ppo", "reinforce_pp"])
def test_statistics_are_of_the_whole_batch_however_many_updates_it_is_cut_into(collected, name):
    recipe, uneven = dagrpo.METHODS[name], 0
    for seed in range(6):
        groups = collected(recipe, seed)
        whole = group_advantages(groups.rewards, recipe.scale)
        assert torch.equal(groups.advantages, whole)
        parts = torch.cat([group_advantages(R[None], recipe.scale) for R in groups.rewards])
        uneven += not torch.allclose(whole, parts)
    assert uneven > 3


def test_chords_demonstrations_are_outside_the_groups(collected):
    for seed in range(3):
        groups = collected(dagrpo.METHODS["chord"], seed)
        assert groups.rollouts.is_anchor.view(3, 4).tolist() == [[False] * 3 + [True]] * 3
        assert torch.equal(groups.advantages[:, 3], torch.ones(3))
        torch.testing.assert_close(groups.advantages[:, :3], group_advantages(groups.rewards[:, :3], "group"))


@pytest.mark.parametrize("gate", [0, 1])
def test_hpt_shows_its_demonstration_where_at_most_so_many_are_right(collected, gate):
    """All four are sampled first, and then the demonstration takes the last one's place; elsewhere it is plain RL."""
    recipe, seen = replace(dagrpo.METHODS["hpt"], gate=gate), set()
    for seed in range(8):
        groups = collected(recipe, seed)
        assert groups.responses == 12
        is_anchor = groups.rollouts.is_anchor.view(3, 4)
        assert not is_anchor[:, :3].any()
        for R, A, anchor in zip(groups.rewards, groups.advantages, is_anchor[:, 3].tolist(), strict=True):
            right = int(R[:3].sum())  # the fourth may have been right too, and is gone
            assert right <= gate if anchor else int(R.sum()) > gate
            wanted = torch.cat([R[:3] - R[:3].mean(), torch.ones(1)]) if anchor else R - R.mean()
            torch.testing.assert_close(A, wanted)
            seen.add(anchor)
    assert seen == {True, False}


def test_the_gate_is_about_how_many_are_right():
    anchors, rewards = ["a", "b", "c"], torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
    assert only_hard(anchors, rewards) == ["a", None, None]
    assert only_hard(anchors, rewards, gate=1) == ["a", "b", None]


def test_hpts_hard_groups_learn_from_their_demonstration_alone(tiny_folder, tmp_path, monkeypatch):
    """Nobody is right: the step is SFT, on the mean over the demonstrations' tokens, as the method sft has it."""
    monkeypatch.setattr("scoring.verify", lambda response, answer, ended=True: False)
    flags = ["--updates-per-batch", "1"]
    (hpt,), (sft,) = (run(tiny_folder, tmp_path / name, *flags, method=name, steps=1) for name in ("hpt", "sft"))
    assert float(hpt["loss"]) == pytest.approx(float(sft["loss"]), rel=1e-5)
    assert float(hpt["grad_norm"]) == pytest.approx(float(sft["grad_norm"]), rel=1e-5)
    assert all(group["A"] == [0.0, 0.0, 0.0, 1.0] for group in groups_of(tmp_path / "hpt"))


def test_flags_overrule_the_recipe_and_what_cannot_work_is_said_before_anything_is_written(capsys):
    must = ["--out", "x", "--method"]
    assert parse([*must, "grpo", "--kl", "k2", "--scale", "batch"]).recipe == replace(
        dagrpo.METHODS["grpo"], kl="k2", scale="batch"
    )
    assert parse([*must, "dagrpo", "--anchor-when", "hard"]).recipe.gate == 0
    assert parse([*must, "hpt"]).recipe == dagrpo.METHODS["hpt"]
    for flags in (["maxrl"], ["grpo", "--scale", "mean"]):
        with pytest.raises(SystemExit):
            parse([*must, *flags, "--overlong-buffer", "4"])
        said = capsys.readouterr().err
        assert "--overlong-buffer" in said and said.count("\n") == 1
