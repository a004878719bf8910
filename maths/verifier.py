r"""Is the final answer right? The paper's reward: math-verify's verdict, or a cheaper one where that decides.

    final.py        finds the final answer in a response
    spelling.py     puts it and the gold answer in one spelling
    here            equal texts, words, numbers and ratios are decided, in microseconds
    worker.py       math-verify decides the rest: 2\sqrt{3} and \sqrt{12}, intervals, tuples, polynomials

What counts as equal, where verifiers differ (docs/answers.md has the whole list):
    percent   50% is 50 and also 0.5, if only one of the two sides has the sign
    units     are dropped, as are degrees and currencies: 5 cm = 5 = $5; but 5 million is 5,000,000
    decimals  equal to six places, as in math-verify, and to a relative 1e-4, so that 2.8e-6 is not 3.1e-6
    letters   a gold answer that is one capital from A to J is a choice: only a letter can match it
    words     \text{east} matches East and nothing else: math-verify would take words for products of variables
    goals     17 from 4, 6, 7 is a Countdown: any expression of these numbers that makes 17 (puzzles.py)

    python -m maths.verifier    final answers and verdicts
"""

from __future__ import annotations

import re
from fractions import Fraction

from maths.final import EQUALS, final_answer, final_letter
from maths.puzzles import GOAL, solves
from maths.spelling import LONGEST, Number, braced, number, spelled, without_unit
from maths.worker import equal, parses

MISSING = {"none", "nan", "null", "n/a", "na", "proof", "notfound"}  # what data sets write where there is no answer
MOST_WORDS = 5  # a gold answer of more words is a sentence, which no response repeats word by word

WHOLE = re.compile(r"-?\d+", re.ASCII)
MARKS = re.compile(r"[\\<]|##")  # with one of these, what follows the last # may not be the final answer
LOOSE_SPACE = re.compile(r"(?<!\d)\s|\s(?!\d)")  # all but the space between two digits: 1 4 is not 14
CHOICE = re.compile(r"\(?([A-J])(?:\)?|\) ?(\w.*))")  # a gold answer, perhaps with the text of the choice
BASE = re.compile(r"(-?[0-9A-F]+)_(?:\d|\{\d+\})", re.ASCII)
RATIO = re.compile(r"\d+(?:\.\d+)?(?: ?: ?\d+(?:\.\d+)?)+", re.ASCII)
TIME = re.compile(r"\d?\d:[0-5]\d", re.ASCII)  # 3:30 may be a time, not a ratio
NAME = re.compile(r"([A-Za-z]|\\[a-z]+)(_\w+|_\{\w+\})?\s*=\s*")
SEVERAL = re.compile(r"[,;]|\b(?:and|or)\b")
UNFINISHED = re.compile(r"[-+=;#.\s\d]*|\w+", re.ASCII)  # 17-3 is no final answer, but math-verify would compute it
NOT_LATEX = re.compile(r"[{(\[]{9}|«|'|\\boxed|\d_|\d\.?[eE][-+]?\d")  # hostile, words, a base, an exponent's e


def verify(response: str, answer: str, ended: bool = True) -> bool:
    r"""The reward: is the response's final answer the gold one? A response without a final answer is wrong.

    A response that was cut off (`ended` is False) has a final answer only if it is marked. Raises ValueError if the
    gold answer is not `readable`: it must never match anything.

    >>> verify("12+5=17;17-3=14;#14", "14"), verify("#15", "14"), verify(r"So $x=\boxed{\frac12}$.", "0.5")
    (True, False, True)
    >>> verify("It is 14, or else 15.", "14"), verify("The answer is (C).", "C"), verify("It is a cat.", "A")
    (False, True, False)
    >>> verify("It is 14", "14", ended=False), verify(r"It is \boxed{14} bec", "14", ended=False)
    (False, True)
    """
    _, mark, last = response.rpartition("#")
    whole = mark and WHOLE.fullmatch(last) and WHOLE.fullmatch(answer)
    if whole and len(last + answer) < LONGEST and not MARKS.search(response):
        return int(last) == int(answer)  # the short way, for the built-in task
    if GOAL.fullmatch(answer):  # of a Countdown: many expressions are right
        return solves(final_answer(response, ended) or "", answer)
    if not readable(answer):
        raise ValueError(f"the gold answer {answer[:80]!r} cannot be read: it is no number, choice, word or formula")
    gold = spelled(answer)
    if choice := CHOICE.fullmatch(gold):
        letter, gold = choice.groups()
        if final_letter(response, ended) == letter or not gold:
            return final_letter(response, ended) == letter
    final = final_answer(response, ended)
    return final is not None and _same(gold, spelled(final))


