"""From rows to the matrix: scaling, slots, crosses, lists, and what is counted, against plain Python."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from adagrad.cli.bad import BadRows
from adagrad.cli.blocks import Chunk
from adagrad.cli.errors import CliError
from adagrad.cli.features import Features
from adagrad.cli.hashing import hash_bytes
from adagrad.cli.reading import Reader
from adagrad.cli.roles import Overrides, assign_roles


def load(tmp_path: Path, table: dict[str, Any], crosses: list[str] | None = None, bits: int = 12) -> tuple[Features, Chunk]:
    """Features planned on a Parquet file of the table, and its rows as one chunk."""
    path = tmp_path / "t.parquet"
    parquet.write_table(pa.table({"y": [0] * len(next(iter(table.values()))), **table}), path)
    reader = Reader([str(path)])
    (chunk,) = reader.chunks(65_536)
    return Features(assign_roles(reader.header, chunk, Overrides("y")), crosses or [], bits), chunk


def slot(features: Features, name: str, value: str, seed: int = 0) -> int:
    h = hash_bytes(value.encode(), hash_bytes(name.encode(), seed))
    return features.first + ((h >> 32) * (2**features.bits - features.first) >> 32)


def rows_of(features: Features, chunk: Chunk, observe: bool = True) -> list[list[tuple[int, float]]]:
    bad = BadRows(chunk)
    values = features.values(chunk, bad)
    assert not bad.mask.any()
    if observe:
        features.observe(values)
    x = features.matrix(values)
    assert (x.dtype, x.shape) == (np.float32, (len(chunk), 2**features.bits))
    bounds = zip(x.indptr[:-1], x.indptr[1:], strict=True)
    return [list(zip(x.indices[a:b].tolist(), x.data[a:b].tolist(), strict=True)) for a, b in bounds]


def test_every_kind_of_feature_has_its_slot(tmp_path: Path) -> None:
    table = {
        "price": [1.0, None, 3.0],
        "site": ["a", None, "b"],
        "at": pa.array([0, None, 86_400 * 45 + 3600 * 7], pa.timestamp("s")),
        "tags": [["u", "v", "u"], None, []],
        "size": [7, 8, None],
    }
    features, chunk = load(tmp_path, table, ["site:at.hour", "size:site"])
    rows = rows_of(features, chunk)
    assert [field.name for field in features.fields] == [
        "price", "size", "site", "at.hour", "at.weekday", "at.month", "site:at.hour", "size:site", "tags",
    ]  # fmt: skip
    assert features.first == 4

    def crossed(name: str, *values: tuple[str, str]) -> int:
        data = b"".join(hash_bytes(v.encode(), hash_bytes(n.encode())).to_bytes(8, "little") for n, v in values)
        h = hash_bytes(data, hash_bytes(name.encode(), 1))
        return features.first + ((h >> 32) * (2**features.bits - features.first) >> 32)

    expected = []
    for i, (price, site, hour, weekday, month, tags, size) in enumerate(
        [
            (0, "a", "0", "Thu", "1", ["u", "v", "u"], 2),
            (1, "", "", "", "", [""], 2),
            (0, "b", "7", "Sun", "2", [""], 3),
        ]
    ):
        text = ["7", "8", ""][i]
        expected.append(
            [price, size, slot(features, "site", site), slot(features, "at.hour", hour)]
            + [slot(features, "at.weekday", weekday), slot(features, "at.month", month)]
            + [crossed("site:at.hour", ("site", site), ("at.hour", hour))]
            + [crossed("size:site", ("size", text), ("site", site))]
            + [slot(features, "tags", tag) for tag in tags]
        )
    assert [[s for s, _ in row] for row in rows] == expected
    assert [value for _, value in rows[0]] == pytest.approx([-1.0, -1.0] + [1.0] * 9)
    assert [value for _, value in rows[1]][:3] == pytest.approx([1.0, 1.0, 1.0])


def plain_scaling(x: float, mean: float, deviation: float) -> float:
    """The formula of the model file."""
    if deviation == 0:
        return 0.0
    z = (x - mean) / deviation
    return z if abs(z) <= 4 else math.copysign(min(4 + math.log(1 + abs(z) - 4), 10.0), z)


def test_numbers_are_scaled_by_what_was_seen_so_far(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(50.0, 3.0, 5000)
    features, chunk = load(tmp_path, {"x": x})
    for start in (0, 1000, 3000):
        stop = {0: 1000, 1000: 3000, 3000: 5000}[start]
        part = chunk.select((np.arange(5000) >= start) & (np.arange(5000) < stop))
        found = [row[0][1] for row in rows_of(features, part)]
        mean, deviation = x[:stop].mean(), x[:stop].std()
        np.testing.assert_allclose(found, [plain_scaling(v, mean, deviation) for v in x[start:stop]], rtol=1e-5, atol=1e-6)
    assert features.count.tolist() == [5000]
    np.testing.assert_allclose([features.mean[0], 1 / features.scale[0]], [x.mean(), x.std()], rtol=1e-12)


def test_rows_that_only_ask_leave_no_trace(tmp_path: Path) -> None:
    features, chunk = load(tmp_path, {"x": [1.0, 2.0], "s": ["a", "b"]})
    rows_of(features, chunk)
    before = {name: array.copy() for name, array in features.state().items()}
    rows_of(features, chunk, observe=False)
    for name, array in features.state().items():
        np.testing.assert_array_equal(array, before[name])


def test_far_values_count_by_their_logarithm_up_to_ten(tmp_path: Path) -> None:
    values = [0.0, 1.0] * 500
    features, chunk = load(tmp_path, {"x": values})
    rows_of(features, chunk)
    _, far = load(tmp_path, {"x": [2.5, -2.0, 3.0, 50.0, 1e300, -1e300, math.inf, -math.inf, math.nan]})
    found = [row[0] for row in rows_of(features, far, observe=False)]
    expected = [plain_scaling(v, 0.5, 0.5) for v in (2.5, -2.0, 3.0, 50.0, 1e300, -1e300)] + [10.0, -10.0]
    assert [s for s, _ in found] == [0] * 8 + [1]
    assert [v for _, v in found[:8]] == pytest.approx(expected)
    assert expected[0] == 4.0
    assert expected[1] == pytest.approx(-(4 + math.log(2)))


def test_one_absurd_value_does_not_flatten_a_column(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(0.0, 1.0, 20_000)
    x[777] = 1e30
    features, chunk = load(tmp_path, {"x": x, "y2": np.where(np.arange(20_000) % 100, 0.0, x)})
    rows_of(features, chunk)
    assert 0.9 < features.scale[0] < 1.1
    # Where 95 of 100 values are the same there is no range to cut to; the value counts in full.
    assert features.scale[1] > 0


def test_constants_are_zero_until_they_move(tmp_path: Path) -> None:
    features, chunk = load(tmp_path, {"x": [5.0] * 10})
    assert [row[0] for row in rows_of(features, chunk)] == [(0, 0.0)] * 10
    _, moved = load(tmp_path, {"x": [5.0, 7.0, math.inf]})
    assert [row[0][1] for row in rows_of(features, moved, observe=False)] == [0.0, 0.0, 0.0]
    assert rows_of(features, moved)[1][0][1] > 0


def test_slots_are_counted_and_shared_ones_noticed(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    words = [f"w{k}" for k in rng.integers(0, 40, 3000)]
    features, chunk = load(tmp_path, {"x": [1.0, None, 2.0] * 1000, "s": words}, bits=6)
    rows_of(features, chunk)
    counts = dict.fromkeys(range(64), 0)
    owners: dict[int, set[str]] = {}
    counts[0], counts[1] = 2000, 1000
    for word in words:
        counts[slot(features, "s", word)] += 1
        owners.setdefault(slot(features, "s", word), set()).add(word)
    assert features.counts().tolist() == list(counts.values())
    shared = sorted(s for s, names in owners.items() if len(names) > 1)
    assert np.flatnonzero(features.is_shared()).tolist() == shared
    assert features.collisions() == {"slots": 64, "used": len(owners) + 2, "shared": len(shared)}
    assert len(shared) > 5


def test_features_are_named_from_their_rows(tmp_path: Path) -> None:
    table = {
        "x": [1.0, None],
        "s": ["ü", None],
        "at": pa.array([86_400 * 4, None], pa.timestamp("s")),
        "tags": [["u", "v"], []],
        "more": [["w"], None],
    }
    features, chunk = load(tmp_path, table, ["s:at.weekday"])
    counts = [len(row) for row in rows_of(features, chunk)]
    assert [[features.describe(chunk, row, entry) for entry in range(counts[row])] for row in range(2)] == [
        ["x", "s=ü", "at.hour=0", "at.weekday=Mon", "at.month=1", "s=ü & at.weekday=Mon", "tags=u", "tags=v", "more=w"],
        ["x missing", "s=", "at.hour=", "at.weekday=", "at.month=", "s= & at.weekday=", "tags=", "more="],
    ]


def test_state_comes_back(tmp_path: Path) -> None:
    features, chunk = load(tmp_path, {"x": [1.0, 4.0, None], "s": ["a", "b", "a"]})
    rows_of(features, chunk)
    again, _ = load(tmp_path, {"x": [0.0], "s": [""]})
    again.load({name: array.copy() for name, array in features.state().items()})
    assert rows_of(again, chunk) == rows_of(features, chunk)


@pytest.mark.parametrize(
    ("cross", "message"),
    [
        ("s:zz", r"--cross s:zz: no column 'zz'; it has: s, at.hour, at.weekday, at.month, a:b, n"),
        ("s:sise", "--cross s:sise: no column 'sise'"),
        ("s", "--cross s: two or more columns are needed"),
        ("s:x", "--cross s:x: 'x' is float, role number; a cross joins categories; add --categorical x"),
        ("s:at", "--cross s:at: 'at' is timestamp, role time; a cross joins categories; use at.hour, at.weekday or at.month"),
        ("s:tags", "--cross s:tags: 'tags' is list, role list; a cross joins categories$"),
    ],
)
def test_crosses_that_can_not_be(tmp_path: Path, cross: str, message: str) -> None:
    table = {"s": ["a"], "x": [1.5], "at": pa.array([0], pa.timestamp("s")), "tags": [["a"]], "n": [1], "a:b": ["c"]}
    with pytest.raises(CliError, match=message):
        load(tmp_path, table, [cross])
    assert [f.name for f in load(tmp_path, table, ["a:b:s:n"])[0].fields[-2].members] == ["a:b", "s", "n"]


def test_no_room_and_no_column(tmp_path: Path) -> None:
    with pytest.raises(CliError, match="--bits 2: 2 numbers need more than 2\\*\\*2 slots"):
        load(tmp_path, {"a": [1.0], "b": [1.0], "s": ["x"]}, bits=2)
    with pytest.raises(CliError, match="no column is left to learn from"):
        load(tmp_path, {"vector": [[1.0]]})
