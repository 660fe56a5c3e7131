"""Averages, constraints, loss scaling, arguments and calls: what stands around the rule."""

# ruff: noqa: D103 - a case's title is its docstring

import contextlib
import math

import numpy as np

from . import case, section

section("Moving averages and constraints")


@case(
    "Averages under accumulation",
    "The page says that model and optimizer variables don't change on the calls between; Keras moves the averages on "
    "every call. Seven calls are two real steps, and the average should be that of two.",
)
def average_between(face):
    w = face.variable([0.0])
    optimizer = face.Adagrad(learning_rate=1.0, use_ema=True, ema_momentum=0.5, gradient_accumulation_steps=3)
    for _ in range(7):
        optimizer.apply([face.gradient([1.0])], [w])
    optimizer.finalize_variable_values([w])
    return face.read(w)[0]


@case(
    "Overwriting under accumulation",
    "For the same reason the variable itself changes between real steps. Shown is its change on the call after the "
    "third real step, a call that should only store a gradient.",
)
def overwrite_between(face):
    w = face.variable([0.0])
    optimizer = face.Adagrad(
        learning_rate=1.0, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=2, gradient_accumulation_steps=3
    )
    for _ in range(9):
        optimizer.apply([face.gradient([1.0])], [w])
    before = face.read(w)[0]
    optimizer.apply([face.gradient([1.0])], [w])
    return face.read(w)[0] - before


@case(
    "finalize_variable_values and a constraint",
    "The constraint keeps the parameter non-negative. Keras averages values from before the constraint and puts the "
    "average in place as it is.",
)
def finalize_constraint(face):
    w = face.variable([0.0])
    optimizer = face.Adagrad(learning_rate=1.0, use_ema=True, ema_momentum=0.5)
    face.build(optimizer, [w], constraints=[face.nonneg])
    for _ in range(3):
        optimizer.apply([face.gradient([1.0])], [w])
    optimizer.finalize_variable_values([w])
    return face.read(w)[0]


@case(
    "A constraint on a call that only stores a gradient",
    "The variable should not change before the real step.",
)
def constraint_between(face):
    w = face.variable([-1.0])
    optimizer = face.Adagrad(gradient_accumulation_steps=2)
    face.build(optimizer, [w], constraints=[face.nonneg])
    optimizer.apply([face.gradient([0.0])], [w])
    return face.read(w)[0]


@case(
    "finalize_variable_values before the first step",
    "No average exists yet. Keras writes its zeros over the model; we change nothing.",
)
def finalize_unstepped(face):
    w = face.variable([5.0])
    optimizer = face.Adagrad(use_ema=True)
    face.build(optimizer, [w])
    optimizer.finalize_variable_values([w])
    return face.read(w)[0]


@case(
    "finalize_variable_values with the variables in another order",
    "Keras goes by position, so the two variables get each other's average. We go by identity.",
)
def finalize_order(face):
    v, w = face.variable([1.0]), face.variable([2.0])
    optimizer = face.Adagrad(learning_rate=0.0, use_ema=True)
    optimizer.apply([face.gradient([1.0]), face.gradient([1.0])], [v, w])
    optimizer.finalize_variable_values([w, v])
    return [face.read(v)[0], face.read(w)[0]]


@case(
    "An infinite parameter and ema_overwrite_frequency",
    "On JAX Keras overwrites by multiplying with 0 and 1, and 0 times infinity is NaN, at every step.",
)
def overwrite_infinite(face):
    w = face.variable([-math.inf])
    optimizer = face.Adagrad(use_ema=True, ema_overwrite_frequency=5)
    optimizer.apply([face.gradient([0.0])], [w])
    return face.read(w)[0]


@case(
    "ema_overwrite_frequency=0",
    "Never on TensorFlow and PyTorch, at every step on JAX. We refuse it: an integer of at least 1, or None.",
    true=None,
)
def overwrite_zero(face):
    w = face.variable([1.0])
    optimizer = face.Adagrad(learning_rate=0.1, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=0)
    for _ in range(2):
        optimizer.apply([face.gradient([1.0])], [w])
    return face.read(w)[0]


