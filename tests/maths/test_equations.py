r"""Equations in running text: which are found, which hold, and which are let be."""

import time
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maths.equations import TOKEN, equations, numbers, value

many = settings(deadline=None, max_examples=200)


def found(text):
    return [(e.calculation, float(e.result), e.true) for e in equations(text)]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("3 * 4 = 12", [("3*4", 12, True)]),
        ("3 * 4 = 13", [("3*4", 13, False)]),
        ("$12.50 + 3 = $15.50", [("12.50+3", 15.5, True)]),
        (r"\$12.50 + 3 = \$15.50", [("12.50+3", 15.5, True)]),
        ("1/2 of 8 = 4", [("1/2*8", 4, True)]),
        (r"$\frac{1}{2} \cdot 8 = 4$", [("((1)/(2))*8", 4, True)]),
        (r"3 \times 4 = 12, 12 \div 4 = 3", [("3*4", 12, True), ("12/4", 3, True)]),
        ("3 × 4 = 12 and 12 ÷ 4 = 3", [("3*4", 12, True), ("12/4", 3, True)]),  # noqa: RUF001
        ("3 x 4 = 12", [("3*4", 12, True)]),
        ("1 \u2013 3/4 = 1/4, 5 \u2212 3 = 2", [("1-3/4", 0.25, True), ("5-3", 2, True)]),
        ("9 * 2 = $<<9*2=18>>18 every day", [("9*2", 18, True)]),
        ("16 - 3 - 4 = <<16-3-4=9>>9 eggs", [("16-3-4", 9, True)]),
        ("1,000 + 2,500 = 3,500", [("1000+2500", 3500, True)]),
        ("2(3 + 4) = 14", [("2(3+4)", 14, True)]),
        ("(3 + 4) * 2 = 14", [("(3+4)*2", 14, True)]),
        ("20% of 50 = 10", [("20%*50", 10, True)]),
        ("5/25 = 20%", [("5/25", 20, True)]),
        ("0.2 * 100 = 20%", [("0.2*100", 20, True)]),
        ("5/25 = 2%", [("5/25", 2, False)]),
        ("2/3 = 0.67 or 2/3 = 0.66", [("2/3", 0.67, True), ("2/3", 0.66, True)]),
        ("2/3 = 0.68", [("2/3", 0.68, False)]),
        ("2/3 = 1", [("2/3", 1, False)]),
        ("12.5 + 3 = 15.4", [("12.5+3", 15.4, False)]),
        ("2 * 3 + 4 = 6 + 4 = 10", [("2*3+4", 10, True), ("6+4", 10, True)]),
        ("4 = 2 + 2", [("2+2", 4, True)]),
        ("3 + 4 = 7 + 5 = 12", [("3+4", 12, False), ("7+5", 12, True)]),
        ("5 - 8 = -3", [("5-8", -3, True)]),
        ("There are 5. 3 + 4 = 7. 2 are left.", [("3+4", 7, True)]),
        ("1. 3 + 4 = 7\n2) 7 * 2 = 14", [("3+4", 7, True), ("7*2", 14, True)]),
        ("- 3 + 4 = 7\n* 7 * 2 = 14", [("3+4", 7, True), ("7*2", 14, True)]),
        ("so many (3 + 4 = 7)", [("3+4", 7, True)]),
        ("**3 + 4 = 7**", [("3+4", 7, True)]),
        ("Add 24 eggs. 24 - 3 = 21 a day. 3 + 4 = 8. \\boxed{7}", [("24-3", 21, True), ("3+4", 8, False)]),
        ("1+1=2, 1+1=2, 1 + 1 = 2", [("1+1", 2, True)]),
    ],
)
def test_what_is_found_and_what_holds(text, wanted):
    assert found(text) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x = 5",
        "5 = 5",
        "-3 = 4",
        "2x + 3 + 1 = 7",
        "x - 3 + 1 = 4",
        "3 eggs + 4 - 1 = 7",
        "3 + x = 7",
        "3 + 4 = 7x",
        r"3 + 4 = 7\sqrt{2}",
        "3 + 4 = 7 + x",
        "2^3 + 1 = 9",
        "2 + 1 = 3^2",
        r"\sqrt{2} + 3 + 1 = 5",
        "x_2 + 3 + 1 = 5",
        "f(3) + 1 = 5",
        "16,0000/10 = 16000",
        "1/0 = 3",
        "3 ++ = 7",
        "3 // 4 = 0",
        "3 ** 4 = 81",
        "(3 + 4 = ",
        "= 7",
        "3 + 4",
        "1" * 30 + " + 1 = 2",
        "__import__('os') + 1 = 2",
    ],
)
def test_what_cannot_be_checked_is_no_equation(text):
    assert equations(text) == []


numbers_ = st.integers(0, 999).map(str) | st.integers(0, 9999).map(lambda n: f"{n // 100}.{n % 100:02d}")
expressions = st.recursive(
    numbers_,
    lambda inner: (
        st.tuples(inner, st.sampled_from([" + ", "-", "*", " / "]), inner).map("".join) | inner.map(lambda e: f"({e})")
    ),
    max_leaves=8,
)


@many
@given(expression=expressions)
def test_values_are_those_of_python(expression):
    exact = TOKEN.sub(lambda m: f"Fraction('{m[0]}')" if m[0][-1].isdigit() else m[0], expression)
    try:
        wanted = eval(exact, {"Fraction": Fraction})  # of text that this test has made
    except ZeroDivisionError:
        wanted = None
    assert value(TOKEN.findall(expression)) == wanted


@many
@given(a=st.integers(0, 10**6), b=st.integers(0, 10**6), wrong_by=st.integers(-5, 5))
def test_a_sum_holds_if_it_is_right(a, b, wrong_by):
    (equation,) = equations(f"So there are {a:,} + {b} = {a + b + wrong_by:,} eggs.")
    assert equation.true == (wrong_by == 0)
    assert equation.result == a + b + wrong_by


@many
@given(text=st.text() | st.text(alphabet="0123456789+-*/()=. x%$\\{}frac\n,<>", max_size=60))
def test_any_text_is_read(text):
    for equation in equations(text):
        assert equation.true in (True, False)
    assert all(isinstance(x, Fraction) for x in numbers(text))


@pytest.mark.parametrize(
    "text", ["1+", "((", "=", "1=", " ", "-", "<<", "\\frac{1}{", "1 x ", "1 of ", "* ", "1,", "9"]
)
def test_a_megabyte_takes_no_time(text):
    begin = time.perf_counter()
    assert equations(text * (1_000_000 // len(text))) == []
    numbers(text * (1_000_000 // len(text)))
    assert time.perf_counter() - begin < 5


def test_the_numbers_of_a_text():
    wanted = {Fraction(n) for n in ("1000", "2.5", "-3", "16", "9", "-9", "1", "2")}
    assert numbers("1,000 and $2.50, -3, 16-9, = -9, 1/2 and v1.x3") == wanted
