"""An embedding layer whose gradient is the rows that were looked up."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from adagrad.keras.rows import BACKEND, value_of
from adagrad.keras.taps import active_taps

if BACKEND == "torch":
    import torch
elif BACKEND == "tensorflow":
    import tensorflow as tf

__all__ = ["Embedding"]

Tensor = Any


@keras.saving.register_keras_serializable(package="adagrad")
class Embedding(keras.layers.Embedding):
    """``keras.layers.Embedding``, to put where that stands, with gradients that `adagrad.keras.Adagrad` steps fast by.

    On PyTorch the gradient of the table is a sparse tensor of the batch's rows, under ``fit`` too; Keras's layer gives a
    dense one of the table's size. On TensorFlow both layers give ``tf.IndexedSlices``, but Keras's reads the whole table,
    which TensorFlow copies once an optimizer has set rows of it; this one reads the batch's rows. On JAX a gradient is dense,
    except in `adagrad.keras.row_train_step`, which differentiates by the rows that this layer looks up.

    Arguments, shapes, masks and files are those of ``keras.layers.Embedding``. With LoRA or quantized it computes as that
    does. A regularizer makes the gradient dense, since it has one for every row.

    >>> import keras
    >>> layer = Embedding(1000, 8)
    >>> layer(keras.ops.array([[4], [20]])).shape == (2, 1, 8)
    True
    """

    def call(self, inputs: Tensor) -> Tensor:
        """The rows of the table for integer ``inputs``, in the compute dtype; shape ``(*inputs.shape, output_dim)``."""
        if self.lora_enabled or self.quantization_mode is not None:
            return super().call(inputs)
        taps = active_taps()
        if (BACKEND == "jax" and taps is None) or (BACKEND == "tensorflow" and not isinstance(inputs, tf.Tensor)):
            return super().call(inputs)
        table = self._table()
        if BACKEND != "jax":
            ids = inputs if keras.backend.standardize_dtype(inputs.dtype) in ("int32", "int64") else ops.cast(inputs, "int32")
            ids = ops.where(ids < 0, ids + self.input_dim, ids)  # as Keras takes them
            if BACKEND == "tensorflow":
                rows = tf.gather(table, ids)  # of a tf.Variable, without reading the rest
            else:
                rows = torch.nn.functional.embedding(ids, table, sparse=table.requires_grad and torch.is_grad_enabled())
            return ops.cast(rows, self.compute_dtype)
        assert taps is not None
        return ops.cast(taps.look_up(self._embeddings, table, inputs), self.compute_dtype)

    def _table(self) -> Tensor:
        """The table as it is stored: the rows are cast, where Keras makes a copy of all of it in half precision."""
        variable = self._embeddings
        kept = variable._autocast
        variable._autocast = False
        try:
            return value_of(variable)
        finally:
            variable._autocast = kept  # for those who use the table otherwise, a tied output layer say

    @property
    def embeddings(self) -> Any:
        """The table."""
        taps = active_taps()
        if taps is not None:
            taps.refuse(f"the table of {self.name} is used other than by looking up rows")
        return super().embeddings
