"""Sampled responses to a benchmark, saved batch by batch, so that a stopped evaluation goes on where it was.

32 responses of 8,192 tokens to each problem take hours. So every batch is appended to a file when it is done. The first
line of the file holds the settings, each further line a response. After a stop, or a kill in the middle of a line, give
the same settings again: complete batches are kept, what follows them is cut off, and the rest is sampled.
Each batch has its own seed, made from the seed and the batch's first response. So the result is the same as without the
interruption, bit for bit on the same machine.

Prompts of similar length share a batch, so that little of it is padding. A prompt that leaves no room for a response in
the model's context is not asked; it counts as wrong.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

import fast
import scoring
from harness.console import fail, progress
from policy import Policy
from tasks import Problem

Unit = tuple[int, int]  # index of the problem, number of the sample


@dataclass(frozen=True)
class Collected:
    """The responses to n problems, k to each: right (0 or 1), tokens (end token included) and ended (0 or 1)."""

    right: torch.Tensor  # (n, k) float64, as the other two
    tokens: torch.Tensor
    ended: torch.Tensor
    too_long: int  # problems whose prompt does not fit into the model's context: wrong, with 0 tokens


def collect(
    policy: Policy,
    problems: list[Problem],
    settings: dict[str, Any],
    path: Path | None,
    overwrite: bool = False,
    sampling: ModuleType = fast,
) -> Collected:
    """`settings["k"]` responses to every problem, or the greedy one if k is 0. Those in `path` are not sampled again.

    `sampling` is fast or rollout. `settings` has benchmark, k, temperature, max_new_tokens, batch and seed, and
    whatever else must not change between two calls. Ends the program with one line if `path` holds responses with other
    settings; `overwrite` replaces them instead. Torch's random state is left as it was.
    """
    name, batch, longest = (settings[key] for key in ("benchmark", "batch", "max_new_tokens"))
    k, greedy = settings["k"] or 1, settings["k"] == 0
    bar = f"{name} greedy" if greedy else f"{name} avg@{k}"
    lengths = [len(policy.encode_prompt(problem.question)) for problem in problems]  # n
    order = sorted((i for i, length in enumerate(lengths) if length < policy.window), key=lambda i: lengths[i])
    units = [(i, number) for i in order for number in range(k)]
    records = begin(path, settings, units, overwrite) if path else []
    if order and lengths[order[-1]] + longest > policy.window:
        print(f"{name}: responses are cut where the model's context of {policy.window:,} tokens ends", file=sys.stderr)
    with torch.random.fork_rng():
        for start in progress(range(len(records), len(units), batch), desc=bar, unit="batch"):
            some = units[start : start + batch]
            torch.manual_seed(seed_of(settings["seed"], name, some[0]))
            room = policy.window - max(lengths[i] for i, _ in some)
            new = sample(sampling, policy, problems, some, min(longest, room), settings["temperature"], greedy)
            new = [{"benchmark": name, **record} for record in new]
            if path:
                append(path, new)
            records += new
    return as_tensors(records, len(problems), k, too_long=len(problems) - len(order))


def seed_of(seed: int, name: str, first: Unit) -> int:
    """The seed of the batch that begins with this response."""
    return int.from_bytes(hashlib.sha256(f"{seed} {name} {first}".encode()).digest()[:7], "big")


def sample(
    sampling: ModuleType,
    policy: Policy,
    problems: list[Problem],
    units: list[Unit],
    max_new_tokens: int,
    temperature: float,
    greedy: bool,
) -> list[dict[str, Any]]:
    """One response to each unit's problem, as records for the file. Units of one problem must be neighbours."""
    counts = Counter(i for i, _ in units)  # in the order of the units
    some = [problems[i] for i in counts]
    rollouts = sampling.sample_groups(policy, some, list(counts.values()), max_new_tokens, temperature, greedy)
    return [
        {
            "index": i,
            "sample": number,
            "question": problems[i].question[:500],  # for a reader; the settings hold a hash of all questions
            "answer": problems[i].answer,
            "response": text,
            "tokens": tokens,
            "right": scoring.verify(text, problems[i].answer, ended),
            "ended": ended,
        }
        for (i, number), text, tokens, ended in zip(
            units, rollouts.texts, rollouts.lengths.tolist(), rollouts.ended.tolist(), strict=True
        )
    ]


