"""What figures are drawn from: small CSVs, so that a figure is drawn again without the runs; and their command lines.

A row of such a file is a frozen dataclass. `write_rows` writes six digits, `read_rows` gives the dataclasses back.
`main_of_runs` is the command line of a figure over run folders: RUN ... --out --smooth --from-csv.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any, get_type_hints

from matplotlib.figure import Figure

from analysis.table import Run, read_runs
from harness.console import Parser, fail


def write_rows(rows: list[Any], path: Path) -> None:
    """Dataclasses of one kind as a CSV."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(field.name for field in fields(rows[0]))
        for row in rows:
            writer.writerow(f"{x:.6g}" if isinstance(x, float) else x for x in astuple(row))


def read_rows(kind: type, path: Path) -> list[Any]:
    """What write_rows has written, as dataclasses of this kind; an empty cell is None. Ends with one line otherwise."""
    hints = get_type_hints(kind)
    makes = {name: {bool: "True".__eq__, int: int, str: str}.get(hint, float) for name, hint in hints.items()}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            found = [
                kind(**{name: make(row[name]) if row[name] or make is str else None for name, make in makes.items()})
                for row in csv.DictReader(file)
            ]
    except OSError as error:
        fail(f"{path}: cannot be read ({error.strerror})")
    except (KeyError, ValueError, TypeError, csv.Error):
        fail(f"{path}: not a CSV that this program has written, or it is damaged")
    return found or fail(f"{path}: there is nothing to draw in it")


def main_of_runs(
    name: str,
    about: str,
    write: Callable[[list[Run], int, Path, list[str]], None],  # runs, --smooth, --out, argv: NAME.csv and NAME.txt
    draw: Callable[[Path], Figure],  # from NAME.csv
    argv: list[str] | None,
    default_out: str,
    dpi: int = 120,
) -> None:
    """The command line of `python -m analysis.NAME`, which writes NAME.png, NAME.csv and NAME.txt into --out."""
    argv = sys.argv[1:] if argv is None else argv
    parser = Parser(prog=f"python -m analysis.{name}", description=about)
    parser.add_argument("runs", nargs="*", metavar="RUN", help="run folders of train.py")
    parser.add_argument("--out", metavar="DIR", help=f"where to write [{default_out}; of --from-csv: beside the CSV]")
    parser.add_argument("--smooth", type=int, default=10, metavar="N", help="steps of the running mean; 1: none")
    parser.add_argument("--from-csv", metavar="FILE", help=f"draw this {name}.csv, without the runs")
    args = parser.parse_args(argv)
    if bool(args.runs) == bool(args.from_csv):
        fail("give the run folders of train.py, or --from-csv FILE, one of the two")
    if args.smooth < 1:
        fail(f"--smooth must be at least 1, not {args.smooth} (1: no smoothing)")
    source = Path(args.from_csv) if args.from_csv else None
    out = Path(args.out or (source.parent if source else default_out))
    runs = [] if source else read_runs(map(Path, args.runs))
    try:
        out.mkdir(parents=True, exist_ok=True)
        if source is None:
            write(runs, args.smooth, out, argv)
        draw(source or out / f"{name}.csv").savefig(out / f"{name}.png", dpi=dpi)
    except OSError as error:
        fail(f"--out {out}: cannot be written ({error.strerror}); choose another folder")
    print(f"written: {out / f'{name}.png'}" + ("" if source else f", {name}.csv, {name}.txt"))
