"""Row gradients, clipping, gradient accumulation: what becomes of a gradient before the rule."""

# ruff: noqa: D103 - a case's title is its docstring

import math

import numpy as np

from . import case, section

section("Repeated ids and row gradients")


@case(
    "One id four times in a batch",
    "The gradient of the row is 4. TensorFlow squares each of the four rows by itself, so the accumulator gets 4 where "
    "it should get 16, and the step is twice too long. We sum repeated rows first.",
)
def repeated_ids(face):
    table = face.variable([[0.0], [0.0]])
    optimizer = face.Adagrad(learning_rate=1.0)
    optimizer.apply([face.rows([[1.0], [1.0], [1.0], [1.0]], [0, 0, 0, 0], rows=2)], [table])
    return face.read(table)[0][0]


@case(
    "Repeated ids and clipnorm",
    "The gradient 12 is clipped to 1, which leaves 0.1 + 1 in the accumulator. JAX can't clip row gradients, and Keras "
    "on PyTorch can't take any. On TensorFlow the four rows have norm 6, each becomes 0.5, and the squares of these add "
    "up to 1 by chance; the next case shows that the step is wrong.",
)
def repeated_ids_clipnorm(face):
    table = face.variable([[0.0], [0.0]])
    optimizer = face.Adagrad(learning_rate=1.0, clipnorm=1.0)
    optimizer.apply([face.rows([[3.0], [3.0], [3.0], [3.0]], [0, 0, 0, 0], rows=2)], [table])
    return face.read(optimizer.variables[-1])[0][0]


@case("The step that goes with it", "It should be that of a gradient of 1, and is that of a gradient of 2.")
def repeated_ids_clipnorm_step(face):
    table = face.variable([[0.0], [0.0]])
    optimizer = face.Adagrad(learning_rate=1.0, clipnorm=1.0)
    optimizer.apply([face.rows([[3.0], [3.0], [3.0], [3.0]], [0, 0, 0, 0], rows=2)], [table])
    return face.read(table)[0][0]


@case(
    "Repeated ids and global_clipnorm",
    "The same with the norm over all variables. TensorFlow takes the norm of the single rows, 6 instead of 12, so what "
    "it applies has norm 2 and leaves 0.1 + 4.",
)
def repeated_ids_global_clipnorm(face):
    table = face.variable([[0.0], [0.0]])
    optimizer = face.Adagrad(learning_rate=1.0, global_clipnorm=1.0)
    optimizer.apply([face.rows([[3.0], [3.0], [3.0], [3.0]], [0, 0, 0, 0], rows=2)], [table])
    return face.read(optimizer.variables[-1])[0][0]


@case(
    "Row gradients and loss_scale_factor",
    "The gradient is 6 / 2 = 3. For us a row gradient gives what the equal dense gradient gives, with every argument.",
)
def rows_loss_scale(face):
    table = face.variable([[0.0], [0.0]])
    optimizer = face.Adagrad(learning_rate=1.0, loss_scale_factor=2.0)
    optimizer.apply([face.rows([[6.0]], [0], rows=2)], [table])
    return face.read(table)[0][0]


@case("Row gradients under accumulation", "The mean of 3 and 5 is 4, so the accumulator ends at 16.1.")
def rows_accumulation(face):
    table = face.variable([[0.0], [0.0]])
    optimizer = face.Adagrad(learning_rate=1.0, gradient_accumulation_steps=2)
    optimizer.apply([face.rows([[3.0]], [0], rows=2)], [table])
    optimizer.apply([face.rows([[5.0]], [0], rows=2)], [table])
    return face.read(optimizer.variables[-1])[0][0]


section("Clipping")


@case(
    "clipnorm and a large gradient",
    "(3e20, 4e20) clipped to norm 1 is (0.6, 0.8). Keras squares in float32 and gets infinity, so the gradient is "
    "lost. We sum the squares in double precision.",
)
def clipnorm_large(face):
    w = face.variable([0.0, 0.0])
    optimizer = face.Adagrad(learning_rate=1.0, clipnorm=1.0)
    optimizer.apply([face.gradient([3e20, 4e20])], [w])
    return face.read(w)


@case("global_clipnorm and a large gradient", "The same gradient; here Keras writes NaN into the parameters.")
def global_clipnorm_large(face):
    w = face.variable([0.0, 0.0])
    optimizer = face.Adagrad(learning_rate=1.0, global_clipnorm=1.0)
    optimizer.apply([face.gradient([3e20, 4e20])], [w])
    return face.read(w)


@case(
    "clipnorm and one infinite element",
    "An infinite norm leaves no direction to scale. Keras turns the finite elements into 0, as if they had had no "
    "gradient; we make NaN of every element that had one, so that it is noticed. Where the gradient is 0 nothing moves.",
    true=None,
)
def clipnorm_infinite(face):
    w = face.variable([1.0, 1.0, 1.0])
    optimizer = face.Adagrad(learning_rate=1.0, clipnorm=1.0)
    optimizer.apply([face.gradient([1.0, math.inf, 0.0])], [w])
    return face.read(w)


