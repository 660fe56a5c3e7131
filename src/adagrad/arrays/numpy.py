"""NumPy arrays for the engine: what is stored in them, where they lie, and gradients made ready for the kernels.

The kernels see arrays of float64, float32, and the bits of halves: float16 as ``uint16``, bfloat16 as ``int16``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from adagrad.gradients import IndexedSlices
from adagrad.kernels.inspecting import BUFFERED, HEADER_WORDS, NONE, OTHER, STATE, STORED, look, read_only

__all__ = [
    "BUFFERED",
    "NONE",
    "OTHER",
    "STATE",
    "STORED",
    "Layout",
    "address",
    "check_ids",
    "chunks",
    "dense_gradient",
    "entry_rows",
    "extent",
    "is_plain",
    "row_gradient",
    "state_dtype",
    "stored_view",
]


# The elements of a chunk where arrays can't be worked on in place: its streams stay in the second-level cache.
_CHUNK = 1 << 15

# From so many arrays on, a compiled kernel looks them over; it costs a compilation, once.
_MANY = 16


def state_dtype(dtype: np.dtype) -> np.dtype:
    """The dtype of the arithmetic and of all state: float64 for float64 parameters, else float32."""
    return np.dtype(np.float64) if dtype.kind == "f" and dtype.itemsize == 8 else np.dtype(np.float32)


def stored_view(array: np.ndarray) -> np.ndarray | None:
    """``array`` as the kernels see it, sharing its memory; None if its dtype is none of ours."""
    dtype = array.dtype
    array = np.asarray(array)
    if dtype.kind == "f" and dtype.itemsize in (4, 8):
        return array
    if dtype.kind == "f" and dtype.itemsize == 2:
        return array.view(np.dtype(np.uint16).newbyteorder(dtype.byteorder))
    if dtype.name == "bfloat16" and dtype.itemsize == 2:
        return array.view(np.int16)
    return None


def is_plain(array: np.ndarray) -> bool:
    """Whether a kernel can work on the memory of ``array`` as it lies: contiguous, aligned, in native byte order."""
    return array.flags.c_contiguous and array.flags.aligned and array.dtype.isnative


def address(array: np.ndarray) -> int:
    """Where the memory of ``array`` begins: `ndarray.ctypes.data`, in a fifth of its time."""
    return int(array.__array_interface__["data"][0])


def extent(array: np.ndarray) -> tuple[int, int]:
    """The first address of ``array`` and the one after its last."""
    if array.flags.c_contiguous:
        low = address(array)
        return low, low + array.nbytes
    low, high = np.lib.array_utils.byte_bounds(array) if array.size else (address(array),) * 2
    return int(low), int(high)


def chunks(arrays: Sequence[np.ndarray], dtypes: Sequence[np.dtype], writable: Sequence[bool]) -> Iterator[Any]:
    """Equal-shaped ``arrays`` as 1-D contiguous chunks in C order, cast to ``dtypes``; written chunks go back.

    Needs memory for one chunk, whatever the strides, byte orders and dtypes are.
    """
    access = ["readwrite" if write else "readonly" for write in writable]
    with (
        np.errstate(over="ignore", invalid="ignore"),
        np.nditer(  # type: ignore[call-overload]
            list(arrays),
            ["external_loop", "buffered", "zerosize_ok"],
            [[how, "contig", "aligned", "nbo"] for how in access],
            op_dtypes=list(dtypes),
            order="C",
            casting="unsafe",
            buffersize=_CHUNK,
        ) as iterator,
    ):
        for chunk in iterator:
            yield chunk if isinstance(chunk, tuple) else (chunk,)


def dense_gradient(gradient: Any, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A dense gradient as an array of real numbers of ``shape``; raises ``TypeError`` or ``ValueError`` otherwise."""
    array = np.asarray(gradient)
    if not _is_real(array.dtype):
        raise TypeError(f"the gradient of {name} must have a real dtype, got {array.dtype} ({type(gradient).__name__})")
    if array.shape != shape:
        raise ValueError(f"the gradient of {name} must have its shape {shape}, got {array.shape}")
    return array


def row_gradient(
    gradient: Any, name: str, shape: tuple[int, ...], stored: np.dtype, state: np.dtype
) -> tuple[np.ndarray, np.ndarray] | None:
    """A row gradient as ``(values, ids)``: flat values of dtype ``stored`` or ``state``, int64 ids; None if it is dense.

    `IndexedSlices` and SciPy's sparse matrices are row gradients. Ids outside [0, shape[0]) raise ``ValueError``.
    """
    if isinstance(gradient, IndexedSlices):
        values, ids = np.asarray(gradient.values), np.asarray(gradient.indices)
        if not shape:
            raise ValueError(f"{name} is a scalar and has no rows; its gradient must be dense, got {gradient!r}")
        if ids.ndim != 1 or (ids.dtype.kind not in "iu" and ids.size):
            raise TypeError(f"the indices of {name} must be a 1-D array of integers, got {ids.dtype} of {ids.shape}")
        if values.shape != (ids.size, *shape[1:]):
            raise ValueError(
                f"the gradient rows of {name} must have shape {(ids.size, *shape[1:])} (ids, row), got {values.shape}"
            )
        if not _is_real(values.dtype):
            raise TypeError(f"the gradient rows of {name} must have a real dtype, got {values.dtype}")
        check_ids(ids, name, shape[0])
    elif hasattr(gradient, "tocoo") and type(gradient).__module__.startswith("scipy.sparse"):
        values, ids = _sparse_rows(gradient, name, shape, state)
    else:
        return None
    view = stored_view(values)
    if view is None or not view.dtype.isnative or view.dtype not in (stored, state):
        with np.errstate(over="ignore", invalid="ignore"):
            view = values.astype(state)
    return np.ascontiguousarray(view).reshape(-1), np.ascontiguousarray(ids, np.int64)


