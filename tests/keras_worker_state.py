"""Checks of the Keras face: its state, as variables, functions of them, and files. Run by `keras_worker`."""

import json
import tempfile
import zipfile
from pathlib import Path

import keras
import numpy as np

import adagrad
from adagrad import schedules
from adagrad.keras import Adagrad, Embedding, LossScaleOptimizer, adopt, load_model, release, stages
from keras_tools import BACKEND, array, tensor, variable
from keras_tools import rows as row_gradient
from keras_worker_steps import raises
from plain import assert_same_bits
from reference import ReferenceAdagrad

if BACKEND == "tensorflow":
    import tensorflow as tf

EVERYTHING = {
    "gradient_accumulation_steps": 2, "global_clipnorm": 0.8, "weight_decay": 0.05, "use_ema": True, "ema_momentum": 0.8,
    "ema_overwrite_frequency": 2, "loss_scale_factor": 3.0,
}  # fmt: skip


def small_model(optimizer, seed=3, dtype=None):
    """An embedding, a dense layer with a constraint, and an output."""
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [
            keras.Input((3,), dtype="int32"),
            Embedding(20, 4, dtype=dtype, name="table"),
            keras.layers.Flatten(dtype=dtype),
            keras.layers.Dense(5, kernel_constraint="max_norm", activation="tanh", dtype=dtype, name="hidden"),
            keras.layers.Dense(1, dtype=dtype, name="out"),
        ]
    )
    model.compile(optimizer=optimizer, loss="mse")
    return model


def batch(seed=0, count=32):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 20, (count, 3)).astype(np.int32), rng.normal(size=(count, 1)).astype(np.float32)


def everything_of(model):
    """All numbers of a model and its optimizer."""
    return [array(v) for v in [*model.variables, *model.optimizer.variables]]


def assert_same(model, other):
    for one, two in zip(everything_of(model), everything_of(other), strict=True):
        assert_same_bits(one, two)


# A compilation takes seconds where there are any: there only the one with a loss scale.
MAKES = [
    lambda: Adagrad(0.3, **EVERYTHING),
    lambda: LossScaleOptimizer(Adagrad(0.3, **{**EVERYTHING, "loss_scale_factor": None}), 64.0, 2),
][BACKEND != "torch" :]


# ---- functions -------------------------------------------------------------------------------------------------------


def check_stateless_apply_changes_nothing_of_the_caller_s():
    for wrap in (lambda optimizer: optimizer, LossScaleOptimizer):
        p = [variable(np.ones((3, 2), np.float32)), variable(np.ones(4, np.float32))]
        arguments = dict(EVERYTHING) if wrap is not LossScaleOptimizer else {**EVERYTHING, "loss_scale_factor": None}
        optimizer, stateful = wrap(Adagrad(0.5, **arguments)), wrap(Adagrad(0.5, **arguments))
        with raises(ValueError, "built"):
            optimizer.stateless_apply([], [], [])
        optimizer.build(p)
        twins = [variable(array(v)) for v in p]
        stateful.build(twins)
        values, state = [tensor(array(v)) for v in p], [tensor(array(v)) for v in optimizer.variables]
        for step in range(5):
            grads = [tensor(np.full(tuple(v.shape), step - 1.5, np.float32)) for v in p]
            before = [array(t) for t in [*values, *state, *grads]]
            new_values, new_state = optimizer.stateless_apply(state, grads, values)
            for old, t in zip(before, [*values, *state, *grads], strict=True):
                assert_same_bits(array(t), old)
            stateful.apply(grads, twins)
            for t, v in zip([*new_values, *new_state], [*twins, *stateful.variables], strict=True):
                np.testing.assert_allclose(array(t), array(v), rtol=1e-6)
            values, state = new_values, new_state
        assert all((array(v) == 1).all() for v in p)
        assert int(optimizer.iterations) == 0
        with raises(ValueError, "as many"):
            optimizer.stateless_apply(state[1:], grads, values)


