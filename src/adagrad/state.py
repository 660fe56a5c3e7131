"""The one state file of every face: named arrays and JSON in a safetensors file, never half written or half read.

Nothing in it is code: arrays are numbers, metadata are JSON values, no name is imported. `write` replaces the file in
one step, so a kill at any moment leaves the old file or the new one. `read` checks all of it, then returns all of it.

Layout, for other tools (any safetensors library reads it, too):

- bytes 0 to 8: n, the length of the header; unsigned, little-endian
- bytes 8 to 8 + n: the header, a JSON object in UTF-8, then spaces, so that the arrays start at a multiple of 64
- bytes 8 + n to the end: the arrays' elements, little-endian, in C order, without a gap between arrays; wider types
  come first, so each array is aligned to its element's size

The header holds for each array, in the order of the bytes, ``"name": {"dtype": "F32", "shape": [2, 3],
"data_offsets": [begin, end]}``, offsets counted from 8 + n; and then ``"__metadata__"``, an object of strings:

- ``format``: ``adagrad-state``, and ``version``: ``1``
- ``metadata``: the caller's metadata, a JSON object
- ``digests``: a JSON object, name to digest of the array's bytes, in the order of the caller's arrays
- ``header_digest``, which comes last: the digest of bytes 0 to 8 + n with ``0`` for each of its own 64 digits

A digest is BLAKE2b with 32 bytes, in hexadecimal. Digests find damage, not an attacker, who can compute them anew.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import math
import os
import secrets
import stat
import time
from collections.abc import Iterator, Mapping
from io import FileIO
from typing import Any, BinaryIO

import numpy as np

__all__ = ["StateFileError", "read", "write"]

FORMAT = "adagrad-state"
VERSION = "1"
TAGS = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
}
"""NumPy's name of each type that a file can hold, and safetensors' name of it."""

_DTYPES = {tag: name for name, tag in TAGS.items()}
_ALIGNMENT = 64
_HEADER_LIMIT = 100_000_000  # the safetensors library reads no longer header
_PIECE = 1 << 18  # bytes copied, hashed and written at a time: what is hashed is still in the cache when it is written
_NO_DIGEST = "0" * 64
_STALE = 24 * 3600.0  # seconds after its last write in which a temporary file may still have a writer


class StateFileError(ValueError):
    """A file that is no state file, is damaged, or is of another format version; the message names path and cause."""


def write(path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray], metadata: dict[str, Any]) -> None:
    """Write arrays and metadata to the file at ``path``, or leave what is there as it was.

    Parameters
    ----------
    path
        A file that exists is replaced and its permissions are kept; through a symbolic link, its target is. Anything
        else that stands there (a folder, a device) is a `StateFileError`.
    arrays
        Names to arrays of any shape, strides and byte order, of a type in `TAGS`. Not changed. They are streamed: writing
        takes about 1 MiB of memory, whatever their size.
    metadata
        A dict of JSON values that come back equal: string keys, lists (no tuples), no NaN or infinity.

    Raises ``TypeError`` or ``ValueError`` for arrays or metadata that a file can't hold, before anything is written,
    and ``OSError``, naming ``path``, when the disk is full or the folder can't be written. The new content goes to a
    temporary file in the same folder, is flushed to disk, and takes the old file's name in one step. An error removes
    the temporary file; only a kill leaves it (its name starts with a dot and ends with ``.tmp``), and the next `write` to
    ``path`` removes it when it is a day old.
    """
    text = _metadata_text(metadata)
    entries = _entries(arrays)
    _header(entries, text, dict.fromkeys(arrays, _NO_DIGEST))  # refuses what a header can't hold
    target = os.path.realpath(path)
    folder, name = os.path.split(target)
    temporary = os.path.join(folder, f".{name[:40]}.{secrets.token_hex(8)}.tmp")
    try:
        mode = _mode(target)
        if mode is not None and not stat.S_ISREG(mode):
            raise StateFileError(f"{os.fspath(path)} can't be replaced by a state file: it is not a regular file")
        try:
            with open(temporary, "xb") as file:
                if mode is not None:
                    os.fchmod(file.fileno(), stat.S_IMODE(mode))
                _write_content(file, entries, arrays, text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        _remove_stale(folder, name)
        _sync_folder(folder)
    except OSError as error:
        error.filename, error.filename2 = os.fspath(path), None  # rather than the temporary file's
        raise


def read(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read what `write` wrote: the arrays by name, in the order they were given, and the metadata.

    The arrays are new, writable, in C order, and own their memory; BF16 needs the package ``ml_dtypes``. Memory: the
    arrays' own and a few MiB. Nothing is allocated that the file's size doesn't vouch for.

    Raises `StateFileError` for whatever isn't a whole and undamaged state file, and ``OSError`` when there is no file
    or it can't be read.
    """
    try:
        # Before opening it, which would wait for ever on a pipe.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise StateFileError("it is not a regular file")
        with open(path, "rb", buffering=0) as file:
            return _read_content(file, os.fstat(file.fileno()).st_size)
    except StateFileError as error:
        raise StateFileError(f"{os.fspath(path)} can't be read as a state file: {error}") from None


