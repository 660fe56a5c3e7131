"""Plain JAX: a factorization model of ratings; a step costs what the batch touches, whatever the size of the tables."""

import functools

import jax
import jax.numpy as jnp

from adagrad.jax import Adagrad, value_and_row_grad

USERS, FILMS, WIDTH, BATCH = 2_000, 500, 16, 256

keys = jax.random.split(jax.random.key(0), 4)
tables = {
    "user": 0.1 * jax.random.normal(keys[0], (USERS, WIDTH)),
    "film": 0.1 * jax.random.normal(keys[1], (FILMS, WIDTH)),
}
params = {"mean": jnp.zeros(())}
optimizer = Adagrad(learning_rate=0.5, clipnorm=1.0)
state = optimizer.init((params, tables))


def loss(params, rows, rating):
    predicted = params["mean"] + jnp.sum(rows["user"] * rows["film"], axis=-1)
    return jnp.mean((predicted - rating) ** 2)


@functools.partial(jax.jit, donate_argnums=(0, 1))  # in the order in which they come back, so that nothing is copied
def train_step(model, state, ids, rating):
    params, tables = model
    value, grads, row_grads = value_and_row_grad(loss)(params, tables, ids, rating)
    model, state = optimizer.apply((grads, row_grads), state, model)
    return model, state, value


model = params, tables
hidden = jax.random.normal(keys[2], (USERS,)), jax.random.normal(keys[3], (FILMS,))  # what the ratings are made of
losses = []
for step in range(300):
    user, film = jax.random.randint(jax.random.key(step), (2, BATCH), 0, jnp.array([[USERS], [FILMS]]))
    model, state, value = train_step(model, state, {"user": user, "film": film}, 3.5 + hidden[0][user] * hidden[1][film])
    losses.append(float(value))
first, last = sum(losses[:20]) / 20, sum(losses[-20:]) / 20
print(f"loss {first:.2f} -> {last:.2f}")
