"""Keeps freed memory in the process from one pass to the next."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h


def keep_freed_memory() -> None:
    """Tells glibc to reuse freed memory: this saves a fifth of a learner's pass on a CPU with SmolLM2.

    Memory that glibc returns to the system comes back page by page, each filled with zeros at its first use. A pass
    frees and takes gigabytes, in blocks above the size (32 MB) from which glibc always returns them. Other C libraries,
    as on macOS, do not have these settings.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mallopt(M_MMAP_MAX, 0)  # no block in a mapping of its own
        mallopt(M_TRIM_THRESHOLD, -1)  # nothing is given back from the heap's end, however much is free
