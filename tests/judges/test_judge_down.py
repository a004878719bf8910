"""A judge that is down, and what is kept: when it is given up, and that no score is paid twice."""

import socket
import time
from dataclasses import replace
from math import nan

import pytest
from judge_server import (
    PROBLEM,
    Reply,
    endpoint,
    graded_by_text,
    grades,
    pairs,
    response_part,
    same,
    wait_for,
)

from judges.http import http_judge
from judges.prompt import Counters, JudgeDown

# ---------------------------------------------------------------------------------------- a judge that is down


def late_first(counters, failures, status):
    """A reply to the response #0 that comes when the judge has read all failures; every other response is one."""

    def reply(text, number):
        if response_part(text)[2] != "#0":
            return Reply(status=status)
        wait_for(lambda: counters.calls == failures)
        return Reply()

    return reply


@pytest.mark.extra
def test_it_gives_up_early_when_nothing_but_failures_comes(server):
    server.reply = lambda text, number: Reply(status=500)
    counters = Counters()
    scorer = http_judge(endpoint(server, give_up_after=5, concurrency=2, retries=1), counters)
    with pytest.raises(JudgeDown, match="HTTP 500") as caught:
        scorer(pairs(*(f"#{n}" for n in range(50))))
    assert "\n" not in str(caught.value)
    assert server.url in str(caught.value)
    assert 10 <= len(server.bodies) <= 14  # five requests with a retry each, and what was under way
    assert counters.failures == 50


@pytest.mark.extra
def test_those_that_wait_to_ask_again_wait_no_longer(server):
    """Giving up must not take another minute of back-off."""
    server.reply = lambda text, number: Reply(status=401 if response_part(text)[2] == "#0" else 500, delay=0.1)
    begin = time.monotonic()
    with pytest.raises(JudgeDown):
        http_judge(endpoint(server, backoff=30.0), Counters())(pairs("#1", "#2", "#3", "#0"))
    assert time.monotonic() - begin < 10


@pytest.mark.extra
def test_failures_add_up_over_batches(server):
    server.reply = lambda text, number: Reply(status=400)
    scorer = http_judge(endpoint(server, give_up_after=5), Counters())
    for batch in (("#1", "#2"), ("#3", "#4")):
        assert same(scorer(pairs(*batch)), [nan, nan])
    with pytest.raises(JudgeDown, match="5 failed requests"):
        scorer(pairs("#5"))


@pytest.mark.extra
def test_a_good_answer_starts_the_count_again(server):
    server.reply = lambda text, number: Reply(status=200 if response_part(text)[2] == "#0" else 400)
    scorer = http_judge(endpoint(server, give_up_after=5), Counters())
    for batch in (("#1", "#2", "#3", "#4"), ("#5", "#0", "#6"), ("#7", "#8", "#9", "#10")):
        scorer(pairs(*batch))
    with pytest.raises(JudgeDown):
        scorer(pairs("#11"))


@pytest.mark.extra
def test_known_scores_neither_add_to_the_count_nor_end_it(server):
    server.reply = lambda text, number: Reply(status=200 if response_part(text)[2] == "#0" else 400)
    scorer = http_judge(endpoint(server, give_up_after=3), Counters())
    scorer(pairs("#0"))
    assert same(scorer(pairs("#0", "#1", "#2")), [7, nan, nan])
    assert scorer(pairs("#0")) == [7]
    with pytest.raises(JudgeDown):
        scorer(pairs("#0", "#3"))


@pytest.mark.extra
def test_quick_refusals_do_not_outrun_a_slow_good_answer(server):
    counters = Counters()
    server.reply = late_first(counters, failures=11, status=400)
    scores = http_judge(endpoint(server, give_up_after=5), counters)(pairs(*(f"#{n}" for n in range(12))))
    assert same(scores, [7, *[nan] * 11])


