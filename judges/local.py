"""The local judge: S of Eq. 7 by one forward pass of a causal LM.

Nothing is sampled: S is the expected grade over ten letters as the next token. Letters and not numbers, because "10" is
two tokens in most vocabularies, the first being "1". Special tokens (<|im_end|>) in a response are text.
"""

from __future__ import annotations

import time
from math import isnan, nan

import torch

from harness.console import fail
from judges.prompt import AS_LETTER, LEAD, Counters, prompt
from policy import Policy, pad_left, positions_of
from rollout import by_length
from scoring import Scorer
from tasks import Problem


def local_judge(
    policy: Policy, counters: Counters, grades: str = "ABCDEFGHIJ", micro_batch_tokens: int = 16384
) -> Scorer:
    """A scorer by one forward pass of a causal LM: S = sum over the K grades of p(grade) * its number.

    `grades` go from the best, 10, to the worst, 1, in equal steps. p is the probability of the next token after the
    prompt, among the grades alone. A prompt that is longer than the model's context gets NaN. Ends the program with one
    line if `grades` are not K different tokens.
    """
    token_ids = grade_tokens(policy, grades)
    numbers = torch.linspace(10, 1, len(grades), dtype=torch.float64)  # (K,)
    reply = AS_LETTER.format(best=grades[0], worst=grades[-1])

    def encode(problem: Problem, response: str) -> tuple[int, ...]:
        asked = policy.encode_prompt(prompt(problem, response, reply))  # a token that a response writes out is text
        return (*asked, *policy.tokenizer.encode(LEAD, add_special_tokens=False))

    def scorer(pairs: list[tuple[Problem, str]]) -> list[float]:
        begin = time.perf_counter()
        prompts = [encode(problem, response) for problem, response in pairs]
        rows = [ids for ids in dict.fromkeys(prompts) if len(ids) <= policy.window]
        known: dict[tuple[int, ...], float] = {}
        for part in by_length([len(ids) for ids in rows], micro_batch_tokens):
            batch = [rows[i] for i in part]
            expected = grade_probabilities(policy, batch, token_ids) @ numbers  # (n,)
            known.update(zip(batch, expected.clamp(1, 10).tolist(), strict=True))  # clamp: a sum of p may be 1 + 1e-16
        scores = [known.get(ids, nan) for ids in prompts]
        failures = sum(map(isnan, scores))
        counters.calls += len(rows)
        counters.cache_hits += sum(ids in known for ids in prompts) - len(rows)
        counters.failures += failures
        counters.tokens += sum(map(len, rows))
        counters.seconds += time.perf_counter() - begin
        return scores

    return scorer


def grade_tokens(policy: Policy, grades: str) -> list[list[int]]:
    """The token ids that can stand for each of K grades after LEAD, with or without a space before the letter.

    Most models write " A" there, and in some vocabularies ":A" is one token. So each grade is tokenised together with
    LEAD, and a form that is not exactly one token there is left out. Ends the program if a grade has no form left, or
    shares one with another grade.
    """
    tokenizer = policy.tokenizer
    before = tokenizer.encode(LEAD, add_special_tokens=False)
    found = []
    for grade in grades:
        forms = [tokenizer.encode(LEAD + form, add_special_tokens=False) for form in (grade, f" {grade}")]
        found.append(list({ids[-1] for ids in forms if ids[:-1] == before and ids[-1] != tokenizer.unk_token_id}))
    everything = [token for tokens in found for token in tokens]
    if not all(found) or len(set(everything)) < len(everything):
        fail(f"the judge's grades {grades} are not {len(grades)} different tokens of its tokenizer: use another model")
    return found


@torch.no_grad()
def grade_probabilities(policy: Policy, prompts: list[tuple[int, ...]], token_ids: list[list[int]]) -> torch.Tensor:
    """Probabilities (n, K) of K grades after each of n prompts, over the grades alone; the forms of a grade add up."""
    ids, mask = pad_left(policy, prompts)  # (n, P)
    inputs = {"input_ids": ids, "attention_mask": mask.long(), "position_ids": positions_of(mask)}
    with policy.autocast():
        logits = policy.model(**inputs, logits_to_keep=1, use_cache=False).logits[:, -1]  # (n, V)
    logits = logits.double().cpu()
    return torch.stack([logits[:, forms].logsumexp(dim=1) for forms in token_ids], dim=1).softmax(dim=1)  # (n, K)
