"""The HTTP judge: S of Eq. 7 by an OpenAI-compatible endpoint, many requests at a time, each score paid for once.

The API key is read from the environment (OPENAI_API_KEY) and never appears in a message, a file or a record. A request
that fails for a reason that may pass is repeated; one without a score in the end is NaN, and its group is masked.
prompt.py says what is sent and how a reply is read.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from math import isnan, nan
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from harness.console import fail, need
from judges.prompt import Counters, JudgeDown, prompt, read_score
from scoring import Scorer
from tasks import Problem

LONGEST_WAIT = 60.0  # seconds before a request is repeated, whatever Retry-After says
LONGEST_REPLY = 200  # tokens; the object takes about 30
TRANSIENT = (408, 409, 425, 429)  # and 5xx: such a status may be gone when the request is repeated
FATAL = (401, 404)  # wrong key, wrong path or model: every other request would fail as well


@dataclass(frozen=True)
class Endpoint:
    """Where and how the HTTP judge is asked. The API key is not a setting, because settings are saved.

    `model` has to take a temperature of 0 and `max_tokens`, as GPT-4o and the models of local servers do.
    """

    base_url: str  # with its path: http://localhost:8000/v1
    model: str  # as the endpoint names it
    cache: Path | None = None  # JSONL of scores by content; runs may share it
    concurrency: int = 16  # requests at a time
    retries: int = 5  # further attempts at a request that failed for a reason that may pass
    backoff: float = 1.0  # seconds before the first of them; it doubles, plus up to half by chance
    timeout: float = 60.0  # seconds without a byte from the endpoint
    # JudgeDown after so many failed requests with no good one among them: over as many batches as it takes, each
    # request with all its retries. In a batch with a good answer, failures are the requests' own fault.
    give_up_after: int = 20
    json_mode: bool = True  # response_format={"type": "json_object"}; False for a server that refuses it


@dataclass(frozen=True)
class Answer:
    """What became of one request."""

    score: float = nan
    error: str = ""  # why there is no score; never holds the key
    transient: bool = False  # the error may be gone when the request is repeated
    fatal: bool = False  # every other request would fail as well
    wait: float = 0.0  # seconds that the endpoint asks us to wait (Retry-After)
    calls: int = 0
    tokens: int = 0


def http_judge(endpoint: Endpoint, counters: Counters) -> Scorer:
    """A scorer that asks `endpoint`, many at a time, each different request once; failed ones get NaN.

    The scorer raises JudgeDown as Endpoint.give_up_after says, and at once if the key, the path or the model is wrong.
    Scores that it had by then are in the cache. Ends the program with one line if `endpoint` cannot work at all.
    """
    client, known, in_a_row = connect(endpoint), open_cache(endpoint.cache), 0

    def scorer(pairs: list[tuple[Problem, str]]) -> list[float]:
        nonlocal in_a_row  # failed requests since the last batch with a good answer
        begin, answered, error, down = time.perf_counter(), 0, "", False
        prompts = [prompt(problem, response) for problem, response in pairs]
        keys = [content_key(endpoint.model, text) for text in prompts]
        new = {key: text for key, text in zip(keys, prompts, strict=True) if key not in known}
        stop = threading.Event()  # once set, nothing is sent any more and nobody waits; what is under way comes in
        with ThreadPoolExecutor(endpoint.concurrency) as pool:
            try:
                asked = {pool.submit(ask, client, endpoint, text, stop): key for key, text in new.items()}
                for future in as_completed(asked):
                    answer = future.result()
                    counters.calls += answer.calls
                    counters.tokens += answer.tokens
                    if not isnan(answer.score):
                        answered += 1
                        known[asked[future]] = answer.score
                        append_cache(endpoint.cache, asked[future], answer.score)
                    elif answer.calls:
                        in_a_row, error = in_a_row + 1, answer.error
                        # a refusal (400) is quick, so a good answer may still be on its way: that waits for the end
                        enough = answer.fatal or (answer.transient and in_a_row >= endpoint.give_up_after)
                        if enough and not answered:
                            down = True
                            stop.set()
            finally:
                stop.set()
        scores = [known.get(key, nan) for key in keys]
        failures = sum(map(isnan, scores))
        counters.failures += failures
        counters.cache_hits += len(pairs) - failures - answered
        counters.seconds += time.perf_counter() - begin
        if down or (not answered and in_a_row >= endpoint.give_up_after):
            raise JudgeDown(
                f"the judge {endpoint.model} at {endpoint.base_url} is down ({in_a_row} failed requests in a row): "
                f"{error}. Try it with python -m judges --base-url {endpoint.base_url} --model-name {endpoint.model}"
            )
        in_a_row = 0 if answered else in_a_row
        return scores

    return scorer


def connect(endpoint: Endpoint) -> Any:
    """The openai client, which several threads may use. A server of one's own needs no key: it gets a dummy."""
    openai = need("openai", "the HTTP judge")
    try:
        url = urlsplit(endpoint.base_url)
    except ValueError:
        url = urlsplit("")
    if url.scheme not in ("http", "https") or not url.hostname:
        fail(f"the judge's base URL {endpoint.base_url!r} is not valid: it looks like http://localhost:8000/v1")
    if url.username or url.password or url.query:
        fail("the judge's base URL holds a name, a password or a query: put the key in OPENAI_API_KEY instead")
    key = os.environ.get("OPENAI_API_KEY", "").strip() or "none-needed"
    if not (key.isascii() and key.isprintable()):
        fail("OPENAI_API_KEY holds characters that no HTTP header takes: set it again")
    # without its own retries: `ask` counts them, and also repeats a request whose reply is not a score
    return openai.OpenAI(base_url=endpoint.base_url, api_key=key, timeout=endpoint.timeout, max_retries=0)