def check_stateless_apply_of_the_variables_own_values_changes_none_of_them():
    """What custom loops hand over first; on PyTorch and TensorFlow they are the very memory that `apply` steps."""
    large = (stages.LARGE, 1)  # as TensorFlow compiles it
    for steps, expected, shape in ((None, -2 / np.sqrt(4.1), (3, 2)), (None, -2 / np.sqrt(4.1), large), (2, 0.0, (3, 2))):
        rows = np.ones((2, *shape[1:]), np.float32), [1, 1], shape
        for gradient in (tensor(np.full(shape, 2, np.float32)), row_gradient(*rows)):
            table, optimizer = variable(np.zeros(shape, np.float32)), Adagrad(1.0, gradient_accumulation_steps=steps)
            optimizer.build([table])
            variables = [table, *optimizer.variables]
            before = [array(v) for v in variables]

            def pure(state, values, gradient=gradient, optimizer=optimizer):
                return optimizer.stateless_apply(state, [gradient], values)

            def by_a_scope(state, values, gradient=gradient, optimizer=optimizer, table=table):
                with keras.StatelessScope(zip([*optimizer.variables, table], [*state, *values], strict=True)) as scope:
                    optimizer.apply([gradient])
                return [scope.get_current_value(table)], None

            for way in (pure, by_a_scope, *([tf.function(pure)] if BACKEND == "tensorflow" else [])):
                (after,), _ = way([v.value for v in optimizer.variables], [table.value])
                np.testing.assert_allclose(array(after)[1], expected, rtol=1e-6)
                for v, old in zip(variables, before, strict=True):
                    assert_same_bits(array(v), old)


def check_finalize_goes_by_identity():
    p = [variable(np.zeros(2, np.float32)), variable(np.zeros(3, np.float32))]
    p[1].constraint = keras.constraints.NonNeg()
    optimizer = Adagrad(0.5, use_ema=True, ema_momentum=0.5)
    optimizer.build(p)
    optimizer.finalize_variable_values(p)  # nothing has happened
    judge, wide = ReferenceAdagrad(0.5, use_ema=True, ema_momentum=0.5), [np.zeros(2), np.zeros(3)]
    judge.build(wide, [None, lambda x: np.maximum(x, 0)])
    for sign in (1.0, -2.0, 3.0):
        grads = [np.full(2, sign), np.full(3, -sign)]
        optimizer.apply([tensor(g.astype(np.float32)) for g in grads], p)
        judge.apply(grads, wide)
    before = array(p[0])
    optimizer.finalize_variable_values([p[1]])
    assert_same_bits(array(p[0]), before)
    optimizer.finalize_variable_values(v for v in [p[1], p[0]])
    judge.finalize_variable_values(wide)
    for v, expected in zip(p, wide, strict=True):
        np.testing.assert_allclose(array(v), expected, rtol=1e-6)


# ---- files -----------------------------------------------------------------------------------------------------------


def check_config_and_back():
    optimizer = Adagrad(schedules.CosineDecay(0.1, 10), row_wise=True, epsilon_placement="outside", **EVERYTHING)
    for way in (
        Adagrad.from_config(optimizer.get_config()),
        keras.optimizers.deserialize(json.loads(json.dumps(keras.optimizers.serialize(optimizer)))),
    ):
        assert type(way) is Adagrad
        assert way.get_config() == optimizer.get_config()
    config = optimizer.get_config()
    kept = json.dumps(config)
    Adagrad.from_config(config)
    assert json.dumps(config) == kept
    with raises(ValueError, "unknown arguments"):
        Adagrad.from_config({"moment": 1})
    theirs = keras.optimizers.Adagrad(0.25, weight_decay=0.5)
    assert Adagrad.from_config(theirs.get_config()).weight_decay == 0.5
    wrapped = LossScaleOptimizer(Adagrad(0.25), 64.0, 7)
    again = keras.optimizers.deserialize(json.loads(json.dumps(keras.optimizers.serialize(wrapped))))
    assert type(again) is LossScaleOptimizer
    assert again.get_config() == wrapped.get_config()


