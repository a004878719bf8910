"""From prompts to groups of sampled responses and their log-probs: the plain path, to read and to step through.

The paper samples G = 8 responses per prompt at temperature 1.0 and top-p 1.0 (Section 6). The one thing this file must
get right: responses are drawn from exactly the distribution that is trained. `generate` does not do that by itself (it
has a top-k of 50 by default, and follows the model folder's generation_config.json), so `sample_groups` switches all of
that off. The log-probs it returns come from the same logits that the tokens were drawn from.

fast/ has faster versions of `sample_groups`, `token_logprobs` and `micro_batches` with the same results. train.py uses
them unless it is given --plain; `python -m fast` compares the two.

Letters: B prompts, N rows (responses), P prompt tokens (padded on the left), T completion tokens (padded on the right),
V tokens of the vocabulary; n rows of a micro-batch, t its longest completion.

    python rollout.py    samples two groups of four from the warm start and shows their masks and log-probs
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import GenerationConfig, LogitsProcessorList

from policy import Policy, pad_left, positions_of
from tasks import Problem

PER_ROW = ("tokens", "mask", "logp", "entropy", "group", "is_anchor", "ended")  # tensors with one entry per row


@dataclass(frozen=True)
class Rollouts:
    """A batch of groups: rows of one group are neighbours, and its anchor, if it has one, comes last.

        prompt_ids (B, P)     tokens (N, T)        mask (N, T)
        . . 1 + 1 =           # 2 $ . . .          1 1 1 0 0 0     ended: True up to the first $ (end token), then False
                              1 + 1 = 2 ;          1 1 1 1 1 1     cut off at T: no end token, not ended
        1 2 - 3 + 4 =         # 1 3 $ . .          1 1 1 1 0 0
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
    ended: Tensor  # (N,) bool, the response has an end token
    texts: list[str]  # N, decoded without special tokens

    @property
    def lengths(self) -> Tensor:
        """Completion tokens of every row, end token included: (N,)."""
        return self.mask.sum(dim=1)

    def select(self, rows: Tensor) -> Rollouts:
        """These rows alone; all prompts stay."""
        parts = {name: getattr(self, name)[rows] for name in PER_ROW}
        return replace(self, **parts, texts=[self.texts[i] for i in rows.tolist()])


@dataclass(frozen=True)
class Groups:
    """What a step knows about its groups before it learns from them. Tensors are (B, G)."""

    rollouts: Rollouts  # N = B * G rows, G_mix of Eq. 11
    rewards: Tensor  # R in {0, 1}: is the answer right
    scores: Tensor  # S in [1, 10], Eq. 7; NaN: not scored
    advantages: Tensor  # A, Eq. 1/12
    distinct: Tensor  # bool, what Eq. 8-9 would keep, whether the recipe masks or not
    keep: Tensor  # bool, what the recipe keeps
    responses: int  # how many were generated, including those that an anchor or another sample has replaced
    tokens: int  # of all these responses


