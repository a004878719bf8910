"""analysis.first_figure: its cells are the pushes of the page of eight, and its words are what the mask decides."""

from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

from analysis import first_figure
from analysis.eight import look
from dagrpo import METHODS


def test_cells_are_coloured_as_their_tokens_are_pushed_and_words_say_what_becomes_of_a_response():
    axes = first_figure.draw().axes
    for ax, (b, name) in zip(axes, ((b, name) for b in (0, 1) for name in ("dr_grpo", "dagrpo")), strict=True):
        view, cells = look(METHODS[name]), [patch for patch in ax.patches if isinstance(patch, Rectangle)]
        assert len(cells) == sum(map(len, view.texts[b]))
        for cell in cells:
            push = view.push[b, -round(cell.get_y()), round(cell.get_x())].item()
            red, _, blue = cell.get_facecolor()[:3]
            assert (to_hex(cell.get_facecolor()) == "#ffffff") == (push == 0) and (blue > red) == (push > 0)
        said = [text.get_text() for text in ax.texts]
        masked = sum(view.A[b, i].item() != 0 and not view.keep[b, i] for i in range(8))
        assert sum("masked" in text for text in said) == masked
        assert sum("no signal" in text for text in said) == (8 if (b, name) == (1, "dr_grpo") else 0)
        assert sum("right by luck" in text for text in said) == (b == 0)
        assert sum("demonstration" in text for text in said) == (name == "dagrpo")


def test_it_is_drawn_by_one_command(tmp_path, capsys):
    first_figure.main(["--out", str(tmp_path)])
    assert (tmp_path / "first.png").stat().st_size > 20_000 and "first.png" in capsys.readouterr().out