def check_resumed_training_equals_training_that_never_stopped():
    for make in MAKES:
        model = small_model(make())
        for step in range(3):  # in the middle of a cycle
            model.train_on_batch(*batch(step))
        with tempfile.TemporaryDirectory() as folder:
            path, weights, state = (str(Path(folder) / name) for name in ("m.keras", "m.weights.h5", "state"))
            model.save(path)
            model.save_weights(weights)
            model.optimizer.save(state)
            loaded = keras.saving.load_model(path)  # safe_mode is on
            weighted = small_model(make(), seed=8)
            weighted.train_on_batch(*batch(9))  # builds, and is forgotten
            weighted.load_weights(weights)
            stated = small_model(make(), seed=8)
            stated.set_weights(model.get_weights())
            stated.optimizer.build(stated.trainable_variables)
            names = {
                old.path: new.path
                for old, new in zip(model.trainable_variables, stated.trainable_variables, strict=True)
                if old.path != new.path
            }
            stated.optimizer.load(state, names=names)
        others = [loaded, weighted, stated]
        for other in others:
            assert_same(model, other)
        for step in range(3, 6):
            model.train_on_batch(*batch(step))
            for other in others:
                other.train_on_batch(*batch(step))
        for other in others:
            assert_same(model, other)


def check_a_model_that_was_frozen_after_training_opens_with_the_rest_of_its_state():
    for make in (lambda: Adagrad(0.3, use_ema=True), lambda: LossScaleOptimizer(Adagrad(0.3, use_ema=True), 64.0, 2)):
        model, rng = small_model(make()), np.random.default_rng(5)
        model.optimizer.build(model.trainable_variables)
        for v in model.optimizer.variables[-10:]:
            v.assign(rng.random(tuple(v.shape)))
        expected = [array(v) for v in model.optimizer.variables]
        counters = len(expected) - 10
        model.get_layer("hidden").trainable = False  # its kernel and bias; not compiled again
        with tempfile.TemporaryDirectory() as folder:
            path, weights, frozen = (str(Path(folder) / name) for name in ("m.keras", "m.weights.h5", "f.keras"))
            model.save(path)
            model.save_weights(weights)
            loaded = keras.saving.load_model(path)
            model.trainable = False  # as for serving
            model.save(frozen)
            served = keras.saving.load_model(frozen)
            again = small_model(make(), seed=8)  # nothing is frozen here: all of the state has its place
            again.optimizer.build(again.trainable_variables)
            again.load_weights(weights)
        kept = [*expected[:counters], *(v for k in (0, 5) for v in np.array(expected[counters + k :], object)[[0, 3, 4]])]
        for found, wanted in ((loaded, kept), (again, expected), (served, expected[:counters])):
            for v, old in zip(found.optimizer.variables, wanted, strict=True):
                assert_same_bits(array(v), old)


def check_jax_a_count_that_has_no_place_is_refused_before_anything_changed():
    p = variable(np.ones(2, np.float32))
    optimizer = Adagrad(0.3)
    optimizer.build([p])
    store = {"0": np.int64(2**31), "1": np.float64(0.3), "2": np.full(2, 7, np.float32)}
    before = [array(v) for v in optimizer.variables]
    with raises(ValueError, "count of calls must be at most 2147483647", "got 2147483648"):
        optimizer.load_own_variables(store)
    arrays = {"w": np.ones(2, np.float32)}
    elsewhere = adagrad.Adagrad(0.3)
    elsewhere.build(arrays)
    elsewhere.set_weights(list(store.values()))
    with tempfile.TemporaryDirectory() as folder:
        elsewhere.save(Path(folder) / "state")
        with raises(ValueError, "count of calls must be at most 2147483647"):
            optimizer.load(Path(folder) / "state", names={"w": p.path})
    for v, old in zip(optimizer.variables, before, strict=True):
        assert_same_bits(array(v), old)


