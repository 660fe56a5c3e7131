"""Numbers and times read from the bytes of Arrow's buffers, exactly.

A number whose digits fit 53 bits and whose power of ten is at most 22 is exact after one multiplication or division (two
exact doubles, one rounding: Clinger, "How to read floating point numbers accurately", 1990); one of up to 19 digits, 18 of
them behind the point, is divided exactly here; what is left is HARD.
"""

# mypy: allow-untyped-defs, no-check-untyped-defs, allow-untyped-decorators

import numba
import numpy as np

from adagrad.kernels.compiling import at, inline, kernel

__all__ = ["BAD", "FLOAT", "HARD", "INTEGER", "MISSING", "MISSING_TEXTS", "bare", "number_at", "numbers", "times"]

FLOAT, INTEGER, MISSING, BAD = range(4)  # what a value was; among times FLOAT is a date with a time, INTEGER a date alone
HARD = 4  # a number, but not for the kernel

MISSING_TEXTS = ("", "na", "n/a", "nan", "null", "none", "\\n")  # in any case, spaces around them


_MISSING_KEYS = tuple(np.uint64(int.from_bytes(text.encode(), "little")) for text in MISSING_TEXTS)
_EXACT = np.uint64(2**53)
_SPLIT = 2.0**27 + 1
# Unsigned, as all indices below are: a signed index is tested for being negative, at every byte.
_1, _2, _3, _4, _5, _7, _8, _10, _11, _LOWER = (np.uint64(n) for n in (1, 2, 3, 4, 5, 7, 8, 10, 11, 32))
_inline = numba.njit(error_model="numpy", forceinline=True)


@inline
def _trim(data, start, stop):
    """Where ``data[start:stop]`` starts and stops without the spaces around it."""
    while start < stop and data[start] <= 32:
        start += _1
    while stop > start and data[stop - _1] <= 32:
        stop -= _1
    return start, stop


@inline
def _is_null(validity, bit):
    return validity.size > 0 and not (validity[bit >> 3] >> (bit & 7)) & 1


@inline
def _is_missing(data, start, stop):
    if stop > start + _4:
        return False
    key = np.uint64(0)
    for i in range(stop - start):
        byte = np.uint64(data[start + i])
        key |= (byte + _LOWER if 65 <= byte <= 90 else byte) << (_8 * i)
    return key in _MISSING_KEYS


@inline
def _digit(data, at, stop):
    """The digit at ``at``, 255 if there is none."""
    if at >= stop:
        return np.uint8(255)
    digit = np.uint8(data[at] - np.uint8(48))
    return digit if digit < 10 else np.uint8(255)


@inline
def _quotient(mantissa, power):
    """``mantissa / power``, correctly rounded, for mantissa < 10**19 and power = 10**k, k <= 18, an exact double.

    The quotient of doubles and its remainder, whose every step but the last division is exact (Dekker, "A floating-point
    technique for extending the available precision", 1971). That leaves an error below 2**-50 ulp, and a quotient of
    such numbers that is no midpoint of two doubles is at least 2**-43 ulp away from any.
    """
    high = np.float64(mantissa)
    whole = np.uint64(high)
    low = np.float64(mantissa - whole) if mantissa >= whole else -np.float64(whole - mantissa)
    q = high / power
    c = q * _SPLIT
    q_high = c - (c - q)
    c = power * _SPLIT
    p_high = c - (c - power)
    q_low, p_low = q - q_high, power - p_high
    product = q * power
    error = ((q_high * p_high - product) + q_high * p_low + q_low * p_high) + q_low * p_low
    return q + (((high - product) - error) + low) / power


@inline
def bare(array):
    """The same memory without a count of references, which each call with the array would raise and lower."""
    return at(array.ctypes.data, array.size, array)


@_inline
def number_at(data, at, stop, powers):
    """``(value, kind, end)``: the number that begins at ``at``, INTEGER, FLOAT or HARD, and the first byte behind it.

    BAD if none begins there. Of a HARD one the value is NaN.
    """
    negative = False
    if at < stop and (data[at] == 45 or data[at] == 43):
        negative = data[at] == 45
        at += _1
    begin = at
    mantissa = np.uint64(0)
    digit = _digit(data, at, stop)
    while digit < 10:
        mantissa = mantissa * _10 + digit
        at += _1
        digit = _digit(data, at, stop)
    digits = np.int64(at - begin)
    exponent = 0
    kind = INTEGER
    if at < stop and data[at] == 46:
        kind = FLOAT
        at += _1
        point = at
        digit = _digit(data, at, stop)
        while digit < 10:
            mantissa = mantissa * _10 + digit
            at += _1
            digit = _digit(data, at, stop)
        exponent = -np.int64(at - point)
        digits -= exponent
    if digits > 0 and at + _1 < stop and (data[at] == 69 or data[at] == 101):
        kind = FLOAT
        at += _1
        down = data[at] == 45
        if down or data[at] == 43:
            at += _1
        begin = at
        power = 0
        digit = _digit(data, at, stop)
        while digit < 10:
            power = min(power * 10 + np.int64(digit), 10000)
            at += _1
            digit = _digit(data, at, stop)
        exponent += -power if down else power
        digits = digits if at > begin else 0
    value = np.nan
    if digits == 0:
        kind = BAD
    elif digits <= 18 and mantissa <= _EXACT and -22 <= exponent <= 22:
        value = np.float64(mantissa)
        value = value / powers[-exponent] if exponent < 0 else value * powers[exponent]
    elif digits <= 19 and -18 <= exponent <= 0:
        value = _quotient(mantissa, powers[-exponent])
    else:
        kind = HARD
    return -value if negative else value, kind, at


