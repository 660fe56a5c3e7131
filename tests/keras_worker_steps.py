"""Checks of the Keras face: one step, by every argument and kind of gradient. Run by `keras_worker`."""

import contextlib
import math
import warnings

import capabilities
import keras
import numpy as np

import adagrad
from adagrad import schedules
from adagrad.keras import Adagrad, LossScaleOptimizer
from adagrad.keras.schedules import rate_at_step
from adagrad.keras.stages import _checked
from capability import CASES, check, check_coverage, rows
from faces import FACES
from keras_tools import BACKEND, array, tensor, variable
from keras_tools import rows as row_gradient
from plain import assert_same_bits
from reference import ReferenceAdagrad, ReferenceLossScale

if BACKEND == "tensorflow":
    import tensorflow as tf
elif BACKEND == "jax":
    import jax
else:
    import torch


def raises(kind, *parts):
    """A context in which an error of this kind is raised, whose message has all parts."""
    return _Raises(kind, parts)


class _Raises:
    def __init__(self, kind, parts):
        self.kind, self.parts = kind, parts

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        assert kind is not None, f"no {self.kind.__name__} was raised"
        if not issubclass(kind, self.kind):
            return False
        assert all(part in str(error) for part in self.parts), str(error)
        return True


@contextlib.contextmanager
def array_code():
    """Where the engine can't work, the stages run as array code: on PyTorch forced here, in main memory."""
    import adagrad.keras.optimizer as module

    usual = module.in_main_memory
    module.in_main_memory = lambda slots: False
    try:
        yield
    finally:
        module.in_main_memory = usual


# ---- the table -------------------------------------------------------------------------------------------------------

HERE = [place.load() for place in FACES if ("KERAS_BACKEND", BACKEND) in place.environment]


def check_table():
    for face in HERE:
        for row in rows(face, tested=True):
            check(face, *row)


def check_every_argument_stands_in_the_table_and_all_on_the_page():
    assert set(Adagrad().get_config()) == {name for case in CASES for name in case.arguments}
    check_coverage(*HERE)
    for face in HERE:
        assert capabilities.is_on_page(face), face.name


# ---- rows ------------------------------------------------------------------------------------------------------------


def repeated(optimizer):
    """The step of a table whose row 1 comes four times in a batch."""
    table = variable(np.zeros((3, 2), np.float32))
    optimizer.build([table])
    optimizer.apply([row_gradient(np.ones((4, 2), np.float32), [1, 1, 1, 1], (3, 2))], [table])
    return array(table)


def check_repeated_ids_are_summed():
    expected = np.float32(-4 / math.sqrt(16.1 + 1e-7))
    for options in ({}, {"loss_scale_factor": 1.0}, {"clipnorm": 99.0}, {"weight_decay": 0.5}):
        found = repeated(Adagrad(1.0, **options))
        assert np.allclose(found, [[0, 0], [expected] * 2, [0, 0]], rtol=3e-7, atol=0), (options, found)


def check_sparse_law():
    rng = np.random.default_rng(3)
    for options in (
        {}, {"clipvalue": 0.3}, {"clipnorm": 0.5}, {"loss_scale_factor": 3.0}, {"row_wise": True},
        {"weight_decay": 0.1, "use_ema": True}, {"gradient_accumulation_steps": 2, "weight_decay": 0.1, "weight_decay_mode": "l2"},
    ):  # fmt: skip
        start = rng.normal(size=(40, 3)).astype(np.float32)
        tables, optimizers = [variable(start), variable(start)], [Adagrad(0.1, **options), Adagrad(0.1, **options)]
        for _ in range(4):
            ids, values = rng.integers(0, 12, 25), rng.normal(size=(25, 3)).astype(np.float32)
            dense = np.zeros((40, 3), np.float32)
            np.add.at(dense, ids, values)
            given = row_gradient(values, ids, (40, 3)), tensor(dense)
            for optimizer, gradient, table in zip(optimizers, given, tables, strict=True):
                optimizer.apply([gradient], [table])
        for one, other in zip([tables[0], *optimizers[0].variables], [tables[1], *optimizers[1].variables], strict=True):
            if "clipnorm" in options and BACKEND != "torch":  # rows are added up in another order than tables
                np.testing.assert_array_max_ulp(array(one), array(other), 4)
            else:
                assert_same_bits(array(one), array(other), options)


