"""analysis.experiments.bias: the closed forms against enumeration, the gradients against groups one by one."""

from itertools import product

import pytest
import torch

import fast
import scoring
from analysis.experiments import bias
from analysis.gradients import response_gradients
from tasks import solve


def enumerated(p, G):
    """E[m | signal] - p, and the weight of the true gradient, over all 2^G groups."""
    seen = signal = weight = 0.0
    for R in product((0, 1), repeat=G):
        m, chance = sum(R) / G, p ** sum(R) * (1 - p) ** (G - sum(R))
        if 0 < m < 1:
            signal, seen = signal + chance, seen + chance * m
            weight += chance * m * (1 - m)  # of (mean gradient of right responses - that of wrong ones)
    return seen / signal - p, weight / (p * (1 - p)), weight / signal / (p * (1 - p))


@pytest.mark.parametrize("p", [0.01, 0.2, 0.5, 0.93])
def test_the_closed_forms_are_sums_over_all_groups(p):
    assert bias.expected(p) == pytest.approx(enumerated(p, bias.G))


def test_gradients_are_those_of_the_groups_one_by_one(tiny, monkeypatch):
    monkeypatch.setattr(bias, "GROUPS", 4)
    monkeypatch.setattr(scoring, "verify", lambda response, answer, ended=True: len(response) % 7 == 0)
    problem, drawn = solve("12+5-3=", "3"), []
    monkeypatch.setattr(bias.fast, "sample_groups", keeping(drawn, fast.sample_groups))
    (row,) = bias.measure(tiny, problem, "plain")
    rollouts = drawn[0]
    R = torch.tensor([len(text) % 7 == 0 for text in rollouts.texts]).float()  # (N,)
    each = response_gradients(tiny, rollouts, torch.arange(len(R)), rollouts.mask.float()).double()  # (N, D)
    true = ((R - R.mean()).double() @ each) / len(R)
    groups = [(r - r.mean()).double() @ g / 8 for r, g in zip(R.split(8), each.split(8), strict=True)]
    grouped, signal = torch.stack(groups).mean(dim=0), [0 < r.mean().item() < 1 for r in R.split(8)]
    assert 0 < sum(signal) < 4, "one of the groups has no signal"
    ratio = (grouped @ true / (true @ true)).item()
    assert row.ratio == pytest.approx(ratio, rel=1e-3)
    assert row.resampled == pytest.approx(ratio * 4 / sum(signal), rel=1e-3)
    assert row.cosine == pytest.approx((grouped @ true / grouped.norm() / true.norm()).item(), abs=1e-4)
    means = [r.mean().item() for r, there in zip(R.split(8), signal, strict=True) if there]
    assert (row.p, row.bias) == pytest.approx((R.mean().item(), sum(means) / len(means) - R.mean().item()))


def keeping(drawn, sample):
    def kept(*given):
        drawn.append(sample(*given))
        return drawn[-1]

    return kept


def test_a_question_without_signal_gives_no_row(tiny_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bias, "GROUPS", 2)
    with pytest.raises(SystemExit):  # the tiny policy is never right on level 5
        bias.main(["--model", str(tiny_folder), "--questions", "1", "--world", "guess10"])
    assert "use more --questions" in capsys.readouterr().err


@pytest.mark.parametrize("path", ["/dev/null/bias.csv", "{folder}"])
def test_a_csv_that_cannot_be_written_ends_before_the_work(path, tmp_path, capsys):
    path = path.format(folder=tmp_path)
    with pytest.raises(SystemExit):
        bias.main(["--csv", path, "--model", "/nowhere"])
    assert capsys.readouterr().err.startswith(f"error: --csv {path}: cannot be written")


def test_the_command_line(tiny_folder, tmp_path, capsys, monkeypatch, even_is_right):
    monkeypatch.setattr(bias, "GROUPS", 2)
    out = tmp_path / "new" / "bias.csv"
    bias.main(["--model", str(tiny_folder), "--questions", "1", "--csv", str(out)])
    assert len(out.read_text().splitlines()) >= 2 and "| level | questions | p |" in capsys.readouterr().out
