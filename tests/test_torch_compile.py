"""`torch.compile` over a model or a step: no error, the same numbers. In a process of its own, since it imports Triton."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytestmark = pytest.mark.slow

WORKER = Path(__file__).with_name("torch_compile_worker.py")
# Inductor needs a C++ compiler, and many seconds; what it compiles is the model's part alone.
BACKEND = "inductor" if shutil.which("g++") else "eager"
COMPILED = [("eager", "model", "page"), ("eager", "optimizer.step", "as_torch"), (BACKEND, "step", "page")]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    own = {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    own["TORCHINDUCTOR_CACHE_DIR"] = str(tmp_path_factory.mktemp("inductor"))
    command = [sys.executable, str(WORKER), *(word for case in COMPILED for word in case)]
    done = subprocess.run(command, env=os.environ | own, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in re.findall("^RESULT(.*)$", done.stdout, re.MULTILINE)]
    return dict(zip(COMPILED, found, strict=True))


@pytest.mark.parametrize("case", COMPILED, ids="-".join)
def test_a_compiled_step_gives_the_same_numbers(case, results):
    compiled, plain = results[case]
    for found, expected in zip(compiled, plain, strict=True):
        # Inductor may round the model's gradients otherwise.
        np.testing.assert_allclose(found, expected, rtol=1e-5 if case[0] == "inductor" else 0, atol=0)
