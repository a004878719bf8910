"""The viewer's page, opened in headless Chromium (marked `extra`), through its DevTools pipe: no driver is needed."""

import json
import math
import os
import random
import shutil
import subprocess
import time

import pytest
import torch
from helpers_viewer import ATTACK, brute_force_nets, make_record, page_data, random_record, unpack, write_run

import dagrpo
from analysis import pushes, viewer
from dagrpo import METHODS
from harness import report

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


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def random_run(tmp_path_factory):
    rng = random.Random(1)
    records = [random_record(rng, step=g // 8 + 1, group=g % 8) for g in range(80)]
    run = write_run(tmp_path_factory.mktemp("random") / "run", records)
    viewer.main([str(run)])
    return run / "viewer.html", records


def expected_mask(record, delta, recipe=METHODS["dagrpo"]):
    A = pushes.advantages(recipe, record)[None]  # chord and hpt compare an anchor with nothing
    S = torch.tensor([[math.nan if s is None else s for s in record["S"]]])
    return dagrpo.rectification_mask(A, S, delta)[0].tolist(), report.reasons(A, S, delta)[0], A[0].tolist()


@pytest.mark.extra
@in_chromium
def test_the_pages_mask_and_reasons_are_rectification_masks_for_random_groups_and_deltas(browser, random_run):
    path, _ = random_run
    rng, cases = random.Random(2), []
    for _ in range(3000):
        record, delta = random_record(rng), rng.choice([0.0, 3.0, rng.randint(0, 90) / 10, rng.random() * 9])
        keep, reasons, A = expected_mask(record, delta)
        cases.append((A, record["S"], delta, keep, reasons))
    browser.open(path)
    asked = json.dumps([case[:3] for case in cases])
    found = browser.js(f"{asked}.map(([A, S, delta]) => rectify(A, S, delta).map(v => [v.keep, v.why]))")
    for (A, S, delta, keep, reasons), verdicts in zip(cases, found, strict=True):
        assert [v[0] for v in verdicts] == keep, (A, S, delta)
        assert [v[1] for v in verdicts] == reasons, (A, S, delta)
    assert {r.split(":")[0] for case in cases for r in case[4]} == {"kept", "masked", "no signal"}
    assert any("missing" in r for case in cases for r in case[4])


@pytest.mark.extra
@in_chromium
@pytest.mark.parametrize("name", METHODS)
def test_the_rows_show_mask_pushes_and_net_pushes_of_the_recipe(browser, random_run, name):
    path, records = random_run
    data, rng, recipe = page_data(path), random.Random(name), METHODS[name]
    at = [about["name"] for about in data["recipes"]].index(name)
    browser.open(path, "recipe=" + name)
    for index in rng.sample(range(len(records)), 12):
        record, delta = records[index], rng.randint(0, 90) / 10
        keep, reasons, A = expected_mask(record, delta, recipe)
        browser.at(f"step={record['step']}&group={record['group']}&recipe={name}&delta={delta}")
        used = [a != 0 and (k or not recipe.rectify) for k, a in zip(keep, A, strict=True)]
        shown = browser.texts("#rows tr td:last-child b")
        assert shown == ["no signal" if a == 0 else "kept" if u else "masked" for a, u in zip(A, used, strict=True)]
        for text, reason in zip(browser.texts("#rows .why"), reasons, strict=True):
            assert reason.partition(": ")[2] in text
        push = [
            [x * u for x in unpack(row)]
            for row, u in zip(data["groups"][index]["recipes"][at]["push"], used, strict=True)
        ]
        spans = browser.js(
            "[...document.querySelectorAll('#rows .tokens')].map(row => [...row.children].map(s => "
            "[Number(s.dataset.push), s.dataset.net === undefined ? null : Number(s.dataset.net), s.className]))"
        )
        nets = brute_force_nets(record["tokens"], A, push)
        for i, row in enumerate(spans):
            for t, (value, net, kind) in enumerate(row):
                assert value == push[i][t]
                assert ("up" in kind.split()) == (value > 0)
                assert ("down" in kind.split()) == (value < 0)
                assert ("shared" in kind.split()) == ((i, t) in nets) == (net is not None)
                assert net is None or net == pytest.approx(nets[i, t], abs=1e-9)
        colours = browser.js("[...document.querySelectorAll('.t')].map(s => getComputedStyle(s).backgroundColor)")
        strengths = [colour.rstrip(")").rpartition(",")[2] for colour in colours]
        assert all(float(strength) <= 0.5 for strength in strengths)  # net pushes, too: dark text stays readable
    assert not browser.errors


@pytest.mark.extra
@in_chromium
def test_scripts_in_texts_are_shown_and_not_run(browser, tmp_path):
    record = make_record([ATTACK, "b"], [1.0, 0.0], [9, 2], question=ATTACK, answer=ATTACK, demonstration=ATTACK)
    run = write_run(tmp_path / "run", [record])
    viewer.main([str(run)])
    browser.open(run / "viewer.html")
    assert browser.js("document.title").endswith(": groups")
    assert browser.texts("#question, #answer, #demonstration") == [ATTACK] * 3
    assert browser.texts("#rows .tokens")[0].replace("\u00b7", "") == ATTACK + "<end>"
    assert browser.js("document.querySelectorAll('main script, img').length") == 0
    assert not browser.errors  # nothing that the security policy had to stop


@pytest.mark.extra
@in_chromium
def test_the_security_policy_stops_what_is_not_the_pages_own(browser, random_run):
    browser.open(random_run[0])
    browser.js(
        "const s = document.createElement('script'); s.textContent = 'window.owned = 1'; document.body.append(s)"
    )
    assert browser.js("window.owned === undefined")
    assert browser.js("fetch('data:text/plain,x').then(() => 'fetched', () => 'stopped')") == "stopped"


@pytest.mark.extra
@in_chromium
def test_everything_can_be_reached_with_the_keyboard(browser, random_run):
    path, records = random_run
    browser.open(path, "step=1&group=0")

    def where():
        return browser.js("[page.groups[state.at].step, page.groups[state.at].group].join()")

    browser.key("ArrowRight")
    assert where() == "1,1"
    browser.key("ArrowLeft")
    browser.key("ArrowLeft")  # there is none before the first
    assert where() == "1,0"
    assert browser.texts("#status")[0].startswith("Step 1, group 0")
    seen = []
    for _ in range(12):
        browser.key("Tab")
        seen.append(browser.js("document.activeElement.id || document.activeElement.className"))
        if seen[-1] == "delta":
            before = browser.js("state.delta")
            browser.key("ArrowRight")
            assert browser.js("state.delta") == pytest.approx(before + 0.1)
            assert browser.texts("#deltaout") == ["3.1"]
            assert where() == "1,0"  # the slider's own arrows
        if seen[-1] == "tokens":
            break
    assert seen == ["step", "group", "previous", "next", "partly", "recipe", "delta", "tokens"]
    browser.key("ArrowRight")
    browser.key("ArrowRight")
    length = len(records[0]["tokens"][0])
    assert browser.texts("#readout")[0].startswith(f"Row #0, token 2 of {length}, ")
    assert where() == "1,0"
    assert browser.js("document.activeElement.matches(':focus-visible')")


@pytest.mark.extra
@in_chromium
def test_names_scopes_and_live_regions_for_screen_readers(browser, random_run):
    browser.open(random_run[0])
    assert browser.js("[...document.querySelectorAll('th')].every(th => ['row', 'col'].includes(th.scope))")
    assert browser.js("[...document.querySelectorAll('table')].every(t => t.caption.textContent)")
    named = "e.labels?.length || e.textContent || e.ariaLabel"
    assert browser.js(f"[...document.querySelectorAll('select, input, button')].every(e => {named})")
    assert browser.js("[...document.querySelectorAll('#status, #readout')].every(e => e.ariaLive === 'polite')")
    assert browser.js("document.documentElement.lang") == "en"


@pytest.mark.extra
@in_chromium
def test_a_mask_that_the_run_had_otherwise_is_told_where_it_can_be_compared(browser, tmp_path):
    """A random mask, or GTPO's entropy filter: the page cannot know them, the record does."""
    record = make_record(["a", "b"], [1.0, 0.0], [9, 2]) | {"keep": [True, False]}
    run = write_run(tmp_path / "run", [record])
    viewer.main([str(run)])
    browser.open(run / "viewer.html")
    assert [" The run itself left it out" in text for text in browser.texts("#rows .why")] == [False, True]
    for hash in ("delta=8", "recipe=dagrpo_on&delta=3"):
        browser.at(hash)
        assert not any("The run itself" in text for text in browser.texts("#rows .why"))
    browser.at("recipe=grpo")
    assert all("grpo has no mask. Eq. 8-9 would say: kept: S" in text for text in browser.texts("#rows .why"))


@pytest.mark.extra
@in_chromium
def test_an_address_that_asks_for_what_is_not_there_is_told(browser, random_run):
    browser.open(random_run[0], "step=99&group=0&recipe=nothing&delta=-1")
    assert "of what the address asks for: group, recipe, delta" in browser.texts("#status")[0]
    assert len(browser.texts("#rows tr")) > 1


@pytest.mark.extra
@in_chromium
def test_the_next_partly_masked_group_is_partly_masked(browser, random_run):
    browser.open(random_run[0])
    for _ in range(5):
        browser.js("document.getElementById('partly').click()")
        assert {"kept", "masked"} <= set(browser.texts("#rows td:last-child b"))


@pytest.mark.extra
@in_chromium
def test_it_opens_on_the_first_group_of_which_a_part_is_masked(browser, tmp_path):
    """Group 0 has no signal, all of group 1 is kept, of group 2 the lucky one is masked."""
    texts = ["aab", "b", "abb"]
    groups = [([1.0, 1, 1], [10, 4, 10]), ([1.0, 0, 0], [10, 1, 1]), ([1.0, 1, 0], [10, 4.5, 3.5])]
    records = [make_record(texts, R, S, 1, g, anchor=False) for g, (R, S) in enumerate(groups)]
    run = write_run(tmp_path / "run", records)
    viewer.main([str(run)])
    browser.open(run / "viewer.html")
    assert browser.texts("#status")[0].startswith("Step 1, group 2")
    browser.open(run / "viewer.html", "step=1&group=0")
    assert browser.texts("#status")[0].startswith("Step 1, group 0")


@pytest.mark.extra
@in_chromium
def test_what_the_step_did_is_shown_beside_the_push(browser, tmp_path):
    change = [[0.5, -0.25, 0.001, 0.0], [None, None]]
    record = make_record(["abc", "b"], [1.0, 0.0], [10, 1], anchor=False, change=change)
    run = write_run(tmp_path / "run", [record])
    viewer.main([str(run)])
    browser.open(run / "viewer.html")
    kinds = "[...document.querySelectorAll('[data-row=\"0\"] .t')].map(t => t.className)"
    assert browser.js(kinds) == ["t up"] * 4
    browser.js("$('colour').value = 'change'; $('colour').dispatchEvent(new Event('change'))")
    assert browser.js(kinds) == ["t up", "t down", "t up", "t"]
    browser.js("readToken(document.querySelector('[data-row=\"0\"]'), 1)")
    assert browser.texts("#readout")[0].endswith("its log-prob moved by \u22120.25 nats")
    browser.js("readToken(document.querySelector('[data-row=\"1\"]'), 0)")
    assert browser.texts("#readout")[0].endswith("moved by unknown nats")


@pytest.mark.extra
@in_chromium
def test_on_a_phone_nothing_is_cut_off(browser, random_run):
    browser("Emulation.setDeviceMetricsOverride", width=400, height=800, deviceScaleFactor=1, mobile=True)
    try:
        browser.open(random_run[0])
        assert browser.js("document.documentElement.scrollWidth") <= 400
        for name in ("#rows", "#shared", ".controls", "svg"):
            box = browser.js(f"(r => [r.left, r.right])(document.querySelector('{name}').getBoundingClientRect())")
            assert 0 <= box[0] < box[1] <= 400, name
    finally:
        browser("Emulation.clearDeviceMetricsOverride")


@pytest.mark.extra
@in_chromium
def test_five_hundred_groups_open_and_switch_fast(browser, tmp_path, capsys):
    rng = random.Random(3)
    words = ["".join(rng.choice("abc ") for _ in range(30)) for _ in range(8)]
    S = [10, 4.5, 3, 1, 1, 7, 2, 10]
    records = [
        make_record(
            [rng.choice(words)[:20] + rng.choice(words) for _ in S], [1.0, 1, 0, 0, 0, 1, 0, 1], S, g // 16, g % 16
        )
        for g in range(500)
    ]
    run = write_run(tmp_path / "run", records)
    viewer.main([str(run)])
    browser.open(run / "viewer.html")
    opened = browser.js("performance.timing.domComplete - performance.timing.navigationStart")
    switch = (
        "(() => { const t = performance.now(); go(AT); document.body.offsetHeight; return performance.now() - t })()"
    )
    times = sorted(browser.js(switch.replace("AT", str(rng.randrange(500)))) for _ in range(40))
    size = (run / "viewer.html").stat().st_size / 1e6
    print(
        f"\n500 groups: {size:.1f} MB, open {opened} ms, switch {times[20]:.0f} ms (median), {times[-1]:.0f} ms (worst)"
    )
    assert size < 10
    assert opened < 5000  # a busy machine; a quiet one takes a tenth
    assert times[20] < 200
