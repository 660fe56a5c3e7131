"""Dynamic loss scaling around the NumPy face."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import numpy as np

from adagrad import checkpoint
from adagrad.optimizer import Adagrad, Gradients, Variables
from adagrad.settings import check_integer, check_number

__all__ = ["LossScaleOptimizer"]


class LossScaleOptimizer:
    """Scale the loss of an inner optimizer by a factor that adapts itself, so that half-precision gradients don't vanish.

    `apply` divides the gradients by the scale, in the dtype of the arithmetic, and steps the inner optimizer. If a
    gradient is not finite (after the rows of repeated ids are summed), the whole call is skipped, the scale halves and the
    count of clean steps starts anew; ``dynamic_growth_steps`` clean steps in a row double the scale. It stays within
    [2**-20, 2**40].

    Parameters
    ----------
    inner_optimizer : Adagrad
        Must have no ``loss_scale_factor`` of its own.
    initial_scale : float in [2**-20, 2**40], default 2**15
    dynamic_growth_steps : int >= 1, default 2000

    >>> import numpy as np, adagrad
    >>> w = np.ones(2, np.float16)
    >>> optimizer = adagrad.LossScaleOptimizer(adagrad.Adagrad(0.1), initial_scale=1024.0)
    >>> optimizer.apply([np.array([np.inf, 1.0], np.float16)], [w])
    >>> w.tolist(), optimizer.scale, optimizer.iterations
    ([1.0, 1.0], 512.0, 0)
    """

    LOWEST, HIGHEST = 2.0**-20, 2.0**40

    def __init__(self, inner_optimizer: Adagrad, initial_scale: float = 2.0**15, dynamic_growth_steps: int = 2000) -> None:
        if not isinstance(inner_optimizer, Adagrad):
            raise TypeError(f"inner_optimizer must be an adagrad.Adagrad, got {inner_optimizer!r}")
        factor = inner_optimizer._engine.settings.loss_scale_factor
        if factor is not None:
            raise ValueError(f"inner_optimizer must have no loss_scale_factor, which is decided here, got {factor!r}")
        self.inner_optimizer = inner_optimizer
        self.initial_scale = check_number("initial_scale", initial_scale, low=self.LOWEST, high=self.HIGHEST)
        self.dynamic_growth_steps = check_integer("dynamic_growth_steps", dynamic_growth_steps)
        self.scale = self.initial_scale
        self.clean_steps = 0

    # -- a step ----------------------------------------------------------------------------------------------------

    def build(self, variables: Variables, constraints: Any = None) -> None:
        """`Adagrad.build` of the inner optimizer."""
        self.inner_optimizer.build(variables, constraints)

    def scale_loss(self, loss: Any) -> Any:
        """``loss * scale``: what the gradients given to `apply` should be taken of."""
        return loss * self.scale

    def apply(self, grads: Gradients, trainable_variables: Variables | None = None) -> None:
        """One step by gradients of the scaled loss; skipped whole if one is not finite. See `Adagrad.apply`."""
        found = self.inner_optimizer._match(grads, trainable_variables)
        if found is None:
            return
        with self.inner_optimizer._engine._lock:
            self._apply(*found)

    def _apply(self, slots: np.ndarray, gradients: Sequence[Any]) -> None:
        if not self.inner_optimizer._engine.apply(slots, gradients, loss_scale=self.scale, skip=True):
            self.scale, self.clean_steps = max(self.scale / 2, self.LOWEST), 0
        elif self.clean_steps + 1 >= self.dynamic_growth_steps:
            self.scale, self.clean_steps = min(self.scale * 2, self.HIGHEST), 0
        else:
            self.clean_steps += 1

    def apply_gradients(self, grads_and_vars: Iterable[tuple[Any, np.ndarray]]) -> int:
        """`apply` on pairs of (gradient, variable); returns `iterations`."""
        pairs = list(grads_and_vars)
        self.apply([gradient for gradient, _ in pairs], [variable for _, variable in pairs])
        return self.iterations

    def finalize_variable_values(self, var_list: Variables) -> None:
        """`Adagrad.finalize_variable_values` of the inner optimizer."""
        self.inner_optimizer.finalize_variable_values(var_list)

    def exclude_from_weight_decay(self, var_list: Any = None, var_names: Any = None) -> None:
        """`Adagrad.exclude_from_weight_decay` of the inner optimizer."""
        self.inner_optimizer.exclude_from_weight_decay(var_list, var_names)

    @property
    def iterations(self) -> int:
        """The inner optimizer's real steps."""
        return self.inner_optimizer.iterations

    @property
    def learning_rate(self) -> float:
        """The inner optimizer's learning rate; settable."""
        return self.inner_optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        self.inner_optimizer.learning_rate = value

    # -- state -----------------------------------------------------------------------------------------------------

    @property
    def variables(self) -> list[np.ndarray]:
        """The count of clean steps, the scale, and the inner optimizer's `Adagrad.variables`."""
        return [np.array(self.clean_steps, np.int64), np.array(self.scale), *self.inner_optimizer.variables]

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Set the state from arrays in the order of `variables`; if anything doesn't fit, nothing has changed."""
        weights = list(weights)
        if len(weights) < 2:
            raise ValueError(f"weights must be {len(self.variables)} arrays, got {len(weights)}")
        clean, scale = self._checked(np.asarray(weights[0]).item(), np.asarray(weights[1]).item())
        self.inner_optimizer.set_weights(weights[2:])
        self.clean_steps, self.scale = clean, scale

    def _checked(self, clean_steps: Any, scale: Any) -> tuple[int, float]:
        return (
            check_integer("the count of clean steps", clean_steps, low=0),
            check_number("the scale", scale, low=self.LOWEST, high=self.HIGHEST),
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """`Adagrad.save`, with the scale and the count of clean steps."""
        engine = self.inner_optimizer._engine
        with engine._lock:
            checkpoint.save(engine, path, {"loss_scale": {"scale": self.scale, "clean_steps": self.clean_steps}})

    def load(self, path: str | os.PathLike[str], *, strict: bool = True) -> None:
        """Restore what `save` wrote, as `Adagrad.load` does; a file without a loss scale raises ``ValueError``."""

        def check(metadata: Mapping[str, Any]) -> tuple[int, float]:
            described = metadata.get("loss_scale")
            if not isinstance(described, Mapping):
                raise ValueError(f"{os.fspath(path)} holds no loss scale; it was saved by an optimizer without one")
            return self._checked(described.get("clean_steps"), described.get("scale"))

        engine = self.inner_optimizer._engine
        with engine._lock:
            self.clean_steps, self.scale = checkpoint.load(engine, path, strict=strict, extra=check)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments as a dict of JSON values, the inner optimizer's under "inner_optimizer"."""
        return {
            "inner_optimizer": self.inner_optimizer.get_config(),
            "initial_scale": self.initial_scale,
            "dynamic_growth_steps": self.dynamic_growth_steps,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any], custom_objects: Mapping[str, type] | None = None) -> Self:
        """Make an optimizer from what `get_config` gave, without state."""
        config = dict(config)
        unknown = sorted(set(config) - {"inner_optimizer", "initial_scale", "dynamic_growth_steps"})
        if unknown or "inner_optimizer" not in config:
            raise ValueError(f"config must have inner_optimizer and nothing unknown, got {sorted(config)}")
        return cls(Adagrad.from_config(config.pop("inner_optimizer"), custom_objects), **config)
