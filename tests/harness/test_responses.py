"""responses.py: what is written, and that a stopped evaluation goes on to what the undisturbed one would have been."""

import json
import resource
from dataclasses import replace

import pytest
import torch

import fast
import rollout
import scoring
import tasks
from harness import responses
from policy import load_policy
from tasks import Problem

PROBLEMS = [tasks.solve(question, "1") for question in ("12+5-3=", "1+1=", "20-4+3-1=", "7-2=")]
ORDER = [1, 3, 0, 2]  # by length
SETTINGS = {"benchmark": "b", "k": 3, "temperature": 0.6, "max_new_tokens": 12, "batch": 5, "seed": 0, "problems": "x"}


def even(response, answer, ended=True):
    assert answer in {problem.answer for problem in PROBLEMS} | {"1"}
    return len(response) % 2 == 0


@pytest.fixture(autouse=True)
def even_is_right(monkeypatch):
    """The tiny policy is never right: call every response of an even number of characters right."""
    monkeypatch.setattr(scoring, "verify", even)


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    """The file of the undisturbed evaluation: 12 responses in batches of 5, 5 and 2."""
    path = tmp_path_factory.mktemp("whole") / "b.jsonl"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "verify", even)
        return path, responses.collect(tiny, PROBLEMS, SETTINGS, path)


@pytest.fixture
def batches(monkeypatch):
    """Notes the size of every batch that is sampled."""
    sizes, sample_groups = [], fast.sample_groups

    def noted(policy, problems, counts, *args, **flags):
        sizes.append(sum(counts))
        return sample_groups(policy, problems, counts, *args, **flags)

    monkeypatch.setattr(fast, "sample_groups", noted)
    return sizes


def same(a, b):
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("right", "tokens", "ended"))


def fails(capsys, *args, **flags):
    with pytest.raises(SystemExit) as stop:
        responses.collect(*args, **flags)
    err = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert stop.value.code == 2 and len(err) == 1
    return err[0]


def test_every_response_is_a_line_and_counted_in_its_place(whole):
    path, found = whole
    head, *lines = map(json.loads, path.read_text().splitlines())
    assert head == {"settings": SETTINGS}
    assert [(line["index"], line["sample"]) for line in lines] == [(i, s) for i in ORDER for s in range(3)]
    for line in lines:
        problem, place = PROBLEMS[line["index"]], (line["index"], line["sample"])
        assert line["benchmark"] == "b" and (line["question"], line["answer"]) == (problem.question, problem.answer)
        assert found.right[place] == line["right"] == (len(line["response"]) % 2 == 0)
        assert found.tokens[place] == line["tokens"] >= len(line["response"]) + line["ended"]
        assert found.ended[place] == line["ended"]
    assert found.right.shape == (4, 3) and found.too_long == 0 and 0 < found.right.mean() < 1
    assert len({line["response"] for line in lines}) > 6  # they are sampled, each for itself


def test_without_a_file_the_result_is_the_same_and_the_random_state_stays(tiny, whole):
    before = torch.get_rng_state()
    assert same(responses.collect(tiny, PROBLEMS, SETTINGS, None), whole[1])
    assert torch.equal(before, torch.get_rng_state())


def test_the_plain_path_is_taken_where_it_is_handed_in(tiny, whole, monkeypatch):
    monkeypatch.setattr(fast, "sample_groups", lambda *_, **__: pytest.fail("the other path"))
    found = responses.collect(tiny, PROBLEMS, SETTINGS, None, sampling=rollout)
    assert found.right.shape == (4, 3) and found.tokens.min() >= 1 and not same(found, whole[1])


def test_another_seed_gives_other_responses_in_every_batch(tiny, tmp_path, whole):
    path = tmp_path / "b.jsonl"
    responses.collect(tiny, PROBLEMS, {**SETTINGS, "seed": 1}, path)
    new, old = (file.read_text().splitlines()[1:] for file in (path, whole[0]))
    assert new[:5] != old[:5] and new[5:10] != old[5:10] and new[10:] != old[10:]


