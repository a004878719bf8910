"""analysis.viewer: pushes, shared tokens and masks are dagrpo.py's, texts stay data, and bad input gets one line."""

import json
import math
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers_viewer import (
    ATTACK,
    LIMIT,
    TOKENIZER,
    brute_force_nets,
    make_record,
    page_data,
    random_record,
    unpack,
    write_run,
)

import dagrpo
from analysis import pushes, viewer
from dagrpo import METHODS

LESSONS = Path(__file__).resolve().parents[2] / "lessons" / "groups"

# ---------------------------------------------------------------------------------------- what Python writes


@pytest.mark.parametrize("name", METHODS)
def test_the_pushes_are_what_autograd_makes_of_a_mixed_batch_without_a_mask(name):
    """Against the loss written out by hand, Eq. 4 and 13 and their neighbours at ratio 1, for each recipe."""
    recipe, record = METHODS[name], make_record(["cbab", "ab", "b", "abb"], [1.0, 0.0, 0.0, 1.0], [9, 2, 3, 10])
    A = pushes.advantages(recipe, record)
    lengths = [len(row) for row in record["tokens"]]
    divide = {"constant": [4 * LIMIT] * 4, "sequence": [4 * t for t in lengths], "tokens": [sum(lengths)] * 4}
    for i, push in enumerate(pushes.unmasked_pushes(recipe, record, A, LIMIT)):
        for t, value in enumerate(push.tolist()):
            expected = A[i].item() / divide[recipe.divisor][i]
            # GSPO alike: a token moves the ratio by 1/|o|, and the row has |o| terms of it
            if recipe.conflict_tokens:  # from the start the "ab" of 1 and 3; from the end all "b<end>", "a" in 0 and 1
                conflict = {0: {2, 3, 4}, 1: {0, 1, 2}, 2: {0, 1}, 3: {0, 1, 2, 3}}[i]
                expected *= (2 if A[i] > 0 else 0) if t in conflict else 1
            p = math.exp(record["logp"][i][t])
            if recipe.anchor_ratio == "shaped" and record["is_anchor"][i]:
                expected *= 0.1 * p / (p + 0.1) ** 2
            if name == "chord":  # 0.9 of the mean over the rollouts' tokens, and 0.1 over the demonstration's
                over = 0.1 * p * (1 - p) / lengths[3] if i == 3 else 0.9 / sum(lengths[:3])
                expected = A[i].item() * over
            assert value == pytest.approx(expected, rel=1e-4, abs=1e-9), (i, t)


@pytest.mark.parametrize("name", METHODS)
def test_unmasked_pushes_times_the_mask_are_the_gradient_of_the_masked_loss(name):
    """What the page relies on: to mask is to multiply a response's pushes by 0."""
    recipe, rng = METHODS[name], random.Random(name)
    for _ in range(10):
        record = random_record(rng)
        A = pushes.advantages(recipe, record)[None]
        keep = torch.rand(A.shape) < 0.5
        width = max(map(len, record["tokens"]))
        tokens = torch.tensor([row + [0] * (width - len(row)) for row in record["tokens"]])
        mask = torch.arange(width) < torch.tensor([[len(row)] for row in record["tokens"]])
        logp = torch.tensor([row + [0.0] * (width - len(row)) for row in record["logp"]])
        anchor = pushes.anchors_of(recipe, record)
        zero = torch.zeros(mask.shape)
        update = dagrpo.build_update(recipe, A, keep, tokens, mask, logp, zero, anchor, LIMIT)
        leaf = logp.clone().requires_grad_()
        dagrpo.policy_loss(leaf, update, recipe, entropy=zero).backward()
        moved = pushes.unmasked_pushes(recipe, record, A[0], LIMIT)
        for i, push in enumerate(moved):
            torch.testing.assert_close(push * keep[0, i], -leaf.grad[i, : len(push)])


def test_in_hpt_a_demonstration_is_one_only_where_nobody_else_is_right():
    for R, anchor in (([0.0, 0.0, 1.0], True), ([1.0, 0.0, 1.0], False)):
        record = make_record(["ab", "ba", "ab"], R, [9, 2, 10])
        assert pushes.anchors_of(METHODS["hpt"], record).tolist() == [False, False, anchor]
        A = pushes.advantages(METHODS["hpt"], record)
        wanted = [0.0, 0.0, 1.0] if anchor else [1 / 3, -2 / 3, 1 / 3]
        assert A.tolist() == pytest.approx(wanted)
        moved = [row.tolist() for row in pushes.unmasked_pushes(METHODS["hpt"], record, A, LIMIT)]
        assert moved[2] == pytest.approx([1 / 3 if anchor else 1 / 3 / 120] * 3)
        assert any(map(any, moved[:2])) != anchor