def as_tensors(records: list[dict[str, Any]], n: int, k: int, too_long: int) -> Collected:
    """The records as tensors (n, k); a problem that was not asked is wrong, of length 0 and not ended."""
    right, tokens, ended = (torch.zeros(n, k, dtype=torch.float64) for _ in range(3))
    for record in records:
        place = record["index"], record["sample"]
        right[place], tokens[place], ended[place] = record["right"], record["tokens"], record["ended"]
    return Collected(right, tokens, ended, too_long)


# ---------------------------------------------------------------------------------------- the file


def begin(path: Path, settings: dict[str, Any], units: list[Unit], overwrite: bool) -> list[dict[str, Any]]:
    """The responses of the complete batches in `path`; the rest of it is cut off. A new file gets its first line."""
    try:
        lines = [] if overwrite or not path.exists() else path.read_bytes().splitlines(keepends=True)
        if lines and not lines[-1].endswith(b"\n"):
            lines.pop()  # half a line, left by a kill
        if not lines:
            path.write_text(json.dumps({"settings": settings}) + "\n", encoding="utf-8")
            return []
        compare(path, lines[0], settings)
        records = [read(path, number, line, units) for number, line in enumerate(lines[1:])]
        if len(records) < len(units):
            del records[len(records) - len(records) % settings["batch"] :]
        with path.open("r+b") as file:
            file.truncate(sum(map(len, lines[: 1 + len(records)])))
    except OSError as error:
        fail(f"{path}: responses cannot be saved there ({error.strerror}); choose another --out")
    return records


def compare(path: Path, line: bytes, settings: dict[str, Any]) -> None:
    """Ends the program if the file's settings are not these; names the first that differs."""
    try:
        old = dict(json.loads(line)["settings"])
    except (ValueError, KeyError, TypeError):
        fail(f"{path} is not a file of responses: choose another --out, or give --overwrite")
    for name in dict.fromkeys([*settings, *old]):
        if old.get(name) != settings.get(name):
            fail(
                f"{path} holds responses with another {name}: {old.get(name)!r}, now {settings.get(name)!r};"
                " choose another --out, or --overwrite to replace them"
            )


def read(path: Path, number: int, line: bytes, units: list[Unit]) -> dict[str, Any]:
    """The response on this line, which must be the one that this evaluation would have put there."""
    try:
        record = json.loads(line)
        expected = (record["index"], record["sample"]) == units[number]
        if expected and {"response", "tokens", "right", "ended"} <= record.keys():
            return record
    except (ValueError, KeyError, TypeError, IndexError):
        pass
    fail(f"{path} is damaged on line {number + 2}: choose another --out, or give --overwrite")


def append(path: Path, records: list[dict[str, Any]]) -> None:
    """Adds a batch to the file."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(record) + "\n" for record in records))
    except OSError as error:
        fail(f"{path}: {error.strerror}; make room: the same command keeps what is written and goes on after it")


def hash_problems(problems: list[Problem]) -> str:
    """A text that differs between lists of problems: their number, and a hash of their questions and answers.

    >>> hash_problems([Problem("1+1", "2", "", "all")])
    '1 with hash 3b8aee8d97'
    """
    text = json.dumps([(problem.question, problem.answer) for problem in problems])
    return f"{len(problems)} with hash {hashlib.sha256(text.encode()).hexdigest()[:10]}"


def hash_weights(policy: Policy) -> str:
    """A hash that differs between models, and between checkpoints: of all names, shapes and first 4,096 values."""
    digest = hashlib.sha256()
    for name, weight in policy.model.state_dict().items():
        digest.update(f"{name} {tuple(weight.shape)}".encode())
        digest.update(weight.flatten()[:4096].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:10]
