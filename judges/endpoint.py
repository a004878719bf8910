"""An OpenAI-compatible endpoint: where it is, how it wants to be asked, and one request to it.

Endpoints differ. Newer models refuse `max_tokens`, or any temperature but their own; servers refuse `response_format`,
or require a schema in it; models that think first need more tokens. `settle` finds out by small requests at the start.

Whatever the other side does, a request ends: after Endpoint.timeout, or after LARGEST bytes. Redirects are not
followed: they would send question and response to another server. The API key is read from the environment
(OPENAI_API_KEY) and never appears in a message, a file or a record.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
from contextlib import suppress
from dataclasses import dataclass, replace
from math import isnan, nan
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from harness.console import fail, need
from judges.prompt import FIELDS, JudgeDown, prompt, read_score

LONGEST_WAIT = 60.0  # seconds before a request is repeated, even if Retry-After asks for more
LARGEST = 2**20  # bytes of a reply, unpacked; the object takes about 60, and 8,192 tokens of thinking about 40,000
SHORT, LONG = 256, 8192  # tokens of a reply: the object takes about 30; LONG is for models that think first
TRANSIENT = (408, 409, 425, 429)  # HTTP statuses, with all 5xx, that may be gone when the request is repeated
FATAL = (401, 404)  # wrong key, wrong path or model: every other request would fail as well

SCHEMA = {"type": "object", "properties": {name: {"type": "number"} for name in FIELDS}}
SCHEMA |= {"required": list(FIELDS), "additionalProperties": False}
JSON_MODES = {
    "json_schema": {"type": "json_schema", "json_schema": {"name": "grades", "strict": True, "schema": SCHEMA}},
    "json_object": {"type": "json_object"},
    "none": None,
}


@dataclass(frozen=True)
class Endpoint:
    """Where and how the HTTP judge is asked. The API key is not a setting, because settings are saved."""

    base_url: str  # with its path: http://localhost:8000/v1
    model: str  # as the endpoint names it
    cache: Path | None = None  # JSONL of scores by content; runs may share it
    concurrency: int = 16  # requests at a time
    retries: int = 5  # further attempts at a request that failed for a reason that may pass
    backoff: float = 1.0  # seconds before the first of them; then doubled each time; plus up to half at random
    timeout: float = 120.0  # seconds for a request and its whole reply
    # JudgeDown after this many failed requests (each with all its retries) without a score between them, over any
    # number of batches. In a batch with a score, failures are the requests' own fault.
    give_up_after: int = 20
    json_mode: str = "auto"  # one of JSON_MODES; auto: the first that works
    reply_tokens: int | None = None  # longest reply; None: SHORT, or LONG for a model that thinks first
    form: dict[str, Any] | None = None  # what a request holds apart from model and messages; None: `settle` finds it


@dataclass(frozen=True)
class Answer:
    """What became of one request."""

    score: float = nan
    error: str = ""  # why there is no score; never holds the key
    transient: bool = False  # the error may be gone when the request is repeated
    fatal: bool = False  # every other request would fail as well
    refused: bool = False  # the server rejects this form of request
    replied: bool = False  # the model said something, a score or not
    thinks: bool = False  # the model thinks before it answers
    wait: float = 0.0  # seconds that the endpoint asks us to wait (Retry-After)
    calls: int = 0
    tokens: int = 0


def connect(endpoint: Endpoint) -> Any:
    """The openai client; without OPENAI_API_KEY it sends a dummy key. Ends the program if the URL or key is invalid."""
    openai = need("openai", "the HTTP judge")
    try:
        url = urlsplit(endpoint.base_url)
    except ValueError:
        url = urlsplit("")
    if url.scheme not in ("http", "https") or not url.hostname:
        fail(f"the judge's base URL {endpoint.base_url!r} is not valid: a base URL looks like http://localhost:8000/v1")
    if url.username or url.password or url.query:
        fail("the judge's base URL holds a name, a password or a query: put the key in OPENAI_API_KEY instead")
    key = os.environ.get("OPENAI_API_KEY", "").strip() or "none-needed"
    if not (key.isascii() and key.isprintable()):
        fail("OPENAI_API_KEY holds characters that an HTTP header cannot hold: set it again")

    class Client(openai.DefaultAsyncHttpxClient):
        async def send(self, request: Any, *, stream: bool = False, **more: Any) -> Any:
            """Reads a whole reply, up to LARGEST bytes. The trap: openai reads an error's body without a limit."""
            response, body = await super().send(request, stream=True, **more), b""
            try:
                async for part in response.aiter_bytes():  # a gzip bomb is unpacked piece by piece
                    body += part
                    if len(body) > LARGEST:
                        raise openai.OpenAIError(f"a reply of over {LARGEST} bytes")
            finally:
                await response.aclose()
            packed = (b"content-encoding", b"content-length", b"transfer-encoding")
            headers = [(name, value) for name, value in response.headers.raw if name.lower() not in packed]
            return type(response)(response.status_code, headers=headers, content=body, request=request)

    # no timeout: `request` has one. No retries: `ask` repeats and counts requests, also after a reply without a score
    http = Client(follow_redirects=False, timeout=None)
    return openai.AsyncOpenAI(base_url=endpoint.base_url, api_key=key, max_retries=0, timeout=None, http_client=http)