@kernel
def numbers(data, offsets, validity, first, powers, out, found):
    """The number in each text into ``out``, what it was into ``found``; ``powers`` are 1 to 1e22, the rest as in `Texts`."""
    data, powers = bare(data), bare(powers)
    for i in range(out.size):
        start, stop = np.uint64(offsets[i]), np.uint64(offsets[i + 1])
        if _is_null(validity, first + i):
            stop = start
        if start < stop and (data[start] <= 32 or data[stop - _1] <= 32):
            start, stop = _trim(data, start, stop)
        value, kind, at = number_at(data, start, stop, powers)
        if at < stop or kind == BAD:
            infinite = kind == BAD and at < stop and (data[at] == 73 or data[at] == 105)
            value, kind = np.nan, MISSING if _is_missing(data, start, stop) else HARD if infinite else BAD
        out[i] = value
        found[i] = kind


@inline
def _pair(data, at):
    """The number of two digits at ``at``, at least 100 if they are none."""
    tens, ones = np.uint8(data[at] - np.uint8(48)), np.uint8(data[at + _1] - np.uint8(48))
    return 10 * np.int64(tens) + np.int64(ones) if tens < 10 and ones < 10 else 100


@inline
def _zone_is_good(data, at, stop):
    """Whether ``data[at:stop]`` is empty, Z, or an offset: +hh, +hhmm, +hh:mm."""
    size = np.int64(stop - at)
    if size == 0 or (size == 1 and (data[at] == 90 or data[at] == 122)):
        return True
    if size < 3 or (data[at] != 43 and data[at] != 45) or _pair(data, at + _1) >= 24:
        return False
    minutes = at + (_4 if size == 6 and data[at + _3] == 58 else _3)
    return size == 3 or (minutes + _2 == stop and _pair(data, minutes) < 60)


@inline
def _hour(data, at, stop):
    """The hour of ``hh:mm[:ss[.fff]][zone]``, -1 if it is not that."""
    if stop < at + _5 or data[at + _2] != 58:
        return -1
    hour = _pair(data, at)
    if hour > 23 or _pair(data, at + _3) > 59:
        return -1
    at += _5
    if at + _3 <= stop and data[at] == 58:
        if _pair(data, at + _1) > 60:
            return -1
        at += _3
        if at < stop and data[at] == 46:
            at += _1
            while _digit(data, at, stop) < 10:
                at += _1
    return hour if _zone_is_good(data, at, stop) else -1


@kernel
def times(data, offsets, validity, first, parts, found):
    """Hour, weekday and month of each text into ``parts`` (3, n), what it was into ``found``."""
    for i in range(found.size):
        start, stop = np.uint64(offsets[i]), np.uint64(offsets[i + 1])
        if _is_null(validity, first + i):
            stop = start
        if start < stop and (data[start] <= 32 or data[stop - _1] <= 32):
            start, stop = _trim(data, start, stop)
        parts[0, i] = parts[1, i] = parts[2, i] = -1
        found[i] = MISSING if _is_missing(data, start, stop) else BAD
        if found[i] == MISSING or stop < start + _10 or data[start + _4] != 45 or data[start + _7] != 45:
            continue
        century, year = _pair(data, start), _pair(data, start + _2)
        if century > 99 or year > 99:
            continue
        year += 100 * century
        month, day = _pair(data, start + _5), _pair(data, start + _8)
        if year < 1 or month < 1 or month > 12 or day < 1:
            continue
        leap = (year % 4 == 0 and year % 100 != 0) or year % 400 == 0
        short = month == 4 or month == 6 or month == 9 or month == 11
        if day > (28 + leap if month == 2 else 31 - short):
            continue
        hour = -1
        if stop > start + _10:
            separator = data[start + _10]
            hour = _hour(data, start + _11, stop) if separator == 32 or separator == 84 or separator == 116 else -1
            if hour < 0:
                continue
        # Zeller's congruence on years that start in March, shifted so that Monday is 0.
        since_march, years = (month + 9) % 12, year - (month < 3)
        leaps = years // 4 - years // 100 + years // 400
        parts[0, i] = hour
        parts[1, i] = (day + (13 * since_march + 2) // 5 + years + leaps + 1) % 7
        parts[2, i] = month
        found[i] = FLOAT if hour >= 0 else INTEGER
