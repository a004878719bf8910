r"""The final answer of a response: what is marked, else the last expression of its text, else none.

    <think> ... </think>      what comes before the end of the thinking does not count
    \boxed{...}, \fbox{...}   the last one that holds something; one that is never closed holds no answer
    <answer>...</answer>      the last one
    #### ...                  as in GSM8K; as a heading it is followed by the answer: "#### Step 3: Sum" marks nothing
    #...                      the built-in task; with a letter after it, it is a heading
    the last expression       only if the response has ended; "17 - 3", an unfinished calculation, is no answer

In multiple choice the answer is a letter, which may be in a sentence: "The answer is C. Option A would be wrong."
"""

from __future__ import annotations

import re
from collections import deque

from maths.spelling import FUNCTION, SCALE, WRAPPED, braced, plain

TAIL = 2000  # characters at the end of a response that are searched for its last expression

BOX = re.compile(r"\\(?:boxed|fbox)\s*+(?:\{|(-?\d+(?:\.\d+)?|[A-Za-z]\b))")
NOTHING = re.compile(r"[\s._?]*(?:(?i:your|the|my|final|answer|here)\s*)*[\s._?]*")  # "I put my answer in \boxed{}"
MARKUP = re.compile(r"(?<!\w)\*\*|\*\*(?!\w)|`|~~[^~\n]*~~|</?[a-z]+>|<<[^<>\n]*>>|\\(?:boxed|fbox)\s*+\{[^{}]*\}")
EMPHASIS = re.compile(r"(?<![\w*])([*_])(?=\S)([^*_\n]+)(?<=\S)\1(?![\w*])")
LABEL = re.compile(r"[\s:]*+(?:[^\W\d_]{3}[^\n:\d]{0,40}:)?\s*")  # Final answer:
HEADING = re.compile(r"(?i:step|part|case|question|problem)\b\W*\w*\W*|\d+[.)]\s+(?=[^\W\d_])|\([a-z]\)\s*")
MATHS = re.compile(  # a dollar opens before a non-space and closes after one, not before a digit: not "$5 and $6"
    r"\$\$[^$]+\$\$|\$(?=[^\s$])[^$\n]*(?<=\S)\$(?!\d)"
    r"|\\\((?:[^\\]|\\\\|\\[^\\()])*+\\\)|\\\[(?:[^\\]|\\\\|\\[^\\\[\]])*+\\\]"
)
RUNNING = re.compile(  # words with what belongs to them (cm^2, T-shirt), and formulas between them
    rf"""(?!{FUNCTION}|{SCALE})[^\W\d_]{{2,}}(?:[-'][^\W\d_]+)*(?:(?<=[A-Za-z])\d+|\^\{{?\d\}}?)?
    |[^\W\d_](?:[-'][^\W\d_]{{2,}})+
    |(?P<formula>(?:{MATHS.pattern}|{FUNCTION}|{SCALE}|\d+(?:\.\d+)*|\.\d|\.\.\.|(?<=\d)(?::|\ :\ )(?=\d)
        |(?<=[\d)}}])[^\W\d_]+|[B-HJ-Zb-z\u0391-\u03c9](?!\w)|[aAI](?=[\d(^*/+=-])|(?<=[\d(^*/+=-])[aAI](?!\w)
        |\\[A-Za-z]+|\\.|/(?!\ ?[^\W\d_]{{2}})|[-+*^_=<>|!%()\[\]{{}}$√',\ \t])++)""",
    re.VERBOSE,
)
SUBSTANCE = re.compile(rf"[\d\\√]|{MATHS.pattern}")
EQUALS = re.compile(r"(?<![<>!:\\])=")
AND_AT_AN_END = re.compile(r"\A[ \t,]*(?:and|or)\b|\b(?:and|or)\Z")


def final_answer(response: str, ended: bool = True) -> str | None:
    r"""The final answer as the response writes it; None if it has none. Unless `ended`, only a marked one counts.

    >>> final_answer(r"\boxed{1} or \boxed{\frac{1}{2}}."), final_answer("16-9=7\n#### 7"), final_answer("12+5=17;#17")
    ('\\frac{1}{2}', '7', '17')
    >>> final_answer("# Answer\nIt costs $1,000 a day."), final_answer("so 12+5"), final_answer(r"\boxed{5")
    ('$1,000', None, None)
    """
    marked, text = _marked(response)
    if marked is None:
        return _last_expression(text) if ended else None
    return marked or None


