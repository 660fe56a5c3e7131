"""What columns and targets are taken for, and how that is overridden."""

import datetime
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from adagrad.cli.blocks import Chunk
from adagrad.cli.errors import CliError
from adagrad.cli.labels import Labels, plan_labels
from adagrad.cli.reading import Reader
from adagrad.cli.roles import Column, Overrides, assign_roles


def first_chunk(path: Path, **options: Any) -> tuple[Reader, Chunk]:
    reader = Reader([str(path)], **options)
    (chunk,) = reader.chunks(65_536)
    return reader, chunk


def roles(path: Path, **overrides: Any) -> dict[str, tuple[str, str]]:
    reader, chunk = first_chunk(path, ignore=overrides.get("ignore", ()))
    columns = assign_roles(reader.header, chunk, Overrides(**{"target": "y", **overrides}))
    return {column.name: (column.kind, column.role) for column in columns}


COLUMNS = {
    "word": ["a", "", "b"],
    "flag": ["True", "", "false"],
    "ratio": ["1", "2.5", "NA"],
    "count": ["1", "-2", ""],
    "user_id": ["1", "2", "3"],
    "userID": ["1", "2", ""],
    "floating_id": ["1.0", "2.0", ""],
    "at": ["2024-01-01 10:00:00", "2024-01-02", "NA"],
    "day": ["2024-01-01", "", "2024-01-03"],
    "not_quite_a_day": ["2024-01-01", "", "2024-02-31"],
    "nothing": ["", "NA", ""],
    "y": ["0", "1", "1"],
}


def write(path: Path, columns: dict[str, list[str]]) -> Path:
    lines = [",".join(columns), *map(",".join, zip(*columns.values(), strict=True))]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_roles_of_text_columns(tmp_path: Path) -> None:
    assert roles(write(tmp_path / "t.csv", COLUMNS)) == {
        "word": ("text", "category"),
        "flag": ("boolean", "category"),
        "ratio": ("float", "number"),
        "count": ("integer", "number"),
        "user_id": ("integer", "category"),
        "userID": ("integer", "category"),
        "floating_id": ("float", "number"),
        "at": ("timestamp", "time"),
        "day": ("date", "time"),
        "not_quite_a_day": ("text", "category"),
        "nothing": ("empty", "category"),
        "y": ("integer", "target"),
    }


def test_roles_of_typed_columns(tmp_path: Path) -> None:
    moment = datetime.datetime(2024, 1, 1)
    table = pa.table(
        {
            "word": ["1", "2"],
            "dictionary": pa.array(["a", "b"]).dictionary_encode(),
            "flag": [True, None],
            "ratio": [1.0, None],
            "money": pa.array([1, 2], pa.int32()).cast(pa.decimal128(20, 2)),
            "count": pa.array([1, None], pa.int8()),
            "item_id": [1, 2],
            "at": [moment, None],
            "day": [moment.date(), None],
            "since": [datetime.timedelta(1), None],
            "tags": [["a", "b"], None],
            "vector": [[1.0, 2.0], None],
            "nested": [{"a": 1}, None],
            "blob": [b"\xff", None],
            "nothing": pa.nulls(2),
            "__index_level_0__": [5, 6],
            "y": [0.5, 1.5],
        }
    )
    parquet.write_table(table, tmp_path / "t.parquet")
    assert roles(tmp_path / "t.parquet") == {
        "word": ("text", "category"),
        "dictionary": ("text", "category"),
        "flag": ("boolean", "category"),
        "ratio": ("float", "number"),
        "money": ("float", "number"),
        "count": ("integer", "number"),
        "item_id": ("integer", "category"),
        "at": ("timestamp", "time"),
        "day": ("date", "time"),
        "since": ("integer", "number"),
        "tags": ("list", "list"),
        "vector": ("unusable", "ignored"),
        "nested": ("unusable", "ignored"),
        "blob": ("text", "category"),
        "nothing": ("empty", "category"),
        "__index_level_0__": ("integer", "ignored"),
        "y": ("float", "target"),
    }
    with pytest.raises(CliError, match="--categorical nested: its type is struct<a: int64>, which can't be used"):
        roles(tmp_path / "t.parquet", categorical=["nested"])
    for overrides, message in (
        ({"numeric": ["at"]}, "--numeric at: the column is of the kind timestamp, not a number"),
        ({"weight": "tags"}, "--weight tags: the column is of the kind list, not a number"),
        ({"timestamp": ["count"]}, "--timestamp count: the column is of the kind integer, not a time"),
    ):
        with pytest.raises(CliError, match=message):
            roles(tmp_path / "t.parquet", **overrides)
    assert roles(tmp_path / "t.parquet", categorical=["tags"])["tags"] == ("list", "list")


