r"""Calculations in running text: which equations between plain numbers does a response state, and do they hold?

    "So 3 * $4.50 = $13.50, and x = 5."   ->   3*4.50 = 13.50, true

Only what can be checked safely and surely counts: numbers, + - * / and parentheses, computed as exact fractions by the
few lines of `value` (never by Python's eval). An equation with a name, a power or a root does not count.

    python -m maths.equations    the equations in a few sentences
"""

from __future__ import annotations

import re
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple

LONGEST_TEXT = 100_000  # characters that are searched
LONGEST_SIDE = 40  # numbers and signs on one side of an equation
LONGEST_CHAIN = 40  # sides: a = b = c has three
LONGEST_NUMBER = 20  # characters

PLAIN = [  # one spelling of each sign; removes calculator marks, currencies, text in formulas, Markdown
    (re.compile(r"<<[^<>]*>>|\\(?:text|mathrm|mbox)\s*\{[^{}]*\}|\\[!,;: ]|\\left|\\right|\\?\$|[€£]"), ""),
    (re.compile(r"(?<!\w)\*\*|\*\*(?!\w)|^[ \t]*[-*+][ \t]+", re.MULTILINE), ""),
    (re.compile(r"\\[dtc]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}"), r"((\1)/(\2))"),
    (re.compile(r"\\times|\\cdot|[\u00d7\u00b7]|(?<=\d)[ \t]*x[ \t]*(?=[\d(])|(?<=[\d%])[ \t]+of[ \t]+(?=[\d(])"), "*"),
    (re.compile(r"\\div|÷"), "/"),
    (re.compile("[\u2212\u2013]"), "-"),
    (re.compile(r"\\%"), "%"),
    (re.compile(r"(?<=\d),(?=\d{3}(?!\d))"), ""),
]
RUN = re.compile(r"[-+*/()\d.% \t=]+", re.ASCII)  # numbers and signs without a word between them
TOKEN = re.compile(r"\d+(?:\.\d+)?|\.\d+|[-+*/()%]", re.ASCII)
LITERAL = re.compile(r"(?<![\w.])-?(?:\d+(?:\.\d+)?|\.\d+)", re.ASCII)
SIGNS = {"+", "-", "*", "/"}


class Equation(NamedTuple):
    calculation: str
    result: Fraction  # as stated
    true: bool


def equations(text: str) -> list[Equation]:
    """The equations in a text that have a calculation on one side, in their order, each once.

    A stated decimal may be rounded or cut off: it is true if it is off by less than one unit of its last place.
    A percentage may be meant as it is written, or as hundredths.

    >>> for equation in equations("3 * $4.50 = $13.50, 2/3 = 0.67, x = 5, 2x + 1 = 9, and 1/2 of 8 = 4 = 2 + 3."):
    ...     print(*equation)
    3*4.50 27/2 True
    2/3 67/100 True
    1/2*8 4 True
    2+3 4 False
    """
    text, found = plain(text), {}
    for run in RUN.finditer(text):
        sides = [TOKEN.findall(side) for side in run.group().split("=")]
        if not 1 < len(sides) <= LONGEST_CHAIN:
            continue
        sides[0] = [] if _name_before(text, run) else _calculation_at_the_end(sides[0])
        sides[-1] = [] if _name_behind(text, run) else _number_at_the_start(sides[-1])
        for left, right in pairwise(sides):
            equation = _checked(left, right) or _checked(right, left)
            if equation:
                found.setdefault(equation)
    return list(found)


def numbers(text: str) -> set[Fraction]:
    """All numbers of a text.

    >>> numbers("She had 1,000 and paid $2.50.") == {1000, Fraction(5, 2)}
    True
    """
    return {Fraction(literal) for literal in LITERAL.findall(plain(text)) if len(literal) <= LONGEST_NUMBER}


def value(tokens: list[str]) -> Fraction | None:
    """The value of an expression: sums of products of numbers and parentheses. None if the tokens are not one.

    >>> value(TOKEN.findall("2 * (3 - .5) / 4")), value(["2", "3"]), value(["1", "/", "0"])
    (Fraction(5, 4), None, None)
    """
    if len(tokens) > LONGEST_SIDE:
        return None
    rest = tokens[::-1]  # the next token is the last

    def comes(*wanted: str) -> bool:
        return bool(rest) and rest[-1] in wanted

    def total() -> Fraction:
        result = product()
        while comes("+", "-"):
            result += product() if rest.pop() == "+" else -product()
        return result

    def product() -> Fraction:
        result = factor()
        while comes("*", "/", "("):
            result = result / factor() if not comes("(") and rest.pop() == "/" else result * factor()
        return result

    def factor() -> Fraction:
        token = rest.pop()
        if token in "+-":
            return factor() if token == "+" else -factor()
        result = total() if token == "(" else Fraction(token if len(token) <= LONGEST_NUMBER else "")
        if token == "(" and rest.pop() != ")":
            raise ValueError
        while comes("%"):
            rest.pop()
            result /= 100
        return result

    try:
        result = total()
    except (ValueError, IndexError, ZeroDivisionError):
        return None
    return None if rest else result