def check_rows_that_don_t_fit_change_nothing():
    table = variable(np.ones((4, 2), np.float32), "table")
    optimizer = Adagrad(1.0)
    optimizer.build([table])
    before = [array(v) for v in [table, *optimizer.variables]]
    ones = np.ones((2, 2), np.float32)
    with raises(ValueError, "table", "[0, 4)"):
        optimizer.apply([adagrad.IndexedSlices(tensor(ones), tensor(np.array([0, 4])))], [table])
    with raises(ValueError, "table", "[0, 4)"):
        optimizer.apply([adagrad.IndexedSlices(tensor(ones), tensor(np.array([0, -1])))], [table])
    with raises(ValueError, "table"):
        optimizer.apply([adagrad.IndexedSlices(tensor(ones), tensor(np.array([0, 1, 2])))], [table])
    with raises((TypeError if BACKEND != "torch" else ValueError), "table", "1-D tensor of integers"):
        optimizer.apply([adagrad.IndexedSlices(tensor(ones), tensor(np.array([0.0, 1.0])))], [table])
    with raises(ValueError, "scale", "row"):
        scalar = variable(np.float32(1), "scale")
        Adagrad().apply([adagrad.IndexedSlices(tensor(ones), tensor(np.array([0, 1])))], [scalar])
    for old, v in zip(before, [table, *optimizer.variables], strict=True):
        assert_same_bits(array(v), old)


def check_rows_outside_of_the_table_take_no_part_in_norms():
    """In compiled code, where nothing can raise for them; on TensorFlow only XLA leaves them out."""
    if BACKEND == "torch":
        return  # nothing is compiled there
    values, ids = np.array([[3, 4], [np.nan, 1], [9, 9]], np.float32), np.array([1, 4, -1])
    table = variable(np.ones((4, 2), np.float32))
    optimizer = Adagrad(0.5, clipnorm=0.7)
    optimizer.build([table])
    if BACKEND == "tensorflow":
        tf.function(lambda v, i: optimizer.apply([tf.IndexedSlices(v, i)], [table]), jit_compile=True)(values, ids)
    else:
        step = jax.jit(lambda s, v, i, p: optimizer.stateless_apply(s, [adagrad.IndexedSlices(v, i)], p))
        (found,), _ = step([v.value for v in optimizer.variables], values, ids, [table.value])
        table.assign(found)
    wide, judge = [np.ones((4, 2))], ReferenceAdagrad(0.5, clipnorm=0.7)
    judge.build(wide)
    judge.apply([("rows", values[:1].astype(np.float64), ids[:1])], wide)
    np.testing.assert_allclose(array(table), wide[0], rtol=1e-6)


def check_tensorflow_a_row_step_makes_nothing_of_the_table_s_size():
    table = variable(np.zeros((1000, 7), np.float32))
    optimizer = Adagrad(1.0, clipnorm=1.0, loss_scale_factor=2.0)
    optimizer.build([table])
    step = tf.function(lambda values, ids: optimizer.apply([tf.IndexedSlices(values, ids, (1000, 7))], [table]))
    graph = step.get_concrete_function(tf.zeros((5, 7)), tf.zeros(5, tf.int64)).graph
    made = [op for op in graph.get_operations() for output in op.outputs if output.shape[:1] == [1000]]
    assert not made, made


def check_jax_a_row_step_makes_nothing_of_the_table_s_size():
    table = variable(np.zeros((10_000, 64), np.float32))
    optimizer = Adagrad(1.0, clipnorm=1.0)
    optimizer.build([table])

    def step(parameters, state, values, ids):  # in the order of the results, as a donated buffer goes to the first that fits
        return optimizer.stateless_apply(state, [adagrad.IndexedSlices(values, ids)], parameters)

    state = [v.value for v in optimizer.variables]
    given = [table.value], state, np.zeros((5, 64), np.float32), np.zeros(5, np.int32)
    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(*given).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 10_000 * 64 * 4 / 100


# ---- arguments and errors --------------------------------------------------------------------------------------------


