"""The generated click log: its true loss is that of the rows in the file, and a linear model closes in on it."""

import math
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import csv

from adagrad.cli import synthetic
from adagrad.cli.synthetic import CHUNK_ROWS, write_clicks


def read(path: Path) -> pa.Table:
    return csv.read_csv(path).cast(synthetic.SCHEMA) if path.suffix == ".csv" else pq.read_table(path)


def probability(row: dict, model: synthetic._Model) -> float:
    """Return the true probability of a click from the cells of one row of the file."""
    z = model.intercept + model.user[row["user_id"]] + model.item[row["item_id"]]
    z += model.site[int(row["site"].removeprefix("site").removesuffix(".example"))]
    z += model.device[["phone", "desktop", "tablet", "tv"].index(row["device"])]
    z += model.position * row["position"] + model.price * row["price"]
    z += model.missing_age if row["age"] is None else model.age * row["age"]
    return 1.0 / (1.0 + math.exp(-z))


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("model_seed", [0, 5])
def test_the_true_loss_is_that_of_the_rows_in_the_file(tmp_path: Path, suffix: str, model_seed: int) -> None:
    path = tmp_path / f"clicks{suffix}"
    loss = write_clicks(path, 3000, 11, model_seed=model_seed)
    rows = read(path).to_pylist()
    model = synthetic._Model.draw(model_seed)
    p = [probability(row, model) for row in rows]
    clicks = [row["click"] for row in rows]
    expected = math.fsum(-q * math.log(q) - (1 - q) * math.log1p(-q) for q in p) / 3000
    realized = math.fsum(-math.log(q if y else 1 - q) for q, y in zip(p, clicks, strict=True)) / 3000
    assert (loss.rows, loss.clicks) == (3000, sum(clicks))
    assert loss.expected == pytest.approx(expected, rel=1e-12)
    assert loss.realized == pytest.approx(realized, rel=1e-12)
    assert any(row["age"] is None for row in rows)


def test_the_labels_are_drawn_with_the_true_probabilities(tmp_path: Path) -> None:
    """Realized less expected loss is a mean of independent zero-mean terms: within 4 of its standard deviations."""
    path = tmp_path / "clicks.parquet"
    loss = write_clicks(path, 40_000, 2)
    model = synthetic._Model.draw(0)
    p = np.array([probability(row, model) for row in read(path).to_pylist()])
    deviation = math.sqrt(np.sum(p * (1 - p) * np.log(p / (1 - p)) ** 2)) / 40_000
    assert abs(loss.realized - loss.expected) < 4 * deviation
    assert abs(loss.clicks - p.sum()) < 4 * math.sqrt(np.sum(p * (1 - p)))


def test_a_longer_file_begins_with_a_shorter_one(tmp_path: Path) -> None:
    short, long = tmp_path / "short.csv", tmp_path / "long.csv"
    write_clicks(short, CHUNK_ROWS + 7, 4)
    told: list[int] = []
    write_clicks(long, 2 * CHUNK_ROWS + 1, 4, progress=told.append)
    assert long.read_bytes().startswith(short.read_bytes())
    assert told == [CHUNK_ROWS, 2 * CHUNK_ROWS, 2 * CHUNK_ROWS + 1]
    assert long.read_bytes().count(b"\n") == 1 + 2 * CHUNK_ROWS + 1
    assert not read(long).slice(CHUNK_ROWS, 100).equals(read(long).slice(0, 100))  # no chunk is drawn twice


def test_the_same_seeds_give_the_same_bytes_and_others_do_not(tmp_path: Path) -> None:
    path = tmp_path / "clicks.csv"
    made = []
    for seed, model_seed in ((1, 0), (1, 0), (2, 0), (1, 1)):
        loss = write_clicks(path, 500, seed, model_seed=model_seed)
        made.append((loss, path.read_bytes()))
    assert made[0] == made[1]
    assert len({content for _, content in made}) == 3
    # Another model with the same seed: the same people see the same things, and click on others.
    columns = [[line.split(b",")[1:] for line in content.splitlines()] for _, content in made]
    assert columns[0] == columns[3] != columns[2]


