"""The same column in other files: numbers written otherwise, values never seen, types that don't fit."""

import datetime
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from adagrad.cli.columns import hashes
from cli_tools import clicks, fast_pictures, read_csv, run, succeed, write_csv  # noqa: F401

SMALL = ["--bits", "12"]


def test_a_whole_number_is_one_category_however_it_is_written() -> None:
    written = [b"1", b"1.0", b"1.00", b"-20.0", b"-20", b"1.05", b"v1.0", b"", None]
    found = hashes(pa.array(written, pa.binary()), "integer", 7).tolist()
    assert found[0] == found[1] == found[2]
    assert found[3] == found[4]
    assert found[7] == found[8]
    assert len(set(found)) == 5
    assert hashes(pa.array([1, -20]), "integer", 7).tolist() == [found[0], found[4]]
    assert hashes(pa.array([1.0, -20.0]), "integer", 7).tolist() == [found[0], found[4]]
    text = hashes(pa.array(written, pa.binary()), "text", 7).tolist()
    assert text[0] != text[1]


def test_values_never_seen_in_training_are_counted(tmp_path: Path) -> None:
    table = {"y": [0, 1] * 200, "user_id": [1, 2, 3, 4] * 100, "x": list(range(400))}
    train = write_csv(tmp_path / "train.csv", table)
    new = {"y": [0, 1] * 20, "user_id": [f"{k}.0" for k in (1, 2, 3, 99)] * 10, "x": [5] * 40}
    test = write_csv(tmp_path / "test.csv", new)
    result = succeed("train", train, "--target", "y", "--test", test, *SMALL, "--out", tmp_path / "m")
    assert f"Held out: 40 rows, {test}; 25.0% of their category values were never seen in training" in result.out
    assert json.loads((tmp_path / "m" / "metrics.json").read_text())["held_out"]["unseen"] == 0.25
    predicted = succeed("predict", tmp_path / "m", test)
    assert predicted.err == "40 rows predicted; 25.0% of their category values were never seen in training\n"
    p = read_csv(predicted.out)["p_1"]
    assert p[0] == read_csv(succeed("predict", tmp_path / "m", write_csv(test, {**new, "user_id": [1] * 40})).out)["p_1"][0]


LIST, DAY = [["a"]] * 30, [datetime.date(2024, 1, 1)] * 30


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("price", LIST, "a number can't be made of the type list<"),
        ("price", DAY, "a number can't be made of the type date32[day]"),
        ("site", LIST, "a category can't be made of the type list<"),
        ("when", [7] * 30, "a time can't be made of the type int64"),
        ("click", LIST, "a number can't be made of the type list<"),
    ],
)
def test_a_type_that_does_not_fit_is_named(tmp_path: Path, column: str, values: list[Any], message: str) -> None:
    first = write_csv(tmp_path / "1.csv", clicks(300))
    table = {**clicks(30), column: values}
    second = tmp_path / "2.parquet"
    parquet.write_table(pa.table(table), second)
    succeed("train", first, "--target", "click", *SMALL, "--out", tmp_path / "m")
    commands: list[list[Any]] = [["train", first, second, "--target", "click", *SMALL, "--out", tmp_path / "n"]]
    if column != "click":
        commands.append(["predict", tmp_path / "m", second, "--out", tmp_path / "p.csv"])
    for command in commands:
        result = run(*command)
        assert (result.code, result.err.count("\n")) == (1, 1)
        assert result.err.startswith(f"adagrad: {second}, column '{column}': {message}")


def test_a_kept_column_of_another_type_is_named(tmp_path: Path) -> None:
    first = write_csv(tmp_path / "1.csv", clicks(300))
    succeed("train", first, "--target", "click", *SMALL, "--out", tmp_path / "m")
    paths = []
    for name, values in (("2", [1] * 30), ("3", LIST)):
        paths.append(tmp_path / f"{name}.parquet")
        parquet.write_table(pa.table({**clicks(30), "when": clicks(30)["site"], "note": values}), paths[-1])
    model = ["predict", tmp_path / "m", *paths, "--keep", "note", "--bad-rows", "skip"]
    succeed("train", *paths[:1], "--target", "click", "--ignore", "when,note", *SMALL, "--out", tmp_path / "m")
    result = run(*model, "--out", tmp_path / "p.csv")
    assert result.code == 1
    assert result.err.startswith(f"adagrad: {paths[1]}, column 'note': the type is list<")
    assert "which --keep can't turn into int64, that of the rows before" in result.err
