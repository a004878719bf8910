# ruff: noqa: RUF001 - full-width letters and signs of maths are what is tested
"""verifier.py: what counts as equal to the gold answer, and what does not."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maths.spelling import number
from maths.verifier import verify

many = settings(deadline=None, max_examples=200)


RIGHT = [
    ("1000", "$1,000.00"),
    ("$1,000.00", "1000"),
    ("18", "18.0"),
    ("18.0", "18"),
    ("80", "080"),
    ("0", "-0"),
    ("-7", "\u22127"),
    ("10000", "10{,}000"),
    ("10000", r"10\,000"),
    ("50", "50%"),
    (r"50\%", "50"),
    ("0.5", r"50\%"),
    ("50%", "0.5"),
    ("50", "50 percent"),
    ("50%", r"50\%"),
    ("1/2", "0.5"),
    ("0.5", r"\frac12"),
    (r"\frac{1}{2}", r"\dfrac{1}{2}"),
    (r"\frac43", "4/3"),
    (r"-\frac{35}{9}", r"\frac{-35}{9}"),
    ("-3./2", "-1.5"),
    ("1/3", "0.333333"),
    ("4.5e33", r"4.5 \times 10^{33}"),
    ("1e-5", "0.00001"),
    ("18", "18 dollars"),
    ("18", r"\$18"),
    ("5", r"5\text{ cm}"),
    ("5 cm", r"5\mathrm{~cm}^2"),
    ("60", "60 miles per hour"),
    ("90", r"90^{\circ}"),
    (r"90^\circ", "90"),
    ("5", "x=5"),
    ("x=5", "5"),
    ("x=5", "x = 5"),
    ("7", "3+4=7"),
    (r"\text{Evelyn}", "Evelyn"),
    (r"\text{east}", r"\text{East}"),
    ("Yes", r"\text{yes}"),
    ("14", "\uff11\uff14"),
    ("5/2", "2½"),
    ("30000", "3×10⁴"),
    ("1 1/4", "1.25"),
    ("1/6", r"0.1\overline{6}"),
    ("0.333...", "1/3"),
    ("5 million", "5,000,000"),
    ("52_8", "52"),
    ("3:4", "6:8"),
    ("3:4", r"\frac{3}{4}"),
    ("3:30", "3:30"),
    (r"2 \text{ hours } 30 \text{ minutes}", "2 hours 30 minutes"),
    ("4\\left(\\mathrm{~cm}^{2}\\right)", "4"),
    ("60", r"60\ \frac{\text{km}}{\text{h}}"),
    ("500", "USD 500"),
]
RIGHT_BY_MATH_VERIFY = [
    ("(0, 1]", r"\left(0,1\right]"),
    ("3, 5, 7", "7,5,3"),
    (r"\{1,2\}", r"\{2, 1\}"),
    (r"1 \pm \sqrt{19}", r"1-\sqrt{19}, 1+\sqrt{19}"),
    (r"(3, \frac{\pi}{2})", r"(3, \pi/2)"),
    ("p - q", "-q+p"),
    ("x^2-1", "(x-1)(x+1)"),
    (r"2\sqrt{3}", r"\sqrt{12}"),
    ("3.5", r"3\frac{1}{2}"),
    ("25", "5^2"),
    ("6 - 5i", "-5i+6"),
    ("2516_8", "2516_{8}"),
    ("(0, 1)", "0 < x < 1"),
    ("x < 3", r"(-\infty, 3)"),
    (r"(-\infty, 0) \cup (5, \infty)", r"x < 0 \text{ or } x > 5"),
    (r"(5, \infty)", r"]5, \infty["),
    (r"3 \pm \sqrt{2}", r"\frac{6 \pm \sqrt{8}}{2}"),
    ("-1", r"e^{i\pi}"),
    ("-1", "i^2"),
    ("E_1 + I_0", "I_0 + E_1"),
    (r"\frac{1}{3^{20}}", r"\frac{1}{81^5}"),
    (r"\begin{pmatrix} 1/5 \\ -3 \end{pmatrix}", r"\begin{pmatrix} 0.2 \\ -3 \end{pmatrix}"),
]
WRONG = [
    ("1000", "1,000.01"),
    ("50", "0.5"),
    ("50%", "5"),
    ("50%", "0.5%"),
    ("14", "1 4"),
    ("14", "-14"),
    ("14", "14;9"),
    ("14", "17-3"),
    ("17", "17-3"),
    ("5", "4.99999"),
    ("0.5", "0.50001"),
    ("2.8e-6", "3.1e-6"),
    ("4.5e33", "4.5e34"),
    ("4.5e33", "e"),
    ("1/1048576", "1/1048575"),
    (r"\frac{1}{2}", r"\frac{1}{0}"),
    ("5", "5/0"),
    ("2", "2 pi"),
    ("2", "2 million"),
    ("5", "x=2, y=5"),
    ("x=5", "y=5"),
    ("5", "5 or 6"),
    ("100200", "100, 200"),
    (r"\text{even}", "neve"),
    ("east", "west"),
    ("14", "\u0661\u0664"),
    ("14", ""),
    ("10", "4 10/3"),
    ("0.333", "0.333..."),
    ("5", "5 million"),
    ("52_8", "52_{10}"),
    ("52", "52_8"),
    ("1:2:3", "1/6"),
    ("3:30", "7:60"),
    ("3", "3:00"),
    (r"2 \text{ hours } 30 \text{ minutes}", "2"),
    ("VI", "IV"),
    ("3", "3t"),
    ("0", "zero"),
]
WRONG_BY_MATH_VERIFY = [
    ("(0,1]", "[0,1]"),
    ("(1,2)", "(2,1)"),
    ("(1,2)", "2,1"),
    ("3, 5, 7", "3,5"),
    ("2", r"2\pi"),
    ("5", "5i"),
    ("5", "5x"),
    ("8", "2^3=9"),
    ("1", "x^2+1"),
    ("2x", "x"),
    (r"\sqrt{2}", "1.4"),
    ("5", r"5 \foo"),
    ("5", "5 & 6"),
    ("R-r", "0"),
    ("f'(x)", "f(x)"),
    (r"\frac{1}{2004!}", r"\frac{1}{2006!}"),
    (r"\frac{1}{3^{20}}", r"\frac{1}{3^{20}} + \frac{1}{3^{45}}"),
    (r"\frac{dx}{dt} = x", r"\frac{dx}{dT} = x"),
    ("k=3", "-k=3"),
    ("1, 1, 2", "1, 2"),
    ("I_0", "I_1"),
    (r"[0, \infty)", "x > 0"),
]


def in_a_response(final):
    """The two ways of marking an answer, each with the gold answer of nobody before it."""
    return rf"First 987, so $\boxed{{{final}}}$ it is.", f"First 987.\n#### {final}\n"


@pytest.mark.parametrize(("gold", "final"), RIGHT)
def test_right_without_math_verify(gold, final, no_worker):
    assert all(verify(response, gold) for response in in_a_response(final))


@pytest.mark.parametrize(("gold", "final"), RIGHT_BY_MATH_VERIFY)
def test_right_by_math_verify(gold, final):
    assert all(verify(response, gold) for response in in_a_response(final))


@pytest.mark.parametrize(("gold", "final"), WRONG)
def test_wrong(gold, final):
    assert not any(verify(response, gold) for response in in_a_response(final))


@pytest.mark.parametrize(("gold", "final"), WRONG_BY_MATH_VERIFY)
def test_wrong_by_math_verify(gold, final):
    assert not any(verify(response, gold) for response in in_a_response(final))


def test_a_gold_answer_in_the_middle_is_not_thereby_right():
    for gold in ("14", r"\frac{1}{2}", "(0, 1]", "x^2"):
        middle = f"It is ${gold}$, that is {gold}.\n"
        for end in ("Or so it is 99", "#### 99", "#99", r"\boxed{99}", r"\boxed{", "It is 17 - 3"):
            assert not verify(middle + end, gold)
        assert not verify(rf"{middle} \boxed{{{gold}}} #### {gold} \boxed{{99}}", gold)
        assert not verify(rf"{middle} #### {gold}\n#### 99", gold)


@pytest.mark.parametrize("final", ["#14", "12+5=17;17-3=14;#14", "#9;#014", "# 14 ", "##14", "x#14", "#14.0", "14"])
def test_the_built_in_task_needs_no_math_verify(final, no_worker):
    assert verify(final, "14")
    assert not verify(final, "15")
    assert not verify(final, "-14")


@pytest.mark.parametrize(
    "response", ["", "#", "#14#", "#14;#9", "#14;", "#-14", "#1 4", "#--14", "#0x14", "#17-3", "17-3", "12+2=", "#=14;"]
)
def test_wrong_on_the_built_in_task_needs_no_math_verify(response, no_worker):
    assert not verify(response, "14")


@many
@given(n=st.integers(-(10**12), 10**12), data=st.data())
def test_a_whole_number_in_every_spelling(n, data):
    spellings = [
        f"{n}",
        f"{n:,}",
        f"{n}.0",
        f"{n}.",
        f"{n:,}.00",
        f"${n:,}",
        rf"\${n}",
        f"{n} eggs",
        rf"{n}\text{{ m}}",
    ]
    spellings += [f"x = {n}", rf"\frac{{{3 * n}}}{{3}}", f"{2 * n}/2", rf"\text{{{n}}}", f"{n}e0"]
    gold, final = data.draw(st.sampled_from(spellings[:-1])), data.draw(st.sampled_from(spellings))
    assert verify(rf"\boxed{{{final}}}", gold)
    assert not verify(rf"\boxed{{{final}}}", str(n + 1))
    assert number(f"{n:,}").value == n


@many
@given(top=st.integers(-999, 999), places=st.integers(1, 4))
def test_a_decimal_is_the_fraction_that_it_writes_out(top, places):
    value = Fraction(top, 10**places)
    decimal = f"{'-' if top < 0 else ''}{abs(top) // 10**places}.{abs(top) % 10**places:0{places}d}"
    assert number(decimal).value == number(f"{top}/{10**places}").value == value
    assert verify(f"#### {decimal}", f"{top}/{10**places}")