# ---------------------------------------------------------------------------------------- sampling


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

    Advances torch's global random state, which is therefore part of a checkpoint. The model must be in eval mode:
    dropout would change the sampled distribution. Raises FloatingPointError if the logits are not finite.
    """
    prompt_ids, prompt_mask = pad_prompts(policy, problems)  # (B, P)
    group = group_index(counts, policy.device)  # (N,)
    if not any(counts):
        nothing = torch.zeros(0, 0, device=policy.device)
        return as_rollouts(policy, problems, prompt_ids, prompt_mask, group, nothing.long(), nothing, nothing)
    how = {"do_sample": False} if greedy else {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    how |= {"max_new_tokens": max_new_tokens, "eos_token_id": list(policy.end_ids), "pad_token_id": policy.pad_id}
    config = GenerationConfig(**how, output_logits=True, return_dict_in_generate=True)
    only_tokens = LogitsProcessorList([lambda _, logits: policy.of_tokens(logits)])
    with whole_distribution(policy), policy.autocast():
        ids, attention = prompt_ids[group], prompt_mask[group].long()  # (N, P)
        out = policy.model.generate(
            input_ids=ids, attention_mask=attention, generation_config=config, logits_processor=only_tokens
        )
    tokens = out.sequences[:, prompt_ids.shape[1] :]  # (N, T)
    logits = policy.of_tokens(torch.stack(out.logits, dim=1))  # (N, T, V)
    logp, entropy = logp_and_entropy(logits, tokens, temperature)  # (N, T)
    return as_rollouts(policy, problems, prompt_ids, prompt_mask, group, tokens, logp, entropy)


@contextmanager
def whole_distribution(policy: Policy) -> Iterator[None]:
    """In this context, `generate` follows only the GenerationConfig that it is given.

    The trap: what that config leaves open, `generate` takes from the model's own config, which may set a top-k, a
    repetition penalty or a minimal length. So the model's own config is replaced while we sample.
    """
    own, policy.model.generation_config = policy.model.generation_config, GenerationConfig()
    try:
        yield
    except RuntimeError as error:  # this is how torch.multinomial reports NaN
        if "probability tensor" in str(error):
            raise FloatingPointError("the policy's logits are not finite") from None
        raise
    finally:
        policy.model.generation_config = own


def as_rollouts(
    policy: Policy,
    problems: list[Problem],  # B
    prompt_ids: Tensor,  # (B, P)
    prompt_mask: Tensor,  # (B, P)
    group: Tensor,  # (N,)
    tokens: Tensor,  # (N, T) as sampled; anything may follow an end token
    logp: Tensor,  # (N, T)
    entropy: Tensor,  # (N, T)
) -> Rollouts:
    """Makes Rollouts of sampled tokens: what follows the first end token is masked, and the texts end before it."""
    if logp.isnan().any():  # one logit of NaN or +inf makes its whole row NaN
        raise FloatingPointError("the policy's logits are not finite")
    mask, ended = completion_mask(tokens, policy.end_ids)  # (N, T), (N,)
    lengths = (mask.sum(dim=1) - ended.int()).tolist()  # N, without the end tokens
    rows = [row[:length] for row, length in zip(tokens.tolist(), lengths, strict=True)]
    return Rollouts(
        problems=problems,
        prompt_ids=prompt_ids,
        prompt_mask=prompt_mask,
        tokens=tokens.masked_fill(~mask, policy.pad_id),
        mask=mask,
        logp=logp.masked_fill(~mask, 0.0),
        entropy=entropy.masked_fill(~mask, 0.0),
        group=group,
        is_anchor=torch.zeros_like(ended),
        ended=ended,
        texts=policy.tokenizer.batch_decode(rows, skip_special_tokens=True),
    )


def group_index(counts: list[int], device: torch.device) -> Tensor:
    """Which prompt each row belongs to: (N,), in order.

    >>> group_index([2, 0, 1], torch.device("cpu"))
    tensor([0, 0, 2])
    """
    return torch.tensor([b for b, count in enumerate(counts) for _ in range(count)], dtype=torch.long, device=device)


def pad_prompts(policy: Policy, problems: list[Problem]) -> tuple[Tensor, Tensor]:
    """Prompts as ids and mask, both (B, P), padded on the left: completions then start in the same column."""
    return pad_left(policy, [policy.encode_prompt(problem.question) for problem in problems])


def completion_mask(tokens: Tensor, end_ids: Sequence[int]) -> tuple[Tensor, Tensor]:
    """From tokens (N, T): the mask (N, T), True up to and including the first end token, and `ended` (N,).

    >>> completion_mask(torch.tensor([[5, 2, 2], [5, 6, 7]]), end_ids=[2])[0].int()
    tensor([[1, 1, 0],
            [1, 1, 1]], dtype=torch.int32)
    """
    is_end = torch.isin(tokens, torch.tensor(end_ids, device=tokens.device))  # (N, T)
    before = is_end.cumsum(dim=1) - is_end.int()  # end tokens strictly before this one
    return before == 0, is_end.any(dim=1)


def concat(first: Rollouts, second: Rollouts, pad_id: int) -> Rollouts:
    """The rows of both, group by group, `second`'s last in each group. Both must have the same prompts."""
    width = max(first.tokens.shape[1], second.tokens.shape[1])
    fill = {"tokens": pad_id, "mask": False, "logp": 0.0, "entropy": 0.0}

    def widen(part: Rollouts, name: str) -> Tensor:
        x = getattr(part, name)
        return pad(x, (0, width - x.shape[1]), value=fill[name]) if name in fill else x

    rows = {name: torch.cat([widen(first, name), widen(second, name)]) for name in PER_ROW}
    both = replace(first, **rows, texts=first.texts + second.texts)
    return both.select(both.group.argsort(stable=True))


