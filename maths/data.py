r"""Problems from a data set, as a list of tasks.Problem: GSM8K, MATH, OpenR1-Math-46k-8192, or any with named columns.

The paper trains on OpenR1-Math-46k-8192 (Section 6): NuminaMath problems with verified responses of DeepSeek-R1, which
are both the judge's reference and the anchors. `LAYOUTS` says which column holds what. A layout is recognised by its
columns; for other data, flags name the columns. If the answer column holds a whole solution, the answer is what the
solution marks: the last \boxed{}, or what follows ####. A source is a hub id, or a local .jsonl, .json or .parquet file
(rows.py reads them).

Data come from outside. A row that cannot be used (no question, an answer that the verifier cannot read, broken
Unicode ...) is skipped and counted, and the first of its kind is quoted. Nothing is guessed.

Where the paper is silent: `INSTRUCTION` is appended to each question, so that a final answer can be found.

    python -m maths.data FILE_OR_HUB_ID     prints what was recognised, what was skipped, and a few problems
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from typing import Any

from harness.console import Parser, fail
from maths.cells import ALL, Unusable, clean, level_of, text_of
from maths.final import final_answer
from maths.rows import quote, read_rows
from maths.verifier import readable
from tasks import Problem

INSTRUCTION = r"Please reason step by step, and put your final answer within \boxed{}."
CALCULATOR = re.compile(r"<<[^<>\n]*>>")  # GSM8K's marks: <<48/2=24>>
LEVEL_COLUMNS = ("level", "subject", "type", "category")
MOST_LEVELS = 30  # a column with more values does not group anything
LEFT_UNUSED = ("body", "context", "passage")  # columns without which a question is seldom complete
LONGEST_ANSWER = 1000  # characters; a longer text is not a final answer


@dataclass(frozen=True)
class Layout:
    """Which column holds what. A dot leads into a column (`reward_model.ground_truth`); None: there is no such column.

    A question may be in several columns: their names, with commas between them.
    In a column of chat messages, the last one of the user (question) or of the assistant (demonstration) counts.
    """

    name: str
    question: str
    answer: str
    demo: str | None = None
    level: str | None = None


LAYOUTS = (
    Layout("OpenR1-Math (chat messages)", "prompt", "reward_model.ground_truth", demo="target"),
    Layout("MATH", "problem", "answer", demo="solution"),
    Layout("GSM8K", "question", "answer", demo="answer"),  # "<solution>\n#### <answer>" in one column
    Layout("MATH, NuminaMath (answer in the solution)", "problem", "solution", demo="solution"),
    Layout("SVAMP", "Body,Question", "Answer"),
    Layout("ASDiv", "body,question", "answer"),
)


@dataclass
class Report:
    """What became of the rows of a source."""

    layout: Layout
    unused: str = ""  # a column that may belong to the question
    rows: int = 0
    skipped: Counter[str] = field(default_factory=Counter)  # reason -> rows
    first: dict[str, str] = field(default_factory=dict)  # reason -> the first such row, shortened and safe to print

    def __str__(self) -> str:
        lines = [f"{self.rows - self.skipped.total():,} of {self.rows:,} rows used; layout {self.layout.name}"]
        if self.unused:
            both = f"{self.unused},{self.layout.question}"
            lines.append(
                f"column {self.unused} is not used: if it belongs to the question, give --question-column {both}"
            )
        lines += [f"skipped {n:,}: {reason}, first {self.first[reason]}" for reason, n in self.skipped.most_common()]
        return "\n".join(lines)


# ---------------------------------------------------------------------------------------- from rows to problems


def load_problems(
    source: str,
    question: str | None = None,
    answer: str | None = None,
    demo: str | None = None,
    level: str | None = None,
    split: str = "train",
    limit: int | None = None,
) -> tuple[list[Problem], Report]:
    """All problems of a source (its first `limit` usable ones), and what was skipped and why.

    `source` is a hub id (`owner/name`, or `owner/name:configuration`), read in its split `split`, or a local file.
    `question`, `answer`, `demo` and `level` name columns if the layout is not one of LAYOUTS, or to override it.
    Problems without a demonstration have demo "". Ends the program with one line if the source cannot be read, has an
    unknown layout, or has no usable row.
    """
    given = {"question": question, "answer": answer, "demo": demo, "level": level}
    return to_problems(read_rows(source, split), source, given, limit)


def to_problems(
    rows: Iterable[Any], source: str, given: dict[str, str | None] | None = None, limit: int | None = None
) -> tuple[list[Problem], Report]:
    """Like load_problems, but from `rows`, which messages call `source`; `given` names columns by their part."""
    rows = iter(rows)
    ahead = list(islice(rows, 1000))  # the first may be a broken one: look at more to learn the columns
    if not ahead:
        fail(f"{source} holds no rows")
    layout = find_layout(ahead, source, given or {})
    columns = dict.fromkeys(name for row in ahead if isinstance(row, dict) for name in row)
    used = [layout.answer, layout.demo, *split_columns(layout.question, columns)]
    report = Report(layout, next((n for n in columns if n.lower() in LEFT_UNUSED and n not in used), ""))
    problems: list[Problem] = []
    for row in chain(ahead, rows):
        if limit is not None and len(problems) == limit:
            break
        report.rows += 1
        try:
            problems.append(to_problem(row, report.layout))
        except Unusable as why:
            report.skipped[str(why)] += 1
            shown = "" if why.value is None else f": {quote(why.value)}"
            report.first.setdefault(str(why), f"row {report.rows}{shown}")
    if not problems:
        reason = report.skipped.most_common(1)[0][0]
        fail(f"{source}: none of its {report.rows} rows can be used; mostly: {reason}, first {report.first[reason]}")
    if len({problem.level for problem in problems}) > MOST_LEVELS:
        problems = [replace(problem, level=ALL) for problem in problems]
    return problems, report


def find_layout(rows: list[Any], source: str, given: dict[str, str | None]) -> Layout:
    """The one of LAYOUTS whose question and answer columns most `rows` have, overridden by the columns in `given`."""
    found = [set(names(row)) for row in rows if isinstance(row, dict)]
    columns = dict.fromkeys(name for row in rows if isinstance(row, dict) for name in names(row))  # in their order
    given = {part: name for part, name in given.items() if name}
    there = f"columns found: {', '.join(map(quote, islice(columns, 40))) or 'none'}"
    for part, name in given.items():
        for column in split_columns(name, columns) if part == "question" else [name]:
            if column not in columns:
                fail(f"{source}: --{part}-column {column}: there is no such column; {there}")
    parts = {layout: {*split_columns(layout.question, columns), layout.answer} for layout in LAYOUTS}
    fits = {layout: sum(parts[layout] <= row for row in found) for layout in LAYOUTS}
    layout = max(fits, key=lambda layout: (fits[layout], len(parts[layout])))  # a tie: the one with a body
    if {"question", "answer"} <= given.keys():  # fully overridden: nothing is taken from it
        layout = Layout("by flags", "", "")
    elif not fits[layout]:
        fail(
            f"{source}: the layout is unknown; {there}; say which is which with --question-column and --answer-column"
            " (and --demo-column, --level-column), nested ones with dots as in reward_model.ground_truth"
        )
    level = next((name for name in LEVEL_COLUMNS if name in columns), None)
    return replace(layout, **{"level": level, **given})


def names(row: dict[str, Any], prefix: str = "", depth: int = 3) -> Iterator[str]:
    """The columns of a row, nested ones with dots.

    >>> list(names({"prompt": "1+1", "reward_model": {"style": "rule", "ground_truth": "2"}}))
    ['prompt', 'reward_model', 'reward_model.style', 'reward_model.ground_truth']
    """
    for name, value in row.items():
        yield f"{prefix}{name}"
        if isinstance(value, dict) and depth > 1:
            yield from names(value, f"{prefix}{name}.", depth - 1)


def split_columns(name: str, columns: Iterable[str]) -> list[str]:
    """The columns of a question, in order. A name with a comma in it may also be that of one column.

    >>> split_columns("Body,Question", ["Body", "Question"]), split_columns("Question, asked", ["Question, asked"])
    (['Body', 'Question'], ['Question, asked'])
    """
    return [name] if name in columns else [part.strip() for part in name.split(",")]


def pick(row: dict[str, Any], column: str | None) -> Any:
    """The value of a column, with dots for nested ones; None if it is missing."""
    if column is None or column in row:
        return row.get(column)
    value: Any = row
    for part in column.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def to_problem(row: Any, layout: Layout) -> Problem:
    """One row as a Problem. Raises Unusable.

    >>> to_problem({"question": "2+3?", "answer": "2+3=<<2+3=5>>5\\n#### 5"}, LAYOUTS[2])
    Problem(question='2+3?', answer='5', demo='2+3=5\\n#### 5', level='all')
    """
    if not isinstance(row, dict):
        raise Unusable("not a row with named columns", row)
    parts = [pick(row, column) for column in split_columns(layout.question, row)]
    question = " ".join(clean(text_of(part, "user", "question"), "question").strip() for part in parts)
    gold = clean(text_of(pick(row, layout.answer), "assistant", "answer"), "answer")
    value = pick(row, layout.demo)
    if any(mark in gold for mark in ("####", "\\boxed", "\\fbox")):
        gold = clean(final_answer(gold, ended=False) or "", "answer")
    elif layout.demo == layout.answer:  # question and bare answer: there is no demonstration
        value = None
    demo = "" if value is None else clean(text_of(value, "assistant", "demonstration"), "demonstration", empty=True)
    if "####" in demo:
        demo = CALCULATOR.sub("", demo)
    if len(gold) > LONGEST_ANSWER:
        raise Unusable(f"an answer of more than {LONGEST_ANSWER:,} characters", gold)
    if not readable(gold):
        raise Unusable("an answer that the verifier cannot read", gold)
    return Problem(question, gold.strip(), demo, level_of(pick(row, layout.level)))


def instruct(problems: list[Problem], instruction: str) -> list[Problem]:
    """The problems with the instruction under each question; "" leaves them as they are."""
    return [replace(p, question=f"{p.question}\n{instruction}") for p in problems] if instruction else problems


# ---------------------------------------------------------------------------------------- the command line


def main(argv: list[str] | None = None) -> None:
    parser = Parser(
        prog="python -m maths.data", description=__doc__, usage="python -m maths.data FILE_OR_HUB_ID [flags]"
    )
    parser.add_argument("source", metavar="FILE_OR_HUB_ID", help="a local file, owner/name or owner/name:configuration")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N problems")
    parser.add_argument("--show", type=int, default=3, metavar="N", help="problems to print")
    parser.add_argument("--data-split", default="train", metavar="S", help="the split of a hub data set")
    parts = ("question", "answer", "demo", "level")
    for part in parts:
        parser.add_argument(f"--{part}-column", metavar="C", help="needed for an unknown layout; dots for nested")
    args = parser.parse_args(argv)
    if args.limit is not None and args.limit < 1:
        fail(f"--limit must be at least 1, not {args.limit}")
    columns = {part: getattr(args, f"{part}_column") for part in parts}
    problems, report = load_problems(args.source, **columns, split=args.data_split, limit=args.limit)
    print(report)
    print(", ".join(f"{part} from {getattr(report.layout, part)}" for part in parts))
    print(f"{sum(bool(problem.demo) for problem in problems):,} have a demonstration")
    print("levels:", ", ".join(f"{quote(name)} ({n:,})" for name, n in Counter(p.level for p in problems).items()))
    for problem in problems[: max(args.show, 0)]:
        print(f"\nquestion       {quote(problem.question, 400)}\nanswer         {quote(problem.answer)}")
        print(f"demonstration  {quote(problem.demo, 400) or '(none)'}")


if __name__ == "__main__":
    main()