def test_batches_of_one_problem_are_not_copies_of_each_other(tiny, tmp_path):
    path = tmp_path / "b.jsonl"
    responses.collect(tiny, PROBLEMS[:1], {**SETTINGS, "k": 10}, path)
    texts = [json.loads(line)["response"] for line in path.read_text().splitlines()[1:]]
    assert texts[:5] != texts[5:]


@pytest.mark.parametrize("kept", [0, 0.3, 1, 2.5, 5, 5.99, 6, 7.5, 10, 11, 11.5, 12])
def test_a_killed_evaluation_ends_as_the_undisturbed_one(tiny, tmp_path, whole, batches, kept):
    """`kept` of the 12 lines behind the first are on the disk, some cut in the middle."""
    lines = whole[0].read_bytes().splitlines(keepends=True)
    full, part = int(kept), kept - int(kept)
    text = b"".join(lines[: 1 + full]) + (lines[1 + full][: int(part * len(lines[1 + full]))] if part else b"")
    path = tmp_path / "b.jsonl"
    path.write_bytes(text)
    found = responses.collect(tiny, PROBLEMS, SETTINGS, path)
    assert path.read_bytes() == whole[0].read_bytes() and same(found, whole[1])
    assert batches == [5, 5, 2][full // 5 if full < 12 else 3 :]


@pytest.mark.parametrize("size", [0, 10])
def test_a_kill_in_the_first_line_begins_anew(tiny, tmp_path, whole, size):
    path = tmp_path / "b.jsonl"
    path.write_bytes(whole[0].read_bytes()[:size])
    responses.collect(tiny, PROBLEMS, SETTINGS, path)
    assert path.read_bytes() == whole[0].read_bytes()


def test_a_stopped_evaluation_has_its_whole_batches_on_the_disk(tiny, tmp_path, whole, monkeypatch):
    path, sample_groups = tmp_path / "b.jsonl", fast.sample_groups
    left = [True, False]

    def stops(*args, **flags):
        if not left.pop(0):
            raise KeyboardInterrupt
        return sample_groups(*args, **flags)

    monkeypatch.setattr(fast, "sample_groups", stops)
    with pytest.raises(KeyboardInterrupt):
        responses.collect(tiny, PROBLEMS, SETTINGS, path)
    assert path.read_text().splitlines() == whole[0].read_text().splitlines()[:6]


@pytest.mark.parametrize(
    ("name", "value"),
    [("k", 2), ("temperature", 1.0), ("max_new_tokens", 13), ("batch", 4), ("seed", 1), ("problems", "y"), ("new", 1)],
)
def test_other_settings_are_refused_by_name_and_the_file_is_kept(tiny, tmp_path, whole, batches, capsys, name, value):
    path = tmp_path / "b.jsonl"
    path.write_bytes(whole[0].read_bytes())
    said = fails(capsys, tiny, PROBLEMS, {**SETTINGS, name: value}, path)
    assert f"another {name}: {SETTINGS.get(name)!r}, now {value!r}" in said and "--overwrite" in said
    assert path.read_bytes() == whole[0].read_bytes() and batches == []


def test_overwrite_replaces(tiny, tmp_path, whole, batches):
    path = tmp_path / "b.jsonl"
    path.write_bytes(whole[0].read_bytes().replace(b'"seed": 0', b'"seed": 9'))
    responses.collect(tiny, PROBLEMS, SETTINGS, path, overwrite=True)
    assert path.read_bytes() == whole[0].read_bytes() and batches == [5, 5, 2]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda lines: [b"{}\n", *lines[1:]], "is not a file of responses"),
        (lambda lines: [b"not json\n", *lines[1:]], "is not a file of responses"),
        (lambda lines: [*lines[:3], b"\n", *lines[3:]], "damaged on line 4"),
        (lambda lines: [*lines[:3], *lines[4:]], "damaged on line 4"),
        (lambda lines: [*lines[:2], b"5\n", *lines[3:]], "damaged on line 3"),
        (lambda lines: [*lines[:2], b'{"index": 1, "sample": 1}\n', *lines[3:]], "damaged on line 3"),
        (lambda lines: [*lines, lines[-1]], "damaged on line 14"),
    ],
)
def test_a_damaged_file_is_refused_and_kept(tiny, tmp_path, whole, capsys, change, said):
    path = tmp_path / "b.jsonl"
    path.write_bytes(b"".join(change(whole[0].read_bytes().splitlines(keepends=True))))
    before = path.read_bytes()
    assert said in fails(capsys, tiny, PROBLEMS, SETTINGS, path)
    assert path.read_bytes() == before


