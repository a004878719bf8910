"""The page of `python dagrpo.py`: two groups of eight under a few recipes, from rewards to the push on each token.

In group a, scoring.EXAMPLE, half of the responses are right; in group b none is. Rewards R and scores S come from
scoring.py. In the first update the policy is still the one that sampled, so that all ratios are 1. In the second update
on the same batch, ratios are 1, 0.75 and 1.35 in turn, so that you can see what a clip does. Where a recipe has
anchors, the last response of a group is the demonstration, which the policy did not sample.

    python dagrpo.py               the families of recipes, and dagrpo compared with dr_grpo
    python dagrpo.py dapo gspo     one recipe, or several to compare
    python dagrpo.py --all         all of them
"""

from __future__ import annotations

import signal
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

import dagrpo
from analysis.families import FAMILIES, cite
from dagrpo import METHODS, Recipe, Update, group_advantages, policy_loss, surrogate
from harness.console import Parser
from harness.report import reasons
from scoring import EXAMPLE, EXAMPLE_PROBLEM, score, verify

HARD = (  # a group in which all are wrong
    "37+48=75;75-26=49;#49",
    "37+48=85;85-26=69;#69",
    "37+48=95;95-26=69;#69",
    "#69",
    "#58",
    "#49",
    "37+48=85;85-26=61;#61",
)
RATIOS = (1.0, 0.75, 1.35)  # of the tokens in the second update, in turn
LOGP = -0.3  # of every token, now: p = 0.74
MAX_NEW_TOKENS = 24
PAIR = (0, 3)  # a right and a wrong response that share most of their text


def texts_of(recipe: Recipe) -> list[list[str]]:
    """The responses of both groups. Without anchors, group b has an eighth wrong one in place of the demonstration."""
    return [list(EXAMPLE), [*HARD, EXAMPLE[-1] if recipe.anchors else "#60"]]


@cache
def scored(text: str) -> tuple[float, float]:
    """R and S of a response."""
    return float(verify(text, EXAMPLE_PROBLEM.answer)), score(text, EXAMPLE_PROBLEM)


def entropies(text: str, width: int) -> list[float]:
    """Made-up entropies in nats: highest at the first digit of a result, lower at the second, near 0 elsewhere."""
    after = [text[t - 1 : t] in ("=", "#") for t in range(width)]
    return [0.9 if after[t] else 0.6 if after[t - 1] else 0.1 for t in range(width)]


@dataclass(frozen=True)
class View:
    """Both groups under a recipe, B = 2 and G = 8. Rows that the recipe does not have are all 0."""

    texts: list[list[str]]
    R: Tensor  # (B, G)
    S: Tensor  # (B, G)
    A: Tensor  # (B, G)
    keep: Tensor  # (B, G)
    there: Tensor  # (B, G) bool: the rows that the recipe has; in sft only the demonstration
    is_anchor: Tensor  # (B, G)
    push: Tensor  # (B, G, T)  -dloss/dlogp
    clipped: Tensor  # (B, G, T)
    weighed: Tensor  # (B, G, T) bool: tokens that count, with a weight above 0


def look(recipe: Recipe, moved: bool = False, delta: float = 3.0) -> View:
    """The two groups as one batch and one update, at ratio 1 or, if `moved`, at RATIOS."""
    texts = texts_of(recipe)
    R, S = torch.tensor([[scored(text) for text in group] for group in texts]).unbind(2)  # (B, G) each
    rows = [text for group in texts for text in group]  # N
    lengths = torch.tensor([len(text) + 1 for text in rows])  # (N,) with the end token
    mask = torch.arange(int(lengths.max())) < lengths[:, None]  # (N, T)
    T = mask.shape[1]
    tokens = torch.tensor([[ord(c) for c in text.ljust(T, "$")] for text in rows])  # (N, T)
    entropy = torch.tensor([entropies(text, T) for text in rows])  # (N, T)
    is_anchor = (torch.arange(8) == 7).expand(2, 8) & recipe.anchors  # (B, G)
    if recipe.gate is not None:
        is_anchor = is_anchor & ((R * ~is_anchor).sum(dim=1, keepdim=True) <= recipe.gate)
    there = torch.ones_like(is_anchor) if recipe.rollouts else is_anchor
    chosen, G = there.flatten(), int(there.sum(dim=1)[0])  # (N,)
    logp = torch.full(mask.shape, LOGP)
    drift = torch.tensor(RATIOS if moved else (1.0,) * 3).log()[torch.arange(T) % 3]  # (T,)
    apart = None if recipe.mu is None else is_anchor
    A = group_advantages(R[there].view(2, G), recipe.scale, recipe.baseline, apart)
    keep = dagrpo.rectification_mask(A, S, delta) if recipe.rectify else torch.ones_like(A, dtype=torch.bool)
    update = dagrpo.build_update(
        recipe,
        dagrpo.soften(recipe, A, S, delta),
        keep,
        tokens[chosen],
        mask[chosen],
        logp_old=(logp - drift)[chosen],
        entropy_old=entropy[chosen],
        is_anchor=is_anchor.flatten()[chosen],
        max_new_tokens=MAX_NEW_TOKENS,
        start_entropy=float(entropy[mask].mean()),
    )
    trained = logp[chosen].requires_grad_()
    policy_loss(trained, update, recipe, entropy=torch.zeros_like(trained)).backward()
    return as_view(recipe, texts, R, S, there, is_anchor, update, trained)


