"""Judges that drip, never end, send bombs or send elsewhere: a request ends all the same, and so does the program."""

import gzip
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
import zlib
from itertools import repeat

import pytest
from helpers import ROOT
from judge_server import Reply, Server, endpoint, grades, pairs, wait_for

from judges.endpoint import LARGEST
from judges.http import http_judge
from judges.prompt import Counters, JudgeDown

pytestmark = pytest.mark.extra

OK = b"HTTP/1.1 200 OK\r\n"
JSON = OK + b"Content-Type: application/json\r\n"
EMPTY = b"\x00\x00\x00\xff\xff"  # a block of nothing, packed
A_WHILE = 400  # parts, 20 ms apart: longer than any test waits


def drip(head, parts, pause=0.02):
    """Sends `head` at once, and then part after part."""

    def send(connection):
        connection.sendall(head)
        for part in parts:
            connection.sendall(part)
            time.sleep(pause)

    return Reply(raw=send)


SLOW = {
    "says nothing": drip(b"", repeat(b"", A_WHILE)),
    "drips its first line": drip(b"", (bytes([byte]) for byte in OK * A_WHILE)),
    "never ends its headers": drip(JSON, repeat(b"X-More: 1\r\n", A_WHILE)),
    "drips one header": drip(JSON + b"X-Long: ", repeat(b"1", A_WHILE)),
    "says 100 Continue for ever": drip(b"", repeat(b"HTTP/1.1 100 Continue\r\n\r\n", A_WHILE)),
    "drips its body": drip(JSON + b"Content-Length: 5000\r\n\r\n", repeat(b" ", A_WHILE)),
    "never ends its body": drip(JSON + b"\r\n" + grades(7).encode(), repeat(b"", A_WHILE)),
    "drips chunks": drip(JSON + b"Transfer-Encoding: chunked\r\n\r\n", repeat(b"1\r\n \r\n", A_WHILE)),
    "drips an error": drip(b"HTTP/1.1 500 No\r\nContent-Length: 5000\r\n\r\n", repeat(b"x", A_WHILE)),
    "drips gzip": drip(JSON + b"Content-Encoding: gzip\r\n\r\n" + gzip.compress(b"")[:10], repeat(EMPTY, A_WHILE)),
}


@pytest.mark.parametrize("name", SLOW)
def test_a_reply_has_to_be_whole_in_time(server, name):
    server.reply = lambda text, number: SLOW[name] if number == 0 else Reply()
    begin = time.monotonic()
    with pytest.raises(JudgeDown, match=r"no whole answer within 0\.5 s"):
        http_judge(endpoint(server, timeout=0.5, retries=0, give_up_after=1), Counters())(pairs("#58"))
    assert time.monotonic() - begin < 3
    assert http_judge(endpoint(server, timeout=5), Counters())(pairs("#58")) == [7]


def test_slow_and_whole_is_good_enough(server):
    body = b'{"choices": [{"message": {"content": "%s"}}]}' % grades(7).replace('"', '\\"').encode()
    parts = [bytes([byte]) for byte in body]
    server.reply = lambda text, number: drip(JSON + b"Content-Length: %d\r\n\r\n" % len(body), parts, pause=0.002)
    assert http_judge(endpoint(server), Counters())(pairs("#58")) == [7]


# ---------------------------------------------------------------------------------------- size


