"""verifier.py: hostile, overlong and random text is wrong, takes no time, and is not right by accident."""

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maths import worker
from maths.verifier import verify

many = settings(deadline=None, max_examples=200)


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
