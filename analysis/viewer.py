"""One group on one page: the push on every response and on every token, and why a response is masked.

Writes a single HTML file from RUN/rollouts.jsonl that needs no server and no network. It shows one group at a time,
with a choice of recipe and of delta. pushes.py computes, with dagrpo.py, what does not depend on delta; the page does
the rest, because the reader chooses delta there (viewer.html holds its text, style and script):

    here   A                  Eq. 1, 12    of each recipe from R; of the run's own recipe as the run recorded it
           unmasked push      Eq. 4, 13    -dloss/dlogp of each token by dagrpo.policy_loss, as if nothing were masked
           common prefixes    Eq. 6        how many tokens two responses share from the start
    page   masks, reasons     Eq. 8, 9     as dagrpo.rectification_mask and harness.report.reasons, in fp32 like them
           net pushes         Eq. 6        the sum over the responses that share a token after the same history

The page also says what it assumes. The ratio is 1 (the first update on a batch), so nothing is clipped. The group is an
update of its own (a run divides by its other groups too, and pools tokens over them for dapo and cispo). Entropies are
not in rollouts.jsonl, so GTPO's penalty and filter, LUFFY's bonus and top_entropy's choice of tokens are left out. A
recipe without anchors takes a recorded demonstration as if it had been sampled.

    python -m analysis.viewer runs/demo/dagrpo                    writes runs/demo/dagrpo/viewer.html
    python -m analysis.viewer runs/demo/dagrpo --steps 1,50-60    only these steps
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch
from transformers import PreTrainedTokenizerBase

from analysis.families import FAMILIES, cite
from analysis.pushes import advantages, common_prefixes, pieces, runs_of, unmasked_pushes
from analysis.run_folders import read_config, read_rollouts
from dagrpo import METHODS, Recipe
from harness.console import Parser, fail, progress
from policy import load_tokenizer

TEMPLATE = Path(__file__).with_suffix(".html")
PER_ROW = ("responses", "tokens", "logp", "R", "S", "A", "keep", "is_anchor")  # of a record: lists of length G
# ---------------------------------------------------------------------------------------- reading a run


@dataclass(frozen=True)
class ViewedRun:
    """The settings in config.json that the page needs; the recipe includes the run's flags."""

    method: str
    recipe: Recipe
    delta: float
    max_new_tokens: int


def read_recipe(folder: Path) -> ViewedRun:
    config = read_config(folder)
    try:
        known, usual = get_type_hints(Recipe), METHODS[config["method"]]
        flags = {name: value for name, value in config["recipe"].items() if name in known}
        low, high = map(float, flags["clip"])
        recipe = replace(usual, **flags | {"clip": (low, high)})
        run = ViewedRun(config["method"], recipe, config["delta"], config["max_new_tokens"])
        for name, kind in known.items():
            value, choices = getattr(recipe, name), get_args(kind) if get_origin(kind) is Literal else ()
            if type(value) is not type(getattr(usual, name)) or (choices and value not in choices):
                raise ValueError
        if type(run.max_new_tokens) is not int or not (is_number(run.delta) and run.delta >= 0 < run.max_new_tokens):
            raise ValueError
        return run
    except (ValueError, KeyError, TypeError, AttributeError):
        fail(f"{folder / 'config.json'} lacks method, recipe, delta or max_new_tokens: give a run of train.py")


@dataclass(frozen=True)
class Index:
    """Where the groups are in rollouts.jsonl: the file of a long run need not fit in memory."""

    places: list[tuple[int, int]]  # (step, byte offset) of each group, in the file's order
    malformed: list[int]  # numbers of the lines that hold no valid group
    half_written: bool  # the last line has no end: train.py is writing it, or was killed


def index_rollouts(folder: Path) -> Index:
    path, places, malformed, end = folder / "rollouts.jsonl", [], [], 0
    try:
        for number, line in enumerate(read_rollouts(folder), start=1):
            begin, end, record = line
            if is_group(record):
                places.append((record["step"], begin))
            else:
                malformed.append(number)
        half_written = path.stat().st_size > end
    except OSError as error:
        fail(f"{path} cannot be read ({error.strerror}): give a run folder of train.py")
    if not places:
        fail(f"{path} has no group in it" + (f": {len(malformed)} malformed lines" if malformed else " yet"))
    return Index(places, malformed, half_written)


