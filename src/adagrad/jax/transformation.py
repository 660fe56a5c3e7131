"""Adagrad as an optax gradient transformation."""

from __future__ import annotations

from typing import Any

import jax
import optax

from adagrad.jax.optimizer import Adagrad, Mask, Rate
from adagrad.jax.rows import is_row_gradient
from adagrad.jax.trees import AdagradState, check_state, flat_gradients, flat_params, names_of

__all__ = ["adagrad"]

Tree = Any


def adagrad(
    learning_rate: Rate,
    initial_accumulator_value: float = 0.1,
    eps: float = 1e-7,
    *,
    weight_decay: float | None = None,
    clipnorm: float | None = None,
    clipvalue: float | None = None,
    global_clipnorm: float | None = None,
    use_ema: bool = False,
    ema_momentum: float = 0.99,
    ema_overwrite_frequency: int | None = None,
    loss_scale_factor: float | None = None,
    gradient_accumulation_steps: int | None = None,
    name: str = "adagrad",
    epsilon_placement: str = "inside",
    weight_decay_mode: str = "decoupled",
    row_wise: bool = False,
    weight_decay_mask: Mask = None,
) -> optax.GradientTransformationExtraArgs:
    """Adagrad as an optax transformation; ``optax.adagrad``'s arguments first, then those of `Adagrad`.

    The updates are what ``optax.apply_updates`` adds. An update has the dtype of its gradient, or the wider one of its
    parameter if that is given: a bfloat16 gradient of a float32 parameter gives a float32 update. A gradient of None gives
    zeros, or what an average that overwrites its parameter needs. Where nothing but the rule moves a parameter, the sum is
    rounded as `Adagrad.apply` rounds it, unless it is half: then the update is rounded, too. Averages follow the parameters as
    this transformation leaves them, so with ``use_ema`` it stands last in a chain; `Adagrad.finalize` takes its state.
    ``params`` must be given to ``update`` for weight decay, averages and ``row_wise``.

    Row gradients (`IndexedSlices`) are refused: other transformations, ``optax.global_norm`` for one, would take the ids for
    numbers. They belong to `Adagrad.apply`.

    >>> import jax.numpy as jnp, optax
    >>> optimizer = optax.chain(optax.clip(1.0), adagrad(0.5, weight_decay=0.01))
    >>> params = {"w": jnp.ones(2)}
    >>> updates, state = optimizer.update({"w": jnp.array([3.0, -1.0])}, optimizer.init(params), params)
    >>> [round(w, 3) for w in optax.apply_updates(params, updates)["w"].tolist()]
    [0.518, 1.472]
    """
    optimizer = Adagrad(
        learning_rate,
        initial_accumulator_value,
        eps,
        weight_decay,
        clipnorm,
        clipvalue,
        global_clipnorm,
        use_ema,
        ema_momentum,
        ema_overwrite_frequency,
        loss_scale_factor,
        gradient_accumulation_steps,
        name,
        epsilon_placement=epsilon_placement,
        weight_decay_mode=weight_decay_mode,
        row_wise=row_wise,
        weight_decay_mask=weight_decay_mask,
    )
    own = optimizer.settings
    needs = [
        what
        for what, on in (
            ("weight_decay", own.weight_decay is not None),
            ("use_ema", own.use_ema),
            ("row_wise", own.row_wise),
        )
        if on
    ]

    def update(updates: Tree, state: AdagradState, params: Tree = None, **extra_args: Any) -> tuple[Tree, AdagradState]:
        del extra_args  # other transformations' of the same chain
        if any(map(is_row_gradient, jax.tree.leaves(updates, is_leaf=is_row_gradient))):
            raise TypeError(
                "an optax transformation can't take IndexedSlices, whose ids others would treat as numbers; use "
                "adagrad.jax.Adagrad(...).apply(grads, state, params)"
            )
        if params is None:
            if needs:
                raise ValueError(f"update needs params for {', '.join(needs)}: call update(grads, state, params)")
            check_state(state)
            structure, leaves = jax.tree.structure(state.accumulator), None
            names = names_of(state.accumulator)
            gradients = flat_gradients(updates, structure, names, jax.tree.leaves(state.accumulator), "the state")
        else:
            leaves, structure, names = flat_params(params)
            gradients = flat_gradients(updates, structure, names, leaves, "params")
        state, out = optimizer._call(gradients, state, leaves, structure, names, params, as_update=True)
        return jax.tree.unflatten(structure, out), state

    return optax.GradientTransformationExtraArgs(optimizer.init, update)
