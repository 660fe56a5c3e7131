"""The rule, half precision, weight decay, learning rates: the numbers of a step."""

# ruff: noqa: D103 - a case's title is its docstring

import math

import numpy as np

from . import case, section

section("The rule at its edges")


@case(
    "The paper's form where the gradient is 0",
    "With accumulator and epsilon 0, as in the paper, Keras computes 0/0. A gradient of 0 moves nothing.",
)
def zero_over_zero(face):
    w = face.variable([1.0])
    optimizer = face.Adagrad(learning_rate=0.5, initial_accumulator_value=0.0, epsilon=0.0)
    optimizer.apply([face.gradient([0.0])], [w])
    return face.read(w)[0]


@case(
    "The paper's form and a gradient whose square is too small for float32",
    "The first step of the paper's form is the learning rate times the sign of the gradient, whatever its size.",
)
def square_vanishes(face):
    w = face.variable([1.0])
    optimizer = face.Adagrad(learning_rate=0.5, initial_accumulator_value=0.0, epsilon=0.0)
    optimizer.apply([face.gradient([1e-30])], [w])
    return face.read(w)[0]


@case(
    "Elements of 100,000 not rounded as IEEE 754 says",
    "Counted against the formula with each operation rounded once, in NumPy. PyTorch's square root on the CPU is not "
    "always rounded correctly. TensorFlow and JAX run uncompiled here.",
    true=0,
)
def rounding(face):
    rng = np.random.default_rng(1)
    g = rng.normal(size=100_000).astype(np.float32)
    w = face.variable(np.zeros(100_000))
    optimizer = face.Adagrad(learning_rate=0.1)
    optimizer.apply([face.gradient(g)], [w])
    a = np.float32(0.1) + g * g
    expected = np.float32(0.0) - (np.float32(0.1) * g) / np.sqrt(a + np.float32(1e-7))
    return int(np.sum(np.array(face.read(w), np.float32) != expected))


@case(
    "The same for the mean of three gradients",
    "JAX divides by 3 by multiplying with a rounded 1/3.",
    true=0,
)
def rounding_of_a_mean(face):
    g = np.random.default_rng(2).normal(size=10_000).astype(np.float32)
    w = face.variable(np.zeros(10_000))
    # a huge epsilon makes the root exactly 2**20, and the rate undoes it: the parameter is minus the mean
    optimizer = face.Adagrad(
        learning_rate=2.0**20, initial_accumulator_value=0.0, epsilon=2.0**40, gradient_accumulation_steps=3
    )
    for gradient in (0.0 * g, 0.0 * g, g):
        optimizer.apply([face.gradient(gradient)], [w])
    return int(np.sum(np.array(face.read(w), np.float32) != np.float32(0.0) - g / np.float32(3.0)))


@case("A parameter of 1e-39 and a gradient of 0", "TensorFlow and JAX flush numbers below 1.2e-38 to 0.", digits=4)
def subnormal(face):
    w = face.variable([1e-39])
    optimizer = face.Adagrad(learning_rate=1.0)
    optimizer.apply([face.gradient([0.0])], [w])
    return face.read(w)[0]


@case(
    "Parameters of float64",
    "Keras keeps the learning rate 0.1 in float32, and its backends let other numbers pass through float32 too; JAX "
    "has no float64 unless it is switched on. We compute in float64 throughout.",
    digits=15,
)
def double_precision(face):
    w = face.variable([0.0], dtype="float64")
    optimizer = face.Adagrad(learning_rate=0.1)
    optimizer.apply([face.gradient([1.0], dtype="float64")], [w])
    return face.read(w)[0]


section("Half precision")


@case(
    "A bfloat16 parameter, 400 gradients of 1: the accumulator",
    "Keras keeps the accumulator in bfloat16, where 256 + 1 is 256: the learning rate stops falling. Ours is float32.",
)
def bfloat16_accumulator(face):
    w = face.variable([0.0], dtype="bfloat16")
    optimizer = face.Adagrad(learning_rate=0.001)
    for _ in range(400):
        optimizer.apply([face.gradient([1.0], dtype="bfloat16")], [w])
    return face.read(optimizer.variables[-1])[0]


