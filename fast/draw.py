"""What `generate` calls at every token: it draws the next token, and checks whether rows can leave the batch.

Each draw records its log-prob and the distribution's entropy, which is all that training needs of the logits.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import LogitsProcessor, StoppingCriteria


class Sampler(LogitsProcessor):
    """Draws the next token of every row itself, and records its log-prob and the distribution's entropy.

    `generate` then takes the largest score, which is the drawn token's. Drawing in `generate` takes longer, on a CPU,
    than the attention of all layers: torch.multinomial makes a random number for every token of the vocabulary, where
    one per row is enough. Here the log-probs also come from the very logits of the draw, without the T tensors (N, V)
    that `output_logits=True` would keep.
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
        if self.logp[-1].isnan().any():  # one logit of NaN or +inf makes its whole row NaN
            raise FloatingPointError("the policy's logits are not finite")
        # below e^-104 an fp32 probability is 0: no NaN from 0 * -inf. torch.special.entr takes four times as long
        self.entropy.append(-(probability * logp.clamp_(min=-104)).sum(dim=-1))
        return torch.zeros_like(scores).scatter_(1, drawn, 1.0)


def draw(probability: Tensor) -> Tensor:
    """One index per row of `probability` (N, V), drawn by inversion, (N, 1): the first with a cumulative sum above u.

    The sums are fp64: adding up 150,000 small numbers to 1 then loses none of them. An index of probability 0 is never
    drawn.
    """
    total = probability.cumsum(dim=1, dtype=torch.float64)  # (N, V)
    u = torch.rand(len(total), 1, dtype=torch.float64, device=total.device) * total[:, -1:]  # (N, 1)
    return torch.searchsorted(total, u, right=True).clamp(max=total.shape[1] - 1)


def tempered(logits: Tensor, temperature: float) -> Tensor:
    """Logits of the distribution that is sampled and trained. At temperature 1 it saves the pass over (N, V)."""
    return logits if temperature == 1 else logits / temperature


class ManyEnded(StoppingCriteria):
    """Stops all rows as soon as this share of them has ended, so that these can leave the batch."""

    def __init__(self, end_ids: Tensor, start: int, share: float) -> None:
        self.end_ids, self.start, self.share = end_ids, start, share

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: object) -> Tensor:
        ended = torch.isin(input_ids[:, self.start :], self.end_ids).any(dim=1)  # (n,)
        return (ended.float().mean() >= self.share).expand(len(ended))
