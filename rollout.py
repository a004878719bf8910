"""From prompts to groups of sampled responses: HF generate, masks, log-probs, entropy; and the learner's forward pass.

The paper samples G = 8 responses per prompt at temperature 1.0 and top-p 1.0 (Section 6). The one thing this file must
get right: responses are drawn from exactly the distribution that is trained. `generate` will not do that by itself (a
top-k of 50 by default, and whatever the model folder's generation_config.json asks for), so `sample_groups` puts all
of that out of force. The log-probs it returns are recorded while sampling, from the very logits that were sampled.

Shapes: B prompts, N rows (responses), P prompt tokens (padded on the left), T completion tokens (padded on the right),
V vocabulary.

    python rollout.py    samples one group of four from the warm start and shows the padded batch
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import groupby

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.checkpoint import checkpoint
from transformers import Cache, GenerationConfig, LogitsProcessorList, StoppingCriteriaList

import graphs
import kvcache
from packed import packed
from policy import Policy, transformer
from sampler import ManyEnded, Sampler, tempered
from tasks import Problem

PER_ROW = ("tokens", "mask", "logp", "entropy", "group", "is_anchor", "ended")  # tensors with one entry a row
LOGITS_AT_ONCE = 2**26  # 256 MB of fp32
A_PASS = 5e12  # weights times tokens, at 6 operations each: 0.11 s of a GPU at the rate of analysis/sizes.py


@dataclass(frozen=True)
class Rollouts:
    """A batch of groups: rows of one group are neighbours, its anchor, if it has one, comes last.

        prompt_ids (B, P)     tokens (N, T)        mask (N, T)
        . . 1 + 1 =           # 2 $ . . .          1 1 1 0 0 0     ended: the first $ (end token) is inside the mask,
                              1 + 1 = 2 ;          1 1 1 1 1 1     cut off at T: no end token, not ended
        1 2 - 3 + 4 =         # 1 3 $ . .          1 1 1 1 0 0     and everything behind it is outside
                              1 2 - 3 = 9 ...      1 1 1 1 1 1

    The mask is made from the place of the first end token, never from `tokens == pad`: where pad and end token are the
    same id, such a mask would drop the end token, and stopping would never be trained.
    """

    problems: list[Problem]  # B
    prompt_ids: Tensor  # (B, P)
    prompt_mask: Tensor  # (B, P) bool
    tokens: Tensor  # (N, T)
    mask: Tensor  # (N, T) bool
    logp: Tensor  # (N, T) of the sampled tokens under the sampling policy; NaN on anchors' rows, 0 outside the mask
    entropy: Tensor  # (N, T) of the whole next-token distribution, nats; likewise
    group: Tensor  # (N,) index of the row's prompt
    is_anchor: Tensor  # (N,) bool
    ended: Tensor  # (N,) bool, the response came to its end token
    texts: list[str]  # N, decoded without special tokens

    @property
    def lengths(self) -> Tensor:
        """Completion tokens of every row, end token included: (N,)."""
        return self.mask.sum(dim=1)

    def select(self, rows: Tensor) -> Rollouts:
        """These rows alone; all prompts stay."""
        parts = {name: getattr(self, name)[rows] for name in PER_ROW}
        return replace(self, **parts, texts=[self.texts[i] for i in rows.tolist()])


def concat(first: Rollouts, second: Rollouts, pad_id: int) -> Rollouts:
    """The rows of both, which share their prompts, group by group; within a group `second`'s rows come last."""
    width = max(first.tokens.shape[1], second.tokens.shape[1])
    fill = {"tokens": pad_id, "mask": False, "logp": 0.0, "entropy": 0.0}

    def widen(part: Rollouts, name: str) -> Tensor:
        x = getattr(part, name)
        return pad(x, (0, width - x.shape[1]), value=fill[name]) if name in fill else x

    rows = {name: torch.cat([widen(first, name), widen(second, name)]) for name in PER_ROW}
    both = replace(first, **rows, texts=first.texts + second.texts)
    return both.select(both.group.argsort(stable=True))


def pad_prompts(policy: Policy, problems: list[Problem]) -> tuple[Tensor, Tensor]:
    """Prompts as ids and mask, both (B, P), padded on the left: completions then start in the same column."""
    rows = [policy.encode_prompt(problem.question) for problem in problems]
    width = max(map(len, rows))
    ids = torch.tensor([[policy.pad_id] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], dtype=torch.bool)
    return ids.to(policy.device), mask.to(policy.device)


