"""The two figures of analysis.conflict: one group's gradients (Figure 1), and what holds over many groups."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from analysis.curves import COLOURS, MARKERS, style
from analysis.gradients import MASKS, MIXED, ROLLOUTS, Group, cosines, net_share, plane

SCORES = ScalarMappable(Normalize(1, 10), "viridis")  # colours of S


# ---------------------------------------------------------------------------------------- one group: Figure 1


@dataclass(frozen=True)
class Response:
    """A row of groups.csv: one response of one of the three groups of Figure 1, ordered by score."""

    prompt: str
    model: str
    level: str
    question: str
    text: str
    S: float
    A: float
    keep: bool
    anchor: bool
    products: str  # its inner products with the group's g_1 ... g_G


def examples(groups: dict[str, list[Group]]) -> dict[str, Group]:
    """An easy, a mixed and a hard group: the first found where the mask leaves something out, else the first found.

    Easy: at least three in four are right; the lowest level first. Mixed: between 30 and 70 % are right. Hard: only the
    anchor is right; the highest level first. A kind that no group belongs to is left out.
    """

    def right(group: Group) -> float:
        return float((group.A > 0).mean())

    on, mixed = (sorted(groups[setup], key=lambda group: group.level) for setup in (ROLLOUTS, MIXED))
    kinds = {
        "easy": [group for group in on if right(group) >= 0.75],
        "mixed": [group for group in groups[ROLLOUTS] if 0.3 < right(group) < 0.7],
        "hard, with anchor": [g for g in reversed(mixed) if not (~g.is_anchor & (g.A > 0)).any()],
    }
    return {kind: min(some, key=lambda group: group.keep.all()) for kind, some in kinds.items() if some}


def responses(prompt: str, model: str, group: Group) -> list[Response]:
    order = np.lexsort((group.texts, -group.S))  # equal responses side by side
    numbers = [(float(s), float(a), bool(k), bool(is_anchor)) for s, a, k, is_anchor in zip(*group[-4:], strict=True)]
    products = [" ".join(f"{x:.6g}" for x in row[order]) for row in group.gram]
    name = (prompt, model, group.level, group.question)
    return [Response(*name, group.texts[i], *numbers[i], products[i]) for i in order]


def draw_groups(rows: pd.DataFrame) -> Figure:
    """Figure 1, from Responses: a row for each group; cosines and directions, of g and of A g."""
    prompts = rows["prompt"].unique()
    figure = Figure(figsize=(15, 0.8 + 3.7 * len(prompts)), layout="constrained")
    axes = figure.subplots(len(prompts), 4, squeeze=False, width_ratios=(1, 1, 1.05, 1.05))
    nets = [draw_group(line, rows[rows["prompt"] == prompt]) for line, prompt in zip(axes, prompts, strict=True)]
    shares = "; ".join(f"{prompt}: {net}" for prompt, net in zip(prompts, nets, strict=True))
    what = "How much is left of a group's pushes, |v+ + v-| / (|v+| + |v-|)"
    figure.suptitle(f"{what}\n{shares}", fontsize=11)
    matrices = axes[0, 0].images[0]
    figure.colorbar(matrices, ax=axes[:, :2], location="bottom", shrink=0.5, aspect=50, label="cosine")
    figure.colorbar(SCORES, ax=axes[:, 2:], location="bottom", shrink=0.5, aspect=50, label="score S")
    return figure


def draw_group(axes: np.ndarray, rows: pd.DataFrame) -> str:
    """Draws its row of the figure, and returns the net share before and after the mask, in words."""
    products = np.array([line.split() for line in rows["products"]], dtype=float)  # (G, G)
    A, keep = rows["A"].to_numpy(), rows["keep"].to_numpy()
    unit, norm = cosines(products), np.sqrt(np.diag(products))
    labels = [
        f"{clip(r.text)} {r.S:4.1f} {'+' if r.A > 0 else '-'}{'a' if r.anchor else ' '}" for r in rows.itertuples()
    ]
    first = rows.iloc[0]
    draw_matrix(axes[0], unit, np.zeros_like(keep), labels)
    axes[0].set_title(f"{first.prompt}: {clip(first.question, 30)} (level {first.level})\ncosine of g", fontsize=10)
    draw_matrix(axes[1], cosines(products, A), ~keep, ["+" if a > 0 else "-" for a in A])
    axes[1].set_title("cosine of A g\n(hatched: gone after the mask)", fontsize=10)
    scale = np.where(norm > 0, norm, 1)
    draw_plane(axes[2], products / np.outer(scale, scale), rows, None)
    axes[2].set_title(f"directions of g\n{axes[2].get_title()}", fontsize=10)
    draw_plane(axes[3], products * np.outer(A, A), rows, keep)
    shares = [net_share(products, A, mask) for mask in (np.ones_like(keep), keep)]
    net = f"{shares[0]:.2f} before, {shares[1]:.2f} after the mask" if keep.any() else "all masked"
    axes[3].set_title(f"A g; {axes[3].get_title()}\nnet share {net}", fontsize=10)
    return net


def clip(text: str, most: int = 22) -> str:
    text = " ".join(text.split()).replace("$", r"\$")  # matplotlib reads $ as mathematics
    return text if len(text) <= most else text[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"


def draw_matrix(ax: Axes, values: np.ndarray, masked: np.ndarray, labels: list[str]) -> None:
    ax.imshow(values, vmin=-1, vmax=1, cmap="RdBu")
    for (i, j), value in np.ndenumerate(values):
        if masked[i] or masked[j]:
            ax.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, fill=False, edgecolor="0.35", hatch="////", linewidth=0))
        if not np.isnan(value):
            look = {"ha": "center", "va": "center", "fontsize": 7.5, "color": "w" if abs(value) > 0.6 else "k"}
            ax.text(j, i, f"{round(value, 1) + 0.0:.1f}", **look)  # + 0.0: no -0.0
    ax.set_yticks(range(len(labels)), labels, fontsize=8, family="monospace")
    ax.set_xticks([])


def draw_plane(ax: Axes, products: np.ndarray, rows: pd.DataFrame, keep: np.ndarray | None) -> None:
    """Lines from the origin, coloured by S; triangles up: A > 0. With `keep`: masked lines dashed, and both sums."""
    points, inside = plane(products)  # (G, 2)
    for at, row, kept in zip(points, rows.itertuples(), [True] * len(rows) if keep is None else keep, strict=True):
        colour, edge = SCORES.to_rgba(row.S), "red" if row.anchor else "0.3"
        ax.plot(*zip((0, 0), at, strict=True), color=colour, linestyle="-" if kept else (0, (2, 2)), linewidth=1.6)
        look = {"markersize": 9, "markeredgecolor": edge, "markerfacecolor": colour if kept else "white"}
        ax.plot(*at, marker="^" if row.A > 0 else "v", **look)
    if keep is not None:
        for of, colour, name in ((points, "0.6", "net before"), (points[keep], "k", "net after")):
            arrow = {"arrowstyle": "-|>", "color": colour, "linewidth": 3, "shrinkA": 0, "shrinkB": 0}
            ax.annotate("", of.sum(axis=0), (0, 0), arrowprops=arrow)
            ax.plot(*of.sum(axis=0), alpha=0)  # an arrow does not widen the axes
            ax.plot([], [], color=colour, linewidth=3, label=name)
        ax.legend(fontsize=8, loc="best", frameon=False)
    places = Counter(map(tuple, (points / (np.abs(points).max() or 1)).round(2).tolist()))
    for place, times in places.items():
        if times > 1 and np.hypot(*place) > 0.1:  # near the origin they would lie on top of each other
            at = np.array(place) * np.abs(points).max()
            ax.annotate(f"\N{MULTIPLICATION SIGN}{times}", at, (6, 4), textcoords="offset points", fontsize=9)
    ax.axhline(0, color="0.8", linewidth=0.7, zorder=0)
    ax.axvline(0, color="0.8", linewidth=0.7, zorder=0)
    ax.margins(0.17)
    ax.set_aspect("equal", adjustable="datalim")
    ax.set(xticks=[], yticks=[], xlabel="1st component", ylabel="2nd component")
    ax.set_title(f"{100 * inside:.0f} % of squared length in the plane")


# ---------------------------------------------------------------------------------------- the figure over many groups

PAIR_PANELS = {
    "gap": {
        "title": "Are pairs of like score alike in gradient?",
        "xlabel": "score gap: S of the right one - S of the wrong",
    },
    "text": {"title": "Are pairs of like text?", "xlabel": "share of their tokens that is a common beginning"},
}
NET_PANELS = {
    ROLLOUTS: "Net share of a group, rollouts only",
    MIXED: "Net share of a group with anchor",
    f"{ROLLOUTS}, batch": "Net share of a batch, rollouts only",
    f"{MIXED}, batch": "Net share of a batch with anchors",
}


def method_of(model: str) -> str:
    return model.split(", step ")[0]


def draw_conflict(points: pd.DataFrame) -> Figure:
    """Six panels: cosine against gap and against shared text; the net share of groups and of batches, by policy."""
    figure = Figure(figsize=(15, 8.6), layout="constrained")
    axes = figure.subplots(2, 3)
    models = list(points["model"].unique())
    points = points[points["level"] == "all"]
    last = list({method_of(model): model for model in models}.values())  # of several steps of a method, the last
    for ax, panel in ((axes[0, 0], "gap"), (axes[1, 0], "text")):
        for i, model in enumerate(last):
            line = points[(points["panel"] == panel) & (points["model"] == model)]
            error_bars(ax, line["x"], line, label=model, **(style(i, 2) | {"marker": "o"}))
        ax.set(ylabel="cosine of g, right and wrong response", **PAIR_PANELS[panel])
        other = ax.secondary_yaxis("right", functions=(np.negative, np.negative))
        other.set_ylabel("cosine of A g; -1: they cancel", labelpad=1, fontsize=9)
        ax.axhline(0, color="0.6", linewidth=0.8)
        ax.grid(alpha=0.3)
    axes[0, 0].axvline(3, color="0.4", linestyle=":", linewidth=1)
    axes[0, 0].legend(fontsize=8)
    for ax, (setup, title) in zip(axes[:, 1:].T.flatten(), NET_PANELS.items(), strict=True):
        draw_net(ax, points[(points["panel"] == "net") & (points["setup"] == setup)], models)
        ax.set(title=title, ylabel="|v+ + v-| / (|v+| + |v-|)", ylim=(0, 1.02))
    axes[0, 1].legend(fontsize=8, title="mask", loc="lower right")
    figure.suptitle(f"{conflict_message(points)}\n{LETTERS}", fontsize=10)
    figure.get_layout_engine().set(w_pad=0.1)
    return figure


LETTERS = """g: the gradient of a response's log-prob; v+, v-: sums of A g over right and over wrong responses.
Net share 1: nothing cancels; 0.71 (dotted): v+ and v- are of equal length and at right angles."""


def conflict_message(points: pd.DataFrame) -> str:
    """The figure's title: how much the mask of Eq. 8-9 changes the net share, over policies and setups."""
    net = points[points["panel"] == "net"].pivot_table(index=["setup", "model"], columns="name", values="mean")
    if not set(MASKS) <= set(net):
        return "Do gradients conflict?"
    none, *masks = MASKS
    ranges = [(net[mask] - net[none]).agg(["min", "max"]) for mask in masks]
    parts = [f"{mask} by {low:+.3f} to {high:+.3f}" for mask, (low, high) in zip(masks, ranges, strict=True)]
    return f"How masks change the net share of groups and batches: {', '.join(parts)}"


def error_bars(ax: Axes, x: Any, line: pd.DataFrame, **look: Any) -> None:
    sides = [(line["mean"] - line["low"]).clip(lower=0), (line["high"] - line["mean"]).clip(lower=0)]
    ax.errorbar(x, line["mean"], sides, capsize=2, elinewidth=1, **look)


def draw_net(ax: Axes, points: pd.DataFrame, models: list[str]) -> None:
    for i, mask in enumerate(MASKS):
        line = points[points["name"] == mask]
        at = [models.index(model) + 0.18 * (i - 1) for model in line["model"]]
        error_bars(ax, at, line, label=mask, color=COLOURS[i], linestyle="none", marker=MARKERS[1 + i], markersize=6)
    ax.set_xticks(range(len(models)), [model.replace(", step ", "\nstep ") for model in models], fontsize=8)
    ax.set_xlim(-0.6, len(models) - 0.4)
    ax.axhline(2**-0.5, color="0.4", linestyle=":", linewidth=1)
    ax.grid(axis="y", alpha=0.3)
