r"""The reward: which final answer a response gives, what counts as equal to the gold one, and hostile text."""

import re
import time
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import verifier
import worker
from verifier import final_answer, number, readable, verify

many = settings(deadline=None, max_examples=200)
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture
def no_worker(monkeypatch):
    """The test fails if math-verify is asked."""

    def asked(*question):
        raise AssertionError(f"{question} was handed to math-verify")

    monkeypatch.setattr(verifier, "equal", asked)
    monkeypatch.setattr(verifier, "parses", asked)


# ---------------------------------------------------------------------------------------- the final answer


@pytest.mark.parametrize(
    ("response", "wanted"),
    [
        (r"\boxed{5}", "5"),
        (r"\boxed{1}, no, \boxed{2}. #### 3", "2"),
        (r"$\boxed{\frac{1}{2}}$ is it", r"\frac{1}{2}"),
        (r"\boxed  {a}", "a"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{[0, 1\}}", r"[0, 1\}"),
        (r"\boxed{1 \boxed{2} 3}", "2"),
        (r"\boxed{}", None),
        (r"\boxed{5", None),
        (r"\boxed{1} and \boxed{2", None),
        (r"\boxed{\frac{1}{2}", None),
        (r"\boxed{5\}", None),
        (r"\boxed 5", "5"),
        ("#### 18", "18"),
        ("#### 1 and then\n#### 18\nThat is all, 5 lines.", "18"),
        ("####\n18", "18"),
        ("####", None),
        ("12+5=17;#17", "17"),
        ("#9;#14", "14"),
        ("#", None),
        ("14;#", None),
        ("#14#", None),
        ("# Answer\n\nThe cost is 5", "5"),
        ("12+5=17;17-3=14", "14"),
        ("", None),
        ("no number", None),
        ("It costs $5 and then $18 a day.", "$18"),
        ("from $5 to $6", "$6"),
        ("so $x = 5$, as said", "x = 5"),
        (r"thus \(\frac{1}{2}\).", r"\frac{1}{2}"),
        (r"thus $$x^2$$ it is", "x^2"),
        (r"thus \[ 7 \]", " 7 "),
        (r"thus \frac{1}{2}.", r"\frac{1}{2}"),
        ("it is 1/2.", "1/2"),
        ("the set (0, 1].", "(0, 1]"),
        ("**Answer:** **42**", "42"),
        ("- 42", "42"),
        ("it is -3", "-3"),
        ("so 50%.", "50%"),
        ("60 miles/hour", "60"),
        ("by 3 + 4 = 7", "7"),
        ("12+5=17;17-3", None),
        ("17 - 3", None),
        ("17 -3", None),
        ("12+5=", None),
        ("9**9**9", None),
        ("2 * 3 *", None),
        ("x^2", None),
        ("x + 5", None),
    ],
)
def test_the_final_answer(response, wanted):
    assert final_answer(response) == wanted


def test_only_the_end_of_a_response_is_searched_for_its_last_expression():
    assert final_answer("14 " + "so " * 2000) is None
    assert final_answer(r"\boxed{14} " + "so " * 2000) == "14"


# ---------------------------------------------------------------------------------------- equal, and not

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
    ("14", "\uff11\uff14"),
    ("14", ""),
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


# ---------------------------------------------------------------------------------------- multiple choice


@pytest.mark.parametrize(
    "response",
    [
        "C",
        "C.",
        "(C)",
        "**C**",
        "C. 42 m/s",
        "C) a cat",
        r"\boxed{C}",
        r"\boxed{c}",
        r"\boxed{\text{C}}",
        r"\boxed{\textbf{(C)}\ 42}",
        r"\boxed{\text{The answer is C}}",
        "#### C",
        "The answer is (C).",
        "The answer is C because A and B are not.",
        "the answer is: C) a cat",
        "ANSWER: C",
        "**Answer: C**",
        r"The final answer is $\text{C}$.",
        "The correct option is C",
        "A. cat\nB. dog\nIt is not A. The answer is C.",
        "The answer is A, or rather: the answer is C",
        "so it must be C",
    ],
)
def test_the_choice_c(response, no_worker):
    assert verify(response, "C")
    assert verify(response, "(C)")
    assert verify(response, r"\text{C}")
    assert not verify(response, "A")
    assert not verify(response, "I")


@pytest.mark.parametrize(
    "response",
    [
        "",
        "It is a cat.",
        "A cat sat.",
        "I think so",
        "The answer, I think, is 5",
        "The answer is A or I",
        "(A) and (I)",
        "The answer is not A.",
        "The answer is Apple",
        "A. cat\nI. dog",
        "ABCDEFGHI",
        r"\boxed{A",
        r"A \boxed{42}",
        "A\n#### 42",
        "a",
    ],
)
def test_an_article_or_a_list_is_no_choice(response, no_worker):
    assert not verify(response, "A") or response == "a"
    assert not verify(response, "I")


def test_a_lower_case_letter_is_a_variable():
    assert verify(r"\boxed{m}", "m")
    assert not verify(r"\boxed{k}", "m")
    assert not verify("The answer is (M).", "m")


# ---------------------------------------------------------------------------------------- gold answers


@pytest.mark.parametrize(
    "gold", ["", " ", "?", "-", "#14", "None", "nan", "½", "{", "5}", "\\frac{1}{", "14\0", "\ud800"]
)
@pytest.mark.parametrize("response", ["", "#14", "same"])
def test_an_unreadable_gold_answer_is_an_error_and_never_a_match(gold, response):
    assert not readable(gold)
    with pytest.raises(ValueError, match="cannot be read"):
        verify(rf"\boxed{{{gold}}}" if response == "same" else response, gold)


@pytest.mark.parametrize(
    "gold", ["14", "-14", "1,000", "50%", "1/2", "x=5", "C", "east", r"\sqrt{2}", "(0, 1]", "$x+1$."]
)
def test_readable_gold_answers(gold):
    assert readable(gold)


# ---------------------------------------------------------------------------------------- hostile text

HOSTILE = {
    "1 MB of letters": "a" * 1_000_000,
    "1 MB of digits": "7" * 1_000_000,
    "1 MB of dollars": "$" * 1_000_000,
    "1 MB of boxes": r"\boxed" * 200_000,
    "1 MB of marks": "#" * 1_000_000,
    "1 MB of spaces": "1" + " " * 1_000_000,
    "1 MB of brackets": "(1," * 300_000,
    "nested braces": r"\boxed{" + "{" * 10_000 + "5" + "}" * 10_000 + "}",
    "nested braces, short": r"\boxed{" + "{" * 450 + "5+x" + "}" * 450 + "}",
    "never closed": r"\boxed{" + "{" * 10_000,
    "a tower": r"\boxed{9**9**9}",
    "a huge exponent": r"\boxed{1e999999999}",
    "a huge decimal": r"\boxed{0." + "3" * 5000 + "}",
    "digits beyond int()": r"\boxed{" + "9" * 5000 + "}",
    "lone surrogates": "\ud800\udfff \\boxed{\ud800}",
    "NUL bytes": "\0\0 \\boxed{\0}",
    "right to left": "\u202e\\boxed{\u05d0\u05d1\u202e}",
    "combining marks": r"\boxed{5" + "\u0301" * 900 + "}",
    "answers": "the answer is " * 10_000,
    "code": r"\boxed{__import__('os').system('exit 1')}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_is_wrong_and_takes_no_time(name, monkeypatch):
    monkeypatch.setattr(worker, "LIMIT", 1.0)
    begin = time.perf_counter()
    for gold in ("14", "C", r"\text{even}", "x=3"):
        assert not verify(HOSTILE[name], gold)
        assert not verify(HOSTILE[name] + " 15", gold)
    assert time.perf_counter() - begin < 8


def test_an_overlong_answer_is_right_only_if_it_is_the_same():
    huge = "9" * 6000
    assert verify(f"#{huge}", huge)
    assert not verify(f"#{huge}9", huge)
    assert not verify(f"#-{huge}", huge)
    assert not verify(f"#{huge}", "14")
    assert not verify("#14", huge)


@settings(deadline=None, max_examples=60)
@given(text=st.text() | st.text(alphabet="\\{}$()[]^_+-*/=%.,#0123456789xsqrtfracboxed \n", max_size=60))
def test_any_text_gets_a_verdict_and_no_accident(text):
    for gold in ("7919.37", r"\sqrt{7919}"):
        assert not verify(text, gold)
        assert not verify(rf"\boxed{{{text}}}", gold)
    assert verify(rf"{text} \boxed{{7919.37}}", "7919.37")


@many
@given(text=st.text(alphabet="##--0123 x\n\u0661;=+", max_size=14), n=st.integers(-30, 30))
def test_behind_the_last_mark_stands_the_answer(text, n):
    """Right, where a mark is the last of its kind and no letter follows: the number behind it, in ASCII digits."""
    final = text.rpartition("#")[2].strip()
    if "#" in text and "####" not in text and "x" not in final and "=" not in final:
        spelled = re.fullmatch(r"([-+]?)\s*([0-9]+)", final)  # "- 5" is -5
        assert verify(text, str(n)) == (spelled is not None and int("".join(spelled.groups())) == n)
    assert verify(f"{text}#{n}", str(n)) or "####" in text


# ---------------------------------------------------------------------------------------- real data


def rows_of(name):
    path = DATA / name
    if not path.exists():
        pytest.skip(f"there is no {path.name} in ../shared/data")
    return pytest.importorskip("pyarrow.parquet").read_table(path).to_pylist()


@pytest.mark.extra
def test_gsm8k_solutions_are_right_and_the_next_ones_are_wrong():
    rows = rows_of("gsm8k_test.parquet")
    golds = [row["answer"].rpartition("####")[2].strip() for row in rows]
    assert all(verify(row["answer"], gold) for row, gold in zip(rows, golds, strict=True))
    others = [(row, gold) for row, own, gold in zip(rows[:300], golds, golds[1:], strict=False) if own != gold]
    assert len(others) > 250
    assert not any(verify(row["answer"], gold) for row, gold in others)
    unmarked = [verify(row["answer"].partition("####")[0], gold) for row, gold in zip(rows, golds, strict=True)]
    assert sum(unmarked) / len(unmarked) > 0.96, "the last number of a solution is nearly always its answer"


@pytest.mark.extra
@pytest.mark.parametrize(
    ("name", "unreadable"),
    [
        ("aime24", 0),
        ("aime25", 0),
        ("amc", 0),
        ("math500", 0),
        ("minerva", 4),
        ("olympiadbench", 3),
        ("arc_c", 0),
        ("gpqa_diamond", 0),
        ("mmlu_pro", 0),
    ],
)
def test_the_gold_answers_of_the_benchmarks(name, unreadable):
    golds = [row["answer"] for row in rows_of(f"benchmarks/{name}.parquet")]
    good = [gold for gold in golds if readable(gold)]
    print(f"{name}: {len(good)} of {len(golds)} gold answers can be read")
    assert len(golds) - len(good) <= unreadable
    boxed = [rf"\boxed{{{gold.strip('$ ').rstrip('.')}}}" for gold in good]
    assert all(verify(response, gold) for response, gold in zip(boxed, good, strict=True))
    pairs = zip(boxed, good, good[1:], strict=False)
    wrong = [(r, g) for r, own, g in pairs if own != g and verify(r, g)]
    assert len(wrong) <= 1, "5 and x=5 stand side by side in MATH-500; nothing else matches its neighbour"
