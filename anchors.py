"""Anchors: demonstrations of a stronger model, verified, tokenised, and mixed into the groups (Eq. 11).

    G_mix = G_on U G_off        Eq. 11, mixed groups; Eq. 12 then takes the baseline over G_mix (dagrpo.py)

An anchor is a row like any other from here on: it has a reward, a score and an advantage, and Eq. 8-9 may mask it. Only
its importance ratio differs (dagrpo.Recipe.anchor_ratio), because nobody sampled it from the policy.

Where the paper is silent: a group keeps its size. With G = 8 a prompt with a usable anchor gets 7 rollouts and the
anchor, a prompt without one gets 8 rollouts (LUFFY's recipe). If only hard groups get anchors, 8 are sampled, and where
none is right the anchor replaces the last one. Without rollouts (SFT) the anchor is the whole group.

    python anchors.py    which of a few demonstrations are usable, and why the others are not
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import torch

from policy import Policy
from rollout import Rollouts, concat
from scoring import verify
from tasks import Problem


@dataclass(frozen=True)
class Anchor:
    """A demonstration as a row: its text, and its token ids with the end token."""

    text: str
    tokens: list[int]


def prepare_anchors(
    policy: Policy, problems: list[Problem], max_new_tokens: int, keep_wrong: bool = False
) -> tuple[list[Anchor | None], Counter[str]]:
    """Each problem's anchor, or None; and how many were "usable", "missing", "wrong" and "too long".

    A demonstration that verify() calls wrong is rejected. `keep_wrong` keeps it, for the ablation of what Eq. 9 does
    with a wrong anchor. One that does not fit into `max_new_tokens`, end token included, is rejected and not cut: an
    anchor without its end token would teach the policy never to stop.
    """
    anchors: list[Anchor | None] = []
    counts: Counter[str] = Counter()
    for problem in problems:
        anchor, fate = None, "usable"
        tokens = policy.encode_response(problem.demo)
        if not problem.demo:
            fate = "missing"
        elif not keep_wrong and not verify(problem.demo, problem.answer):
            fate = "wrong"
        elif len(tokens) > max_new_tokens:
            fate = "too long"
        else:
            anchor = Anchor(problem.demo, tokens)
        anchors.append(anchor)
        counts[fate] += 1
    return anchors, counts


def rollout_counts(anchors: list[Anchor | None], group_size: int, when: str) -> list[int]:
    """How many rollouts each of B prompts needs: one fewer where an anchor is sure to take a place (`when="always"`).

    With `when="hard"` all are sampled first; then `only_hard` decides which groups get their anchor.
    """
    return [group_size - 1 if anchor and when == "always" else group_size for anchor in anchors]


def only_hard(anchors: list[Anchor | None], rewards: torch.Tensor, gate: int = 0) -> list[Anchor | None]:
    """The anchors of hard groups, None for others. Hard: at most `gate` rollouts are right, by rewards (B, G)."""
    right = rewards.sum(dim=1).tolist()
    return [anchor if count <= gate else None for anchor, count in zip(anchors, right, strict=True)]


def mix(policy: Policy, rollouts: Rollouts, anchors: list[Anchor | None], group_size: int) -> Rollouts:
    """Eq. 11: the rollouts with anchors[b] as the last row of group b; every group then has `group_size` rows.

    A group that is one row short gets its anchor as a further row; in a full group the anchor replaces the last
    rollout. Raises ValueError if a group has another size, or is one row short and has no anchor.
    """
    sizes = torch.bincount(rollouts.group, minlength=len(rollouts.problems)).tolist()
    if any(size != group_size and not (size == group_size - 1 and a) for size, a in zip(sizes, anchors, strict=True)):
        raise ValueError(f"groups of {sizes} rollouts cannot be mixed to {group_size} rows: see rollout_counts")
    if not any(anchors):
        return rollouts
    last = torch.tensor(sizes).cumsum(0) - 1  # (B,) index of each group's last rollout
    replaced = {int(last[b]) for b, anchor in enumerate(anchors) if anchor and sizes[b] == group_size}
    kept = [row for row in range(len(rollouts.texts)) if row not in replaced]
    sampled = rollouts.select(torch.tensor(kept, dtype=torch.long, device=rollouts.group.device))
    return concat(sampled, _as_rows(policy, rollouts, anchors), policy.pad_id)


def _as_rows(policy: Policy, rollouts: Rollouts, anchors: list[Anchor | None]) -> Rollouts:
    """The n anchors alone, T = the longest. Nobody sampled them: their log-probs and entropies are NaN."""
    device = rollouts.tokens.device
    given = [(b, anchor) for b, anchor in enumerate(anchors) if anchor]
    lengths = torch.tensor([len(a.tokens) for _, a in given], device=device)  # (n,)
    width = int(lengths.max())
    tokens = [a.tokens + [policy.pad_id] * (width - len(a.tokens)) for _, a in given]
    mask = torch.arange(width, device=device) < lengths[:, None]  # (n, T)
    unknown = torch.full(mask.shape, torch.nan, device=device).masked_fill(~mask, 0.0)  # (n, T)
    yes = torch.ones(len(given), dtype=torch.bool, device=device)
    return replace(
        rollouts,
        tokens=torch.tensor(tokens, device=device),
        mask=mask,
        logp=unknown,
        entropy=unknown,
        group=torch.tensor([b for b, _ in given], device=device),
        is_anchor=yes,
        ended=yes,
        texts=[a.text for _, a in given],
    )


if __name__ == "__main__":
    from harness.warm_start import build_tokenizer

    tiny = Policy(None, build_tokenizer())
    good = Problem("12+5-3=", "14", "12+5=17;17-3=14;#14", "2")
    examples = [good, replace(good, demo="12+5=18;18-3=15;#15"), replace(good, demo="")]
    for limit in (40, 16):
        usable, fates = prepare_anchors(tiny, examples, max_new_tokens=limit)
        print(f"at most {limit} tokens: {dict(fates)}")
        for problem, anchor in zip(examples, usable, strict=True):
            print(f"  {problem.demo or '(none)':22s} ->", f"{len(anchor.tokens)} tokens" if anchor else "no anchor")
