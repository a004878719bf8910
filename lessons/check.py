"""Is an exercise right? Each check tries small cases, and says in words what is wrong, with the case that shows it.

python -m lessons.check 3              the third exercise of lessons/exercises.py
python -m lessons.check                all that are written
python -m lessons.check --solutions    lessons/solutions.py instead: what CI runs
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, tensor

import dagrpo
from analysis.stats import t_interval
from eval import pass_at
from harness.console import Parser, fail, first_line
from lessons import exercises, solutions
from rollout import completion_mask, logp_and_entropy

R = tensor([[1.0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]])  # (B, G)
A = tensor([[0.5, 0.5, -0.5, -0.5], [0.75, -0.25, -0.25, -0.25], [0, 0, 0, 0], [1, 1, 0, 0]])
S = tensor([[10.0, 4.5, 5.5, 1.0], [6.0, 3.0, 3.5, 1.0], [9, 9, 9, 9], [8, 2, 9, 1]])
NAN = math.nan


@dataclass(frozen=True)
class Case:
    """What is put in, what must come out, and what comes out of mistakes that people make: in words -> value."""

    inputs: tuple[Any, ...]
    wanted: Any
    mistakes: dict[str, Any] = field(default_factory=dict)


def centred(x: Tensor) -> Tensor:
    return x - x.mean(dim=1, keepdim=True)


def group_advantages() -> Iterator[Case]:
    mistakes = {
        "this is the mean of the whole batch; each row (group) has a mean of its own": R - R.mean(),
        "these are divided by the standard deviation: that is GRPO; here A = R - mean": dagrpo.group_advantages(
            R, "group"
        ),
        "the sign is turned round: better than the mean is positive": -centred(R),
        "this is the mean over the batch at each place (dim 0); a group is a row": R - R.mean(dim=0),
    }
    yield Case((R,), dagrpo.group_advantages(R), mistakes)


def rectification_mask() -> Iterator[Case]:
    best, worst = S.masked_fill(A <= 0, -1e9).amax(1, True), S.masked_fill(A >= 0, 1e9).amin(1, True)
    own_side = (A > 0) & (best - S < 3) | (A < 0) & (S - worst < 3)
    wanted = dagrpo.rectification_mask(A, S, 3.0)
    mistakes = {
        "a response is compared with the best or worst of its own side; it has to be with the other side": own_side,
        "a gap of exactly delta is enough: >=, not >": dagrpo.rectification_mask(A, S, 3.001),
        "responses with A = 0 never stay": wanted | (A == 0),
        "this is True where a response is masked; True has to mean that it stays": ~wanted,
    }
    yield Case((A, S, 3.0), wanted, mistakes)
    yield Case((A, S, 0.0), dagrpo.rectification_mask(A, S, 0.0))


def leave_one_out() -> Iterator[Case]:
    mistakes = {
        "this is the mean of all G; a response is compared with the others alone": centred(R),
        "the mean of the others divides by G - 1": R - (R.sum(1, True) - R) / 4,
    }
    yield Case((R,), dagrpo.group_advantages(R, baseline="leave_one_out"), mistakes)


def clipped_objective() -> Iterator[Case]:
    ratio = tensor([[1.0, 1.5, 0.5], [1.0, 1.5, 0.5]])
    advantage = tensor([[2.0], [-2.0]]).expand(2, 3)
    clamped, product = ratio.clamp(0.8, 1.2) * advantage, ratio * advantage
    mistakes = {
        "the ratio is clipped and no more; at ratio 0.5 and A > 0 the gradient must stay: take the minimum": clamped,
        "this is the larger of the two; the smaller one is wanted, for both signs of A": product.maximum(clamped),
        "nothing is clipped": product,
    }
    yield Case((ratio, advantage, 0.8, 1.2), torch.minimum(product, clamped), mistakes)


def k3() -> Iterator[Case]:
    logp, ref = tensor([[-1.0, -0.1, -2.0]]), tensor([[-1.0, -1.5, -0.5]])
    mistakes = {
        "this is k1, -log r: right in the mean, and negative for single tokens": logp - ref,
        "this is k2, the half square of the log-ratio": (ref - logp).square() / 2,
        "r is pi_ref / pi; this is the other way round": (logp - ref).expm1() - (logp - ref),
    }
    yield Case((logp, ref), (ref - logp).expm1() - (ref - logp), mistakes)


def micro_batch_loss() -> Iterator[Case]:
    objective, mask = tensor([[1.0, 2.0, 9.0], [4.0, 9.0, 9.0]]), tensor([[True, True, False], [True, False, False]])
    mistakes = {
        "the sign: losses are made small, objectives large": tensor(7 / 40),
        "what is outside the mask counts as well": tensor(-34 / 40),
        "the divisor has the rows of this micro-batch; it must be those of the update, or parts do not add up": tensor(
            -7 / 20
        ),
        "this is a token mean of the micro-batch: cut otherwise, the update would be another one": tensor(-7 / 3),
    }
    yield Case((objective, mask, 4, 10), tensor(-7 / 40), mistakes)
    yield Case((objective[:1], mask[:1], 4, 10), tensor(-3 / 40))


def completion_mask_() -> Iterator[Case]:
    tokens = tensor([[5, 2, 2, 2], [5, 6, 7, 8], [2, 5, 2, 5]])
    wanted, _ = completion_mask(tokens, [2])
    mistakes = {
        "the end token itself is left out: then stopping is never trained": wanted & (tokens != 2),
        "only the end tokens are masked; what comes behind the first one does not count either": tokens != 2,
        "this masks what comes before the end; True is for tokens that count": ~wanted,
    }
    yield Case((tokens, 2), wanted, mistakes)


def maxrl_advantages() -> Iterator[Case]:
    with_nan = centred(R) / R.mean(dim=1, keepdim=True)
    mistakes = {
        "a group where nobody is right gives 0 / 0; it has to be 0": with_nan,
        "the divisor is the mean of the group's rewards, not their standard deviation": dagrpo.group_advantages(
            R, "group"
        ),
        "this is not divided by the mean": centred(R),
        "the sign is turned round": -dagrpo.group_advantages(R, "mean"),
    }
    yield Case((R,), dagrpo.group_advantages(R, "mean"), mistakes)


def entropy() -> Iterator[Case]:
    logits = tensor([[[0.0, 0.0, 0.0, 0.0], [math.log(3), 0.0, -math.inf, -math.inf], [500.0, 0.0, 0.0, 0.0]]])
    wanted = logp_and_entropy(logits, torch.zeros(1, 3, dtype=torch.long), 1.0)[1]
    p = logits.softmax(-1)
    mistakes = {
        "0 * -inf is NaN: what has probability 0 adds 0": -(p * p.log()).sum(-1),
        "this is in bits; nats are asked for, the natural logarithm": wanted / math.log(2),
        "the sign: an entropy is never below 0": -wanted,
    }
    yield Case((logits,), wanted, mistakes)


def pass_at_k() -> Iterator[Case]:
    right, n, k = [0, 1, 4], 4, 2
    rows = tensor([[1.0] * c + [0.0] * (n - c) for c in right])
    mistakes = {
        "this is 1 - (1 - c/n)^k, which is too low: the same response is drawn twice": sum(
            1 - (1 - c / n) ** k for c in right
        )
        / 3,
        "this is pass@1": sum(right) / 12,
        "this is the sum over problems, not their mean": 3 * pass_at(rows, k),
    }
    yield Case((right, n, k), pass_at(rows, k), mistakes)
    yield Case((right, n, 4), pass_at(rows, 4))


def random_mask() -> Iterator[Case]:
    """Checked by `check_random_mask`: what comes out is not one value."""
    yield from ()


def paired_interval() -> Iterator[Case]:
    a, b = [0.50, 0.62, 0.41, 0.58], [0.45, 0.60, 0.37, 0.50]
    mean, half = (float(x) for x in t_interval([x - y for x, y in zip(a, b, strict=True)]))
    mistakes = {
        "this is the interval of two independent groups; the same seeds make pairs, so take differences first": (
            mean, t_interval(a)[1] + t_interval(b)[1],
        ),
        "1.96 is the normal distribution's quantile; with 4 seeds it is t's, 3.18": (mean, half * 1.959964 / 3.182446),
        "the standard deviation divides by n - 1: ddof=1": (mean, half * math.sqrt(3) / 2),
        "this is the spread of single differences; that of their mean is smaller by sqrt(n)": (mean, 2 * half),
    }  # fmt: skip
    yield Case((a, b), (mean, half), mistakes)


def check_random_mask(function: Callable) -> str:
    keep = tensor([[True, False, False, True, False, False], [True, True, True, True, False, False]])
    signs = tensor([[1.0, 1, 1, -1, -1, 0], [1, 1, -1, -1, -1, 0]])
    drawn = [function(keep, signs, torch.Generator().manual_seed(seed)) for seed in range(40)]
    if any(not isinstance(x, Tensor) or x.shape != keep.shape or x.dtype != torch.bool for x in drawn):
        return "it has to give a bool tensor of the shape of `keep`"
    again = function(keep, signs, torch.Generator().manual_seed(0))
    if not torch.equal(again, drawn[0]):
        return "the same generator gave two masks: draw from the generator that is handed in, and from nothing else"
    for x in drawn:
        for side, name in ((signs > 0, "positives"), (signs < 0, "negatives")):
            if not torch.equal((x & side).sum(1), (keep & side).sum(1)):
                stay, wanted = ((mask & side).sum(1).tolist() for mask in (x, keep))
                return f"of the {name} {stay} stay in the two groups, not {wanted}"
        if (x & (signs == 0)).any():
            return "a response with A = 0 stays: it has no side"
    if all(torch.equal(x, keep) for x in drawn):
        return "this is always the mask that was handed in: which ones stay has to be chance"
    often = torch.stack(drawn).float().mean(0)[0, :3]
    return "" if often.min() > 0.1 else f"of the first group's positives one hardly ever stays: {often.tolist()}"


CASES = [
    group_advantages, rectification_mask, leave_one_out, clipped_objective, k3, micro_batch_loss, completion_mask_,
    maxrl_advantages, entropy, pass_at_k, random_mask, paired_interval,
]  # fmt: skip
NAMES = [cases.__name__.rstrip("_") for cases in CASES]


def check(number: int, where: ModuleType) -> str | None:
    """What is wrong with exercise `number` of this module, in words: "" if nothing is, None if it is not written."""
    function, cases = getattr(where, NAMES[number - 1]), CASES[number - 1]
    try:
        if cases is random_mask:
            return check_random_mask(function)
        for case in cases():
            if told := compare(function(*case.inputs), case):
                return told
    except NotImplementedError:
        return None
    except Exception as error:  # whatever a student's code may do
        return f"it ended with {type(error).__name__}: {first_line(error)}"
    return ""


def compare(found: Any, case: Case) -> str:
    if found is None:
        return "it gives None: is there a return?"
    try:
        if same(found, case.wanted):
            return ""
        why = next((words for words, value in case.mistakes.items() if same(found, value)), "")
    except (TypeError, ValueError, RuntimeError):
        return f"it gives {type(found).__name__}; wanted is {type(case.wanted).__name__}"
    if isinstance(case.wanted, Tensor) and tuple(torch.as_tensor(found).shape) != tuple(case.wanted.shape):
        why = f"its shape is {tuple(torch.as_tensor(found).shape)}, wanted is {tuple(case.wanted.shape)}"
    inputs = "\n".join(f"    {show(value)}" for value in case.inputs)
    gives = f"  it gives\n    {show(found)}\n  wanted is\n    {show(case.wanted)}"
    return f"{why or 'the numbers are others'}\n  for\n{inputs}\n{gives}"


def same(found: Any, wanted: Any) -> bool:
    a, b = (torch.as_tensor(x) for x in (found, wanted))
    if a.shape != b.shape or (b.dtype == torch.bool) != (a.dtype == torch.bool):
        return False
    return torch.allclose(a.double(), b.double(), rtol=1e-4, atol=1e-6, equal_nan=True)


def show(value: Any) -> str:
    rounded = value.tolist() if isinstance(value, Tensor) else value
    return str(rounded) if not isinstance(value, Tensor) or value.dim() < 2 else "\n    ".join(map(str, rounded))


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="python -m lessons.check", description=__doc__)
    parser.add_argument("number", nargs="?", type=int, metavar="N", help="1 to 12")
    parser.add_argument("--solutions", action="store_true", help="check lessons/solutions.py")
    args = parser.parse_args(argv)
    if args.number is not None and not 1 <= args.number <= len(CASES):
        fail(f"there are exercises 1 to {len(CASES)}, not {args.number}")
    wrong = 0
    for number in [args.number] if args.number else range(1, len(CASES) + 1):
        told = check(number, solutions if args.solutions else exercises)
        wrong += told is None or told != ""
        said = "not written yet" if told is None else f"not yet: {told}" if told else "right"
        print(f"{number:2d} {NAMES[number - 1]}: {said}")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
