"""Threads, forks, and the cache of compiled kernels: the same bits with any number of threads, and no way to hang."""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import adagrad
from adagrad.kernels import threads as pool
from plain import DTYPES, assert_same_bits

PACKAGE = Path(adagrad.__file__).parent
pytestmark = pytest.mark.usefixtures("threads")

EVERYTHING = {
    "learning_rate": 0.3, "use_ema": True, "ema_overwrite_frequency": 2, "gradient_accumulation_steps": 2, "global_clipnorm": 1.0,
    "weight_decay": 0.1,
}  # fmt: skip
SETTINGS = {"plain": {"learning_rate": 0.3}, "clip": {"learning_rate": 0.3, "clipnorm": 1.0}, "everything": EVERYTHING}


def large(dtype, seed=0):
    """Arrays of 1.2 million elements together, enough for three slices, among them an empty one and odd ends."""
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(size, np.float32).astype(DTYPES[dtype]) for size in (900_003, 0, 7, 300_001)]


def assert_equal_with_any_number_of_threads(train):
    """``train()`` gives a list of arrays."""
    results = []
    for count in (1, 2, 3):
        adagrad.set_num_threads(count)
        assert adagrad.get_num_threads() == count
        results.append(train())
    for other in results[1:]:
        for actual, expected in zip(other, results[0], strict=True):
            assert_same_bits(actual, expected)


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_dense_bits_do_not_depend_on_the_number_of_threads(name, dtype):
    start, calls = large(dtype), [large(dtype, 1), large(dtype, 2)]

    def train():
        variables = [array.copy() for array in start]
        optimizer = adagrad.Adagrad(**SETTINGS[name])
        for gradients in calls * 2:
            optimizer.apply(gradients, variables)
        return [*variables, *optimizer.variables]

    assert_equal_with_any_number_of_threads(train)


@pytest.mark.parametrize("name", SETTINGS)
def test_row_bits_do_not_depend_on_the_number_of_threads(name):
    rng = np.random.default_rng(0)
    start = rng.standard_normal((40_001, 33), np.float32)
    ids = rng.zipf(1.1, (2, 40_000)) % len(start)  # some rows many times
    values = rng.standard_normal((2, 40_000, 33), np.float32)

    def train():
        table = start.copy()
        optimizer = adagrad.Adagrad(**SETTINGS[name])
        for call in (0, 1, 0, 1):
            optimizer.apply([adagrad.IndexedSlices(values[call], ids[call])], [table])
        return [table, *optimizer.variables]

    assert_equal_with_any_number_of_threads(train)


def test_large_steps_use_the_pool_and_small_ones_do_not():
    adagrad.set_num_threads(3)

    def workers():
        return {thread for thread in threading.enumerate() if thread.name.startswith("adagrad")}

    before = workers()  # of earlier tests, on their way out
    small = np.ones(1000, np.float32)
    adagrad.Adagrad().apply([small.copy()], [small])
    assert workers() <= before
    variables = large("float32")
    adagrad.Adagrad().apply(large("float32", 1), variables)
    assert workers() - before


def test_slices_cover_everything_once():
    for count in (1, 2, 3, 5, 8):
        adagrad.set_num_threads(count)
        for total, align in [(0, 1), (1, 1), (7, 4), (10**6 + 3, 1024), (3, 1024)]:
            seen = []
            pool.run(lambda lo, hi, seen=seen: seen.append((lo, hi)), total, 10**9, align)
            seen.sort()
            assert seen[0][0] == 0
            assert seen[-1][1] == total
            assert all(a[1] == b[0] for a, b in zip(seen, seen[1:], strict=False))
            assert all(lo % align == 0 for lo, _ in seen)
            assert len(seen) <= count


def test_an_error_in_a_slice_comes_out_after_all_slices_are_done():
    adagrad.set_num_threads(3)
    done = []

    def work(lo, hi):
        if lo == 0:
            raise RuntimeError("slice")
        done.append(lo)

    with pytest.raises(RuntimeError, match="slice"):
        pool.run(work, 3, 10**9)
    assert sorted(done) == [1, 2]


