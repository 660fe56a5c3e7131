"""From chunks of rows to sparse matrices: numbers scaled, categories hashed, crosses, and what was counted on the way.

The columns of the matrix, ``2**bits`` of them, are called slots. Every number has two of its own, at the front, one for its
scaled value and one that is 1 where the value is missing; all categories share the rest by the hash of column and value
(`adagrad.cli.hashing`), so a category may share its slot with another one, but never with a number.

A number ``x`` becomes ``z = (x - mean) / deviation``, kept as it is within 4 deviations, beyond them only its logarithm
counts, and never more than 10: ``sign(z) * min(4 + log(1 + |z| - 4), 10)``. Mean and deviation are those of all rows up to
the end of the row's own chunk (labels play no part, so the online loss stays honest), and of the whole first pass from its
end on. Each chunk's values enter them cut to ten times the range from its 5th to its 95th percentile around its median,
so that one absurd value doesn't flatten a column.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import sparse

from adagrad.cli import columns as read
from adagrad.cli.bad import BadRows
from adagrad.cli.blocks import Chunk
from adagrad.cli.errors import CliError
from adagrad.cli.hashing import combine, hash_bytes
from adagrad.cli.kernels import encoding as kernels
from adagrad.cli.kernels.encoding import SHARED
from adagrad.cli.roles import CATEGORY, LIST, NUMBER, SPARSE, TIME, Column, suggestion
from adagrad.cli.sparsefile import INDICES, SparseBlock, kind_of

__all__ = ["Features", "Field", "Values"]

_TIME_PARTS = {"hour": 24, "weekday": 7, "month": 13}
_WEEKDAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_SAMPLE = 4096  # values of a chunk from which its percentiles are taken


@dataclasses.dataclass(frozen=True)
class Field:
    """One feature or family of features: a number, the values of a category, one part of a time, a list, or a cross.

    ``kind`` is number, category, list, hour, weekday, month, cross or sparse (features with
    values); ``members`` are the fields that a cross joins.
    """

    name: str
    kind: str
    column: Column | None = None
    members: tuple["Field", ...] = ()

    @property
    def seed(self) -> int:
        """The seed of the field's hashes."""
        return hash_bytes(self.name.encode(), seed=1 if self.kind == "cross" else 0)


@dataclasses.dataclass
class Values:
    """The values of a chunk, by field: ``numbers`` float64 (fields, n), ``hashed`` uint64 (fields, n), lists as they are.

    ``entries`` are those of sparse fields: hashes uint64, values float32, end to end, and how many a row has.
    """

    numbers: np.ndarray
    hashed: np.ndarray
    lists: list[tuple[np.ndarray, np.ndarray]]
    entries: list[tuple[np.ndarray, np.ndarray, np.ndarray]]

    def select(self, keep: np.ndarray) -> "Values":
        """The rows where ``keep`` is true."""
        lists = [(flat[np.repeat(keep, lengths)], lengths[keep]) for flat, lengths in self.lists]
        entries = []
        for keys, data, lengths in self.entries:
            kept = np.repeat(keep, lengths)
            entries.append((keys[kept], data[kept], lengths[keep]))
        return Values(self.numbers.compress(keep, axis=1), self.hashed.compress(keep, axis=1), lists, entries)


