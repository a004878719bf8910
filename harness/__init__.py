"""Everything around the training loop: settings, the run folder, checkpoints, reports, the console."""

import sys
from importlib.util import find_spec

if find_spec("torch") is None:
    print(
        "error: this Python has no torch: run `make demo` once to create .venv, then activate it: . .venv/bin/activate",
        file=sys.stderr,
    )
    sys.exit(2)
