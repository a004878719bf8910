"""How an endpoint wants to be asked is found out at the start: servers that refuse one thing or another, and models
that think first."""

import json
from math import nan

import pytest
from judge_server import KEY, Reply, endpoint, grades, pairs, same

from judges.endpoint import JSON_MODES, LONG, SHORT
from judges.http import http_judge
from judges.prompt import Counters
from scoring import EXAMPLE_PROBLEM

pytestmark = pytest.mark.extra


def refusal(message, status=400):
    return Reply(status=status, body=json.dumps({"error": {"message": message}}).encode())


def no_max_tokens(body):
    """The newer models of OpenAI, in their words."""
    if "max_tokens" in body:
        said = (
            "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
        )
        return refusal(said)
    if body.get("temperature", 1) != 1:
        said = "Unsupported value: 'temperature' does not support 0.0 with this model. Only the default (1) value is "
        return refusal(said + "supported.")


def only_max_tokens(body):
    """A server that names the field in a list of errors, as FastAPI does."""
    if "max_completion_tokens" in body or "temperature" in body:
        field = "max_completion_tokens" if "max_completion_tokens" in body else "temperature"
        detail = [{"type": "extra_forbidden", "loc": ["body", field], "msg": "Extra inputs are not permitted"}]
        return Reply(status=422, body=json.dumps({"detail": detail}).encode())


def only_schema(body):
    """LM Studio."""
    if body.get("response_format", {"type": "text"})["type"] == "json_object":
        said = {"error": "'response_format.type' must be 'json_schema' or 'text'"}
        return Reply(status=400, body=json.dumps(said).encode())


def only_object(body):
    """DeepSeek."""
    if body.get("response_format", {"type": "json_object"})["type"] != "json_object":
        return refusal("This response_format type is unavailable now")


def no_json(body):
    if "response_format" in body:
        return Reply(status=400, body=b"unknown field: response_format", headers={"Content-Type": "text/plain"})


def no_json_and_breaks(body):
    if "response_format" in body:
        return refusal("response_format: not implemented", status=500)


def no_reasons(body):
    """Only temperature is wrong, and it does not say so."""
    if "temperature" in body:
        return Reply(status=400, body=b"bad request")


def words_with_json(body):
    """A JSON mode that spoils the reply."""
    if "response_format" in body:
        return Reply("")


def thinks_long(body):
    """Thinking counts, and 512 tokens are not enough for it."""
    if body.get("max_tokens", body.get("max_completion_tokens")) < 2000:
        return Reply(None, finish_reason="length", message={"reasoning_content": "The task is"})


def thinks_unseen(body):
    if body.get("max_tokens", body.get("max_completion_tokens")) < 2000:
        return Reply("", finish_reason="length")


def thinks_in_tags(body):
    return Reply(f"<think>59 is right.</think>\n{grades(7)}")


def thinks_in_a_small_window(body):
    """8192 tokens are more than it takes."""
    if body.get("max_tokens", body.get("max_completion_tokens")) > 4000:
        return refusal("max_tokens is too large: 8192. This model supports at most 4096 completion tokens.")
    return thinks_in_tags(body)


def thinks_and_breaks(body):
    return Reply("<think>", finish_reason="length") if body["max_tokens"] < 2000 else Reply(status=500)


SCHEMA, OBJECT = ({"response_format": JSON_MODES[mode]} for mode in ("json_schema", "json_object"))
ZERO, CAP = {"temperature": 0.0}, {"max_tokens": SHORT}
SERVERS = {  # what the server does: what it is asked in the end, and after how many requests
    "takes all": (lambda body: None, SCHEMA | ZERO | CAP, 1),
    "no max_tokens": (no_max_tokens, SCHEMA | {"max_completion_tokens": SHORT}, 3),
    "a list of errors": (only_max_tokens, SCHEMA | CAP, 2),
    "only json_schema": (only_schema, SCHEMA | ZERO | CAP, 1),
    "only json_object": (only_object, OBJECT | ZERO | CAP, 2),
    "no response_format": (no_json, ZERO | CAP, 3),
    "a 500 for it": (no_json_and_breaks, ZERO | CAP, 7),
    "no reasons": (no_reasons, {"max_tokens": SHORT}, 4),
    "JSON mode spoils it": (words_with_json, ZERO | CAP, 3),
    "thinks long": (thinks_long, SCHEMA | ZERO | {"max_tokens": LONG}, 2),
    "thinks unseen": (thinks_unseen, SCHEMA | ZERO | {"max_tokens": LONG}, 2),
    "thinks in tags": (thinks_in_tags, SCHEMA | ZERO | {"max_tokens": LONG}, 2),
    "thinks in a small window": (thinks_in_a_small_window, SCHEMA | ZERO | CAP, 3),
}


def serve(server, react):
    server.reply = lambda text, number: react(server.bodies[number]) or Reply()


def form_of(body):
    return {name: value for name, value in body.items() if name not in ("model", "messages")}


