"""Numbers and times from text: the doubles that Python reads, the hours that datetime knows."""

import datetime
import decimal
import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adagrad.cli.columns import numbers, times
from adagrad.cli.parsing import BAD, FLOAT, INTEGER, MISSING, parse_numbers, parse_times


def same(found: np.ndarray, expected: list[float]) -> None:
    np.testing.assert_array_equal(found.view(np.uint64), np.array(expected, np.float64).view(np.uint64))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(allow_nan=False), min_size=1, max_size=30), st.sampled_from(["r", ".3f", ".5e", ".17g", ".25g"]))
def test_numbers_are_pythons_to_the_bit(values: list[float], form: str) -> None:
    written = [repr(v) if form == "r" else format(v, form) for v in values]
    found, kinds = parse_numbers(pa.array(written))
    same(found, [float(text) for text in written])
    assert not np.isin(kinds, [BAD, MISSING]).any()


def test_quotients_next_to_the_middle_between_two_doubles() -> None:
    rng = np.random.default_rng(2)
    written = []
    for _ in range(20_000):
        x = float(rng.random() * 10.0 ** rng.integers(0, 4))
        middle = (decimal.Decimal(x) + decimal.Decimal(math.nextafter(x, math.inf))) / 2
        written.append(format(middle, ".18f")[:20])  # 19 digits, just below the middle
    odd = 2 * rng.integers(2**52, 2**53, 2_000) + 1
    written += [str(decimal.Decimal(m) / 2) for m in odd.tolist()]  # the very middle: ties go to even
    found, _ = parse_numbers(pa.array(written))
    same(found, [float(text) for text in written])


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("12", INTEGER, 12.0),
        ("-0", INTEGER, -0.0),
        (" +5\t", INTEGER, 5.0),
        ("00123", INTEGER, 123.0),
        (".5", FLOAT, 0.5),
        ("5.", FLOAT, 5.0),
        ("1e5", FLOAT, 1e5),
        ("1E-400", FLOAT, 0.0),
        ("1e400", FLOAT, math.inf),
        ("1e99999999999999999999", FLOAT, math.inf),
        ("-Infinity", FLOAT, -math.inf),
        ("9" * 40, FLOAT, 1e40),
        ("18446744073709551617", FLOAT, 18446744073709551617.0),
        ("", MISSING, math.nan),
        ("  ", MISSING, math.nan),
        ("NA", MISSING, math.nan),
        ("n/a", MISSING, math.nan),
        ("NaN", MISSING, math.nan),
        ("NULL", MISSING, math.nan),
        ("None", MISSING, math.nan),
        ("\\N", MISSING, math.nan),
        ("nanx", BAD, math.nan),
        ("1_000", BAD, math.nan),
        ("1,5", BAD, math.nan),
        ("1 2", BAD, math.nan),
        ("0x10", BAD, math.nan),
        ("1e", BAD, math.nan),
        ("1e+", BAD, math.nan),
        ("e5", BAD, math.nan),
        ("-", BAD, math.nan),
        (".", BAD, math.nan),
        ("--5", BAD, math.nan),
        ("infx", BAD, math.nan),
        ("１", BAD, math.nan),
        ("5€", BAD, math.nan),
    ],
)
@pytest.mark.parametrize("kind_of_text", [pa.string(), pa.binary(), pa.large_string()])
def test_what_is_a_number_and_what_is_missing(text: str, kind: int, value: float, kind_of_text: pa.DataType) -> None:
    found, kinds = parse_numbers(pa.array(["1", text.encode() if kind_of_text == pa.binary() else text], kind_of_text))
    assert kinds.tolist() == [INTEGER, kind]
    same(np.abs(found[1:]) if math.isnan(value) else found[1:], [value])


def test_bytes_that_are_no_text_are_bad() -> None:
    found, kinds = parse_numbers(pa.array([b"i\xff", b"\xff", b"1"]))
    assert kinds.tolist() == [BAD, BAD, INTEGER]
    assert np.isnan(found[:2]).all()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.datetimes(), min_size=1), st.sampled_from([" ", "T", "t"]), st.sampled_from(["", "Z", "+05:30"]))
