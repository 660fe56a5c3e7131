"""Run the benchmark: ``python -m bench``, from the root of a checkout, with the extra ``peers`` installed.

Prints every comparison as it is done, stores them under bench/results/, and writes docs/benchmarks.md and its pictures.

    python -m bench                        # all of it, about 45 minutes; nothing else should run meanwhile
    python -m bench --only dense many      # some sections; the others keep what they have stored
    python -m bench --process numpy torch  # some libraries only; to try things out, with --out
    python -m bench --quick --out DIR      # small sizes, to see that it runs; measures nothing
    python -m bench --report               # the page and its pictures again, from what is stored
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench import harness, peers
from bench.plan import PROCESSES, SECTIONS, TITLES, Job, environment, plan

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Time the package beside its peers.")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs; measures nothing")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS, metavar="SECTION", help=", ".join(SECTIONS))
    processes = {"nargs": "+", "choices": PROCESSES, "default": PROCESSES}
    parser.add_argument("--process", **processes, metavar="PROCESS", help=", ".join(PROCESSES))
    parser.add_argument("--out", type=Path, help="store results, page and pictures there (required with --quick)")
    parser.add_argument("--report", action="store_true", help="only write the page again from what is stored")
    given = parser.parse_args()
    if given.quick and given.out is None:
        parser.error("--quick needs --out DIR: its figures must not stand where measured ones do")
    if given.process != PROCESSES and given.out is None:
        parser.error("--process needs --out DIR: a section is stored whole")
    results = given.out or ROOT / "bench" / "results"
    results.mkdir(parents=True, exist_ok=True)
    if not given.report:
        _run(given.only, given.process, given.quick, results)
    from bench.report import write

    page = write(results, given.out or ROOT / "docs")
    print(f"wrote {page}")


def _run(only: list[str], processes: list[str], quick: bool, results: Path) -> None:
    jobs = [job for job in plan(quick) if job.section in only and job.process in processes]
    about = {
        "quick": quick,
        "date": datetime.date.today().isoformat(),
        "machine": harness.machine(),
        "versions": harness.versions(),
    }
    load = about["machine"]["load_average"]
    if load > 0.5 and not quick:
        print(f"warning: the load average is {load:.1f}; something else is running, and the figures will show it")
    begin = time.monotonic()
    for section in (name for name in SECTIONS if name in only):
        print(f"\n{TITLES[section]}", flush=True)
        cases: list[dict[str, Any]] = []
        failures = []
        for job in (job for job in jobs if job.section == section):
            start = time.monotonic()
            done, failure = run_job(job)
            cases += done
            if failure is not None:
                failures.append({"process": job.process, "options": job.options, "reason": failure})
                print(f"  FAILED {job.process} {job.options}: {failure}", flush=True)
            for found in done:
                show(found)
            print(f"    ({time.monotonic() - start:.0f} s)", flush=True)
        stored = {"section": section, **about, "environment": {p: environment(p) for p in PROCESSES}}
        text = json.dumps(stored | {"cases": cases, "failures": failures}, indent=1)
        # The rounds of a candidate on one line.
        text = re.sub(r"\[\s+([-+.,\de\s]+?)\s+\]", lambda found: "[" + " ".join(found[1].split()) + "]", text)
        (results / f"{section}.json").write_text(text + "\n")
    print(f"\n{time.monotonic() - begin:.0f} s")


def run_job(job: Job) -> tuple[list[dict[str, Any]], str | None]:
    """The cases of a job, or none and the reason why its process failed."""
    specs = peers.of(job.section, job.process)
    if specs and all(peers.missing(spec) for spec in specs):
        skipped = [{"name": spec.name, "reason": peers.missing(spec)} for spec in specs]
        nothing = {"case": TITLES[job.section], "process": job.process, "candidates": [], "agreement": {}, "skipped": skipped}
        return [nothing], None
    variables = {key: value for key, value in os.environ.items() if key not in ("ADAGRAD_NUM_THREADS", "NUMBA_DISABLE_JIT")}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "cases.json"
        command = [sys.executable, "-m", "bench.worker", json.dumps(dataclasses.asdict(job)), str(out)]
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=variables | environment(job.process), capture_output=True, text=True, timeout=job.timeout
            )
        except subprocess.TimeoutExpired:
            return [], f"not done after {job.timeout} s"
        if done.returncode or not out.exists():
            lines = done.stderr.strip().splitlines()
            return [], f"exit {done.returncode}: {lines[-1][:300] if lines else 'no message'}"
        return json.loads(out.read_text()), None


def show(found: dict[str, Any]) -> None:
    """Print a case."""
    print(f"  {found['case']} ({found['process']})", flush=True)
    for entry in found["candidates"]:
        line = f"    {entry['name']:<40} {entry['milliseconds']['median']:>10.3f} ms"
        if "ratio" in entry:
            ratio = entry["ratio"]
            line += f"   {ratio['median']:>8.2f} x {entry['against']}  [{ratio['p10']:.2f} .. {ratio['p90']:.2f}]"
        if "bytes_ratio" in entry:
            line += f"   bytes {entry['bytes_ratio']:.2f}"
        print(line, flush=True)
    for entry in found["skipped"]:
        print(f"    {entry['name']:<40} not timed: {entry['reason']}", flush=True)
    for name, entry in found["agreement"].items():
        for kind, each in entry["found"].items():
            if not each["ulp"] <= entry["allowed_ulp"]:
                print(f"    {name} departs on {kind} data by {each['off']:.2g}, {each['ulp']:.2g} ULP", flush=True)


if __name__ == "__main__":
    main()