def test_roles_are_overridden(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", COLUMNS)
    found = roles(
        path, categorical=["ratio"], numeric=["user_id", "nothing"], timestamp=["word"], ignore=["flag"], weight="count"
    )
    chosen = {name: role for name, (_, role) in found.items()}
    assert [chosen[name] for name in ("ratio", "user_id", "nothing", "word", "flag", "count")] == [
        "category", "number", "number", "time", "ignored", "weight",
    ]  # fmt: skip


def test_a_column_without_a_name_and_mostly_numbers_are_pointed_out(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(",x,y\n" + "".join(f"{i},{i if i else 'oops'},{i % 2}\n" for i in range(20)))
    reader, chunk = first_chunk(path)
    columns = assign_roles(reader.header, chunk, Overrides("y", categorical=["x"]))
    assert columns[0] == Column("", "unread", "ignored", "it has no name")
    assert columns[1] == Column("x", "text", "category", "--categorical; though 19 of 20 values are numbers")


MISTAKES = {
    "x": ["1.5"] * 9 + ["oops"],
    "at": ["2024-01-01"] * 8 + ["soon", "2024-01-01"],
    "user_id": ["7"] * 9 + ["guest"],
    "few": ["1"] * 8 + ["a", "b"],
    "y": ["1"] * 5 + ["0"] * 4 + ["?"],
}


def test_a_few_mistakes_do_not_change_what_a_column_is(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", MISTAKES)
    said = {"categorical": ["x", "at"], "task": "classification"}
    assert roles(path, skip_bad=True) == {
        "x": ("float", "number"),
        "at": ("date", "time"),
        "user_id": ("text", "category"),
        "few": ("text", "category"),
        "y": ("integer", "target"),
    }
    assert roles(path, **said)["x"] == ("text", "category")
    assert roles(path, **said)["y"] == ("text", "target")
    assert roles(path, **{**said, "task": "regression"})["y"] == ("integer", "target")
    for changed, message in (
        ({"categorical": ["at"]}, "t.csv, line 11, column 'x': 'oops' is not a number, but 9 of 10 values are numbers "
         "(--bad-rows skip leaves such rows out, --categorical x takes it for text)"),
        ({"categorical": ["x"]}, "t.csv, line 10, column 'at': 'soon' is not a time (YYYY-MM-DD hh:mm:ss), but 9 of 10 values "
         "are times (--bad-rows skip leaves such rows out, --categorical at takes it for text)"),
        ({"task": None}, "t.csv, line 11, column 'y': '?' is not a number, but 9 of 10 values are numbers "
         "(--bad-rows skip leaves such rows out, --task classification takes all values for classes)"),
    ):  # fmt: skip
        with pytest.raises(CliError) as caught:
            roles(path, **{**said, **changed})
        assert str(caught.value) == f"{tmp_path}/{message}"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"target": "z"}, "--target: no column 'z' in .*t.csv; it has: word, flag"),
        ({"target": "ratios"}, "--target: no column 'ratios' in .*t.csv; did you mean 'ratio'"),
        ({"categorical": ["z"]}, "--categorical: no column 'z'"),
        ({"ignore": ["z"]}, "--ignore: no column 'z'"),
        ({"weight": "z"}, "--weight: no column 'z'"),
        ({"categorical": ["word"], "numeric": ["word"]}, "--numeric word: the column already has a role by --categorical"),
        ({"ignore": ["y"]}, "--ignore y: the column already has a role by --target"),
    ],
)
def test_roles_that_can_not_be(tmp_path: Path, overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(CliError, match=message):
        roles(write(tmp_path / "t.csv", COLUMNS), **overrides)


# ---- the target ------------------------------------------------------------------------------------------------------


def labels(values: list[str], task: str | None = None, classes: list[str] | None = None, rows: int = 4) -> Labels:
    """The labels planned for a target column of a CSV that holds these values, the first ``rows`` in the first chunk."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.csv"
        path.write_text("y,x\n" + "".join(f"{value},1\n" for value in values))
        reader, chunk = first_chunk(path)
        (target, _) = assign_roles(reader.header, chunk, Overrides("y"))
        again = lambda: Reader([str(path)], needed=["y"]).chunks(2)  # noqa: E731
        return plan_labels(chunk.head(rows), chunk.head(rows), target, None, task, classes or [], again)


@pytest.mark.parametrize(
    ("values", "classes"),
    [
        (["b", "a", "b"], ["a", "b"]),
        (["b", "a", "c"], ["a", "b", "c"]),
        (["True", "false", "TRUE"], ["false", "true"]),
        (["1", "0", "1"], ["0", "1"]),
        (["-1", "1"], ["-1", "1"]),
        (["10", "9", "2"], ["2", "9", "10"]),
        (["1.0", "0.0", ""], ["0", "1"]),
        (["1", "1.0", "2"], ["1", "2"]),
        (["a"] * 6 + ["b"], ["a", "b"]),  # the second class comes after the first chunk
    ],
)
def test_classes_of_any_kind(values: list[str], classes: list[str]) -> None:
    found = labels(values)
    assert (found.task, found.classes) == ("classification", classes)


def test_numbers_are_regression_and_scaled_by_the_first_chunk() -> None:
    found = labels(["1.5", "2.5", "", "3.5", "1000"])
    assert (found.task, found.classes, found.mean) == ("regression", [], 2.5)
    assert found.deviation == pytest.approx((2 / 3) ** 0.5)
    assert labels([str(i) for i in range(40)], task="regression").task == "regression"
    assert labels(["7", "7", "7"], task="regression").deviation == 1.0


def test_the_task_is_overridden() -> None:
    assert labels(["0", "1"], task="regression").task == "regression"
    assert labels(["0.5", "1.5", "2.5"], task="classification").classes == ["0.5", "1.5", "2.5"]
    assert labels(["0", "1"], classes=["1", "0", "2.0"]).classes == ["0", "1", "2"]
    assert labels(["a", "b"], classes=["c", "a", "b"]).classes == ["a", "b", "c"]
    assert labels(["true", "false"], classes=["True", "False"]).classes == ["false", "true"]


def test_many_whole_numbers_are_a_number() -> None:
    values = [str(i) for i in range(11)]
    assert labels(values, rows=11).task == "regression"
    ten = labels(values[:10], rows=10)
    assert (ten.task, len(ten.classes)) == ("classification", 10)
    assert "--task regression for a number" in ten.reason


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (["a", "a", ""], {}, "--target y: there is only the class 'a'"),
        (["1"] * 9, {}, "--target y: there is only the class '1'"),
        (["", "NA", ""], {}, "--target y: the column has no value in the first rows"),
        (["2024-01-01"] * 3, {}, "--target y: the column has the type date"),
        (["a", "b"], {"classes": ["a"]}, "--classes needs two or more different classes, got a"),
        (["a", "b"], {"classes": ["a", "a"]}, "--classes needs two or more different classes, got a, a"),
        (["1", "2"], {"classes": ["1", "x"]}, "--classes: the target's values are numbers, and 'x' is none"),
        (["1.5", "2"], {"task": "regression", "classes": ["1", "2"]}, "--classes is for classification"),
        (["1e300", "-1e300"], {"task": "regression"}, "there is no number in the first rows, smaller than 1e\\+140"),
        (["a", "b"], {"task": "regression"}, "--target y: there is no number in the first rows"),
    ],
)
def test_targets_that_can_not_be_learned(values: list[str], options: dict[str, Any], message: str) -> None:
    with pytest.raises(CliError, match=message):
        labels(values, **options)
