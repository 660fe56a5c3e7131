"""TensorFlow's own Adagrad kernels, in a tf.function; rows with their repeated ids summed by tf.unique first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from bench.peers import SETTINGS, Peer

__all__ = ["Kernel"]


class Kernel(Peer):
    """``ResourceApplyAdagradV2`` and ``ResourceSparseApplyAdagradV2``."""

    epsilon_placement = "outside"
    row_form = "tf.unique, segment sum"

    def __init__(self, parameters: Sequence[np.ndarray]) -> None:
        self.parameters = [tf.Variable(p) for p in parameters]
        initial = SETTINGS["initial_accumulator_value"]
        self.accumulators = [tf.Variable(tf.fill(p.shape, np.float32(initial))) for p in parameters]
        rate, epsilon = (np.float32(SETTINGS[name]) for name in ("learning_rate", "epsilon"))

        @tf.function
        def dense(*gradients: Any) -> None:
            for p, a, g in zip(self.parameters, self.accumulators, gradients, strict=True):
                tf.raw_ops.ResourceApplyAdagradV2(var=p.handle, accum=a.handle, lr=rate, epsilon=epsilon, grad=g)

        @tf.function
        def rows(values: Any, ids: Any) -> None:
            unique, position = tf.unique(ids)
            tf.raw_ops.ResourceSparseApplyAdagradV2(
                var=self.parameters[0].handle,
                accum=self.accumulators[0].handle,
                lr=rate,
                epsilon=epsilon,
                grad=tf.math.unsorted_segment_sum(values, position, tf.size(unique)),
                indices=unique,
            )

        self._dense, self._rows = dense, rows

    def dense(self, gradients: Sequence[np.ndarray]) -> Any:
        """Tensors."""
        return self._dense, [tf.constant(g) for g in gradients]

    def rows(self, values: np.ndarray, ids: np.ndarray) -> Any:
        """Two tensors."""
        return self._rows, [tf.constant(values), tf.constant(ids)]

    def step(self, gradient: Any) -> None:
        """One call, which returns when it is done."""
        function, arguments = gradient
        function(*arguments)

    def read(self, number: int, rows: np.ndarray | None = None) -> np.ndarray:
        """A copy."""
        found: np.ndarray = (self.parameters[number] if rows is None else tf.gather(self.parameters[number], rows)).numpy()
        return found