def test_an_error_in_another_slice_comes_out_after_all_slices_are_done():
    adagrad.set_num_threads(4)
    done = []

    def work(lo, hi):
        if lo in (1, 3):
            raise RuntimeError(f"slice {lo}")
        time.sleep(0.2 * lo)
        done.append(lo)

    with pytest.raises(RuntimeError, match="slice 1"):
        pool.run(work, 4, 10**9)
    assert sorted(done) == [0, 2]


def test_an_interrupt_while_it_waits_comes_out_after_all_slices_are_done(monkeypatch):
    adagrad.set_num_threads(3)
    begun, done, wait, interrupts = threading.Barrier(3), [], pool.wait, []

    def work(lo, hi):
        begun.wait(60)
        time.sleep(0.2 * lo)
        done.append(lo)

    def interrupted(futures):
        if len(interrupts) < 2:
            interrupts.append(KeyboardInterrupt())
            raise interrupts[-1]
        return wait(futures)

    monkeypatch.setattr(pool, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt) as caught:
        pool.run(work, 3, 10**9)
    assert caught.value is interrupts[0]
    assert sorted(done) == [0, 1, 2]


@pytest.mark.parametrize("begin", [False, True])
def test_slices_that_the_pool_does_not_take_are_done_by_the_caller(begin, monkeypatch):
    adagrad.set_num_threads(3)
    done, late = [], []

    def refuse(self, function, *arguments):
        # It may stay in the queue, though no thread could be started for it, and another takes it now or later.
        if begin:
            function(*arguments)
        else:
            late.append((function, arguments))
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(ThreadPoolExecutor, "submit", refuse)
    pool.run(lambda lo, hi: done.append((lo, hi)), 3, 10**9)
    for function, arguments in late:
        function(*arguments)
    assert sorted(done) == [(0, 1), (1, 2), (2, 3)]


# ---- Python threads --------------------------------------------------------------------------------------------------


def in_threads(works):
    """Run all at once; the first error of any comes out."""
    barrier, errors = threading.Barrier(len(works)), []

    def start(work):
        try:
            barrier.wait(60)
            work()
        except BaseException as error:
            errors.append(error)

    started = [threading.Thread(target=start, args=(work,)) for work in works]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join(120)
        assert not thread.is_alive()
    if errors:
        raise errors[0]


@pytest.mark.parametrize("size", [100, 900_000])
def test_optimizers_of_their_own_in_two_threads(size):
    adagrad.set_num_threads(2)

    def train(seed, steps=20):
        rng = np.random.default_rng(seed)
        w = rng.standard_normal(size, np.float32)
        optimizer = adagrad.Adagrad(**EVERYTHING)
        for _ in range(steps):
            optimizer.apply([w * np.float32(0.5)], [w])
        return [w, *optimizer.variables]

    expected, found = [train(0), train(1)], [None, None]
    in_threads([lambda k=k: found.__setitem__(k, train(k)) for k in (0, 1)])
    for one, other in zip(expected, found, strict=True):
        for actual, wanted in zip(other, one, strict=True):
            assert_same_bits(actual, wanted)


def test_one_optimizer_in_many_threads_counts_every_call():
    w, same = np.zeros(2000, np.float32), np.zeros(2000, np.float32)
    optimizer, judge = adagrad.Adagrad(0.3, gradient_accumulation_steps=2), adagrad.Adagrad(0.3, gradient_accumulation_steps=2)
    g = np.linspace(-1, 1, 2000, dtype=np.float32)
    optimizer.build([w])
    in_threads([lambda: [optimizer.apply([g], [w]) for _ in range(50)]] * 4)
    for _ in range(200):
        judge.apply([g], [same])
    assert optimizer.iterations == 100
    assert_same_bits(w, same)
    assert_same_bits(optimizer.variables[-1], judge.variables[-1])


