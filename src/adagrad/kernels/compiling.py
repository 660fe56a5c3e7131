"""How the kernels are compiled: the decorator with its cache, and the few things that Numba needs help with.

Those are an array from an address, a prefetch, a sum of squares in four lanes, and half-precision numbers, which are kept as
their bits: float16 as ``uint16``, bfloat16 as ``int16``. Each has a plain Python twin, so that every kernel also runs, slowly
and with the same bits, under ``NUMBA_DISABLE_JIT=1``.
"""

import contextlib
import ctypes
import fcntl
import functools
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import caching, cgutils, config, types
from numba.extending import intrinsic, overload

__all__ = ["at", "inline", "kernel", "narrow", "prefetch", "square_lanes", "widen"]

_PACKAGE = Path(__file__).resolve().parent.parent


@functools.cache
def _digest(path: Path) -> str:
    """A digest of every text that is compiled into the kernels of ``path``: Numba itself only watches that one file."""
    texts: dict[Path, bytes] = {}
    wanted = [path, _PACKAGE / "rule.py"]
    while wanted:
        source = wanted.pop()
        if source not in texts:
            texts[source] = source.read_bytes()
            names = re.findall(rb"adagrad\.((?:cli\.)?kernels\.\w+)", texts[source])
            wanted += [_PACKAGE / f"{name.decode().replace('.', '/')}.py" for name in names]
    return hashlib.blake2b(b"".join(texts[source] for source in sorted(texts)), digest_size=12).hexdigest()


@contextlib.contextmanager
def _cache_directory(path: Path) -> Iterator[None]:
    """Numba's cache directory set, for the decoration of a kernel, to one that belongs to these sources alone."""
    base = config.CACHE_DIR or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache"), "adagrad"
    )
    before, config.CACHE_DIR = config.CACHE_DIR, os.path.join(base, _digest(path))
    try:
        yield
    finally:
        config.CACHE_DIR = before


class _Cache(caching.FunctionCache):
    """Numba's cache of compiled functions; where the disk is damaged or full the kernel is compiled again, no more."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except Exception:  # a damaged file can raise anything while it is read
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        # One process at a time: Numba numbers the files by what it has just read of the index.
        with contextlib.suppress(OSError):
            directory = os.open(self.cache_path, os.O_RDONLY)
            try:
                fcntl.flock(directory, fcntl.LOCK_EX)
                try:
                    super().save_overload(sig, data)
                except OSError:
                    raise
                except Exception:  # a damaged index, which would stay so for ever
                    self.flush()
                    super().save_overload(sig, data)
            finally:
                os.close(directory)


def inline(function: Callable[..., Any]) -> Any:
    """Compile a function that kernels call; LLVM inlines it there. Division by zero gives inf or NaN, as in NumPy."""
    return numba.njit(error_model="numpy", forceinline=True)(function)


def kernel(function: Callable[..., Any]) -> Any:
    """Compile a kernel: without the GIL, in strict IEEE arithmetic (no fast-math, no contraction), cached on disk."""
    dispatcher = numba.njit(nogil=True, error_model="numpy")(function)
    if not config.DISABLE_JIT:
        source = Path(function.__code__.co_filename)
        with contextlib.suppress(RuntimeError, OSError), _cache_directory(source):  # no source or nowhere to write: no cache
            cache = _Cache(function)
            # Numba looks for another place if ours can't be written, one that a change of the sources leaves as it is.
            if cache.cache_path.startswith(config.CACHE_DIR):
                dispatcher._cache = cache
    return dispatcher


def at(address: int, count: int, like: np.ndarray | None) -> np.ndarray | None:
    """The ``count`` elements from ``address`` as a 1-D array of ``like``'s dtype; None where ``like`` is None.

    The caller keeps the memory alive.
    """
    if like is None:
        return None
    if count == 0:
        return np.empty(0, like.dtype)
    buffer = (ctypes.c_char * (int(count) * like.dtype.itemsize)).from_address(int(address))
    return np.frombuffer(buffer, like.dtype)


def prefetch(array: np.ndarray, start: int, count: int) -> None:
    """Ask for the cache lines of ``array[start:start+count]``; changes nothing."""


def square_lanes(array: np.ndarray, groups: int) -> tuple[float, float, float, float]:
    """The sums of the squares of each fourth of ``4 * groups`` elements, in double precision, each from left to right."""
    lanes = np.zeros(4)
    for k in range(groups):
        wide = array[4 * k : 4 * k + 4].astype(np.float64)
        lanes += wide * wide
    return tuple(lanes)


def widen(x: Any) -> Any:
    """The number that a stored element stands for: float32 from the bits of a half, others as they are."""
    if isinstance(x, np.uint16):
        return x.view(np.float16).astype(np.float32)
    if isinstance(x, np.int16):
        return (np.uint32(x.view(np.uint16)) << np.uint32(16)).view(np.float32)
    return x


def narrow(x: Any, like: Any) -> Any:
    """The element that is stored for ``x``, in ``like``'s dtype: halves are rounded to nearest, ties to even."""
    if isinstance(like, np.uint16):
        with np.errstate(over="ignore"):
            return x.astype(np.float16).view(np.uint16)
    if isinstance(like, np.int16):
        bits = int(x.view(np.uint32))
        return np.uint16(_bfloat16_bits(bits)).view(np.int16)
    return x


