"""Groups of given gradients, for the tests of analysis.conflict."""

import numpy as np
import torch

from analysis import gradients
from analysis.gradients import Group


def products(*vectors):
    return gradients.gram(torch.tensor(vectors, dtype=torch.float32))


def make_group(vectors, A, S, keep=None, shared=None, level="1", anchor=None, texts=None):
    n = len(A)
    keep = np.ones(n, dtype=bool) if keep is None else np.array(keep)
    anchor = np.zeros(n, dtype=bool) if anchor is None else np.array(anchor)
    shared = np.eye(n) if shared is None else np.array(shared)
    texts = texts or [f"#{i}" for i in range(n)]
    return Group(level, "1+1=", texts, products(*vectors), shared, np.array(S), np.array(A), keep, anchor)
