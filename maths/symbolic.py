r"""math-verify's verdict on two pieces of LaTeX, made stricter. Only the worker process imports this (worker.py).

`math_verify.parse` looks for formulas in text, with regular expressions that hostile text slows down, and reads all
symbols in lower case, so that R - r is 0. Here the LaTeX goes straight to its parser, and

    case     X and x are two symbols
    units    stay: math-verify would drop the t of 2t, for tons
    i        is the imaginary unit: i^2 = -1
    or       x < 0 or x > 5 is a union of intervals; an inequality in one variable is an interval
    small    numbers must agree in their ratio too: to six decimal places 1/2004! is 1/2006!
"""

from __future__ import annotations

import re

import sympy
from latex2sympy2_extended import latex2sympy2
from math_verify.grader import should_treat_as_complex, verify
from math_verify.parser import get_last_eq

NORMAL = latex2sympy2.NormalizationConfig(malformed_operators=True, nits=True, boxed="none")
CASED = latex2sympy2.ConversionConfig(lowercase_symbols=False)
LETTER = re.compile(
    r"(?<![A-Za-z\\_])(?<!_\{)[EI](?![a-z])"
)  # to the parser E_1 is an error and I_1 the imaginary unit
RELATION = re.compile(r"[<>]|\\[lg]e\b")


def same(gold: str, answer: str) -> bool:
    """Are the two equal? Raises what the parser raises."""
    wanted, found = read(gold), read(answer)
    if wanted.has(sympy.Derivative):  # math-verify would compute it: dx/dt is 0
        return wanted == found
    if len({len(listed) for x in (wanted, found) if (listed := getattr(x, "_unsorted_args", None))}) > 1:
        return False  # 1, 1, 2 is not 1, 2, although they are equal as sets
    return verify(wanted, found, timeout_seconds=None, allow_set_relation_comp=True) and close(wanted, found)


def read(text: str) -> object:
    """sympy's object: a number, an expression, a set, a tuple, a relation, a matrix. Raises what the parser raises."""
    parts = re.split(r",? *\bor\b *", text)
    if len(parts) > 1 and all(RELATION.search(part) for part in parts):
        return sympy.Union(*(read(part).as_set() for part in parts))
    latex = LETTER.sub(r"\\text{\g<0>}", latex2sympy2.normalize_latex(text, NORMAL))
    try:
        value = parse(latex)
    except Exception:  # a chain of equations
        value = parse(get_last_eq(latex))
    units = {symbol: sympy.I for symbol in getattr(value, "free_symbols", ()) if symbol.name == "i"}
    return value.subs(units) if units else value


def parse(latex: str) -> object:
    real = not should_treat_as_complex(latex)
    return latex2sympy2.latex2sympy(latex, is_real=real, normalization_config=None, conversion_config=CASED)


def close(wanted: object, found: object) -> bool:
    """Is the ratio of two numbers 1, to 1e-4 if one is a decimal fraction (it may be rounded)? True for non-numbers."""
    if not all(isinstance(x, sympy.Expr) and x.is_number and x.is_finite and not x.is_zero for x in (wanted, found)):
        return True
    tolerance = 1e-4 if wanted.has(sympy.Float) or found.has(sympy.Float) else 1e-12
    return bool(abs(sympy.N(wanted / found, 30) - 1) <= tolerance)