# ---- writing ---------------------------------------------------------------------------------------------------------


def _metadata_text(metadata: dict[str, Any]) -> str:
    try:
        text = json.dumps(metadata, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
        same = isinstance(metadata, dict) and json.loads(text) == metadata
    except (TypeError, ValueError) as error:
        raise ValueError(f"metadata must be a dict of JSON values: {error}") from None
    if not same:
        raise ValueError(f"metadata must be a dict of JSON values that come back equal, got {metadata!r}")
    return text


def _entries(arrays: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """Return the header's entry of every array, wider types first."""
    for name, array in arrays.items():
        if not isinstance(name, str) or name == "__metadata__":
            raise ValueError(f"an array's name must be a string other than '__metadata__', got {name!r}")
        if not isinstance(array, np.ndarray):
            raise TypeError(f"array {name!r} must be a NumPy array, got {type(array).__name__}")
        if array.dtype.name not in TAGS:
            raise ValueError(f"array {name!r} must be of a type in {', '.join(TAGS)}, got {array.dtype.name}")
    entries, begin = {}, 0
    for name in sorted(arrays, key=lambda name: (-arrays[name].itemsize, name)):
        array = arrays[name]
        offsets = [begin, begin + array.nbytes]
        entries[name] = {"dtype": TAGS[array.dtype.name], "shape": list(array.shape), "data_offsets": offsets}
        begin += array.nbytes
    return entries


def _header(entries: dict[str, dict[str, Any]], metadata_text: str, digests: dict[str, str]) -> bytes:
    """Return bytes 0 to 8 + n of the file. Their number doesn't depend on the digests."""
    ours = {
        "format": FORMAT,
        "version": VERSION,
        "metadata": metadata_text,
        "digests": json.dumps(digests, ensure_ascii=False, separators=(",", ":")),
        "header_digest": _NO_DIGEST,
    }
    whole = {**entries, "__metadata__": ours}
    try:
        text = json.dumps(whole, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"names and metadata must be valid Unicode: {error}") from None
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    if len(text) > _HEADER_LIMIT:
        raise ValueError(f"names and metadata must take at most {_HEADER_LIMIT} bytes, got {len(text)}")
    header = len(text).to_bytes(8, "little") + text
    _, before, after = _split_digest(header)
    return before + _digest(header).encode() + after


def _split_digest(header: bytes) -> tuple[str, bytes, bytes]:
    """Return the header's digest as it stands there, and what is before and after it."""
    start, mark, spaces = header.rpartition(b'"}}')
    return start[-64:].decode("latin-1"), start[:-64], mark + spaces


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=32).hexdigest()


def _write_content(
    file: BinaryIO, entries: dict[str, dict[str, Any]], arrays: Mapping[str, np.ndarray], metadata_text: str
) -> None:
    digests = dict.fromkeys(arrays, _NO_DIGEST)
    file.write(_header(entries, metadata_text, digests))
    for name in entries:
        digest = hashlib.blake2b(digest_size=32)
        for piece in _pieces(arrays[name]):
            digest.update(piece)
            file.write(piece)
        digests[name] = digest.hexdigest()
    file.seek(0)
    file.write(_header(entries, metadata_text, digests))


def _pieces(array: np.ndarray) -> Iterator[bytes]:
    """Yield the elements' bits, little-endian and in C order, in pieces: copies, which no other thread changes."""
    size = array.itemsize
    pieces = np.nditer(  # type: ignore[call-overload]
        array.view(f"{array.dtype.byteorder}u{size}"),
        flags=["buffered", "external_loop", "zerosize_ok"],
        op_flags=[["readonly", "contig"]],
        op_dtypes=[np.dtype(f"<u{size}")],
        order="C",
        casting="equiv",
        buffersize=_PIECE // size,
    )
    with pieces:
        for piece in pieces:
            yield piece.tobytes()


def _mode(target: str) -> int | None:
    try:
        return os.stat(target).st_mode
    except FileNotFoundError:
        return None


def _remove_stale(folder: str, name: str) -> None:
    pattern = os.path.join(glob.escape(folder), f".{glob.escape(name[:40])}.{'[0-9a-f]' * 16}.tmp")
    with contextlib.suppress(OSError):
        for temporary in glob.iglob(pattern):
            if os.lstat(temporary).st_mtime < time.time() - _STALE:
                os.unlink(temporary)


def _sync_folder(folder: str) -> None:
    """Flush the folder's entries: the rename itself is on disk then."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ---- reading ---------------------------------------------------------------------------------------------------------


def _read_content(file: FileIO, size: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    header = _read_header(file, size)
    content = _parse(header[8:], "header")
    ours = content.pop("__metadata__", None)
    if not isinstance(ours, dict) or ours.get("format") != FORMAT:
        raise StateFileError(f"it is a safetensors file of another kind, without the format {FORMAT!r}")
    if ours.get("version") != VERSION:
        raise StateFileError(f"it has format version {ours.get('version')!r}, and this adagrad reads {VERSION!r}")
    digest, before, after = _split_digest(header)
    if digest != _digest(before + _NO_DIGEST.encode() + after):
        raise StateFileError("it is damaged: the header doesn't fit its digest")
    if set(ours) != {"format", "version", "metadata", "digests", "header_digest"}:
        raise StateFileError("it is damaged: __metadata__ has other keys than it should")
    metadata, digests = _parse(ours["metadata"], "metadata"), _parse(ours["digests"], "digests")
    if set(digests) != set(content):
        raise StateFileError("it is damaged: the digests are not those of its arrays")
    end = 0
    for name, entry in content.items():
        end = _check_entry(name, entry, end)
    if len(header) + end != size:
        raise StateFileError(f"it is damaged: it has {size} bytes and should have {len(header) + end}")
    arrays = {name: _read_array(file, name, entry, digests[name]) for name, entry in content.items()}
    return {name: arrays[name] for name in digests}, metadata


def _read_header(file: FileIO, size: int) -> bytes:
    """Return bytes 0 to 8 + n."""
    start = file.read(8)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length > min(size - 8, _HEADER_LIMIT):
        raise StateFileError(f"it is not a safetensors file, or cut off ({size} bytes)")
    text = file.read(length)
    if len(text) < length:
        raise StateFileError("it ends within its header")
    return start + text


def _parse(text: Any, what: str) -> dict[str, Any]:
    """Return the JSON object in ``text``: strict, and no key twice."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in items}) < len(items):
            raise ValueError("a key stands there twice")
        return dict(items)

    def constant(name: str) -> None:
        raise ValueError(f"{name} is not JSON")

    try:
        if isinstance(text, bytes):
            text = text.decode()
        content = json.loads(text, object_pairs_hook=pairs, parse_constant=constant)
    except (TypeError, ValueError, RecursionError) as error:
        raise StateFileError(f"it is not a safetensors file, or damaged: its {what} is not JSON ({error})") from None
    if not isinstance(content, dict):
        raise StateFileError(f"it is not a safetensors file, or damaged: its {what} is not a JSON object")
    return content


def _check_entry(name: str, entry: Any, begin: int) -> int:
    """Check an array's entry, whose bytes must begin at ``begin``, and return where they end."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise StateFileError(f"it is damaged: array {name!r} is described as {entry!r}")
    tag, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(tag, str) or tag not in _DTYPES:
        raise StateFileError(f"array {name!r} is of type {tag!r}, which is not one of {', '.join(_DTYPES)}")
    whole = isinstance(shape, list) and len(shape) <= 64 and all(type(count) is int and count >= 0 for count in shape)
    if not whole or offsets != [begin, begin + math.prod(shape) * _dtype(tag).itemsize]:
        raise StateFileError(f"it is damaged: array {name!r} has shape {shape!r} and offsets {offsets!r}")
    return offsets[1]


def _dtype(tag: str) -> np.dtype:
    if tag == "BF16":
        try:
            import ml_dtypes
        except ImportError:
            raise StateFileError("it holds bfloat16 arrays, which need the package ml_dtypes") from None
        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(_DTYPES[tag]).newbyteorder("<")


def _read_array(file: FileIO, name: str, entry: dict[str, Any], expected: str) -> np.ndarray:
    try:
        array = np.empty(entry["shape"], _dtype(entry["dtype"]))
    except ValueError:  # empty, with a dimension or a number of dimensions that no array can have
        raise StateFileError(f"it is damaged: array {name!r} has shape {entry['shape']!r}") from None
    content = array.reshape(-1).view(np.uint8).data
    digest = hashlib.blake2b(digest_size=32)
    done = 0
    while done < array.nbytes:
        count = file.readinto(content[done : done + _PIECE])
        if not count:
            raise StateFileError(f"it ends within array {name!r}")
        digest.update(content[done : done + count])
        done += count
    if digest.hexdigest() != expected:
        raise StateFileError(f"it is damaged: array {name!r} doesn't fit its digest")
    return array