def test_an_anchor_without_log_probs_has_pushes_where_none_are_read_and_unknown_ones_where_they_are():
    logp = [[-0.5] * 3, [-0.5] * 3, [None] * 3]
    record = make_record(["ab", "ba", "ab"], [1.0, 0.0, 1.0], [9, 2, 10], logp=logp)
    A = torch.tensor(record["A"])
    assert pushes.unmasked_pushes(METHODS["dagrpo"], record, A, LIMIT)[2].tolist() == pytest.approx([1 / 3 / 120] * 3)
    luffy = pushes.unmasked_pushes(METHODS["luffy"], record, A, LIMIT)
    assert luffy[2].isnan().all()
    assert not torch.cat(luffy[:2]).isnan().any()
    assert pushes.runs_of(luffy[2].tolist()) == [3, None]
    assert not pushes.unmasked_pushes(METHODS["luffy"], record, A * 0, LIMIT)[2].isnan().any()


def test_net_pushes_from_what_the_page_is_given_are_those_of_a_brute_force_loop(tmp_path):
    rng, found = random.Random(0), 0
    records = [random_record(rng, group=g) for g in range(40)]
    run = write_run(tmp_path / "run", records)
    viewer.main([str(run)])
    for record, group in zip(records, page_data(run / "viewer.html")["groups"], strict=True):
        for told in group["recipes"]:
            A, push = told["A"], [unpack(row) for row in told["push"]]
            assert [len(row) for row in push] == [len(row) for row in record["tokens"]]

            def common(i, j, table=group["prefixes"]):
                return table[max(i, j)][min(i, j)]

            nets = {}
            for i, row in enumerate(push):
                for t in range(len(row)):
                    rows = [j for j in range(len(push)) if common(i, j) > t]
                    if min(A[j] for j in rows) < 0 < max(A[j] for j in rows):
                        nets[i, t] = sum(push[j][t] for j in rows)
            assert nets == pytest.approx(brute_force_nets(record["tokens"], A, push))
            found += len(nets)
    assert found > 500


def test_texts_cannot_leave_the_data_block_and_come_back_unchanged(tmp_path):
    record = make_record([ATTACK, "b"], [1.0, 0.0], [9, 2], question=ATTACK, demonstration=ATTACK)
    run = write_run(tmp_path / "run", [record])
    viewer.main([str(run)])
    html, data = (run / "viewer.html").read_text(), page_data(run / "viewer.html")
    assert html.count("<script") == html.count("</script>") == 2
    assert "<img" not in html
    assert "{{data}}" not in html
    group = data["groups"][0]
    assert group["question"] == group["demonstration"] == ATTACK
    assert "".join(data["strings"][k] for k in group["tokens"][0]) == ATTACK + "<end>"


def test_the_page_may_run_its_own_script_and_fetch_nothing(tmp_path):
    run = write_run(tmp_path / "run", [make_record(["a", "b"], [1.0, 0.0], [9, 2])])
    viewer.main([str(run)])
    html = (run / "viewer.html").read_text()
    policy = html.split('Content-Security-Policy" content="')[1].split('"')[0]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not [
        word
        for word in ("http:", "https:", "src=", "@import", "innerHTML", "eval(")
        if word in html.replace("http://www.w3.org/2000/svg", "")
    ]


def test_a_character_of_several_tokens_stands_at_its_first():
    ids = TOKENIZER.encode("aé€\U0001f600b")
    assert list(pushes.pieces(TOKENIZER, ids)) == ["a", "é", "", "€", "", "", "\U0001f600", "", "", "", "b"]
    broken = TOKENIZER.encode("€")[:2] + TOKENIZER.encode("b")  # cut off, as by the longest response
    assert list(pushes.pieces(TOKENIZER, broken)) == ["\ufffd", "\ufffd", "b"]
    assert list(pushes.pieces(TOKENIZER, TOKENIZER.encode("é")[:1])) == ["\ufffd"]


def test_the_runs_own_recipe_has_its_flags_and_its_recorded_advantages(tmp_path):
    """A need not be R - mean: an over-long penalty is in it."""
    record = make_record(["a", "b"], [1.0, 0.0], [9, 2]) | {"A": [0.25, -0.25]}
    run = write_run(tmp_path / "run", [record])
    config = json.loads((run / "config.json").read_text())
    config["recipe"]["divisor"] = "sequence"
    (run / "config.json").write_text(json.dumps(config))
    viewer.main([str(run)])
    data = page_data(run / "viewer.html")
    told = {about["name"]: x for about, x in zip(data["recipes"], data["groups"][0]["recipes"], strict=True)}
    assert told["dagrpo"] == {"A": [0.25, -0.25], "push": [[2, 62.5], [2, -62.5]]}  # 0.25 / (2 rows * 2 tokens)
    assert told["dagrpo_on"]["A"] == [0.5, -0.5]
    assert replace(METHODS["dagrpo"], divisor="sequence") == viewer.read_recipe(run).recipe


