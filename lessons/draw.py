"""What the notebooks draw with: a function's source, a group as a table, tokens coloured by a number, curves."""

from __future__ import annotations

import inspect
import io
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import pandas as pd
import torch
from IPython.display import Code, Image
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from analysis.curves import places, style
from analysis.first_figure import COLOURS
from analysis.stats import t_interval
from dagrpo import Recipe, build_update, policy_loss
from policy import Policy
from rollout import Rollouts


def shown(figure: Figure) -> Image:
    """A figure as a picture that a notebook keeps."""
    file = io.BytesIO()
    figure.savefig(file, dpi=90)
    return Image(file.getvalue())


def source(function: Callable, start: str = "", lines: int = 0) -> Code:
    """The source of a function of the project: all of it, or `lines` lines from the first that holds `start`."""
    text = textwrap.dedent(inspect.getsource(function)).splitlines()
    first = next(i for i, line in enumerate(text) if start in line)
    return Code("\n".join(text[first : first + lines if lines else None]), language="python")


def table(texts: Sequence[str], **columns: Any) -> pd.DataFrame:
    """One row per response, with one column for each tensor or list (G,)."""
    values = {name: x.flatten().tolist() if isinstance(x, Tensor) else list(x) for name, x in columns.items()}
    frame = pd.DataFrame({"response": list(texts), **values})
    return frame.round(3)


def differences(a: Recipe, b: Recipe) -> str:
    """The choices in which two recipes differ."""
    names = [field.name for field in fields(Recipe) if field.name != "paper"]
    found = [
        f"{name}: {getattr(a, name)} -> {getattr(b, name)}" for name in names if getattr(a, name) != getattr(b, name)
    ]
    return "; ".join(found) or "nothing"


def pieces(policy: Policy, rollouts: Rollouts) -> list[list[str]]:
    """The text of each completion token, row by row; end tokens are shown as a dollar sign."""
    rows = []
    for ids, mask in zip(rollouts.tokens.tolist(), rollouts.mask.tolist(), strict=True):
        words = [policy.tokenizer.decode([i]) for i, there in zip(ids, mask, strict=True) if there]
        rows.append([word if i not in policy.end_ids else "$" for i, word in zip(ids, words, strict=False)])
    return rows


def tokens(rows: Sequence[Sequence[str]], values: Any, names: Sequence[str], title: str, unit: str) -> Image:
    """One line per response, one cell per token, coloured by its value: blue above 0, orange below."""
    width = max(map(len, rows))
    figure = Figure(figsize=(0.24 * width + 2.2, 0.34 * len(rows) + 1.0), layout="constrained")
    ax, most = (
        figure.subplots(),
        max(abs(float(x)) for row, line in zip(rows, values, strict=True) for _, x in zip(row, line, strict=False)),
    )
    norm = Normalize(-most or -1, most or 1)
    for i, (row, line, name) in enumerate(zip(rows, values, names, strict=True)):
        ax.text(-0.4, 0.43 - i, name, ha="right", va="center", fontsize=8)
        for t, (word, value) in enumerate(zip(row, line, strict=False)):
            value = float(value)
            ax.add_patch(Rectangle((t, -i), 1, 0.86, facecolor=COLOURS(norm(value)), edgecolor="0.85", linewidth=0.4))
            colour = "white" if abs(value) > 0.6 * most else "black"
            ax.text(t + 0.5, 0.4 - i, word, ha="center", va="center", family="monospace", fontsize=8, color=colour)
    ax.set(xlim=(-7, width + 0.2), ylim=(-len(rows) + 0.9, 1.1))
    ax.axis("off")
    figure.suptitle(title, fontsize=10)
    figure.supxlabel(f"{unit}: blue > 0, orange < 0; the deepest colour is {most:.2g}", fontsize=8)
    return shown(figure)


def curves(frame: pd.DataFrame, column: str, title: str, unit: str, dotted: float | None = None) -> Image:
    """One line per method: the mean over seeds at each step, and its 95 % t-interval as a band, cut at 0."""
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    ax = figure.subplots()
    for name, place in places(dict.fromkeys(frame["label"])).items():
        wide = frame[frame["label"] == name].pivot(index="step", columns="seed", values=column)
        mean, half = t_interval(wide.to_numpy())
        look = style(place, len(wide))
        ax.plot(wide.index, mean, label=f"{name} ({wide.shape[1]} seeds)", **look)
        if wide.shape[1] > 1:
            low = (mean - half).clip(min=0)
            ax.fill_between(wide.index, low, mean + half, color=look["color"], alpha=0.15, linewidth=0)
    if dotted is not None:
        ax.axhline(dotted, color="grey", linestyle=":")
    ax.set(title=title, xlabel="step", ylabel=unit)
    ax.grid(alpha=0.3)
    ax.legend(frameon=False, fontsize=8)
    return shown(figure)


def pushes(recipe: Recipe, rollouts: Rollouts, A: Tensor, keep: Tensor, logp: Tensor, max_new_tokens: int) -> Tensor:
    """-dloss/dlogp (N, T) of one update, in thousandths: what each token's log-prob is pushed by (Eq. 4, 10, 13)."""
    update = build_update(
        recipe,
        A,
        keep,
        rollouts.tokens,
        rollouts.mask,
        logp.detach(),
        rollouts.entropy,
        rollouts.is_anchor,
        max_new_tokens,
    )
    trained = logp.detach().requires_grad_()
    policy_loss(trained, update, recipe, torch.zeros_like(trained)).backward()
    return -1000 * trained.grad