async def request(client: Any, endpoint: Endpoint, text: str, form: dict[str, Any]) -> Answer:
    """One HTTP request. Errors become text here, because the exceptions hold the headers, and these hold the key."""
    import openai

    def words(text: str) -> str:  # the key is removed before the text is cut, or a part of it could stay
        return " ".join(text.replace(client.api_key, "***").split())[:200]

    hint = "" if re.search(r"/v\d", endpoint.base_url) else "; most base URLs end in /v1, this one does not"
    try:
        async with asyncio.timeout(endpoint.timeout):
            reply = await client.chat.completions.with_raw_response.create(
                model=endpoint.model, messages=[{"role": "user", "content": text}], **form
            )
    except openai.APIStatusError as error:
        status, headers, said = error.status_code, error.response.headers, error.response.text
        if isinstance(error.body, dict) and isinstance(error.body.get("message"), str):
            said = error.body["message"]
        if status in (401, 403):  # a refusal of the key commonly quotes a part of it: its words are not repeated
            said = "the key is refused"
        elif 300 <= status < 400:
            said = f"redirected to {headers.get('location')}, which is not followed"
        after = headers.get("retry-after", "")
        return Answer(
            error=f"HTTP {status}, {words(said)}{hint if status in (404, 405) else ''}",
            transient=status in TRANSIENT or status >= 500,
            fatal=status in FATAL,
            refused=status in (400, 422),
            wait=float(after) if after.replace(".", "", 1).isdecimal() else 0.0,  # for a date, our own back-off
        )
    except TimeoutError:
        return Answer(error=f"no whole answer within {endpoint.timeout:g} s (--judge-timeout)", transient=True)
    except (openai.OpenAIError, ValueError) as error:  # ValueError: headers of garbage
        why = type(error.__cause__).__name__ if error.__cause__ else words(str(error))
        return Answer(error=f"no answer ({why})", transient=True)
    try:  # every part of the body may be anything
        body = json.loads(reply.http_response.content)
        choice, usage = body["choices"][0], body.get("usage")
        message, cut_off = choice["message"], choice.get("finish_reason") == "length"
        content, thoughts = message.get("content"), message.get("reasoning_content") or message.get("reasoning")
    except (ValueError, TypeError, AttributeError, LookupError, RecursionError):
        said = words(reply.http_response.text)
        return Answer(error=f"no answer (no choices[0].message in the body: {said}){hint}", transient=True)
    usage = usage if isinstance(usage, dict) else {}
    tokens = sum(n for n in map(usage.get, ("prompt_tokens", "completion_tokens")) if type(n) is int)
    thinks = bool(thoughts) or "think>" in str(content) or (cut_off and not content)
    done = {"replied": True, "thinks": thinks, "tokens": tokens}
    try:
        return Answer(read_score(content), **done)
    except ValueError as error:
        why = f"the reply was cut off at its limit of tokens (--judge-tokens): {content}" if cut_off else str(error)
        return Answer(error=words(why), transient=not cut_off, **done)