@pytest.mark.parametrize("name", SERVERS)
def test_it_finds_out_how_to_ask_and_says_so_in_one_line(server, capsys, name):
    react, form, requests = SERVERS[name]
    serve(server, react)
    counters = Counters()
    judge = http_judge(endpoint(server, form=None), counters)
    assert len(server.bodies) == requests
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "no score" not in said
    assert ("max_completion_tokens" in said) == ("max_completion_tokens" in form) and str(
        max(value for key, value in form.items() if key.startswith("max_"))
    ) in said
    assert judge(pairs("#58")) == [7]
    assert form_of(server.bodies[-1]) == form
    assert counters.calls == 1, "finding out is not part of a step's cost"


def test_what_got_a_reply_is_kept_when_another_form_breaks_the_server(server, capsys):
    serve(server, thinks_and_breaks)
    http_judge(endpoint(server, form=None, retries=0), Counters())
    said = capsys.readouterr().err
    assert f"max_tokens {SHORT} " in said and "no score: HTTP 500" in said


def test_the_sample_is_small_and_its_own(server):
    http_judge(endpoint(server, form=None), Counters())
    (body,) = server.bodies
    assert EXAMPLE_PROBLEM.demo in body["messages"][0]["content"]


@pytest.mark.parametrize("mode", JSON_MODES)
def test_a_json_mode_that_is_named_is_the_only_one(server, mode):
    http_judge(endpoint(server, form=None, json_mode=mode), Counters())
    wanted = JSON_MODES[mode]
    assert [body.get("response_format") for body in server.bodies] == [wanted]


def test_a_json_mode_that_is_named_and_refused_is_an_error_in_the_servers_words(server, capsys):
    serve(server, only_schema)
    with pytest.raises(SystemExit) as end:
        http_judge(endpoint(server, form=None, json_mode="json_object"), Counters())
    err = capsys.readouterr().err
    assert end.value.code == 2 and err.count("\n") == 1
    assert "must be 'json_schema' or 'text'" in err


@pytest.mark.parametrize("react", [thinks_long, thinks_in_tags, thinks_unseen])
def test_a_length_that_is_named_is_kept(server, capsys, react):
    serve(server, react)
    http_judge(endpoint(server, form=None, reply_tokens=300), Counters())
    assert {body["max_tokens"] for body in server.bodies} == {300}
    assert ("--judge-tokens" in capsys.readouterr().err) == (react is not thinks_in_tags)


def test_a_judge_that_never_gives_a_score_is_said_and_asked_all_the_same(server, capsys):
    server.reply = lambda text, number: Reply("I think it is \x1b[2Jfine.")
    judge = http_judge(endpoint(server, form=None, retries=0), Counters())
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "no score" in err and "\\x1b[2Jfine" in err and "\x1b" not in err
    assert len(server.bodies) == len(JSON_MODES)
    assert same(judge(pairs("#58")), [nan])
    assert form_of(server.bodies[-1]) == SCHEMA | ZERO | CAP, "what it was asked first"


@pytest.mark.parametrize(
    ("reply", "words", "requests"),
    [
        (Reply(status=401, body=f"wrong key {KEY}".encode()), "HTTP 401, the key is refused", 1),
        (Reply(status=403, body=f"wrong key {KEY}".encode()), "HTTP 403, the key is refused", 1),
        (Reply(status=404, body=b'{"error": {"message": "no model grader"}}'), "HTTP 404, no model grader", 1),
        (Reply(status=400, body=b'{"detail": "pinned to another"}'), "pinned to another", 5),
        (Reply(status=400, body=b"<h1>Not so</h1>"), "<h1>Not so</h1>", 5),
        (Reply(status=503, body=b"model is loading"), "HTTP 503, model is loading", 3),
        (Reply(body=b"<html>Welcome to the gateway</html>"), "<html>Welcome to the gateway</html>", 3),
        (Reply(status=400, body=b"x\x1b]0;title\x07\x9by"), "HTTP 400, x\\x1b]0;title\\x07", 5),
    ],
)
def test_a_server_that_cannot_be_asked_is_one_line_in_its_own_words(server, capsys, reply, words, requests):
    server.reply = lambda text, number: reply
    with pytest.raises(SystemExit) as end:
        http_judge(endpoint(server, form=None), Counters())
    err = capsys.readouterr().err
    assert end.value.code == 2 and err.count("\n") == 1
    assert words in err and KEY not in err and "\x1b" not in err
    assert len(server.bodies) == requests
    assert "/v1, this one does not" not in err


@pytest.mark.parametrize("reply", [Reply(status=404, body=b"Not Found"), Reply(status=405), Reply(body=b"<html>")])
def test_a_base_url_without_v1_gets_that_hint(server, capsys, reply):
    server.reply = lambda text, number: Reply() if server.paths[number].startswith("/v1/") else reply
    http_judge(endpoint(server, form=None), Counters())
    capsys.readouterr()
    bare = endpoint(server, form=None, retries=0, base_url=server.url.removesuffix("/v1"))
    with pytest.raises(SystemExit):
        http_judge(bare, Counters())
    assert "most base URLs end in /v1, this one does not" in capsys.readouterr().err


def test_a_server_that_is_busy_at_first_is_waited_for(server):
    server.reply = lambda text, number: Reply(status=503) if number < 2 else Reply()
    http_judge(endpoint(server, form=None), Counters())
    assert len(server.bodies) == 3
