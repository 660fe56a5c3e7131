"""The values of a column by its role: numbers, hashes of categories, parts of times, from any type a file may give.

Each function takes one array as it came from the file, text (as bytes) from a CSV, anything from Parquet, and says of every
row whether it was bad; who reads the file decides what happens then.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adagrad.cli.blocks import Part
from adagrad.cli.errors import CliError
from adagrad.cli.hashing import hash_texts
from adagrad.cli.parsing import BAD, parse_numbers, parse_times, texts

__all__ = ["NO_NUMBER", "NO_TIME", "converted", "hashes", "list_hashes", "numbers", "shown", "times", "words"]

NO_NUMBER, NO_TIME = "is not a number", "is not a time (YYYY-MM-DD hh:mm:ss)"  # what `BadRows` is told

Converted = TypeVar("Converted")

_TEXT_TYPES: tuple[Callable[[pa.DataType], bool], ...] = (
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_binary,
    pa.types.is_large_binary,
)


def converted(part: Part, name: str, wanted: str, convert: Callable[..., Converted], *arguments: Any) -> Converted:
    """``convert(column, *arguments)``; raises `CliError`, with the file, for a type from which ``wanted`` can't be made."""
    array = part.column(name)
    try:
        return convert(array, *arguments)
    except pa.ArrowException as error:
        raise CliError(f"{part.block.name}, column {name!r}: {wanted} can't be made of the type {array.type}") from error


def _is_text(array: pa.Array) -> bool:
    return any(test(array.type) for test in _TEXT_TYPES)


def _plain(array: pa.Array) -> pa.Array:
    """``array`` without what only saves memory: dictionaries decoded, views made plain."""
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_string_view(array.type):
        array = array.cast(pa.large_string())
    if pa.types.is_binary_view(array.type):
        array = array.cast(pa.large_binary())
    return array


def numbers(array: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """``(values, bad)``: float64 (n,), NaN where the value is missing or bad, and bool (n,)."""
    array = _plain(array)
    if _is_text(array):
        values, found = parse_numbers(array)
        return values, found == BAD
    if pa.types.is_null(array.type):
        values = np.full(len(array), np.nan)
    else:
        if pa.types.is_time(array.type) or pa.types.is_duration(array.type):
            array = array.cast(pa.int32() if pa.types.is_time32(array.type) else pa.int64())
        if pa.types.is_boolean(array.type):
            array = array.cast(pa.uint8())
        values = array.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return values, np.zeros(len(array), bool)


def times(array: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """``(parts, bad)``: int8 (3, n) of hour, weekday (Monday 0) and month, -1 where there is none, and bool (n,).

    The hour is the local one: as written in a CSV, in the column's time zone in Parquet.
    """
    array = _plain(array)
    if _is_text(array):
        parts, found = parse_times(array)
        return parts, found == BAD
    parts = np.full((3, len(array)), -1, np.int8)
    if not pa.types.is_null(array.type):
        try:
            if not pa.types.is_date(array.type):
                parts[0] = _small(pc.hour(array))
            parts[1], parts[2] = _small(pc.day_of_week(array)), _small(pc.month(array))
        except pa.ArrowInvalid as error:
            raise CliError(f"a column of type {array.type}: {str(error).splitlines()[0].lower()}") from error
    return parts, np.zeros(len(array), bool)


def _small(array: pa.Array) -> np.ndarray:
    return array.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int8)


def words(array: pa.Array, kind: str) -> pa.Array:
    """The values as text or bytes, the very bytes that are hashed.

    Booleans are in lower case, as Parquet's are; of numbers, whole ones lose the ``.0`` that some writers give them.
    """
    array = _plain(array)
    if not _is_text(array):
        array = array.cast(pa.string())
    elif kind == "boolean":
        array = pc.ascii_lower(array.cast(pa.string()))
    if kind in ("integer", "float") and pc.any(pc.match_substring(array, ".0")).as_py():
        array = pc.replace_substring_regex(array, r"^([+-]?[0-9]+)[.]0+$", r"\1")
    return array


def hashes(array: pa.Array, kind: str, seed: int) -> np.ndarray:
    """The hash of each value, uint64 (n,); null and the empty text share one, for "missing"."""
    if pa.types.is_dictionary(array.type):
        # Each entry of the dictionary is hashed once; the place after the last one is for null.
        entries = np.append(hashes(array.dictionary, kind, seed), hash_texts(*texts(pa.array([None], pa.string())), seed))
        return entries[array.indices.fill_null(len(array.dictionary)).to_numpy(zero_copy_only=False)]
    return hash_texts(*texts(words(array, kind)), seed)


def list_hashes(array: pa.Array, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """``(hashes, lengths)`` of the lists' items, end to end; an empty list and null hold one item, "missing"."""
    if pa.types.is_fixed_size_list(array.type):
        array = array.cast(pa.list_(array.type.value_type))
    lengths = pc.list_value_length(array).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    found = hashes(array.flatten(), "text", seed)
    full = np.maximum(lengths, 1)
    missing = hash_texts(*texts(pa.array([None], pa.string())), seed)[0]
    out = np.full(int(full.sum()), missing, np.uint64)
    out[np.repeat(lengths > 0, full)] = found
    return out, full


def shown(array: pa.Array, kind: str, row: int) -> str:
    """One value as a message or the table of features shows it; "" if it is missing."""
    value: Any = words(array.slice(row, 1), kind)[0].as_py()
    return "" if value is None else value.decode("utf-8", "replace") if isinstance(value, bytes) else value
