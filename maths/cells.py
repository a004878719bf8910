"""A value of a row as text: a question, an answer, a demonstration, a level. Raises `Unusable` if it cannot be one."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

ALL = "all"  # the level of problems without one


class Unusable(ValueError):
    """Why a row is skipped, and the value that is to blame."""

    def __init__(self, reason: str, value: object = None) -> None:
        super().__init__(reason)
        self.value = value


def text_of(value: Any, role: str, what: str) -> str:
    """A value as text: the last chat message of this role, a number in its shortest spelling. Raises Unusable.

    >>> text_of([{"role": "system", "content": "Think."}, {"role": "user", "content": "1+1?"}], "user", "question")
    '1+1?'
    >>> text_of(142.0, "", "answer"), text_of(["3", "5"], "", "answer")
    ('142', '3, 5')
    """
    if value is None:
        raise Unusable(f"no {what}")
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(part, dict) for part in value):
        said = [part.get("content") for part in value if part.get("role") == role]
        if said and isinstance(said[-1], str):
            return said[-1]
    if what != "answer":
        raise Unusable(f"a {what} of a wrong type", value)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.0f}" if value.is_integer() else repr(value)
    if isinstance(value, Decimal):
        return f"{value:f}"
    if isinstance(value, list) and value and len(set(map(type, value))) == 1 and not isinstance(value[0], list):
        return ", ".join(text_of(part, role, what) for part in value)  # a problem with several answers
    raise Unusable("an answer of a wrong type", value)


def clean(text: str, what: str, empty: bool = False) -> str:
    """The text as it is. Raises Unusable if it is empty, holds a NUL character, or is not valid Unicode."""
    if not empty and not text.strip():
        raise Unusable(f"an empty {what}")
    if "\0" in text:
        raise Unusable(f"a NUL character in the {what}", text)
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can spell
        raise Unusable(f"broken Unicode in the {what}", text) from None
    return text


def level_of(value: Any) -> str:
    """The level as a short printable word, for tables and column names; ALL if the value is not one."""
    word = str(value).strip() if isinstance(value, str | int) and not isinstance(value, bool) else ""
    return word if 0 < len(word) <= 40 and word.isprintable() else ALL