def test_the_number_of_threads_may_change_in_the_middle_of_a_step(monkeypatch):
    adagrad.set_num_threads(2)
    submit, changers, done = ThreadPoolExecutor.submit, [], []

    def late(self, *arguments):
        if not changers:
            changers.append(threading.Thread(target=adagrad.set_num_threads, args=(3,)))
            changers[0].start()
            changers[0].join(0.5)  # it may have to wait until the slices are handed out
        return submit(self, *arguments)

    monkeypatch.setattr(ThreadPoolExecutor, "submit", late)
    pool.run(lambda lo, hi: done.append(hi - lo), 30, 10**9)
    assert sum(done) == 30
    changers[0].join(60)
    assert adagrad.get_num_threads() == 3


# ---- processes -------------------------------------------------------------------------------------------------------


def python(code, *arguments, **environment):
    """Run ``code`` in a fresh interpreter; its output. It must end by itself."""
    env = {key: value for key, value in os.environ.items() if key not in ("NUMBA_CACHE_DIR", "PYTHONPATH")}
    env |= {"PYTHONPATH": str(PACKAGE.parent), **environment}
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], env=env, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


FORK = """
import os, signal, sys, threading
import numpy as np
import adagrad

adagrad.set_num_threads(2)
g = np.random.default_rng(0).standard_normal(1_200_000, np.float32)
w = np.zeros_like(g)
optimizer = adagrad.Adagrad(0.3, clipnorm=1.0)
optimizer.apply([g], [w])                        # the pool has threads now

busy = threading.Event()
def others():                                    # the fork finds another thread in the middle of a step
    v, second = np.zeros_like(g), adagrad.Adagrad()
    while not busy.is_set():
        second.apply([g], [v])
thread = threading.Thread(target=others)
thread.start()

def digest():
    import hashlib
    optimizer.apply([g], [w])
    return hashlib.sha256(w.tobytes() + optimizer.variables[-1].tobytes()).hexdigest()

for attempt in range(5):
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(60)                         # a child that hangs is killed
        os.write(write, digest().encode())
        os._exit(0)
    mine = digest()
    os.close(write)
    theirs = os.read(read, 100).decode()
    os.close(read)
    assert os.waitpid(child, 0)[1] == 0
    assert mine == theirs, (mine, theirs)
busy.set()
thread.join()
print("equal")
"""


AT_THE_END = """
import atexit, hashlib, sys, threading, time
import numpy as np
import adagrad

def train(count):
    adagrad.set_num_threads(count)
    w = np.zeros(1_200_000, np.float32)
    optimizer = adagrad.Adagrad(0.3, clipnorm=1.0)
    for step in range(2):
        optimizer.apply([np.linspace(-1, 1, w.size, dtype=np.float32)], [w])
    return hashlib.sha256(w.tobytes() + optimizer.variables[-1].tobytes()).hexdigest()

expected = train(1)
def late():
    threading.main_thread().join()
    time.sleep(0.2)
    print(train(3) == expected, flush=True)
if sys.argv[1] == "atexit":
    atexit.register(lambda: print(train(3) == expected, flush=True))
else:
    threading.Thread(target=late).start()
"""


@pytest.mark.parametrize("where", ["atexit", "thread"])
def test_a_large_step_when_the_main_thread_has_ended(where):
    assert python(AT_THE_END, where).strip() == "True"


