"""memory.py: what a pass has freed stays with the process."""

import platform
import subprocess
import sys

import pytest
from helpers import ROOT


@pytest.mark.skipif(sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_freed_memory_is_kept():
    """A tensor of 128 MB where one of 256 MB was: no page of it comes from the system anew."""
    code = """
import resource, torch, fast
fast.keep_freed_memory()
torch.ones(2**26)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(2**25)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1000  # 128 MB are 32,768 pages
