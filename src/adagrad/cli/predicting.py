"""``adagrad predict``: rows in, predictions out, chunk by chunk, to CSV or Parquet."""

import gzip
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from pyarrow import csv, parquet

from adagrad.cli.bad import BadRows
from adagrad.cli.blocks import Chunk, Part
from adagrad.cli.columns import words
from adagrad.cli.errors import CliError
from adagrad.cli.features import Values
from adagrad.cli.files import replacing
from adagrad.cli.labels import CLASSIFICATION
from adagrad.cli.model import Model
from adagrad.cli.progress import Progress
from adagrad.cli.reading import Reader, names_in
from adagrad.cli.sources import CSV, SVMLIGHT, VW
from adagrad.cli.sparsefile import INDICES, NAMES, kind_of
from adagrad.cli.training import CHUNK

__all__ = ["predict", "prediction_columns"]

_FORMS = {INDICES: SVMLIGHT, NAMES: VW}
_PARQUET = (".parquet", ".pq")
_ENDINGS = (".csv", ".csv.gz", *_PARQUET)


def prediction_columns(model: Model) -> list[str]:
    """The names of the columns that are written: ``p_<class>`` or ``margin_<class>`` for each class, or ``prediction``."""
    if model.labels.task != CLASSIFICATION:
        return ["prediction"]
    return [f"{'margin' if model.labels.margins else 'p'}_{c}" for c in model.labels.classes]


def predict(
    model_path: str,
    data: Sequence[str],
    out: str,
    keep: Sequence[str],
    *,
    form: str | None = None,
    delimiter: str | None = None,
    skip_bad: bool = False,
) -> tuple[int, int, float]:
    """Write a prediction for every row, after the columns ``keep``.

    Returns the number of rows written, that of rows left out, and the share of their category values that training never
    saw.

    ``out`` is a file, by its ending Parquet, CSV or gzipped CSV, or "-", standard output; ``keep`` is read as
    `adagrad.cli.reading.names_in` says. The rows need no target. A text file whose name does not say how it is written is
    read as that which the model was learned from.
    """
    if out != "-" and not out.lower().endswith(_ENDINGS) and not (os.path.exists(out) and not os.path.isfile(out)):
        raise CliError(f"--out {out}: it must end in {', '.join(_ENDINGS)}, or be - for standard output")
    model = Model.load(model_path)
    names = prediction_columns(model)

    def kept_in(header: Sequence[str]) -> list[str]:
        found = names_in(keep, header)
        for name in found:
            if name in names or found.count(name) > 1:
                raise CliError(f"--keep {name}: the output would have two columns of this name")
        return found

    def needed(header: Sequence[str]) -> list[str]:
        return list(dict.fromkeys([*model.features.names, *kept_in(header)]))

    is_parquet = out.lower().endswith(_PARQUET)
    usual = _FORMS.get(model.features.columns[-1].kind, CSV)
    reader = Reader(data, needed=needed, form=form, usual=usual, delimiter=delimiter, skip_bad=skip_bad)
    rows = dropped = ragged = unseen = entries = 0
    try:
        with ExitStack() as stack:
            writer: _Writer | None = None
            progress = stack.enter_context(Progress(reader.total_bytes))
            file = stack.enter_context(_opened(out))
            for chunk in stack.enter_context(closing(reader.chunks(CHUNK))):
                ragged = chunk.dropped
                if not len(chunk):
                    continue
                kept, values = _usable(model, chunk, skip_bad)
                dropped += len(chunk) - len(kept)
                if not len(kept):
                    continue
                x = model.features.matrix(values)
                prediction = model.predict(x)
                new, total = model.features.unseen(x)
                unseen, entries = unseen + new, entries + total
                table = _table(kept, kept_in(reader.header), names, prediction, writer.schema if writer else None)
                if writer is None:
                    writer = stack.enter_context(_Writer(file, table.schema, is_parquet))
                writer.write(table)
                rows += len(kept)
                progress.show(rows, chunk.position)
            if writer is None:
                left = "no row is left to predict" if dropped + ragged else "there is no row of data"
                raise CliError(f"{', '.join(data)}: {left}")
    except KeyboardInterrupt:
        raise CliError(f"stopped after {rows:,} rows, nothing was written", 130) from None
    except pa.ArrowException as error:
        raise CliError(f"{out}: {str(error).splitlines()[0]}") from error
    return rows, dropped + ragged, unseen / max(1, entries)


def _usable(model: Model, chunk: Chunk, skip_bad: bool) -> tuple[Chunk, Values]:
    """The chunk without its bad rows, and the values of its features."""
    bad = BadRows(chunk)
    values = model.features.values(chunk, bad)
    if not skip_bad:
        bad.refuse()
    if bad.mask.any():
        chunk, values = chunk.select(~bad.mask), values.select(~bad.mask)
    return chunk, values


def _table(
    chunk: Chunk, keep: Sequence[str], names: Sequence[str], prediction: np.ndarray, schema: pa.Schema | None
) -> pa.Table:
    """The rows to write; what is kept has the types of ``schema``, of the first part if there is none yet."""
    columns = {}
    for name in keep:
        kept = [_kept(part, name) for part in chunk.parts]
        wanted = schema.field(name).type if schema else kept[0].type
        for place, part in enumerate(chunk.parts):
            try:
                kept[place] = kept[place].cast(wanted)
            except pa.ArrowException as error:
                found = f"the type is {kept[place].type}, which --keep can't turn into {wanted}, that of the rows before"
                raise CliError(f"{part.block.name}, column {name!r}: {found}") from error
        columns[name] = pa.chunked_array(kept)
    columns |= {name: pa.array(column) for name, column in zip(names, prediction.reshape(len(chunk), -1).T, strict=True)}
    return pa.table(columns)


def _kept(part: Part, name: str) -> pa.Array:
    """A column as it is written again: of its own type, text where it came from a CSV."""
    array = part.column(name)
    if part.block.typed:
        return array
    if kind_of(array):
        raise CliError(f"--keep {name}: features with their values can't be copied")
    try:
        return words(array, "text").cast(pa.string())
    except pa.ArrowInvalid:
        row = next(row for row, value in enumerate(array.to_pylist()) if not _is_utf8(value))
        raise CliError(f"{part.where(row)}, column {name!r}: the text is not UTF-8, so --keep can't copy it") from None


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


@contextmanager
def _opened(out: str) -> Iterator[BinaryIO]:
    if out == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
    else:
        with replacing(Path(out)) as file, ExitStack() as stack:
            packed = out.lower().endswith(".gz")
            yield stack.enter_context(gzip.GzipFile("", "wb", fileobj=file, mtime=0)) if packed else file  # type: ignore[misc]


class _Writer:
    """A CSV or Parquet writer over an open file, which it leaves open."""

    def __init__(self, file: BinaryIO, schema: pa.Schema, is_parquet: bool) -> None:
        self.schema = schema
        self._sink = pa.PythonFile(file, mode="w")
        self._writer: Any = parquet.ParquetWriter(self._sink, schema) if is_parquet else csv.CSVWriter(self._sink, schema)

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is None:
            self._writer.close()

    def write(self, table: pa.Table) -> None:
        """Append a table; its columns are cast to the types of the first one."""
        self._writer.write_table(table.cast(self.schema))
