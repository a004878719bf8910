r"""Is the final answer right? The paper's reward: math-verify's verdict, and cheaper ones where they decide.

    response  ->  final_answer                    the last \boxed{}, else what follows ####, else the last expression
              ->  same text, or the same number   decided here, in microseconds: every rollout of the built-in task
              ->  math-verify                     all else: 2\sqrt{3} and \sqrt{12}, intervals, tuples, polynomials

math-verify runs in a process of its own and has five seconds (worker.py); what takes longer counts as wrong.

What counts as equal, where the field is not of one mind:
    percent   50% is 50 and also 0.5, if only one of the two sides has the sign
    units     are dropped, as are degrees and currencies: 5 cm = 5 = $5
    decimals  equal to six places, as in math-verify, and within 1e-4 of each other, so that 2.8e-6 is not 3.1e-6
    letters   a gold answer that is one capital from A to J is a choice: only a letter can match it
    words     \text{east} matches East and nothing else: math-verify would take words for products of variables

    python -m maths.verifier    final answers and verdicts
"""

from __future__ import annotations

import re
from collections import deque
from fractions import Fraction
from typing import NamedTuple

from maths.worker import equal, parses

TAIL = 2000  # characters at the end of a response that are searched for its last expression
LONGEST = 1000  # characters of an answer; a longer one is right only if it is the gold answer, character for character
MISSING = {"None", "nan", "NaN", "null"}  # what a value that is not there becomes as text


class Number(NamedTuple):
    value: Fraction
    percent: bool  # is there a percent sign?
    exact: bool  # no decimal point: a number with one may be rounded


# ---------------------------------------------------------------------------------------- the verdict


def verify(response: str, answer: str) -> bool:
    r"""The reward: is the response's final answer the gold one? A response without a final answer is wrong.

    Raises ValueError if the gold answer is not `readable`: it must never match anything.

    >>> verify("12+5=17;17-3=14;#14", "14"), verify("#15", "14"), verify(r"So $x=\boxed{\frac12}$.", "0.5")
    (True, False, True)
    >>> verify("It is 14, or else 15.", "14"), verify("The answer is (C).", "C"), verify("It is a cat.", "A")
    (False, True, False)
    """
    if not readable(answer):
        raise ValueError(f"the gold answer {answer[:80]!r} cannot be read: no number, choice, word or formula")
    choice = CHOICE.fullmatch(_spelled(answer))
    if choice:
        return _letter(response) == choice.group(1)
    final = final_answer(response)
    return final is not None and _same(answer, final)


def readable(answer: str) -> bool:
    """Can this be a gold answer? Loaders skip, and count, the rows where it cannot.

    >>> readable("$1,000.00"), readable("(0, 1]"), readable("B"), readable(""), readable("None"), readable("?")
    (True, True, True, False, False, False)
    """
    text = _spelled(answer)
    if not text or text in MISSING:
        return False
    if WHOLE.fullmatch(text) or number(_assigned(text)[1]) or _is_words(answer) or CHOICE.fullmatch(text):
        return True
    return _may_be_handed_on(answer) and parses(_bare(answer))


def _same(gold: str, final: str) -> bool:
    """Cheap comparisons first. What they decide is decided: a wrong number does not go to math-verify."""
    if max(len(final), len(gold)) > LONGEST:
        return _bare(final) == _bare(gold)
    wanted, found = _spelled(gold), _spelled(final)
    if WHOLE.fullmatch(wanted) and WHOLE.fullmatch(found):
        return int(wanted) == int(found)
    if LOOSE_SPACE.sub("", wanted) == LOOSE_SPACE.sub("", found):
        return True
    if _is_words(gold):
        return wanted.casefold() == found.casefold()
    (name, value), (other, _) = _assigned(wanted), _assigned(found)
    a = number(value)
    if a:
        b = number(_right_side(found))
        if b:
            return _equal(a, b) and (not name or not other or name == other)
        if UNFINISHED.fullmatch(found) or not re.search(r"[\d\\π√]", found):
            return False
    return _may_be_handed_on(final) and _may_be_handed_on(gold) and equal(_bare(gold), _bare(final))