def is_group(record: Any) -> bool:
    """Could harness.report.records have made it?"""
    try:
        G = len(record["R"])
        numbers = [x for name in ("R", "A") for x in record[name]] + [s for s in record["S"] if s is not None]
        rows = zip(record["tokens"], record["logp"], strict=True)
        texts = [*record["responses"], *(record[name] for name in ("level", "question", "answer", "demonstration"))]
        return (
            G >= 2
            and all(isinstance(record[name], list) and len(record[name]) == G for name in PER_ROW)
            and all(type(record[name]) is int and is_number(record[name]) for name in ("step", "group"))
            and all(isinstance(text, str) for text in texts)
            and all(type(x) is bool for name in ("keep", "is_anchor") for x in record[name])
            and all(map(is_number, numbers))
            and all(len(ids) == len(logp) > 0 and all(type(i) is int and i >= 0 for i in ids) for ids, logp in rows)
            and all(x is None or is_number(x) for logp in record["logp"] for x in logp)
            and is_change(record.get("change"), record["tokens"])
        )
    except (ValueError, KeyError, TypeError):
        return False


def is_change(change: Any, tokens: list[list[int]]) -> bool:
    """Is it None, or a number or None for each token (train.py --record-changes)?"""
    if change is None:
        return True
    rows = zip(change, tokens, strict=True)
    return all(len(row) == len(ids) and all(x is None or is_number(x) for x in row) for row, ids in rows)


def is_number(x: Any) -> bool:
    """Is it a finite number that fp32 holds? A bool, a text, and an integer of 400 digits are not."""
    return type(x) in (int, float) and abs(x) < 2**31


def parse_steps(text: str) -> list[range]:
    """
    >>> parse_steps("1,50-60")
    [range(1, 2), range(50, 61)]
    """
    if not re.fullmatch(r"\d{1,9}(-\d{1,9})?(,\d{1,9}(-\d{1,9})?)*", text):
        fail(f"--steps {text}: give steps and ranges of steps, as in 1,50-60")
    ends = [[int(end) for end in part.split("-")] for part in text.split(",")]
    return [range(end[0], end[-1] + 1) for end in ends]


