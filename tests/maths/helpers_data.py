"""Rows of known layouts, and the error of a data set that cannot be loaded."""

import pytest

from maths import data

GSM8K = {"question": "Two pens at $24?", "answer": "They are 2*24=$<<2*24=48>>48.\nNot a << mark.\n#### 48"}
OPENR1 = {
    "data_source": "openr1",
    "prompt": [{"role": "system", "content": "Think first."}, {"role": "user", "content": "1+1?"}],
    "target": [{"role": "assistant", "content": "<think>easy</think> $\\boxed{2}$"}],
    "reward_model": {"style": "rule", "ground_truth": "2"},
    "extra_info": {"index": 0},
}


def fails(capsys, *args, **flags):
    """The one line with which loading ends the program."""
    with pytest.raises(SystemExit) as stop:
        data.load_problems(*map(str, args), **flags)
    captured = capsys.readouterr()
    assert stop.value.code == 2 and captured.out == ""
    assert captured.err.count("\n") == 1 and captured.err.startswith("error: ")
    return captured.err