# ---------------------------------------------------------------------------------------- learning


def token_logprobs(
    policy: Policy, rollouts: Rollouts, rows: Tensor, temperature: float = 1.0, with_entropy: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Log-probs of the completion tokens of `rows` (n,) under the policy now, with gradient; and entropies, or None.

    Both are (n, t), 0 outside the mask; t is the longest completion among the rows, as in `dagrpo.Update.rows`. Logits
    are divided by `temperature`, which must be the one of sampling.
    """
    group, mask = rollouts.group[rows], rollouts.mask[rows]  # (n,), (n, T)
    t = int(mask.sum(dim=1).max())
    tokens, mask = rollouts.tokens[rows, :t], mask[:, :t]  # (n, t)
    ids = torch.cat([rollouts.prompt_ids[group], tokens], dim=1)  # (n, P + t)
    attention = torch.cat([rollouts.prompt_mask[group], mask], dim=1).long()  # (n, P + t)
    with policy.autocast():
        logits = policy.model(
            input_ids=ids, attention_mask=attention, position_ids=positions_of(attention), use_cache=False
        ).logits[:, -t - 1 : -1]  # (n, t, outputs): the logits at a position are for the token after it
    logp, entropy = logp_and_entropy(policy.of_tokens(logits), tokens, temperature)  # (n, t) each
    return logp.masked_fill(~mask, 0.0), entropy.masked_fill(~mask, 0.0) if with_entropy else None


def logp_and_entropy(logits: Tensor, tokens: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """From logits (n, t, V): log-probs of `tokens` (n, t), and entropies (n, t) of the whole distributions, in nats."""
    logp = (logits.float() / temperature).log_softmax(dim=-1)  # (n, t, V)
    # clamped: below e^-104 an fp32 probability is 0, and 0 * -inf is NaN
    entropy = -(logp.exp() * logp.clamp(min=-104)).sum(dim=-1)  # (n, t)
    return logp.gather(-1, tokens[..., None]).squeeze(-1), entropy


def micro_batches(rollouts: Rollouts, rows: Tensor, budget: int) -> list[Tensor]:
    """`rows` (n,) in batches of at most `budget` tokens each, prompts and padding included.

    The loss does not depend on how an update is cut into batches (dagrpo.Update).
    """
    tokens = rollouts.prompt_ids.shape[1] + rollouts.lengths[rows]  # (n,)
    return [rows[index] for index in by_length(tokens.tolist(), budget)]


def by_length(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Indices in batches of at most `budget` tokens, padding to the longest row included.

    A row over the budget goes alone. Rows are sorted by length, so that little of a batch is padding.

    >>> by_length([1, 9, 2, 8], budget=20)
    [[0, 2], [3, 1]]
    """
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):  # the last is the longest of its batch
        if batches and (len(batches[-1]) + 1) * lengths[i] <= budget:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


if __name__ == "__main__":
    from harness.warm_start import warm_start
    from policy import load_policy
    from tasks import arithmetic

    start = load_policy(warm_start())
    torch.manual_seed(0)
    batch = sample_groups(start, arithmetic("train", per_level=1)[:2], counts=[4, 4], max_new_tokens=40)
    for row, text in enumerate(batch.texts):
        question = batch.problems[int(batch.group[row])].question
        print(f"\nquestion  {question}   response  {text}")
        print("  mask    ", "".join(str(int(m)) for m in batch.mask[row]), "ended" if batch.ended[row] else "cut off")
        print(f"  log-prob {batch.logp[row].sum():.2f}, entropy per token", end=" ")
        print(f"{batch.entropy[row].sum() / batch.lengths[row]:.2f} nats")
    again, _ = token_logprobs(start, batch, torch.arange(len(batch.texts)))
    print(f"\nthe learner's log-probs of the same tokens differ by at most {(again - batch.logp).abs().max():.0e}")
