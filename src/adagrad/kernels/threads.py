"""A small pool of threads for large pieces of work; kernels release the GIL and write to separate slices.

The bits never depend on the number of threads. Set it with `set_num_threads` or the environment variable
``ADAGRAD_NUM_THREADS``; by default it is the number of processors this process may run on.

Also the locks of objects that are stepped in any thread, which a forked child finds free: `give_lock`.
"""

import contextlib
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

__all__ = ["get_num_threads", "give_lock", "run", "set_num_threads"]

# Waking a sleeping thread costs about 100 us; a slice must be worth more than that.
_SMALLEST_SLICE = 400_000

_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None
_count: int | None = None
_owners: weakref.WeakSet[Any] = weakref.WeakSet()


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
    are multiples of ``align``. A slice that no thread of the pool has begun is done by the caller, so nothing is left out
    when the pool takes no work any more, at the end of the interpreter. Errors and interrupts wait until no slice is
    being written any more; then the first is raised.
    """
    slices = min(get_num_threads(), cost // _SMALLEST_SLICE, -(-total // align))
    if slices <= 1:
        work(0, total)
        return
    bounds = [total * k // slices // align * align for k in range(slices)] + [total]
    todo: deque[tuple[Future[None], int, int]] = deque((Future(), bounds[k], bounds[k + 1]) for k in range(slices))
    errors: list[BaseException] = []
    try:
        with _lock, contextlib.suppress(RuntimeError):  # of a pool that can have no threads any more
            for part in list(todo)[1:]:
                _executor().submit(_begin, work, *part)
    except BaseException as error:
        errors.append(error)
    while todo:
        future, lo, hi = todo[0]
        try:
            if future.cancel():  # nobody has begun it, and nobody will
                todo.popleft()
                work(lo, hi)
            else:
                wait([future])
                todo.popleft()
                future.result()
        except BaseException as error:  # after an interrupt while it waits, it waits again
            errors.append(error)
    if errors:
        raise errors[0]


def _begin(work: Callable[[int, int], object], future: "Future[None]", lo: int, hi: int) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        work(lo, hi)
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(None)


def give_lock(owner: Any) -> None:
    """Set ``owner._lock`` to a reentrant lock; in a forked child to a free one, whichever thread held it in the parent.

    What such a thread was about to change, the child finds as it was at the fork, perhaps half a step on.
    """
    owner._lock = threading.RLock()
    _owners.add(owner)


def _executor() -> ThreadPoolExecutor:
    """The pool; the caller holds the lock."""
    global _pool
    if _pool is None:
        _pool = ThreadPoolExecutor(max(1, get_num_threads() - 1), thread_name_prefix="adagrad")
    return _pool


def _after_fork_in_child() -> None:
    """The child has none of the parent's threads, and perhaps locks that they held."""
    global _pool, _lock
    _pool, _lock = None, threading.Lock()
    for owner in list(_owners):
        owner._lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
