"""How hard a recipe pushes a token: its gradient's weight against its ratio or, in demonstrations, its probability.

The gradient of a token's term is weight * A * grad log pi. With one update per rollout batch all weights are 1. Once
the policy has moved, they are what makes a method: a clip, a soft gate, a bounded weight, a trust region, one ratio for
a whole row. Each has a panel; methods with equal weights share one. The weights are taken from dagrpo.surrogate by
autograd, so the figure always agrees with the loss.

Writes into --out: weights.png, weights.csv (exactly what is drawn), weights.txt (the caption).

    python -m analysis.weights
    python -m analysis.weights --from-csv results/weights/weights.csv      redraws the PNG from this file
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from analysis.curves import COLOURS
from analysis.saved import draw_figure, read_rows, write_rows
from dagrpo import METHODS, Recipe, Update, surrogate
from harness.console import Parser

ROW = 8  # tokens; the others have ratio 1
LOW, HIGH, POINTS = 0.15, 7.0, 150  # ratios
LIKELY, UNLIKELY = 0.5, 0.05  # the token's probability when it was sampled: trust regions depend on it


@dataclass(frozen=True)
class Point:
    """A row of weights.csv."""

    panel: str  # the methods that share it
    line: str
    x: float  # the token's ratio; in the panel `demonstrations` its probability
    weight: float


def weights(recipe: Recipe, logp: torch.Tensor, logp_old: torch.Tensor, A: float, anchor: bool) -> torch.Tensor:
    """d objective / d logp of each row's first token, over A: (N,). All rows have advantage A and the same recipe."""
    N, T = logp.shape
    logp = logp.clone().requires_grad_()
    mask = torch.ones(N, T, dtype=torch.bool)
    row = torch.full((N,), A, dtype=logp.dtype)
    update = Update(row, mask[:, 0], mask, mask / 1, logp_old, torch.full((N,), anchor))
    surrogate(logp, update, recipe)[0].sum().backward()
    return logp.grad[:, 0] / A


def by_ratio(recipe: Recipe, A: float, p_old: float = UNLIKELY) -> tuple[list[float], list[float]]:
    """Ratios of one token and its weights, in a row whose other tokens have ratio 1."""
    highest = min(HIGH, 0.999 / p_old)
    ratio = torch.logspace(math.log10(LOW), math.log10(highest), POINTS, dtype=torch.float64)
    old = torch.full((POINTS, ROW), math.log(p_old), dtype=torch.float64)
    new = old.clone()
    new[:, 0] += ratio.log()
    return ratio.tolist(), weights(recipe, new, old, A, anchor=False).tolist()


def points() -> list[Point]:
    """All lines of all panels. Methods with equal weights share a panel, which bears their names."""
    shared: dict[tuple, list[str]] = {}
    for name, recipe in METHODS.items():
        if recipe.rollouts:
            lines = [by_ratio(recipe, A, p)[1] for A in (1.0, -1.0) for p in (UNLIKELY, LIKELY)]
            shared.setdefault(tuple(round(w, 9) for line in lines for w in line), []).append(name)
    found = []
    for names in shared.values():
        recipe = METHODS[names[0]]
        for A in (1.0, -1.0):
            for p in (UNLIKELY, LIKELY) if recipe.trust else (UNLIKELY,):
                line = f"A {'>' if A > 0 else '<'} 0" + (f", p was {p}" if recipe.trust else "")
                found += [Point(", ".join(names), line, x, w) for x, w in zip(*by_ratio(recipe, A, p), strict=True)]
    return found + demonstrations()


def demonstrations() -> list[Point]:
    """The weight of a demonstration's token against its probability, A = 1."""
    p = torch.linspace(0.001, 0.999, POINTS, dtype=torch.float64)
    shared: dict[tuple, list[str]] = {}
    for name, recipe in METHODS.items():
        if recipe.anchors:
            found = weights(recipe, p.log()[:, None], p.log()[:, None], 1.0, anchor=True).tolist()
            shared.setdefault(tuple(round(w, 9) for w in found), []).append(name)
    lines = {", ".join(names): line for line, names in shared.items()}
    return [
        Point("demonstrations", name, x, w)
        for name, line in lines.items()
        for x, w in zip(p.tolist(), line, strict=True)
    ]


# ---------------------------------------------------------------------------------------- the figure

