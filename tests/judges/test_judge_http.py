"""A judge behind an HTTP endpoint: a real server on loopback, through the openai client; its good and bad answers."""

import json
import time
import traceback
from math import nan

import pytest
from judge_server import (
    FORM,
    HOSTILE,
    KEY,
    PROBLEM,
    Reply,
    endpoint,
    good_in_the_end,
    graded_by_text,
    grades,
    pairs,
    response_part,
    same,
)

from judges.endpoint import Endpoint
from judges.http import http_judge
from judges.prompt import Counters, JudgeDown, prompt
from tasks import solve

# ---------------------------------------------------------------------------------------- good answers


@pytest.mark.extra
def test_scores_come_in_the_order_of_the_responses(server):
    server.reply = good_in_the_end
    counters = Counters()
    responses = [f"#{n}" for n in (1, 10, 4, 9, 2)]
    assert http_judge(endpoint(server), counters)(pairs(*responses)) == [1, 10, 4, 9, 2]
    figures = counters.take()
    assert figures.pop("judge_seconds") > 0.18
    assert figures == {"judge_calls": 5, "judge_cache_hits": 0, "judge_failures": 0, "judge_tokens": 550}
    assert not any(counters.take().values())


@pytest.mark.extra
def test_what_is_sent(server):
    http_judge(endpoint(server), Counters())(pairs("#58"))
    (body,), (headers,) = server.bodies, server.headers
    assert server.paths == ["/v1/chat/completions"]
    assert headers["Authorization"] == f"Bearer {KEY}"
    chat = [{"role": "user", "content": prompt(PROBLEM, "#58")}]
    assert body == {"model": "grader", "messages": chat} | FORM


@pytest.mark.extra
@pytest.mark.parametrize("value", [None, "", " \n"])
def test_a_server_of_ones_own_needs_no_key(server, monkeypatch, value):
    monkeypatch.delenv("OPENAI_API_KEY")
    if value is not None:
        monkeypatch.setenv("OPENAI_API_KEY", value)
    assert http_judge(endpoint(server), Counters())(pairs("#58")) == [7]
    assert len(server.headers[0]["Authorization"]) > len("Bearer ")


@pytest.mark.extra
def test_no_pairs_need_no_call(server):
    assert http_judge(endpoint(server), Counters())([]) == []
    assert not server.bodies


@pytest.mark.extra
@pytest.mark.parametrize("response", HOSTILE)
def test_the_endpoints_own_answer_counts(server, response):
    """A judge that is not impressed; and one that quotes the response before it answers: that is no score at all."""
    server.reply = lambda text, number: Reply(grades(2))
    assert http_judge(endpoint(server), Counters())(pairs(response)) == [2]
    server.reply = lambda text, number: Reply(f"{response_part(text)[2]}\n{grades(2)}")
    assert same(http_judge(endpoint(server), Counters())(pairs(response)), [nan])


@pytest.mark.extra
def test_requests_run_side_by_side_and_never_more_than_allowed(server):
    server.reply = lambda text, number: Reply(delay=0.15)
    http_judge(endpoint(server, concurrency=4), Counters())(pairs(*(f"#{n}" for n in range(12))))
    assert server.busiest == 4
    assert len(server.bodies) == 12


@pytest.mark.extra
def test_the_same_request_is_sent_once(server):
    server.reply = graded_by_text
    counters = Counters()
    asked = [*pairs("#3", "#4", "#3", "#3"), (solve("1+1=", "1"), "#3")]
    assert http_judge(endpoint(server), counters)(asked) == [3, 4, 3, 3, 3]
    assert len(server.bodies) == counters.calls == 3
    assert counters.cache_hits == 2


# ---------------------------------------------------------------------------------------- bad ones