def readable(answer: str) -> bool:
    """Can this be a gold answer? Loaders skip, and count, the rows where it cannot.

    >>> readable("$1,000.00"), readable("(0, 1]"), readable("B"), readable(""), readable("None"), readable("?")
    (True, True, True, False, False, False)
    """
    if GOAL.fullmatch(answer):
        return True
    text = without_unit(spelled(answer))
    if not text or _words(text) in MISSING:
        return False
    if "«" in text:
        return text.count("«") <= MOST_WORDS
    if any(kind.fullmatch(text) for kind in (WHOLE, CHOICE, BASE, RATIO)) or number(_assigned(text)[1]):
        return True
    return _is_latex(text) and parses(text)


def _same(wanted: str, found: str) -> bool:
    """Cheap comparisons first. What they decide is decided: a wrong number does not go to math-verify."""
    if LOOSE_SPACE.sub("", wanted) == LOOSE_SPACE.sub("", found):
        return True
    wanted, found = without_unit(wanted), without_unit(found)
    if "«" in wanted + found:
        return _words(wanted) == _words(found)
    if base := BASE.fullmatch(wanted):
        return found == base[1]  # the base may be left out; texts with one were compared above
    if ":" in wanted + found:
        return not TIME.fullmatch(wanted) and _ratio(wanted) == _ratio(found) is not None
    (name, value), (other, _) = _assigned(wanted), _assigned(found)
    a, b = number(value), number(found if SEVERAL.search(found) else EQUALS.split(found)[-1])
    if a and b and (other or not name or "=" not in found):  # of -x=5, the right side is not the value
        return _equal(a, b) and (not name or not other or name == other)
    if a and UNFINISHED.fullmatch(found):
        return False
    return _is_latex(wanted) and _is_latex(found) and equal(wanted, found)


def _equal(a: Number, b: Number) -> bool:
    values = [b.value]
    if a.percent != b.percent:  # the side with the sign may be meant as it is written, or as hundredths
        values.append(b.value / 100 if b.percent else b.value * 100)
    if a.exact and b.exact:
        return a.value in values
    return any(round(a.value, 6) == round(v, 6) and abs(a.value - v) <= abs(a.value) / 10_000 for v in values)


def _ratio(text: str) -> list[Fraction] | None:
    """The parts of 3:4 or 3/4, each divided by the last of them; None if the text is not a ratio."""
    value = number(text)
    parts = [value.value, Fraction(1)] if value else []
    if RATIO.fullmatch(text):
        parts = [Fraction(part.strip()) for part in text.split(":")]
    return [part / parts[-1] for part in parts] if parts and parts[-1] else None


def _assigned(text: str) -> tuple[str, str]:
    """The name and the value of x=5; a text that assigns nothing is all value."""
    match = NAME.match(text)
    return (match.group().rstrip("= "), text[match.end() :]) if match else ("", text)


def _words(text: str) -> str:
    """The text for a comparison that ignores case, spaces and commas."""
    return re.sub(r"[«»,\s]", "", text).casefold()


def _is_latex(text: str) -> bool:
    """Can a LaTeX parser be given this?"""
    return len(text) <= LONGEST and not NOT_LATEX.search(text) and braced(text + "}", 0) == text


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
