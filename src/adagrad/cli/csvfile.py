"""CSV in blocks: cut where a record ends, parsed by Arrow into columns of bytes, with a way back to the line of a row.

Every column is read as it is written, bytes, and nothing is guessed here; roles decide later what they mean. Arrow parses
fast but can't say on which line a row stood (a quoted field may hold line breaks, blank lines don't count); when a row is
bad, the block it came from is read a second time by Python's slow reader, which can.
"""

import codecs
import csv
import io
import itertools
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO

import numpy as np
import pyarrow as pa
from pyarrow import csv as arrow_csv

from adagrad.cli.errors import CliError
from adagrad.cli.kernels.scanning import last_break

__all__ = ["CsvBlock", "delimiter_hint", "read_csv"]

_BLOCK = 1 << 20  # bytes read at a time: enough to be fast, few enough that some blocks ahead are no memory
_DELIMITERS = {";": "';'", "\t": "$'\\t'", "|": "'|'"}  # that are likely, as a shell wants them
_LONGEST = 64 << 20  # bytes of one record; a longer one is a quote that somebody forgot to close
_NUMBER = r"[-+]?[\d.]+"
_ROWS = {  # how a row of other text begins, which no header would
    "svmlight": re.compile(rf"\s*{_NUMBER}(\s+(qid:)?\d+:{_NUMBER})+"),
    "vw": re.compile(rf"\s*{_NUMBER}\s+({_NUMBER}\s+)?('?[^\s|]*\s*)?\|"),
}


class CsvBlock:
    """Some whole records of a CSV file.

    Attributes
    ----------
    name : str
        The file, as messages call it.
    rows : int
        Records with as many fields as the header.
    dropped : int
        Records with another number of fields, left out.
    columns : list of str
        The names of the columns that were kept.
    position : int
        Bytes of the file read so far, as they lie on the disk.
    typed : bool
        False: every value is the text that stood in the file.
    """

    typed = False

    def __init__(self, name: str, data: bytes, line: int, header: "_Header", wanted: list[str], skip_bad: bool) -> None:
        self.name, self.dropped, self.position = name, 0, 0
        self.columns = wanted
        self._data, self._line, self._header = data, line, header
        try:
            table = _parse(data, header, wanted)
        except pa.ArrowInvalid as error:
            ragged = [(row, at) for row, at in self._records() if len(row) != len(header.columns)]
            if not ragged:
                raise CliError(f"{name}, from line {line} on: {str(error).splitlines()[0]}") from error
            if not skip_bad:
                found, (first, _) = len(ragged[0][0]), ragged[0][1]
                raise CliError(
                    f"{name}, line {line + first}: {found} columns where the header has {len(header.columns)} "
                    f"(--bad-rows skip leaves such rows out){delimiter_hint(header.columns)}"
                ) from None
            self.dropped = len(ragged)
            table = _parse(_without(data, [at for _, at in ragged]), header, wanted)
        self.rows: int = table.num_rows
        self._arrays: dict[str, pa.Array] = {column: table.column(column).combine_chunks() for column in wanted}

    def column(self, name: str) -> pa.Array:
        """The values of a column, binary (rows,)."""
        return self._arrays[name]

    def where(self, row: int) -> str:
        """``"FILE, line N"`` for a row of this block."""
        good = (start for fields, (start, _) in self._records() if len(fields) == len(self._header.columns))
        return f"{self.name}, line {self._line + next(itertools.islice(good, row, None))}"

    def _records(self) -> Iterator[tuple[list[str], tuple[int, int]]]:
        """The fields of each record that is not a blank line, with the lines of the block that it spans."""
        csv.field_size_limit(sys.maxsize)
        reader = csv.reader(_lines(self._data.decode("latin-1")), delimiter=self._header.delimiter)
        start = 0
        for fields in reader:
            if fields:
                yield fields, (start, reader.line_num)
            start = reader.line_num


def delimiter_hint(columns: Sequence[str]) -> str:
    """``"; try --delimiter ..."`` to end a message with, if the header is a single field that seems to hold several.

    Or ``--format``, if it is no header, but a row of SVMlight or Vowpal Wabbit text.
    """
    if columns:
        for form, row in _ROWS.items():
            if row.match(columns[0]):
                return f"; try --format {form}"
    found = [shown for mark, shown in _DELIMITERS.items() if len(columns) == 1 and mark in columns[0]]
    return f"; try --delimiter {found[0]}" if found else ""


