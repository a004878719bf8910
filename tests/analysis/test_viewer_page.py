"""What the viewer's page shows, in headless Chromium (marked `extra`): masks, pushes, and the group it opens on."""

import json
import math
import random

import pytest
import torch
from helpers_browser import in_chromium
from helpers_viewer import brute_force_nets, make_record, page_data, random_record, unpack, write_run

import dagrpo
from analysis import pushes, viewer
from dagrpo import METHODS
from harness import report


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


def soft_weights(A, S, delta):
    scores = torch.tensor([[math.nan if s is None else s for s in S]])
    return dagrpo.rectification_mask(torch.tensor([A]), scores, delta, soft=True)[0].tolist()


@pytest.mark.extra
@in_chromium
@pytest.mark.parametrize("name", METHODS)
def test_the_rows_show_mask_pushes_and_net_pushes_of_the_recipe(browser, random_run, name):
    path, records = random_run
    data, rng, recipe = page_data(path), random.Random(name), METHODS[name]
    at = [about["name"] for about in data["recipes"]].index(name)
    rounding = 1e-6 if recipe.soft_mask else 0  # the page's sigmoid is in fp64, torch's in fp32
    browser.open(path, "recipe=" + name)
    for index in rng.sample(range(len(records)), 12):
        record, delta = records[index], rng.randint(0, 90) / 10
        keep, reasons, A = expected_mask(record, delta, recipe)
        browser.at(f"step={record['step']}&group={record['group']}&recipe={name}&delta={delta}")
        weights = [float(k or not recipe.rectify) for k in keep]
        if recipe.soft_mask:
            weights = soft_weights(A, record["S"], delta)
            A = [a * w for a, w in zip(A, weights, strict=True)]
        used = [a != 0 and w > 0 for w, a in zip(weights, A, strict=True)]
        shown = browser.texts("#rows tr td:last-child b")
        assert shown == ["no signal" if a == 0 else "kept" if u else "masked" for a, u in zip(A, used, strict=True)]
        for text, reason in zip(browser.texts("#rows .why"), reasons, strict=True):
            assert reason.partition(": ")[2] in text
            weighed = recipe.soft_mask and reason.startswith(("kept", "masked: S"))
            assert ("multiplies A by sigmoid(gap - delta). Eq. 8-9 would say: " in text) == weighed
        push = [
            [x * w * u for x in unpack(row)]
            for row, w, u in zip(data["groups"][index]["recipes"][at]["push"], weights, used, strict=True)
        ]
        spans = browser.js(
            "[...document.querySelectorAll('#rows .tokens')].map(row => [...row.children].map(s => "
            "[Number(s.dataset.push), s.dataset.net === undefined ? null : Number(s.dataset.net), s.className]))"
        )
        nets = brute_force_nets(record["tokens"], A, push)
        for i, row in enumerate(spans):
            for t, (value, net, kind) in enumerate(row):
                assert value == pytest.approx(push[i][t], rel=rounding, abs=0)
                assert ("up" in kind.split()) == (value > 0)
                assert ("down" in kind.split()) == (value < 0)
                assert ("shared" in kind.split()) == ((i, t) in nets) == (net is not None)
                assert net is None or net == pytest.approx(nets[i, t], rel=rounding, abs=1e-9)
        colours = browser.js("[...document.querySelectorAll('.t')].map(s => getComputedStyle(s).backgroundColor)")
        strengths = [colour.rstrip(")").rpartition(",")[2] for colour in colours]
        assert all(float(strength) <= 0.5 for strength in strengths)  # net pushes, too: dark text stays readable
    assert not browser.errors


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
