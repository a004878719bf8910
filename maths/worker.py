r"""math-verify in a process of its own, with a time limit that always holds.

math-verify parses LaTeX and simplifies it with sympy: on hostile text that may take hours, or all memory. Its own time
limit is a Unix signal, which works in the main thread only, and not inside C code. So a worker process is started when
it is first needed (about a second), asked one question after the other, killed when an answer takes more than LIMIT
seconds, and started again. It ends with the program that has started it, however that ends.

    python -m maths.worker    a few questions, one of which takes too long
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from types import ModuleType

LIMIT = 5.0  # seconds for one question
START_LIMIT = 120.0  # seconds for the worker to start
MEMORY = 4 << 30  # bytes of address space: 9**9**9 asks for more than there is

# Not multiprocessing: "spawn" would import the main program again, torch and all, and "fork" is not safe with threads.
ROOT = str(Path(__file__).resolve().parents[1])
SERVE = f"import sys; sys.path.insert(0, {ROOT!r}); from maths import worker; worker.serve()"
COMMAND = [sys.executable, "-c", SERVE]

_process: subprocess.Popen[str] | None = None
_lock = threading.Lock()
# a set, so that an answer counts once, however often it is checked and whether its verdict is cached or not
_over_time: set[tuple[str, str | None]] = set()


def equal(gold: str, answer: str) -> bool:
    r"""math-verify's verdict on two pieces of LaTeX, without dollars and with balanced braces.

    False if there is none within LIMIT seconds (see take_timeouts). Raises RuntimeError if the worker does not start.

    >>> equal(r"2\sqrt{3}", r"\sqrt{12}"), equal("(0, 1]", "[0, 1]")
    (True, False)
    """
    verdict = _ask(gold, answer)
    if verdict is None:
        _over_time.add((gold, answer))
    return bool(verdict)


def parses(gold: str) -> bool:
    r"""Can math-verify read this piece of LaTeX? Raises RuntimeError as `equal` does.

    False only if it says so. A gold answer without a verdict, after two tries, is kept and counted as a time-out: a
    slow machine must not change which problems there are.

    >>> parses("x^2 + 1"), parses("?")
    (True, False)
    """
    verdict = _ask(gold, None)
    if verdict is None:
        _over_time.add((gold, None))
    return verdict is not False


def take_timeouts() -> int:
    """How many different answers (or gold answers) had no verdict within LIMIT since the last call."""
    count = len(_over_time)
    _over_time.clear()
    return count


@lru_cache(maxsize=2**14)  # what is slow is slow only once
def _ask(gold: str, answer: str | None) -> bool | None:
    """The worker's verdict; None if it ran out of time."""
    with _lock:
        for last in (False, True):  # once more if somebody else has killed the worker, or for a gold answer
            process = _running()
            try:
                reply, in_time = _exchange(process, json.dumps([gold, answer]), LIMIT)
            except BaseException:  # Ctrl-C: the next question must not get the reply to this one
                _stop()
                raise
            if reply:
                return json.loads(reply)
            _stop()
            if not in_time and (last or answer is not None):
                return None
    return False


def _running() -> subprocess.Popen[str]:
    global _process
    if _process and _process.poll() is None:
        return _process
    for _ in range(3):  # it may be killed while it starts
        _stop()
        _process = subprocess.Popen(
            COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="ascii",
            start_new_session=True,  # Ctrl-C is for the main program, which may want to finish a step
            env={**os.environ, "PYTHONHASHSEED": "0"},  # sympy orders terms by hash: verdicts would vary
        )
        if _exchange(_process, None, START_LIMIT)[0] == "ready\n":
            return _process
    _stop()
    raise RuntimeError("the process that checks answers did not start; is math-verify installed?")


def _exchange(process: subprocess.Popen[str], line: str | None, limit: float) -> tuple[str, bool]:
    """Sends a line and waits for one. The reply ("": the worker has died), and whether it came within the limit."""
    expired = threading.Event()

    def expire() -> None:
        expired.set()
        process.kill()

    timer = threading.Timer(limit, expire)
    timer.daemon = True
    timer.start()
    try:
        if line is not None:
            process.stdin.write(line + "\n")
            process.stdin.flush()
        reply = process.stdout.readline()
    except OSError:  # a broken pipe
        reply = ""
    finally:
        timer.cancel()
        timer.join()  # or it might still kill the worker that the next question goes to
    in_time = not expired.is_set()
    return (reply if in_time and reply.endswith("\n") else ""), in_time


def _stop() -> None:
    """Kills the worker and waits for its end, so that no zombie is left."""
    global _process
    if _process:
        _process.kill()
        with suppress(OSError), _process:  # closes the pipes
            pass
        _process = None


def _forget() -> None:
    """A forked process has its parent's worker in memory: it must not talk to it, nor keep it alive by an open pipe."""
    global _process, _lock
    if _process:
        null = os.open(os.devnull, os.O_RDWR)
        for pipe in (_process.stdin, _process.stdout):
            os.dup2(null, pipe.fileno(), inheritable=False)
        os.close(null)
    _process, _lock = None, threading.Lock()


atexit.register(_stop)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


# ---------------------------------------------------------------------------------------- inside the worker


def serve() -> None:
    """Answers each line of JSON, [gold, answer or null], with a line, true or false, until the main program is gone."""
    replies = os.fdopen(os.dup(1), "w", encoding="ascii")
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)  # a parser's chatter must not be taken for a reply
    from maths import symbolic

    os.dup2(silence, 2)  # only now: the traceback of a missing package must be seen, sympy's later output not
    logging.disable()
    with suppress(ImportError, ValueError, OSError):  # not on every system
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    print("ready", file=replies, flush=True)
    for line in sys.stdin:
        if hasattr(signal, "alarm"):
            signal.alarm(60)  # ends a worker whose main program, and with it the timer, was killed
        print(json.dumps(_verdict(symbolic, *json.loads(line))), file=replies, flush=True)
        if hasattr(signal, "alarm"):
            signal.alarm(0)


def _verdict(symbolic: ModuleType, gold: str, answer: str | None) -> bool:
    try:
        return symbolic.read(gold) is not None if answer is None else symbolic.same(gold, answer)
    except Exception:  # a parser's bug on strange text, too deep a recursion, no memory left
        return False


if __name__ == "__main__":
    for pair in (("2\\sqrt{3}", "\\sqrt{12}"), ("x^2-1", "(x-1)(x+1)"), ("3", "9^{9^{9^9}}"), ("(0,1]", "(0,1]")):
        begin = time.perf_counter()
        print(f"{equal(*pair)!s:6} {time.perf_counter() - begin:5.2f} s  {pair[0]}  =  {pair[1]}")