def _bfloat16_bits(bits: int) -> int:
    if bits & 0x7FFFFFFF > 0x7F800000:
        return (bits >> 16) | 0x40  # NaN stays NaN, quiet
    return (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16


if not config.DISABLE_JIT:

    @intrinsic
    def _pointer(typingctx: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.inttoptr(args[0], cgutils.voidptr_t)

        return types.voidptr(types.int64), generate

    @intrinsic
    def _prefetch(typingctx: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            pointer = builder.inttoptr(args[0], cgutils.voidptr_t)
            int32 = ir.IntType(32)
            function = builder.module.declare_intrinsic(
                "llvm.prefetch",
                [cgutils.voidptr_t],
                ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, int32, int32, int32]),
            )
            for_writing, keep, data = int32(1), int32(3), int32(1)
            builder.call(function, [pointer, for_writing, keep, data])
            return context.get_dummy_value()

        return types.void(types.int64), generate

    @intrinsic
    def _square_lanes(typingctx: Any, array: Any, groups: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            # Numba vectorises loops only, and this one, of four sums, must not be taken apart in another way.
            stored = context.get_data_type(array.dtype)
            narrow, wide = ir.VectorType(stored, 4), ir.VectorType(ir.DoubleType(), 4)
            data = builder.bitcast(context.make_array(array)(context, builder, args[0]).data, narrow.as_pointer())
            total = cgutils.alloca_once_value(builder, ir.Constant(wide, [0.0] * 4))
            with cgutils.for_range(builder, args[1]) as loop:
                x = builder.load(builder.gep(data, [loop.index]), align=array.dtype.bitwidth // 8)
                x = x if stored == ir.DoubleType() else builder.fpext(x, wide)
                builder.store(builder.fadd(builder.load(total), builder.fmul(x, x)), total)
            found = builder.load(total)
            lanes = [builder.extract_element(found, ir.IntType(32)(k)) for k in range(4)]
            return context.make_tuple(builder, signature.return_type, lanes)

        return types.UniTuple(types.float64, 4)(array, types.int64), generate

    @overload(square_lanes)
    def _lanes(array, groups):
        return lambda array, groups: _square_lanes(array, groups)

    @overload(at, inline="never")
    def _at(address, count, like):
        if isinstance(like, types.NoneType):
            return lambda address, count, like: None

        def compiled(address, count, like):
            return numba.carray(_pointer(address), (count,), like.dtype)

        return compiled

    @overload(prefetch)
    def _prefetch_lines(array, start, count):
        size = array.dtype.bitwidth // 8

        def compiled(array, start, count):
            first = array.ctypes.data + start * size
            for offset in range(0, count * size, 64):
                _prefetch(first + offset)

        return compiled

    @overload(widen)
    def _widen(x):
        if x == types.uint16:

            def compiled(x):
                # The exponent and fraction moved into float32's place, then scaled by 2**112, which also makes
                # float16's subnormals normal; infinity and NaN land beyond and get the full exponent.
                magnitude = np.uint32(np.uint32(x & np.uint16(0x7FFF)) << np.uint32(13))
                scaled = np.float32(magnitude.view(np.float32) * np.float32(2.0**112))
                bits = scaled.view(np.uint32)
                special = np.uint32(magnitude | np.uint32(0x7F800000))
                bits = special if magnitude >= np.uint32(0x0F800000) else bits
                return np.uint32(bits | np.uint32(np.uint32(x & np.uint16(0x8000)) << np.uint32(16))).view(np.float32)

            return compiled
        if x == types.int16:

            def compiled(x):
                return np.uint32(np.uint32(np.uint16(x)) << np.uint32(16)).view(np.float32)

            return compiled
        return lambda x: x

    @overload(narrow)
    def _narrow(x, like):
        if like == types.uint16:

            def compiled(x, like):
                bits = np.float32(x).view(np.uint32)
                magnitude = np.uint32(bits & np.uint32(0x7FFFFFFF))
                # Normal: re-bias the exponent and round at bit 13; a carry runs on into the exponent, up to infinity.
                odd = np.uint32(np.uint32(magnitude >> np.uint32(13)) & np.uint32(1))
                normal = np.uint32(np.uint32(magnitude + np.uint32(0xC8000FFF) + odd) >> np.uint32(13))
                # Below 2**-14: adding 0.5 leaves a sum whose last bit is 2**-24, the spacing of the subnormals.
                sum_ = np.float32(magnitude.view(np.float32) + np.float32(0.5))
                subnormal = np.uint32(sum_.view(np.uint32) - np.uint32(0x3F000000))
                result = subnormal if magnitude < np.uint32(0x38800000) else normal
                result = np.uint32(0x7C00) if magnitude >= np.uint32(0x477FF000) else result
                result = np.uint32(0x7E00) if magnitude > np.uint32(0x7F800000) else result
                return np.uint16(np.uint32(bits >> np.uint32(16)) & np.uint32(0x8000) | result)

            return compiled
        if like == types.int16:

            def compiled(x, like):
                bits = np.float32(x).view(np.uint32)
                odd = np.uint32(np.uint32(bits >> np.uint32(16)) & np.uint32(1))
                rounded = np.uint32(np.uint32(bits + np.uint32(0x7FFF) + odd) >> np.uint32(16))
                quiet = np.uint32(np.uint32(bits >> np.uint32(16)) | np.uint32(0x40))
                is_nan = np.uint32(bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
                return np.int16(quiet if is_nan else rounded)

            return compiled
        return lambda x, like: x
