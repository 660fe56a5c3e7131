"""Rows from files: the same ones whatever holds them, in chunks of one size, with a way back to the line of each."""

import csv
import gzip
import io
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from adagrad.cli import csvfile
from adagrad.cli.errors import CliError
from adagrad.cli.reading import Reader


def rows_of(*paths: Path, size: int = 1000, **options: Any) -> list[tuple[Any, ...]]:
    """All rows, as text."""
    rows: list[tuple[Any, ...]] = []
    for chunk in Reader([str(path) for path in paths], **options).chunks(size):
        for part in chunk.parts:
            columns = [part.column(name).cast(pa.string()).to_pylist() for name in part.block.columns]
            rows += zip(*columns, strict=True)
    return rows


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of a few records, so that their ends fall everywhere."""
    monkeypatch.setattr(csvfile, "_BLOCK", 37)


# Without "\r", which Python's writer does not quote and every reader takes for a line's end; see the test below.
FIELDS = st.text(st.characters(exclude_characters="\0\r", exclude_categories=["Cs"]), max_size=12)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(FIELDS, FIELDS), min_size=1, max_size=12),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    st.integers(1, 100),
    st.booleans(),
)
def test_any_csv_comes_back_as_pythons_reader_reads_it(
    rows: list[tuple[str, str]], line_end: str, quoting: int, block: int, bom: bool
) -> None:
    buffer = io.StringIO(newline="")
    csv.writer(buffer, lineterminator=line_end, quoting=quoting).writerows([("a", "b"), *rows])
    data = buffer.getvalue().encode("utf-8-sig" if bom else "utf-8")
    expected = [tuple(row) for row in csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""))][1:]
    before, csvfile._BLOCK = csvfile._BLOCK, block
    try:
        found = []
        lines = []
        blocks = csvfile.read_csv(
            "x", io.BytesIO(data), lambda: 0, delimiter=",", choose=lambda name, columns: columns, skip_bad=False
        )
        for part in blocks:
            found += zip(*[part.column(name).cast(pa.string()).to_pylist() for name in "ab"], strict=True)
            lines += [part.where(row) for row in range(part.rows)]
    finally:
        csvfile._BLOCK = before
    assert found == expected
    text = data.decode("utf-8-sig")
    reader = csv.reader(io.StringIO(text, newline=""))
    next(reader)
    numbers = []
    for _ in expected:
        numbers.append(f"x, line {reader.line_num + 1}")
        next(reader)
    assert lines == numbers


def test_text_as_it_stands(tmp_path: Path, small_blocks: None) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b'\n\na,b\r\n\r\n5" pipe,"x""y"\r\n"line\r\nbreak", q \r\n\r\n,"a,\rb"\r\nlast,z')
    assert rows_of(path) == [('5" pipe', 'x"y'), ("line\r\nbreak", " q "), ("", "a,\rb"), ("last", "z")]
    path.write_bytes(b"a,b\r1,2\r3,4\r")
    assert rows_of(path) == [("1", "2"), ("3", "4")]


def test_a_field_longer_than_a_block(tmp_path: Path) -> None:
    path, long = tmp_path / "t.csv", "x" * 3_000_000
    path.write_text(f'a,b\n{long},1\n"{long}, y",2\n')
    assert rows_of(path) == [(long, "1"), (f"{long}, y", "2")]


@pytest.mark.parametrize("size", [1, 7, 64, 1000])
def test_chunks_have_one_size_over_blocks_and_files(tmp_path: Path, small_blocks: None, size: int) -> None:
    paths, rows = [], []
    for k, count in enumerate([50, 3, 120]):
        part = [(f"{k}-{i}", str(i)) for i in range(count)]
        path = tmp_path / f"{k}.csv"
        path.write_text("a,b\n" + "".join(f"{a},{b}\n" for a, b in part))
        paths.append(str(path))
        rows += part
    chunks = list(Reader(paths).chunks(size))
    assert [len(chunk) for chunk in chunks] == [size] * (173 // size) + ([173 % size] if 173 % size else [])
    assert [chunk.first for chunk in chunks] == list(range(0, 173, size))
    assert rows_of(*map(Path, paths), size=size) == rows
    skipped = list(Reader(paths).chunks(size, skip=60))
    assert sum(map(len, skipped)) == 113
    assert skipped[0].first == 60
    assert skipped[0].parts[0].column("a")[0].as_py() == b"2-7"


def test_selected_rows_know_their_lines(tmp_path: Path, small_blocks: None) -> None:
    path = tmp_path / "t.csv"
    path.write_text("a\n" + "".join(f"row{i}\n" for i in range(40)))
    (chunk,) = Reader([str(path)]).chunks(100)
    keep = np.zeros(40, bool)
    keep[[3, 20, 39]] = True
    picked = chunk.select(keep)
    assert len(picked) == 3
    assert [picked.where(i) for i in range(3)] == [f"{path}, line {n}" for n in (5, 22, 41)]
    assert [v for part in picked.parts for v in part.column("a").to_pylist()] == [b"row3", b"row20", b"row39"]


@pytest.mark.parametrize("suffix", ["csv", "csv.gz", "parquet"])
def test_columns_are_chosen_by_name(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"t.{suffix}"
    if suffix == "parquet":
        parquet.write_table(pa.table({"a": ["1", "2"], "b": ["3", "4"], "c": ["5", "6"]}), path)
    else:
        data = b"a,b,c\n1,3,5\n2,4,6\n"
        path.write_bytes(gzip.compress(data) if suffix == "csv.gz" else data)
    assert rows_of(path, needed=["c", "a"]) == [("5", "1"), ("6", "2")]
    assert rows_of(path, ignore=["b"]) == [("1", "5"), ("2", "6")]
    assert Reader([str(path)]).count() == 2
    with pytest.raises(CliError, match="has no column 'z'; it has: a, b, c"):
        rows_of(path, needed=["a", "z"])


def test_a_folder_is_its_files_by_name(tmp_path: Path) -> None:
    (tmp_path / "day=2").mkdir()
    (tmp_path / "b.csv").write_text("a\n2\n")
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"a\n1\n"))
    (tmp_path / "day=2" / "part-0.parquet").write_bytes(b"")
    parquet.write_table(pa.table({"a": ["3"]}), tmp_path / "day=2" / "part-0.parquet")
    (tmp_path / "_SUCCESS").write_text("")
    (tmp_path / ".hidden.csv").write_text("a\n9\n")
    (tmp_path / "notes.txt").write_text("not data")
    assert rows_of(tmp_path) == [("1",), ("2",), ("3",)]
    assert Reader([str(tmp_path)]).count() == 3


def test_tabs_and_other_delimiters(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text("a\tb\nx,y\t2\n")
    (tmp_path / "t.csv").write_text("a;b\n1,5;2\n")
    assert rows_of(tmp_path / "t.tsv") == [("x,y", "2")]
    assert rows_of(tmp_path / "t.csv", delimiter=";") == [("1,5", "2")]


def test_a_named_pipe_is_read_once(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(b"a\n1\n2\n"))
    writer.start()
    reader = Reader([str(pipe)])
    assert reader.once
    assert reader.total_bytes is None
    assert sum(map(len, reader.chunks(10))) == 2
    writer.join()
    with pytest.raises(CliError, match="can be read only once"):
        next(reader.chunks(10))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "t.csv is empty"),
        (b"\n \n", "t.csv is empty"),
        (b"a,b,a\n", "t.csv, line 1: the header has the column 'a' twice"),
        (b",,\n1,2,3\n", "t.csv: there is no header"),
        (b"a,\xff\n1,2\n", "t.csv, line 1: the header is not UTF-8"),
        (b"a,b\0\n1,2\n", "t.csv is neither CSV in UTF-8 nor Parquet"),
        ("a,b\n1,2\n".encode("utf-16"), "t.csv is neither CSV in UTF-8 nor Parquet"),
        (b"a,b\n1,2\n\n3,4,5\n1\n", r"t.csv, line 4: 3 columns where the header has 2 \(--bad-rows skip"),
        (b'a,b\n1,"x\ny"\n1\n', "t.csv, line 4: 1 columns where the header has 2"),
        (b'a,b\n1,2\n3,"4\n5,6\n', "t.csv, line 3: the quote that opens here is not closed"),
        (b"PAR1 is no Parquet", "t.csv is damaged"),
        (gzip.compress(b"a\n" + b"1\n" * 1000, mtime=0)[:-9], "t.csv is damaged"),
        (gzip.compress(b"a\n1\n", mtime=0)[:-6] + b"xxxxxx", "t.csv is damaged"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(data)
    with pytest.raises(CliError, match=message):
        rows_of(path)


def test_damaged_parquet(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    parquet.write_table(pa.table({"a": [f"text {i % 7}" for i in range(30_000)]}), path, use_dictionary=False)
    data = path.read_bytes()
    path.write_bytes(data[:20] + b"\xff" * 500 + data[520:])
    with pytest.raises(CliError, match=r"t.parquet is damaged: "):
        rows_of(path)
    path.write_bytes(data[:-20])
    with pytest.raises(CliError, match=r"t.parquet is damaged: "):
        rows_of(path)


def test_ragged_rows_are_left_out_and_counted_and_lines_stay_right(tmp_path: Path, small_blocks: None) -> None:
    path = tmp_path / "t.csv"
    path.write_text('a,b\n1,2\nlonely\n"x\ny","z\n"\n1,2,3\n\n5,6\n7,8\nlast,one,"too\nlong"\n')
    chunks = list(Reader([str(path)], skip_bad=True).chunks(2))
    assert [len(chunk) for chunk in chunks] == [2, 2]
    assert chunks[-1].dropped == 3
    rows = rows_of(path, skip_bad=True)
    assert rows == [("1", "2"), ("x\ny", "z\n"), ("5", "6"), ("7", "8")]
    lines = [chunk.where(i) for chunk in chunks for i in range(len(chunk))]
    assert lines == [f"{path}, line {n}" for n in (2, 4, 9, 10)]


def test_ragged_rows_at_the_end_are_counted_too(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("a,b\n1,2\n3,4\n" + "5\n" * 3)
    *_, last = Reader([str(path)], skip_bad=True).chunks(2)
    assert last.dropped == 3


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["nowhere.csv"], "nowhere.csv: no such file or folder"),
        (["-", "x.csv"], "can't be mixed with files"),
        (["empty-folder"], "empty-folder: no file in this folder ends in .csv"),
    ],
)
def test_paths_that_lead_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, paths: list[str], message: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty-folder").mkdir()
    with pytest.raises(CliError, match=message):
        Reader(paths)


def test_a_folder_gives_its_data_but_no_results_and_nothing_hidden(tmp_path: Path) -> None:
    for name in ("a.csv", "in/b.csv", "in/.copy.csv", ".old/c.csv", "in/_tmp/d.csv", "model/curve.csv", "model/in/e.csv"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_text("x\n1\n")
    (tmp_path / "data" / "model" / "model.safetensors").touch()
    expected = [str(tmp_path / "data" / name) for name in ("a.csv", "in/b.csv")]
    assert Reader([str(tmp_path / "data")]).files == expected
    (tmp_path / "data" / "model.safetensors").touch()
    (tmp_path / "data" / "curve.csv").write_text("x\n1\n")
    assert Reader([str(tmp_path / "data")]).files == expected


def test_a_second_file_without_a_column_is_named(tmp_path: Path) -> None:
    (tmp_path / "1.csv").write_text("a,b\n1,2\n")
    (tmp_path / "2.csv").write_text("b,c\n2,3\n")
    chunks = Reader([str(tmp_path / "1.csv"), str(tmp_path / "2.csv")]).chunks(10)
    (chunk,) = chunks
    with pytest.raises(CliError, match=r"2.csv has no column 'a'; it has: b, c"):
        [part.column("a") for part in chunk.parts]


def test_the_reading_thread_ends_when_the_reader_is_left() -> None:
    assert not [thread for thread in threading.enumerate() if thread.name == "adagrad-reader"]


def test_a_parquet_file_with_a_column_twice_is_refused(tmp_path: Path) -> None:
    table = pa.table([pa.array([1]), pa.array([2]), pa.array([3])], names=["a", "b", "a"])
    parquet.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(CliError, match=r"t.parquet: the file has the column 'a' twice"):
        rows_of(tmp_path / "t.parquet")
