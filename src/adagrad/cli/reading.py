"""Rows from files: CSV, SVMlight or Vowpal Wabbit text (.gz too), Parquet, a folder, or standard input, in chunks of one size.

A chunk never depends on how the rows were stored: 65,536 rows are 65,536 rows, over the ends of files and blocks. So the
same rows give the same model, whether they come as one CSV file, as ten Parquet files or through a pipe. Files are read
ahead by a second thread, four blocks at most, so memory does not grow with them.
"""

import gzip
import hashlib
import io
import itertools
import os
import sys
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from typing import Any, BinaryIO

import pyarrow as pa
from pyarrow import parquet

from adagrad.cli.ahead import ahead
from adagrad.cli.blocks import Block, Chunk, ParquetBlock, Part
from adagrad.cli.csvfile import delimiter_hint, read_csv
from adagrad.cli.errors import CliError, explain
from adagrad.cli.sources import CSV, files_in, form_of
from adagrad.cli.sparsefile import read_sparse

__all__ = ["Reader", "names_in"]

Choose = Callable[[str, list[str]], list[str]]
Needed = Sequence[str] | Callable[[list[str]], Sequence[str]] | None


def names_in(values: Iterable[str], header: Sequence[str]) -> list[str]:
    """The column names in ``--option a,b --option c``; a value that is a column's name is never split."""
    names: list[str] = []
    for value in values:
        names += [value] if value in header else [part for part in value.split(",") if part]
    return names