@case(
    "A float16 parameter, 200 gradients of 0.005: the accumulator",
    "In float16 0.1 + 0.000025 is 0.1, so small gradients never count.",
)
def float16_accumulator(face):
    w = face.variable([0.0], dtype="float16")
    optimizer = face.Adagrad(learning_rate=0.001)
    for _ in range(200):
        optimizer.apply([face.gradient([0.005], dtype="float16")], [w])
    return face.read(optimizer.variables[-1])[0]


@case(
    "A float16 parameter, one gradient of 300, then nine of 100",
    "300 squared is infinite in float16: Keras's parameter stands still for ever after.",
)
def float16_overflow(face):
    w = face.variable([0.0], dtype="float16")
    optimizer = face.Adagrad(learning_rate=1.0)
    for g in [300.0] + [100.0] * 9:
        optimizer.apply([face.gradient([g], dtype="float16")], [w])
    return face.read(w)[0]


@case(
    "A float16 parameter, epsilon 1e-8, accumulator from 0, gradient 0",
    "1e-8 is 0 in float16, and 0/0 is NaN.",
)
def float16_epsilon(face):
    w = face.variable([1.0], dtype="float16")
    optimizer = face.Adagrad(initial_accumulator_value=0.0, epsilon=1e-8)
    optimizer.apply([face.gradient([0.0], dtype="float16")], [w])
    return face.read(w)[0]


@case(
    "The average of a float16 parameter",
    "The parameter is set from 1 to 2; after 600 more calls the average is all but there; in "
    "float16 its changes become too small to be stored.",
)
def float16_average(face):
    w = face.variable([1.0], dtype="float16")
    optimizer = face.Adagrad(use_ema=True, ema_momentum=0.99)
    optimizer.apply([face.gradient([0.0], dtype="float16")], [w])
    face.assign(w, [2.0])
    for _ in range(600):
        optimizer.apply([face.gradient([0.0], dtype="float16")], [w])
    optimizer.finalize_variable_values([w])
    return face.read(w)[0]


@case(
    "384 bfloat16 gradients of 1, accumulated to one step: the accumulator",
    "Their mean is 1, so 0.1 + 1. Keras's buffer is bfloat16 and stops at 256.",
)
def bfloat16_buffer(face):
    w = face.variable([0.0], dtype="bfloat16")
    optimizer = face.Adagrad(gradient_accumulation_steps=384)
    for _ in range(384):
        optimizer.apply([face.gradient([1.0], dtype="bfloat16")], [w])
    return face.read(optimizer.variables[-1])[0]


@case(
    "A float32 parameter beside a float16 one",
    "Keras on PyTorch casts the learning rate to the dtype of the first variable, for all of them.",
    digits=8,
)
def learning_rate_of_first_dtype(face):
    h, w = face.variable([0.0], dtype="float16"), face.variable([0.0])
    optimizer = face.Adagrad(learning_rate=0.1, initial_accumulator_value=0.0, epsilon=0.0)
    optimizer.apply([face.gradient([1.0], dtype="float16"), face.gradient([1.0])], [h, w])
    return face.read(w)[0]


section("Weight decay")


@case(
    "Every variable excluded",
    "Nothing to decay is no error.",
)
def decay_all_excluded(face):
    w = face.variable([1.0])
    optimizer = face.Adagrad(learning_rate=1.0, weight_decay=0.5)
    face.build(optimizer, [w])
    optimizer.exclude_from_weight_decay(var_list=[w])
    optimizer.apply([face.gradient([1.0])], [w])
    return face.read(w)[0]


@case(
    "A small decay: what a step takes off, as a fraction, over 1,000 parameters and 100 steps",
    "Learning rate 0.001, decay 0.0001: 1e-7. On PyTorch Keras forms 1 - 1e-7 in float32, whose next number below 1 is "
    "1 - 0.6e-7, so the factor itself is rounded. What is left of the error elsewhere, and with us, is that of storing "
    "the parameters in float32.",
    digits=3,
)
def small_decay(face):
    before = np.linspace(1.0, 2.0, 1000, endpoint=False).astype(np.float32)
    w = face.variable(before)
    optimizer = face.Adagrad(learning_rate=1e-3, weight_decay=1e-4)
    for _ in range(100):
        optimizer.apply([face.gradient(np.zeros(1000))], [w])
    return float(np.mean(1.0 - np.array(face.read(w)) / before.astype(np.float64))) / 100


@case("weight_decay=0 and an infinite parameter", "No decay should not make infinity NaN.")
def zero_decay_infinite(face):
    w = face.variable([math.inf])
    optimizer = face.Adagrad(weight_decay=0.0)
    optimizer.apply([face.gradient([1.0])], [w])
    return face.read(w)[0]