def check_refusals():
    for arguments in (
        {"learning_rate": -1.0}, {"learning_rate": math.nan}, {"epsilon": -1.0}, {"clipnorm": 0.0}, {"weight_decay": -1.0},
        {"clipnorm": 1.0, "clipvalue": 1.0}, {"ema_momentum": 2.0}, {"ema_overwrite_frequency": 0}, {"loss_scale_factor": 0.0},
        {"gradient_accumulation_steps": 2.5}, {"initial_accumulator_value": -1.0}, {"name": "a/b"},
    ):  # fmt: skip
        with raises(ValueError, next(iter(arguments))):
            Adagrad(**arguments)
        if "learning_rate" not in arguments and "name" not in arguments and len(arguments) == 1:
            optimizer = Adagrad()
            with raises(ValueError, next(iter(arguments))):
                setattr(optimizer, *next(iter(arguments.items())))
    with raises(ValueError, "unknown arguments", "decay=0.1"):
        Adagrad(decay=0.1)
    p = variable(np.ones(2, np.float32), "p")
    one, optimizer = tensor(np.ones(2, np.float32)), Adagrad(1.0)
    with raises(ValueError, "trainable_variables"):
        optimizer.apply([one])
    optimizer.apply([], [])
    assert not optimizer.built
    optimizer.build([p])
    for grads, variables, parts in (
        ([one, one], [p], ["as many"]), ([one, one], [p, p], ["twice"]), ([None], [p], ["no gradient", "p"]),
        ([tensor(np.ones(3, np.float32))], [p], ["shape"]), ([one], [variable(np.ones(2, np.float32))], []),
    ):  # fmt: skip
        with raises(ValueError, *parts):
            optimizer.apply(grads, variables)
    with raises(ValueError, "already built"):
        optimizer.build([variable(np.ones(2, np.float32))])
    with raises(ValueError, "twice"):
        Adagrad().build([p, p])
    with raises(TypeError, "real dtype"):
        Adagrad().build([variable(np.ones(2, np.int32), trainable=False)])
    with raises(ValueError, "use_ema", "after build"):
        optimizer.use_ema = True
    assert int(optimizer.iterations) == 0
    assert_same_bits(array(p), np.ones(2, np.float32))


class Fragile:
    """A constraint that can be made to raise; else it keeps a variable at 0.9 or more."""

    broken = False

    def __call__(self, p):
        if self.broken:
            raise ZeroDivisionError("broken")
        return keras.ops.where(p > 0.9, p, keras.ops.full_like(p, 0.9))


def check_a_call_that_raises_changes_nothing():
    """Of the array code; the engine's own tests are those of the NumPy face."""
    arguments = {"gradient_accumulation_steps": 2, "use_ema": True, "ema_momentum": 0.5, "ema_overwrite_frequency": 1}
    rate, constraint, ids = [0.5], Fragile(), np.array([1, 3, 1])
    p = [variable(np.ones((4, 2), np.float32), "table"), variable(np.ones(3, np.float32), "bounded")]
    p[1].constraint = constraint
    optimizer, judge = Adagrad(lambda: rate[0], **arguments), ReferenceAdagrad(0.5, **arguments)
    optimizer.build(p)
    wide = [np.ones((4, 2)), np.ones(3)]
    judge.build(wide, [None, lambda x: np.maximum(x, 0.9)])
    everything = [*p, *optimizer.variables]
    with array_code() if BACKEND == "torch" else contextlib.nullcontext():
        for call in range(4):
            values, dense = np.full((3, 2), call + 1, np.float32), np.full(3, 2 - call, np.float32)
            gradients = [row_gradient(values, ids, (4, 2)), tensor(dense)]
            before = [array(v) for v in everything]
            if call % 2:
                for rate[0], constraint.broken, kind in ((-1.0, False, ValueError), (0.5, True, ZeroDivisionError)):
                    with raises(kind, "learning_rate" if kind is ValueError else "broken"):
                        optimizer.apply(gradients, p)
                    for old, v in zip(before, everything, strict=True):
                        assert_same_bits(array(v), old)
                constraint.broken = False
            optimizer.apply(gradients, p)
            judge.apply([("rows", values.astype(np.float64), ids), dense.astype(np.float64)], wide)
    for v, expected in zip(p, wide, strict=True):
        np.testing.assert_allclose(array(v), expected, rtol=1e-6)


def check_arguments_can_be_set_and_take_part():
    p, optimizer = variable(np.ones(2, np.float32)), Adagrad(1.0)
    optimizer.build([p])
    optimizer.clipvalue, optimizer.weight_decay = 0.5, 0.25
    optimizer.apply([tensor(np.full(2, 3.0, np.float32))], [p])
    assert np.allclose(array(p), 0.75 - 0.5 / math.sqrt(0.35), rtol=1e-6)
    assert optimizer.get_config()["clipvalue"] == 0.5