def as_view(
    recipe: Recipe,
    texts: list[list[str]],
    R: Tensor,
    S: Tensor,
    there: Tensor,
    is_anchor: Tensor,
    update: Update,
    trained: Tensor,
) -> View:
    """Puts the update's values of the n rows that are `there` in their places, (B, G, ...); the others are 0."""
    chosen, T = there.flatten(), trained.shape[1]

    def spread(x: Tensor) -> Tensor:
        whole = torch.zeros(len(chosen), *x.shape[1:], dtype=x.dtype)
        whole[chosen] = x
        return whole.view(2, 8, *x.shape[1:])

    clipped = surrogate(trained.detach(), update, recipe)[1].expand(-1, T)
    A, keep, push = spread(update.advantages), spread(update.keep), spread(-trained.grad)
    return View(texts, R, S, A, keep, there, is_anchor, push, spread(clipped), spread(update.weight > 0))


# ---------------------------------------------------------------------------------------- in words


def note(recipe: Recipe, view: View, b: int, i: int) -> str:
    """Why the push on response i of group b is 0, small or large; "" if it is A / divisor, as in the textbook."""
    push, clipped = view.push[b, i], view.clipped[b, i]
    length, p = len(view.texts[b][i]) + 1, torch.tensor(LOGP).exp().item()
    n = int(clipped.sum())
    if not view.there[b, i]:
        return "not sampled"
    if view.is_anchor[b, i]:
        shape = {"one": "ratio 1, never clipped", "log": "log p, and the mean over the demonstrations' tokens"}
        shape["shaped"] = f"0.1 p / (p + 0.1)^2 = {0.1 * p / (p + 0.1) ** 2:.2f} at p = {p:.2f}"
        shape["phi"] = f"p (1 - p) = {p * (1 - p):.2f} at p = {p:.2f}, and mu is {recipe.mu}"
        return "masked" if not view.keep[b, i] else shape[recipe.anchor_ratio]
    if not view.keep[b, i]:
        return "masked"
    if view.A[b, i] == 0:
        return "A = 0"
    if not view.weighed[b, i].any():
        return "its group learns from the demonstration" if recipe.mu else "none of its tokens count"
    if n == length and not push.any():
        return "all clipped" if recipe.ratio != "sequence" else "its one ratio is clipped"
    if n and recipe.ratio == "detached" and not recipe.trust:
        return f"{n} of {length} at the bound"
    some = [f"{n} of {length} clipped"] if n else []
    if recipe.entropy_penalty and (view.R[b] == view.R[b, 0]).all():
        some.append("equal rewards: A is the entropy penalty alone")
    if (silent := int((~view.weighed[b, i][:length]).sum())) > 0:
        some.append(f"{silent} of {length} do not count")
    return ", ".join(some)


def groups() -> None:
    print("Question 37+48-26=, answer 59. R: the verifier's reward. S: the fine-grained score.\n")
    for b, group in enumerate(texts_of(METHODS["dagrpo"])):
        print(("Group a: half of the responses are right", "\nGroup b: only the demonstration is right")[b])
        for i, text in enumerate(group):
            (R, S), demonstration = scored(text), "(the demonstration)" if i == 7 else ""
            print(f"  {'ab'[b]}{i}  R {R:.0f}  S {S:4.1f}  {text:23s}{demonstration}".rstrip())
    print("\nRecipes without anchors have #60 as b7, and take a7 as if it had been sampled.")


def families() -> None:
    print("\nThe recipes. python dagrpo.py NAME shows one, NAME NAME compares two, --all shows all.")
    for title, members in FAMILIES.items():
        print(f"\n  {title}")
        for name, what in members.items():
            print(f"    {name:13s} {what}")


def short(a: float) -> str:
    """
    >>> short(-0.125), short(1.0), short(0.0)
    ('-.12', '+1.00', '0')
    """
    return f"{a:+.2f}".replace("+0.", "+.").replace("-0.", "-.") if a else "0"


def advantages(names: list[str]) -> None:
    print("\n1. Advantage A of each response (Eq. 1, 12). [ ]: masked. In a group of equal rewards A is 0; only a")
    print("   demonstration changes that\n")
    print(" " * 15 + "".join(f"{f'{group}{i}':>7s}" for group in "ab" for i in range(8)))
    for name in names:
        view = look(METHODS[name])
        cells = []
        for a, kept, there in zip(*(x.flatten().tolist() for x in (view.A, view.keep, view.there)), strict=True):
            cells.append("." if not there else short(a) if kept else f"[{short(a)}]")
        print(f"  {name:13s}" + "".join(f"{cell:>7s}" for cell in cells))