def _equal(a: Number, b: Number) -> bool:
    values = [b.value]
    if a.percent != b.percent:  # the side with the sign may be meant as it is written, or as hundredths
        values.append(b.value / 100 if b.percent else b.value * 100)
    if a.exact and b.exact:
        return a.value in values
    return any(round(a.value, 6) == round(v, 6) and abs(a.value - v) <= abs(a.value) / 10_000 for v in values)


# ---------------------------------------------------------------------------------------- the final answer

BOX = re.compile(r"\\boxed\s*\{")
BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # an escaped brace closes nothing
MATHS = re.compile(  # a dollar opens before a non-space and closes after one, not before a digit: not "$5 and $6"
    r"\$\$(.+?)\$\$|\\\[(.+?)\\\]|\\\((.+?)\\\)|\$(?=\S)([^$\n]+?)(?<=\S)\$(?!\d)", re.DOTALL
)
BARE = re.compile(  # in running text: an interval or tuple of numbers, a fraction, a number
    r"""[(\[](?:[-+\d./\s∞]|\\infty)*,(?:[-+\d.,/\s∞]|\\infty)*[)\]]
    |(?<![\w.,\\{^])[-+\u2212]?(?:\\?\$|[€£¥])?-?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:e[-+]?\d+\b)?
        (?:\s*/\s*\d+)?(?:\s*\\?%)?
    |[-+]?\\[dtc]?frac(?:\{-?\d+\}|\d)(?:\{\d+\}|\d)""",
    re.VERBOSE | re.ASCII,
)
OPERATION_BEFORE = re.compile(r"(?:[\d)\]}]|\b[A-Za-z])\s*[-+*/^\u00d7÷\u2212]{1,2}\s*$")
OPERATION_AFTER = re.compile(r"\s*[=+*^\u00d7÷]|-\d|\s*/\s*[\d(]")


def final_answer(response: str) -> str | None:
    r"""The last \boxed{} (one that is never closed holds no answer), else what follows ####, else the last expression.

    The built-in task marks its answer by a single #. A # with a letter behind it is a heading, not a mark.

    >>> final_answer(r"\boxed{1} or \boxed{\frac{1}{2}}."), final_answer("16-9=7\n#### 7"), final_answer("12+5=17;#17")
    ('\\frac{1}{2}', '7', '17')
    >>> final_answer("# Answer\nIt costs $1,000 a day."), final_answer("so 12+5"), final_answer(r"\boxed{5")
    ('$1,000', None, None)
    """
    marked = _marked(response)
    return _last_expression(response[-TAIL:]) if marked is None else marked or None


def _marked(response: str) -> str | None:
    """What is boxed or follows a mark; "" if that is nothing, None if there is neither box nor mark."""
    at = response.rfind("\\boxed")
    while at >= 0 and not (box := BOX.match(response, at)):
        at = response.rfind("\\boxed", 0, at)
    if at >= 0:
        return _braced(response, box.end())
    _, mark, rest = response.rpartition("####")
    if mark:
        return rest.strip().partition("\n")[0].strip()
    _, mark, rest = response.rpartition("#")
    return rest.strip() if mark and not re.search(r"[^\W\d_]", rest) else None


def _braced(text: str, start: int) -> str:
    """From `start`, just behind an opening brace, to the brace that closes it; "" if it is never closed."""
    depth = 1
    for match in BRACE.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(match.group(), 0)
        if depth == 0:
            return text[start : match.start()].strip()
    return ""


def _last_expression(text: str) -> str | None:
    """The last formula or number of running text; None if it is a part of a calculation that was left undone."""
    text = re.sub(r"(?<!\w)\*\*|\*\*(?!\w)", "", text)  # bold in Markdown; a power has both its sides
    maths, bare = _last(MATHS, text), _last(BARE, text)
    if maths and (not bare or bare.end() <= maths.end()):
        return next(filter(None, maths.groups()))
    if not bare:
        return None
    sign = bare.group()[0] if bare.group()[0] in "+-\u2212" else ""
    before = text[max(0, bare.start() - 20) : bare.start()] + sign
    if OPERATION_BEFORE.search(before) or OPERATION_AFTER.match(text, bare.end()):
        return None
    return bare.group()


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    return next(iter(deque(pattern.finditer(text), maxlen=1)), None)


# ---------------------------------------------------------------------------------------- multiple choice