def check_what_is_no_number_is_named():
    for value in (keras.Variable(0.1), tensor(np.ones(2, np.float32)), np.ones(2)):
        with raises(ValueError, "learning_rate must be a real number"):
            Adagrad(value)
        with raises(ValueError, "epsilon must be a real number"):
            Adagrad().epsilon = value
    with raises(ValueError, "use_ema must be True or False, got 1.0"):
        Adagrad(use_ema=True).use_ema = 1.0


def check_torch_the_rate_is_not_read_from_a_device():
    """That would wait for all that the device has to do; the meta device has no numbers to read at all."""
    assert _checked(torch.empty((), device="meta")).device.type == "meta"
    with raises(ValueError, "learning_rate must be in"):
        _checked(torch.tensor(-1.0))


def check_exclusions_of_variables_that_are_not_trained_are_passed_over():
    for before in (True, False):
        p, q, frozen = (variable(np.ones(2, np.float32), name) for name in "pqf")
        optimizer = Adagrad(1.0, weight_decay=0.5)
        steps = [lambda: optimizer.exclude_from_weight_decay(var_list=[frozen, q]), lambda: optimizer.build([p, q])]  # noqa: B023
        for step in steps if before else reversed(steps):
            step()
        optimizer.apply([tensor(np.zeros(2, np.float32))] * 2, [p, q])
        assert (array(p).tolist(), array(q).tolist()) == ([0.5, 0.5], [1.0, 1.0])
    for arguments in ({"var_list": p}, {"var_names": "bias"}, {"var_list": ["bias"]}):
        with raises(TypeError, next(iter(arguments))):
            optimizer.exclude_from_weight_decay(**arguments)


def check_missing_gradients_warn_once():
    p, q = variable(np.ones(2, np.float32), "p"), variable(np.ones(2, np.float32), "q")
    optimizer = Adagrad(1.0, weight_decay=0.1)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(3):
            optimizer.apply([tensor(np.ones(2, np.float32)), None], [p, q])
    said = [str(w.message) for w in seen if issubclass(w.category, UserWarning)]
    assert len(said) == 1, said
    assert "q" in said[0]
    assert_same_bits(array(q), np.ones(2, np.float32))
    assert int(optimizer.iterations) == 3


def check_a_cycle_without_gradient_leaves_a_variable_alone():
    for last in (None, "given"):
        p, q = variable(np.ones(2, np.float32), "p"), variable(np.ones(2, np.float32), "q")
        optimizer = Adagrad(1.0, weight_decay=0.5, gradient_accumulation_steps=3)
        optimizer.build([p, q])
        judge = ReferenceAdagrad(1.0, weight_decay=0.5, gradient_accumulation_steps=3)
        wide = [np.ones(2), np.ones(2)]
        judge.build(wide)
        for gradients in ([1.0, None], [None, None], [2.0 if last else None, None]):
            arrays = [None if g is None else np.full(2, g) for g in gradients]
            optimizer.apply([None if a is None else tensor(a.astype(np.float32)) for a in arrays], [p, q])
            judge.apply(arrays, wide)
        assert np.allclose(array(p), wide[0], rtol=1e-6)
        assert_same_bits(array(q), np.ones(2, np.float32))


def check_variables_overwritten_with_gradients():
    p, scale = variable(np.ones(2, np.float32)), variable(np.float32(1))
    scale.overwrite_with_gradient = True
    for steps, expected in ((None, [3.0, 2.0, 5.0]), (2, [1.0, 3.0, 3.0])):
        scale.assign(1.0)
        optimizer = Adagrad(1.0, gradient_accumulation_steps=steps, use_ema=True)
        for value, wanted in zip((3.0, 2.0, 5.0), expected, strict=True):
            optimizer.apply([tensor(np.ones(2, np.float32)), tensor(np.float32(value))], [p, scale])
            assert float(array(scale)) == wanted
        theirs = keras.optimizers.Adagrad(1.0, gradient_accumulation_steps=steps, use_ema=True)
        theirs.build([p, scale])
        assert [tuple(v.shape) for v in optimizer.variables] == [tuple(v.shape) for v in theirs.variables]


# ---- learning rates --------------------------------------------------------------------------------------------------