class Features:
    """How rows become a sparse matrix, and what training has seen of them.

    Parameters
    ----------
    columns : sequence of Column
        With their roles.
    crosses : sequence of str
        ``"a:b"``: a category made of the values of several columns (a time's parts are ``ts.hour`` and so on).
    bits : int
        There are ``2**bits`` slots.

    Attributes
    ----------
    fields : list of Field
        In the order of the entries of a row: numbers, hashed ones, lists, sparse ones.
    seen : uint64 array (2**bits,)
        Of each slot: entries of the first pass in the upper 48 bits (`counts`), then `SHARED`, then 15 bits of the first
        feature's hash, by which a second one is noticed.
    count, mean, squares : float64 arrays (numbers,)
        Of each number so far: values, mean, sum of squared deviations.
    """

    def __init__(self, columns: Sequence[Column], crosses: Sequence[str], bits: int) -> None:
        self.columns, self.crosses, self.bits = list(columns), list(crosses), bits
        by_role = {role: [c for c in columns if c.role == role] for role in (NUMBER, CATEGORY, TIME, LIST, SPARSE)}
        self._numbers = [Field(c.name, "number", c) for c in by_role[NUMBER]]
        hashed = []
        for column in columns:
            if column.role == CATEGORY:
                hashed.append(Field(column.name, "category", column))
            elif column.role == TIME:
                parts = [part for part in _TIME_PARTS if part != "hour" or column.kind != "date"]
                hashed += [Field(f"{column.name}.{part}", part, column) for part in parts]
        # A whole number can be part of a cross, by its text, without being a category itself.
        joinable = hashed + [Field(c.name, "category", c) for c in by_role[NUMBER] if c.kind == "integer"]
        self._hashed = hashed + [_cross(cross, joinable, columns) for cross in crosses]
        self._lists = [Field(c.name, "list", c) for c in by_role[LIST]]
        self._sparse = [Field(c.name, "sparse", c) for c in by_role[SPARSE]]
        self.fields = self._numbers + self._hashed + self._lists + self._sparse
        if not self.fields:
            raise CliError("no column is left to learn from")
        self.first = 2 * len(self._numbers)
        if self.first >= 2**bits:
            raise CliError(f"--bits {bits}: {len(self._numbers)} numbers need more than 2**{bits} slots")
        if self.first and any(c.kind == INDICES for c in by_role[SPARSE]):
            name = self._numbers[0].name
            raise CliError(f"--numeric {name}: a number can't stand beside indices, which are slots themselves")
        self.count, self.mean, self.squares = (np.zeros(len(self._numbers)) for _ in range(3))
        self.seen = np.zeros(2**bits, np.uint64)

    @property
    def names(self) -> list[str]:
        """The columns that rows must have."""
        return [c.name for c in self.columns if c.role in (NUMBER, CATEGORY, TIME, LIST, SPARSE)]

    @property
    def valued(self) -> bool:
        """Whether features come with values of their own."""
        return bool(self._sparse)

    def values(self, chunk: Chunk, bad: BadRows) -> Values:
        """The chunk's values; what can't be one is reported to ``bad``."""
        numbers = np.empty((len(self._numbers), len(chunk)))
        for row, field in zip(numbers, self._numbers, strict=True):
            _fill(row, chunk, field, bad)
        cache: dict[Any, Any] = {}
        hashed = np.empty((len(self._hashed), len(chunk)), np.uint64)
        for hashes, field in zip(hashed, self._hashed, strict=True):
            _fill_hashes(hashes, chunk, field, bad, cache)
        lists = []
        for field in self._lists:
            found = [read.converted(part, field.name, "a list", read.list_hashes, field.seed) for part in chunk.parts]
            lists.append((np.concatenate([flat for flat, _ in found]), np.concatenate([size for _, size in found])))
        return Values(numbers, hashed, lists, [self._entries(chunk, field, bad) for field in self._sparse])

    def _entries(self, chunk: Chunk, field: Field, bad: BadRows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """A sparse field's entries; an index becomes the hash of which the index itself is the slot."""
        assert field.column is not None
        found, start = [], 0
        for part in chunk.parts:
            array = part.column(field.name)
            kind = kind_of(array)
            if kind != field.column.kind:
                raise CliError(
                    f"{part.block.name}: its features are {kind or array.type}, the model learned from {field.column.kind}"
                )
            lengths = np.diff(array.offsets.to_numpy())
            flat = array.flatten()
            keys, data = flat.field(0).to_numpy(), flat.field(1).to_numpy()
            wrong = ~np.isfinite(data)
            if wrong.any():
                bad.add(field.name, start, _rows_with(wrong, lengths), "has a value that float32 can't hold")
            if kind == INDICES and len(keys) and (largest := int(keys.max())) >= 2**self.bits:
                room = f"--bits {largest.bit_length()} has room for it" if largest < 2**30 else "2**30 is the most there can be"
                beyond = _rows_with(keys >= 2**self.bits, lengths)
                bad.add(field.name, start, beyond, f"has an index of 2**{self.bits} or more: {room}")
            found.append((keys, data, lengths))
            start += len(part.rows)
        keys, data, lengths = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
        return keys << np.uint64(64 - self.bits) if field.column.kind == INDICES else keys, data, lengths

    def observe(self, values: Values) -> None:
        """Take the chunk into what is counted of the slots, and into the numbers' statistics (Chan, Golub and LeVeque)."""
        with np.errstate(all="ignore"):
            lists = [flat for flat, _ in values.lists] + [keys for keys, _, _ in values.entries]
            for hashes in [*values.hashed, *lists]:
                kernels.count_hashes(hashes, *self._space, self.seen)
            for d, row in enumerate(values.numbers):
                kernels.count_numbers(row, 2 * d, self.seen)
                count, mean, squares = kernels.moments(row, *_limits(row))
                if count:
                    total = self.count[d] + count
                    shift = mean - self.mean[d]
                    self.squares[d] += squares + shift * shift * (self.count[d] * count / total)
                    self.mean[d] += shift * (count / total)
                    self.count[d] = total

    @property
    def scale(self) -> np.ndarray:
        """One over the standard deviation of each number; 0 for one that was constant so far."""
        with np.errstate(divide="ignore", invalid="ignore"):
            scale = 1.0 / np.sqrt(self.squares / self.count)
        return np.where(np.isfinite(scale), scale, 0.0)

    def matrix(self, values: Values) -> sparse.csr_matrix:
        """The rows as float32 CSR (n, 2**bits).

        A slot that a row has twice (two categories that share it) stands there twice.
        """
        rows, fixed = values.numbers.shape[1], len(self._numbers) + len(self._hashed)
        counts = [lengths for _, lengths in values.lists] + [lengths for *_, lengths in values.entries]
        sizes = fixed + sum(counts, np.zeros(rows, np.int64))
        starts = np.concatenate([[0], np.cumsum(sizes)])
        indices, data = np.empty(starts[-1], np.int32), np.empty(starts[-1], np.float32)
        with np.errstate(over="ignore"):
            kernels.encode(values.numbers, self.mean, self.scale, values.hashed, *self._space, starts, indices, data)
            cursor = starts[:-1] + fixed
            for flat, lengths in values.lists:
                kernels.encode_list(flat, lengths, *self._space, cursor, indices, data)
            for keys, given, lengths in values.entries:
                kernels.encode_entries(keys, given, lengths, *self._space, cursor, indices, data)
        if starts[-1] < 2**31:
            starts = starts.astype(np.int32)
        return sparse.csr_matrix((data, indices, starts), shape=(rows, 2**self.bits), copy=False)

    @property
    def _space(self) -> tuple[np.uint64, np.uint64]:
        """The first slot that categories share, and their number."""
        return np.uint64(self.first), np.uint64(2**self.bits - self.first)

    def counts(self, slots: np.ndarray | slice = slice(None)) -> np.ndarray:
        """How many entries of the first pass each slot had, int64."""
        return (self.seen[slots] >> np.uint64(16)).astype(np.int64)

    def unseen(self, x: sparse.csr_matrix) -> tuple[int, int]:
        """``(category values in a slot that training never saw, all category values)`` in the rows of a matrix."""
        slots = x.indices[x.indices >= self.first]
        return int(np.count_nonzero(self.seen[slots] == 0)), len(slots)

    def is_shared(self, slots: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Whether more than one feature was seen in each slot."""
        return (self.seen[slots] & SHARED) != 0

    def collisions(self) -> dict[str, int]:
        """Slots, slots in use, and slots in which more than one feature was seen (1 in 32,767 of them goes unnoticed)."""
        return {
            "slots": 2**self.bits,
            "used": int(np.count_nonzero(self.seen)),
            "shared": int(np.count_nonzero(self.is_shared())),
        }

    def describe(self, chunk: Chunk, row: int, entry: int) -> str:
        """The name of the feature that made the ``entry``-th entry of a row: ``"column"`` or ``"column=value"``."""
        fixed = len(self._numbers) + len(self._hashed)
        for part in chunk.parts:
            if row < len(part.rows):
                break
            row -= len(part.rows)
        if entry < fixed:
            return _described(self.fields[entry], part.column, row)
        for field in self._lists:
            items = part.column(field.name).slice(row, 1)
            size = max(1, len(items.flatten()))
            if entry - fixed < size:
                item = items.flatten().slice(entry - fixed, 1)
                return f"{field.name}={read.shown(item, 'text', 0) if len(item) else ''}"
            entry -= size
        if self._sparse and isinstance(part.block, SparseBlock):
            return part.block.feature(int(part.rows[row]), entry - fixed)
        raise IndexError(entry)

    def state(self) -> dict[str, np.ndarray]:
        """The arrays that training moves."""
        return {name: getattr(self, name) for name in ("seen", "count", "mean", "squares")}

    def load(self, arrays: dict[str, np.ndarray]) -> None:
        """Take over what `state` gave."""
        for name in self.state():
            getattr(self, name)[...] = arrays[name]


def _rows_with(wrong: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Which rows, of so many entries each, have one that is wrong."""
    return np.bincount(np.repeat(np.arange(len(lengths)), lengths)[wrong], minlength=len(lengths)) > 0


def _limits(values: np.ndarray) -> tuple[float, float]:
    """Between which values a chunk's numbers enter the statistics."""
    sample = values[:: max(1, len(values) // _SAMPLE)]
    sample = sample[np.isfinite(sample)]
    if not len(sample):
        return -np.inf, np.inf
    low, middle, high = np.quantile(sample, [0.05, 0.5, 0.95])
    reach = 10.0 * (high - low)
    return (middle - reach, middle + reach) if reach > 0 else (-np.inf, np.inf)


def _cross(text: str, fields: list[Field], columns: Sequence[Column]) -> Field:
    """The cross that ``--cross`` names; the names of columns may hold ":" themselves."""
    known = {field.name: field for field in fields}

    def split(rest: str) -> list[Field] | None:
        if rest in known:
            return [known[rest]]
        for at in (at for at, letter in enumerate(rest) if letter == ":"):
            if rest[:at] in known and (others := split(rest[at + 1 :])):
                return [known[rest[:at]], *others]
        return None

    members = split(text)
    if members is None or len(members) < 2:
        for name in text.split(":"):
            column = next((c for c in columns if c.name == name), None)
            if column is not None and name not in known:
                hint = {NUMBER: "add --categorical {}", TIME: "use {}.hour, {}.weekday or {}.month"}.get(column.role, "")
                wrong = f"{name!r} is {column.kind}, role {column.role}"
                raise CliError(f"--cross {text}: {wrong}; a cross joins categories; {hint.replace('{}', name)}".rstrip("; "))
            if column is None and name not in known:
                raise CliError(f"--cross {text}: no column {name!r}{suggestion(name, known)}")
        raise CliError(f"--cross {text}: two or more columns are needed, as in a:b")
    return Field(text, "cross", None, tuple(members))


def _fill(out: np.ndarray, chunk: Chunk, field: Field, bad: BadRows) -> None:
    start = 0
    for part in chunk.parts:
        stop = start + len(part.rows)
        out[start:stop], wrong = read.converted(part, field.name, "a number", read.numbers)
        bad.add(field.name, start, wrong, read.NO_NUMBER)
        start = stop


def _fill_hashes(out: np.ndarray, chunk: Chunk, field: Field, bad: BadRows, cache: dict[Any, Any]) -> None:
    if field in cache:
        out[:] = cache[field]
        return
    if field.kind == "cross":
        for position, member in enumerate(field.members):
            hashed = np.empty_like(out)
            _fill_hashes(hashed, chunk, member, bad, cache)
            out[:] = combine(out, hashed, field.seed) if position else hashed
        return
    assert field.column is not None
    start = 0
    for part in chunk.parts:
        stop = start + len(part.rows)
        name = field.column.name
        if field.kind == "category":
            out[start:stop] = read.converted(part, name, "a category", read.hashes, field.column.kind, field.seed)
        else:
            parts, wrong = cache.get((name, start)) or read.converted(part, name, "a time", read.times)
            cache[name, start] = parts, wrong
            bad.add(name, start, wrong, read.NO_TIME)
            table = [hash_bytes(_part(field.kind, number).encode(), field.seed) for number in range(_TIME_PARTS[field.kind])]
            table.append(hash_bytes(b"", field.seed))  # at -1, for missing
            out[start:stop] = np.array(table, np.uint64)[parts[list(_TIME_PARTS).index(field.kind)]]
        start = stop
    cache[field] = out


def _part(kind: str, number: int) -> str:
    """A part of a time as text: Mon to Sun for weekdays, else the number; "" for none."""
    return "" if number < 0 else _WEEKDAYS[number] if kind == "weekday" else str(number)


def _described(field: Field, column: Any, row: int) -> str:
    if field.kind == "cross":
        return " & ".join(_described(member, column, row) for member in field.members)
    assert field.column is not None
    array = column(field.column.name).slice(row, 1)
    if field.kind == "number":
        return f"{field.name} missing" if np.isnan(read.numbers(array)[0][0]) else field.name
    if field.kind == "category":
        return f"{field.name}={read.shown(array, field.column.kind, 0)}"
    number = int(read.times(array)[0][list(_TIME_PARTS).index(field.kind)][0])
    return f"{field.name}={_part(field.kind, number)}"
