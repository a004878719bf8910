"""train.py from end to end on a tiny policy: every method, determinism, what is written, and bad input."""

import csv
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

import dagrpo
import scoring
import tasks
import train
from harness import runfolder


@pytest.fixture(autouse=True)
def some_are_right(monkeypatch):
    """The tiny policy is never right, and without signal nothing is tested: call even lengths right."""
    monkeypatch.setattr(scoring, "verify", lambda response, answer: len(response) % 2 == 0)


def run(folder, out, *flags, method="dagrpo", steps=2):
    """A short run; returns its metrics rows, those that tell of the machine left out."""
    small = ["--batch-prompts", "4", "--group-size", "4", "--max-new-tokens", "44", "--lr", "1e-3", "--show-every", "0"]
    train.main(["--method", method, "--steps", str(steps), "--out", str(out), "--model", str(folder), *small, *flags])
    return metrics(out)


def test_bf16_changes_the_products_but_not_the_weights_that_are_saved(tiny_folder, tmp_path):
    exact = run(tiny_folder, tmp_path / "fp32", steps=1)
    rows = run(tiny_folder, tmp_path / "bf16", "--bf16", steps=1)
    assert rows[0]["grad_norm"] != exact[0]["grad_norm"] and float(rows[0]["grad_norm"]) > 0
    saved = load_file(tmp_path / "bf16" / "checkpoint" / "model" / "model.safetensors")
    assert {x.dtype for x in saved.values()} == {torch.float32}


def metrics(out):
    with (out / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if k not in runfolder.MACHINE} for row in rows]


def groups_of(out):
    return [json.loads(line) for line in (out / "rollouts.jsonl").open()]


def weights(out):
    model = load_policy(str(out)).model
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("method", ["sft", *dagrpo.METHODS])
def test_every_method_trains_and_leaves_a_model_that_loads(tiny_folder, tmp_path, method):
    rows = run(tiny_folder, tmp_path / "run", method=method)
    assert [row["step"] for row in rows] == ["1", "2"]
    before = torch.cat([p.detach().flatten() for p in load_policy(str(tiny_folder)).model.parameters()])
    moved = not torch.equal(before, weights(tmp_path / "run"))
    assert moved == any(float(row["grad_norm"]) > 0 for row in rows)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["method"] == method and config["seed"] == 0


def test_a_step_without_signal_is_one_with_gradient_zero(tiny_folder, tmp_path, monkeypatch):
    """AdamW's momentum moves on in it; a parameter without a gradient would be left out."""
    run(tiny_folder, tmp_path / "run", steps=1, method="dr_grpo")
    before = weights(tmp_path / "run")
    monkeypatch.setattr(scoring, "verify", lambda response, answer: False)
    rows = run(tiny_folder, tmp_path / "run", "--resume", "--insist", steps=2, method="dr_grpo")
    assert float(rows[0]["grad_norm"]) > 0 and float(rows[1]["grad_norm"]) == 0
    assert not torch.equal(before, weights(tmp_path / "run"))


