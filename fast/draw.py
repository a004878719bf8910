"""How the next token is drawn, and when rows leave the batch: what `generate` calls at every token.

The draw notes its log-prob and the distribution's entropy, which is all that training needs of the logits.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import LogitsProcessor, StoppingCriteria


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
        return torch.zeros_like(scores).scatter_(1, drawn, 1.0)


def draw(probability: Tensor) -> Tensor:
    """One index (N, 1) a row of `probability` (N, V), by inversion: the first whose cumulative sum is above u.

    The sums are fp64: adding up 150,000 small numbers to 1 then loses none of them. An index of probability 0 is never
    drawn.
    """
    total = probability.cumsum(dim=1, dtype=torch.float64)  # (N, V)
    u = torch.rand(len(total), 1, dtype=torch.float64, device=total.device) * total[:, -1:]  # (N, 1)
    return torch.searchsorted(total, u, right=True).clamp(max=total.shape[1] - 1)


def tempered(logits: Tensor, temperature: float) -> Tensor:
    """Logits of the distribution that is sampled, and trained. No pass over (N, V) for a division by 1."""
    return logits if temperature == 1 else logits / temperature


class ManyEnded(StoppingCriteria):
    """Stops all rows as soon as this share of them has ended, so that these can leave the batch."""

    def __init__(self, end_ids: Tensor, start: int, share: float) -> None:
        self.end_ids, self.start, self.share = end_ids, start, share

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: object) -> Tensor:
        ended = torch.isin(input_ids[:, self.start :], self.end_ids).any(dim=1)  # (n,)
        return (ended.float().mean() >= self.share).expand(len(ended))