def test_ids_are_zipf_like(tmp_path: Path) -> None:
    path = tmp_path / "clicks.parquet"
    write_clicks(path, CHUNK_ROWS, 8)
    table = read(path)
    for name, n in (("user_id", synthetic._USERS), ("item_id", synthetic._ITEMS)):
        ids = table[name].to_numpy()
        assert ids.min() == 0
        assert ids.max() < n
        for k in (1, 2, 10):
            share = math.log((k + 1) / k) / math.log(n + 1)
            count = np.count_nonzero(ids == k - 1)
            assert abs(count - CHUNK_ROWS * share) < 4 * math.sqrt(CHUNK_ROWS * share)


def test_a_linear_model_comes_nearer_to_the_true_loss_with_more_rows(tmp_path: Path) -> None:
    """Online Adagrad over the columns of the file: its excess over the realized loss falls from one third to the next."""
    path = tmp_path / "clicks.parquet"
    rows = 60_000
    write_clicks(path, rows, 6)
    table = read(path)
    codes, start = [], 0
    for name in ("user_id", "item_id", "site", "device", "position"):
        column = table[name].combine_chunks().dictionary_encode()
        codes.append(column.indices.to_numpy() + start)
        start += len(column.dictionary)
    features = np.stack(codes, axis=1).tolist()
    weights, squares = [0.0] * start, [0.1] * start
    excess = np.empty(rows)
    model = synthetic._Model.draw(0)
    for i, (row, columns) in enumerate(zip(table.to_pylist(), features, strict=True)):
        p = 1.0 / (1.0 + math.exp(-sum(weights[j] for j in columns)))
        true = probability(row, model)
        excess[i] = math.log(true / p) if row["click"] else math.log((1 - true) / (1 - p))
        gradient = p - row["click"]
        for j in columns:
            squares[j] += gradient * gradient
            weights[j] -= 0.1 * gradient / math.sqrt(squares[j])
    first, second, third = excess.reshape(3, -1).mean(axis=1)
    assert first > second > third > 0.0


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    peaks = []
    for chunks in (1, 6):
        tracemalloc.start()
        before = pa.total_allocated_bytes()
        held: list[int] = []
        write_clicks(
            tmp_path / "clicks.csv",
            chunks * CHUNK_ROWS,
            1,
            progress=lambda rows: held.append(pa.total_allocated_bytes()),  # noqa: B023
        )
        peaks.append((tracemalloc.get_traced_memory()[1], max(held) - before))
        tracemalloc.stop()
    for one, six in zip(*peaks, strict=True):
        assert six < 1.5 * one


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"rows": 0}, ValueError, "rows must be at least 1, got 0"),
        ({"rows": 1.5}, TypeError, "rows must be an int, got 1.5"),
        ({"rows": True}, TypeError, "rows must be an int, got True"),
        ({"seed": -1}, ValueError, "seed must be at least 0, got -1"),
        ({"model_seed": -2}, ValueError, "model_seed must be at least 0, got -2"),
        ({"model_seed": "a"}, TypeError, "model_seed must be an int, got 'a'"),
        ({"name": "clicks.txt"}, ValueError, "path must end in .csv or .parquet"),
    ],
)
def test_bad_arguments_are_refused_before_a_file_is_made(
    tmp_path: Path, arguments: dict, error: type[Exception], message: str
) -> None:
    values = {"name": "clicks.csv", "rows": 10, "seed": 1, "model_seed": 0} | arguments
    path = tmp_path / values.pop("name")
    with pytest.raises(error, match=message.replace(".", r"\.")):
        write_clicks(path, values["rows"], values["seed"], model_seed=values["model_seed"])
    assert list(tmp_path.iterdir()) == []
