"""SVMlight and Vowpal Wabbit text in blocks of whole lines, with a way back to the line of a row.

The rows have the columns `COLUMNS`: texts as they stand, and "features", which is a list of keys with values for each row.
A key is the index, in SVMlight; in Vowpal Wabbit's rows the hash of the feature's name, seeded with that of its namespace,
so that ``|site a`` is the category a of a CSV's column site.
"""

import codecs
import re
from collections.abc import Callable, Iterator
from typing import BinaryIO

import numpy as np
import pyarrow as pa

from adagrad.cli.errors import CliError
from adagrad.cli.kernels import sparse as kernels
from adagrad.cli.parsing import POWERS
from adagrad.cli.sources import COLUMNS, SVMLIGHT

__all__ = ["FEATURES", "INDICES", "KINDS", "NAMES", "SparseBlock", "kind_of", "read_sparse"]

FEATURES = "features"
INDICES, NAMES = "indices", "names"
KINDS = (INDICES, NAMES)

_TYPES = {
    kind: pa.list_(pa.struct([(key, pa.uint64()), ("value", pa.float32())]))
    for kind, key in ((INDICES, "index"), (NAMES, "hash"))
}
_BLOCK = 1 << 20  # bytes read at a time
_LONGEST = 64 << 20  # bytes of one line; a longer one is no line
_SPACES = bytes(range(33)).decode()
_BETWEEN = re.compile(f"[{_SPACES}]+")
_INSTEAD = {"weight": b"1"}  # of a text that is absent
_PLACES = {"label": 0, "weight": 2, "tag": 4, "qid": 4}  # of the texts, among what the kernels write

_WRONG = {
    kernels.LABEL: "is no label; those of cost-sensitive and bandit learning can't be used",
    kernels.NO_INDEX: "is no index:value, with a whole number below 10**18 for the index",
    kernels.VALUE: "has a value that is not a finite number",
    kernels.NO_BAR: "begins a line without a | before its features",
    kernels.THIRD: "is a third number before the features; an initial prediction can't be used",
    kernels.NAME: "is a feature without a name",
    kernels.SCALE: "is a namespace with a value that is not a plain number",
}


def kind_of(array: pa.Array) -> str | None:
    """`INDICES` or `NAMES` for a column of features, None for any other."""
    return next((kind for kind, known in _TYPES.items() if array.type == known), None)


def _words(text: str) -> list[str]:
    """The words between what the kernels take for spaces; `str.split` knows others."""
    return [word for word in _BETWEEN.split(text) if word]


class SparseBlock:
    """Some whole lines of a file, with the attributes of `adagrad.cli.csvfile.CsvBlock`."""

    typed = False

    def __init__(self, name: str, data: bytes, line: int, form: str, wanted: list[str], skip_bad: bool) -> None:
        self.name, self.columns, self.position = name, wanted, 0
        self._data, self._line, self._form = data, line, form
        lines, most = data.count(b"\n") + 1, len(data) // 2 + 2  # of entries: a letter and a space each, at least
        texts, places = np.empty((lines, 6), np.int64), np.empty((lines, 2), np.int64)
        starts = np.zeros(lines + 1, np.int32)
        keys, values, hard = np.empty(most, np.uint64), np.empty(most, np.float32), np.empty((most, 3), np.int64)
        self._bytes = np.frombuffer(data, np.uint8)
        parse = kernels.svmlight if form == SVMLIGHT else kernels.vw
        with np.errstate(over="ignore"):  # hashes wrap; NumPy only says so under NUMBA_DISABLE_JIT
            rows, entries, hards, bad, *first = parse(self._bytes, POWERS, texts, places, starts, keys, values, hard)
            for entry, start, stop in hard[:hards].tolist():
                values[entry] *= float(data[start:stop])
        if bad and not skip_bad:
            at, start, stop, why = first
            word = data[start:stop].decode("utf-8", "replace")[:60]
            raise CliError(f"{name}, line {line + at}: {word!r} {_WRONG[why]} (--bad-rows skip leaves such rows out)")
        self.rows, self.dropped = rows, bad
        self._texts, self._places = texts[:rows].copy(), places[:rows].copy()
        self._features = pa.ListArray.from_arrays(
            pa.array(starts[: rows + 1].copy()),
            pa.StructArray.from_arrays(
                [pa.array(keys[:entries].copy()), pa.array(values[:entries].copy())],
                fields=list(_TYPES[INDICES if form == SVMLIGHT else NAMES].value_type),
            ),
        )

    def column(self, name: str) -> pa.Array:
        """The values of a column, binary (rows,), of the features lists of keys and values."""
        if name == FEATURES:
            return self._features
        place, instead = _PLACES[name], np.frombuffer(_INSTEAD.get(name, b""), np.uint8)
        spans = self._texts[:, place : place + 2]
        lengths = spans[:, 1] - spans[:, 0]
        size = int(lengths.sum()) + int(np.count_nonzero(lengths == 0)) * len(instead)
        out, offsets = np.empty(size, np.uint8), np.empty(self.rows + 1, np.int32)
        kernels.copy_texts(self._bytes, spans, instead, out, offsets)
        return pa.Array.from_buffers(pa.binary(), self.rows, [None, pa.py_buffer(offsets), pa.py_buffer(out)])

    def where(self, row: int) -> str:
        """``"FILE, line N"`` for a row of this block."""
        return f"{self.name}, line {self._line + int(self._places[row, 0])}"

    def text(self, row: int) -> str:
        """The line of a row."""
        start = int(self._places[row, 1])
        end = self._data.find(b"\n", start)
        return self._data[start : None if end < 0 else end].decode("utf-8", "replace").strip(_SPACES)

    def feature(self, row: int, entry: int) -> str:
        """The name of a row's entry: its index, or ``namespace^name`` as Vowpal Wabbit writes it."""
        line = self.text(row)
        if self._form == SVMLIGHT:
            words = [word for word in _words(line.partition("#")[0]) if ":" in word and not word.startswith("qid:")]
            return words[entry].partition(":")[0]
        for part in line.split("|")[1:]:
            head, *words = _words(part) if part[:1].strip(_SPACES) else ["", *_words(part)]
            if entry < len(words):
                space, word = head.partition(":")[0], words[entry].partition(":")[0]
                return f"{space}^{word}" if space else word
            entry -= len(words)
        raise IndexError(entry)


def read_sparse(
    name: str,
    file: BinaryIO,
    position: Callable[[], int],
    *,
    form: str,
    choose: Callable[[str, list[str]], list[str]],
    skip_bad: bool,
) -> Iterator[SparseBlock]:
    """The blocks of one file; the arguments are those of `adagrad.cli.csvfile.read_csv`, and ``form``, svmlight or vw."""
    wanted = choose(name, COLUMNS[form])
    start = file.read(len(codecs.BOM_UTF8))
    if not start:
        raise CliError(f"{name} is empty")
    rest, line, ended = start.removeprefix(codecs.BOM_UTF8), 1, False
    while not ended:
        read = file.read(_BLOCK)
        ended = not read
        data = rest + read
        if b"\0" in data:
            raise CliError(f"{name} is no text: it holds zero bytes")
        end = len(data) if ended else data.rfind(b"\n") + 1
        if not end and len(data) > _LONGEST:
            raise CliError(f"{name}, line {line}: this line does not end")
        block, rest = data[:end], data[end:]
        if block.strip():
            parsed = SparseBlock(name, block, line, form, wanted, skip_bad)
            parsed.position = position()
            yield parsed
        line += block.count(b"\n")