def completion_mask(tokens: Tensor, eos_id: int) -> tuple[Tensor, Tensor]:
    """From tokens (N, T): the mask (N, T), True up to and including the first end token, and `ended` (N,).

    >>> completion_mask(torch.tensor([[5, 2, 2], [5, 6, 7]]), eos_id=2)[0].int()
    tensor([[1, 1, 0],
            [1, 1, 1]], dtype=torch.int32)
    """
    is_end = tokens == eos_id  # (N, T)
    before = is_end.cumsum(dim=1) - is_end.int()  # end tokens strictly before this one
    return before == 0, is_end.any(dim=1)


@torch.no_grad()
def sample_groups(
    policy: Policy,
    problems: list[Problem],
    counts: list[int],
    max_new_tokens: int,
    temperature: float = 1.0,
    greedy: bool = False,
) -> Rollouts:
    """`counts[b]` responses to problem b (0 is allowed), drawn by `generate` from the whole distribution.

    Whenever a quarter of the rows has ended, the others go on without them: on the built-in task the longest response
    has three times the tokens of the mean one. Advances torch's global random state, which is therefore part of a
    checkpoint. The model must be in eval mode: dropout would make the sampled distribution another one. Raises
    FloatingPointError if the weights have gone astray.
    """
    group = torch.tensor([b for b, count in enumerate(counts) for _ in range(count)], device=policy.device)  # (N,)
    prompt_ids, prompt_mask = pad_prompts(policy, problems)  # (B, P)
    tokens = torch.full((len(group), max_new_tokens), policy.pad_id, device=policy.device)  # (N, T)
    logp, entropy = torch.zeros((2, *tokens.shape), device=policy.device)  # (N, T) each
    kind = graphs.cache_kind(policy)
    cache = kvcache.prompt_cache(policy, prompt_ids, prompt_mask, group, kind) or kvcache.empty_cache(policy, kind)
    rows = torch.arange(len(group), device=policy.device)  # (n,) that have not ended
    ids, attention, start = prompt_ids[group], prompt_mask[group].long(), 0  # what they have so far, (n, P + start)
    while len(rows) and start < max_new_tokens:
        sampler, length = Sampler(temperature, greedy), kvcache.make_room(cache, ids.shape[1], max_new_tokens - start)
        ids = _generate(policy, ids, attention, cache, length, sampler)
        new = ids[:, attention.shape[1] :]  # (n, t)
        end = start + new.shape[1]
        tokens[rows, start:end] = new
        logp[rows, start:end] = torch.stack(sampler.logp, dim=1)
        entropy[rows, start:end] = torch.stack(sampler.entropy, dim=1)
        going = (new != policy.eos_id).all(dim=1).nonzero().squeeze(1)  # (n,) to fewer
        cache.batch_select_indices(going)
        attention = pad(attention, (0, end - start), value=1)
        rows, ids, attention, start = rows[going], ids[going], attention[going], end
    mask, ended = completion_mask(tokens[:, :start], policy.eos_id)
    return Rollouts(
        problems=problems,
        prompt_ids=prompt_ids,
        prompt_mask=prompt_mask,
        tokens=tokens[:, :start].masked_fill(~mask, policy.pad_id),
        mask=mask,
        logp=logp[:, :start].masked_fill(~mask, 0.0),
        entropy=entropy[:, :start].masked_fill(~mask, 0.0),
        group=group,
        is_anchor=torch.zeros_like(ended),
        ended=ended,
        texts=decode(policy, tokens[:, :start], mask),
    )


def _generate(policy: Policy, ids: Tensor, attention: Tensor, cache: Cache, length: int, sampler: Sampler) -> Tensor:
    """`ids` (n, P) with at most `length` more tokens, until a quarter of them has ended; `cache` grows with them."""
    model = policy.model
    # The trap: what a GenerationConfig leaves open, `generate` takes from the model's own one, which may hold a top-k,
    # a repetition penalty or a minimal length. So the model's own one is replaced while we sample.
    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        with policy.autocast(), packed(policy, len(ids), length), graphs.graphed(policy, cache, length):
            return model.generate(
                input_ids=ids,
                attention_mask=attention,
                cache=cache,
                generation_config=GenerationConfig(
                    do_sample=False,  # takes the largest score: what the sampler has drawn
                    max_new_tokens=length,
                    eos_token_id=policy.eos_id,
                    pad_token_id=policy.pad_id,
                    disable_compile=True,  # graphs.py: nothing to wait for
                ),
                logits_processor=LogitsProcessorList([sampler]),
                stopping_criteria=StoppingCriteriaList([ManyEnded(policy.eos_id, ids.shape[1])]),
            )
    finally:
        model.generation_config = own