def why_masked(name: str) -> None:
    view, soft = look(METHODS[name]), METHODS[name].soft_mask
    if soft:
        print(f"\n   {name} multiplies A by sigmoid(gap - 3). The gaps of group a, and what Eq. 8-9 would do\n")
    else:
        print(f"\n   Why {name} keeps or masks in group a (Eq. 8-9, delta = 3)\n")
    for i, why in enumerate(reasons(view.A[:1], view.S[:1])[0]):
        print(f"     a{i}  {why}")
    if view.A[0, 1] > 0 and not view.keep[0, 1]:
        print("\n   a1 is right, but masked: the update ignores it. Yet it sets the bar for the wrong ones, as Eq. 9")
        print("   compares with the worst positive, masked or not: only what scores at most 4.5 - 3 is pushed down.")
        print("   a2 has a wrong step. It is pushed up all the same: its score is clearly better than any wrong one's.")


def by_response(names: list[str], moved: bool) -> None:
    print(" " * 15 + "".join(f"{f'{group}{i}':>7s}" for group in "ab" for i in range(8)))
    for name in names:
        view = look(METHODS[name], moved)
        sums = (1000 * view.push.sum(dim=2)).flatten().tolist()
        there = view.there.flatten().tolist()
        cells = [f"{x:+.1f}" if x else "0" if t else "." for x, t in zip(sums, there, strict=True)]
        print(f"  {name:13s}" + "".join(f"{cell:>7s}" for cell in cells))
        notes: dict[str, list[str]] = {}
        for b in range(2):
            for i in range(8):
                if why := note(METHODS[name], view, b, i):
                    notes.setdefault(why, []).append(f"{'ab'[b]}{i}")
        if moved or len(names) < 6:
            print("".join(f"{'':17s}{' '.join(rows)}: {why}\n" for why, rows in notes.items()), end="")


def by_token(names: list[str], moved: bool) -> None:
    right, wrong = (EXAMPLE[i] + "$" for i in PAIR)
    shared = next(t for t in range(len(right)) if right[t] != wrong[t])
    for name in names:
        view = look(METHODS[name], moved)
        if not view.there[0, list(PAIR)].all():
            continue
        print(f"\n  {name}" + (f": {cite(METHODS[name])}" if cite(METHODS[name]) else ""))
        print("         " + "".join(f"{c:>5s}" for c in right))
        if moved:
            print("  ratio  " + "".join(f"{RATIOS[t % 3]:5.2f}" for t in range(len(right))))
        for i in PAIR:
            cells = [
                "c" if clip and not p else "." if not p else f"{1000 * p:+.1f}"
                for p, clip in zip(view.push[0, i].tolist(), view.clipped[0, i].tolist(), strict=True)
            ]
            print(f"     a{i}  " + "".join(f"{cell:>5s}" for cell in cells[: len(right)]))
        net = view.push[0, list(PAIR)].sum(dim=0)[:shared].tolist()
        print("    net  " + "".join(f"{1000 * p:+5.1f}" if abs(p) > 1e-9 else "    0" for p in net))


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="dagrpo.py", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(METHODS))
    parser.add_argument("--all", action="store_true", help="every recipe")
    args = parser.parse_args(argv)
    if unknown := [name for name in args.names if name not in METHODS]:
        parser.error(f"there is no recipe {', '.join(unknown)}: choose from {', '.join(METHODS)}")
    names = list(METHODS) if args.all else args.names or ["dr_grpo", "dagrpo"]
    groups()
    if not args.names:
        families()
    advantages(names)
    for name in names:
        if (METHODS[name].rectify or METHODS[name].soft_mask) and (len(names) < 6 or name == "dagrpo"):
            why_masked(name)
    print("\n2. Ratio 1: the first update on a batch. Push on each response, the sum of its tokens'")
    print("   -dloss/dlogp, in thousandths (Eq. 4, 10, 13)\n")
    by_response(names, moved=False)
    print(
        f"\n   and on each token of a{PAIR[0]} and a{PAIR[1]}, which share most of their text. Eq. 6 is about the net"
    )
    print("   push on shared tokens: with opposite signs and equal lengths, the pushes cancel exactly. A mask or token")
    print(
        f"   weights change that. $ is the end token. A constant divisor is 16 responses times {MAX_NEW_TOKENS} tokens:"
    )
    print(f"   A = .50 pushes a token by {1000 * 0.5 / (16 * MAX_NEW_TOKENS):.1f} thousandths.")
    by_token(names, moved=False)
    print("\n3. The second update on the batch: ratios are 1, 0.75 and 1.35 in turn. Push on each response\n")
    by_response(names, moved=True)
    print("\n   and on each token. c: clipped (dppo: outside its trust region)")
    by_token(names, moved=True)


if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):  # so that `python dagrpo.py | head` ends quietly
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    main()
