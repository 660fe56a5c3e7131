"""Row gradients on JAX: a training step that differentiates by the rows that were looked up, not by their tables.

JAX differentiates a function by its arguments, and the gradient of an argument has its shape: that of a table is as large
as the table, and an optimizer can't make it smaller again. So `row_train_step` gives the loss function other arguments: to
every lookup it adds zeros, the taps, and differentiates by those. The gradient of a tap is that of the rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import keras

from adagrad.gradients import IndexedSlices
from adagrad.keras.loss_scaling import LossScaleOptimizer
from adagrad.keras.optimizer import Adagrad
from adagrad.keras.rows import BACKEND

if BACKEND == "jax":
    import jax
    import jax.numpy as jnp

__all__ = ["Taps", "active_taps", "row_train_step"]

Tensor = Any

_active: ContextVar[Taps | None] = ContextVar("taps", default=None)


def active_taps() -> Taps | None:
    """The taps of the training step that is being traced."""
    return _active.get()


class Taps:
    """The lookups of one run of a model, in their order; ``zeros`` are added to them, or zeros made here if not given."""

    def __init__(self, zeros: list[Tensor] | None = None) -> None:
        self._zeros = None if zeros is None else list(zeros)
        self.variables: list[keras.Variable] = []
        self.ids: list[Tensor] = []
        self.shapes: list[Any] = []

    def look_up(self, variable: keras.Variable, table: Tensor, inputs: Tensor) -> Tensor:
        """The rows of ``table``, the value of ``variable``, which take no part in its gradient, plus the tap."""
        if variable.regularizer is not None:
            self.refuse(f"{variable.path} has a regularizer, whose gradient is that of every row")
        ids = inputs.astype("int32") if not jnp.issubdtype(inputs.dtype, jnp.integer) else inputs
        ids = jnp.where(ids < 0, ids + variable.shape[0], ids)  # as Keras takes them
        rows = jax.lax.stop_gradient(table)[ids]
        self.shapes.append(jax.ShapeDtypeStruct(rows.shape, rows.dtype))
        tap = jnp.zeros(rows.shape, rows.dtype) if self._zeros is None else self._zeros[len(self.ids)]
        self.variables.append(variable)
        self.ids.append(ids)
        return rows + tap

    def refuse(self, why: str) -> None:
        """Raise ``ValueError``: the step would give a wrong gradient."""
        raise ValueError(f"row_train_step needs tables that are used by the lookups of adagrad.keras.Embedding alone; {why}")

    @contextmanager
    def __call__(self) -> Iterator[Taps]:
        """A context in which these are the `active_taps`."""
        token = _active.set(self)
        try:
            yield self
        finally:
            _active.reset(token)


def row_train_step(model: keras.Model, state: tuple[Any, ...], data: Any) -> tuple[dict[str, Any], tuple[Any, ...]]:
    """``keras.Model.train_step`` on JAX, with row gradients for the tables of `adagrad.keras.Embedding`.

    To be called by the ``train_step`` of a model, which ``fit`` compiles as ever; arguments and results are those of Keras.
    It traces the model twice, and runs it once.

    Raises ``RuntimeError`` on another backend, ``TypeError`` if the model's optimizer is neither `adagrad.keras.Adagrad` nor
    `adagrad.keras.LossScaleOptimizer` (Keras's own takes no row gradients on JAX), ``ValueError`` where a table is used
    otherwise than by lookups, which then would have a gradient that the rows don't show.

    >>> import keras, adagrad.keras
    >>> class Model(keras.Model):
    ...     def train_step(self, state, data):
    ...         return adagrad.keras.row_train_step(self, state, data)
    """
    if BACKEND != "jax":
        raise RuntimeError(f"row_train_step is for the JAX backend, where nothing else gives row gradients; this is {BACKEND}")
    if not isinstance(model.optimizer, Adagrad | LossScaleOptimizer):
        raise TypeError(
            "row_train_step gives row gradients, so the model's optimizer must be an adagrad.keras.Adagrad, or, as with "
            f"mixed_float16, an adagrad.keras.LossScaleOptimizer around one, got {type(model.optimizer).__module__}."
            f"{type(model.optimizer).__name__}"
        )
    trainable, non_trainable, optimizer_variables, metrics_variables = state
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)

    def loss_of(parameters: list[Tensor], taps: Taps) -> Any:
        with taps():
            loss, updates = model.compute_loss_and_updates(
                parameters, non_trainable, metrics_variables, x, y, sample_weight, training=True,
                optimizer_variables=optimizer_variables,
            )  # fmt: skip
        return loss, (updates, taps.ids)

    # What is looked up, and in which shapes.
    seen = Taps()
    jax.eval_shape(lambda parameters: loss_of(parameters, seen)[0], trainable)
    places = {id(variable): place for place, variable in enumerate(model.trainable_variables)}
    looked = [places.get(id(variable)) for variable in seen.variables]  # None: frozen
    tables = sorted({place for place in looked if place is not None})

    def loss_by(others: dict[int, Tensor], zeros: list[Tensor]) -> Any:
        return loss_of([others.get(place, value) for place, value in enumerate(trainable)], Taps(zeros))

    others = {place: value for place, value in enumerate(trainable) if place not in tables}
    zeros = [jnp.zeros(shape.shape, shape.dtype) for shape in seen.shapes]
    (_, ((unscaled, predicted, non_trainable, metrics_variables), ids)), (dense, tapped) = jax.value_and_grad(
        loss_by, argnums=(0, 1), has_aux=True
    )(others, zeros)
    gradients: list[Any] = [dense.get(place) for place in range(len(trainable))]
    for place in tables:
        mine = [j for j, found in enumerate(looked) if found == place]
        width = trainable[place].shape[1:]
        gradients[place] = IndexedSlices(
            jnp.concatenate([tapped[j].reshape(-1, *width) for j in mine]), jnp.concatenate([ids[j].reshape(-1) for j in mine])
        )
    trainable, optimizer_variables = model.optimizer.stateless_apply(optimizer_variables, gradients, trainable)
    logs, metrics_variables = model._update_metrics_variables(metrics_variables, unscaled, x, y, predicted, sample_weight)
    return logs, (trainable, non_trainable, optimizer_variables, metrics_variables)