def decode(policy: Policy, tokens: Tensor, mask: Tensor) -> list[str]:
    """The rows' texts, without special tokens and without what stands behind the end."""
    rows = [row[kept].tolist() for row, kept in zip(tokens, mask, strict=True)]
    return policy.tokenizer.batch_decode(rows, skip_special_tokens=True)


def token_logprobs(
    policy: Policy,
    rollouts: Rollouts,
    rows: Tensor,
    temperature: float = 1.0,
    with_entropy: bool = False,
    share: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Log-probs (n, t) of the completion tokens of these n rows under the policy now, with gradient; and entropies.

    t is the longest completion among the rows, as in `dagrpo.Update.rows`. Outside the mask stands 0. Logits are
    computed for the mask's positions only, and divided by the temperature that the responses were sampled at. Each
    prompt runs once for all of its rows, or with `share` False once with each.
    """
    group, mask = rollouts.group[rows], rollouts.mask[rows]  # (n,), (n, T)
    length = int(mask.sum(dim=1).max())
    tokens, mask = rollouts.tokens[rows, :length], mask[:, :length]  # (n, t)
    prompt_ids, prompt_mask = rollouts.prompt_ids[group], rollouts.prompt_mask[group]  # (n, P)
    ids = torch.cat([prompt_ids, tokens], dim=1)[:, :-1]  # (n, P + t - 1): nothing follows the last token
    attention = torch.cat([prompt_mask, mask], dim=1)[:, :-1].long()  # (n, P + t - 1)
    positions = kvcache.positions_of(attention)
    prompts = policy, rollouts.prompt_ids, rollouts.prompt_mask, group
    cache = kvcache.prompt_cache(*prompts, kvcache.Reading) if share else None
    if cache is not None:
        ids, positions = ids[:, -length:], positions[:, -length:]  # (n, t): the prompt's last token, then the response
    inputs = {"input_ids": ids, "attention_mask": attention, "position_ids": positions, "cache": cache}
    hidden = policy.hidden_states(**inputs, use_cache=cache is not None)[:, -length:]  # (n, t, width)
    # the hidden state at a position is for the token after it
    logp, entropy = _logprobs(policy, hidden[mask], tokens[mask], temperature, with_entropy)  # (tokens in the mask,)
    zeros = torch.zeros(mask.shape, device=mask.device)
    return zeros.masked_scatter(mask, logp), zeros.masked_scatter(mask, entropy) if with_entropy else None


def _logprobs(
    policy: Policy, hidden: Tensor, tokens: Tensor, temperature: float, with_entropy: bool
) -> tuple[Tensor, Tensor | None]:
    """Log-probs (m,) of these tokens, and entropies, from the hidden states (m, width) that they are drawn from.

    A vocabulary is large: fp32 logits of 8,192 tokens and 150,000 words are 5 GB, and their log-probs and gradients as
    much again. So they are made in parts, and a part is not kept: the backward pass computes it again.
    """

    def part(hidden: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        with policy.autocast():
            logits = policy.logits(hidden)
        logp = tempered(logits.float(), temperature).log_softmax(dim=-1)  # (m, V)
        entropy = -(logp.exp() * logp).sum(dim=-1) if with_entropy else logp.new_zeros(len(logp))
        return logp.gather(1, tokens[:, None]).squeeze(1), entropy

    vocabulary = transformer(policy.model).get_output_embeddings().weight.shape[0]
    at_once = max(1, LOGITS_AT_ONCE // vocabulary)
    if len(tokens) <= at_once:
        return part(hidden, tokens)
    parts = [
        checkpoint(part, *pair, use_reentrant=False)
        for pair in zip(hidden.split(at_once), tokens.split(at_once), strict=True)
    ]
    logp, entropy = (torch.cat(column) for column in zip(*parts, strict=True))
    return logp, entropy


def plan(policy: Policy, lengths: Tensor, group: Tensor, prompt_tokens: int, budget: int) -> tuple[list[Tensor], bool]:
    """The micro-batches of an update's rows, and whether each prompt is to run once for its rows in them.

    Lengths (n,), `group` (n,) and the budget are those of `micro_batches`. Prompts that run once take a pass more:
    first they, then the completions. On a CPU that always pays. On a GPU Python needs some 0.1 s to start a pass and
    its backward pass (graphs.py), and the tokens that need not run again have to be worth that.
    """
    shared = micro_batches(lengths, budget, group, prompt_tokens)
    if policy.device.type != "cuda":
        return shared, True
    alone = micro_batches(lengths + prompt_tokens, budget, group)
    weights, prompts = policy.model.num_parameters(), group.tolist()
    tokens, with_prompt = lengths.tolist(), (lengths + prompt_tokens).tolist()
    once = sum(2 * A_PASS + weights * tokens_run(rows.tolist(), tokens, prompts, prompt_tokens) for rows in shared)
    each = sum(A_PASS + weights * tokens_run(rows.tolist(), with_prompt, prompts, 0) for rows in alone)
    return (shared, True) if once <= each else (alone, False)


def tokens_run(rows: list[int], lengths: list[int], group: list[int], prompt_tokens: int) -> int:
    """The tokens that a pass over these rows runs, padding counted and each prompt once."""
    return prompt_tokens * len({group[row] for row in rows}) + len(rows) * max(lengths[row] for row in rows)


def micro_batches(lengths: Tensor, budget: int, group: Tensor | None = None, prompt_tokens: int = 0) -> list[Tensor]:
    """Row indices in batches that run at most `budget` tokens, padding counted; a row over the budget goes alone.

    `lengths` (n,) of completions, `group` (n,) of the rows' prompts, each of `prompt_tokens` and run once in a batch.
    Rows in order of length waste little on padding, rows of a prompt side by side run it in few batches, and prompts
    that are not split in fewer still: of these three the one that runs fewest tokens is taken.

    >>> micro_batches(torch.tensor([1, 9, 2, 8]), budget=20)
    [tensor([0, 2]), tensor([3, 1])]
    >>> micro_batches(torch.tensor([1, 9, 2, 8]), budget=30, group=torch.tensor([0, 0, 1, 1]), prompt_tokens=12)
    [tensor([0, 1]), tensor([2, 3])]
    """
    tokens, prompts = lengths.tolist(), [0] * len(lengths) if group is None else group.tolist()

    def run(rows: list[int]) -> int:
        return tokens_run(rows, tokens, prompts, prompt_tokens)

    def fill(units: list[list[int]]) -> list[list[int]]:
        """Units of rows in this order; one that is over the budget by itself is taken apart."""
        batches: list[list[int]] = []
        for unit in units:
            if batches and run(batches[-1] + unit) <= budget:
                batches[-1] = batches[-1] + unit
            elif len(unit) == 1 or run(unit) <= budget:
                batches.append(unit)
            else:
                batches += fill([[row] for row in unit])
        return batches

    by_length = sorted(range(len(tokens)), key=tokens.__getitem__)
    by_prompt = sorted(by_length, key=prompts.__getitem__)
    whole = [list(rows) for _, rows in groupby(by_prompt, key=prompts.__getitem__)]
    orders = ([[row] for row in by_length], [[row] for row in by_prompt], whole)
    best = min(map(fill, orders), key=lambda batches: sum(map(run, batches)))
    return [torch.tensor(batch) for batch in best]


if __name__ == "__main__":
    import policy as policies
    import tasks

    start = policies.load()
    torch.manual_seed(0)
    batch = sample_groups(start, tasks.arithmetic("train", per_level=1)[:2], counts=[4, 4], max_new_tokens=40)
    for row, text in enumerate(batch.texts):
        b = int(batch.group[row])
        print(f"\n{batch.problems[b].question}{text}")
        print("  mask    ", "".join(str(int(m)) for m in batch.mask[row]), "ended" if batch.ended[row] else "cut off")
        print("  log-prob", f"{batch.logp[row].sum():.2f}", " entropy per token", end=" ")
        print(f"{batch.entropy[row].sum() / batch.lengths[row]:.2f} nats")