def check_learning_rate_can_be_set():
    p = variable(np.zeros(1, np.float32))
    optimizer = Adagrad(0.001)
    assert optimizer.get_config()["learning_rate"] == 0.001
    optimizer.build([p])
    optimizer.learning_rate = 0.3
    assert optimizer.get_config()["learning_rate"] == 0.3
    assert abs(float(optimizer.learning_rate) - 0.3) < 1e-7
    optimizer.learning_rate = 1  # an int
    with raises(ValueError, "learning_rate"):
        optimizer.learning_rate = -1.0
    optimizer.learning_rate = lambda: 0.25
    assert len(optimizer.variables) == 2
    optimizer.apply([tensor(np.ones(1, np.float32))], [p])
    assert np.allclose(array(p), -0.25 / math.sqrt(1.1), rtol=1e-6)
    optimizer.learning_rate = 0.5  # Keras raises AttributeError here
    assert [tuple(v.shape) for v in optimizer.variables] == [(), (), (1,)]
    assert float(optimizer.variables[1].value) == 0.5
    optimizer.learning_rate = schedules.CosineDecay(0.5, 10)
    assert abs(float(optimizer.learning_rate) - schedules.CosineDecay(0.5, 10)(1)) < 1e-6
    with raises(TypeError, "schedule"):
        optimizer.learning_rate = 0.1


def check_a_callable_rate_is_called_once_a_real_step():
    calls = []
    optimizer = Adagrad(lambda: calls.append(1) or 0.5, weight_decay=0.1, gradient_accumulation_steps=2)
    p = [variable(np.ones(2, np.float32)), variable(np.ones(3, np.float32))]
    for _ in range(6):
        optimizer.apply([tensor(np.ones(tuple(v.shape), np.float32)) for v in p], p)
    assert len(calls) == 3


SCHEDULES = [
    schedules.ExponentialDecay(0.5, 10, 0.9), schedules.ExponentialDecay(1, 7, 0.5, staircase=True),
    schedules.ExponentialDecay(1, 2.5, 0.5, staircase=True), schedules.InverseTimeDecay(0.5, 3, 0.25),
    schedules.PolynomialDecay(0.5, 10, 0.1, power=2.0), schedules.PolynomialDecay(0.5, 10, 0.1, cycle=True),
    schedules.PolynomialDecay(0.5, 2.5, 0.1, cycle=True), schedules.CosineDecay(0.5, 100, alpha=0.1),
    schedules.CosineDecay(0.1, 100, warmup_target=0.5, warmup_steps=10), schedules.CosineDecayRestarts(0.5, 1),
    schedules.CosineDecayRestarts(0.5, 7, t_mul=1.0, m_mul=0.9), schedules.CosineDecayRestarts(0.5, 2.5, t_mul=1.0),
    schedules.CosineDecayRestarts(0.5, 10, t_mul=1.1, m_mul=0.8, alpha=0.1),
    schedules.PiecewiseConstantDecay([10, 20.5], [1, 0.5, 0.1]), schedules.PiecewiseConstantDecay([], [0.5]),
]  # fmt: skip


def check_schedules_as_array_code():
    wide = BACKEND != "jax"
    steps = [*range(45), 100, 8191, 8192, 65535, 2**24 + 1, 2**30 - 1]

    def rates(step):
        return keras.ops.stack([rate_at_step(s, step, "float64" if wide else "float32") for s in SCHEDULES])

    compiled = {"tensorflow": lambda: tf.function(rates), "jax": lambda: jax.jit(rates), "torch": lambda: rates}[BACKEND]()
    tolerance = 1e-12 if wide else 4e-6
    for step in steps:
        for schedule, found in zip(SCHEDULES, array(compiled(tensor(np.int64(step) if wide else np.int32(step)))), strict=True):
            expected, top = schedule(step), 1.0
            assert abs(found - expected) <= tolerance * top, (schedule, step, found, expected)


def check_keras_schedules_and_ours():
    theirs = keras.optimizers.schedules.InverseTimeDecay(0.5, 2, 0.75)
    ours = schedules.InverseTimeDecay(0.5, 2, 0.75)
    results = []
    for schedule in (theirs, ours):
        p, optimizer = variable(np.zeros(3, np.float32)), Adagrad(schedule, gradient_accumulation_steps=2)
        for _ in range(6):
            optimizer.apply([tensor(np.ones(3, np.float32))], [p])
        again = Adagrad.from_config(optimizer.get_config())
        assert again.get_config() == optimizer.get_config()
        results.append(array(p))
    np.testing.assert_allclose(results[0], results[1], rtol=1e-6)


