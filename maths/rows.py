"""The rows of a source, as dicts, one by one: of a local .jsonl, .json or .parquet file, or of a data set on the hub.

A source that cannot be read ends the program with one line that says what is wrong and where: there is no such file,
its name is wrong, a line is not JSON, the hub does not answer. data.py checks what is in a row. The files come from
outside: nothing in them is run (no loading scripts, no pickles), and nothing in them is used as a path.
"""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from harness.console import fail

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+)?", re.ASCII)


def read_rows(source: str, split: str = "train") -> Iterator[Any]:
    """The rows of a local file or of a hub data set, one by one. Ends the program with one line if that fails."""
    path = Path(source)
    try:
        exists, is_folder = path.exists(), path.is_dir()
    except (OSError, ValueError) as error:  # too long, no permission on the way, a NUL
        fail(f"{quote(source)}: {getattr(error, 'strerror', None) or error}")
    if is_folder:
        fail(f"{source} is a folder: name a file in it that ends in {', '.join(READERS)}")
    if path.suffix.lower() in READERS or exists:
        if not exists:
            fail(f"{source}: there is no such file")
        if path.suffix.lower() not in READERS:
            fail(f"{source}: its name must end in {', '.join(READERS)}, which says how to read it")
        return READERS[path.suffix.lower()](path)
    if not HUB_ID.fullmatch(source):
        fail(
            f"{quote(source)}: there is no such file, and a hub id has the form owner/name or owner/name:configuration"
        )
    return hub_rows(source, split)


def json_lines(path: Path) -> Iterator[Any]:
    """A JSON value per line. `datasets` is not used: it wants one type for a column, so one odd row spoils the file."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield parse(line, path, number)
    except OSError as error:
        fail(f"{path} cannot be read ({error.strerror})")


def json_rows(path: Path) -> Iterator[Any]:
    """A file that is one list of rows, or has a row per line, as many .json files do."""
    try:
        with path.open("rb") as file:
            start = file.read(1024).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
        if start != b"[":
            yield from json_lines(path)
            return
        yield from parse(path.read_bytes(), path)
    except OSError as error:
        fail(f"{path} cannot be read ({error.strerror})")


def parse(text: bytes, path: Path, line: int | None = None) -> Any:
    """The JSON value in `text`; `line` is the line's number, if the file has a value per line."""
    try:
        return json.loads(text.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        if line == 1 and spans_lines(path):
            fail(
                f"{path} holds a JSON object over several lines: write a row on one line, or all rows as a list, [...]"
            )
        fail(f"{path}, line {line or error.lineno}: not JSON ({error.msg}, column {error.colno})")
    except (ValueError, RecursionError) as error:  # not UTF-8, a number of thousands of digits, endless brackets
        where = f", line {line}" if line else ""
        fail(f"{path}{where}: not JSON that can be read ({str(error)[:100]})")


def spans_lines(path: Path) -> bool:
    """Does the file begin with a JSON object that spans several lines?"""
    try:
        return isinstance(json.JSONDecoder().raw_decode(path.read_text("utf-8-sig").lstrip())[0], dict)
    except (ValueError, RecursionError, OSError):
        return False


def parquet_rows(path: Path) -> Iterator[Any]:
    """Row by row, straight from the file: nothing is copied to a cache."""
    import datasets

    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # our own line shows its errors
    try:
        name = glob.escape(str(path))  # a file name, not a pattern
        yield from datasets.load_dataset("parquet", data_files=name, split="train", streaming=True)
    except Exception as error:  # datasets, pyarrow and fsspec each raise their own
        fail(f"{path} cannot be read as parquet ({in_one_line(error)})")


def hub_rows(source: str, split: str) -> Iterator[Any]:
    """The rows of a split of a hub data set. `datasets` no longer runs loading scripts, and is not asked to."""
    from harness.loading import no_hub

    alone = no_hub()  # before datasets is imported, which looks once
    import datasets
    import huggingface_hub

    huggingface_hub.logging.set_verbosity_error()  # or each of six tries to reach the hub prints two lines
    name, _, configuration = source.partition(":")
    try:
        return iter(datasets.load_dataset(name, configuration or None, split=split))
    except Exception as error:  # whatever datasets, the hub's client and its HTTP library raise
        why = in_one_line(error)
        hint = "; name one after a colon, as in openai/gsm8k:main" if "config" in why.lower() else ""
        hint = hint or (" (no way to the hub)" if alone else "")
        fail(f"{source}, split {split}: no such file here, and the hub cannot give it: {why}{hint}")


def in_one_line(error: Exception) -> str:
    """An error's text on one line, up to 200 characters: what the hub suggests comes after the text's first line."""
    return quote(" ".join(str(error).split()) or type(error).__name__, longest=200)


READERS: dict[str, Callable[[Path], Iterator[Any]]] = {
    ".jsonl": json_lines,
    ".json": json_rows,
    ".parquet": parquet_rows,
}


def quote(value: object, longest: int = 60) -> str:
    """The beginning of a value on one line, without characters that a terminal would obey.

    >>> quote("1 +\\n1 \\x1b[2J")
    '1 +\\\\n1 \\\\x1b[2J'
    """
    text = value if isinstance(value, str) else repr(value)
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[:longest])
    return shown + (" ..." if len(text) > longest else "")