def _parse(data: bytes, header: "_Header", wanted: list[str]) -> pa.Table:
    """The wanted columns, binary; raises ``ArrowInvalid`` if a record has another number of fields than the header."""
    if not data.strip():
        return pa.table({name: pa.array([], pa.binary()) for name in wanted})
    # Arrow's threads may let go of the buffer last, when Python is no longer there to take it back: so it is Arrow's own.
    buffer = pa.allocate_buffer(len(data))
    memoryview(buffer).cast("B")[:] = data
    # A table's columns need names: those that the header leaves empty are never asked for.
    names = [column or f"\0{i}" for i, column in enumerate(header.columns)]
    return arrow_csv.read_csv(
        pa.BufferReader(buffer),
        # One block, or Arrow refuses a record that is longer than one.
        read_options=arrow_csv.ReadOptions(column_names=names, block_size=len(data)),
        parse_options=arrow_csv.ParseOptions(delimiter=header.delimiter, newlines_in_values=b'"' in data),
        convert_options=arrow_csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.binary()), strings_can_be_null=False, include_columns=wanted
        ),
    )


def _lines(text: str) -> io.StringIO:
    return io.StringIO(text, newline="")


def _without(data: bytes, spans: list[tuple[int, int]]) -> bytes:
    """``data`` without the lines of the spans."""
    lines = list(_lines(data.decode("latin-1")))
    for start, stop in spans:
        lines[start:stop] = [""] * (stop - start)
    return "".join(lines).encode("latin-1")


class _Header:
    """The first record of a file: the names of its columns ("" where it gives none), and the delimiter.

    ``size`` is the number of its bytes, ``lines`` of its lines, blank lines before it included.
    """

    def __init__(self, name: str, data: bytes, delimiter: str) -> None:
        if b"\0" in data[:65536]:
            raise CliError(f"{name} is neither CSV in UTF-8 nor Parquet: it holds zero bytes")
        start = len(codecs.BOM_UTF8) if data.startswith(codecs.BOM_UTF8) else 0
        stream = _lines(data[start:].decode("latin-1"))  # a character a byte, to know where it ends
        reader = csv.reader(stream, delimiter=delimiter)
        fields = next(filter(None, reader), [])
        self.delimiter, self.size, self.lines = delimiter, start + stream.tell(), reader.line_num
        try:
            self.columns = [field.encode("latin-1").decode() for field in fields]
        except UnicodeDecodeError as error:
            raise CliError(f"{name}, line {self.lines}: the header is not UTF-8") from error
        named = [column for column in self.columns if column]
        if not named:
            raise CliError(f"{name}: there is no header with the names of the columns")
        for column in named:
            if named.count(column) > 1:
                raise CliError(f"{name}, line {self.lines}: the header has the column {column!r} twice")


def _line_breaks(data: bytes) -> int:
    return data.count(b"\n") or data.count(b"\r")


def _end_of_records(data: bytes, delimiter: int) -> tuple[int, int]:
    """`last_break`, by a plain search where there is no quote."""
    if b'"' in data:
        return last_break(np.frombuffer(data, np.uint8), delimiter)
    end = data.rfind(b"\n") + 1
    return end or data.rfind(b"\r", 0, -1) + 1, -1


def read_csv(
    name: str,
    file: BinaryIO,
    position: Callable[[], int],
    *,
    delimiter: str,
    choose: Callable[[str, list[str]], list[str]],
    skip_bad: bool,
) -> Iterator[CsvBlock]:
    """The blocks of one CSV file.

    Parameters
    ----------
    name : str
        What messages call the file.
    file : binary file
        Read once, from where it stands to its end.
    position : callable
        Bytes read so far on the disk, for the progress bar.
    delimiter : str
        One ASCII character between fields.
    choose : callable
        From the file's name and its columns, the columns to keep; raises if one is missing.
    skip_bad : bool
        Count and leave out records with the wrong number of fields; else they raise `CliError` with the line.
    """
    header: _Header | None = None
    rest, line, ended = b"", 1, False
    while not ended:
        read = file.read(_BLOCK)
        ended = not read
        data = rest + read
        end, opened = _end_of_records(data, ord(delimiter))
        if opened >= 0 and (ended or len(data) > _LONGEST):
            raise CliError(f"{name}, line {line + _line_breaks(data[:opened])}: the quote that opens here is not closed")
        end = len(data) if ended else end
        block, rest = data[:end], data[end:]
        if header is None and block.strip():
            header = _Header(name, block, delimiter)
            block, line = block[header.size :], line + header.lines
        if header is not None and block.strip():
            columns = choose(name, header.columns)
            parsed = CsvBlock(name, block, line, header, columns, skip_bad)
            parsed.position = position()
            yield parsed
        line += _line_breaks(block)
    if header is None:
        raise CliError(f"{name} is empty")
