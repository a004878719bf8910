r"""One spelling for an answer, so that it can be compared as text, read as a number, or handed to a LaTeX parser.

    2½ hours, 2\frac12\text{ hours}, ２ 1/2 hours      ->  2 1/2 «hours»     words are put between « and »
    x²−1, x^{2} - 1                                   ->  x^2-1
    5 million, 5 \text{ million}                      ->  5 \times 10^6

Whatever the text holds, this takes linear time: white space is collapsed and the length bounded before anything else.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

LONGEST = 1000  # characters; a longer text stays as it is

RAISED = re.compile("[\u2070\u00b9\u00b2\u00b3\u2074-\u207b]+")  # NFKC would turn 2 cubed into 23
LOWERED = re.compile("[\u2080-\u208b]+")
VULGAR = re.compile("[\u00bc-\u00be\u2150-\u215e]")  # NFKC would turn two and a half into 21/2
SIGNS = {"\u2212": "-", "\u2010": "-", "\u2013": "-", "\u2044": "/", "\u2215": "/", "\u00f7": "/"}  # NFKC keeps these
SIGNS |= {"\u2032": "'", "\u2019": "'", "\u3001": ",", "\u3002": ".", "\u00d7": r"\times ", "\u00b7": r"\cdot "}
SIGNS |= {"\u221e": r"\infty ", "\u03c0": r"\pi ", "\u00b0": r"\degree ", "\u00b1": r"\pm ", "\u2248": r"\approx "}
SIGNS |= {"\u2264": r"\le ", "\u2265": r"\ge ", "\u2260": r"\ne ", "\u222a": r"\cup ", "\u2229": r"\cap "}
SIGNS |= dict.fromkeys('"\u201c\u201d\u200b\u200c\u200d\u200e\u200f\u2060\ufeff\u20ac\u00a3\u00a5\u20b9', "")
SIGNS = str.maketrans(SIGNS)

FUNCTION = r"(?:(?:arc)?(?:sin|cos|tan|cot|sec|csc)h?|log|ln|exp|sqrt|choose|mod|gcd|lcm|max|min|pi|and|or)(?![A-Za-z])"
SCALES = {"dozen": "12", "hundred": "10^2", "thousand": "10^3"}
SCALES |= {"million": "10^6", "billion": "10^9", "trillion": "10^12"}
SCALE = rf"(?:{'|'.join(SCALES)})(?![A-Za-z])"
SHORT_WORD = re.compile(r"[IVXLCDM]{2,}|(?i:yes|no|odd)")
ATTACHED_UNITS = {"mm", "cm", "km", "ft", "kg", "mg", "lb", "ml", "mL", "mph", "th", "st", "nd", "rd"}  # 5cm, 5th
LETTER_UNITS = {*"mgshLlKVWNJCA", r"\Omega"}
WRAPPER = r"\\(?:text|mathrm|mathbf|mathit|textbf|textit|textrm|mbox|mathsf|boldsymbol) ?"
WRAPPED = rf"{WRAPPER}\{{((?:[^{{}}]|\{{[^{{}}]*\}})*+)\}}"
IN_WRAPPER = re.compile(r"(?<![^\W\d_]|\\)(?!(?:and|or)(?![A-Za-z]))[^\W\d_]{2,}")


def _mark(match: re.Match[str]) -> str:
    """The word between « and »; what may be a variable, a command or a function stays as it is."""
    word, before = match.group(), match.string[max(0, match.start() - 3) : match.start()]
    behind = re.search(r"(?:[\d)}]|[a-z]{2}) \Z", before)  # a number or a word
    if word[0] in "\\_«" or (re.fullmatch(FUNCTION, word) and not (behind and word in ("min", "sec"))):
        return word
    unit = (behind and len(word) > 1) or (before[-1:].isdigit() and word in ATTACHED_UNITS)
    foreign = not word.isascii() and not "\u0370" <= word[0] <= "\u03ff"  # Greek letters are variables
    return f"«{word}»" if len(word) > 3 or unit or foreign or SHORT_WORD.fullmatch(word) else word


SPELLINGS = [
    (r"\\! ?|(?<!\\)\\[,;:>()\[\]$]|\$|\\(?:left|right)(?![a-z])|\\(?:display|text)style(?![a-z])", ""),
    (r"(?<!\\)\\ |~|\\q?quad(?![a-z])|\\[hv]space\{[^{}]*\}|\\phantom\{[^{}]*\}", " "),
    (r"\\[dtc]frac", r"\\frac"),
    (r"\{,\}", ","),
    (r"(?<=\d)'(?=\d{3})", ""),  # 70'000
    (r"\\%|(?<![A-Za-z])(?i:percent(?:age)?|pct)(?![A-Za-z])", "%"),
    (r"\^ ?\{? ?\\circ ?\}?|(?<=\d) ?\\circ(?![a-z])|\\degree(?![a-z])", " "),
    (rf"{WRAPPER}\{{ ?\}} ?(?:/ ?(?:{WRAPPER}\{{ ?\}})?)?", " "),  # \text{}: the data set lost its units
    (rf"_ ?\{{? ?{WRAPPER}\{{(\w+)\}} ?\}}?", r"_{\1}"),
    (r"\\math(?:rm|bf|it) ?\{([eid])\}", r"\1"),
    (WRAPPED, lambda match: " " + IN_WRAPPER.sub(r"«\g<0>»", match[1]) + " "),
    (r"\\leq?(?:slant)?(?![a-z])|<=", r"\\le "),
    (r"\\geq?(?:slant)?(?![a-z])|>=", r"\\ge "),
    (r"\\[lc]?dots(?![a-z])", "..."),
    (r"([A-Za-z])('+)", lambda match: f"{match[1]}_{{{'p' * len(match[2])}}}"),  # x' is another variable than x
    (r"\u221a ?(\d+(?:\.\d+)?|[A-Za-z])", r"\\sqrt{\1}"),
    (r"\u221a", r"\\sqrt"),
    (r"(?<![A-Za-z\\])[Ii]nfinity(?![A-Za-z])", r"\\infty "),
    (r"^ ?(?:(?i:the|final|correct|answer|is)\b:? ?)+(?=.)", ""),
    (r"^ ?(?i:about|approx[a-z]*|roughly|around|nearly|almost|\\approx|\\sim(?:eq)?)\.? ", ""),
    (r"^ ?(?:USD|EUR|GBP|INR|CNY|Rs\.?) ?(?=\d)", ""),
    (r"(?<=\d) and a half(?![a-z])", " 1/2"),
    (rf" ?«?({SCALE})»?", lambda match: rf" \times {SCALES[match[1]]} "),
    (r"«[^«»]*»|\\(?:begin|end)\{\w+\}|\\[A-Za-z]+(?: [A-Za-z]{2,3}(?![A-Za-z]))?|_\{\w+|[^\W\d_]+", _mark),
    (r"([_^])\{(\w)\}", r"\1\2"),
    (r"(?<=\d) (?=\d{3}(?![\d/]))", ""),  # 1 000
    (r"\]([^\[\](),]*,[^\[\](),]*)(?=[\[\]])", r"(\1"),  # ]1, 2[ is (1, 2)
    (r"([(\[][^\[\](),]*,[^\[\](),]*)\[", r"\1)"),
    (r" +", " "),
    (r"^ |(?<!\.)[.,:]? ?$", ""),
    (r"^\{(?=[^,]*,)(.*)\}$", r"\\{\1\\}"),
    (r"^[(\[]'?([^,()\[\]']*)'?[)\]]$", r"\1"),  # (5), ['5']
]
SPELLINGS = [(re.compile(pattern), spelling) for pattern, spelling in SPELLINGS]


def plain(text: str) -> str:
    """The text in ASCII as far as possible: full-width letters, raised digits and signs of maths are rewritten."""
    text = VULGAR.sub(r" \g<0>", LOWERED.sub(r"_{\g<0>}", RAISED.sub(r"^{\g<0>}", text)))
    return unicodedata.normalize("NFKC", text).translate(SIGNS)


@lru_cache(maxsize=2**12)
def spelled(text: str) -> str:
    r"""The text in one spelling; unchanged if it is spelled already.

    >>> spelled("2½ hours"), spelled(r"$\dfrac{x}{2}\text{ cm}$."), spelled("x²−1 ≤ 3"), spelled("5 million")
    ('2 1/2 «hours»', '\\frac{x}{2} «cm»', 'x^2-1 \\le 3', '5 \\times 10^6')
    """
    text = " ".join(text.split())
    if len(text) > LONGEST:
        return text
    text = plain(text)
    for pattern, spelling in SPELLINGS:
        text = pattern.sub(spelling, text)
    if text.count("\\pm") == 1 and "," not in text:
        text = ", ".join(text.replace("\\pm", sign) for sign in "+-")
    return text.strip()


# ---------------------------------------------------------------------------------------- numbers


class Number(NamedTuple):
    value: Fraction
    percent: bool  # is there a percent sign?
    exact: bool  # no decimal point: a number with one may be rounded


FRACTION = re.compile(r"\\frac ?(?:\{ ?(-?\d+) ?\}|(\d)) ?(?:\{ ?(-?\d+) ?\}|(\d))", re.ASCII)
NUMBER = re.compile(
    r"""(?P<sign>[-+]?)\s?(?:(?P<whole>\d+)\s(?=\d+/))?(?P<digits>\d{1,3}(?:,\d{3})+(?:\.\d*)?|\d+(?:\.\d*)?|\.\d+)
    (?:(?:\\(?:overline|bar|dot)\s?\{?|\()(?P<repeat>\d{1,20})[})]?|(?P<dots>\.\.\.))?
    (?:[eE](?P<e>[-+]?\d{1,3})|\s?(?:\\times|\\cdot|\*)\s?10\s?\^\s?\{?(?P<ten>[-+]?\d{1,3})\}?)?
    (?:\s?/\s?(?P<below>-?\d+))?\s?(?P<percent>%)?""",
    re.VERBOSE | re.ASCII,
)


def number(text: str) -> Number | None:
    r"""`text`, in one spelling and without its unit, as a Number; None if it is not a number.

    >>> number("-1,000.50").value, number("2 1/3").value, number(r"\frac12").value, number("2e3").value, number("x")
    (Fraction(-2001, 2), Fraction(7, 3), Fraction(1, 2), Fraction(2000, 1), None)
    >>> number(r"0.1\overline{6}").value, number("0.333...").value, number("4 10/3")
    (Fraction(1, 6), Fraction(1, 3), None)
    """
    match = NUMBER.fullmatch(FRACTION.sub(r" \1\2/\3\4", text).strip()) if len(text) <= LONGEST else None
    if not match or int(match["below"] or 1) == 0:
        return None
    digits, repeat, below = match["digits"].replace(",", ""), match["repeat"], int(match["below"] or 1)
    if match["dots"] and "." in digits:
        period = re.fullmatch(r"(\d*\.\d{0,6}?)(\d{1,6}?)\2+", digits)
        digits, repeat = period.groups() if period else ("", None)
    if not digits or (repeat and "." not in digits) or (match["whole"] and Fraction(digits) >= below):
        return None
    value = Fraction(digits)
    if repeat:
        value += Fraction(int(repeat), (10 ** len(repeat) - 1) * 10 ** len(digits.partition(".")[2]))
    value = (value / below + int(match["whole"] or 0)) * Fraction(10) ** int(match["e"] or match["ten"] or 0)
    return Number(-value if match["sign"] == "-" else value, bool(match["percent"]), bool(repeat) or "." not in digits)


# ---------------------------------------------------------------------------------------- units

PARTS = re.compile(r"«[^«»]*»|\\[A-Za-z]+|\^ ?\{?-?\d+\}?|.", re.DOTALL)
OPENS = {*" /.*({-^", r"\frac", r"\mu", r"\cdot"}  # what a unit may begin with, and what may be within it
WITHIN = OPENS | {*")}", *LETTER_UNITS}
BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # an escaped brace closes nothing


def without_unit(text: str) -> str:
    r"""A number or formula without the unit behind it; any other text as it is.

    >>> without_unit("60 «km» / h"), without_unit(r"8 \frac{«m»}{«s»^2}"), without_unit("2 «hours» 5 «minutes»")
    ('60', '8', '2 «hours» 5 «minutes»')
    """
    parts = PARTS.findall(text) if len(text) <= LONGEST else []
    at, cut = len(parts), 0
    while at and (parts[at - 1][0] in "«^" or parts[at - 1] in WITHIN):
        at -= 1
        if parts[at][0] == "«" or (parts[at] in LETTER_UNITS and parts[at - 1] in " /"):
            cut = at
    while cut and parts[cut - 1] in OPENS:
        cut -= 1
    value, unit = "".join(parts[:cut]), "".join(parts[cut:])
    if not re.search(r"(?:[\d)}%!]|\\pi) ?\Z", value) or re.search("[:«]", value) or braced(value + "}", 0) != value:
        return text
    if "«" not in unit and re.search(r"(?<!\\)\b[A-Za-z]", value):  # 5 m, but not (a+b) m
        return text
    return value


def braced(text: str, start: int) -> str | None:
    """The text from `start`, right after an opening brace, to its closing brace; None if it is never closed."""
    depth = 1
    for match in BRACE.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(match.group(), 0)
        if depth == 0:
            return text[start : match.start()]
    return None