CHOICE = re.compile(r"[(\[]?([A-J])[)\]]?")  # a gold answer
LEAD = r"(?:\s|[:=*({\[]|\b(?i:is|are|the|option|choice|letter|correct|answer)\b)*"
ALONE = r"(?![\w'\u2019])(?!\)?\s*(?:,|and|or|/|&)\s*\(?[A-J]\b)"  # not "A or B"
LETTER = re.compile(rf"\W*(?:([A-Ja-j])\W*|([A-J]){ALONE}\s*[).:].*)")  # perhaps with the text of the choice
PHRASE = re.compile(rf"\b(?i:answer|option|choice)\b{LEAD}(?<![\w'\u2019])([A-HJ]|I(?!\s+[a-z])){ALONE}")
AT_THE_END = re.compile(r"(?<!and )(?<!or )(?<!not )(?<!, )(?:\(|(?<![\w'\u2019(]))([A-J])[\s.)\]}*]*\Z")


def _letter(response: str) -> str | None:
    """The choice: boxed or marked, else "the answer is C", else a letter at the end, else "C. 42 m/s" alone."""
    marked = _marked(response)
    text = response[-TAIL:] if marked is None else marked[:TAIL]
    text = WRAPPED.sub(r"\1", text.replace("$", "")).strip()
    match = LETTER.fullmatch(text) or _last(PHRASE, text) or (AT_THE_END.search(text) if marked is None else None)
    return next(filter(None, match.groups())).upper() if match else None


# ---------------------------------------------------------------------------------------- one spelling

WRAPPER = r"\\(?:text|mathrm|mathbf|textbf|textit|textrm|mbox|mathsf|boldsymbol)\s*"
WRAPPED = re.compile(rf"{WRAPPER}\{{([^{{}}]*)\}}")
WHOLE = re.compile(r"-?\d+", re.ASCII)
LOOSE_SPACE = re.compile(r"(?<!\d)\s|\s(?!\d)")  # all but the space between two digits: 1 4 is not 14
SPELLINGS = [  # what LaTeX writes in several ways, in one
    (re.compile(r"\\[!,;: ]|~|\\left(?![a-z])|\\right(?![a-z])|\\displaystyle|\\\$"), ""),
    (re.compile(r"\\[dtc]frac"), r"\\frac"),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\%"), "%"),
    (re.compile(r"\^?\s*\{?\s*\\circ\b\s*\}?|\\degree\b|°"), ""),
    (re.compile(rf"(?<=[\d)}}%])\s*{WRAPPER}\{{\s*(?:[^{{}}]{{2,}}|[mgshL])\s*\}}(?:\^\{{?\d\}}?)?$"), ""),  # a unit
    (WRAPPED, r"\1"),
    (re.compile(r"([_^])\{(\w)\}"), r"\1\2"),
    (re.compile("\u2212"), "-"),
    (re.compile(r"\s+"), " "),
]
NUMBER = re.compile(
    r"""(?P<sign>[-+]?)\s*[€£¥]?
    (?P<digits>\d{1,3}(?:,\d{3})+(?:\.\d*)?|\d+\.?\d*|\.\d+)
    (?:[eE](?P<e>[-+]?\d{1,3})|\s*(?:\\times|\\cdot|\u00d7|\*)\s*10\s*\^\s*\{?(?P<ten>[-+]?\d{1,3})\}?)?
    (?:\s*/\s*(?P<below>\d+))?
    \s*(?P<percent>%|(?i:percent(?:age)?|pct)\b)?
    (?:\s(?!(?:pi|sqrt|sin|cos|tan|log|ln|exp|and|or|to|by|over|mod|plus|minus|times|choose|hundred|thousand|[mb]illion
        |trillion|dozen|half|halves|thirds?|quarters?)\b)[A-Za-z]{2,}(?:\s[A-Za-z]+)*(?:\s?\^?[23])?)?""",  # a unit
    re.VERBOSE | re.ASCII,
)
FRACTION = re.compile(r"([-+]?)\s*\\frac\s*(?:\{\s*(-?\d+)\s*\}|(\d))\s*(?:\{\s*(\d+)\s*\}|(\d))\s*(%?)", re.ASCII)
NAME = re.compile(r"([A-Za-z]|\\[a-z]+)(_\w+)?\s*=\s*")
EQUALS = re.compile(r"(?<![<>!:\\])=")
UNFINISHED = re.compile(r"[-+=;#.\s\d]*", re.ASCII)  # 17-3 is no final answer, and math-verify would work it out
SCIENTIFIC = re.compile(r"\d\.?[eE][-+]?\d")  # what NUMBER does not read: LaTeX takes it for a product with Euler's e