@pytest.mark.extra
def test_after_a_good_answer_the_whole_batch_is_asked(server):
    server.reply = lambda text, number: Reply(status=500 if number else 200)
    scorer = http_judge(endpoint(server, give_up_after=2, concurrency=1, retries=0), Counters())
    assert same(scorer(pairs(*(f"#{n}" for n in range(9)))), [7, *[nan] * 8])
    assert len(server.bodies) == 9


@pytest.mark.extra
@pytest.mark.parametrize("status", [401, 404])
def test_a_wrong_key_or_model_is_told_at_once(server, status):
    server.reply = lambda text, number: Reply(status=status)
    with pytest.raises(JudgeDown, match=f"HTTP {status}"):
        http_judge(endpoint(server, concurrency=1), Counters())(pairs(*(f"#{n}" for n in range(40))))
    assert len(server.bodies) < 20  # one, and what was sent before it was read


@pytest.mark.extra
def test_what_was_scored_before_it_went_down_is_kept(server, tmp_path):
    """Also by a request that was under way when it was given up."""
    counters = Counters()
    server.reply = late_first(counters, failures=2, status=500)
    cached = endpoint(server, give_up_after=2, retries=0, cache=tmp_path / "cache.jsonl")
    with pytest.raises(JudgeDown):
        http_judge(cached, counters)(pairs("#0", "#1", "#2"))
    before = len(server.bodies)
    assert http_judge(cached, Counters())(pairs("#0")) == [7]
    assert len(server.bodies) == before


@pytest.mark.extra
def test_nobody_listens(server):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = replace(endpoint(server), base_url=f"http://127.0.0.1:{free.getsockname()[1]}/v1", give_up_after=2)
    with pytest.raises(JudgeDown, match="ConnectError"):
        http_judge(nobody, Counters())(pairs("#1", "#2"))


# ---------------------------------------------------------------------------------------- the cache in use


@pytest.mark.extra
def test_nothing_is_paid_twice(server, tmp_path):
    server.reply = graded_by_text
    cached, counters = endpoint(server, cache=tmp_path / "cache.jsonl"), Counters()
    scorer = http_judge(cached, counters)
    assert scorer(pairs("#3", "#4")) == scorer(pairs("#3", "#4")) == [3, 4]
    assert http_judge(cached, counters)(pairs("#4", "#3", "#4")) == [4, 3, 4]  # after a resume
    assert len(server.bodies) == counters.calls == 2
    assert counters.cache_hits == 5


@pytest.mark.extra
def test_after_a_kill_the_half_line_alone_is_asked_again(server, tmp_path):
    server.reply = graded_by_text
    cached = endpoint(server, cache=tmp_path / "cache.jsonl", concurrency=1)
    http_judge(cached, Counters())(pairs("#3", "#4"))
    cached.cache.write_bytes(cached.cache.read_bytes()[:-20])
    for calls in (1, 0):
        counters = Counters()
        assert http_judge(cached, counters)(pairs("#3", "#4")) == [3, 4]
        assert counters.calls == calls


@pytest.mark.extra
def test_another_model_or_case_is_another_request(server, tmp_path):
    cached, counters = endpoint(server, cache=tmp_path / "cache.jsonl"), Counters()
    http_judge(cached, counters)(pairs("#3"))
    http_judge(replace(cached, model="other"), counters)(pairs("#3"))
    for problem in (replace(PROBLEM, demo="#59"), replace(PROBLEM, question="1+1=")):
        http_judge(cached, counters)([(problem, "#3")])
    assert counters.calls == 4


@pytest.mark.extra
def test_failures_are_not_cached(server, tmp_path):
    server.reply = lambda text, number: Reply(grades(11)) if number < 3 else Reply()
    cached = endpoint(server, cache=tmp_path / "cache.jsonl")
    assert same(http_judge(cached, Counters())(pairs("#3")), [nan])
    assert cached.cache.read_text() == ""
    assert http_judge(cached, Counters())(pairs("#3")) == [7]
