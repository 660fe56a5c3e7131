"""Numbers and times from text columns, exact, and told of every value what became of it."""

import contextlib
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adagrad.cli.kernels import parsing as kernels
from adagrad.cli.kernels.parsing import BAD, FLOAT, HARD, INTEGER, MISSING, MISSING_TEXTS

__all__ = ["BAD", "FLOAT", "INTEGER", "MISSING", "MISSING_TEXTS", "POWERS", "Texts", "parse_numbers", "parse_times", "texts"]

POWERS = 10.0 ** np.arange(23)


class Texts(NamedTuple):
    """The buffers of a text or binary array: bytes, offsets (n + 1,), and a bit a row for validity (empty: all valid)."""

    data: np.ndarray
    offsets: np.ndarray
    validity: np.ndarray
    first: int


def texts(array: pa.Array) -> Texts:
    """The buffers of ``array``, of type string, binary or their large forms.

    They come in one form whatever Arrow's, read-only and with 64-bit offsets, for which alone the kernels are compiled.
    """
    large = pa.types.is_large_string(array.type) or pa.types.is_large_binary(array.type)
    validity, offsets, data = array.buffers()
    starts = np.frombuffer(offsets, np.int64 if large else np.int32) if offsets else np.zeros(1, np.int32)
    return Texts(
        _frozen(np.frombuffer(data, np.uint8) if data else np.empty(0, np.uint8)),
        _frozen(starts[array.offset : array.offset + len(array) + 1].astype(np.int64)),
        _frozen(np.frombuffer(validity, np.uint8) if validity and array.null_count else np.empty(0, np.uint8)),
        array.offset,
    )


def _frozen(array: np.ndarray) -> np.ndarray:
    array.setflags(write=False)
    return array


def parse_numbers(array: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """The numbers in a text array: ``(values, found)``, float64 with NaN for missing and bad, and uint8 of kinds.

    ``found`` is FLOAT, INTEGER (only digits and a sign), MISSING (empty, or one of `MISSING_TEXTS`) or BAD.
    """
    buffers = texts(array)
    values, found = np.empty(len(array)), np.empty(len(array), np.uint8)
    with np.errstate(all="ignore"):  # unsigned arithmetic wraps; NumPy only says so under NUMBA_DISABLE_JIT
        kernels.numbers(*buffers, POWERS, values, found)
    hard = np.flatnonzero(found == HARD)
    if len(hard):
        values[hard], found[hard] = _hard_numbers(array.take(pa.array(hard)))
    return values, found


def _hard_numbers(array: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of many digits or a large exponent, infinities, and what only starts like one."""
    try:
        trimmed = pc.utf8_trim_whitespace(array.cast(pa.large_string()))
        return trimmed.cast(pa.float64()).to_numpy(zero_copy_only=False), np.full(len(array), FLOAT, np.uint8)
    except pa.ArrowInvalid:
        pass
    values, found = np.full(len(array), np.nan), np.full(len(array), BAD, np.uint8)
    for i, value in enumerate(array.cast(pa.large_binary()).to_pylist()):
        with contextlib.suppress(ValueError):
            values[i], found[i] = float(value), FLOAT
    return values, found


def parse_times(array: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """The times in a text array: ``(parts, found)``, int8 (3, n) of hour, weekday (Monday 0) and month, -1 for none.

    ISO 8601: ``YYYY-MM-DD``, then a space or T and ``hh:mm[:ss[.fff]]``, then Z or an offset; the hour is the one that is
    written, whatever the offset. ``found`` is FLOAT (a date with a time), INTEGER (a date alone), MISSING or BAD.
    """
    parts, found = np.empty((3, len(array)), np.int8), np.empty(len(array), np.uint8)
    with np.errstate(all="ignore"):
        kernels.times(*texts(array), parts, found)
    return parts, found