def check_state_that_does_not_fit_is_refused():
    model = small_model(Adagrad(0.3, use_ema=True))
    model.train_on_batch(*batch())
    other = small_model(Adagrad(0.3))
    other.train_on_batch(*batch())
    store = {}
    model.optimizer.save_own_variables(store)
    before = everything_of(other)
    with raises(ValueError, "use_ema"):
        other.optimizer.load_own_variables(store)
    own = {}
    other.optimizer.save_own_variables(own)
    own["3"] = own["3"] - 5
    with raises(ValueError, "negative"):
        other.optimizer.load_own_variables(own)
    with raises(ValueError, "shape"):
        other.optimizer.set_weights([*[array(v) for v in other.optimizer.variables[:-1]], np.ones(7)])
    with raises(ValueError, "weights must be 7 arrays, got 2"):  # the counters alone
        other.optimizer.set_weights([array(v) for v in other.optimizer.variables[:2]])
    with raises(ValueError, "built"):
        Adagrad().set_weights([])
    for old, now in zip(before, everything_of(other), strict=True):
        assert_same_bits(now, old)


def check_a_rate_stored_in_float32_is_the_number_that_was_set():
    """As JAX without x64 stores it: a file that is saved afterwards must have the same settings as before."""
    narrow = float(np.float32(0.3))
    for stored, expected in (
        (np.float32(0.3), 0.3),
        (np.float64(narrow), narrow),
        (np.float32(0.75), 0.75),
        (np.int64(0), 0.0),
    ):
        optimizer = Adagrad(0.3)
        optimizer.load_own_variables({"0": np.int64(7), "1": stored})
        assert optimizer.get_config()["learning_rate"] == expected
        assert int(optimizer.iterations) == 7


def check_tensorflow_exports_and_checkpoints():
    model = small_model(Adagrad(0.3, use_ema=True))
    model.train_on_batch(*batch())
    ids = batch(1)[0]
    with tempfile.TemporaryDirectory() as folder:
        model.export(folder, verbose=False)
        exported = tf.saved_model.load(folder)
        np.testing.assert_allclose(exported.serve(ids), model(ids), rtol=1e-5)
    for wrap in (lambda optimizer: optimizer, LossScaleOptimizer):
        optimizer = wrap(Adagrad(0.3, use_ema=True))
        rates = [lambda: 0.5, 0.25, schedules.InverseTimeDecay(0.5, 2, 0.75)]
        p = [variable(np.ones(3, np.float32))]
        for rate in (None, *rates):  # with the count and the rate in front, and the count alone
            if rate is not None:
                optimizer.learning_rate = rate
            optimizer.apply([tensor(np.ones(3, np.float32))], p)
            with tempfile.TemporaryDirectory() as folder:
                path = tf.train.Checkpoint(optimizer=optimizer).save(str(Path(folder) / "checkpoint"))
                for built in (True, False):
                    other = wrap(Adagrad(0.125 if rate is None else rate, use_ema=True))
                    if built:
                        other.build(p)
                    tf.train.Checkpoint(optimizer=other).restore(path)
                    if not built:
                        other.build(p)
                    for one, two in zip(optimizer.variables, other.variables, strict=True):
                        assert_same_bits(array(one), array(two))


def check_a_model_that_was_saved_before_training_opens():
    for optimizer in (Adagrad(0.25), LossScaleOptimizer(Adagrad(0.25))):
        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder) / "m.keras")
            small_model(optimizer).save(path)
            loaded = keras.saving.load_model(path)
        loaded.train_on_batch(*batch())
        assert int(loaded.optimizer.iterations) == 1


