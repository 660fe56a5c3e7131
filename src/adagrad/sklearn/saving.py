"""An estimator in a file, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator

from adagrad import state
from adagrad.linear import LinearModel
from adagrad.settings import Settings, check_integer

__all__ = ["Saving"]

_KIND = "adagrad-estimator"


class Saving(LinearModel, BaseEstimator):
    """The methods of `adagrad.sklearn.base.AdagradLinear` that write down what was learned, and read it."""

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
