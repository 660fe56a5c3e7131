"""``adagrad inspect``: what a model or state file holds: arrays, settings, accumulators and effective learning rates.

The effective learning rate of a weight is what its next gradient is multiplied by, ``lr / sqrt(a + epsilon)``: where it is
small, much has been learned of the weight already.
"""

import io
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from adagrad import state
from adagrad.cli.errors import CliError, explain
from adagrad.cli.files import replacing
from adagrad.cli.report import aligned
from adagrad.settings import Settings

__all__ = ["inspect"]

_QUANTILES = (0.0, 0.01, 0.25, 0.5, 0.75, 0.99, 1.0)
_BARS = 12
_LONGEST = 40


def inspect(path: str, picture: str | None) -> list[str]:
    """The lines that are printed; with ``picture`` the effective learning rates are drawn into that PNG file.

    ``path`` is a state file of any face, or the folder that ``adagrad train`` wrote.
    """
    file = os.path.join(path, "model.safetensors") if os.path.isdir(path) else path
    try:
        arrays, metadata = state.read(file)
        size = os.path.getsize(file)
    except OSError as error:
        raise CliError(explain(error, file)) from error
    except state.StateFileError as error:
        raise CliError(str(error)) from error
    found = list(_parts(arrays))
    lines = [f"{file}: {metadata.get('kind', 'arrays')}, {size:,} bytes, {len(found)} arrays"]
    rows = [("array", "type", "shape", "zeros", "smallest", "largest")]
    for name, array, _ in found:
        rows.append((name, str(array.dtype), " x ".join(map(str, array.shape)) or "one number", *_figures(array)))
    lines += aligned(rows, 3)
    said = _settings(metadata)
    lines += [f"Settings: {json.dumps(said)}"] if said else []
    groups = _accumulators(found)
    if groups:
        notes = "".join(sorted({f"; {note}" for _, note in groups.values() if note}))
        lines += ["", f"Accumulators (sums of squared gradients{notes}):"]
        lines += _table({name: values for name, (values, _) in groups.items()})
        rates = {name: rate for name, (a, _) in groups.items() if (rate := _effective(a, said)) is not None}
        if rates:
            lines += ["", f"Effective learning rates, {_formula(said)}:", *_table(rates)]
            lines += ["", *_drawn(np.concatenate(list(rates.values())))]
            if picture is not None:
                with replacing(Path(picture)) as out:
                    out.write(_picture(rates, _formula(said)))
                return [*lines, "", f"Written: {picture}"]
        else:
            lines += ["", "The learning rate is not a number, so effective ones are not shown."]
    if picture is not None:
        raise CliError(f"--picture {picture}: there is nothing to draw, {file} has no accumulators with a learning rate")
    return lines


def _parts(arrays: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray, str]]:
    """``(name, array, note)``: of what is stored packed only the rows that were ever touched."""
    for name, array in arrays.items():
        base, _, part = name.rpartition(":")
        if part == "used":
            yield base, array, "of the slots ever touched; all others have one value"
        elif part != "rest":
            yield name, array, ""


def _accumulators(found: list[tuple[str, np.ndarray, str]]) -> dict[str, tuple[np.ndarray, str]]:
    return {
        name: (array.astype(np.float64).reshape(-1), note)
        for name, array, note in found
        if name.rpartition("/")[2] == "accumulator" and array.size
    }


def _figures(array: np.ndarray) -> tuple[str, str, str]:
    if not array.size:
        return "-", "-", "-"
    wide = array.astype(np.float64) if array.dtype.kind not in "biuf" else array
    return f"{np.mean(wide == 0):.1%}", f"{wide.min():.4g}", f"{wide.max():.4g}"


def _settings(value: Any) -> dict[str, Any]:
    """The optimizer's arguments, wherever they stand in the metadata."""
    if isinstance(value, dict):
        if {"learning_rate", "initial_accumulator_value"} <= value.keys():
            return value
        for inner in value.values():
            if found := _settings(inner):
                return found
    return {}


def _effective(accumulator: np.ndarray, settings: dict[str, Any]) -> np.ndarray | None:
    rate, epsilon = settings.get("learning_rate"), settings.get("epsilon", Settings().epsilon)
    if not isinstance(rate, int | float) or isinstance(rate, bool):
        return None
    with np.errstate(divide="ignore"):
        if settings.get("epsilon_placement") == "outside":
            return rate / (np.sqrt(accumulator) + epsilon)
        return rate / np.sqrt(accumulator + epsilon)


def _formula(settings: dict[str, Any]) -> str:
    outside = settings.get("epsilon_placement") == "outside"
    return "lr / (sqrt(a) + epsilon)" if outside else "lr / sqrt(a + epsilon)"


def _table(groups: dict[str, np.ndarray]) -> list[str]:
    rows = [("", *("smallest" if q == 0 else "largest" if q == 1 else f"{q:.0%}" for q in _QUANTILES))]
    rows += [(name, *(f"{value:.4g}" for value in np.quantile(values, _QUANTILES))) for name, values in groups.items()]
    return aligned(rows)


def _drawn(values: np.ndarray) -> list[str]:
    """A histogram of the logarithms in characters."""
    values = values[np.isfinite(values) & (values > 0)]
    if not values.size:
        return []
    counts, edges = np.histogram(np.log10(values), bins=_BARS)
    return [
        f"  {10**low:9.3g} to {10**high:9.3g}  {'#' * int(np.ceil(_LONGEST * count / counts.max()))} {count:,}"
        for count, low, high in zip(counts.tolist(), edges[:-1].tolist(), edges[1:].tolist(), strict=True)
    ]


def _picture(rates: dict[str, np.ndarray], formula: str) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4))
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.11, 0.14, 0.86, 0.78))
    finite = {name: values[np.isfinite(values) & (values > 0)] for name, values in rates.items()}
    everything = np.log10(np.concatenate(list(finite.values())))
    bins = np.histogram_bin_edges(everything, bins=50).tolist()
    for name, values in finite.items():
        axes.hist(np.log10(values), bins=bins, histtype="stepfilled", alpha=0.5, label=name)
    axes.set_yscale("log")
    axes.set_xlabel(f"effective learning rate, {formula}, power of ten")
    axes.set_ylabel("weights")
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=120)
    return image.getvalue()