# ---- dtypes ----------------------------------------------------------------------------------------------------------


def check_state_is_wide():
    for dtype in ("float16", "bfloat16"):
        p = keras.Variable(np.ones(3), dtype=dtype)
        optimizer = Adagrad(1e-3, use_ema=True, gradient_accumulation_steps=2)
        optimizer.build([p])
        assert {keras.backend.standardize_dtype(v.dtype) for v in optimizer.variables[2:]} == {"float32"}
    p = keras.Variable(np.zeros(1), dtype="float16")
    optimizer = Adagrad(0.1)
    for _ in range(200):
        optimizer.apply([keras.ops.cast(tensor(np.full(1, 0.005, np.float32)), "float16")], [p])
    assert abs(float(array(optimizer.variables[-1])[0]) - (0.1 + 200 * float(np.float16(0.005)) ** 2)) < 1e-6


def check_large_gradients_are_clipped():
    for options in ({"clipnorm": 1.0}, {"global_clipnorm": 1.0}):
        for value in (1e20, 1e-25):
            p = variable(np.zeros(4, np.float32))
            Adagrad(1.0, initial_accumulator_value=0.0, epsilon=0.0, **options).apply(
                [tensor(np.full(4, value, np.float32))], [p]
            )
            assert np.allclose(array(p), -1.0, rtol=1e-6), (options, value, array(p))
    for options in ({"clipnorm": 1.0}, {"global_clipnorm": 1.0}):
        p = variable(np.zeros(2, np.float32))
        Adagrad(1.0, **options).apply([tensor(np.array([math.inf, 0.0], np.float32))], [p])
        assert math.isnan(array(p)[0])
        assert array(p)[1] == 0


def check_jax_the_count_never_wraps():
    p = variable(np.ones(2, np.float32))
    optimizer = Adagrad(1.0, gradient_accumulation_steps=3, use_ema=True, ema_overwrite_frequency=2)
    optimizer.build([p])
    start = 2**31 - 1 - 8
    optimizer.variables[0].assign(start)
    for call in range(20):
        before = int(optimizer.variables[0].value)
        assert before % 6 == (start + call) % 6
        assert before > 2**30
        optimizer.apply([tensor(np.ones(2, np.float32))], [p])


# ---- loss scaling ----------------------------------------------------------------------------------------------------


def scaled_calls():
    """Gradients of a table, clean and not, whose repeated ids overflow float32 in their sum only."""
    ids = np.array([1, 2, 1])
    clean, broken, unknown = ((np.full((3, 2), value, np.float32), ids) for value in (0.5, 3e38, np.nan))
    return [clean, clean, broken, clean, unknown, clean, clean, clean]


def check_loss_scale_optimizer():
    # Where there are kernels, bit for bit what they give; elsewhere they needn't be compiled.
    start = np.ones((4, 2), np.float32 if BACKEND == "torch" else np.float64)
    if BACKEND == "torch":
        judge = adagrad.LossScaleOptimizer(adagrad.Adagrad(0.5, clipnorm=0.7), 1024.0, 2)
    else:
        judge = ReferenceLossScale(ReferenceAdagrad(0.5, clipnorm=0.7), 1024.0, 2)
        judge.inner.build([start])
    table = variable(start.astype(np.float32))
    optimizer = LossScaleOptimizer(Adagrad(0.5, clipnorm=0.7), 1024.0, 2)
    optimizer.build([table])
    for values, ids in scaled_calls():
        with np.errstate(all="ignore"):
            wide = (values.astype(np.float64) if np.abs(values).max() < 1e38 else np.full(values.shape, np.inf)), ids
            judge.apply([adagrad.IndexedSlices(values, ids) if BACKEND == "torch" else ("rows", *wide)], [start])
        optimizer.apply([row_gradient(values, ids, (4, 2))], [table])
        assert (float(optimizer.dynamic_scale.value), int(optimizer.step_counter.value)) == (judge.scale, judge.clean_steps)
        if BACKEND == "torch":
            assert_same_bits(array(table), start)
        else:
            np.testing.assert_allclose(array(table), start, rtol=1e-6)
    for bound, gradient in ((2.0**40, 1.0), (2.0**-20, math.nan)):
        optimizer = LossScaleOptimizer(Adagrad(0.5), bound, 1)
        optimizer.apply([tensor(np.full(2, gradient, np.float32))], [variable(np.ones(2, np.float32))])
        assert float(optimizer.dynamic_scale.value) == bound
    optimizer = LossScaleOptimizer(Adagrad(0.5))
    optimizer.apply([], [])
    for grads in ([], [tensor(np.ones(2, np.float32))] * 2):
        with raises(ValueError, "grads must be as many as variables, 1"):
            optimizer.apply(grads, [variable(np.ones(2, np.float32))])
    assert not optimizer.built
    assert not optimizer.inner_optimizer.built
    with raises(ValueError, "loss_scale_factor"):
        LossScaleOptimizer(Adagrad(loss_scale_factor=2.0))
    with raises(TypeError, "inner_optimizer"):
        LossScaleOptimizer(keras.optimizers.Adagrad())


