"""Models whose optimizer is Keras's Adagrad, with ours in its place, and back."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from adagrad import schedules
from adagrad.keras.embedding import Embedding
from adagrad.keras.loss_scaling import LossScaleOptimizer
from adagrad.keras.optimizer import Adagrad
from adagrad.keras.rows import BACKEND, value_of
from adagrad.keras.slots import STATES
from adagrad.schedules import LearningRateSchedule

__all__ = ["adopt", "load_model", "release"]

_ARGUMENTS = (
    "initial_accumulator_value", "epsilon", "weight_decay", "clipnorm", "clipvalue", "global_clipnorm", "use_ema",
    "ema_momentum", "ema_overwrite_frequency", "loss_scale_factor", "gradient_accumulation_steps", "name",
)  # fmt: skip
# Where Keras takes None, 0 or less for "off".
_OFF = ("clipnorm", "clipvalue", "global_clipnorm", "ema_overwrite_frequency", "gradient_accumulation_steps")


def load_model(
    filepath: str | os.PathLike[str],
    custom_objects: Mapping[str, Any] | None = None,
    compile: bool = True,
    safe_mode: bool = True,
) -> keras.Model:
    """``keras.saving.load_model``, and an optimizer that is Keras's Adagrad comes back as ours, with its state.

    Whatever backend saved the file; see `adopt`. Other optimizers come as they are.
    """
    # On PyTorch, Keras's Adagrad writes down a module of its own, which opens on no other backend.
    known = {"Adagrad": keras.optimizers.Adagrad, **(custom_objects or {})}
    model = keras.saving.load_model(filepath, custom_objects=known, compile=compile, safe_mode=safe_mode)
    optimizer = getattr(model, "optimizer", None)
    if optimizer is not None and _is_keras(optimizer):
        adopt(model)
    return model


def adopt(model: keras.Model) -> keras.Model:
    """Put `adagrad.keras.Adagrad` in the place of the model's ``keras.optimizers.Adagrad``; returns the model.

    Counters, learning rate, exclusions from weight decay and all state go over, that of half-precision variables widened to
    float32; a ``LossScaleOptimizer`` around it becomes `adagrad.keras.LossScaleOptimizer`, its scale too. Every
    ``keras.layers.Embedding`` becomes an `adagrad.keras.Embedding`. What Keras takes for "off" (a clip of 0, say) is None
    afterwards. An optimizer that is ours already stays. Raises ``TypeError`` for any other, ``ValueError`` for exclusions of
    a model that is not built, and nothing has changed.
    """
    optimizer = _optimizer_of(model)
    if _is_keras(optimizer):
        _replace(model, _adopted(optimizer, model))
    elif not isinstance(_inner(optimizer), Adagrad):
        raise TypeError(f"the model's optimizer must be a keras.optimizers.Adagrad, got {type(_inner(optimizer)).__name__}")
    for layer in _layers(model):
        if type(layer) is keras.layers.Embedding:
            layer.__class__ = Embedding
    return model


def release(model: keras.Model) -> keras.Model:
    """Put ``keras.optimizers.Adagrad`` in the place of the model's `adagrad.keras.Adagrad`; returns the model.

    What `adopt` does, undone: a file that is saved then opens where this package is absent. State of half-precision
    variables becomes half-precision, as Keras has it. Raises ``ValueError``, and nothing has changed, for arguments that
    Keras's doesn't have: ``epsilon_placement="outside"``, ``weight_decay_mode="l2"``, ``row_wise``, and a schedule class of
    your own that derives from `adagrad.schedules.LearningRateSchedule`; and as `adopt` does.
    """
    optimizer = _optimizer_of(model)
    if isinstance(_inner(optimizer), Adagrad):
        _replace(model, _released(optimizer, model))
    elif not _is_keras(optimizer):
        raise TypeError(f"the model's optimizer must be an adagrad.keras.Adagrad, got {type(_inner(optimizer)).__name__}")
    for layer in _layers(model):
        if type(layer) is Embedding:
            layer.__class__ = keras.layers.Embedding
    return model


def _optimizer_of(model: keras.Model) -> Any:
    optimizer = getattr(model, "optimizer", None)
    if optimizer is None:
        raise ValueError("the model must be compiled with an optimizer, got none")
    return optimizer


def _inner(optimizer: Any) -> Any:
    return optimizer.inner_optimizer if isinstance(optimizer, keras.optimizers.LossScaleOptimizer) else optimizer


def _is_keras(optimizer: Any) -> bool:
    """Whether it is Keras's Adagrad, bare or wrapped; a class of someone's own that derives from it is not."""
    inner = _inner(optimizer)
    return isinstance(inner, keras.optimizers.Adagrad) and type(inner).__module__.split(".")[0] == "keras"


def _layers(model: keras.Model) -> Iterator[Any]:
    return iter(model._flatten_layers(include_self=False, recursive=True))


def _replace(model: keras.Model, optimizer: Any) -> None:
    model.optimizer = optimizer
    model.train_function = None  # which steps the old one
    compiled = getattr(model, "_compile_config", None)
    if compiled is not None and "optimizer" in compiled.config:
        compiled.config["optimizer"] = optimizer


def _adopted(optimizer: Any, model: keras.Model) -> Any:
    inner = _inner(optimizer)
    arguments = {name: getattr(inner, name) for name in _ARGUMENTS}
    for name in _OFF:
        if arguments[name] is not None and arguments[name] <= 0:
            arguments[name] = None
    rate = inner._learning_rate
    if isinstance(rate, keras.Variable):
        # The number that was written, not that of float32 nearest to it.
        rate = float(str(np.float32(ops.convert_to_numpy(rate.value))))
    new = Adagrad(rate, **arguments)
    kept = ("_exclude_from_weight_decay", "_exclude_from_weight_decay_pattern")
    _move_state(optimizer, new, model, excludes=any(getattr(inner, name, None) for name in kept))
    if inner is optimizer:
        return new
    wrapped = LossScaleOptimizer(new, optimizer.initial_scale, optimizer.dynamic_growth_steps, name=optimizer.name)
    return _with_scale(optimizer, wrapped)


def _released(optimizer: Any, model: keras.Model) -> Any:
    inner = _inner(optimizer)
    beyond = {"epsilon_placement": "inside", "weight_decay_mode": "decoupled", "row_wise": False}
    set_beyond = {name: getattr(inner, name) for name, usual in beyond.items() if getattr(inner, name) != usual}
    if set_beyond:
        raise ValueError(f"keras.optimizers.Adagrad has no {', '.join(f'{k}={v!r}' for k, v in set_beyond.items())}")
    arguments = {name: getattr(inner, name) for name in _ARGUMENTS}
    if arguments["gradient_accumulation_steps"] == 1:
        arguments["gradient_accumulation_steps"] = None
    rate = inner._learning_rate
    if isinstance(rate, keras.Variable):
        rate = inner._rate_number()
    elif isinstance(rate, LearningRateSchedule):
        theirs = getattr(keras.optimizers.schedules, type(rate).__name__, None)
        if theirs is None or type(rate) is not getattr(schedules, type(rate).__name__, None):
            raise ValueError(f"keras.optimizers.Adagrad can't take the schedule {rate!r}")
        rate = theirs(**rate.get_config())
    new = keras.optimizers.Adagrad(rate, **arguments)
    _move_state(optimizer, new, model, excludes=bool(inner._excluded))
    if inner is optimizer:
        return new
    wrapped = keras.optimizers.LossScaleOptimizer(
        new, optimizer.initial_scale, optimizer.dynamic_growth_steps, name=optimizer.name
    )
    return _with_scale(optimizer, wrapped)


def _move_state(optimizer: Any, new: Any, model: keras.Model, *, excludes: bool) -> None:
    """Build ``new`` for the variables of the optimizer and copy its counters, state and exclusions from weight decay.

    Which variables are excluded only a built optimizer knows: if there are exclusions, it is built first.
    """
    old = _inner(optimizer)
    if excludes and not old.built:
        if not model.built:
            raise ValueError(
                "the optimizer has exclusions from weight decay, and a model that is not built has no variables to tell "
                "which: call model.build(input_shape) first, or fit"
            )
        optimizer.build(model.trainable_variables)
    if not old.built:
        return
    variables = list(old._trainable_variables)
    if isinstance(old, Adagrad):
        excluded = [slot.variable for slot in old._slots if not slot.decays]
    else:  # on TensorFlow Keras asks by the name of the tf.Variable
        asked = value_of if BACKEND == "tensorflow" else lambda variable: variable
        excluded = [variable for variable in variables if not old._use_weight_decay(asked(variable))]
    if excluded:
        new.exclude_from_weight_decay(var_list=excluded)
    new.build(variables)
    new._iterations.assign(ops.cast(value_of(old._iterations), new._iterations.dtype))
    for name in STATES:
        for source, target in zip(getattr(old, name, ()), getattr(new, name, ()), strict=True):
            if source is not None and target is not None:
                target.assign(ops.cast(value_of(source), target.dtype))


def _with_scale(old: Any, new: Any) -> Any:
    if old.built:
        new.build(list(old._trainable_variables))
        new.step_counter.assign(value_of(old.step_counter))
        scale = float(value_of(old.dynamic_scale))
        if isinstance(new, LossScaleOptimizer):
            scale = min(max(scale, new.LOWEST), new.HIGHEST)
        new.dynamic_scale.assign(scale)
    return new
