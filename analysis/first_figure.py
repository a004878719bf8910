"""The first figure: two groups of eight under dr_grpo and under dagrpo, with the push on every token.

On the left, dr_grpo pushes a lucky guess up like a derivation, pushes tokens that right and wrong responses share both
ways, and does not push a group in which all are wrong. On the right is what the mask (Eq. 8-9) and the anchor (Eq. 11)
make of the same groups. They are the groups of `python dagrpo.py`, in the first update on a batch; nothing is trained
here.

    python -m analysis.first_figure [--out results/first]
"""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from analysis.eight import View, look
from dagrpo import METHODS
from harness.console import Parser, fail, first_line
from scoring import steps

METHODS_SHOWN = ("dr_grpo", "dagrpo")
TITLES = ("Half of the group is right", "All of the group is wrong")
COLOURS = LinearSegmentedColormap.from_list("push", ["#D55E00", "white", "#0072B2"], N=257)  # down, none, up
WIDTH = 22  # characters


def draw_group(ax: Axes, view: View, b: int, norm: Normalize) -> None:
    """Draws group b: one row per response, one cell per token; R and S on the left, what becomes of it on the right."""
    for i, text in enumerate(view.texts[b]):
        kept, A = bool(view.keep[b, i]), view.A[b, i].item()
        for t, character in enumerate(text):
            push = view.push[b, i, t].item()
            ax.add_patch(Rectangle((t, -i), 1, 0.86, facecolor=COLOURS(norm(push)), edgecolor="0.85", linewidth=0.4))
            strong = abs(push) > 0.6 * norm.vmax
            ax.text(t + 0.5, 0.4 - i, character, ha="center", va="center", family="monospace", fontsize=8,
                    color="white" if strong else "black")  # fmt: skip
        kind = "demonstration" if view.is_anchor[b, i] else "right by luck" if view.R[b, i] and not steps(text) else ""
        fate = "no signal" if A == 0 else "" if kept else "masked"
        ax.text(-0.4, 0.4 - i, f"R {view.R[b, i]:.0f}  S {view.S[b, i]:4.1f}", ha="right", va="center", fontsize=8)
        said = ", ".join(filter(None, [kind, fate]))
        ax.text(WIDTH - 0.2, 0.4 - i, said, ha="left", va="center", fontsize=8, color="0.35")
    ax.set(xlim=(-5.5, WIDTH + 9), ylim=(-len(view.texts[b]) + 0.8, 1.1))
    ax.axis("off")


def draw() -> Figure:
    views = {name: look(METHODS[name]) for name in METHODS_SHOWN}
    most = max(view.push.abs().max().item() for view in views.values())
    figure, norm = Figure(figsize=(12.5, 5.6), layout="constrained"), Normalize(-most, most)
    for row, (axes, title) in enumerate(zip(figure.subplots(2, 2), TITLES, strict=True)):
        for ax, (name, view) in zip(axes, views.items(), strict=True):
            draw_group(ax, view, row, norm)
            ax.set_title(f"{name}: {title[0].lower()}{title[1:]}", fontsize=10, loc="left")
    figure.suptitle(
        "dr_grpo pushes a lucky guess up like a derivation, and learns nothing where all are wrong; dagrpo does neither"
    )
    figure.supxlabel("push on each token in the first update: blue up, orange down, white none", fontsize=9)
    return figure


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="python -m analysis.first_figure", description=__doc__)
    parser.add_argument("--out", default="results/first", metavar="DIR", help="where first.png goes")
    out = Path(parser.parse_args(argv).out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        draw().savefig(out / "first.png", dpi=110)
    except OSError as error:
        fail(f"--out {out}: cannot be written ({first_line(error)}); choose another folder")
    print(f"written: {out / 'first.png'}")


if __name__ == "__main__":
    main()
