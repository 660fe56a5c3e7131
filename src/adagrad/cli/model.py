"""A trained model: how rows become features, the labels, the learner, and the two files that hold it all.

``model.safetensors`` has everything (weights, accumulators, what was counted, scaling, roles) and is what `load` reads;
``model.json`` says the same of roles, hash, scaling and versions to a reader. Of an array with a row a slot, only the slots
that were ever touched are stored, if all others hold one and the same value, bit for bit, as they do.
"""

import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pyarrow
import scipy

from adagrad import __version__, state
from adagrad.cli.errors import CliError, explain
from adagrad.cli.features import Features
from adagrad.cli.files import write_text
from adagrad.cli.labels import Labels
from adagrad.cli.learner import make
from adagrad.cli.options import spelled
from adagrad.cli.roles import Column
from adagrad.cli.strongest import Strongest
from adagrad.kernels.losses import LOSSES
from adagrad.linear import ClassifierModel
from adagrad.settings import Settings

__all__ = ["FORMAT", "Model", "pack", "unpack"]

FORMAT = 2  # 1 had no objective; it is read as well


class Model:
    """Features, labels and learner of one training.

    Attributes
    ----------
    settings : dict
        The optimizer's arguments, all of them, as JSON values.
    objective : dict
        The estimator's arguments of loss and penalty that were given.
    batch_size : int or None
        Rows a step; None: one at a time, in order.
    rows : int
        Rows learned from, each counted once a pass.
    counted : int
        Rows in ``features.seen``: those of the first pass of each training.
    """

    def __init__(
        self,
        features: Features,
        labels: Labels,
        settings: dict[str, Any],
        batch_size: int | None,
        objective: dict[str, Any] | None = None,
    ) -> None:
        self.features, self.labels, self.batch_size, self.objective = features, labels, batch_size, dict(objective or {})
        labels.loss = self.objective.get("loss")
        chosen = Settings.from_dict(settings)
        self.settings = chosen.to_dict()
        arguments = {**self.settings, "learning_rate": chosen.learning_rate, "batch_size": batch_size, **self.objective}
        self.learner = make(arguments, len(labels.classes))
        name = LOSSES[self.learner.loss].parameter
        labels.parameter = getattr(self.learner, name) if name else 0.0
        self.strongest = Strongest(features)
        self.rows = self.counted = 0

    def learn(self, x: Any, y: np.ndarray, weight: np.ndarray | None) -> np.ndarray:
        """Learn from the rows in order; returns the prediction of each made before it was learned from."""
        made = self.learner.learn(x, self.labels.scaled(y), weight)
        self.rows += len(y)
        return self._prediction(made)

    def predict(self, x: Any) -> np.ndarray:
        """Probabilities (n, classes), with a hinge loss margins, or values (n,) in the target's units."""
        return self._prediction(self.learner.predict(x))

    def _prediction(self, made: np.ndarray) -> np.ndarray:
        """From what the loss links margins to."""
        if not isinstance(self.learner, ClassifierModel):
            return self.labels.restored(made[:, 0])
        if self.labels.margins:
            return np.hstack([-made, made]) if made.shape[1] == 1 else made
        return self.learner.probabilities(made)

    @property
    def names(self) -> list[str]:
        """The columns that rows to learn from must have."""
        return self.features.names + self.labels.names

    @property
    def coef(self) -> np.ndarray:
        """The weights, (1 or classes, 2**bits)."""
        return self.learner.coef

    # ---- state -------------------------------------------------------------------------------------------------------

    def arrays(self) -> dict[str, np.ndarray]:
        """Every array, those with a row a slot packed."""
        arrays = {f"features/{name}": array for name, array in self.features.state().items()}
        arrays |= {f"learner/{name}": np.asarray(array) for name, array in self.learner.state_arrays().items()}
        return pack(arrays, self.features.seen)

    def description(self) -> dict[str, Any]:
        """Everything that is not an array, as JSON values."""
        features, labels = self.features, self.labels
        return {
            "format": FORMAT,
            "columns": [column.to_dict() for column in features.columns],
            "crosses": features.crosses,
            "bits": features.bits,
            "task": labels.task,
            "task_reason": labels.reason,
            "target": labels.target.name,
            "weight": labels.weight,
            "classes": labels.classes,
            "target_mean": labels.mean,
            "target_deviation": labels.deviation,
            "settings": self.settings,
            "objective": self.objective,
            "batch_size": self.batch_size,
            "rows": self.rows,
            "counted": self.counted,
            "names": {str(slot): name for slot, name in self.strongest.names.items()},
            "values": {str(slot): sums for slot, sums in self.strongest.values.items()},
            "learner": self.learner.state_metadata(),
        }

    @classmethod
    def restore(
        cls, path: str, arrays: Mapping[str, np.ndarray], description: dict[str, Any], given: dict[str, Any] | None = None
    ) -> "Model":
        """The model that `arrays` and `description` were taken from; ``given`` may bring another learning rate.

        ``path`` is the file they come from, for the message of the `CliError` that is raised if they are no such thing.
        """
        try:
            return cls._restore(arrays, description, given or {})
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, StopIteration) as error:
            raise CliError(f"{path} holds a model that this version can't read: {error!r}") from error

    @classmethod
    def _restore(cls, arrays: Mapping[str, np.ndarray], description: dict[str, Any], given: dict[str, Any]) -> "Model":
        columns = [Column(**column) for column in description["columns"]]
        target = next(column for column in columns if column.name == description["target"])
        features = Features(columns, description["crosses"], description["bits"])
        labels = Labels(
            target,
            description["weight"],
            description["task"],
            description["classes"],
            description["task_reason"],
            description["target_mean"],
            description["target_deviation"],
        )
        settings = {**description["settings"], **given}
        changed = [name for name in settings if name != "learning_rate" and settings[name] != description["settings"][name]]
        if changed:
            before = description["settings"][changed[0]]
            raise CliError(f"{spelled(changed[0])} can't change while a model is learned: it was {before}")
        model = cls(features, labels, settings, description["batch_size"], description.get("objective"))
        unpacked = unpack(arrays, 2 ** description["bits"])
        parts: dict[str, dict[str, np.ndarray]] = {"features": {}, "learner": {}}
        for name, array in unpacked.items():
            part, _, rest = name.partition("/")
            if part in parts:
                parts[part][rest] = array
        features.load(parts["features"])
        model.learner.load(parts["learner"], description["learner"])
        model.rows, model.counted = description["rows"], description["counted"]
        model.strongest.names = {int(slot): name for slot, name in description["names"].items()}
        model.strongest.values = {int(slot): sums for slot, sums in description.get("values", {}).items()}
        return model

    def save(self, folder: Path) -> None:
        """Write ``model.safetensors`` and ``model.json``."""
        path = folder / "model.safetensors"
        try:
            state.write(path, self.arrays(), {"kind": "adagrad-cli-model", "model": self.description()})
        except OSError as error:
            raise CliError(explain(error, path)) from error
        write_text(folder / "model.json", json.dumps(self._readable(), indent=2) + "\n")

    def _readable(self) -> dict[str, Any]:
        """What ``model.json`` says."""
        description = self.description()
        features = self.features
        modules = {"numpy": np, "numba": numba, "pyarrow": pyarrow, "scipy": scipy}
        return {
            **{key: value for key, value in description.items() if key not in ("names", "values", "learner", "format")},
            "fields": [field.name for field in features.fields],
            "hash": {
                "function": "XXH64",
                "value": "hash of the value's bytes as the file writes it (a whole number: without .0), "
                "seed = hash of the column's name with seed 0",
                "cross": "hash of both values' hashes, 16 bytes little-endian, seed = hash of the cross's name with seed 1",
                "slot": f"{features.first} + ((hash >> 32) * {2**features.bits - features.first} >> 32)",
            },
            "scaling": {
                "formula": "z = (x - mean) / deviation; beyond 4: sign(z) * min(4 + log(1 + |z| - 4), 10)",
                "numbers": {
                    field.name: {
                        "slot": 2 * d,
                        "slot_if_missing": 2 * d + 1,
                        "values": int(features.count[d]),
                        "mean": float(features.mean[d]),
                        "deviation": float(1.0 / scale) if (scale := features.scale[d]) else 0.0,
                    }
                    for d, field in enumerate(field for field in features.fields if field.kind == "number")
                },
            },
            "versions": {
                "python": platform.python_version(),
                "adagrad": __version__,
                **{name: module.__version__ for name, module in modules.items()},
            },
        }

    @classmethod
    def load(cls, path: str, given: dict[str, Any] | None = None) -> "Model":
        """The model in a folder, or in a ``model.safetensors`` file, that `save` wrote."""
        file = os.path.join(path, "model.safetensors") if os.path.isdir(path) else path
        try:
            arrays, content = state.read(file)
        except OSError as error:
            raise CliError(explain(error, file)) from error
        except state.StateFileError as error:
            raise CliError(str(error)) from error
        if content.get("kind") != "adagrad-cli-model":
            raise CliError(f"{file} is a state file, but not of a model that 'adagrad train' made")
        described = content.get("model")
        made = described.get("format") if isinstance(described, dict) else None
        if made not in (1, FORMAT):
            raise CliError(f"{file} has model format {made!r}; this version reads 1 and {FORMAT}")
        return cls.restore(file, arrays, content["model"], given)


