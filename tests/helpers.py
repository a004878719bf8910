"""What several test files share: updates for tests of the losses, and short runs of train.py and eval.py."""

import csv
import json
from dataclasses import dataclass, replace
from math import log
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import tensor
from transformers import GPT2Config, GPT2LMHeadModel

import eval as evaluation
import fast
import rollout
import train
from dagrpo import METHODS, build_update, group_advantages, policy_loss, rectification_mask, soften
from harness import runfolder
from policy import Policy, load_policy

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"  # next to the project: real data, and what makes a real model
NAN = float("nan")
ln_2 = log(2)
tight = {"rtol": 1e-9, "atol": 1e-12}
every_recipe = pytest.mark.parametrize("name", list(METHODS))
some = settings(deadline=None, max_examples=20)
seeds = st.integers(0, 2**31)
both_paths = pytest.mark.parametrize("path", [rollout, fast], ids=["plain", "fast"])
many = settings(deadline=None, max_examples=200)


# ---------------------------------------------------------------------------------------- groups for the mask

# What the paper's judge and ours give: halves from 1 to 10. Advantages: only the sign and zero matter to Eq. 8-9.
halves = st.integers(2, 20).map(lambda n: n / 2)
deltas = st.integers(0, 18).map(lambda n: n / 2)
advantage_values = st.sampled_from([-0.75, -0.25, 0.0, 0.0, 0.5, 1.0])


def matrices(values, largest_size=8):
    """(B, G) lists: up to three groups of 2 to 8 responses."""
    return st.tuples(st.integers(1, 3), st.integers(2, largest_size)).flatmap(
        lambda shape: st.lists(
            st.lists(values, min_size=shape[1], max_size=shape[1]), min_size=shape[0], max_size=shape[0]
        )
    )


# A response is a pair (A, S); a missing score is NaN. `scored` groups miss none.
scored = matrices(st.tuples(advantage_values, halves))
groups = matrices(st.tuples(advantage_values, st.one_of(halves, halves, halves, halves, halves, st.just(NAN))))


def split(batch):
    """Advantages and scores, (B, G) each, of lists of pairs."""
    both = torch.tensor(batch)
    return both[..., 0], both[..., 1]


# ---------------------------------------------------------------------------------------- updates for the losses


@dataclass(frozen=True)
class Case:
    """Everything from which one optimiser update is made. `new` and `entropy` are what carries gradient."""

    R: torch.Tensor  # (B, G)
    S: torch.Tensor  # (B, G)
    tokens: torch.Tensor  # (N, T)
    mask: torch.Tensor  # (N, T)
    new: torch.Tensor  # (N, T) log-probs being trained
    old: torch.Tensor  # (N, T) log-probs when sampled
    ref: torch.Tensor  # (N, T) log-probs of the reference
    entropy: torch.Tensor  # (N, T) now
    entropy_old: torch.Tensor  # (N, T) when sampled
    is_anchor: torch.Tensor  # (N,)
    start_entropy: float = 0.5
    max_new_tokens: int = 10


def advantages_of(case, recipe):
    """A (B, G), as train.py asks for them."""
    apart = None if recipe.mu is None else case.is_anchor.view(case.R.shape)
    return group_advantages(case.R, recipe.scale, recipe.baseline, apart)


def update_of(case, recipe, with_ref=False):
    """The modules' own way from a case to an update, as train.py goes it."""
    A = advantages_of(case, recipe)
    keep = rectification_mask(A, case.S, 3.0) if recipe.rectify else torch.ones_like(A, dtype=torch.bool)
    inputs = (case.tokens, case.mask, case.old, case.entropy_old, case.is_anchor, case.max_new_tokens)
    A = soften(recipe, A, case.S, 3.0)
    return build_update(recipe, A, keep, *inputs, case.start_entropy, case.ref if with_ref else None)


def pushes(case, recipe, update=None, kl_beta=0.0):
    """-dloss/dlogp and -dloss/dentropy, (N, T) each."""
    update = update or update_of(case, recipe, kl_beta > 0)
    logp, entropy = case.new.clone().requires_grad_(), case.entropy.clone().requires_grad_()
    policy_loss(logp, update, recipe, entropy, kl_beta).backward()
    return -logp.grad, torch.zeros_like(entropy) if entropy.grad is None else -entropy.grad


def two_responses():
    """A right and a wrong response: R = 1, 0. T = 4, the wrong one has 3 tokens and a pad.

    Ratios 1, 1.25, 6, 1/2 and 6, 1/2, 5/4. With clip (0.8, 1.2), A > 0 loses the tokens at 1.25 and 6 and keeps the
    one at 1/2; A < 0 keeps 6 and 5/4 and loses 1/2. Tokens 7 1 2 9 and 7 5 9: in conflict are the 7s and the 9s.
    """
    ratios = tensor([[1.0, 1.25, 6.0, 0.5], [6.0, 0.5, 1.25, 1.0]])
    new = torch.full((2, 4), log(0.4))
    return Case(
        R=tensor([[1.0, 0.0]]),
        S=tensor([[10.0, 1.0]]),
        tokens=tensor([[7, 1, 2, 9], [7, 5, 9, 0]]),
        mask=tensor([[True] * 4, [True, True, True, False]]),
        new=new,
        old=new - ratios.log(),
        ref=new,
        entropy=torch.zeros(2, 4),
        entropy_old=tensor([[0.2, 0.8, 0.6, 0.4], [0.1, 0.2, 0.3, 99.0]]),  # means over the tokens 0.5 and 0.2
        is_anchor=tensor([False, False]),
    )


