"""What each column is taken for: its kind (how its values look) and its role (what the model does with it)."""

import dataclasses
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pyarrow as pa

from adagrad.cli import columns as read
from adagrad.cli import sparsefile
from adagrad.cli.bad import BadRows
from adagrad.cli.blocks import Chunk
from adagrad.cli.csvfile import delimiter_hint
from adagrad.cli.errors import CliError
from adagrad.cli.parsing import FLOAT, INTEGER, MISSING, parse_numbers, parse_times

__all__ = [
    "CATEGORY",
    "IGNORED",
    "LIST",
    "NUMBER",
    "SPARSE",
    "TARGET",
    "TIME",
    "WEIGHT",
    "Column",
    "Overrides",
    "assign_roles",
    "suggestion",
]

NUMBER, CATEGORY, TIME, LIST, SPARSE = "number", "category", "time", "list", "sparse"
TARGET, WEIGHT, IGNORED = "target", "weight", "ignored"

_DATE = re.compile(rb"\s*\d{4}-\d\d-\d\d")  # a first look, before the kernel is compiled for it
_MOSTLY = 0.9  # text of which this share are numbers or times is taken for them, the rest for mistakes


@dataclasses.dataclass(frozen=True)
class Column:
    """One column of the data.

    ``kind`` is boolean, integer, float, text, timestamp, date, list, empty, unusable, or one of `sparsefile.KINDS`;
    ``role`` one of this module's eight; ``reason`` says in a few words why.
    """

    name: str
    kind: str
    role: str
    reason: str

    def to_dict(self) -> dict[str, str]:
        """The fields, for a file."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Overrides:
    """What the user said of the columns, by their names.

    ``task`` is the target's, if that was said; with ``skip_bad`` bad rows are left out.
    """

    target: str
    weight: str | None = None
    categorical: Sequence[str] = ()
    numeric: Sequence[str] = ()
    timestamp: Sequence[str] = ()
    ignore: Sequence[str] = ()
    task: str | None = None
    skip_bad: bool = False


def assign_roles(header: Sequence[str], chunk: Chunk, overrides: Overrides) -> list[Column]:
    """A role for every column of the first chunk, in the order of the file, whose columns ``header`` lists.

    Text, booleans and dictionaries are categories; floats are numbers; integers are categories when the name ends in
    "id", else numbers; timestamps are times (hour, weekday and month); lists are several categories; features with their
    values stay what they are. Raises `CliError` for a name that no column has, that was given two roles, or for a column
    of numbers or times that holds a few other values, unless the user said what it is or to leave such rows out.
    """
    names = [name for name in header if name]
    given = {overrides.target: (TARGET, "--target")}
    said = [(CATEGORY, "--categorical", overrides.categorical), (NUMBER, "--numeric", overrides.numeric)]
    said += [(TIME, "--timestamp", overrides.timestamp), (IGNORED, "--ignore", overrides.ignore)]
    said += [(WEIGHT, "--weight", [overrides.weight] if overrides.weight else [])]
    for role, option, columns in said:
        for name in columns:
            if name in given:
                raise CliError(f"{option} {name}: the column already has a role by {given[name][1]}")
            given[name] = (role, option)
    for name, (_, option) in given.items():
        if name not in names:
            where = f"{option}: no column {name!r} in {chunk.parts[0].block.name}"
            hint = delimiter_hint(header)
            raise CliError(where + (f"; it has: {header[0]}{hint}" if hint else suggestion(name, names)))
    assigned = []
    for name in header:
        if not name or name in overrides.ignore:
            assigned.append(Column(name, "unread", IGNORED, "--ignore" if name else "it has no name"))
            continue
        kind, note, mostly = _kind(chunk, name)
        if mostly and _is_mistaken(name, mostly, given, overrides):
            if not overrides.skip_bad and not (name == overrides.target and overrides.task):
                raise CliError(_mistake(chunk, name, mostly, note, name == overrides.target))
            kind, note = mostly, f"{note}, the other rows are left out" if overrides.skip_bad else note
        elif mostly:
            note = f"though {note}"
        role, reason = given.get(name) or _usual(name, kind)
        if kind == "unusable" and role != IGNORED:
            raise CliError(f"{reason} {name}: its type is {note}, which can't be used; add --ignore {name}")
        if role in (NUMBER, WEIGHT) and kind in ("timestamp", "date", "list"):
            raise CliError(f"{reason} {name}: the column is of the kind {kind}, not a number")
        if role == TIME and kind not in ("timestamp", "date", "text", "empty"):
            raise CliError(f"{reason} {name}: the column is of the kind {kind}, not a time")
        if kind in sparsefile.KINDS and role not in (SPARSE, IGNORED):
            raise CliError(f"{reason} {name}: the column holds features with their values, which can have no other role")
        if role == CATEGORY and kind == "list":
            role = LIST
        assigned.append(Column(name, kind, role, f"{reason}; {note}" if note else reason))
    return assigned


def suggestion(name: str, names: Collection[str]) -> str:
    """``"; did you mean 'x'?"`` or the list of names, to end a message about an unknown one."""
    import difflib

    close = difflib.get_close_matches(name, names, 1)
    if close:
        return f"; did you mean {close[0]!r}?"
    shown = list(names)[:20]
    return f"; it has: {', '.join(shown)}{', ...' if len(names) > len(shown) else ''}"


def _is_mistaken(name: str, mostly: str, given: Mapping[str, tuple[str, str]], overrides: Overrides) -> bool:
    """Whether a column that holds mostly numbers or times must not be taken for text."""
    if name == overrides.target:
        return mostly in ("integer", "float") and overrides.task != "classification"
    return name not in given and _usual(name, mostly)[0] in (NUMBER, TIME)


def _mistake(chunk: Chunk, name: str, mostly: str, note: str, target: bool) -> str:
    """The first value that is no number, or no time, where most are."""
    bad = BadRows(chunk)
    what = read.NO_NUMBER if mostly in ("integer", "float") else read.NO_TIME
    start = 0
    for part in chunk.parts:
        _, wrong = (read.numbers if what == read.NO_NUMBER else read.times)(part.column(name))
        bad.add(name, start, wrong, what)
        start += len(part.rows)
    instead = "--task classification takes all values for classes" if target else f"--categorical {name} takes it for text"
    return f"{bad.message()}, but {note} (--bad-rows skip leaves such rows out, {instead})"


def _usual(name: str, kind: str) -> tuple[str, str]:
    if name.startswith("__index_level_"):
        return IGNORED, "the index of a pandas table"
    if kind == "integer":
        is_id = name.lower().endswith("id")
        return (CATEGORY, "integer, name ends in id") if is_id else (NUMBER, "integer")
    if kind == "empty":
        return CATEGORY, "no value yet"
    if kind in sparsefile.KINDS:
        return SPARSE, kind
    roles = {"boolean": CATEGORY, "text": CATEGORY, "float": NUMBER, "timestamp": TIME, "date": TIME, "list": LIST}
    return roles.get(kind, IGNORED), kind


def _kind(chunk: Chunk, name: str) -> tuple[str, str, str]:
    """``(kind, note, mostly)``: from the type, where the file has types, else from how the chunk's values read.

    ``mostly`` is the kind of nearly all values of a text column, "" if there is none.
    """
    first = chunk.parts[0]
    if first.block.typed:
        return *_kind_of_type(first.column(name).type), ""
    arrays = [part.column(name) for part in chunk.parts if not part.block.typed and name in part.block.columns]
    kind = sparsefile.kind_of(arrays[0])
    return (kind, "", "") if kind else _kind_of_text(pa.chunked_array(arrays).combine_chunks())


def _kind_of_type(kind: pa.DataType) -> tuple[str, str]:
    types = pa.types
    if types.is_dictionary(kind):
        return "text", "dictionary"
    if types.is_boolean(kind):
        return "boolean", ""
    if types.is_integer(kind) or types.is_time(kind) or types.is_duration(kind):
        return "integer", ""
    if types.is_floating(kind) or types.is_decimal(kind):
        return "float", ""
    if types.is_timestamp(kind):
        return "timestamp", ""
    if types.is_date(kind):
        return "date", ""
    if types.is_null(kind):
        return "empty", ""
    if any(test(kind) for test in (types.is_string, types.is_large_string, types.is_string_view)):
        return "text", ""
    if any(test(kind) for test in (types.is_binary, types.is_large_binary, types.is_binary_view)):
        return "text", "binary"
    if any(test(kind) for test in (types.is_list, types.is_large_list, types.is_fixed_size_list)):
        value, _ = _kind_of_type(kind.value_type)
        if value in ("text", "integer", "boolean"):
            return "list", ""
    return "unusable", str(kind)


def _kind_of_text(array: Any) -> tuple[str, str, str]:
    _, found = parse_numbers(array)
    filled = int((found != MISSING).sum())
    if filled == 0:
        return "empty", "", ""
    numbers = int(((found == INTEGER) | (found == FLOAT)).sum())
    kind = "float" if (found == FLOAT).any() else "integer"
    if numbers == filled:
        return kind, "", ""
    if _DATE.match(next(filter(None, array[:100].to_pylist()), b"")):
        _, times = parse_times(array)
        known = int(((times == INTEGER) | (times == FLOAT)).sum())
        time = "timestamp" if (times == FLOAT).any() else "date"
        if known == filled:
            return time, "", ""
        if known >= _MOSTLY * filled:
            return "text", f"{known:,} of {filled:,} values are times", time
    distinct = array.unique()
    if len(distinct) <= 8 and {word.lower() for word in distinct.to_pylist()} <= {b"true", b"false", b""}:
        return "boolean", "", ""
    if numbers >= _MOSTLY * filled:
        return "text", f"{numbers:,} of {filled:,} values are numbers", kind
    return "text", "", ""
