"""Training by several processes gives what one process gives; the cases are in distributed_workers.py."""

import fcntl
import json
import os
import subprocess
import sys
import time

import pytest

pytest.importorskip("torch")

import distributed_workers as workers

pytestmark = pytest.mark.slow
# From a cold cache the processes compile every kernel they meet.
LIMIT = 540.0


def run_processes(folder):
    """All processes, until the last has ended; their reports are in ``folder`` then."""
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "ADAGRAD_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }  # fmt: skip
    command = [sys.executable, "-W", "ignore", workers.__file__]
    count = max(workers.PHASES.values())
    started = []
    try:
        for rank in range(count):
            with (folder / f"{rank}.log").open("w") as log:
                started.append(subprocess.Popen([*command, str(rank), str(folder)], env=environment, stdout=log, stderr=log))
        end = time.monotonic() + LIMIT
        codes = [None]
        while None in codes and not any(codes) and time.monotonic() < end:  # the reports say how far they came
            time.sleep(0.1)
            codes = [process.poll() for process in started]
        time.sleep(0.5 if any(codes) else 0)  # for the others to say where they were
    finally:
        for process in started:
            process.kill()
            process.wait()


@pytest.fixture(scope="session")
def reports(tmp_path_factory):
    """What each process says of each case: ``{(case, phase): [None or what went wrong]}``; one run for all of xdist."""
    shared = "PYTEST_XDIST_WORKER" in os.environ
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if shared else folder) / "distributed"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            run_processes(folder)
            (folder / "done").touch()
    said = {}
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text().splitlines():
            name, phase, error = json.loads(line)
            said.setdefault((name, phase), []).append(error)
    errors = [error for all_errors in said.values() for error in all_errors if error]
    logs = [path.read_text()[-2000:] for path in sorted(folder.glob("*.log"))]
    return said, "\n".join(errors or logs)


@pytest.mark.parametrize(
    ("name", "phase"),
    [(name, phase) for phase in workers.PHASES for name, (phases, _) in workers.CASES.items() if phase in phases],
)
def test_as_one_process(reports, name, phase):
    said, why = reports
    found = said.get((name, phase), [])
    wrong = [error for error in found if error]
    assert not wrong, "\n".join(wrong)
    assert len(found) == workers.PHASES[phase], f"{len(found)} processes came through; what happened before:\n{why}"