def more_rows(case, R, S, **rows):
    """The case with other groups, and these rows behind its own."""
    return replace(case, R=R, S=S, **{name: torch.cat([getattr(case, name), x]) for name, x in rows.items()})


# an anchor of two tokens, p = 0.4 and 0.1; nobody sampled it, so `old` and `entropy_old` are NaN
anchor = {
    "tokens": tensor([[7, 9, 0, 0]]),
    "mask": tensor([[True, True, False, False]]),
    "new": torch.tensor([[log(0.4), log(0.1), 0.0, 0.0]], dtype=torch.float64),
    "old": torch.full((1, 4), NAN, dtype=torch.float64),
    "ref": torch.zeros((1, 4), dtype=torch.float64),
    "entropy": torch.zeros((1, 4), dtype=torch.float64),
    "entropy_old": torch.full((1, 4), NAN, dtype=torch.float64),
    "is_anchor": tensor([True]),
}


def undistinct_rows():
    """A right response of S = 6 and a wrong one of S = 4, to come after two_responses' S = 10 and S = 1.

    Eq. 8: 10 - 4 >= 3 kept, 6 - 4 < 3 masked. Eq. 9: 6 - 1 >= 3 kept, 6 - 4 < 3 masked.
    """
    case = two_responses()
    return {name: getattr(case, name) for name in anchor}


def random_case(seed, recipe, T=5):
    """Eight ragged rows, an equal-reward group now and then, ratios from far inside to far outside every clip.

    Two groups of four, whose last row is an anchor if the recipe has anchors, and in chord and hpt now and then not;
    without rollouts (sft) a group is one row, and that is an anchor.
    """
    g = torch.Generator().manual_seed(seed)
    B, G = (2, 4) if recipe.rollouts else (8, 1)

    def rand(*shape):
        return torch.rand(*shape, generator=g)

    def pick(values, *shape):
        return tensor(values)[torch.randint(len(values), shape, generator=g)]

    N = B * G
    new = -0.05 - 3 * rand(N, T)
    is_anchor = torch.arange(N) % G == (G - 1 if recipe.anchors else -1)
    if recipe.mu is not None:
        is_anchor &= pick([True, True, False], B).repeat_interleave(G)
    old = (new - pick([0.0, 1e-4, 1e-3, 0.3, 2.0], N, 1) * torch.randn(N, T, generator=g)).clamp(max=-0.01)
    return Case(
        R=pick([0.0, 0.5, 1.0], B, G) if seed % 3 else pick([0.0, 1.0], B, 1).expand(B, G).clone(),
        S=pick([1.0, 2.5, 4.0, 5.5, 7.0, 10.0] if seed % 5 else [1.0, 7.0, NAN], B, G),
        tokens=torch.randint(3, (N, T), generator=g),
        mask=torch.arange(T) < torch.randint(1, T + 1, (N, 1), generator=g),
        new=new,
        old=old.masked_fill(is_anchor[:, None], NAN),
        ref=new + 0.3 * torch.randn(N, T, generator=g),
        entropy=rand(N, T),
        entropy_old=1.4 * rand(N, T),
        is_anchor=is_anchor,
        start_entropy=float(pick([0.5, 2.0], 1)),
        max_new_tokens=T + int(torch.randint(4, (), generator=g)),
    )


# ---------------------------------------------------------------------------------------- policies and short runs


def run(folder, out, *flags, method="dagrpo", steps=2, **handed_in):
    """A short run; returns its metrics rows, those columns left out that depend on the machine."""
    small = ["--batch-prompts", "4", "--group-size", "4", "--max-new-tokens", "44", "--lr", "1e-3", "--show-every", "0"]
    argv = ["--method", method, "--steps", str(steps), "--out", str(out), "--model", str(folder)]
    train.main([*argv, *small, *flags], **handed_in)
    return metrics(out)


def run_eval(*flags):
    evaluation.main([str(flag) for flag in flags])


def metrics(out):
    with (out / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if k not in runfolder.MACHINE} for row in rows]


def groups_of(out):
    return [json.loads(line) for line in (out / "rollouts.jsonl").open()]


def weights(out):
    model = load_policy(str(out)).model
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def small_gpt2(tokenizer):
    """An architecture with absolute positions: left padding shifts them unless position_ids say otherwise."""
    torch.manual_seed(1)
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=64, n_embd=32, n_layer=2, n_head=2)
    return Policy(GPT2LMHeadModel(config).eval(), tokenizer)


def gradient(policy):
    """Of all parameters that are trained, as one vector."""
    return torch.cat([p.grad.flatten() for p in policy.model.parameters() if p.requires_grad])


def one_error(capsys, main, *argv):
    """The one line that a command which must fail says."""
    with pytest.raises(SystemExit) as stop:
        main([str(arg) for arg in argv])
    captured = capsys.readouterr()
    assert stop.value.code == 2 and captured.err.count("\n") == 1 and captured.err.startswith("error: ")
    return captured.err
