"""Small CSVs, from which figures are redrawn without the runs; and the command line that figures share.

A frozen dataclass describes a row of such a file: its fields are the columns. Numbers are written with six digits.
"""

from __future__ import annotations

import shlex
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import pandas as pd

from analysis.run_folders import SavedRun, read_runs
from harness.console import Parser, fail, first_line

T = TypeVar("T")
WATCH = 10  # seconds between two drawings of an unfinished run


def write_rows(rows: pd.DataFrame | list[Any], path: Path) -> None:
    """A table, or dataclasses of one kind, as a CSV."""
    pd.DataFrame(rows).to_csv(path, index=False, float_format="%.6g", lineterminator="\n")


def check_writable(flag: str, path: Path) -> None:
    """Ends the program with one line if the file cannot be written: before the work rather than after it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("a", encoding="utf-8").close()
    except OSError as error:
        fail(f"{flag} {path}: cannot be written ({first_line(error)}); choose another file")


def read_rows(kind: type, path: Path) -> pd.DataFrame:
    """Reads a CSV of write_rows with the columns of this dataclass; an empty cell is NaN, or "" in a column of text.

    Ends the program with one line if it is something else.
    """
    types = {name: hint if hint in (bool, int, str) else float for name, hint in get_type_hints(kind).items()}
    empty = {name: [""] for name, made in types.items() if made is not str}
    try:
        rows = pd.read_csv(path, usecols=list(types), dtype=types, keep_default_na=False, na_values=empty)
    except OSError as error:
        fail(f"{path}: cannot be read ({error.strerror})")
    except ValueError:  # pandas' own errors are ValueErrors
        fail(f"{path}: not a CSV that this program has written, or it is damaged")
    return fail(f"{path}: there is nothing to draw in it") if rows.empty else rows


def draw_figure(
    parser: Parser,  # of `python -m analysis.NAME`, with the figure's own flags
    argv: list[str] | None,
    check: Callable[[Namespace], T],  # makes of the flags what `measure` takes, before anything is written
    measure: Callable[[T, Path], str],  # writes this CSV, and returns the caption
    redraw: Callable[[Path, Path], None],  # draws the CSV's figures into this folder
    default_out: str = "",  # "": the run folder
    instead: str = "",  # the argument that --from-csv replaces; "": it has a default
) -> None:
    """The command line of a figure. Writes NAME.csv, NAME.txt (the caption) and NAME.png; with --from-csv the PNG."""
    argv = sys.argv[1:] if argv is None else argv
    name = parser.prog.rpartition(".")[2]
    shown = default_out or "the run folder"
    parser.add_argument("--out", metavar="DIR", help=f"where to write [{shown}; with --from-csv: the CSV's folder]")
    parser.add_argument("--from-csv", metavar="FILE", help=f"redraw this {name}.csv, and measure nothing")
    args = parser.parse_args(argv)
    if instead and bool(getattr(args, instead.lstrip("-"))) == bool(args.from_csv):
        fail(f"give one of the two: {instead}, or --from-csv FILE (--help lists all flags)")
    source = Path(args.from_csv) if args.from_csv else None
    wanted = None if source else check(args)
    out = Path(args.out or (source.parent if source else default_out or args.run))
    try:
        out.mkdir(parents=True, exist_ok=True)
        if source is None:
            caption = measure(wanted, out / f"{name}.csv")
            flags = [Path(word).name if Path(word).is_absolute() else word for word in argv]
            again = ["--from-csv", str(out / f"{name}.csv")]
            made, again = (shlex.join([*parser.prog.split(), *words]) for words in (flags, again))
            caption += f"\n\ndrawn by:    {made}\ndrawn again: {again}\n"
            (out / f"{name}.txt").write_text(caption, encoding="utf-8")
        redraw(source or out / f"{name}.csv", out)
    except OSError as error:
        fail(f"--out {out}: cannot be written ({first_line(error)}); choose another folder")
    print(f"written: {out / name}.png" + ("" if source else f", {name}.csv, {name}.txt"))


def draw_runs(
    name: str,
    about: str,
    argv: list[str] | None,
    measure: Callable[[list[SavedRun], int, Path], str],  # takes runs, --smooth and the CSV; returns the caption
    redraw: Callable[[Path, Path], None],
    default_out: str,
) -> None:
    """The command line of a figure over run folders; with --watch it is drawn again and again, until Ctrl-C."""

    def check(args: Namespace) -> tuple[list[SavedRun], int]:
        if args.smooth < 1:
            fail(f"--smooth must be at least 1, not {args.smooth} (1: no smoothing)")
        runs = read_runs(map(Path, args.runs))
        going_on.append(args.watch and any(run.metrics.index.max() < run.config["steps"] for run in runs))
        return runs, args.smooth

    going_on = [True]
    while going_on[-1]:
        parser = Parser(prog=f"python -m analysis.{name}", description=about)
        parser.add_argument("runs", nargs="*", metavar="RUN", help="run folders of train.py")
        parser.add_argument("--smooth", type=int, default=10, metavar="N", help="steps of the running mean; 1: none")
        parser.add_argument("--watch", action="store_true", help="draw again every 10 s until the runs have ended")
        going_on.append(False)  # --from-csv: once
        draw_figure(parser, argv, check, lambda asked, path: measure(*asked, path), redraw, default_out, instead="runs")
        if going_on[-1]:
            try:
                time.sleep(WATCH)
            except KeyboardInterrupt:
                return
