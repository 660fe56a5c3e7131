"""The benchmark runs, on small sizes, and what it stores is whole. How long anything took is never judged."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import adagrad

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from bench import harness, peers, stored  # noqa: E402
from bench.candidates import checked  # noqa: E402
from bench.harness import Candidate  # noqa: E402
from bench.peers import PEERS  # noqa: E402
from bench.plan import SECTIONS, environment, plan  # noqa: E402
from bench.rows import draw  # noqa: E402

# The other libraries take a minute to start; the benchmark itself checks that they agree with ours before it times them.
QUICK = ("numpy", "torch")


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    command = [sys.executable, "-m", "bench", "--quick", "--process", *QUICK, "--out", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_is_stored_whole(quick, section):
    found = json.loads((quick / f"{section}.json").read_text())
    assert found["quick"] is True
    assert found["failures"] == []
    assert found["machine"]["processors"] >= 1
    assert "numba" in found["versions"]
    jobs = [job for job in plan(quick=True) if job.section == section and job.process in QUICK]
    assert {case["process"] for case in found["cases"]} == {job.process for job in jobs}
    assert any(case["candidates"] for case in found["cases"])
    for case in found["cases"]:
        names = {entry["name"] for entry in case["candidates"]}
        for entry in case["candidates"]:
            rounds = entry["rounds_milliseconds"]
            assert len(rounds) >= 1
            assert all(t > 0 for t in rounds)
            spread = entry["milliseconds"]
            assert spread["p10"] <= spread["median"] <= spread["p90"]
            if "against" in entry:
                assert entry["against"] in names
                assert entry["ratio"]["p10"] <= entry["ratio"]["median"] <= entry["ratio"]["p90"]


@pytest.mark.slow
@pytest.mark.parametrize("section", ["dense", "many", "rows"])
def test_every_peer_is_timed_or_its_absence_explained(quick, section):
    cases = json.loads((quick / f"{section}.json").read_text())["cases"]
    for spec in (spec for spec in PEERS if section in spec.sections and spec.process in QUICK):
        timed = {entry["name"].split(", ")[0] for case in cases for entry in case["candidates"]}
        reasons = [each["reason"] for case in cases for each in case["skipped"] if each["name"] == spec.name]
        reason = peers.missing(spec)
        if reason is None:
            assert reasons == []
            assert spec.name.split(", ")[0] in timed
        else:
            assert reasons
            assert set(reasons) == {reason}


@pytest.mark.slow
def test_the_page_and_its_pictures_are_written(quick):
    page = (quick / "benchmarks.md").read_text()
    assert "**A quick run" in page
    for picture in ("dense", "many", "rows", "keras", "arguments", "memmap"):
        assert f"(images/bench-{picture}.png)" in page
        assert (quick / "images" / f"bench-{picture}.png").stat().st_size > 1000
    assert "| import numpy |" in page
    verdicts = stored.targets(stored.Results(quick))
    assert len(verdicts) == 14
    for line in verdicts:
        assert f"| {line['target']} | {line['measured']} | {line['verdict']} |" in page


@pytest.mark.slow
@pytest.mark.parametrize("process", QUICK)
def test_peers_agree_with_ours(process):
    specs = [spec for spec in PEERS if spec.process == process and peers.missing(spec) is None]
    if not specs:
        pytest.skip("no peer of this process is installed")
    # In a process of their own: the libraries' threads don't get on with each other.
    code = (
        f"import json; from bench import peers; names = {[spec.name for spec in specs]!r};"
        "specs = [spec for spec in peers.PEERS if spec.name in names];"
        "print(json.dumps([[peers.agreement(spec, section) for section in spec.sections] for spec in specs]))"
    )
    env = os.environ | environment(process)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    for spec, sections in zip(specs, json.loads(done.stdout.splitlines()[-1]), strict=True):
        for found in sections:
            assert peers.judge(spec, found) is None, spec.name
            if not spec.repeats and "repeated" in found:
                assert found["repeated"]["off"] > 1e-3


def test_a_peer_that_departs_is_not_timed():
    spec = peers.Spec("wrong", "numpy", "bench.peers:Ours", (), ("dense",), 4.0, "")
    start = [np.ones(3, np.float32)]
    found = {"timed": {"ulp": 5.0, "off": 3e-7}}
    ready, distances, skipped = checked("dense", [spec], start, lambda spec, peer: found)
    assert ready == []
    assert distances["wrong"]["found"]["timed"] == found["timed"]
    assert skipped == [{"name": "wrong", "reason": "departs from ours on timed data by 5 ULP, where 4 are allowed"}]
    # What a library that does not sum repeated ids makes of them is shown, and timed all the same.
    rows = dataclasses.replace(spec, repeats=False)
    ready, _, skipped = checked("dense", [rows], start, lambda spec, peer: {"timed rows": found["timed"]})
    assert len(ready) == 1
    assert skipped == []


def test_a_library_that_raises_is_left_out_with_its_message():
    spec = peers.Spec("broken", "numpy", "bench.peers:Peer", (), ("dense",), 4.0, "")
    ready, _, skipped = checked("dense", [spec], [np.ones(3, np.float32)], lambda spec, peer: {})
    assert ready == []
    assert skipped == [{"name": "broken", "reason": "NotImplementedError: "}]


def test_ulps():
    one = np.ones(4, np.float32)
    near = one.copy()
    near[2] += np.float32(3 * 2**-23)
    assert peers.ulps(one, one, near) == 3.0
    assert peers.ulps(8 * one, one, near) == 3.0 / 8
    near[1] = np.nan
    assert peers.ulps(one, one, near) == np.inf


def test_every_candidate_runs_once_a_round():
    calls: list[str] = []

    def candidate(name: str, against: str | None = None, **more: Any) -> Candidate:
        return Candidate(name, lambda x: calls.append(f"{name}{x}"), lambda: len(calls), against, **more)

    candidates = [candidate("a"), candidate("b", "a", steps=3, warm=1), candidate("c", "a")]
    times = harness.interleave(candidates, rounds=20, seconds=60)
    assert {name: len(found) for name, found in times.items()} == {"a": 20, "b": 20, "c": 20}
    assert len(calls) == 21 * 6
    turns = [first for k, first in enumerate(call[0] for call in calls) if k == 0 or calls[k - 1][0] != first]
    assert len({tuple(turns[k : k + 3]) for k in range(3, len(turns), 3)}) > 2  # not always the same order
    # Out of time: three rounds, whatever the limit says.
    assert len(harness.interleave(candidates, rounds=20, seconds=0)["a"]) == 3


def test_ratios_are_taken_round_by_round():
    candidates = [Candidate("a", print, list), Candidate("b", print, list, "a")]
    found = harness.results(candidates, {"a": [1.0, 10.0, 100.0], "b": [2.0, 10.0, 300.0]})
    assert "ratio" not in found[0]
    assert found[1]["ratio"] == pytest.approx({"p10": 1.2, "median": 2.0, "p90": 2.8})  # of 2, 1, 3
    assert found[1]["milliseconds"]["median"] == 10_000
    assert found[0]["rounds_milliseconds"] == [1000.0, 10_000.0, 100_000.0]


def test_extra_memory_sees_a_temporary():
    size = 50_000_000
    found = harness.extra_memory(lambda: np.ones(size, np.uint8).sum())
    if found is None:
        pytest.skip("this system does not tell a process the peak of its memory")
    assert 0.9 * size < found < 1.5 * size


def test_our_threads_get_a_processor_each_and_give_it_back():
    before = os.sched_getaffinity(0)
    threads = adagrad.get_num_threads()
    for count in harness.THREADS:
        with harness.own_threads(count):
            assert os.sched_getaffinity(0) == {harness.CPUS[0]}
            assert adagrad.get_num_threads() == count
        assert os.sched_getaffinity(0) == before
    adagrad.set_num_threads(threads)


@pytest.mark.parametrize("kind", ["zipf", "uniform"])
def test_ids(kind):
    ids = draw(np.random.default_rng(0), kind, 1000, 8192)
    assert ids.shape == (8192,)
    assert ids.min() >= 0
    assert ids.max() < 1000
    counts = np.sort(np.bincount(ids, minlength=1000))[::-1]
    share = 1 / np.sum(np.arange(1, 1001) ** -1.2) if kind == "zipf" else 1 / 1000
    assert abs(counts[0] / 8192 - share) < (0.02 if kind == "zipf" else 0.003)


def test_a_target_is_judged_by_its_worst_case():
    spread = {"p10": 1.0, "median": 4.0, "p90": 9.0}
    better = {"p10": 1.0, "median": 8.0, "p90": 9.0}
    found = stored.judged("text", [("here", better), ("there", spread)], 5.0, at_least=True)
    assert found["measured"] == "4 [1 to 9], the worst of 2: there"
    assert found["verdict"] == "missed by a factor of 1.250"
    assert stored.judged("text", [("there", spread)], 4.0, at_least=True)["verdict"] == "met"
    assert stored.judged("text", [("there", spread)], 4.0, at_least=False)["verdict"] == "met"
    assert stored.judged("text", [("there", spread)], 2.0, at_least=False)["verdict"] == "missed by a factor of 2.000"
    assert stored.judged("text", [], 2.0, at_least=False)["verdict"] == "not measured"


def test_quick_figures_never_stand_where_measured_ones_do():
    done = subprocess.run([sys.executable, "-m", "bench", "--quick"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "--quick needs --out" in done.stderr
