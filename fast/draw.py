"""How the next token is drawn, and when rows leave the batch: what `generate` calls at every token.

The draw notes its log-prob and the distribution's entropy, which is all that training needs of the logits.

    python -m fast.draw    draws 100,000 tokens from four probabilities
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import LogitsProcessor, StoppingCriteria

DRAWN_FROM = 1024  # probabilities
LEAVE_AT = 0.25  # share of rows that have ended, at which these leave the batch


class Sampler(LogitsProcessor):
    """Draws the next token of every row itself, and notes its log-prob and the distribution's entropy.

    `generate` then takes the largest score, which is the drawn token's. Left to `generate`, on a CPU, the draw takes
    longer than the attention of all layers: torch.multinomial makes a random number for every word of the vocabulary,
    where one for every row is enough. And so the log-probs are of the very logits that were drawn from, without the T
    tensors (N, V) that `output_logits=True` would keep.
    """

    def __init__(self, temperature: float, greedy: bool) -> None:
        self.temperature, self.greedy = temperature, greedy
        self.logp: list[Tensor] = []  # T entries (N,)
        self.entropy: list[Tensor] = []  # T entries (N,)

    def __call__(self, _: Tensor, scores: Tensor) -> Tensor:
        logp = tempered(scores, self.temperature).log_softmax(dim=-1)  # (N, V)
        probability = logp.exp()
        drawn = logp.argmax(dim=1, keepdim=True) if self.greedy else draw(probability)  # (N, 1)
        self.logp.append(logp.gather(1, drawn).squeeze(1))
        if self.logp[-1].isnan().any():  # one logit that is not finite makes its whole row so
            raise FloatingPointError("the policy's logits are not finite")
        # below e^-104 an fp32 probability is 0: no NaN from 0 * -inf. torch.special.entr takes four times as long
        self.entropy.append(-(probability * logp.clamp_(min=-104)).sum(dim=-1))
        return torch.zeros_like(scores, dtype=torch.int8).scatter_(1, drawn, 1)  # int8: the largest is found sooner


def draw(probability: Tensor) -> Tensor:
    """One index (N, 1) a row of `probability` (N, V), by inversion: the first whose cumulative sum is above u.

    In two stages, a part of the vocabulary and then an index in it: the sums are fp64, where adding up 150,000 small
    numbers to 1 loses none of them, and fp64 copies of all V would take ten times as long. An index of probability 0 is
    never drawn.
    """
    n, size = len(probability), min(DRAWN_FROM, probability.shape[1])
    parts = pad(probability, (0, -probability.shape[1] % size)).unflatten(1, (-1, size))  # (N, parts, size)
    u = torch.rand(n, 1, dtype=torch.float64, device=probability.device)
    part, u = _invert(parts.sum(dim=2), u)
    inside, _ = _invert(parts[torch.arange(n, device=part.device), part.squeeze(1)], u)
    return part * size + inside


def _invert(weights: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """The index (N, 1) in whose share of the row's sum u (N, 1) in [0, 1) lies, and how far into that share it is."""
    total = weights.cumsum(dim=1, dtype=torch.float64)  # (N, K)
    u = u * total[:, -1:]
    index = torch.searchsorted(total, u, right=True).clamp(max=weights.shape[1] - 1)
    share = weights.gather(1, index)
    return index, (1 - (total.gather(1, index) - u) / share).clamp(0, 1 - 2**-50)


def tempered(logits: Tensor, temperature: float) -> Tensor:
    """Logits of the distribution that is sampled, and trained. No pass over (N, V) for a division by 1."""
    return logits if temperature == 1 else logits / temperature


class ManyEnded(StoppingCriteria):
    """Stops all rows as soon as LEAVE_AT of them have ended, so that these can leave the batch."""

    def __init__(self, eos_id: int, start: int) -> None:
        self.eos_id, self.start = eos_id, start

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: object) -> Tensor:
        ended = (input_ids[:, self.start :] == self.eos_id).any(dim=1)  # (n,)
        return (ended.float().mean() >= LEAVE_AT).expand(len(ended))


if __name__ == "__main__":
    torch.manual_seed(0)
    words = torch.tensor([0.5, 0.3, 0.2, 0.0])
    sampler = Sampler(temperature=1.0, greedy=False)
    chosen = sampler(torch.empty(0), words.log().expand(100_000, 4)).argmax(dim=1)
    for probability, times in zip(words.tolist(), torch.bincount(chosen, minlength=4).tolist(), strict=True):
        print(f"probability {probability:.3f}   drawn {times / len(chosen):.3f}")
    print(f"log-prob of the first {sampler.logp[0][0]:.3f}, entropy {sampler.entropy[0][0]:.3f} nats")