async def ask(
    client: Any,
    endpoint: Endpoint,
    text: str,
    form: dict[str, Any],
    stop: asyncio.Event | None = None,
    any_reply: bool = False,
) -> Answer:
    """One request with its retries, until there is a score (or `any_reply`: a reply) or `stop` is set. Never raises."""
    answer, calls, tokens, stop = Answer(error="not asked"), 0, 0, stop or asyncio.Event()
    for attempt in range(endpoint.retries + 1):
        if stop.is_set():
            break
        answer = await request(client, endpoint, text, form)
        calls, tokens = calls + 1, tokens + answer.tokens
        if not answer.transient or (answer.replied and any_reply) or attempt == endpoint.retries:
            break
        # up to half longer at random: requests that failed together must not come back together
        wait = min(answer.wait or endpoint.backoff * 2**attempt, LONGEST_WAIT) * random.uniform(1, 1.5)
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), wait)
    return replace(answer, calls=calls, tokens=tokens)


async def settle(client: Any, endpoint: Endpoint) -> tuple[dict[str, Any], str]:
    """How this endpoint wants to be asked: the first form of a request that gets a score, and a line that says so.

    If no form gets a score, the first that gets a reply, and the line has a warning. Raises JudgeDown if none does.
    The field to change is the one that the server's refusal names, else the first in `left` that has another way.
    """
    left = {  # a word that names the field in a refusal: the ways that are left
        "response_format": list(JSON_MODES) if endpoint.json_mode == "auto" else [endpoint.json_mode],
        "temperature": [{"temperature": 0.0}, {}],
        "max_": ["max_tokens", "max_completion_tokens"],
    }
    tokens, calls, found, scored = endpoint.reply_tokens or SHORT, 0, None, False
    from scoring import EXAMPLE_PROBLEM  # imports torch, for which --help must not wait

    text = prompt(EXAMPLE_PROBLEM, EXAMPLE_PROBLEM.demo)
    while True:
        asked = (*(ways[0] for ways in left.values()), tokens)
        answer = await ask(client, endpoint, text, build_form(*asked), any_reply=True)
        calls += answer.calls
        if answer.replied and (found is None or not isnan(answer.score)):
            found, scored = asked, not isnan(answer.score)
        if answer.thinks and tokens == SHORT and not endpoint.reply_tokens:
            tokens = LONG
            continue
        named = [word for word in left if word in answer.error]
        suspects = ["response_format"] if answer.replied else named or (left if answer.refused else [])
        blamed = next((word for word in suspects if len(left[word]) > 1), None)
        if not isnan(answer.score) or blamed is None:
            break
        left[blamed].pop(0)
    if found is None:
        raise JudgeDown(down(endpoint, answer.error))
    mode, temperature, length, tokens = found
    heat = "temperature 0" if temperature else "its own temperature"
    said = f"judge {endpoint.model}: response_format {mode}, {heat}, {length} {tokens} (requests to find out: {calls})"
    return build_form(*found), said if scored else f"{said}; warning: a sample got no score: {answer.error}"


def build_form(mode: str, temperature: dict[str, float], length: str, tokens: int) -> dict[str, Any]:
    """What a request holds apart from model and messages."""
    wanted = JSON_MODES[mode]
    return temperature | {length: tokens} | ({"response_format": wanted} if wanted else {})


def down(endpoint: Endpoint, error: str) -> str:
    """One line: which judge, its error, and how to try it."""
    return (
        f"the judge {endpoint.model} at {endpoint.base_url} is down: {error}. "
        f"Try it with python -m judges --base-url {endpoint.base_url} --model-name {endpoint.model}"
    )