def check_loss_scale_optimizer_compiled():
    table = variable(np.ones((4, 2), np.float32))
    eager = variable(np.ones((4, 2), np.float32))
    optimizers = [LossScaleOptimizer(Adagrad(0.5, gradient_accumulation_steps=2), 1024.0, 2) for _ in range(2)]
    for optimizer, v in zip(optimizers, (table, eager), strict=True):
        optimizer.build([v])
    one, other = optimizers
    if BACKEND == "tensorflow":
        step = tf.function(lambda values, ids: one.apply([tf.IndexedSlices(values, ids)], [table]), jit_compile=True,
                           reduce_retracing=True)  # fmt: skip
    elif BACKEND == "jax":
        compiled = jax.jit(lambda s, values, ids, p: one.stateless_apply(s, [adagrad.IndexedSlices(values, ids)], p))

    def run(values, ids):
        if BACKEND == "tensorflow":
            return step(values, ids)
        state, parameters = [v.value for v in one.variables], [table.value]
        function = compiled if BACKEND == "jax" else (
            lambda s, values, ids, p: one.stateless_apply(s, [adagrad.IndexedSlices(values, ids)], p)
        )  # fmt: skip
        parameters, state = function(state, values, ids, parameters)
        for v, value in zip([table, *one.variables], [*parameters, *state], strict=True):
            v.assign(value)
        return None

    for values, ids in scaled_calls():
        run(tensor(values), tensor(ids))
        other.apply([row_gradient(values, ids, (4, 2))], [eager])
    if BACKEND != "torch":  # compiled code leaves rows outside of the table out: what they hold is no reason to skip a step
        values, ids = np.array([[1, 2], [np.nan, np.inf], [1, 1]], np.float32), np.array([1, 4, 0])
        run(tensor(values), tensor(ids))
        other.apply([row_gradient(values[::2], ids[::2], (4, 2))], [eager])
    for v, w in zip([table, *one.variables], [eager, *other.variables], strict=True):
        np.testing.assert_allclose(array(v), array(w), rtol=2e-6)


def check_keras_loss_scale_optimizer_around_ours():
    if BACKEND == "torch":
        with raises(Exception):
            repeated(keras.optimizers.LossScaleOptimizer(Adagrad(1.0)))
        return
    if BACKEND == "tensorflow":
        table = variable(np.zeros((3, 2), np.float32))
        optimizer = keras.optimizers.LossScaleOptimizer(Adagrad(1.0), initial_scale=8.0)
        optimizer.build([table])
        gradient = row_gradient(np.full((4, 2), 8.0, np.float32), [1, 1, 1, 1], (3, 2))
        tf.function(lambda: optimizer.apply([gradient], [table]))()
        assert np.allclose(array(table)[1], -4 / math.sqrt(16.1), rtol=1e-6)


def check_torch_compile():
    p = variable(np.ones(3, np.float32))
    optimizer = Adagrad(0.5)
    optimizer.build([p])
    step = torch.compile(lambda g: optimizer.apply([g * 2], [p]), backend="eager")
    for _ in range(3):
        with torch.no_grad():
            step(torch.ones(3))
    wide = np.ones(3, np.float32)
    numpy_optimizer = adagrad.Adagrad(0.5)
    for _ in range(3):
        numpy_optimizer.apply([np.full(3, 2, np.float32)], [wide])
    assert_same_bits(array(p), wide)