def test_the_same_seed_gives_the_same_run_and_another_seed_another(tiny_folder, tmp_path):
    first = run(tiny_folder, tmp_path / "a")
    assert first == run(tiny_folder, tmp_path / "b")
    assert torch.equal(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert first != run(tiny_folder, tmp_path / "c", "--seed", "1")


def test_a_resumed_run_is_the_uninterrupted_one(tiny_folder, tmp_path):
    whole = run(tiny_folder, tmp_path / "whole", steps=4)
    run(tiny_folder, tmp_path / "parts", steps=2)
    # what a kill after the checkpoint would leave behind: a further row, and half a line
    with (tmp_path / "parts" / "metrics.csv").open("a") as file:
        file.write("3,0.1,")
    with (tmp_path / "parts" / "rollouts.jsonl").open("a") as file:
        file.write('{"step": 3, "group": 0}\n{"step": 3, "gro')
    assert run(tiny_folder, tmp_path / "parts", "--resume", steps=4) == whole
    assert torch.equal(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    assert groups_of(tmp_path / "whole") == groups_of(tmp_path / "parts")


@pytest.mark.parametrize("left", [("checkpoint.new",), ("checkpoint.old",), ("checkpoint.new", "checkpoint.old")])
def test_a_kill_between_two_renames_loses_no_checkpoint(tiny_folder, tmp_path, left):
    out = tmp_path / "run"
    run(tiny_folder, out)
    for name in left:
        shutil.copytree(out / "checkpoint", out / name)
    shutil.rmtree(out / "checkpoint")
    assert len(run(tiny_folder, out, "--resume", steps=3)) == 3


def test_resume_without_a_checkpoint_starts_from_the_beginning_and_says_so(tiny_folder, tmp_path, capsys):
    assert len(run(tiny_folder, tmp_path / "new", "--resume")) == 2
    assert "starting from the beginning" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["dagrpo", "luffy", "grpo", "gtpo", "dapo"])
def test_the_micro_batch_changes_no_weights(tiny_folder, tmp_path, method):
    """To fp32 rounding: Adam divides by a gradient's own size, so tiny gradients show rounding at the rate's scale."""
    run(tiny_folder, tmp_path / "one", "--micro-batch-tokens", "100000", method=method, steps=1)
    run(tiny_folder, tmp_path / "many", "--micro-batch-tokens", "100", method=method, steps=1)
    one, many = metrics(tmp_path / "one")[0], metrics(tmp_path / "many")[0]
    assert float(one["grad_norm"]) == pytest.approx(float(many["grad_norm"]), rel=2e-5)
    assert float(one["loss"]) == pytest.approx(float(many["loss"]), abs=2e-6)


def test_metrics_can_be_recounted_from_the_rollouts(tiny_folder, tmp_path):
    rows = run(tiny_folder, tmp_path / "run", "--delta", "2", steps=3)
    for row in rows:
        groups = [g for g in groups_of(tmp_path / "run") if g["step"] == int(row["step"])]
        flat = [
            dict(zip(("r", "s", "a", "k", "anchor", "tokens"), values, strict=True), level=g["level"])
            for g in groups
            for values in zip(g["R"], g["S"], g["A"], g["keep"], g["is_anchor"], g["tokens"], strict=True)
        ]
        sampled, signal = [x for x in flat if not x["anchor"]], [x for x in flat if x["a"]]
        assert float(row["reward"]) == pytest.approx(sum(x["r"] for x in sampled) / len(sampled), rel=1e-5)
        mean_length = sum(len(x["tokens"]) for x in sampled) / len(sampled)
        assert float(row["response_length"]) == pytest.approx(mean_length, rel=1e-5)
        assert int(row["anchors"]) == 4 == len(flat) - len(sampled)
        assert int(row["responses"]) == len(sampled) == 12
        assert int(row["tokens"]) == sum(len(x["tokens"]) for x in sampled)
        assert int(row["no_signal_groups"]) == sum(not any(g["A"]) for g in groups)
        if signal:
            assert float(row["kept_fraction"]) == pytest.approx(sum(x["k"] for x in signal) / len(signal), rel=1e-5)


def test_rollouts_hold_what_the_functions_say(tiny_folder, tmp_path):
    run(tiny_folder, tmp_path / "run", "--delta", "2", steps=1)
    for group in groups_of(tmp_path / "run"):
        problem = tasks.solve(group["question"], group["level"])
        assert group["R"] == [float(scoring.verify(text, problem.answer)) for text in group["responses"]]
        assert group["S"] == [scoring.score(text, problem) for text in group["responses"]]
        A = dagrpo.group_advantages(torch.tensor([group["R"]]))
        torch.testing.assert_close(torch.tensor([group["A"]]), A)
        keep = dagrpo.rectification_mask(A, torch.tensor([group["S"]]), 2.0)
        assert group["keep"] == keep[0].tolist()
        assert group["responses"][-1] == group["demonstration"] and group["is_anchor"] == [False] * 3 + [True]
        trained = any(group["A"]) and group["keep"][-1]
        assert all((x is not None) == trained for x in group["logp"][-1]), "an anchor's log-probs are the learner's"


def test_single_update_ratios_are_one_and_the_second_of_two_updates_is_not(tiny_folder, tmp_path):
    one = run(tiny_folder, tmp_path / "one", "--updates-per-batch", "1", method="gspo", steps=3)
    two = run(tiny_folder, tmp_path / "two", "--updates-per-batch", "2", method="gspo", steps=3)
    assert all(float(row["clip_fraction"]) == 0 for row in one)
    assert any(float(row["clip_fraction"]) > 0 for row in two)


def test_dapo_counts_every_response_that_it_samples_again(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(scoring, "verify", lambda response, answer: False)
    rows = run(tiny_folder, tmp_path / "run", method="dapo", steps=1)
    assert int(rows[0]["responses"]) > 16, "all are wrong: groups are sampled again"
    assert int(rows[0]["responses"]) == 16 * 4
    assert len(groups_of(tmp_path / "run")) == 4


def test_hard_anchors_stand_only_where_no_rollout_is_right(tiny_folder, tmp_path):
    rows = run(tiny_folder, tmp_path / "run", "--anchor-when", "hard", steps=2)
    assert all(int(row["responses"]) == 16 for row in rows), "G are sampled"
    for group in groups_of(tmp_path / "run"):
        rollout_right = any(r for r, anchor in zip(group["R"], group["is_anchor"], strict=True) if not anchor)
        assert group["is_anchor"][-1] == (not rollout_right) and len(group["R"]) == 4


def test_an_extra_anchor_makes_the_groups_one_larger(tiny_folder, tmp_path):
    run(tiny_folder, tmp_path / "run", "--extra-anchor", steps=1)
    assert all(g["is_anchor"] == [False] * 4 + [True] for g in groups_of(tmp_path / "run"))


@pytest.mark.parametrize("method", ["dr_grpo", "sft"])
def test_gradients_that_are_not_finite_are_skipped_shown_saved_and_end_the_run(
    tiny_folder, tmp_path, monkeypatch, capsys, method
):
    before = weights(tiny_folder)

    def broken(function):
        def step(*args, **kwargs):
            result = function(*args, **kwargs)
            for parameter in getattr(args[0], "policy", args[0]).model.parameters():
                parameter.grad.fill_(float("nan"))
            return result

        return step

    monkeypatch.setattr(train, "backward", broken(train.backward))
    monkeypatch.setattr(train, "demonstration_backward", broken(train.demonstration_backward))
    with pytest.raises(SystemExit) as stop:
        run(tiny_folder, tmp_path / "run", "--save-every", "1", method=method, steps=9)
    said = capsys.readouterr()
    assert stop.value.code == 2 and "gradients in a row were not finite: lower --lr" in said.err
    rows = metrics(tmp_path / "run")
    assert sum(int(row["skipped_updates"]) for row in rows) >= 5 and rows[0]["grad_norm"] == "nan"
    assert f"step {len(rows)}: an update was skipped" in said.out
    assert torch.equal(weights(tmp_path / "run"), before)
    assert (tmp_path / "run" / "nonfinite.jsonl").exists() == (method != "sft")


def test_weights_gone_astray_are_one_clear_line(tiny, tiny_folder, tmp_path, capsys, monkeypatch):
    load = train.load_policy

    def broken(*args, **kwargs):
        policy = load(*args, **kwargs)
        policy.model.lm_head.weight.data.fill_(float("nan"))
        return policy

    monkeypatch.setattr(train, "load_policy", broken)
    with pytest.raises(SystemExit):
        run(tiny_folder, tmp_path / "run")
    assert "the policy's logits are not finite. There is no checkpoint yet" in capsys.readouterr().err


CHANGED = {
    "another rate": (["--lr", "2e-3"], "--lr was 0.001, is 0.002"),
    "another method": (["--method", "dr_grpo"], "--method was dagrpo, is dr_grpo"),
    "another delta and seed": (["--delta", "1", "--seed", "5"], "--seed was 0, is 5; --delta was 3.0, is 1.0"),
}


@pytest.mark.parametrize("case", CHANGED)
def test_a_resumed_run_with_other_flags_is_refused_unless_one_insists(tiny_folder, tmp_path, capsys, case):
    flags, message = CHANGED[case]
    run(tiny_folder, tmp_path / "run", steps=1)
    with pytest.raises(SystemExit) as stop:
        run(tiny_folder, tmp_path / "run", "--resume", *flags, steps=2)
    err = capsys.readouterr().err
    assert stop.value.code == 2 and message in err and "--insist" in err
    assert len(metrics(tmp_path / "run")) == 1
    assert len(run(tiny_folder, tmp_path / "run", "--resume", "--insist", *flags, steps=2)) == 2


def test_flags_that_change_no_result_may_change_on_resume(tiny_folder, tmp_path):
    run(tiny_folder, tmp_path / "run", steps=1)
    free = ["--save-every", "7", "--keep", "2", "--show-every", "9"]
    assert len(run(tiny_folder, tmp_path / "run", "--resume", *free, steps=2)) == 2


def test_keep_keeps_the_newest_checkpoints(tiny_folder, tmp_path):
    run(tiny_folder, tmp_path / "run", "--save-every", "1", "--keep", "3", steps=5)
    found = {path.name: (path / "step").read_text() for path in (tmp_path / "run").glob("checkpoint*")}
    assert found == {"checkpoint": "5", "checkpoint-4": "4", "checkpoint-3": "3"}
    run(tiny_folder, tmp_path / "run", "--resume", steps=6)
    assert [path.name for path in (tmp_path / "run").glob("checkpoint*")] == ["checkpoint"]
    run(tiny_folder, tmp_path / "run", "--overwrite", "--save-every", "1", "--keep", "2", steps=2)
    assert {path.name for path in (tmp_path / "run").glob("checkpoint*")} == {"checkpoint", "checkpoint-1"}


def test_two_processes_cannot_write_one_run(tiny_folder, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    with runfolder.lock(tmp_path / "run"), pytest.raises(SystemExit):
        run(tiny_folder, tmp_path / "run")
    assert "another process is just writing this run" in capsys.readouterr().err
    assert len(run(tiny_folder, tmp_path / "run", steps=1)) == 1


def test_kl_to_the_start_is_zero_at_first_and_pulls_later(tiny_folder, tmp_path):
    free = run(tiny_folder, tmp_path / "free", "--updates-per-batch", "1", method="rloo", steps=2)
    held = run(tiny_folder, tmp_path / "held", "--updates-per-batch", "1", "--kl-beta", "10", method="rloo", steps=2)
    assert held[0]["reward"] == free[0]["reward"]
    assert float(held[0]["grad_norm"]) == pytest.approx(float(free[0]["grad_norm"]), rel=1e-3), "k3' = 0 at the start"
    assert held[1]["grad_norm"] != free[1]["grad_norm"]


def test_sft_goes_before_any_method(tiny_folder, tmp_path):
    run(tiny_folder, tmp_path / "sft", method="sft", steps=3)
    begin = weights(tmp_path / "sft")
    out = tmp_path / "then"
    train.main(["--method", "grpo", "--steps", "1", "--out", str(out), "--init-from", str(tmp_path / "sft"),
                "--batch-prompts", "2", "--group-size", "2", "--lr", "1e-12"])  # fmt: skip
    torch.testing.assert_close(weights(out), begin, atol=1e-9, rtol=0)


BAD = {
    "unknown method": (["--method", "gorpo"], "gorpo"),
    "no out folder possible": (["--out", "{file}/below/it"], "cannot be made"),
    "holds a run": (["--out", "{run}"], "--resume goes on with it, --overwrite replaces it"),
    "group of one": (["--group-size", "1"], "--group-size must be at least 2"),
    "negative delta": (["--delta", "-0.5"], "--delta must be at least 0"),
    "delta not a number": (["--delta", "nan"], "--delta must be at least 0"),
    "demonstrations too long": (["--max-new-tokens", "20"], "do not fit into --max-new-tokens 20"),
    "uneven updates": (["--updates-per-batch", "3"], "cannot be split"),
    "unknown flag": (["--groupsize", "3"], "--groupsize"),
    "unknown level": (["--levels", "1,9"], "no level 9"),
    "no such model": (["--model", "/nowhere/at/all"], "holds no model"),
    "rate of zero": (["--lr", "0"], "--lr must be above 0"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_line_and_overwrites_nothing(tiny_folder, tmp_path, capsys, case):
    (tmp_path / "file").write_text("a file, not a folder")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.csv").write_text("precious")
    flags, message = BAD[case]
    flags = [flag.format(file=tmp_path / "file", run=tmp_path / "run") for flag in flags]
    defaults = {"--method": "dagrpo", "--out": str(tmp_path / "new"), "--model": str(tiny_folder)}
    given = [x for name, value in defaults.items() if name not in flags for x in (name, value)]
    with pytest.raises(SystemExit) as stop:
        train.main([*given, *flags])
    err = capsys.readouterr().err
    assert stop.value.code == 2
    assert err.count("\n") == 1 and err.startswith("error: ") and message in err
    assert (tmp_path / "run" / "metrics.csv").read_text() == "precious"
    assert not (tmp_path / "new" / "config.json").exists()


def test_overwrite_replaces_a_run_and_touches_nothing_else(tiny_folder, tmp_path):
    out = tmp_path / "run"
    run(tiny_folder, out, steps=3)
    (out / "notes.txt").write_text("mine")
    assert len(run(tiny_folder, out, "--overwrite", steps=1)) == 1
    assert (out / "notes.txt").read_text() == "mine" and len(groups_of(out)) == 4


def test_the_shown_groups_say_what_was_masked_and_why_there_is_no_signal(tiny_folder, tmp_path, capsys, monkeypatch):
    run(tiny_folder, tmp_path / "a", "--show-every", "1", "--delta", "9", method="dagrpo_on", steps=1)
    shown = capsys.readouterr().out
    assert "masked: S" in shown and "every response is masked" in shown and "answer" in shown
    monkeypatch.setattr(scoring, "verify", lambda response, answer: False)
    run(tiny_folder, tmp_path / "b", "--show-every", "1", method="dagrpo_on", steps=1)
    assert "no signal: all 4 are wrong" in capsys.readouterr().out


def test_every_step_takes_the_next_prompts_and_an_epoch_takes_each_once():
    epoch = [i for step in range(5) for i in train.pick(10, step, 2, seed=3)]
    assert sorted(epoch) == list(range(10))
    assert train.pick(10, 2, 4, seed=3) == epoch[8:10] + train.pick(10, 5, 2, seed=3)
