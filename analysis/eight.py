"""The page of `python dagrpo.py`: one group of eight under every recipe, from rewards to the push on each token.

The group is scoring.EXAMPLE; its rewards R and scores S are what scoring.py gives it. It is seen at the second of two
updates on one batch: on every third token the importance ratio is 0.75, on every third 1.35, so that one can see what
a clip does. The last response is the demonstration: where a recipe has anchors, nobody sampled it.

    python dagrpo.py, or python -m analysis.eight
"""

from __future__ import annotations

import torch
from torch import Tensor

from dagrpo import METHODS, Recipe, build_update, group_advantages, policy_loss, rectification_mask
from harness.report import reasons
from scoring import EXAMPLE, EXAMPLE_PROBLEM, score, verify

SCORES = torch.tensor([[score(text, EXAMPLE_PROBLEM) for text in EXAMPLE]])  # (1, G)
REWARDS = torch.tensor([[float(verify(text, EXAMPLE_PROBLEM.answer)) for text in EXAMPLE]])  # (1, G)


def example_pushes(recipe: Recipe, delta: float = 3.0, max_new_tokens: int = 24) -> tuple[Tensor, Tensor, Tensor]:
    """EXAMPLE under a recipe: A (G,), keep (G,) and the push on each token, -dloss/dlogp, (G, T)."""
    lengths = torch.tensor([len(text) + 1 for text in EXAMPLE])  # (N,) with the end token
    mask = torch.arange(int(lengths.max())) < lengths[:, None]  # (N, T)
    tokens = torch.tensor([[ord(c) for c in text.ljust(mask.shape[1], "$")] for text in EXAMPLE])  # (N, T)
    drift = torch.tensor([1.0, 0.75, 1.35]).log()[torch.arange(mask.shape[1]) % 3]  # (T,)
    logp = torch.full(mask.shape, -0.3, requires_grad=True)  # (N, T)
    advantages = group_advantages(REWARDS, recipe.scale, recipe.baseline)
    keep = torch.ones_like(REWARDS, dtype=torch.bool)
    if recipe.rectify:
        keep = rectification_mask(advantages, SCORES, delta)
    update = build_update(
        recipe,
        advantages,
        keep,
        tokens,
        mask,
        logp_old=logp.detach() - drift,
        entropy_old=torch.full(mask.shape, 0.5),
        is_anchor=torch.arange(len(EXAMPLE)) == (len(EXAMPLE) - 1 if recipe.anchors else -1),
        max_new_tokens=max_new_tokens,
    )
    policy_loss(logp, update, recipe, entropy=torch.zeros(mask.shape)).backward()
    return update.advantages, update.keep, -logp.grad


def main() -> None:
    """Prints the page: EXAMPLE under every recipe."""
    pushes = {name: example_pushes(recipe) for name, recipe in METHODS.items() if recipe.rollouts}
    print("One group of eight. Question 37+48-26=, answer 59. R: the verifier's reward. S: the fine-grained score.\n")
    for i, text in enumerate(EXAMPLE):
        print(
            f"  {i}  R {REWARDS[0, i]:.0f}  S {SCORES[0, i]:4.1f}  {text:23s}{'(the demonstration)' if i == 7 else ''}"
        )

    print("\n1. Advantage A of each response (Eq. 1, 12). [ ]: masked, the response is not learned from\n")
    print("     " + "".join(f"{name:>10s}" for name in pushes))
    for i in range(len(EXAMPLE)):
        cells = (f"{a[i]:+.3f}" if keep[i] else f"[{a[i]:+.3f}]" for a, keep, _ in pushes.values())
        print(f"  {i}  " + "".join(f"{cell:>10s}" for cell in cells))

    print("\n2. Why DaGRPO keeps or masks (Eq. 8-9, delta = 3)\n")
    advantages, _, _ = pushes["dagrpo"]
    for i, why in enumerate(reasons(advantages[None], SCORES)[0]):
        print(f"  {i}  {why}")

    print("\n3. Push on each response: the sum of its tokens' -dloss/dlogp, in thousandths (Eq. 10, 13)\n")
    print("     " + "".join(f"{name:>10s}" for name in pushes))
    for i in range(len(EXAMPLE)):
        print(f"  {i}  " + "".join(f"{1000 * push[i].sum():+10.1f}" for _, _, push in pushes.values()))

    print(
        "\n4. Push on each token of responses 0 and 3, which share most of their text, in thousandths. The net push on"
    )
    print(
        "   the shared ones is what Eq. 6 is about: with opposite signs it cancels. Ratios are 1, 0.75, 1.35 in turn."
    )
    for name, (_, _, push) in pushes.items():
        print(f"\n  {name}: {METHODS[name].paper}")
        print("       " + "".join(f"{c:>6s}" for c in EXAMPLE[0] + "$"))
        for i in (0, 3):
            print(f"    {i}  " + "".join(f"{1000 * p:+6.1f}" if p else "     ." for p in push[i].tolist()))
        shared = next(t for t in range(len(EXAMPLE[0])) if EXAMPLE[0][t] != EXAMPLE[3][t])
        print("  net  " + "".join(f"{1000 * p + 0.0:+6.1f}" for p in (push[0] + push[3])[:shared].tolist()))


if __name__ == "__main__":
    main()
