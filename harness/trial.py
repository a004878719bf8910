"""Tries out a model before work begins: does it predict the same in a padded batch as for each row alone?"""

from __future__ import annotations

import torch
from torch.nn.functional import pad

from harness.console import fail, first_line
from policy import Policy, pad_left, positions_of


def try_out(policy: Policy) -> None:
    """Ends the program with one line if this model cannot be sampled from or trained here."""
    if trouble := trouble_of(policy):
        fail(f"{policy.model.name_or_path} cannot be used: {trouble}. Choose another model, unless you can fix it")


@torch.no_grad()
def trouble_of(policy: Policy) -> str:
    """Why this model cannot be trained here, or "" if it can: a padded batch must not change what it predicts.

    This is tried out with two rows of a few tokens: the logits of `generate`, and of a pass over both rows, are
    compared with those of a pass over each row alone. Some models attend to padding, or do not count positions from 0.
    """
    if not policy.end_ids:
        return "no token ends a response: give the tokenizer an eos_token"
    ids, mask = pad_left(policy, [[i % policy.token_ids[0] for i in range(start, 13)] for start in (7, 10)])  # (2, P)
    how = {"max_new_tokens": 3, "do_sample": False, "num_beams": 1, "pad_token_id": policy.pad_id, "eos_token_id": []}
    try:
        out = policy.model.generate(
            input_ids=ids, attention_mask=mask.long(), **how, output_logits=True, return_dict_in_generate=True
        )
        attention = pad(mask, (0, 3), value=True).long()
        inputs = {"attention_mask": attention, "position_ids": positions_of(attention), "use_cache": False}
        padded = policy.model(input_ids=out.sequences, **inputs).logits[:, -4:-1]  # (2, 3, V)
        rows = [row[seen > 0] for row, seen in zip(out.sequences, attention, strict=True)]
        alone = torch.cat([policy.model(input_ids=row[None], use_cache=False).logits[:, -4:-1] for row in rows])
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # models raise whatever they like
        return f"this model cannot generate text from text alone: {first_line(error)}"
    off = 0.01 if policy.model.dtype == torch.float32 else 0.2  # bf16 weights round
    for found in (torch.stack(out.logits, dim=1), padded):
        if not (found - alone).std() <= off * alone.std():
            return "in a padded batch, this model predicts something else than for a row alone"
    return ""