def zeros(wbits, size=2**28):
    """Zeros, packed to a thousandth."""
    packer = zlib.compressobj(6, wbits=wbits)
    return b"".join(packer.compress(bytes(2**20)) for _ in range(size // 2**20)) + packer.flush()


@pytest.fixture(scope="module")
def bombs():
    gz = zeros(31)
    packed = {"gzip": gz, "deflate": zeros(15), "gzip, gzip": gzip.compress(gz)}
    return {
        encoding: b"Content-Encoding: %s\r\n\r\n%s" % (encoding.encode(), bomb) for encoding, bomb in packed.items()
    }


@pytest.mark.parametrize("status", [b"200 OK", b"500 No", b"400 No"])
@pytest.mark.parametrize("encoding", ["gzip", "deflate", "gzip, gzip"])
def test_a_bomb_is_not_unpacked(server, bombs, status, encoding):
    server.reply = lambda text, number: drip(b"HTTP/1.1 %s\r\n%s" % (status, bombs[encoding]), [])
    ends_within_its_size(server)


@pytest.mark.parametrize("status", [b"200 OK", b"500 No"])
def test_a_body_without_an_end_is_cut_off(server, status):
    server.reply = lambda text, number: drip(b"HTTP/1.1 %s\r\n\r\n" % status, repeat(b"x" * 2**20, 1000), pause=0)
    ends_within_its_size(server)


def test_headers_without_an_end_are_cut_off(server):
    server.reply = lambda text, number: drip(JSON, repeat(b"X-More: 1\r\n" * 1000, 1000), pause=0)
    ends_within_its_size(server, "RemoteProtocolError")


def ends_within_its_size(server, words=f"a reply of over {LARGEST} bytes"):
    judge = http_judge(endpoint(server, timeout=20, retries=0, give_up_after=1), Counters())
    tracemalloc.start()
    try:
        with pytest.raises(JudgeDown, match=words):
            judge(pairs("#58"))
        assert tracemalloc.get_traced_memory()[1] < 16 * LARGEST
    finally:
        tracemalloc.stop()


def test_a_packed_reply_of_common_size_is_read(server):
    body = b'{"choices": [{"message": {"content": "%s"}}]}' % grades(7).replace('"', '\\"').encode()
    server.reply = lambda text, number: Reply(body=gzip.compress(body), headers={"Content-Encoding": "gzip"})
    assert http_judge(endpoint(server), Counters())(pairs("#58")) == [7]


# ---------------------------------------------------------------------------------------- elsewhere


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_redirects_are_not_followed(server, status, host):
    with Server() as other:
        threading.Thread(target=other.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        place = f"http://{host}:{other.server_port}/v1/chat/completions"
        server.reply = lambda text, number: Reply(status=status, headers={"Location": place})
        judge = http_judge(endpoint(server, give_up_after=1), Counters())
        with pytest.raises(JudgeDown, match=f"HTTP {status}, redirected to {place}, which is not followed"):
            judge(pairs("#58"))
        other.shutdown()
    assert not other.bodies
    assert len(server.bodies) == 1


# ---------------------------------------------------------------------------------------- signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_two_signals_end_a_run_whose_judge_hangs(server, tiny_folder, tmp_path, number):
    for_ever = drip(JSON + b"Content-Length: 1000000\r\n\r\n", repeat(b" "))
    server.reply = lambda text, number: for_ever if number else Reply()
    flags = ["--method", "dagrpo", "--model", str(tiny_folder), "--out", str(tmp_path / "run"), "--steps", "2"]
    flags += ["--batch-prompts", "2", "--group-size", "2", "--updates-per-batch", "1", "--judge-timeout", "600"]
    flags += ["--scorer", "judge", "--judge-url", server.url, "--judge-name", "grader"]
    run = subprocess.Popen([sys.executable, "train.py", *flags], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: len(server.bodies) > 1, seconds=120)
        for _ in range(2):
            run.send_signal(number)
            time.sleep(0.5)
        _, err = run.communicate(timeout=60)  # a busy machine takes seconds to end Python at all
    finally:
        run.kill()
    assert run.returncode == 128 + number
    assert "Traceback" not in err and "Task was destroyed" not in err


def test_the_rest_of_a_batch_is_not_asked_when_its_cache_is_full(server, tmp_path, monkeypatch):
    def full(path, key, score):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("judges.http.append_cache", full)
    judge = http_judge(endpoint(server, concurrency=1, cache=tmp_path / "cache.jsonl"), Counters())
    with pytest.raises(OSError, match="No space left"):
        judge(pairs(*(f"#{n}" for n in range(50))))
    time.sleep(0.2)
    assert len(server.bodies) < 5