def check_state_file_of_the_numpy_face_and_back():
    start, rng = np.ones((3, 2), np.float32), np.random.default_rng(2)
    numpy_p, p = start.copy(), variable(start, "kernel")
    numpy_optimizer, optimizer = adagrad.Adagrad(0.3, **EVERYTHING), Adagrad(0.3, **EVERYTHING)
    optimizer.build([p])
    numpy_optimizer.build({"w": numpy_p})

    def same():
        assert int(optimizer.variables[0].value) == int(numpy_optimizer.variables[0])
        for v, expected in zip(optimizer.variables[2:], numpy_optimizer.variables[2:], strict=True):
            assert_same_bits(array(v), expected)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state"
        for _ in range(3):  # in the middle of a cycle, and not
            optimizer.apply([tensor(rng.normal(size=(3, 2)).astype(np.float32))], [p])
            optimizer.save(path)
            numpy_optimizer.load(path, names={p.path: "w"})
            same()
            numpy_p[...] = array(p)
            weights = [np.abs(rng.normal(size=v.shape)) for v in numpy_optimizer.variables[2:]]
            numpy_optimizer.set_weights([np.array(5), np.array(0.25), *weights])
            numpy_optimizer.save(path)
            optimizer.load(path, names={"w": p.path})
            assert optimizer.get_config()["learning_rate"] == 0.25
            same()
    if BACKEND == "torch":  # the steps after it, too
        for _ in range(3):
            g = rng.normal(size=(3, 2)).astype(np.float32)
            optimizer.apply([tensor(g)], [p])
            numpy_optimizer.apply({"w": g}, {"w": numpy_p})
            assert_same_bits(array(p), numpy_p)
            same()


# ---- Keras's optimizer and ours --------------------------------------------------------------------------------------


def check_a_file_with_keras_s_adagrad_opens_with_ours():
    arguments = {"weight_decay": 0.01, "use_ema": True, "gradient_accumulation_steps": 3, "clipnorm": 0.0}
    model = small_model(keras.optimizers.Adagrad(0.3, **arguments))
    for layer in model.layers:
        if type(layer) is Embedding:
            layer.__class__ = keras.layers.Embedding
    for step in range(4):
        model.train_on_batch(*batch(step))
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "m.keras")
        model.save(path)
        loaded = load_model(path)
        assert getattr(load_model(path, compile=False), "optimizer", None) is None
    optimizer = loaded.optimizer
    assert type(optimizer) is Adagrad
    assert type(loaded.layers[0]) is Embedding
    assert optimizer.get_config()["learning_rate"] == 0.3
    assert optimizer.clipnorm is None
    assert int(array(optimizer.variables[0])) == 4
    for ours, theirs in zip(optimizer.variables[2:], model.optimizer.variables[2:], strict=True):
        assert_same_bits(array(ours), array(theirs))
    loaded.train_on_batch(*batch())


def check_golden_files_of_every_backend_open():
    folder = Path(__file__).parent / "goldens"
    expected = json.loads((folder / "keras_files.json").read_text())
    for backend, numbers in expected.items():
        model = load_model(folder / f"keras_{backend}.keras")
        assert type(model.optimizer) is Adagrad
        state = [array(v).astype(float).reshape(-1).tolist() for v in model.optimizer.variables[2:]]
        assert [int(array(model.optimizer.variables[0])), *state] == numbers, backend


