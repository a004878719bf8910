"""The list of benchmarks: the built-in ones, and the paper's nine: where they come from and how they are asked.

Section 6 of the paper: temperature 0.6, top-p 1, at most 8,192 tokens; avg@32 on AIME 24, AIME 25 and AMC, which have
few problems, pass@1 (one sampled response) on the others. Six benchmarks are mathematics as in training, three are
multiple choice on other subjects. The paper does not say which copies it used; `PAPER` has the usual ones of the hub.

In multiple choice, the question lists its options with letters, and the answer is a letter. GPQA's file has the right
option in a column of its own, so a hash decides the order of the options, the same on every machine.

    python -m maths.benchmarks        the list
    python -m maths.benchmarks DIR    and what is read from their files in DIR
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import tasks
from harness.console import Parser, fail
from maths.cells import ALL
from maths.data import INSTRUCTION, Report, to_problems
from maths.rows import READERS, quote, read_rows
from tasks import Problem

# Benchmarks of the built-in task: split, which levels of its world, problems per level (level 1 has only about 60
# questions in validation)
BUILT_IN = {
    "test": ("test", "levels", 100),
    "ood": ("test", "ood", 100),
    "validation": ("validation", "levels", 50),
}
CHOICE_INSTRUCTION = f"{INSTRUCTION} The final answer is the letter of the right choice."
TEMPERATURE, MAX_NEW_TOKENS = 0.6, 8192  # the paper's, for the nine

Options = tuple[list[str], int]  # the options of a question in their order, and which of them is right


def arc_options(row: dict[str, Any]) -> Options:
    """`choices` holds texts and labels (A, B ... or 1, 2 ...); `answerKey` is a label."""
    return row["choices"]["text"], row["choices"]["label"].index(row["answerKey"])


def gpqa_options(row: dict[str, Any]) -> Options:
    """The options, sorted by a hash of question and option: a shuffle that needs no random generator."""
    right = row["Correct Answer"].strip()
    options = [right, *(row[f"Incorrect Answer {i}"].strip() for i in (1, 2, 3))]
    options.sort(key=lambda option: hashlib.sha256(f"{row['Question']}\n{option}".encode()).digest())
    return options, options.index(right)


def mmlu_pro_options(row: dict[str, Any]) -> Options:
    return row["options"], ascii_uppercase.index(row["answer"])


@dataclass(frozen=True)
class Benchmark:
    """A benchmark of the paper: its title in Table 1, where it is, its columns there, and k sampled responses."""

    title: str
    hub: str = ""  # owner/name:configuration; "": only as a local file
    split: str = "test"
    question: str = "problem"
    answer: str = "answer"
    k: int = 1
    options: Callable[[dict[str, Any]], Options] | None = None  # multiple choice
    ood: bool = False

    @property
    def instruction(self) -> str:
        """What is appended to its questions, unless a flag says otherwise."""
        return CHOICE_INSTRUCTION if self.options else INSTRUCTION


PAPER = {
    "aime24": Benchmark("AIME 24", "HuggingFaceH4/aime_2024", split="train", k=32),
    "aime25": Benchmark("AIME 25", "math-ai/aime25", k=32),
    "amc": Benchmark("AMC", "AI-MO/aimo-validation-amc", split="train", k=32),  # answers are floats: 142.0
    "math500": Benchmark("MATH-500", "HuggingFaceH4/MATH-500"),
    "minerva": Benchmark("Minerva", "math-ai/minervamath", question="question"),
    "olympiadbench": Benchmark("Olympiad", "math-ai/olympiadbench", question="question", answer="final_answer"),
    "arc_c": Benchmark("ARC-c", "allenai/ai2_arc:ARC-Challenge", question="question", options=arc_options, ood=True),
    "gpqa_diamond": Benchmark(  # gated: needs a login on the hub, and its terms accepted
        "GPQA-D", "Idavidrein/gpqa:gpqa_diamond", "train", question="Question", options=gpqa_options, ood=True
    ),
    "mmlu_pro": Benchmark("MMLU-Pro", "TIGER-Lab/MMLU-Pro", question="question", options=mmlu_pro_options, ood=True),
}


def get(name: str) -> Benchmark:
    """One of PAPER; any other name is a file of --benchmark-dir, with one response per problem."""
    return PAPER.get(name, Benchmark(name))


def built_in(
    name: str,
    per_level: int | None = None,
    limit: int | None = None,
    world: str = "plain",
    levels: Collection[str] | None = None,
) -> list[Problem]:
    """The problems of a built-in benchmark, level by level; at most `limit` in all, taken evenly from the levels.

    `levels` selects levels of training; those of "ood" are all asked. Raises ValueError if a level has too few.
    """
    split, which, usual = BUILT_IN[name]
    all_levels = getattr(tasks.WORLDS[world], which)
    levels = {key: form for key, form in all_levels.items() if not levels or which == "ood" or key in levels}
    problems = tasks.arithmetic(split, per_level or usual, levels=levels)
    by_level = [[problem for problem in problems if problem.level == level] for level in levels]
    turns = [problem for turn in zip(*by_level, strict=True) for problem in turn]  # one of each level, then the next
    chosen = set(turns[:limit])
    return [problem for problem in problems if problem in chosen]


def load(name: str, directory: Path | None = None, limit: int | None = None) -> tuple[list[Problem], Report]:
    """The problems of a benchmark that is not built in, and what was skipped.

    They are read from NAME.jsonl, NAME.json or NAME.parquet in `directory`, or without it from the hub. `limit` takes
    at most that many, spread evenly: files are often sorted by subject. Ends the program with one line if nothing can
    be read.
    """
    benchmark = get(name)
    if directory:
        files = [path for ending in READERS if (path := directory / f"{name}{ending}").is_file()]
        if not files:
            fail(f"{directory} has no {name} in it: put a file {name} there that ends in {', '.join(READERS)}")
        source, columns = str(files[0]), {}
        found = list(read_rows(source))
    else:
        source, columns = benchmark.hub, {"question": "problem", "answer": "answer"}
        found = [to_row(row, benchmark) for row in read_rows(source, benchmark.split)]
    if limit and limit < len(found):
        found = [found[i * len(found) // limit] for i in range(limit)]
    problems, report = to_problems(found, source, columns)
    return [replace(problem, level=ALL) for problem in problems], report


def to_row(row: dict[str, Any], benchmark: Benchmark) -> dict[str, Any]:
    """A row from the hub as `problem` and `answer`. A missing value becomes None, which to_problem reports.

    >>> row = {"question": "1+1?", "choices": {"text": ["3", "2"], "label": ["1", "2"]}, "answerKey": "2"}
    >>> to_row(row, PAPER["arc_c"])
    {'problem': '1+1?\\n\\nA) 3\\nB) 2', 'answer': 'B'}
    """
    question, answer = row.get(benchmark.question), row.get(benchmark.answer)
    if benchmark.options:
        try:
            options, right = benchmark.options(row)
            lines = [f"{letter}) {option}" for letter, option in zip(ascii_uppercase, options, strict=False)]
            question, answer = "\n".join([question.strip(), "", *lines]), ascii_uppercase[right]
        except (KeyError, ValueError, TypeError, AttributeError, IndexError):
            answer = None
    return {"problem": question, "answer": answer}


def table(model: str, accuracy: dict[str, float]) -> str:
    """One row of the paper's Table 1, in percent, from accuracies in [0, 1] of the benchmarks that were run.

    In the averages, AIME 24 and AIME 25 count as two benchmarks, as in the paper.

    >>> print(table("DaGRPO", {"aime24": 0.295, "aime25": 0.209, "amc": 0.63, "gpqa_diamond": 0.409}))
    model   AIME 24/25   AMC  avg of 3  |  GPQA-D  avg of 1
    DaGRPO   29.5/20.9  63.0      37.8  |    40.9      40.9
    """
    columns = [("model", model)]
    for ood in (False, True):
        side = {b.title: accuracy[name] for name, b in PAPER.items() if b.ood is ood and name in accuracy}
        if not side:
            continue
        if len(columns) > 1:
            columns.append(("|", "|"))
        cells = {title: f"{100 * share:.1f}" for title, share in side.items()}
        if {"AIME 24", "AIME 25"} <= cells.keys():
            both = {"AIME 24/25": f"{cells.pop('AIME 24')}/{cells.pop('AIME 25')}"}
            cells = both | cells
        complete = len(side) == sum(b.ood is ood for b in PAPER.values())
        columns += cells.items()
        columns.append(("avg" if complete else f"avg of {len(side)}", f"{100 * sum(side.values()) / len(side):.1f}"))
    lines = []
    for cells in zip(*columns, strict=True):
        widths = [max(map(len, column)) for column in columns]
        padded = [cell.rjust(width) for cell, width in zip(cells, widths, strict=True)]
        lines.append("  ".join([cells[0].ljust(widths[0]), *padded[1:]]))
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="python -m maths.benchmarks", description=__doc__)
    parser.add_argument(
        "directory", metavar="DIR", nargs="?", type=Path, help="the folder of NAME.parquet, .jsonl or .json"
    )
    directory = parser.parse_args(argv).directory
    print(f"{'name':14s} {'k':>2s}  hub id, split: columns")
    for name, b in PAPER.items():
        columns = f"{b.question}, options by {b.options.__name__}" if b.options else f"{b.question}, {b.answer}"
        print(f"{name:14s} {b.k:2d}  {b.hub}, {b.split}: {columns}")
    if directory:
        for name in PAPER:
            problems, report = load(name, directory)
            print(f"\n{name}: {report}\n  {quote(problems[0].question, 100)}  ->  {problems[0].answer}")


if __name__ == "__main__":
    main()
