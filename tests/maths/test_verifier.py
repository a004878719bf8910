"""The reward: which final answer a response gives, which gold answers can be read; real data. See test_equal.py."""

from pathlib import Path

import pytest

from maths.final import final_answer
from maths.spelling import spelled
from maths.verifier import readable, verify

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


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
        ("x^2", "x^2"),
        ("so x + 5", "x + 5"),
        ("it is 10!", "10!"),
        ("that is 2x + 3.", "2x + 3"),
        ("1, 2 and 3 are", "1, 2 and 3"),
        ("it is 3π cm.", "3π"),
        ("at 3:30 pm", "3:30"),
        ("of 1 1/2 hours", "1 1/2"),
        ("40-42", None),
        ("18,000/year", "18,000"),
        ("48+24 = <<48+24=72>>72 clips", "72"),
        ("16 eggs (see step 3).", "3"),
        ("#### Step 4: Conclusion\nShe has 12.", "12"),
        ("#### Step 4", None),
        ("#### **42**", "42"),
        ("**#### 42**", "42"),
        ("#### Answer: 42", "42"),
        ("#### Final answer\n42", "42"),
        ("Room #12\n42", "42"),
        (r"\boxed{5}, as \boxed{} asks", "5"),
        (r"I write it in \boxed{your answer}. 5", "5"),
        (r"\fbox{5}", "5"),
        (r"\boxed -5", "-5"),
        (r"<think>\boxed{4}</think> 5", "5"),
        (r"5 <think>\boxed{4}", "5"),
        ("<answer> 5 </answer> or 6", "5"),
    ],
)
def test_the_final_answer(response, wanted):
    final = final_answer(response)
    assert (final and spelled(final)) == (wanted and spelled(wanted))


@pytest.mark.parametrize("response", ["It is 14", "which is 6 - 14. To", "The answer is C", "C", "so x = 14"])
def test_a_response_that_was_cut_off_has_no_final_answer(response, no_worker):
    assert final_answer(response, ended=False) is None
    assert not any(verify(response, gold, ended=False) for gold in ("14", "6", "C"))


@pytest.mark.parametrize("response", [r"\boxed{14}, bec", "#### 14\nThis is", "12+2=14;#14", "<answer>14</answer> He"])
def test_unless_it_is_marked(response, no_worker):
    assert verify(response, "14", ended=False)
    assert not verify(response, "15", ended=False)


def test_only_the_end_of_a_response_is_searched_for_its_last_expression():
    assert final_answer("14 " + "so " * 2000) is None
    assert final_answer(r"\boxed{14} " + "so " * 2000) == "14"


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
    "gold", ["", " ", "?", "-", "#14", "None", "nan", "{", "5}", "\\frac{1}{", "14\0", "\ud800", "proof", "N/A"]
)
@pytest.mark.parametrize("response", ["", "#14", "same"])
def test_an_unreadable_gold_answer_is_an_error_and_never_a_match(gold, response):
    assert not readable(gold)
    with pytest.raises(ValueError, match="cannot be read"):
        verify(rf"\boxed{{{gold}}}" if response == "same" else response, gold)


@pytest.mark.parametrize(
    "gold", ["½", "14", "-14", "1,000", "50%", "1/2", "x=5", "C", "east", r"\sqrt{2}", "(0, 1]", "$x+1$."]
)
def test_readable_gold_answers(gold):
    assert readable(gold)


def test_a_sentence_is_no_gold_answer(no_worker):
    assert readable(r"\text{two of the three}")
    assert not readable("There is no such function, since f would be constant on the rationals.")
    assert verify("#### 12", "The final answer is 12.")


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
