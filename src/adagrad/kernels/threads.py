"""A small pool of threads for large pieces of work; kernels release the GIL and write to separate slices.

The bits never depend on the number of threads. Set it with `set_num_threads` or the environment variable
``ADAGRAD_NUM_THREADS``; by default it is the number of processors this process may run on.
"""

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

__all__ = ["get_num_threads", "run", "set_num_threads"]

# Waking a sleeping thread costs about 100 us; a slice must be worth more than that.
_SMALLEST_SLICE = 400_000

_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None
_count: int | None = None


def get_num_threads() -> int:
    """The number of threads that a large step may use, the calling one included."""
    global _count
    if _count is None:
        wanted = os.environ.get("ADAGRAD_NUM_THREADS")
        if wanted is None:
            _count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        elif wanted.isdecimal() and int(wanted) >= 1:
            _count = int(wanted)
        else:
            raise ValueError(f"ADAGRAD_NUM_THREADS must be an integer >= 1, got {wanted!r}")
    return _count


def set_num_threads(count: int) -> None:
    """Use at most ``count`` threads (>= 1), the calling one included; results are the same for every count."""
    global _count, _pool
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise ValueError(f"count must be an integer >= 1, got {count!r}")
    with _lock:
        _count = count
        if _pool is not None:
            _pool.shutdown(wait=False)
            _pool = None


def run(work: Callable[[int, int], object], total: int, cost: int, align: int = 1) -> None:
    """Call ``work(start, stop)`` on slices that together are [0, total), and return when all are done.

    ``cost`` is the work in elements of memory touched, which decides how many threads are worth waking; inner bounds
    are multiples of ``align``.
    """
    slices = min(get_num_threads(), cost // _SMALLEST_SLICE, -(-total // align))
    if slices <= 1:
        work(0, total)
        return
    bounds = [total * k // slices // align * align for k in range(slices)] + [total]
    others: list[Future[object]] = []
    try:
        with _lock:  # which `set_num_threads` takes to retire the pool
            for k in range(1, slices):
                others.append(_executor().submit(work, bounds[k], bounds[k + 1]))  # noqa: PERF401 - what was handed out, counts
        work(bounds[0], bounds[1])
    finally:
        # Also after an interrupt: no slice may still be writing when the caller goes on.
        for other in others:
            other.result()


def _executor() -> ThreadPoolExecutor:
    """The pool; the caller holds the lock."""
    global _pool
    if _pool is None:
        _pool = ThreadPoolExecutor(max(1, get_num_threads() - 1), thread_name_prefix="adagrad")
    return _pool


def _after_fork_in_child() -> None:
    """The child has none of the parent's threads, and perhaps a lock that one of them held."""
    global _pool, _lock
    _pool, _lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