PASSING = {
    "429": Reply(status=429),
    "500": Reply(status=500),
    "503 in HTML": Reply(status=503, body=b"<html>busy</html>", headers={"Content-Type": "text/html"}),
    "408": Reply(status=408),
    "slow": Reply(delay=0.6),
    "closed connection": Reply(silent=True),
    "closed in the body": Reply(missing=20),
    "closed in the body of an error": Reply(status=500, missing=20),
    "no JSON": Reply(body=b"\xff\xfe garbage"),
    "JSON cut off": Reply(body=b'{"choices": [{"mess'),
    "deep JSON": Reply(body=b"[" * 100_000),
    "no body": Reply(body=b""),
    "text": Reply(body=b"hello", headers={"Content-Type": "text/plain"}),
    "null": Reply(body=b"null"),
    "a list": Reply(body=b"[]"),
    "a number": Reply(body=b"5"),
    "an error with status 200": Reply(body=b'{"error": {"message": "overloaded"}}'),
    "no choices": Reply(body=b'{"choices": []}'),
    "choices are null": Reply(body=b'{"choices": null}'),
    "no message": Reply(body=b'{"choices": [{}]}'),
    "a message of text": Reply(body=b'{"choices": [{"message": "7"}]}'),
    "content is an object": Reply(content={"score": 7}),
    "content is null": Reply(content=None),
    "usage is text": Reply(body=b'{"choices": [], "usage": "much"}'),
    "usage holds text": Reply(body=b'{"choices": [], "usage": {"prompt_tokens": "9", "completion_tokens": null}}'),
    "a score that is none": Reply(grades(11)),
    "an answer cut off": Reply(grades(7)[:-5]),
}


@pytest.mark.extra
@pytest.mark.parametrize("name", PASSING)
def test_what_may_pass_is_asked_again_and_is_no_score_if_it_stays(server, name):
    server.reply = lambda text, number: Reply(grades(4)) if number == 1 else PASSING[name]
    counters = Counters()
    scorer = http_judge(endpoint(server, timeout=0.3, retries=1), counters)
    assert scorer(pairs("#58")) == [4]
    assert (counters.calls, counters.failures, counters.cache_hits) == (2, 0, 0)
    assert same(scorer(pairs("#59")), [nan])
    assert (counters.calls, counters.failures, counters.cache_hits) == (4, 1, 0)


@pytest.mark.extra
@pytest.mark.parametrize("status", [400, 403, 413, 422])
def test_a_refusal_is_not_repeated_and_others_are_scored(server, status):
    server.reply = lambda text, number: Reply(status=status) if response_part(text)[2] == "#1" else Reply()
    counters = Counters()
    assert same(http_judge(endpoint(server), counters)(pairs("#1", "#2", "#1")), [nan, 7, nan])
    assert (counters.calls, counters.failures, counters.cache_hits) == (2, 2, 0)


@pytest.mark.extra
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("500", "HTTP 500"),
        ("slow", "no whole answer within 0.3 s"),
        ("closed connection", "RemoteProtocolError"),
        ("no JSON", "no answer"),
        ("no choices", "choices"),
        ("a score that is none", '"score": 11'),
    ],
)
def test_the_last_error_is_told(server, name, words):
    server.reply = lambda text, number: PASSING[name]
    with pytest.raises(JudgeDown) as caught:
        http_judge(endpoint(server, timeout=0.3, retries=0, give_up_after=1), Counters())(pairs("#58"))
    assert words in str(caught.value)


@pytest.mark.extra
def test_tokens_of_bad_replies_are_paid_too(server):
    server.reply = lambda text, number: Reply("words") if number == 0 else Reply()
    counters = Counters()
    http_judge(endpoint(server), counters)(pairs("#58"))
    assert counters.tokens == 220


def gaps(server):
    return [later - earlier for earlier, later in zip(server.times, server.times[1:], strict=False)]


@pytest.mark.extra
def test_waits_double(server):
    server.reply = lambda text, number: Reply(status=500)
    http_judge(endpoint(server, backoff=0.1, retries=3), Counters())(pairs("#58"))
    assert all(gap >= wait for gap, wait in zip(gaps(server), (0.1, 0.2, 0.4), strict=True))
    assert sum(gaps(server)) < 4