section("The learning rate and its schedules")


@case(
    "How often a callable is asked in one step",
    "Two variables, with weight decay. A callable that counts, or draws numbers, gives each of them another rate. We ask "
    "once a step.",
    true=1,
)
def callable_calls(face):
    asked = []

    def rate():
        asked.append(1)
        return 0.1

    v, w = face.variable([1.0]), face.variable([1.0])
    optimizer = face.Adagrad(learning_rate=rate, weight_decay=0.5)
    face.build(optimizer, [v, w])
    asked.clear()
    optimizer.apply([face.gradient([1.0]), face.gradient([1.0])], [v, w])
    return len(asked)


@case("learning_rate=1, an integer", "The page says a float; any real number is fine with us.")
def integer_rate(face):
    w = face.variable([0.0])
    optimizer = face.Adagrad(learning_rate=1)
    optimizer.apply([face.gradient([1.0])], [w])
    return face.read(w)[0]


@case("A number in place of a callable", "Only a schedule can't be replaced.", true=0.5)
def set_after_callable(face):
    optimizer = face.Adagrad(learning_rate=lambda: 0.1)
    optimizer.learning_rate = 0.5
    return face.read(optimizer.learning_rate)


@case(
    "get_config() of learning_rate=0.001",
    "Keras keeps the rate in float32; we keep it as it was given.",
    true=0.001,
    digits=17,
)
def config_rate(face):
    return face.Adagrad(learning_rate=0.001).get_config()["learning_rate"]


@case(
    "ExponentialDecay from an integer rate, at step 1",
    "1 * 0.5 ** 0.1. Keras computes in the dtype of the first argument, which is an integer.",
    true=0.5**0.1,
)
def integer_exponential(face):
    return face.read(face.schedules.ExponentialDecay(1, decay_steps=10, decay_rate=0.5)(1))


@case(
    "CosineDecay's own example of a warm-up, at step 500",
    "From 0 to 0.1 in 1,000 steps. With the integer 0 as its start Keras's rate stays 0, and the model never learns.",
    true=0.05,
)
def integer_warmup(face):
    schedule = face.schedules.CosineDecay(0, decay_steps=1000, warmup_target=0.1, warmup_steps=1000)
    return face.read(schedule(500))


@case(
    "CosineDecayRestarts at a restart",
    "Cycles of 1, 2, 4, ... steps: step 8191 is the start of the fourteenth, at the full rate. Keras finds the cycle "
    "by a logarithm in float32 and takes it for the end of the thirteenth.",
    true=1.0,
)
def missed_restart(face):
    return face.read(face.schedules.CosineDecayRestarts(1.0, first_decay_steps=1)(8191))


@case(
    "Steps beyond 2**24",
    "Cycles of 2 steps, at an odd step: half of the rate. Keras turns the step into a float32, which has no 16777217.",
    true=0.5,
)
def large_step(face):
    return face.read(face.schedules.CosineDecayRestarts(1.0, first_decay_steps=2, t_mul=1.0)(2**24 + 1))


@case(
    "CosineDecayRestarts with t_mul=0.5, at step 25",
    "Cycles of 10, 5, 2.5, ... steps are all over at step 20, and no rate is left. We refuse a t_mul below 1.",
    true=None,
)
def shrinking_cycles(face):
    return face.read(face.schedules.CosineDecayRestarts(1.0, first_decay_steps=10, t_mul=0.5)(25))


@case(
    "PiecewiseConstantDecay with boundaries out of order, at step 2",
    "With boundaries 3 and 1 two of the values hold at once, and Keras adds them up. We refuse such boundaries.",
    true=None,
)
def unsorted_boundaries(face):
    return face.read(face.schedules.PiecewiseConstantDecay([3, 1], [1.0, 0.5, 0.1])(2))


@case(
    "The counter after call number 2**31 - 1",
    "A 32-bit counter, except on TensorFlow: the next number is negative, and schedules are asked for it.",
    true=2**31,
    digits=12,
)
def counter(face):
    w = face.variable([0.0])
    optimizer = face.Adagrad()
    face.build(optimizer, [w])
    face.set_iterations(optimizer, 2**31 - 1)
    optimizer.apply([face.gradient([1.0])], [w])
    return face.read(optimizer.iterations)