def choose(places: list[tuple[int, int]], steps: list[range] | None, limit: int) -> list[tuple[int, int]]:
    """At most `limit` groups: all of the steps that are asked for, or whole steps spread evenly from first to last."""
    wanted = [place for place in places if steps is None or any(place[0] in part for part in steps)]
    there = sorted({step for step, _ in wanted})
    if len(wanted) > limit:
        fit = max(1, limit * len(there) // len(wanted))  # so many steps, if all have equally many groups
        there = [there[round(i * (len(there) - 1) / max(1, fit - 1))] for i in range(fit)]
    return [place for place in wanted if place[0] in set(there)][:limit]


def ranges(steps: list[int]) -> str:
    """
    >>> ranges([1, 2, 3, 7])
    '1-3, 7'
    """
    runs = [[s for _, s in run] for _, run in groupby(enumerate(steps), key=lambda pair: pair[1] - pair[0])]
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def notices(index: Index, chosen: list[tuple[int, int]]) -> list[str]:
    """What is not on the page, and how to get it: printed, and shown on top of the page."""
    notes = []
    if len(chosen) < len(index.places):
        here, there = ({step for step, _ in places} for places in (chosen, index.places))
        short = sorted({step for step, _ in set(index.places) - set(chosen)} & here)
        notes.append(
            f"{len(chosen)} of the {len(index.places)} groups in rollouts.jsonl are on this page, of {len(here)} of "
            f"{len(there)} steps: {ranges(sorted(here))}. For others: --steps 1,50-60, or a higher --limit."
            + (f" Not all groups of step {ranges(short)} are here." if short else "")
        )
    if bad := index.malformed:
        lines = ", ".join(map(str, bad[:5])) + (", ..." if len(bad) > 5 else "")
        notes.append(f"{len(bad)} malformed line(s) of rollouts.jsonl left out: line {lines}.")
    if index.half_written:
        notes.append("The last line of rollouts.jsonl is half written (the run goes on, or was killed) and left out.")
    return notes


def find_tokenizer(folder: Path, name: str | None) -> PreTrainedTokenizerBase:
    if name is None and not (folder / "checkpoint" / "model" / "tokenizer_config.json").exists():
        fail(f"{folder} has no tokenizer (checkpoint/model is missing): give --tokenizer, a hub id or folder")
    return load_tokenizer(name or str(folder))


# ---------------------------------------------------------------------------------------- the numbers


def page_group(
    record: dict[str, Any], run: ViewedRun, recipes: dict[str, Recipe], texts: list[list[int]]
) -> dict[str, Any]:
    """A group as the page reads it; `texts`: for each response, the indices of its tokens' strings."""
    by_recipe = []
    for name, recipe in recipes.items():
        # the run's own A need not follow from R alone: there may be an over-long penalty
        A = torch.tensor(record["A"], dtype=torch.float32) if name == run.method else advantages(recipe, record)  # (G,)
        push = unmasked_pushes(recipe, record, A, run.max_new_tokens)
        by_recipe.append({"A": [float(f"{a:.6g}") for a in A.tolist()], "push": [runs_of(p.tolist()) for p in push]})
    change = record.get("change")  # thousandths of a nat
    moved = [[None if x is None else float(f"{1000 * x:.3g}") for x in row] for row in change] if change else None
    kept = ("step", "group", "level", "question", "answer", "demonstration", "R", "S", "keep", "is_anchor")
    group = {name: record[name] for name in kept} | {"change": moved, "tokens": texts, "recipes": by_recipe}
    return group | {"prefixes": common_prefixes(record["tokens"])}


# ---------------------------------------------------------------------------------------- the page


def build(
    folder: Path, run: ViewedRun, chosen: list[tuple[int, int]], notes: list[str], tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    """All the data of the page."""
    strings, groups = {}, []
    recipes = METHODS | {run.method: run.recipe}
    with (folder / "rollouts.jsonl").open("rb") as file:
        for _, offset in progress(chosen, desc="groups", unit="group", disable=None):
            file.seek(offset)
            record = json.loads(file.readline())
            if max(map(max, record["tokens"])) >= len(tokenizer):
                fail(f"step {record['step']} has tokens that the tokenizer lacks: it is not the run's; see --tokenizer")
            texts = [
                [strings.setdefault(text, len(strings)) for text in pieces(tokenizer, ids)] for ids in record["tokens"]
            ]
            groups.append(page_group(record, run, recipes, texts))
    families = {name: title for title, members in FAMILIES.items() for name in members}
    kept = ("rectify", "soft_mask", "anchors")
    about = [
        {"name": name, "family": families[name], "paper": cite(recipe)} | {part: getattr(recipe, part) for part in kept}
        for name, recipe in recipes.items()
    ]
    return {
        "run": str(folder),
        "method": run.method,
        "delta": run.delta,
        "notices": notes,
        "recipes": about,
        "strings": list(strings),
        "groups": groups,
    }


def render(data: dict[str, Any], template: str) -> str:
    """The template with the data in it, as data: no `<` is left that could end the block or begin a tag.

    The policy names the page's own style and script by their hashes; nothing else may run or be fetched.
    """

    def digest(tag: str) -> str:
        inside = re.search(rf"<{tag}>(.*?)</{tag}>", template, re.DOTALL).group(1)
        return f"'sha256-{base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()}'"

    csp = f"default-src 'none'; style-src {digest('style')}; script-src {digest('script')}; base-uri 'none'"
    text = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", r"\u003c")
    before, _, after = template.replace("{{csp}}", csp).partition("{{data}}")
    return before + text + after


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="python -m analysis.viewer", description=__doc__)
    parser.add_argument("run", metavar="RUN", help="a run folder of train.py")
    parser.add_argument("--out", metavar="FILE.html", help="where to write [RUN/viewer.html]")
    parser.add_argument("--steps", metavar="1,50-60", help="only these steps")
    parser.add_argument("--limit", type=int, default=500, metavar="N", help="show at most N groups")
    parser.add_argument("--note", metavar="TEXT", help="shown at the top of the page, instead of what is left out")
    parser.add_argument("--tokenizer", metavar="MODEL", help="hub id or folder, if the run's checkpoint is gone")
    args = parser.parse_args(argv)
    if args.limit < 1:
        fail(f"--limit must be at least 1, not {args.limit}")
    folder = Path(args.run)
    out = Path(args.out) if args.out else folder / "viewer.html"
    steps = parse_steps(args.steps) if args.steps else None
    run, index = read_recipe(folder), index_rollouts(folder)
    chosen = choose(index.places, steps, args.limit)
    if not chosen:
        fail(f"--steps {args.steps}: none of them is in rollouts.jsonl, which has {ranges(sorted(dict(index.places)))}")
    notes = [args.note] if args.note else notices(index, chosen)
    data = build(folder, run, chosen, notes, find_tokenizer(folder, args.tokenizer))
    try:
        out.write_text(render(data, TEMPLATE.read_text(encoding="utf-8")), encoding="utf-8")
    except OSError as error:
        fail(f"--out {out}: cannot be written ({error.strerror}); choose another file")
    print("\n".join([*notes, f"written: {out}, {len(chosen)} groups, {out.stat().st_size / 1e6:.1f} MB"]))


if __name__ == "__main__":
    main()
