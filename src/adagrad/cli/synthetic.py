"""A generated click log whose true log loss is known, to measure a learner against; its data are synthetic, of no one.

A file of any length is written in flat memory. How far a model's log loss lies above the true one is then a figure of the
model alone: nobody, knowing all but the coin that fell, can do better on average.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import csv

CHUNK_ROWS = 1 << 16

_USERS, _ITEMS, _SITES = 100_000, 20_000, 1_000
_DEVICES = ("phone", "desktop", "tablet", "tv")
_MISSING_AGE = 0.1

SCHEMA = pa.schema(
    [
        ("click", pa.int8()),
        ("user_id", pa.int32()),
        ("item_id", pa.int32()),
        ("site", pa.string()),
        ("device", pa.string()),
        ("position", pa.int8()),
        ("price", pa.float64()),
        ("age", pa.int8()),
    ]
)
"""Columns of the file. `click` is the label, `position` (1 to 10), `price` and `age` (18 to 80, or missing) are numbers;
the others are categories."""


@dataclass(frozen=True)
class TrueLoss:
    """The log loss, in nats a row, of the probabilities that a generated file was drawn from.

    Attributes
    ----------
    rows, clicks : int
        Rows of the file, and how many of them are clicks.
    expected : float
        The mean over the rows of `-p log p - (1-p) log(1-p)`: what the best predictor has on average over all labels
        that these rows might have drawn (Bayes).
    realized : float
        The mean of `-log p` over clicks and `-log(1-p)` over the others: what it has on the labels that were drawn.
        A model's loss on the same rows, less this, is its excess with the coin's noise taken out.
    """

    rows: int
    clicks: int
    expected: float
    realized: float


@dataclass(frozen=True)
class _Model:
    """The weights of the logistic model, one a user, an item, a site and a device, the numbers' slopes and an intercept."""

    user: np.ndarray
    item: np.ndarray
    site: np.ndarray
    device: np.ndarray
    intercept: float = -2.0
    position: float = -0.15
    price: float = -0.4
    age: float = 0.02
    missing_age: float = 1.5

    @classmethod
    def draw(cls, seed: int) -> "_Model":
        rng = np.random.default_rng([seed, 0])
        return cls(
            user=0.5 * rng.standard_normal(_USERS),
            item=0.5 * rng.standard_normal(_ITEMS),
            site=0.7 * rng.standard_normal(_SITES),
            device=0.4 * rng.standard_normal(len(_DEVICES)),
        )


def write_clicks(
    path: str | Path,
    rows: int,
    seed: int,
    *,
    model_seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> TrueLoss:
    """Write a synthetic click log of so many rows as CSV, or as Parquet if `path` ends in `.parquet`.

    A row's click is drawn with probability `p = 1 / (1 + exp(-z))`, where z is the sum of one weight for its user, item,
    site and device, a slope times each number (0 for a missing age, which has a weight of its own) and an intercept: a
    linear model of these columns can come as near to p as its rows allow. Ids are zipf-like: id k of n comes with
    probability `log((k+1)/k) / log(n+1)`, about 1/k, so that there are rare ones in any file.

    The same arguments write the same rows, and a file with more rows begins with those of a shorter one. `seed` draws the
    rows, `model_seed` the weights: files of two seeds and one model are a training and a test set.

    Parameters
    ----------
    path : Path
        Ends in `.csv` or `.parquet`; an existing file is overwritten.
    rows : int
        At least 1. Memory does not grow with it.
    seed, model_seed : int
        At least 0.
    progress : callable, optional
        Called after each chunk of 65,536 rows with the number of rows written so far.

    Raises
    ------
    ValueError, TypeError
        An argument is out of range or of the wrong type; nothing has been written then.
    """
    for name, value, low in (("rows", rows, 1), ("seed", seed, 0), ("model_seed", model_seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be an int, got {value!r}")
        if value < low:
            raise ValueError(f"{name} must be at least {low}, got {value!r}")
    path = Path(path)
    if path.suffix not in (".csv", ".parquet"):
        raise ValueError(f"path must end in .csv or .parquet, got {str(path)!r}")

    model = _Model.draw(model_seed)
    clicks, expected, realized = 0, 0.0, 0.0
    writer = csv.CSVWriter if path.suffix == ".csv" else pq.ParquetWriter
    options = {"write_options": csv.WriteOptions(quoting_style="none")} if path.suffix == ".csv" else {}
    with writer(path, SCHEMA, **options) as out:
        for start in range(0, rows, CHUNK_ROWS):
            count = min(CHUNK_ROWS, rows - start)
            # A chunk has its own generator and is drawn whole, so its rows do not hang on how many rows come in all.
            table, z = _chunk(np.random.default_rng([seed, 1 + start // CHUNK_ROWS]), model)
            table, z = table.slice(0, count), z[:count]
            out.write_table(table)
            click = table["click"].to_numpy()
            # In z, the loss of a label y is log(1 + exp z) - y z, and its mean over y puts p in the place of y.
            normalizer = np.logaddexp(0.0, z)
            clicks += int(np.count_nonzero(click))
            expected += float(np.sum(normalizer - _sigmoid(z) * z))
            realized += float(np.sum(normalizer - click * z))
            if progress is not None:
                progress(start + count)
    return TrueLoss(rows=rows, clicks=clicks, expected=expected / rows, realized=realized / rows)


def _chunk(rng: np.random.Generator, model: _Model) -> tuple[pa.Table, np.ndarray]:
    """Return a chunk of rows and their z, computed from the values as the file holds them (prices are rounded first)."""
    n = CHUNK_ROWS
    user, item, site = (_zipf(rng, len(weights)) for weights in (model.user, model.item, model.site))
    device = rng.integers(len(_DEVICES), size=n)
    position = rng.integers(1, 11, size=n)
    price = np.round(rng.gamma(2.0, 0.5, size=n), 3)
    age = rng.integers(18, 81, size=n)
    no_age = rng.random(n) < _MISSING_AGE
    z = (
        model.intercept
        + model.user[user]
        + model.item[item]
        + model.site[site]
        + model.device[device]
        + model.position * position
        + model.price * price
        + np.where(no_age, model.missing_age, model.age * age)
    )
    click = rng.random(n) < _sigmoid(z)
    columns = (
        pa.array(click.astype(np.int8)),
        pa.array(user.astype(np.int32)),
        pa.array(item.astype(np.int32)),
        _SITE_NAMES.take(pa.array(site)),
        _DEVICE_NAMES.take(pa.array(device)),
        pa.array(position.astype(np.int8)),
        pa.array(price),
        pa.array(age.astype(np.int8), mask=no_age),
    )
    return pa.Table.from_arrays(columns, schema=SCHEMA), z


_SITE_NAMES = pa.array([f"site{k:03d}.example" for k in range(_SITES)])
_DEVICE_NAMES = pa.array(_DEVICES)


def _sigmoid(z: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-z))


def _zipf(rng: np.random.Generator, n: int) -> np.ndarray:
    """Return a chunk of ids 0..n-1; the k-th, counted from 1, comes with probability log((k+1)/k) / log(n+1)."""
    ids = np.exp(rng.random(CHUNK_ROWS) * np.log(n + 1.0)).astype(np.int64) - 1
    return np.minimum(ids, n - 1)  # a draw just below 1 may round up to n
