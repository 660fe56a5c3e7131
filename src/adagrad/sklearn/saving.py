"""State of an estimator: as arrays and JSON values, in a file, and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np
from sklearn.base import BaseEstimator

from adagrad import state
from adagrad.linear import Learner
from adagrad.schedules import LearningRateSchedule
from adagrad.settings import Settings, check_integer

__all__ = ["Saving"]

_FORMAT = 2
# What the arguments were that format 1 didn't know, and the values that are not said, since they play no part.
_BEFORE: dict[str, Any] = {"penalty": None, "alpha": None, "l1_ratio": None, "loss_epsilon": None, "quantile": None}
_KIND = "adagrad-estimator"


class Saving(BaseEstimator):
    """The methods of `adagrad.sklearn.base.AdagradLinear` that write down what was learned, and read it."""

    _usual: ClassVar[dict[str, Any]]  # the arguments beside those in `_BEFORE` that format 1 didn't know
    _learner: Learner
    _fixed: dict[str, Any]  # `_model_arguments` as training began
    n_iter_: int

    def _fitted(self) -> Learner:
        raise NotImplementedError

    def _settings(self) -> Settings:
        raise NotImplementedError

    def _make_learner(self, settings: Settings, features: int, dtype: np.dtype) -> Learner:
        raise NotImplementedError

    def _model_arguments(self) -> dict[str, Any]:
        raise NotImplementedError

    def state_arrays(self) -> dict[str, np.ndarray]:
        """Copies of all arrays that training needs to go on, bit for bit.

        ``coef`` (features, outputs), ``intercept`` (outputs,), of each its ``/accumulator``, and what the arguments ask
        for: ``/average``, ``/buffer``, and those under ``lazy/``, by which weights and averages may be behind, until
        `finalize`.
        """
        return self._fitted().state()

    def state_metadata(self) -> dict[str, Any]:
        """What `load_state` needs beside `state_arrays`, as JSON values.

        ``arguments`` are those of the constructor that decide what is learned. A learning rate that is a schedule is a
        dict there (see `adagrad.schedules.deserialize`); any other callable is ``"callable"``, since code is not data.
        """
        learner = self._fitted()
        names = getattr(self, "feature_names_in_", None)
        return {
            "format": _FORMAT,
            "estimator": type(self).__name__,
            "arguments": {**self._arguments(learner.settings), **self._fixed},
            "n_features_in": learner.features,
            "feature_names_in": None if names is None else names.tolist(),
            "dtype": learner.dtype.name,
            "n_iter": self.n_iter_,
            "counters": learner.counters(),
            "classes": self._describe_classes(),
        }

    def load_state(self, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, Any]) -> Self:
        """Take over `state_arrays` and `state_metadata` of an estimator with equal arguments; training goes on, bit for bit.

        Only the learning rate may differ; then this estimator's holds. Raises ``ValueError`` for what doesn't fit, and
        has changed nothing then.
        """
        loaded = type(self)(**self.get_params(deep=False))
        try:
            loaded._load(arrays, metadata)
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"this is no state of an {type(self).__name__}: {error!r}") from error
        self.__dict__.clear()
        self.__dict__.update(vars(loaded))
        return self

    def _load(self, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, Any]) -> None:
        settings = self._settings()
        if metadata["format"] not in (1, _FORMAT):
            raise ValueError(f"format of the state must be 1 or {_FORMAT}, got {metadata['format']!r}: made by a newer version")
        ours = self._arguments(settings) | {"estimator": type(self).__name__}
        before = {**_BEFORE, **self._usual} if metadata["format"] == 1 else {}
        theirs = {**before, **metadata["arguments"], "estimator": metadata["estimator"]}
        free = ("learning_rate", "name")
        different = [name for name in ours if name not in free and (name not in theirs or theirs[name] != ours[name])]
        if different:
            clauses = [f"{name} is {theirs.get(name)!r} there and {ours[name]!r} here" for name in different]
            raise ValueError(f"the state doesn't fit this estimator: {'; '.join(clauses)}")
        if metadata["dtype"] not in ("float32", "float64"):
            raise ValueError(f"dtype of the state must be float32 or float64, got {metadata['dtype']!r}")
        self.n_features_in_ = check_integer("n_features_in", metadata["n_features_in"])
        if metadata["feature_names_in"] is not None:
            self.feature_names_in_ = np.array(metadata["feature_names_in"], object)
        self._load_classes(metadata["classes"])
        learner = self._make_learner(settings, self.n_features_in_, np.dtype(metadata["dtype"]))
        learner.load(arrays, metadata["counters"])
        self._learner, self.n_iter_ = learner, check_integer("n_iter", metadata["n_iter"])

    def _arguments(self, settings: Settings) -> dict[str, Any]:
        rate = settings.learning_rate
        code = callable(rate) and not isinstance(rate, LearningRateSchedule)
        values = (dataclasses.replace(settings, learning_rate=0.0) if code else settings).to_dict()
        values |= self._model_arguments()
        return values | ({"learning_rate": "callable"} if code else {})

    def _describe_classes(self) -> Any:
        return None

    def _load_classes(self, described: Any) -> None:
        """Set what `_describe_classes` described."""

    def save(self, path: Any) -> None:
        """Write what was learned, optimizer state and arguments to one file, which `load` reads: arrays and JSON, no code.

        Raises ``ValueError`` for an argument that can't be written down: a learning rate that is a plain function, or a
        ``random_state`` that is a generator.
        """
        arguments = self.get_params(deep=False)
        rate = arguments["learning_rate"]
        if callable(rate):
            arguments["learning_rate"] = self._settings().to_dict()["learning_rate"]
        if arguments["random_state"] is not None:
            arguments["random_state"] = check_integer("random_state, to be saved,", arguments["random_state"], low=0)
        weights = arguments.get("class_weight")
        if isinstance(weights, Mapping):
            arguments["class_weight"] = [[_plain(label), float(weight)] for label, weight in weights.items()]
        arguments = {name: _plain(value) for name, value in arguments.items()}
        content = {"kind": _KIND, "constructor": arguments, "state": self.state_metadata()}
        state.write(path, self.state_arrays(), content)

    @classmethod
    def load(cls, path: Any) -> Self:
        """The estimator that `save` wrote: it predicts the same, and training goes on from there, bit for bit.

        Nothing in the file is executed. Raises ``ValueError`` for a file that is damaged or holds something else.
        """
        arrays, content = state.read(path)
        if content.get("kind") != _KIND:
            raise ValueError(f"{path} is a state file, but not of an estimator that save wrote")
        made = content["state"].get("estimator")
        if made != cls.__name__:
            raise ValueError(f"{path} holds an {made}, not an {cls.__name__}")
        arguments = dict(content["constructor"])
        unknown = sorted(set(arguments) - set(cls._get_param_names()))
        if unknown:
            raise ValueError(f"{path} was made by a newer version: unknown arguments {', '.join(unknown)}")
        if isinstance(arguments["learning_rate"], Mapping):
            arguments["learning_rate"] = Settings.from_dict({"learning_rate": arguments["learning_rate"]}).learning_rate
        if isinstance(arguments.get("class_weight"), list):
            arguments["class_weight"] = dict(arguments["class_weight"])
        return cls(**arguments).load_state(arrays, content["state"])


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