section("LossScaleOptimizer")


@case("One step", "On JAX it only works inside of fit, or through stateless_apply.")
def loss_scale_step(face):
    w = face.variable([0.0])
    optimizer = face.LossScaleOptimizer(face.Adagrad(learning_rate=1.0), initial_scale=2.0)
    optimizer.apply([face.gradient([2.0])], [w])
    return face.read(w)[0]


@case(
    "One step after 200 overflows",
    "Keras halves its scale down to 0, and then divides by it. Ours stays at or above 2**-20.",
    true=None,
)
def loss_scale_floor(face):
    w = face.variable([0.0])
    optimizer = face.LossScaleOptimizer(face.Adagrad(learning_rate=1.0))
    for _ in range(200):
        optimizer.apply([face.gradient([math.inf])], [w])
    optimizer.apply([face.gradient([1.0])], [w])
    return face.read(w)[0]


@case(
    "A float16 gradient of 0.0005 at the default scale of 32768",
    "Unscaled it is 1.5e-8, too small for float16. Keras unscales in float16, and in the paper's form gets 0/0; we "
    "unscale in float32.",
)
def loss_scale_underflow(face):
    w = face.variable([0.0], dtype="float16")
    adagrad = face.Adagrad(learning_rate=0.5, initial_accumulator_value=0.0, epsilon=0.0)
    optimizer = face.LossScaleOptimizer(adagrad)
    optimizer.apply([face.gradient([0.0005], dtype="float16")], [w])
    return face.read(w)[0]


section("Arguments and calls")


@case(
    "Settings that make no sense",
    "Shown is which of them are taken. We refuse each, and say its name, what is allowed and what came.",
    true=None,
)
def bad_settings(face):
    bad = {
        "learning_rate=-1.0": {"learning_rate": -1.0},
        "learning_rate=nan": {"learning_rate": math.nan},
        "initial_accumulator_value=-1.0": {"initial_accumulator_value": -1.0},
        "epsilon=-1.0": {"epsilon": -1.0},
        "weight_decay=-1.0": {"weight_decay": -1.0},
        "clipvalue=-1.0": {"clipvalue": -1.0},
        "ema_momentum=nan": {"use_ema": True, "ema_momentum": math.nan},
        "ema_momentum=2.0 without use_ema": {"ema_momentum": 2.0},
        "loss_scale_factor=0.0": {"loss_scale_factor": 0.0},
        "gradient_accumulation_steps=0": {"gradient_accumulation_steps": 0},
        "decay=0.1 (unknown)": {"decay": 0.1},
    }
    taken = []
    for shown, arguments in bad.items():
        try:
            face.Adagrad(**arguments)
        except (TypeError, ValueError):
            continue
        taken.append(shown)
    return ", ".join(taken) or "none"


@case("The name of an optimizer that is not the first", 'The page says that name defaults to "adagrad".', true="adagrad")
def default_name(face):
    face.Adagrad()
    return face.Adagrad().name


@case(
    "Two variables, one gradient: the variables after the call",
    "We refuse the call before anything has changed. TensorFlow and JAX pass over the second variable; on PyTorch the "
    "error comes after the weight decay was done.",
    true=[1.0, 1.0],
)
def lengths(face):
    v, w = face.variable([1.0]), face.variable([1.0])
    optimizer = face.Adagrad(learning_rate=1.0, weight_decay=0.5)
    face.build(optimizer, [v, w])
    with contextlib.suppress(RuntimeError, ValueError):
        optimizer.apply([face.gradient([1.0])], [v, w])
    return [face.read(v)[0], face.read(w)[0]]