def test_a_full_disk_gets_a_line_and_loses_nothing(tiny, tmp_path, whole, capsys):
    path, limits = tmp_path / "b.jsonl", resource.getrlimit(resource.RLIMIT_FSIZE)
    lines = whole[0].read_bytes().splitlines(keepends=True)
    resource.setrlimit(resource.RLIMIT_FSIZE, (sum(map(len, lines[:8])), limits[1]))  # in the second batch
    try:
        said = fails(capsys, tiny, PROBLEMS, SETTINGS, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "goes on after it" in said and path.read_bytes().startswith(b"".join(lines[:6]))
    responses.collect(tiny, PROBLEMS, SETTINGS, path)
    assert path.read_bytes() == whole[0].read_bytes()


def test_a_place_that_cannot_be_written_gets_a_line(tiny, tmp_path, capsys):
    assert "choose another --out" in fails(capsys, tiny, PROBLEMS, SETTINGS, tmp_path / "none" / "b.jsonl")


# ---------------------------------------------------------------------------------------- the model's context


def test_what_does_not_fit_is_counted_wrong_and_not_asked(tiny, tmp_path, batches, capsys):
    window = tiny.window
    long = [Problem("1" * size, "1", "", "all") for size in (window - 1, window, window + 100)]
    path = tmp_path / "b.jsonl"
    found = responses.collect(tiny, [*long, *PROBLEMS], {**SETTINGS, "batch": 3}, path)
    assert found.too_long == 2 and sum(batches) == 5 * 3
    assert found.tokens[1:3].sum() == found.right[1:3].sum() == found.ended[1:3].sum() == 0
    assert found.tokens[0].tolist() == [1, 1, 1] and found.tokens[3:].max() > 1  # room for one token is left
    assert f"context of {window} tokens" in capsys.readouterr().err
    again = responses.collect(tiny, [*long, *PROBLEMS], {**SETTINGS, "batch": 3}, path)
    assert same(found, again) and again.too_long == 2


def test_nothing_is_said_where_all_fits(tiny, capsys):
    responses.collect(tiny, PROBLEMS, SETTINGS, None)
    assert "context" not in capsys.readouterr().err


def test_nothing_fits(tiny, batches):
    found = responses.collect(tiny, [Problem("1" * 600, "1", "", "all")], SETTINGS, None)
    assert found.too_long == 1 and found.right.tolist() == [[0, 0, 0]] and batches == []


# ---------------------------------------------------------------------------------------- hashes


def test_the_hash_tells_checkpoints_apart(tiny, tiny_folder):
    copy = load_policy(str(tiny_folder))
    assert responses.hash_weights(copy) == responses.hash_weights(tiny)
    with torch.no_grad():
        copy.model.lm_head.weight[0, 0] += 1e-6
    assert responses.hash_weights(copy) != responses.hash_weights(tiny)


def test_the_hash_tells_problems_apart():
    hashes = {responses.hash_problems(PROBLEMS), responses.hash_problems(PROBLEMS[::-1])}
    hashes |= {responses.hash_problems([replace(PROBLEMS[0], **change), *PROBLEMS[1:]]) for change in CHANGES}
    assert len(hashes) == 4
    assert responses.hash_problems([replace(p, demo="") for p in PROBLEMS]) in hashes


CHANGES = ({"question": "other"}, {"answer": "other"})