def number(text: str) -> Number | None:
    r"""A number in one of its everyday spellings, unit and currency dropped; None if `text` is anything else.

    >>> number("-1,000.50").value, number("3 eggs").value, number(r"\frac12").value, number("2e3").value, number("x")
    (Fraction(-2001, 2), Fraction(3, 1), Fraction(1, 2), Fraction(2000, 1), None)
    """
    text = text.strip()
    if len(text) > LONGEST:  # int() refuses more than 4,300 digits
        return None
    fraction = FRACTION.fullmatch(text)
    if fraction:
        sign, a, b, c, d, percent = fraction.groups()
        top, below = int(a or b), int(c or d)
        return Number(Fraction(-top if sign == "-" else top, below), bool(percent), True) if below else None
    match = NUMBER.fullmatch(text)
    if not match or int(match["below"] or 1) == 0:
        return None
    value = Fraction(match["digits"].replace(",", "")) / int(match["below"] or 1)
    value *= Fraction(10) ** int(match["e"] or match["ten"] or 0)
    return Number(-value if match["sign"] == "-" else value, bool(match["percent"]), "." not in match["digits"])


def _bare(text: str) -> str:
    """Without the signs that only say that it is maths, and without a full stop."""
    text = re.sub(r"(?<!\\)\$", "", text).strip().rstrip(".").rstrip()
    inside = re.fullmatch(r"\\\((.*)\\\)|\\\[(.*)\\\]", text, re.DOTALL)
    return next(filter(None, inside.groups()), "").strip().rstrip(".") if inside else text


def _spelled(text: str) -> str:
    """In one spelling, to be compared as text or read as a number."""
    text = _bare(text)
    if WHOLE.fullmatch(text) or len(text) > LONGEST:
        return text
    for pattern, replacement in SPELLINGS:
        text = pattern.sub(replacement, text)
    return text.strip()


def _assigned(text: str) -> tuple[str, str]:
    """The name and the value of x=5; a text that assigns nothing is all value."""
    match = NAME.match(text)
    return (match.group().rstrip("= "), text[match.end() :]) if match else ("", text)


def _right_side(text: str) -> str:
    """What follows the last equals sign of an equation or a chain of them; of several equations, the whole text."""
    return text if "," in text or ";" in text else EQUALS.split(text)[-1]


def _is_words(text: str) -> bool:
    """Marked as text, or four letters and more (abc may be a product), or yes, no, odd."""
    pattern = r"(?!infinity$)[a-z]{4,}(?: [a-z]+)*|yes|no|odd"
    if WRAPPED.search(text):
        pattern = r"[a-z ,'-]{2,}"
    return re.fullmatch(pattern, _spelled(text), re.IGNORECASE) is not None


def _may_be_handed_on(text: str) -> bool:
    """Is it for a parser of LaTeX? Not if it is over-long, or if its braces would close the box it is handed on in."""
    if len(text) > LONGEST or "\\boxed" in text or SCIENTIFIC.search(text):
        return False
    return _braced(text + "}", 0) == text.strip()


if __name__ == "__main__":
    for gold, text in (
        ("14", "12+5=17;17-3=14;#14"),
        ("18", "She makes 9 * 2 = $18 every day.\n#### 18.00"),
        ("\\frac{\\sqrt{3}}{3}", "Hence the slope is $\\boxed{\\frac{1}{\\sqrt{3}}}$."),
        ("(0, 1]", "so $0 < x \\le 1$, that is \\boxed{[0, 1]}"),
        ("50\\%", "**Answer:** one half, or 0.5"),
        ("C", "The answer is (C)."),
        ("27", "9**9**9 - 3"),
    ):
        print(f"{verify(text, gold)!s:6} gold {gold:22} final answer {final_answer(text)!s:24} {text!r}")