def _checked(calculation: list[str], stated: list[str]) -> Equation | None:
    """The equation. None if there is no calculation with a result, as in x = 5 and 5 = 5."""
    worth, result = value(calculation), value(stated)
    if worth is None or result is None or sum(token[-1].isdigit() for token in calculation) < 2:
        return None
    literals = [token for token in stated if token[-1].isdigit()]
    places = len(literals[0].partition(".")[2]) if len(literals) == 1 else 0
    unit = Fraction(1, 10**places) if places else 0  # a whole number is not taken for a rounded one
    if stated[-1] == "%" and len(literals) == 1:
        result *= 100
        true = any(x == result or abs(x - result) < unit for x in (worth, 100 * worth))
    else:
        true = worth == result or abs(worth - result) < unit
    return Equation("".join(calculation), result, true)


def _name_before(text: str, run: re.Match[str]) -> bool:
    """Does what precedes this run belong to the equation? It does in x + 4 = 7, 3 eggs + 4 = 7, 2^3 + 4 = 12."""
    before, first = text[max(0, run.start() - 1) : run.start()], TOKEN.search(run.group())
    attached = re.match(r"\.?[\d(]", run.group())  # x2, f(3); not "eggs. 2"
    return bool(re.match(r"[\w^},]", before) and (attached or (first and first.group() in SIGNS)))


def _name_behind(text: str, run: re.Match[str]) -> bool:
    r"""Does what follows this run? It does in 3 + 4 = 7x and 3 + 4 = 7 \pi; not in 7 days, nor in a new sentence."""
    behind, end = text[run.end() : run.end() + 2], run.group()[-1]
    if re.match(r"\^|_|\\[a-z]", behind):
        return not run.group().rstrip().endswith(".")
    return not end.isspace() and re.match(r"[A-Za-z](?![A-Za-z])", behind) is not None


def _calculation_at_the_end(tokens: list[str]) -> list[str]:
    """The calculation right before the first equals sign: 3+4 in "Step 2. 3+4 = 7"."""
    for k in range(max(0, len(tokens) - LONGEST_SIDE), len(tokens)):
        last, here = tokens[k - 1] if k else "", tokens[k]
        sentence = last not in SIGNS | {"("} and here not in SIGNS | {")", "%"}  # two numbers side by side
        remark = last == "(" and (k == 1 or tokens[k - 2] not in SIGNS)  # (3+4 = 7)
        if (k == 0 or sentence or remark) and value(tokens[k:]) is not None:
            return tokens[k:]
    return []


def _number_at_the_start(tokens: list[str]) -> list[str]:
    """The result right after the last equals sign: 7 in "3+4 = 7. 2 are left" and in "(3+4 = 7)"."""
    for k in range(min(len(tokens), LONGEST_SIDE), 0, -1):
        next_one = tokens[k] if k < len(tokens) else ")"
        if next_one not in SIGNS | {"%"} and tokens[k - 1] not in SIGNS and value(tokens[:k]) is not None:
            return tokens[:k]
    return []


def plain(text: str) -> str:
    """The text with one spelling of each sign: products as *, fractions as (a/b), no currencies or marks."""
    text = text[:LONGEST_TEXT]
    for pattern, replacement in PLAIN:
        text = pattern.sub(replacement, text)
    return text


if __name__ == "__main__":
    for sentence in (
        "She makes 9 * 2 = $<<9*2=18>>18 every day at the farmer's market.",
        "- 20% of $1,000 = $200, so (1,000 - 200) / 3 = 266.67",
        "Then $\\frac{3}{4} \\times 8 = 6 = 2 + 3$, and $x + 1 = 7$, $2^3 + 1 = 9$.",
    ):
        print(sentence)
        for equation in equations(sentence):
            print(f"    {equation.calculation} = {float(equation.result):g}  {equation.true}")