def check_adopt_and_release():
    rng = np.random.default_rng(1)
    # No id twice in a batch: there Keras is wrong on TensorFlow.
    once = rng.permutation(20)[:18].reshape(6, 3).astype(np.int32), rng.normal(size=(6, 1)).astype(np.float32)
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 10)
    for keras_optimizer in (
        keras.optimizers.Adagrad(schedule, epsilon=0.01, global_clipnorm=2.0),
        keras.optimizers.LossScaleOptimizer(keras.optimizers.Adagrad(0.1), initial_scale=64.0),
    )[BACKEND != "torch" :]:
        model = small_model(Adagrad())
        release(model)
        assert type(model.layers[0]) is keras.layers.Embedding
        model.compile(optimizer=keras_optimizer, loss="mse")
        model.fit(*once, epochs=1, verbose=0)
        twin = small_model(Adagrad(), seed=4)
        release(twin)
        twin.compile(optimizer=type(keras_optimizer).from_config(keras_optimizer.get_config()), loss="mse")
        twin.fit(*once, epochs=1, verbose=0)
        twin.set_weights(model.get_weights())
        for v, w in zip(twin.optimizer.variables, model.optimizer.variables, strict=True):
            v.assign(array(w))
        assert adopt(model) is model
        assert isinstance(model.optimizer, Adagrad | LossScaleOptimizer)
        assert adopt(model).optimizer is model.optimizer
        for _ in range(2):
            model.train_on_batch(*once)
            twin.train_on_batch(*once)
        release(model)
        assert type(model.optimizer).__module__.startswith("keras.")
        model.train_on_batch(*once)
        twin.train_on_batch(*once)
        for v, w in zip(everything_of(model), everything_of(twin), strict=True):
            np.testing.assert_allclose(v, w, rtol=2e-5, atol=1e-6)
        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder) / "m.keras")
            model.save(path)
            with zipfile.ZipFile(path) as file:
                assert "adagrad>" not in file.read("config.json").decode()
    model = small_model(Adagrad(row_wise=True))
    with raises(ValueError, "row_wise"):
        release(model)
    assert type(model.optimizer) is Adagrad
    assert type(model.layers[0]) is Embedding
    model.compile(optimizer="sgd", loss="mse")
    with raises(TypeError, "SGD"):
        adopt(model)
    ours = small_model(Adagrad(schedules.InverseTimeDecay(0.5, 3, 0.25)))
    assert isinstance(release(ours).optimizer._learning_rate, keras.optimizers.schedules.InverseTimeDecay)


def check_adopt_and_release_keep_what_is_excluded_from_weight_decay():
    for wrap in (lambda optimizer: optimizer, keras.optimizers.LossScaleOptimizer)[BACKEND == "jax" :]:
        model = small_model(Adagrad())
        theirs = keras.optimizers.Adagrad(0.1, weight_decay=0.5)
        theirs.exclude_from_weight_decay(var_list=[model.get_layer("out").kernel], var_names=["bias"])
        excluded = {"out/kernel", "out/bias", "hidden/bias"}
        model.compile(optimizer=wrap(theirs), loss="mse")  # and not built
        adopted = adopt(model).optimizer
        inner = getattr(adopted, "inner_optimizer", adopted)
        assert {"/".join(slot.name.split("/")[-2:]) for slot in inner._slots if not slot.decays} == excluded
        released = release(model).optimizer
        inner = getattr(released, "inner_optimizer", released)
        kept = [v.path for v in model.trainable_variables if not inner._use_weight_decay(v)]
        assert {"/".join(path.split("/")[-2:]) for path in kept} == excluded
        assert int(array(released.variables[0])) == 0
    for make, change in ((keras.optimizers.Adagrad, adopt), (Adagrad, release)):
        model, optimizer = keras.Sequential([keras.layers.Dense(1)]), make(0.1, weight_decay=0.5)
        model.compile(optimizer=optimizer, loss="mse")
        change(model)
        assert type(model.optimizer) is not type(optimizer)  # without exclusions there is nothing to know
        optimizer.exclude_from_weight_decay(var_names=["bias"])
        model.compile(optimizer=optimizer, loss="mse")
        with raises(ValueError, "exclusions from weight decay", "not built"):
            change(model)
        assert model.optimizer is optimizer
    ours = Adagrad(0.1, weight_decay=0.5)
    ours.exclude_from_weight_decay(var_names=["hidden/"])
    model = release(small_model(ours))
    assert [model.optimizer._use_weight_decay(v) for v in model.trainable_variables] == [True, False, False, True, True]
    theirs = keras.optimizers.Adagrad(0.1, weight_decay=0.5)
    theirs.exclude_from_weight_decay(var_names=["hidden/"])
    model.compile(optimizer=theirs, loss="mse")
    adopt(model)  # on TensorFlow Keras looks for a pattern in the path, elsewhere in the name
    found = [slot.decays for slot in model.optimizer._slots]
    assert found == ([True, False, False, True, True] if BACKEND == "tensorflow" else [True] * 5)