def test_times_are_datetimes(moments: list[datetime.datetime], separator: str, zone: str) -> None:
    parts, found = parse_times(pa.array([m.isoformat(separator) + zone for m in moments]))
    assert (found == FLOAT).all()
    assert parts.T.tolist() == [[m.hour, m.weekday(), m.month] for m in moments]


@pytest.mark.parametrize(
    ("text", "kind", "parts"),
    [
        ("2012-02-29", INTEGER, [-1, 2, 2]),
        ("1900-03-01", INTEGER, [-1, 3, 3]),
        (" 2024-05-06 07:08 ", FLOAT, [7, 0, 5]),
        ("2024-05-06T23:59:60Z", FLOAT, [23, 0, 5]),
        ("2024-05-06 07:08:09.123456789-0500", FLOAT, [7, 0, 5]),
        ("2024-05-06 07:08+01", FLOAT, [7, 0, 5]),
        ("", MISSING, [-1, -1, -1]),
        ("NA", MISSING, [-1, -1, -1]),
        ("2013-02-29", BAD, [-1, -1, -1]),
        ("19ab-03-01 12:00", BAD, [-1, -1, -1]),
        ("ab19-03-01", BAD, [-1, -1, -1]),
        ("0000-03-01", BAD, [-1, -1, -1]),
        ("1900-02-29", BAD, [-1, -1, -1]),
        ("2013-13-01", BAD, [-1, -1, -1]),
        ("2013-04-31", BAD, [-1, -1, -1]),
        ("2013-1-1", BAD, [-1, -1, -1]),
        ("2013/01/01", BAD, [-1, -1, -1]),
        ("2013-01-01x", BAD, [-1, -1, -1]),
        ("2013-01-01 24:00", BAD, [-1, -1, -1]),
        ("2013-01-01 5:00", BAD, [-1, -1, -1]),
        ("2013-01-01 05:61", BAD, [-1, -1, -1]),
        ("2013-01-01 05:00:00 UTC", BAD, [-1, -1, -1]),
        ("2013-01-01 05:00+5", BAD, [-1, -1, -1]),
        ("1370000000", BAD, [-1, -1, -1]),
    ],
)
def test_what_is_a_time(text: str, kind: int, parts: list[int]) -> None:
    found_parts, found = parse_times(pa.array(["2024-01-01", text]))
    assert (found.tolist(), found_parts[:, 1].tolist()) == ([INTEGER, kind], parts)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (pa.array([1, None, 3]), [1.0, math.nan, 3.0]),
        (pa.array([True, None]), [1.0, math.nan]),
        (pa.array([1.5, math.nan, None], pa.float32()), [1.5, math.nan, math.nan]),
        (pa.array([decimal.Decimal("1.25"), None]), [1.25, math.nan]),
        (pa.array(["1", None, "2"]).dictionary_encode(), [1.0, math.nan, 2.0]),
        (pa.array([datetime.time(0, 1)], pa.time32("s")), [60.0]),
        (pa.array([None, None]), [math.nan, math.nan]),
        (pa.array([2**60 + 1]), [float(2**60)]),
    ],
)
def test_numbers_of_any_type(array: pa.Array, expected: list[float]) -> None:
    values, bad = numbers(array)
    np.testing.assert_array_equal(values, expected)
    assert not bad.any()


def test_times_of_any_type() -> None:
    moment = datetime.datetime(2024, 5, 6, 7)
    assert times(pa.array([moment, None]))[0].T.tolist() == [[7, 0, 5], [-1, -1, -1]]
    assert times(pa.array([moment.date()]))[0].T.tolist() == [[-1, 0, 5]]
    assert times(pa.array([None]))[0].T.tolist() == [[-1, -1, -1]]
    new_york = pa.array([moment], pa.timestamp("us", "America/New_York"))
    assert times(new_york)[0].T.tolist() == [[3, 0, 5]]  # the local hour