def pack(arrays: Mapping[str, np.ndarray], seen: np.ndarray) -> dict[str, np.ndarray]:
    """``arrays`` with those that have a row a slot (and perhaps one more) cut down to the slots where ``seen`` is not 0.

    ``NAME`` becomes ``NAME:used`` (the rows of the slots in ``slots``, then what comes after the last slot) and
    ``NAME:rest`` (the row of all other slots), unless the others differ from one another in a single bit.
    """
    used = seen != 0
    slots = np.flatnonzero(used).astype(np.int32)
    if 2 * len(slots) > len(used):
        return dict(arrays)
    rest = int(np.argmin(used))
    packed: dict[str, np.ndarray] = {"slots": slots}
    for name, array in arrays.items():
        if array.ndim and len(array) in (len(used), len(used) + 1):
            rows = np.ascontiguousarray(array[: len(used)]).reshape(len(used), -1)
            bits = rows.view(f"u{array.itemsize}")
            if all(np.all((column == column[rest]) | used) for column in bits.T):
                packed[f"{name}:used"] = np.concatenate([array[slots], array[len(used) :]])
                packed[f"{name}:rest"] = array[rest : rest + 1]
                continue
        packed[name] = array
    return packed


def unpack(arrays: Mapping[str, np.ndarray], size: int) -> dict[str, np.ndarray]:
    """What `pack` was given; ``size`` is the number of slots."""
    out: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        base, _, part = name.rpartition(":")
        if part == "used":
            slots = arrays["slots"]
            tail = array[len(slots) :]
            out[base] = np.empty((size + len(tail), *array.shape[1:]), array.dtype)
            out[base][...] = arrays[f"{base}:rest"]
            out[base][slots], out[base][size:] = array[: len(slots)], tail
        elif part != "rest" and name != "slots":
            out[name] = array
    return out
