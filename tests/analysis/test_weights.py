"""analysis.weights: its numbers are the slopes of the papers' formulas, and it is redrawn from its CSV."""

import math

import pytest

from analysis import weights
from dagrpo import METHODS


@pytest.fixture(scope="module")
def points():
    return weights.points()


def at(points, method, line, x):
    """The weight of a method's line at the x that is nearest."""
    here = [p for p in points if method in p.panel.split(", ") and p.line == line]
    return min(here, key=lambda p: abs(math.log(p.x / x)))


@pytest.mark.parametrize(
    ("method", "line", "x", "formula"),
    [
        ("grpo", "A > 0", 1.1, lambda r: r),
        ("grpo", "A > 0", 1.3, lambda r: 0),
        ("grpo", "A < 0", 6.0, lambda r: r),
        ("dapo", "A > 0", 1.25, lambda r: r),
        ("two_sided", "A < 0", 3.9, lambda r: r),
        ("two_sided", "A < 0", 4.2, lambda r: 0),
        ("cispo", "A > 0", 6.0, lambda r: 5),
        ("rgra", "A < 0", 0.2, lambda r: 1),
        ("sapo", "A > 0", 2.0, lambda r: r / math.cosh((r - 1) / 2) ** 2),  # 4 s (1 - s) = 1 / cosh^2
        ("sapo", "A < 0", 2.0, lambda r: r / math.cosh(1.05 * (r - 1) / 2) ** 2),
        ("dppo_tv", "A > 0, p was 0.05", 3.9, lambda r: r),  # p is 0.195
        ("dppo_tv", "A > 0, p was 0.05", 4.1, lambda r: 0),
        ("dppo_tv", "A < 0, p was 0.5", 0.69, lambda r: 0),
        ("dppo_tv", "A < 0, p was 0.5", 0.72, lambda r: r),
        ("gspo", "A > 0", 0.5, lambda r: r ** (1 / 8)),
        ("gspo", "A > 0", 1.1, lambda r: 0),
        ("gmpo", "A < 0", 5.0, lambda r: r ** (1 / 8)),
        ("gmpo", "A > 0", 1.6, lambda r: 0),
    ],
)
def test_the_weight_against_the_ratio(points, method, line, x, formula):
    found = at(points, method, line, x)
    assert found.weight == pytest.approx(formula(found.x), rel=1e-6, abs=1e-12)


def test_the_weight_of_a_demonstrations_token(points):
    here = {p.line: {} for p in points if p.panel == "demonstrations"}
    for p in points:
        if p.panel == "demonstrations":
            here[p.line][p.x] = p.weight
    assert set(here) == {"sft, hpt, dagrpo", "luffy", "chord"}
    for p in here["luffy"]:
        assert here["sft, hpt, dagrpo"][p] == pytest.approx(1)
        assert here["luffy"][p] == pytest.approx(0.1 * p / (p + 0.1) ** 2)
        assert here["chord"][p] == pytest.approx(p * (1 - p))


def test_every_method_with_rollouts_is_in_a_panel_that_has_a_title(points):
    panels = {p.panel for p in points} - {"demonstrations"}
    assert sorted(name for panel in panels for name in panel.split(", ")) == sorted(
        name for name, recipe in METHODS.items() if recipe.rollouts
    )
    assert {panel.split(", ")[0] for panel in panels} | {"demonstrations"} == set(weights.KINDS)


def test_the_png_is_redrawn_from_the_csv(tmp_path, monkeypatch):
    weights.main(["--out", str(tmp_path)])
    first = (tmp_path / "weights.png").read_bytes()
    (tmp_path / "weights.png").unlink()
    monkeypatch.setattr(weights, "points", lambda: pytest.fail("it is in the CSV"))
    weights.main(["--from-csv", str(tmp_path / "weights.csv")])
    assert (tmp_path / "weights.png").read_bytes() == first
