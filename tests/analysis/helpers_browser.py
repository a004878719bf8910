"""Headless Chromium through its DevTools pipe, for the tests of the viewer's page: no driver is needed."""

import json
import os
import shutil
import subprocess
import time

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
in_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on PATH")


class Browser:
    """One page of headless Chromium, through --remote-debugging-pipe: JSON ended by NUL on its descriptors 3 and 4."""

    def __init__(self, profile):
        (read_end, self.to), (self.back, write_end) = os.pipe(), os.pipe()
        flags = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--remote-debugging-pipe",
            f"--user-data-dir={profile}",
        ]
        # by way of two high numbers, as the pipes may be 3 and 4 themselves
        command = f'exec 18<&{read_end} 19>&{write_end}; exec "$0" "$@" 3<&18 4>&19 18<&- 19>&-'
        self.process = subprocess.Popen(
            ["bash", "-c", command, CHROMIUM, *flags, "about:blank"],
            pass_fds=(read_end, write_end),
            stderr=subprocess.DEVNULL,
        )
        os.close(read_end)
        os.close(write_end)
        self.sent, self.buffer, self.errors, self.session = 0, b"", [], None
        target = next(t for t in self("Target.getTargets")["targetInfos"] if t["type"] == "page")["targetId"]
        self.session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Runtime", "Log", "Network", "Page"):
            self(f"{domain}.enable")

    def __call__(self, method, **params):
        self.sent += 1
        message = {"id": self.sent, "method": method, "params": params}
        os.write(self.to, json.dumps(message | ({"sessionId": self.session} if self.session else {})).encode() + b"\0")
        while True:
            while b"\0" not in self.buffer:
                part = os.read(self.back, 1 << 20)
                assert part, "chromium has ended"
                self.buffer += part
            text, _, self.buffer = self.buffer.partition(b"\0")
            answer = json.loads(text)
            if answer.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.errors.append(answer["params"])
            if answer.get("id") == self.sent:
                assert "error" not in answer, answer
                return answer["result"]

    def open(self, path, hash=""):
        self.errors.clear()
        self("Page.navigate", url="about:blank")
        self("Page.navigate", url=f"file://{path}#{hash}")
        end = time.monotonic() + 20
        while not self.js("document.readyState === 'complete' && location.protocol === 'file:'"):
            assert time.monotonic() < end
            time.sleep(0.02)

    def js(self, expression):
        done = self("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def at(self, hash):
        """The address changes, as by a link to another state of the page."""
        self.js(
            f"new Promise(done => {{ addEventListener('hashchange', () => done(1), {{once: true}}); "
            f"location.hash = '#' + {json.dumps(hash)} + '&n={self.sent}' }})"
        )

    def key(self, name):
        code = {"ArrowRight": 39, "ArrowLeft": 37, "Tab": 9}[name]
        for kind in ("keyDown", "keyUp"):
            self("Input.dispatchKeyEvent", type=kind, key=name, code=name, windowsVirtualKeyCode=code)

    def texts(self, selector):
        return self.js(f"[...document.querySelectorAll({json.dumps(selector)})].map(e => e.textContent)")

    def close(self):
        self("Browser.close")
        self.process.wait(timeout=20)
        os.close(self.to)
        os.close(self.back)