class Reader:
    """The files of one command, read as often as it asks.

    Parameters
    ----------
    paths : sequence of str
        Files, folders (`adagrad.cli.sources`), or "-", standard input, alone.
    ignore : collection of str
        Columns that are not even looked at, as `names_in` reads them.
    needed : sequence of str or callable, optional
        The only columns to read, or a function that gives them from the header; each file must have them all. None: all
        columns of each file.
    form : str, optional
        How text files are written, one of `adagrad.cli.sources`; None: as the name says, else as is ``usual``.
    delimiter : str, optional
        Between the fields of a CSV; None: a tab in ``.tsv`` files, else a comma.
    skip_bad : bool
        Leave out, and count, CSV rows with the wrong number of fields, and lines that can't be parsed, instead of raising.

    Attributes
    ----------
    files : list of str
        The files that the paths stand for.
    once : bool
        Whether a file is standard input or another pipe, which can be read only once.
    header : list of str
        All columns of the first file, once it is read; "" for one without a name.
    """

    def __init__(
        self,
        paths: Sequence[str],
        *,
        ignore: Iterable[str] = (),
        needed: Needed = None,
        form: str | None = None,
        usual: str = CSV,
        delimiter: str | None = None,
        skip_bad: bool = False,
    ) -> None:
        if delimiter is not None and (len(delimiter) != 1 or not delimiter.isascii() or delimiter in '"\r\n\0'):
            raise CliError(f"--delimiter must be one ASCII character, got {delimiter!r}")
        self.files = files_in(paths)
        self.once = not all(os.path.isfile(path) for path in self.files)
        self.needed, self._ignore = needed, list(ignore)
        self._delimiter, self._skip_bad = delimiter, skip_bad
        self._forms = {path: form_of(path, form, usual) for path in self.files}
        if delimiter is not None and CSV not in self._forms.values():
            raise CliError(f"--delimiter is for CSV, but {self.files[0]} is read as {self._forms[self.files[0]]}")
        self._sizes = [os.path.getsize(path) if os.path.isfile(path) else 0 for path in self.files]
        self.header: list[str] = []
        self._used = False

    @property
    def total_bytes(self) -> int | None:
        """Bytes of all files; None for standard input and other pipes."""
        return None if self.once else sum(self._sizes)

    def chunks(self, size: int, skip: int = 0) -> Generator[Chunk]:
        """All rows in order, ``size`` at a time, after the first ``skip``; the last chunk holds what is left.

        It may hold no row at all, if ragged ones were left out at the end. Close the generator where it may be left
        early: a thread that is still reading must not see the interpreter go.
        """
        if self.once and self._used:
            raise CliError(f"{self.files[0]}: standard input and pipes can be read only once")
        self._used = True
        parts: list[Part] = []
        held, first, dropped, told, position = 0, skip, 0, 0, 0
        with closing(ahead(self._blocks(self.needed))) as blocks:
            for block in blocks:
                start = min(skip, block.rows)
                skip -= start
                dropped, position = dropped + block.dropped, block.position
                while start < block.rows:
                    stop = min(block.rows, start + size - held)
                    parts.append(Part(block, range(start, stop)))
                    held, start = held + stop - start, stop
                    if held == size:
                        yield Chunk(parts, first, dropped, position)
                        parts, held, first, told = [], 0, first + size, dropped
        if skip:
            raise CliError(f"{', '.join(self.files)}: {skip:,} rows fewer than had been read before")
        if held or dropped > told:
            yield Chunk(parts, first, dropped, position)

    def fingerprints(self) -> list[list[Any]]:
        """``[file, bytes, digest of its first MiB]`` of every file; of a pipe only its name."""
        found: list[list[Any]] = []
        for path, size in zip(self.files, self._sizes, strict=True):
            if not os.path.isfile(path):
                found.append([path])
                continue
            try:
                with open(path, "rb") as file:
                    found.append([path, size, hashlib.blake2b(file.read(1 << 20), digest_size=16).hexdigest()])
            except OSError as error:
                raise CliError(explain(error, path)) from error
        return found

    def check(self) -> bool:
        """Whether there may be rows; raises if a file can't be read or lacks a needed column. Pipes are not looked into."""
        if self.once:
            return True
        starts = []
        for before, path, size in self._places():
            with closing(self._file(path, before, size, self.needed)) as blocks:
                starts.append(next(blocks, None))
        return any(block is not None for block in starts)

    def count(self) -> int:
        """How many rows `chunks` will give; text files are read through for it, of Parquet files only the ends."""
        rows = 0
        for path in self.files:
            with ExitStack() as stack:
                if _is_parquet(path):
                    rows += stack.enter_context(_parquet(path)).metadata.num_rows
                else:
                    rows += sum(
                        block.rows for block in self._text(path, 0, lambda name, columns: [c for c in columns if c][:1])
                    )
        return rows

    def _places(self) -> Iterator[tuple[int, str, int]]:
        """``(bytes before it, file, its bytes)``."""
        return zip(itertools.accumulate(self._sizes, initial=0), self.files, self._sizes, strict=False)

    def _blocks(self, needed: Needed) -> Iterator[Block]:
        for before, path, size in self._places():
            yield from self._file(path, before, size, needed)

    def _file(self, path: str, before: int, size: int, needed: Needed) -> Generator[Block]:
        def choose(name: str, columns: list[str]) -> list[str]:
            self.header = self.header or columns
            if needed is None:
                ignored = names_in(self._ignore, columns)
                return [column for column in columns if column and column not in ignored]
            wanted = list(needed(self.header) if callable(needed) else needed)
            missing = [column for column in wanted if column not in columns]
            if missing:
                raise CliError(
                    f"{name} has no column {missing[0]!r}; it has: {', '.join(filter(None, columns))}{delimiter_hint(columns)}"
                )
            return wanted

        if _is_parquet(path):
            yield from self._parquet(path, before, size, choose)
        else:
            yield from self._text(path, before, choose)

    def _text(self, path: str, before: int, choose: Choose) -> Iterator[Block]:
        name = "standard input" if path == "-" else path
        with ExitStack() as stack:
            try:
                raw: Any = stack.enter_context(_standard_input()) if path == "-" else stack.enter_context(open(path, "rb"))
                file: BinaryIO = raw
                start = raw.peek(4)[:4]
                if start[:2] == b"\x1f\x8b":
                    file = stack.enter_context(gzip.GzipFile(fileobj=raw))  # type: ignore[assignment]
                elif start == b"PAR1":
                    raise CliError("Parquet can't be read from standard input: give the file's name")
                position = (lambda: 0) if self.once else (lambda: before + raw.tell())
                if self._forms[path] != CSV:
                    yield from read_sparse(name, file, position, form=self._forms[path], choose=choose, skip_bad=self._skip_bad)
                    return
                yield from read_csv(
                    name,
                    file,
                    position,
                    delimiter=self._delimiter or ("\t" if path.endswith((".tsv", ".tsv.gz")) else ","),
                    choose=choose,
                    skip_bad=self._skip_bad,
                )
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                raise CliError(f"{name} is damaged: {str(error).lower()}") from error
            except OSError as error:
                raise CliError(explain(error, name)) from error

    def _parquet(self, path: str, before: int, size: int, choose: Choose) -> Iterator[Block]:
        with ExitStack() as stack:
            file = stack.enter_context(_parquet(path))
            names = file.schema_arrow.names
            twice = [name for name in names if name and names.count(name) > 1]
            if twice:
                raise CliError(f"{path}: the file has the column {twice[0]!r} twice")
            columns = choose(path, names)
            first, total = 0, max(1, file.metadata.num_rows)
            try:
                for batch in file.iter_batches(batch_size=65_536, columns=columns):
                    yield ParquetBlock(path, batch, first, before + size * (first + batch.num_rows) // total)
                    first += batch.num_rows
            except (pa.ArrowException, OSError) as error:
                raise CliError(f"{path} is damaged: {_first_line(error)}") from error


def _standard_input() -> AbstractContextManager[BinaryIO]:
    """Standard input by a buffer of its own: Python aborts if it finds a thread still reading from that of `sys.stdin`."""
    try:
        descriptor = os.dup(sys.stdin.fileno())
    except io.UnsupportedOperation:  # it is no file, but an object that was put in its place
        return nullcontext(sys.stdin.buffer)
    return open(descriptor, "rb")


def _first_line(error: BaseException) -> str:
    return str(error).split("\n")[0]


def _is_parquet(path: str) -> bool:
    if not os.path.isfile(path):
        return False  # a pipe: reading from it would take the bytes away
    try:
        with open(path, "rb") as file:
            return file.read(4) == b"PAR1"
    except OSError as error:
        raise CliError(explain(error, path)) from error


def _parquet(path: str) -> parquet.ParquetFile:
    try:
        return parquet.ParquetFile(path, pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        raise CliError(f"{path} is damaged: {_first_line(error)}") from error
