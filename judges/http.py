"""The HTTP judge: S of Eq. 7 by an OpenAI-compatible endpoint, many requests at a time, each score paid for once.

A request that fails for a reason that may pass is repeated. If it gets no score in the end, S is NaN and its group is
masked. endpoint.py makes a single request and finds out how an endpoint wants to be asked; prompt.py has the prompt and
reads the reply.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
import threading
import time
from collections.abc import Coroutine
from functools import cache
from math import isnan, nan
from pathlib import Path
from typing import Any

from harness.console import fail, visible
from judges.endpoint import Answer, Endpoint, ask, connect, down, settle
from judges.prompt import Counters, JudgeDown, prompt
from scoring import Scorer
from tasks import Problem


def http_judge(endpoint: Endpoint, counters: Counters) -> Scorer:
    """A scorer that asks `endpoint`: many requests at a time, each different one once; failed ones get NaN.

    First sends a sample and prints how the endpoint wants to be asked, unless Endpoint.form says so. Ends the program
    with one line if `endpoint` cannot work at all. The scorer raises JudgeDown as Endpoint.give_up_after says, and at
    once if the key, the path or the model is wrong. Scores that came before that are in the cache.
    """
    client, known, in_a_row = connect(endpoint), open_cache(endpoint.cache), 0
    form = endpoint.form or find_form(client, endpoint)

    async def grade(pairs: list[tuple[Problem, str]]) -> list[float]:
        nonlocal in_a_row  # failed requests since the last batch with a good answer
        begin, answered, error, gave_up = time.perf_counter(), 0, "", False
        prompts = [prompt(problem, response) for problem, response in pairs]
        keys = [content_key(endpoint.model, text) for text in prompts]
        new = {key: text for key, text in zip(keys, prompts, strict=True) if key not in known}
        stop = asyncio.Event()  # once set, nothing more is sent and no retry waits; requests under way still finish
        places = asyncio.Semaphore(endpoint.concurrency)

        async def answer_to(key: str) -> tuple[str, Answer]:
            async with places:
                return key, await ask(client, endpoint, new[key], form, stop)

        tasks = [asyncio.create_task(answer_to(key)) for key in new]
        try:
            for task in asyncio.as_completed(tasks):
                key, answer = await task
                counters.calls += answer.calls
                counters.tokens += answer.tokens
                if not isnan(answer.score):
                    answered += 1
                    known[key] = answer.score
                    append_cache(endpoint.cache, key, answer.score)
                elif answer.calls:
                    in_a_row, error = in_a_row + 1, answer.error
                    # a refusal (400) is quick, so a score may still be on its way: refusals count only at the end
                    enough = answer.fatal or (answer.transient and in_a_row >= endpoint.give_up_after)
                    if enough and not answered:
                        gave_up = True
                        stop.set()
        finally:
            for task in tasks:
                task.cancel()
        scores = [known.get(key, nan) for key in keys]
        failures = sum(map(isnan, scores))
        counters.failures += failures
        counters.cache_hits += len(pairs) - failures - answered
        counters.seconds += time.perf_counter() - begin
        if gave_up or (not answered and in_a_row >= endpoint.give_up_after):
            raise JudgeDown(down(endpoint, f"{in_a_row} failed requests in a row, the last: {error}"))
        in_a_row = 0 if answered else in_a_row
        return scores

    return lambda pairs: wait_for(grade(pairs))


def find_form(client: Any, endpoint: Endpoint) -> dict[str, Any]:
    """What `settle` finds, with its line on stderr; ends the program if the endpoint cannot be asked."""
    try:
        form, said = wait_for(settle(client, endpoint))
    except JudgeDown as error:
        fail(str(error))
    print(visible(said), file=sys.stderr)
    return form


def wait_for(work: Coroutine) -> Any:
    """The result of `work` on the loop of all judges. A signal interrupts the waiting, and ends the work."""
    future = asyncio.run_coroutine_threadsafe(work, loop())
    try:
        return future.result()
    finally:
        future.cancel()


@cache
def loop() -> asyncio.AbstractEventLoop:
    """An event loop in a daemon thread: it runs in a notebook too, and never keeps the program from ending."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="judges", daemon=True).start()
    return loop


def content_key(model: str, text: str) -> str:
    """The key of a score in the cache: a hash of model and whole prompt, whichever server is asked."""
    return hashlib.sha256(json.dumps([model, text]).encode()).hexdigest()


def open_cache(path: Path | None) -> dict[str, float]:
    """The scores in a cache file by key. Invalid lines, such as a kill leaves, are skipped.

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
    """Adds a score's line in one write, so that runs that share the file do not mix their lines."""
    if path:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"key": key, "score": score}) + "\n")