def ask(client: Any, endpoint: Endpoint, text: str, stop: threading.Event) -> Answer:
    """One request with its retries, in a thread of the pool. Does not raise for anything that the endpoint does."""
    answer, calls, tokens = Answer(error="not asked"), 0, 0
    for attempt in range(endpoint.retries + 1):
        if stop.is_set():
            break
        answer = request(client, endpoint, text)
        calls, tokens = calls + 1, tokens + answer.tokens
        if not answer.transient or attempt == endpoint.retries:
            break
        # up to half longer by chance: threads that failed together shall not come back together
        stop.wait(min(answer.wait or endpoint.backoff * 2**attempt, LONGEST_WAIT) * random.uniform(1, 1.5))
    return replace(answer, calls=calls, tokens=tokens)


def request(client: Any, endpoint: Endpoint, text: str) -> Answer:
    """One HTTP request. Errors become text here: the exceptions hold headers, and those the key."""
    import openai

    def words(text: str) -> str:  # the key goes before anything is cut off, or a part of it could stay
        return " ".join(text.replace(client.api_key, "***").split())[:200]

    form = {"response_format": {"type": "json_object"}} if endpoint.json_mode else {}
    chat = [{"role": "user", "content": text}]
    try:
        completion = client.chat.completions.create(
            model=endpoint.model, messages=chat, temperature=0.0, max_tokens=LONGEST_REPLY, **form
        )
    except openai.APIStatusError as error:
        status, after = error.status_code, error.response.headers.get("retry-after", "")
        # a refusal of the key commonly quotes a part of it: its words are not repeated
        why = "the key is refused" if status in (401, 403) else words(error.message)
        wait = float(after) if after.replace(".", "", 1).isdecimal() else 0.0  # a date: our own back-off is as good
        return Answer(nan, f"HTTP {status}, {why}", status in TRANSIENT or status >= 500, status in FATAL, wait)
    except (openai.OpenAIError, ValueError, RecursionError) as error:  # the last two: a body of garbage
        return Answer(error=f"no answer ({type(error.__cause__ or error).__name__})", transient=True)
    usage = getattr(completion, "usage", None)
    counts = [getattr(usage, name, 0) for name in ("prompt_tokens", "completion_tokens")]
    tokens = sum(count for count in counts if type(count) is int)
    try:  # the client checks no types: every part of the body may be anything
        return Answer(read_score(completion.choices[0].message.content), tokens=tokens)
    except (ValueError, TypeError, AttributeError, LookupError) as error:
        why = str(error) if isinstance(error, ValueError) else "no answer (no choices[0].message.content in the body)"
        return Answer(error=words(why), transient=True, tokens=tokens)


def content_key(model: str, text: str) -> str:
    """What names a score in the cache: the model and the whole prompt, whoever serves it."""
    return hashlib.sha256(json.dumps([model, text]).encode()).hexdigest()


def open_cache(path: Path | None) -> dict[str, float]:
    """The scores in a cache file by key. Invalid lines, as a kill leaves them, are skipped.

    Ends the program with one line if the file can be neither read nor made.
    """
    if path is None:
        return {}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+", encoding="utf-8", errors="replace") as file:
            file.seek(0)
            lines = file.read().split("\n")
            if lines[-1]:  # half a line: what is appended must not be glued to it
                file.write("\n")
    except OSError as error:
        fail(f"the judge's cache {path} cannot be used ({error.strerror}): choose another file")
    scores = {}
    for line in lines:
        try:
            entry = json.loads(line)
            if 1 <= entry["score"] <= 10:
                scores[entry["key"]] = float(entry["score"])
        except (ValueError, TypeError, KeyError):
            continue
    return scores


def append_cache(path: Path | None, key: str, score: float) -> None:
    """A line for a score: in one write, so that runs which share the file do not mix their lines."""
    if path:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"key": key, "score": score}) + "\n")
