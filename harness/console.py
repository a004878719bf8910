"""What all command lines share: one-line errors, help texts that keep their line breaks, progress bars."""

from __future__ import annotations

import argparse
import importlib
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NoReturn

from tqdm import tqdm


def fail(message: str) -> NoReturn:
    """Ends the program with one line on stderr and exit status 2: what is wrong, and what to do."""
    print(f"error: {visible(' '.join(message.split()))}", file=sys.stderr)
    sys.exit(2)


def visible(text: str) -> str:
    """Text from outside, made safe for a terminal: invisible characters (escapes, bidi marks) are written as escapes.

    >>> print(visible("12+5=\\x1b[2J"))
    12+5=\\x1b[2J
    """
    hidden = {c for c in set(text) - {"\n", "\t"} if unicodedata.category(c)[0] == "C"}
    return "".join(c.encode("unicode_escape").decode() if c in hidden else c for c in text)


def first_line(error: BaseException) -> str:
    """The first line of an error's text, behind the error's type if the text may not make sense without it."""
    text = (getattr(error, "strerror", None) or str(error)).strip()
    kind = "" if isinstance(error, OSError | ValueError | RuntimeError) else f"{type(error).__name__}: "
    return f"{kind}{text.splitlines()[0]}" if text else type(error).__name__


@contextmanager
def one_line(what: str, *errors: type[Exception]) -> Iterator[None]:
    """If the block raises one of these errors, ends the program with one line: `what`, and the error's first line."""
    try:
        yield
    except errors as error:
        fail(f"{what}: {first_line(error)}")


def need(module: str, what: str) -> ModuleType:
    """Imports an optional package; if it is missing, ends the program with one line that says how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError:
        fail(f"{what} needs the package {module}: .venv/bin/python -m pip install -r requirements-extra.txt")


def loading_torch() -> None:
    """One line on a terminal before the seconds in which torch is imported; none if it is there already."""
    if "torch" not in sys.modules and sys.stderr.isatty():
        print("loading PyTorch ...", file=sys.stderr)


class Parser(argparse.ArgumentParser):
    """argparse with one-line errors, and help texts that are shown as they are written."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, formatter_class=_Help, allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        fail(f"{message} (--help lists all flags)")


class _Help(argparse.RawDescriptionHelpFormatter):
    def _format_action_invocation(self, action: argparse.Action) -> str:
        """`--batch-prompts B`: the one spelling, and no value for a switch."""
        if not action.option_strings:
            return super()._format_action_invocation(action)
        shown = "" if action.nargs in (0, "?") else self._format_args(action, action.dest.upper())
        return f"{action.option_strings[-1]} {shown}".strip()

    def _get_help_string(self, action: argparse.Action) -> str:
        told = action.default in (None, False, argparse.SUPPRESS) or action.default == ""
        return action.help if told else f"{action.help} [%(default)s]"


def progress(steps: Iterable, **kwargs: Any) -> tqdm:
    """A tqdm bar; without a terminal (a log file, CI) it writes only every ten seconds."""
    return tqdm(steps, mininterval=0.2 if sys.stderr.isatty() else 10, dynamic_ncols=True, **kwargs)