@pytest.mark.extra
def test_retry_after_is_respected(server):
    server.reply = lambda text, number: Reply(status=429, headers={"Retry-After": ("1", "0.3")[number % 2]})
    http_judge(endpoint(server), Counters())(pairs("#58"))
    assert all(gap >= wait for gap, wait in zip(gaps(server), (1, 0.3), strict=True))


@pytest.mark.extra
@pytest.mark.parametrize(
    "header", ["3600", "9" * 400, "-5", "inf", "nan", "\xb2", "..", "Wed, 21 Oct 2099 07:28:00 GMT", "soon"]
)
def test_retry_after_is_respected_within_reason(server, monkeypatch, header):
    monkeypatch.setattr("judges.endpoint.LONGEST_WAIT", 0.05)
    server.reply = lambda text, number: Reply(status=429, headers={"Retry-After": header})
    begin = time.monotonic()
    assert same(http_judge(endpoint(server), Counters())(pairs("#58")), [nan])
    assert len(server.bodies) == 3
    assert time.monotonic() - begin < 5


# ---------------------------------------------------------------------------------------- the key


@pytest.mark.extra
@pytest.mark.parametrize("status", [200, 400, 401, 403, 404, 429, 500])
def test_a_server_that_quotes_the_key_does_not_get_it_shown(server, tmp_path, capfd, status):
    """Half of it is shown no more than the whole."""

    def reply(text, number):
        quoted = "x" * 9 * number + f" your key {KEY} {KEY}"
        if status in (401, 403):  # as they do it
            quoted = f"wrong key: {KEY[:9]}*****{KEY[-8:]}"
        body = json.dumps({"error": {"message": quoted}}).encode()
        return Reply(quoted) if status == 200 else Reply(status=status, body=body)

    server.reply = reply
    cached = endpoint(server, cache=tmp_path / "cache.jsonl", give_up_after=1, retries=0)
    scorer = http_judge(cached, Counters())
    for _ in range(24):  # wherever the message is cut
        with pytest.raises(JudgeDown) as caught:
            scorer(pairs("#3"))
        shown = "".join(traceback.format_exception(caught.value)) + str(cached) + "".join(capfd.readouterr())
        shown += cached.cache.read_text()
        assert "sk-" not in shown
        assert KEY[-8:] not in shown


@pytest.mark.extra
@pytest.mark.parametrize("key", ["sk-\u20acuro", "sk-two\nlines", "sk-\x00"[:3] + "\x07"])
def test_a_key_that_no_header_takes_is_one_line_without_it(server, monkeypatch, capsys, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(SystemExit) as end:
        http_judge(endpoint(server), Counters())
    shown = capsys.readouterr()
    assert end.value.code == 2
    assert "OPENAI_API_KEY" in shown.err
    assert "sk-" not in shown.err + shown.out


# ---------------------------------------------------------------------------------------- settings


@pytest.mark.extra
@pytest.mark.parametrize("url", ["", "localhost:8000/v1", "/v1", "ftp://host/v1", "http://", "http://[::1/v1"])
def test_a_base_url_that_is_none_is_one_line(server, capsys, url):
    with pytest.raises(SystemExit) as end:
        http_judge(Endpoint(url, "grader"), Counters())
    assert end.value.code == 2
    assert "looks like http" in capsys.readouterr().err


@pytest.mark.extra
@pytest.mark.parametrize("url", [f"http://me:{KEY}@host/v1", f"http://{KEY}@host/v1", f"http://host/v1?key={KEY}"])
def test_a_base_url_with_a_key_in_it_is_refused_and_not_repeated(server, capsys, url):
    with pytest.raises(SystemExit):
        http_judge(Endpoint(url, "grader"), Counters())
    assert KEY not in "".join(capsys.readouterr())


def test_without_the_openai_package_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "openai", None)
    with pytest.raises(SystemExit) as end:
        http_judge(Endpoint("http://127.0.0.1:9/v1", "grader"), Counters())
    assert end.value.code == 2
    assert "requirements-extra.txt" in capsys.readouterr().err