def test_which_groups_are_on_the_page_is_said(tmp_path, capsys):
    records = [make_record(["a", "b"], [1.0, 0.0], [9, 2], step, g) for step in range(1, 11) for g in range(4)]
    run = write_run(tmp_path / "run", records)

    def shown(*argv):
        viewer.main([str(run), *argv])
        data = page_data(run / "viewer.html")
        assert all(text in capsys.readouterr().out or not text for text in [" ".join(data["notices"])])
        return [(g["step"], g["group"]) for g in data["groups"]], " ".join(data["notices"])

    assert shown() == ([(r["step"], r["group"]) for r in records], "")
    groups, told = shown("--limit", "13")
    assert groups == [(step, g) for step in (1, 6, 10) for g in range(4)] or {s for s, _ in groups} == {1, 5, 10}
    assert "12 of the 40 groups" in told
    assert "--limit" in told
    groups, told = shown("--limit", "3")
    assert groups == [(1, 0), (1, 1), (1, 2)]
    assert "Not all groups of step 1 are here" in told
    groups, told = shown("--steps", "2,9-10")
    assert {step for step, _ in groups} == {2, 9, 10}
    assert "of 3 of 10 steps: 2, 9-10" in told


def test_malformed_lines_are_counted_and_a_half_written_last_one_is_tolerated(tmp_path, capsys):
    good = make_record(["a", "b"], [1.0, 0.0], [9, 2])
    bad = [good | {"R": [1.0]}, good | {"tokens": [[1], ["x"]]}, good | {"A": [None, 0]}, good | {"change": [[1], [2]]}]
    bad += [{"step": 1}, [1], None]
    run = write_run(tmp_path / "run", [good, *bad, good | {"group": 1}], tail='{"step": 2, "gro')
    viewer.main([str(run)])
    data, told = page_data(run / "viewer.html"), capsys.readouterr().out
    assert [g["group"] for g in data["groups"]] == [0, 1]
    assert "7 malformed line(s) of rollouts.jsonl left out: line 2, 3, 4, 5, 6, ..." in told
    assert "half written" in told
    assert data["notices"][0] in told


def damage_nothing_there(run):
    (run / "rollouts.jsonl").unlink()


def damage_empty(run):
    (run / "rollouts.jsonl").write_text("")


def damage_all_lines(run):
    (run / "rollouts.jsonl").write_text("x\ny\n")


def damage_tokenizer(run):
    shutil.rmtree(run / "checkpoint")


def damage_config(run):
    (run / "config.json").write_text("{}")


def damage_ids(run):
    text = (run / "rollouts.jsonl").read_text()
    (run / "rollouts.jsonl").write_text(
        text.replace('"tokens": [[', '"tokens": [[999999, ').replace("[[-0.5", "[[0, -0.5")
    )


@pytest.mark.parametrize(
    ("damage", "argv", "line"),
    [
        (damage_nothing_there, [], "rollouts.jsonl cannot be read"),
        (damage_empty, [], "has no group in it yet"),
        (damage_all_lines, [], "no group in it: 2 malformed lines"),
        (damage_tokenizer, [], "--tokenizer"),
        (damage_config, [], "config.json lacks method"),
        (damage_ids, [], "it is not the run's"),
        (lambda run: None, ["--steps", "7"], "none of them is in rollouts.jsonl, which has 1"),
        (lambda run: None, ["--steps", "a"], "--steps a"),
        (lambda run: None, ["--limit", "0"], "--limit must be"),
        (lambda run: None, ["--out", "/nowhere/x.html"], "--out /nowhere/x.html"),
        (lambda run: None, ["--tokenizer", "./nothing"], "holds no model"),
    ],
)
def test_bad_input_gets_one_line(tmp_path, capsys, damage, argv, line):
    run = write_run(tmp_path / "run", [make_record(["a", "b"], [1.0, 0.0], [9, 2])])
    damage(run)
    with pytest.raises(SystemExit) as end:
        viewer.main([str(run), *argv])
    told = capsys.readouterr().err
    assert end.value.code == 2
    assert line in told
    assert told.count("\n") == 1


def test_a_note_takes_the_place_of_what_is_left_out(tmp_path):
    run = write_run(tmp_path / "run", [make_record(["a", "b"], [1.0, 0.0], [9, 2], group=g) for g in range(3)])
    viewer.main([str(run), "--limit", "1", "--note", "One of three <groups>."])
    assert page_data(run / "viewer.html")["notices"] == ["One of three <groups>."]


@pytest.mark.parametrize("page", sorted(LESSONS.glob("*.html")), ids=lambda page: page.stem)
def test_the_pages_of_the_lessons_are_todays_page(page):
    """After a change of viewer.html, replace what is around each page's data."""
    before, end, after = viewer.render({}, viewer.TEMPLATE.read_text(encoding="utf-8")).partition("</script>")
    text, before = page.read_text(encoding="utf-8"), before.removesuffix("{}")
    assert text.startswith(before) and text.endswith(end + after)
    assert json.loads(text[len(before) : -len(end + after)])["groups"], "and nothing else is between them"