def _is_real(dtype: np.dtype) -> bool:
    return dtype.kind in "fiu" or dtype.name == "bfloat16"


def check_ids(ids: np.ndarray, name: str, count: int) -> None:
    """Raise ``ValueError`` for an id outside [0, count)."""
    unsigned = np.uint64 if ids.dtype == np.int64 else f"{ids.dtype.byteorder}u{ids.itemsize}"
    if ids.size and ids.view(unsigned).max() >= count:  # a negative id is a large one there
        wrong = int(np.flatnonzero((ids < 0) | (ids >= count))[0])
        raise ValueError(f"the indices of {name} must be in [0, {count}), got {ids[wrong]} at position {wrong}")


def _sparse_rows(matrix: Any, name: str, shape: tuple[int, ...], state: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """The rows of a SciPy matrix that have entries."""
    expected = shape if len(shape) == 2 else (1, *shape)
    if len(shape) not in (1, 2) or matrix.shape not in (expected, shape):
        raise ValueError(f"a sparse gradient of {name}, of shape {shape}, must be {expected}, got {matrix.shape}")
    entries = matrix.tocoo()
    if not _is_real(entries.dtype):
        raise TypeError(f"the gradient of {name} must have a real dtype, got {entries.dtype}")
    return entry_rows(entries.coords[-len(shape) :], entries.data.astype(state), name, shape)


def entry_rows(
    coordinates: Sequence[Any], data: np.ndarray, name: str, shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """``(values, ids)`` of the rows of a gradient of ``shape`` that comes as entries, summed in order where they repeat.

    ``coordinates`` has an array for each of the leading dimensions; ``data[j]`` is the entry there.
    """
    coordinates = [np.asarray(axis) for axis in coordinates]
    for axis, count in zip(coordinates, shape, strict=False):
        check_ids(axis, name, count)
    if len(coordinates) == 1:
        return data, coordinates[0]
    rows, inverse = np.unique(coordinates[0], return_inverse=True)
    values = np.zeros((rows.size, *shape[1:]), data.dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        np.add.at(values, (inverse, *coordinates[1:]), data)
    return values, rows


class Layout:
    """The shapes, dtypes and memory of the variables, against which a list of gradients is looked over in one call.

    ``views`` are the stored views of the variables; ``memory`` are all arrays that a step may write.
    """

    row_gradient = staticmethod(row_gradient)
    dense_gradient = staticmethod(dense_gradient)

    def __init__(self, arrays: Sequence[np.ndarray], views: Sequence[np.ndarray], memory: Sequence[np.ndarray]) -> None:
        self._arrays = list(arrays)
        self._objects = np.array([id(array) for array in arrays], np.int64)
        self._shapes = [array.shape for array in arrays]
        self._dtypes = [(array.dtype, state_dtype(array.dtype)) for array in arrays]
        self._own = np.array([address(view) for view in views], np.int64)
        self._sizes = np.array([view.nbytes for view in views], np.int64)
        self._dims = np.array([n for shape in self._shapes for n in shape], np.int64)
        self._dims_end = np.cumsum([len(shape) for shape in self._shapes], dtype=np.int64)
        self._descriptions = np.array([[id(np.dtype(d)) for d in pair] for pair in self._dtypes], np.int64).reshape(-1, 2)
        bounds = sorted(extent(array) for array in memory if array.size)
        self._lows = np.array([low for low, _ in bounds], np.int64)
        self._highs = np.maximum.accumulate(np.array([high for _, high in bounds], np.int64)) if bounds else self._lows

    def overlaps(self, array: np.ndarray) -> bool:
        """Whether ``array`` may share memory with anything that a step writes."""
        return self._overlaps(*extent(array))

    def _overlaps(self, low: int, high: int) -> bool:
        k = int(self._lows.searchsorted(high))
        return k > 0 and int(self._highs[k - 1]) > low

    def read_only(self) -> list[int]:
        """The variables that can't be written any more."""
        if HEADER_WORDS and len(self._arrays) >= _MANY:
            return read_only(self._objects, HEADER_WORDS).tolist()
        return [v for v, array in enumerate(self._arrays) if not array.flags.writeable]

    def look(self, slots: np.ndarray, gradients: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
        """For each gradient of variable ``slots[j]``: how it comes (`STORED`, `STATE` or `OTHER`), and its address.

        `OTHER` only says that more must be known: it may be None, a list, rows, strided, misshapen, or share memory with
        a variable. A gradient that *is* its variable may be read in place.
        """
        codes = np.empty(len(gradients), np.int8)
        codes.fill(OTHER)
        addresses = np.zeros(len(gradients), np.int64)
        if HEADER_WORDS and len(gradients) >= _MANY:
            objects = np.fromiter(map(id, gradients), np.int64, len(gradients))
            look(
                objects, slots, self._dims, self._dims_end, self._descriptions, self._own, self._sizes,
                self._lows, self._highs, HEADER_WORDS, id(np.ndarray), codes, addresses,
            )  # fmt: skip
            return codes, addresses
        for j, (v, gradient) in enumerate(zip(slots.tolist(), gradients, strict=True)):
            if type(gradient) is np.ndarray and gradient.shape == self._shapes[v] and is_plain(gradient):
                low = address(gradient)
                itself = low == self._own[v] and gradient.dtype == self._dtypes[v][0]
                if gradient.dtype in self._dtypes[v] and (itself or not self._overlaps(low, low + gradient.nbytes)):
                    codes[j] = STORED if gradient.dtype == self._dtypes[v][0] else STATE
                    addresses[j] = low
        return codes, addresses
