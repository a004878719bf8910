"""Anchors without a teacher: the anchor of a group is a right response that the policy itself once gave to its prompt.

For each prompt the store keeps one response: that with the best score, of equals the shortest, of equals the first. A
group that dagrpo would give a demonstration gets it instead: every group, or with `--anchor-when hard` those without a
right rollout. The demonstration is withheld: its row has A = 0, and the group's mean is over its rollouts. Two kinds:

    fixed      the importance ratio is the recipe's: 1, or with `--anchor-ratio shaped` LUFFY's
    clipped    the true ratio to the policy that sampled it, clipped as a rollout's, as ExGRPO does (2510.02245); in
               metrics.csv such a row counts as a rollout, so compare accuracies alone

The store is what rollouts.jsonl holds, so a resumed run makes the same one from that file. A control of controls.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from analysis.run_folders import read_rollouts
from dagrpo import group_advantages, rectification_mask
from harness.report import records
from rollout import Groups, Rollouts, concat

KINDS = ("fixed", "clipped")


@dataclass(frozen=True)
class Success:
    """A right response: its text, its t token ids and their log-probs when it was sampled, its score."""

    text: str
    tokens: list[int]
    logp: list[float]
    score: float
    ended: bool


Store = dict[str, Success]  # by question


def own_anchors(kind: str, delta: float, folder: Path) -> Callable[[Groups], Groups]:
    """The control: a function that changes a step's groups, and remembers their right responses for later ones."""
    store: Store = {}

    def change(groups: Groups) -> Groups:
        if not store and (folder / "rollouts.jsonl").exists():  # a resumed run
            for _, _, group in read_rollouts(folder):
                remember(store, group)
        groups = exchange(groups, store, kind, delta)
        for group in records(groups, 0):
            remember(store, group)
        return groups

    return change


def remember(store: Store, group: dict) -> None:
    """Adds the best right rollout of one line of rollouts.jsonl, if it is better than what the store has."""
    parts = (group[name] for name in ("responses", "tokens", "logp", "S", "ended", "R", "is_anchor"))
    for text, tokens, logp, score, ended, right, anchor in zip(*parts, strict=True):
        known = store.get(group["question"])
        if right and not anchor and (not known or (-score, len(tokens)) < (-known.score, len(known.tokens))):
            store[group["question"]] = Success(text, tokens, logp, score, ended)


def exchange(groups: Groups, store: Store, kind: str, delta: float) -> Groups:
    """The groups with the policy's own successes in place of the demonstrations; A and masks follow (Eq. 12, 8-9)."""
    rollouts, (B, G) = groups.rollouts, groups.rewards.shape
    anchors = rollouts.is_anchor.cpu().view(B, G)  # (B, G): a demonstration is the last row of its group
    found = [store.get(p.question) if anchors[b, -1] else None for b, p in enumerate(rollouts.problems)]
    given = torch.tensor([success is not None for success in found])  # (B,)
    S = groups.scores.clone()
    S[given, -1] = torch.tensor([success.score for success in found if success], dtype=S.dtype)
    withheld = anchors & ~given[:, None]  # (B, G)
    A = group_advantages(groups.rewards, apart=withheld).masked_fill(withheld, 0.0)  # (B, G)  Eq. 12
    keep = rectification_mask(A, S, delta)  # (B, G)  Eq. 8-9
    if given.any():
        kept = torch.ones(B, G, dtype=torch.bool)
        kept[given, -1] = False
        sampled = rollouts.select(kept.flatten().nonzero().squeeze(1).to(rollouts.tokens.device))
        rollouts = concat(sampled, as_rows(rollouts, found, kind), pad_id=0)
    return replace(groups, rollouts=rollouts, scores=S, advantages=A, distinct=keep, keep=keep)


def as_rows(rollouts: Rollouts, found: list[Success | None], kind: str) -> Rollouts:
    """The n successes as rows. `clipped`: as rollouts, whose entropies were not kept; -log p estimates them."""
    given, device = [(b, success) for b, success in enumerate(found) if success], rollouts.tokens.device
    width = max(len(success.tokens) for _, success in given)
    padded = torch.tensor(
        [success.tokens + [-1] * (width - len(success.tokens)) for _, success in given], device=device
    )
    logp = [success.logp + [0.0] * (width - len(success.logp)) for _, success in given]
    mask, tokens, logp = padded >= 0, padded.clamp(min=0), torch.tensor(logp, device=device)  # (n, T)
    unknown = torch.full(mask.shape, torch.nan, device=device).masked_fill(~mask, 0.0)
    return replace(
        rollouts,
        tokens=tokens,
        mask=mask,
        logp=logp if kind == "clipped" else unknown,
        entropy=-logp if kind == "clipped" else unknown,
        group=torch.tensor([b for b, _ in given], device=device),
        is_anchor=torch.full((len(given),), kind != "clipped", device=device),
        ended=torch.tensor([success.ended for _, success in given], device=device),
        texts=[success.text for _, success in given],
    )