@case(
    "Elements of 1,000 changed by a clipnorm that is never reached",
    "Keras multiplies and divides every gradient, also one whose norm is below the limit. We leave it alone.",
    true=0,
)
def clipnorm_not_reached(face):
    g = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    g *= np.float32(3.0 / np.linalg.norm(g))
    parameters = []
    for clipnorm in (None, 3.7):
        w = face.variable(np.zeros(1000))
        optimizer = face.Adagrad(learning_rate=1.0, clipnorm=clipnorm)
        optimizer.apply([face.gradient(g)], [w])
        parameters.append(np.array(face.read(w)))
    return int(np.sum(parameters[0] != parameters[1]))


@case(
    "The same with global_clipnorm",
    "Keras forms a factor c * min(1/n, 1/c), and in float32 c * (1/c) need not be 1.",
    true=0,
)
def global_clipnorm_not_reached(face):
    g = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    g *= np.float32(3.0 / np.linalg.norm(g))
    parameters = []
    for limit in (None, 3.7):
        w = face.variable(np.zeros(1000))
        optimizer = face.Adagrad(learning_rate=1.0, global_clipnorm=limit)
        optimizer.apply([face.gradient(g)], [w])
        parameters.append(np.array(face.read(w)))
    return int(np.sum(parameters[0] != parameters[1]))


@case(
    "global_clipnorm over variables of two dtypes",
    "(3, 4) has norm 5, each is divided by 5. TensorFlow can't add the two squares.",
)
def global_clipnorm_dtypes(face):
    w, h = face.variable([0.0]), face.variable([0.0], dtype="float16")
    optimizer = face.Adagrad(learning_rate=1.0, global_clipnorm=1.0)
    optimizer.apply([face.gradient([3.0]), face.gradient([4.0], dtype="float16")], [w, h])
    return face.read(w)[0]


@case(
    "clipnorm=0",
    "The page says that the norm is no higher than this value, but Keras takes 0 (and any negative number) for no "
    "clipping. We refuse it: a clip must be above 0, None means off.",
    true=None,
)
def clipnorm_zero(face):
    w = face.variable([1.0])
    optimizer = face.Adagrad(learning_rate=1.0, clipnorm=0.0)
    optimizer.apply([face.gradient([10.0])], [w])
    return face.read(w)[0]


section("Gradient accumulation")


@case(
    "A None on the call that ends a cycle",
    "The gradients are 1, None, 1, 1: means of 0.5 and 1. TensorFlow and PyTorch throw the first away, JAX adds it to the "
    "second cycle, whose mean becomes 1.5. What a call brought counts in its own cycle.",
)
def none_at_the_end(face):
    w, other = face.variable([0.0]), face.variable([0.0])
    optimizer = face.Adagrad(learning_rate=1.0, gradient_accumulation_steps=2)
    for g in (1.0, None, 1.0, 1.0):
        gradient = None if g is None else face.gradient([g])
        optimizer.apply([gradient, face.gradient([1.0])], [w, other])
    return face.read(w)[0]


@case(
    "Nothing but None on a call of a cycle",
    "Each None counts as zero, so all of them do. The mean of 0 and 1 is 0.5.",
)
def all_none(face):
    w = face.variable([0.0])
    optimizer = face.Adagrad(learning_rate=1.0, gradient_accumulation_steps=2)
    optimizer.apply([None], [w])
    optimizer.apply([face.gradient([1.0])], [w])
    return face.read(w)[0]


@case(
    "An infinite gradient that clipvalue has tamed, one cycle later",
    "On PyTorch Keras empties the buffer by multiplying it with 0, and infinity times 0 is NaN.",
)
def buffer_reset(face):
    w = face.variable([0.0])
    optimizer = face.Adagrad(learning_rate=1.0, clipvalue=1.0, gradient_accumulation_steps=2)
    for g in (math.inf, 1.0, 1.0, 1.0):
        optimizer.apply([face.gradient([g])], [w])
    return face.read(w)[0]


@case(
    "gradient_accumulation_steps=1",
    "One call a step is a fine setting, and equals no accumulation.",
)
def accumulation_one(face):
    w = face.variable([0.0])
    optimizer = face.Adagrad(learning_rate=1.0, gradient_accumulation_steps=1)
    optimizer.apply([face.gradient([1.0])], [w])
    return face.read(w)[0]


@case(
    "gradient_accumulation_steps=2.5: the number of the call that moves the parameter",
    "Not a number of calls. We take integers of at least 1.",
    true=None,
)
def accumulation_fraction(face):
    w = face.variable([0.0])
    optimizer = face.Adagrad(learning_rate=1.0, gradient_accumulation_steps=2.5)
    calls = 0
    while face.read(w)[0] == 0.0 and calls < 20:
        optimizer.apply([face.gradient([1.0])], [w])
        calls += 1
    return calls