KINDS = {  # the panels in order: the first method in it, and what it is an example of
    "rloo": "no ratio: the weight is 1",
    "gtpo": "the ratio, and no clip",
    "reinforce": "clipped at 0.8 and 1.2",
    "dapo": "clipped at 0.8 and 1.28",
    "two_sided": "for A < 0 clipped at 4 too",
    "cispo": "a bounded weight: at most 5",
    "sapo": "a soft gate",
    "dppo_tv": "a trust region: |p - p_old| <= 0.15",
    "dppo_kl": "a trust region: KL <= 0.05",
    "gspo": "one ratio a row, clipped narrowly",
    "luspo": "one ratio a row, clipped less so",
    "gmpo": "geometric mean of clipped ratios",
    "demonstrations": "who learns from unlikely tokens?",
}


def draw(points: pd.DataFrame) -> Figure:
    order = list(KINDS)
    panels = sorted(points["panel"].unique(), key=lambda panel: order.index(panel.split(",")[0]))
    columns = 5
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(2.8 * columns, 2.75 * rows + 0.5), layout="constrained")
    axes = figure.subplots(rows, columns).flatten()
    for ax, panel in zip(axes, panels, strict=False):
        here = points[points["panel"] == panel]
        (draw_demonstrations if panel == "demonstrations" else draw_ratios)(ax, here)
        ax.set_title(f"{few(panel)}\n{KINDS[panel.split(',')[0]]}", fontsize=9)
        ax.grid(alpha=0.3)
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    axes[0].legend(fontsize=8, loc="upper left")
    figure.suptitle("How much of its push a token keeps once the policy has moved away from the one that sampled it")
    return figure


def few(names: str) -> str:
    """
    >>> few("grpo, dr_grpo, dagrpo, hpt")
    'grpo, dr_grpo and 2 more'
    """
    first = names.split(", ")
    return ", ".join(first[:2]) + (f" and {len(first) - 2} more" if first[2:] else "")


def draw_ratios(ax: Axes, points: pd.DataFrame) -> None:
    for name, line in points.groupby("line", sort=False):
        below, likely = name.startswith("A <"), f"was {LIKELY}" in name
        look = {"color": COLOURS[below], "linestyle": (0, (4, 1.5)) if below else "-", "alpha": 0.45 if likely else 1}
        ax.plot(line["x"], line["weight"], label=name, linewidth=1.8, **look)
    ax.set(xscale="log", xlim=(LOW, HIGH), ylim=(-0.25, 6.5), xlabel="the token's ratio", ylabel="weight")
    ax.xaxis.set_major_locator(FixedLocator([0.2, 0.5, 1, 2, 5]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    ax.axvline(1, color="grey", linewidth=0.6)
    if "was" in points["line"].iloc[0]:
        ax.legend(fontsize=7, loc="upper left")


def draw_demonstrations(ax: Axes, points: pd.DataFrame) -> None:
    for i, (name, line) in enumerate(points.groupby("line", sort=False)):
        look = {"color": COLOURS[2 + i], "linestyle": ("-", "--", "-.")[i % 3], "linewidth": 1.8}
        ax.plot(line["x"], line["weight"], label=name, **look)
    ax.set(xlabel="the token's probability", ylabel="weight", ylim=(-0.04, 1.15), xlim=(0, 1))
    ax.legend(fontsize=7, loc="center right")


CAPTION = """\
The weight of one token's gradient, d objective / (A d log pi), before the divisor; 0: the token is clipped. The token's
ratio pi / pi_old is on the axis, and the other 7 tokens of its response have ratio 1: where a row has one ratio, one
token hardly moves it, and a narrow clip takes all or nothing. Trust regions look at probabilities: dark lines are of a
token that was sampled at p = 0.05, pale ones at p = 0.5. Last panel: a demonstration's token, which nobody sampled,
against its probability under the policy now; chord's is multiplied by mu = 0.1 besides.

The panels of ratios, and who is in them:
"""


def measure(_: None, path: Path) -> str:
    """Writes weights.csv, and returns the caption."""
    found = points()
    write_rows(found, path)
    return CAPTION + "\n".join(
        f"  {panel}" for panel in dict.fromkeys(p.panel for p in found) if panel != "demonstrations"
    )


def redraw(source: Path, out: Path) -> None:
    draw(read_rows(Point, source)).savefig(out / "weights.png", dpi=110)


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="python -m analysis.weights", description=__doc__)
    draw_figure(parser, argv, lambda _: None, measure, redraw, default_out="results/weights")


if __name__ == "__main__":
    main()
