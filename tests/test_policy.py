"""policy.py: prompts and responses as tokens, what is saved and loaded, and where models are found."""

import pytest
import torch

from policy import load_policy, resolve_model, save_policy


def test_a_response_ends_with_the_end_token_and_a_prompt_does_not(tiny):
    assert tiny.encode_response("#1")[-1] == tiny.eos_id
    assert tiny.eos_id not in tiny.encode_prompt("1+2=")


def test_a_saved_policy_comes_back_in_fp32_and_eval_mode(tiny, tiny_folder):
    loaded = load_policy(str(tiny_folder))
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32} and not loaded.model.training
    for name, weight in tiny.model.state_dict().items():
        assert torch.equal(weight, loaded.model.state_dict()[name])


@pytest.mark.parametrize("inside", ["checkpoint/model", "model", "."])
def test_a_run_folder_its_checkpoint_and_the_model_itself_are_found(tiny, tmp_path, inside):
    save_policy(tiny, tmp_path / inside)
    assert resolve_model(str(tmp_path)) == str(tmp_path / inside)


def test_a_hub_id_stays_as_it_is_and_a_folder_without_a_model_is_one_clear_line(tmp_path, capsys):
    assert resolve_model("owner/name") == "owner/name"
    with pytest.raises(SystemExit) as stop:
        resolve_model(str(tmp_path))
    assert stop.value.code == 2 and "holds no model" in capsys.readouterr().err
