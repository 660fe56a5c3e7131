"""flax.nnx: `adagrad` in the place of ``optax.adagrad``, with decay that leaves biases alone and averaged weights."""

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from adagrad.jax import adagrad


class Model(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(8, 32, rngs=rngs)
        self.out = nnx.Linear(32, 1, rngs=rngs)

    def __call__(self, x):
        return self.out(nnx.relu(self.hidden(x)))[:, 0]


def kernels(params):
    """Weight decay for what is a matrix."""
    return jax.tree.map(lambda p: p.ndim > 1, params)


model = Model(nnx.Rngs(0))
transformation = optax.chain(
    optax.clip_by_global_norm(1.0), adagrad(0.1, weight_decay=1e-4, weight_decay_mask=kernels, use_ema=True)
)
optimizer = nnx.Optimizer(model, transformation, wrt=nnx.Param)


@nnx.jit
def train_step(model, optimizer, x, y):
    value, grads = nnx.value_and_grad(lambda m: jnp.mean((m(x) - y) ** 2))(model)
    optimizer.update(model, grads)
    return value


x = jax.random.normal(jax.random.key(1), (512, 8))
y = jnp.sin(x[:, 0]) + x[:, 1] * x[:, 2]
losses = [float(train_step(model, optimizer, x, y)) for _ in range(200)]
first, last = losses[0], losses[-1]
print(f"loss {first:.2f} -> {last:.2f}")
