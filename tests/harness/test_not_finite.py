"""What is not finite, in gradients, weights or logits: it replaces no good checkpoint, and one line says what to do."""

import pytest
import torch
from helpers import groups_of, metrics, run, weights

import train

pytestmark = pytest.mark.usefixtures("even_is_right")


@pytest.mark.parametrize("method", ["dr_grpo", "sft"])
def test_gradients_that_are_not_finite_are_skipped_shown_saved_and_end_the_run(
    tiny_folder, tmp_path, monkeypatch, capsys, method
):
    before = weights(tiny_folder)

    def broken(function):
        def step(*args, **kwargs):
            result = function(*args, **kwargs)
            for parameter in args[0].policy.model.parameters():
                parameter.grad.fill_(float("nan"))
            return result

        return step

    monkeypatch.setattr(train, "backward", broken(train.backward))
    with pytest.raises(SystemExit) as stop:
        run(tiny_folder, tmp_path / "run", "--save-every", "1", method=method, steps=9)
    said = capsys.readouterr()
    assert stop.value.code == 2 and "gradients in a row were not finite: start again with a lower --lr" in said.err
    rows = metrics(tmp_path / "run")
    assert sum(int(row["skipped_updates"]) for row in rows) >= 5 and rows[0]["grad_norm"] == "nan"
    assert f"step {len(rows)}: an update was skipped" in said.out
    assert torch.equal(weights(tmp_path / "run"), before)
    assert (tmp_path / "run" / "nonfinite.jsonl").read_text().count("\n") == len(groups_of(tmp_path / "run"))


@pytest.mark.parametrize("flags", [[], ["--plain"]])
def test_weights_gone_astray_are_one_clear_line(tiny_folder, tmp_path, capsys, monkeypatch, flags):
    collect = train.collect

    def broken(run, *batch):
        run.policy.model.lm_head.weight.data.fill_(float("nan"))
        return collect(run, *batch)

    monkeypatch.setattr(train, "collect", broken)
    with pytest.raises(SystemExit):
        run(tiny_folder, tmp_path / "run", *flags)
    assert "the policy's logits are not finite. There is no checkpoint yet" in capsys.readouterr().err


def values(run, name):
    """What is trained, or one part of AdamW's state of it."""
    found = [p for p in run.policy.model.parameters() if p.requires_grad]
    return [p.data if name == "weights" else run.optimizer.state[p][name] for p in found]


HARM = {
    "a weight is NaN": lambda run: values(run, "weights")[3].view(-1)[5:6].fill_(float("nan")),
    "all weights are infinite": lambda run: [x.fill_(float("inf")) for x in values(run, "weights")],
    "only the logits are": lambda run: run.policy.model.lm_head.weight.data.fill_(3e38),
    "exp_avg is NaN": lambda run: values(run, "exp_avg")[-1].fill_(float("nan")),
    "exp_avg_sq is infinite": lambda run: values(run, "exp_avg_sq")[0].fill_(float("inf")),
}


@pytest.mark.parametrize("harm", HARM)
def test_nothing_that_is_not_finite_replaces_a_good_checkpoint(tiny_folder, tmp_path, monkeypatch, capsys, harm):
    out, step = tmp_path / "run", train.optimizer_step

    def harmful(run, loss):
        done = step(run, loss)
        if run.step == 1:
            HARM[harm](run)
        return done

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(train, "optimizer_step", harmful)
        run(tiny_folder, out, "--save-every", "1", steps=9)
    error = capsys.readouterr().err.splitlines()[-1]
    assert stop.value.code == 2 and "not finite: nothing is saved. The checkpoint is of step 1, and good" in error
    run(tiny_folder, tmp_path / "one", steps=1)
    assert (out / "checkpoint" / "step").read_text() == "1" and torch.equal(weights(out), weights(tmp_path / "one"))
    assert f"--init-from {out}" in error
    lower = ["--method", "dagrpo", "--steps", "1", "--lr", "1e-9", "--out", str(tmp_path / "lower"), "--init-from"]
    train.main([*lower, str(out), "--batch-prompts", "2", "--group-size", "2", "--show-every", "0"])