LOCKED = """
import os, signal, threading
import numpy as np
from adagrad.linear import LOGISTIC, Objective, OnlineLearner
from adagrad.settings import Settings

learner = OnlineLearner(Settings(), 3, 1, Objective(LOGISTIC), True, np.dtype(np.float64))
held, done = threading.Event(), threading.Event()
def hold():
    with learner._lock:
        held.set()
        done.wait()
thread = threading.Thread(target=hold)
thread.start()
held.wait()
child = os.fork()
if child == 0:
    signal.alarm(60)
    learner.learn(np.ones((2, 3)), np.ones(2), np.ones(2))
    os._exit(learner.steps)
status = os.waitpid(child, 0)[1]
done.set()
thread.join()
print(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_learner_that_a_thread_holds_at_a_fork_is_free_in_the_child():
    assert python(LOCKED).strip() == "2"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_parent_and_child_step_on_after_a_fork():
    assert python(FORK).strip() == "equal"


# ---- the cache of compiled kernels -----------------------------------------------------------------------------------

STEP = """
import numpy as np, adagrad
w = np.zeros(3)
adagrad.Adagrad(1.0, 0.0, 0.0).apply([np.ones(3)], [w])
print(adagrad.__file__, w[0])
"""


@pytest.fixture
def package(tmp_path):
    """A copy of the package without anything compiled; the folder to import it from."""
    shutil.copytree(PACKAGE, tmp_path / "copy" / "adagrad", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "copy"


def step_of(package, **environment):
    where, result = python(STEP, PYTHONPATH=str(package), **environment).split()
    assert where == str(package / "adagrad" / "__init__.py")
    return float(result)


def compiled(folder):
    return sorted(folder.rglob("*.nb[ci]"))


@pytest.mark.parametrize("variable", ["XDG_CACHE_HOME", "NUMBA_CACHE_DIR"])
def test_nowhere_to_write_the_cache(package, variable):
    assert step_of(package, **{variable: "/dev/null/no"}) == -1.0
    assert not compiled(package)  # not beside the sources either, where a stale kernel would not be noticed


@pytest.mark.slow
def test_the_cache_belongs_to_the_sources(package, tmp_path):
    cache = tmp_path / "cache"
    assert step_of(package, XDG_CACHE_HOME=str(cache)) == -1.0
    first = compiled(cache)
    times = [path.stat().st_mtime_ns for path in first]
    assert first
    assert step_of(package, XDG_CACHE_HOME=str(cache)) == -1.0
    assert compiled(cache) == first  # read, not compiled again
    assert [path.stat().st_mtime_ns for path in first] == times

    # Another rule must not meet the kernels of the old one, though no kernel's own file has changed.
    rule = package / "adagrad" / "rule.py"
    text = rule.read_text()
    changed = re.sub(r"\(lr \* g\) / divisor", "(lr * g) / divisor * 3", text)
    assert changed != text
    rule.write_text(changed)
    assert step_of(package, XDG_CACHE_HOME=str(cache)) == -3.0
    rule.write_text(text)
    assert step_of(package, XDG_CACHE_HOME=str(cache)) == -1.0

    for path in compiled(cache):  # a disk that was full
        path.write_bytes(path.read_bytes()[:100])
    assert step_of(package, XDG_CACHE_HOME=str(cache)) == -1.0


def test_the_number_of_threads_from_the_environment():
    code = "import adagrad; print(adagrad.get_num_threads())"
    assert python(code, ADAGRAD_NUM_THREADS="3").strip() == "3"
    code = "import adagrad\ntry: adagrad.get_num_threads()\nexcept ValueError as error: print(error)"
    assert python(code, ADAGRAD_NUM_THREADS="0").strip() == "ADAGRAD_NUM_THREADS must be an integer >= 1, got '0'"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_forked_in_mid_step_can_step():
    inside, go_on = threading.Event(), threading.Event()

    def rate():
        inside.set()
        assert go_on.wait(30)
        return 1.0

    w = np.zeros(3)
    optimizer = adagrad.Adagrad(rate, 0.0, 0.0)
    optimizer.build([w])
    thread = threading.Thread(target=optimizer.apply, args=([np.ones(3)], [w]))
    thread.start()
    assert inside.wait(30)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork beside threads: what is tested
        child = os.fork()
    if child == 0:
        signal.alarm(20)
        go_on.set()
        optimizer.learning_rate = 1.0
        optimizer.apply([np.ones(3)], [w])
        os._exit(0 if (w == -1).all() else 1)
    go_on.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