def _marked(response: str) -> tuple[str | None, str]:
    """What is marked ("" if the mark is empty, None if there is no mark), and the text that may hold an answer."""
    response = response.rpartition("</think>")[2].partition("<think>")[0]
    for box in reversed(deque(BOX.finditer(response), maxlen=20)):
        content = box[1] or braced(response, box.end())
        if content is None or not NOTHING.fullmatch(content):
            return (content or "").strip(), ""
    _, mark, rest = response.rpartition("<answer>")
    if mark:
        return rest.partition("</answer>")[0].strip(), ""
    _, mark, rest = response.rpartition("####")
    if mark:
        rest = MARKUP.sub("", rest)
        line, _, rest = rest[LABEL.match(rest).end() :].strip().partition("\n")
        if heading := HEADING.match(line):
            return None, f"{line[heading.end() :]}\n{rest}"
        if re.match(r"[^\W\d_]{3}", line) and (rest or re.search(r"\d", line)):  # Tom has 42 eggs
            return (None, rest) if rest else (_last_expression(line) or line, "")
        return line, ""
    _, mark, rest = response.rpartition("#")
    one_answer = mark and "\n" not in rest.strip() and not re.search(r"[^\W\d_]|: ", rest)
    return rest.strip() if one_answer else None, response


def _last_expression(text: str) -> str | None:
    """The last formula or number of running text; None if it is an unfinished calculation."""
    text = EMPHASIS.sub(r"\2", MARKUP.sub("", plain(text[-TAIL:])))
    formulas = (match["formula"] or "" for match in RUNNING.finditer(text))
    last = deque((formula for formula in formulas if SUBSTANCE.search(formula)), maxlen=1)
    formula = AND_AT_AN_END.sub("", last[0].strip(" \t,")).strip(" \t,") if last else ""
    formula = re.sub(r"\A[-+*/<>|]+\s+", "", formula)  # a bullet
    for brackets, others in ((")]}", "([{"), ("([{", ")]}")):  # unbalanced at the end, as in (see step 3)
        while formula and formula[-1] in brackets and _count(brackets, formula) > _count(others, formula):
            formula = formula[:-1].rstrip()
    *_, calculation = re.split(r"[,;]\s+(?:and\s+)?", formula)  # 6*4 = 24, 24-3 = 21
    if re.match(r"[^A-Za-z\\=]*\d[^A-Za-z\\=]*=", calculation):
        formula = calculation
    if not MATHS.search(formula) and not re.search(r",(?!\d{3}(?!\d))", formula):
        formula = EQUALS.split(formula)[-1].strip()
    sum_of_numbers = not re.search(r"[A-Za-z\\√]", formula) and re.search(r"[\d)]\s*[-+*]+\s*[\d(]", formula)
    return None if not formula or formula[-1] in "-+*/^=<>" or sum_of_numbers else formula


def _count(characters: str, text: str) -> int:
    return sum(text.count(character) for character in characters)


# ---------------------------------------------------------------------------------------- multiple choice

ALONE = (  # not "A or B", nor "a cat", nor "I think"
    r"(?![\w'])(?!\)?\s*(?:,|and|or|/|&)\s*\(?[A-J]\b)(?!(?<=[AI])\s+(?!(?:because|since|as|is|but|not)\b)[a-z])"
)
LETTER = re.compile(  # nothing else, or with the text of the choice
    rf"\W*+(?:(?i:option|choice|answer)\W++)?(?:([A-Ja-j])\W*|([A-J]){ALONE}(?:\s*[).:]|\s+is\s).*"
    r"|(?:(?!\b[A-J]\b)[^()])*+\(([A-J])\)\W*)"
)
PHRASE = re.compile(  # the answer is C
    r"\b(?i:answer|option|choice)\b[^.:\n]{0,30}?(?:\b(?i:is|be)\b|[:=])(?:[\s:*{\[]|\b(?i:the|option|choice|letter)\b)*+"
    rf"(?:\(([a-j])\)|([b-hj])\W*\Z|\(?([A-J]){ALONE})"
)
FIRST_LINE = re.compile(r"\A\W*+([A-J])[.)*]*\n")
AT_THE_END = re.compile(r"(?<!and )(?<!or )(?<!not )(?<![A-J], )(?:\(|(?<![A-Za-z0-9'(]))([A-J])[\s.)\]}*]*\Z")


def final_letter(response: str, ended: bool = True) -> str | None:
    """The choice: boxed or marked, else "the answer is C", else a letter at the end or alone on the first line.

    >>> final_letter("It is (C)."), final_letter("The answer is C. Option A is wrong."), final_letter("A cat.")
    ('C', 'C', None)
    """
    marked, text = _marked(response)
    if marked is None and not ended:
        return None
    text = plain((marked or text[-TAIL:])[:TAIL]).replace("$", "")
    text = MARKUP.sub("", re.sub(WRAPPED, r"\1", text)).strip()
    match = LETTER.fullmatch(text) or next(iter(deque(PHRASE.finditer(text), maxlen=1)), None)
    if not match and marked is None:
        match = AT_THE_END.search(text) or FIRST_LINE.match(text)
    return next(filter(None, match.groups())).upper() if match else None
