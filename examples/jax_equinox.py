"""Equinox: the exact pair, `Adagrad(...).init` and `.apply`, on the arrays of a model: no updates to add and to round."""

import equinox as eqx
import jax
import jax.numpy as jnp

from adagrad import schedules
from adagrad.jax import Adagrad

model = eqx.nn.MLP(in_size=8, out_size="scalar", width_size=32, depth=2, key=jax.random.key(0))
optimizer = Adagrad(schedules.CosineDecay(0.2, decay_steps=200, alpha=0.1), global_clipnorm=1.0)
params, static = eqx.partition(model, eqx.is_inexact_array)
state = optimizer.init(params)


@eqx.filter_jit(donate="all-except-first")
def train_step(data, params, state):
    x, y = data

    def loss(params):
        return jnp.mean((jax.vmap(eqx.combine(params, static))(x) - y) ** 2)

    value, grads = jax.value_and_grad(loss)(params)
    params, state = optimizer.apply(grads, state, params)
    return params, state, value


x = jax.random.normal(jax.random.key(1), (512, 8))
data = x, jnp.sin(x[:, 0]) + x[:, 1] * x[:, 2]
losses = []
for _ in range(200):
    params, state, value = train_step(data, params, state)
    losses.append(float(value))
model = eqx.combine(params, static)
first, last = losses[0], losses[-1]
print(f"loss {first:.2f} -> {last:.2f}")
