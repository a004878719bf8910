"""The same functions as in rollout.py, with the same results, sooner. `python -m fast` shows both side by side."""

from fast.learning import micro_batches, token_logprobs
from fast.memory import keep_freed_memory
from fast.sampling import sample_groups

__all__ = ["keep_freed_memory", "micro_batches", "sample_groups", "token_logprobs"]