@case(
    "One variable twice in a call",
    "TensorFlow and JAX take two steps, PyTorch something between. We refuse it: sum the gradients.",
    true=None,
)
def same_variable_twice(face):
    w = face.variable([1.0])
    optimizer = face.Adagrad(learning_rate=0.1)
    optimizer.apply([face.gradient([1.0]), face.gradient([1.0])], [w, w])
    return face.read(w)[0]


@case(
    "A gradient of shape () for a variable of shape (2,)",
    "TensorFlow refuses it too; JAX and PyTorch spread it out, also where it was a mistake.",
    true=None,
)
def gradient_shape(face):
    w = face.variable([0.0, 0.0])
    optimizer = face.Adagrad(learning_rate=1.0)
    optimizer.apply([face.gradient(1.0)], [w])
    return face.read(w)


@case("A gradient that is a NumPy array", "Keras on PyTorch takes only its own tensors.")
def numpy_gradient(face):
    w = face.variable([0.0])
    optimizer = face.Adagrad(learning_rate=1.0)
    optimizer.apply([np.array([1.0], np.float32)], [w])
    return face.read(w)[0]


@case(
    "A float32 gradient for a float16 parameter, under accumulation",
    "Only PyTorch can add it to its buffer.",
)
def gradient_dtype(face):
    w = face.variable([0.0], dtype="float16")
    optimizer = face.Adagrad(learning_rate=1.0, initial_accumulator_value=0.0, gradient_accumulation_steps=2)
    for _ in range(2):
        optimizer.apply([face.gradient([1.0])], [w])
    return face.read(w)[0]


@case("An empty variable, with averages", "Nothing to do is no error.", true=[])
def empty_variable(face):
    w = face.variable(np.zeros((0, 3)))
    optimizer = face.Adagrad(use_ema=True)
    optimizer.apply([face.gradient(np.zeros((0, 3)))], [w])
    return face.read(w)


@case(
    "State saved with averages, loaded where gradients are accumulated",
    "The saved average is 3. Keras saves the state as a numbered list; here both lists are equally long, so the "
    "average is taken for a stored gradient, without a word. Shown is the gradient that is stored after loading. In our "
    "state files each array has its name, and what differs is refused. (Our `save_own_variables` and "
    "`load_own_variables` are shaped as Keras's are, and can't know either.)",
    true=None,
)
def state_mixed_up(face):
    w = face.variable([3.0])
    saved = face.Adagrad(learning_rate=0.0, use_ema=True)
    saved.apply([face.gradient([1.0])], [w])
    loaded = face.Adagrad(gradient_accumulation_steps=2)
    face.build(loaded, [w])
    face.copy_state(saved, loaded)
    return face.read(loaded.variables[2])[0]


section("Where we do as Keras does, and the page says otherwise")


@case(
    "The first average",
    "The page's formula has an old average even at the first step; Keras starts with the variable itself. So do we.",
)
def first_average(face):
    w = face.variable([1.0])
    optimizer = face.Adagrad(learning_rate=0.1, use_ema=True, ema_momentum=0.9)
    optimizer.apply([face.gradient([1.0])], [w])
    optimizer.finalize_variable_values([w])
    return face.read(w)[0]


@case(
    "clipvalue and a negative gradient",
    'The page says "no higher than this value"; -5 is clipped to -1 all the same.',
)
def clipvalue_negative(face):
    w = face.variable([0.0])
    optimizer = face.Adagrad(learning_rate=1.0, clipvalue=1.0)
    optimizer.apply([face.gradient([-5.0])], [w])
    return face.read(w)[0]


@case(
    "loss_scale_factor=10 and a gradient of 3",
    "The page multiplies by the inverse; Keras divides, which is rounded once instead of twice. So do we.",
    digits=9,
)
def loss_scale_division(face):
    w = face.variable([0.0])
    optimizer = face.Adagrad(learning_rate=2.0**20, initial_accumulator_value=0.0, epsilon=2.0**40, loss_scale_factor=10.0)
    optimizer.apply([face.gradient([3.0])], [w])
    return face.read(w)[0]
