"""One job in a process of its own: ``python -m bench.worker JOB OUT`` calls a function and writes its cases as JSON."""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
import warnings
from pathlib import Path


def main() -> None:
    job, out = json.loads(sys.argv[1]), Path(sys.argv[2])
    # A table that does not fit must end this process, not another one.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("900")
    warnings.filterwarnings("ignore", message="Sparse invariant checks are implicitly disabled")
    module, name = job["function"].split(":")
    out.write_text(json.dumps(getattr(importlib.import_module(module), name)(job["process"], **job["options"])))


if __name__ == "__main__":
    main()
