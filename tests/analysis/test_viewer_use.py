"""The viewer's page in use, in headless Chromium (marked `extra`): hostile texts, keyboard, screen readers, speed."""

import random

import pytest
from helpers_browser import in_chromium
from helpers_viewer import ATTACK, make_record, write_run

from analysis import viewer


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
