"""Dynamic loss scaling around the Keras face."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import keras
import numpy as np
from keras import ops

from adagrad.keras import stages, statefile
from adagrad.keras.optimizer import Adagrad, stateless_apply
from adagrad.keras.rows import as_it_stands, value_of
from adagrad.settings import check_integer, check_number

__all__ = ["LossScaleOptimizer"]

Tensor = Any
Variable = Any


@keras.saving.register_keras_serializable(package="adagrad")
class LossScaleOptimizer(keras.optimizers.LossScaleOptimizer):
    """``keras.optimizers.LossScaleOptimizer`` for `adagrad.keras.Adagrad`: on every backend, eager and compiled, with rows.

    `apply` divides the gradients by the scale, in the dtype of the arithmetic, and steps the inner optimizer. If a gradient
    is not finite (after the rows of repeated ids are summed), the whole call is skipped, the scale halves and the count of
    clean steps starts anew; ``dynamic_growth_steps`` clean steps in a row double the scale. It stays within
    [2**-20, 2**40].

    Keras's wrapper divides in the gradient's dtype, where small float16 gradients vanish, has no bounds, refuses the sparse
    tensors of PyTorch, and fails in eager JAX.

    Parameters
    ----------
    inner_optimizer : adagrad.keras.Adagrad
        Must have no ``loss_scale_factor`` of its own.
    initial_scale : float in [2**-20, 2**40], default 2**15
    dynamic_growth_steps : int >= 1, default 2000
    name : str or None
    """

    LOWEST, HIGHEST = 2.0**-20, 2.0**40

    def __init__(
        self,
        inner_optimizer: Adagrad,
        initial_scale: float = 2.0**15,
        dynamic_growth_steps: int = 2000,
        name: str | None = None,
    ) -> None:
        if not isinstance(inner_optimizer, Adagrad):
            raise TypeError(f"inner_optimizer must be an adagrad.keras.Adagrad, got {inner_optimizer!r}")
        factor = inner_optimizer.loss_scale_factor
        if factor is not None:
            raise ValueError(f"inner_optimizer must have no loss_scale_factor, which is decided here, got {factor!r}")
        initial_scale = check_number("initial_scale", initial_scale, low=self.LOWEST, high=self.HIGHEST)
        dynamic_growth_steps = check_integer("dynamic_growth_steps", dynamic_growth_steps)
        super().__init__(inner_optimizer, initial_scale, dynamic_growth_steps, name=name)

    # -- a step ----------------------------------------------------------------------------------------------------

    @as_it_stands
    def apply(self, grads: Sequence[Any], trainable_variables: Sequence[Variable] | None = None) -> None:
        """One step by gradients of the scaled loss; skipped whole if one is not finite. See `Adagrad.apply`."""
        inner = self.inner_optimizer
        found = inner._match(grads, trainable_variables)
        if found is None:
            return
        if not self.built:
            with keras.name_scope(self.name, caller=self):
                self.build(list(inner._trainable_variables))
        gradients, overwrites = found
        scale, engine = value_of(self.dynamic_scale), inner._current_engine()
        finite = stages.is_finite([gradient for gradient, _ in overwrites])
        if engine is not None:
            if bool(finite) and inner._step_engine(engine, gradients, overwrites, scale, skip=True):
                self._count()
            else:
                self._halve()
            return
        prepared = stages.prepared(inner._slots, gradients, scale)

        def step() -> None:
            inner._overwrite(overwrites)
            inner._step(prepared)
            self._count()

        everything = [*self.variables, *inner._trainable_variables]
        stages.choose(ops.logical_and(finite, stages.is_finite(prepared)), step, self._halve, everything)

    def _count(self) -> None:
        """A clean step."""
        scale, clean = value_of(self.dynamic_scale), value_of(self.step_counter) + 1
        full = clean >= self.dynamic_growth_steps
        self.dynamic_scale.assign(ops.where(full, ops.minimum(scale * 2.0, self.HIGHEST), ops.convert_to_tensor(scale)))
        self.step_counter.assign(ops.where(full, ops.zeros_like(clean), clean))

    def _halve(self) -> None:
        self.dynamic_scale.assign(ops.maximum(value_of(self.dynamic_scale) / 2.0, self.LOWEST))
        self.step_counter.assign(ops.zeros_like(value_of(self.step_counter)))

    @as_it_stands
    def apply_gradients(self, grads_and_vars: Iterable[tuple[Any, Variable]]) -> Any:
        """`apply` on pairs of (gradient, variable); returns the inner optimizer's iterations."""
        pairs = list(grads_and_vars)
        self.apply([gradient for gradient, _ in pairs], [variable for _, variable in pairs])
        return self.iterations

    def stateless_apply(
        self, optimizer_variables: Sequence[Tensor], grads: Sequence[Any], trainable_variables: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """See `Adagrad.stateless_apply`."""
        return stateless_apply(self, optimizer_variables, grads, trainable_variables)

    def exclude_from_weight_decay(self, var_list: Any = None, var_names: Any = None) -> None:
        """`Adagrad.exclude_from_weight_decay` of the inner optimizer."""
        self.inner_optimizer.exclude_from_weight_decay(var_list, var_names)

    # -- state -----------------------------------------------------------------------------------------------------

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Set the state from arrays in the order of `variables`; if anything doesn't fit, nothing has changed."""
        weights, own = list(weights), len(self._variables)
        if not self.built or len(weights) != len(self.variables):
            raise ValueError(f"weights must be {len(self.variables)} arrays, of a built optimizer, got {len(weights)}")
        mine = [np.asarray(ops.convert_to_numpy(weight)).item() for weight in weights[:own]]
        clean, scale = self._checked(mine[-2], mine[-1])
        self.inner_optimizer.set_weights(weights[own:])
        self._set(clean, scale)

    def load_own_variables(self, store: Mapping[str, Any]) -> None:
        """Set the state from what `save_own_variables` stored, as `set_weights` does; see `Adagrad.load_own_variables`."""
        arrays = statefile.stored_variables(store, len(self.variables))
        if len(arrays) < len(self.variables) and len(arrays) <= 4:  # saved before it was built: nothing has happened
            return
        if not self.built:
            warnings.warn(
                f"the state of {self.name} is not loaded, since it is not built yet: call optimizer.build(variables) first",
                stacklevel=2,
            )
            return
        self.set_weights(arrays)

    def save_own_variables(self, store: Any) -> None:
        """Put copies of `variables` into ``store`` under "0", "1", ..., as Keras does."""
        statefile.store_variables(self.inner_optimizer, self._variables, store)

    def _checked(self, clean_steps: Any, scale: Any) -> tuple[int, float]:
        return (
            check_integer("the count of clean steps", clean_steps, low=0),
            check_number("the scale", scale, low=self.LOWEST, high=self.HIGHEST),
        )

    def _set(self, clean_steps: int, scale: float) -> None:
        self.step_counter.assign(clean_steps)
        self.dynamic_scale.assign(scale)

    def save(self, path: str | os.PathLike[str]) -> None:
        """`Adagrad.save`, with the scale and the count of clean steps."""
        own = (
            {"scale": float(value_of(self.dynamic_scale)), "clean_steps": int(value_of(self.step_counter))}
            if self.built
            else {}
        )
        statefile.save(self.inner_optimizer, path, {"loss_scale": own})

    def load(
        self,
        path: str | os.PathLike[str],
        *,
        strict: bool = True,
        names: Mapping[str, str] | None = None,
        transpose: Iterable[str] = (),
    ) -> None:
        """Restore what `save` wrote, as `Adagrad.load` does; a file without a loss scale raises ``ValueError``."""

        def check(metadata: Mapping[str, Any]) -> tuple[int, float]:
            described = metadata.get("loss_scale")
            if not isinstance(described, Mapping):
                raise ValueError(f"{os.fspath(path)} holds no loss scale; it was saved by an optimizer without one")
            return self._checked(described.get("clean_steps"), described.get("scale"))

        found = statefile.load(self.inner_optimizer, path, strict=strict, names=names, transpose=transpose, extra=check)
        self._set(*found)

    @classmethod
    def from_config(cls, config: Mapping[str, Any], custom_objects: Mapping[str, Any] | None = None) -> Self:
        """Make an optimizer from what `get_config` gave, without state."""
        config = dict(config)
        inner = keras.saving.deserialize_keras_object(config.pop("inner_optimizer"), custom_objects=custom_objects)
        return cls(inner, **config)
