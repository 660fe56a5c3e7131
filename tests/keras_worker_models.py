"""Checks of the Keras face: models under `fit` and in custom loops. Run by `keras_worker`."""

import contextlib
import doctest
import gc
import importlib
import re
import tempfile
from pathlib import Path

import keras
import numpy as np

import adagrad
from adagrad.keras import Adagrad, Embedding, LossScaleOptimizer, row_train_step, stages
from keras_tools import BACKEND, array, tensor, variable
from keras_worker_state import EVERYTHING, batch, everything_of, small_model
from keras_worker_steps import array_code, check_sparse_law, raises
from plain import assert_same_bits
from reference import ReferenceAdagrad

if BACKEND == "tensorflow":
    import tensorflow as tf
elif BACKEND == "jax":
    import jax
else:
    import torch

MODES = {"tensorflow": [{}, {"jit_compile": True}, {"run_eagerly": True}], "jax": [{}], "torch": [{}]}[BACKEND]


def linear(optimizer, **options):
    """A linear model of an embedding, whose gradients are easy to write down: y = sum over the ids of their weights, plus b."""
    keras.utils.set_random_seed(5)
    inputs = keras.Input((3,), dtype="int32")
    table = Embedding(20, 1, name="weights", embeddings_initializer="glorot_uniform")
    summed = keras.ops.sum(table(inputs), axis=1)
    model = keras.Model(inputs, Bias(name="bias")(summed))
    model.compile(optimizer=optimizer, loss="mse", **options)
    return model


class Bias(keras.layers.Layer):
    def build(self, shape):
        self.b = self.add_weight(shape=(1,), name="b", constraint="non_neg")

    def call(self, x):
        return x + self.b


# ---- fit -------------------------------------------------------------------------------------------------------------


def check_fit_by_every_argument_equals_the_reference():
    for options in MODES:
        optimizer = Adagrad(0.3, epsilon=0.01, initial_accumulator_value=0.2, **EVERYTHING)
        optimizer.exclude_from_weight_decay(var_names=["^bias/"])
        model = linear(optimizer, **options)
        wide = [array(v).astype(np.float64) for v in model.trainable_variables]
        judge = ReferenceAdagrad(0.3, epsilon=0.01, initial_accumulator_value=0.2, **EVERYTHING)
        judge.build(wide, [None, lambda b: np.maximum(b, 0)])
        judge.exclude_from_weight_decay(var_list=[wide[1]])
        x, y = batch(3, 64)
        model.fit(x, y, batch_size=8, epochs=1, shuffle=False, verbose=0)
        for start in range(0, 64, 8):
            ids, targets = x[start : start + 8], y[start : start + 8, 0]
            error = wide[0][ids, 0].sum(axis=1) + wide[1][0] - targets
            slope = 3.0 * 2 * error / 8  # times the loss scale
            table = np.zeros((20, 1))
            np.add.at(table, ids.reshape(-1), np.repeat(slope, 3)[:, None])
            judge.apply([table, np.array([slope.sum()])], wide)
        judge.finalize_variable_values(wide)
        for v, expected in zip(model.trainable_variables, wide, strict=True):
            np.testing.assert_allclose(array(v), expected, rtol=3e-5, atol=3e-6)
        assert int(model.optimizer.iterations) == judge.iterations == 4


def check_embedding_is_keras_s():
    layers = [kind(6, 4, mask_zero=True, name="e") for kind in (Embedding, keras.layers.Embedding)]
    ids = tensor(np.array([[1, 5, 0], [2, 2, 3]], np.int32))
    for layer in layers:
        layer.build()
    layers[1].set_weights(layers[0].get_weights())
    for one, other in ((layer(ids) for layer in layers), (layer.compute_mask(ids) for layer in layers)):
        assert_same_bits(array(one), array(other))
    assert layers[0].get_config() == layers[1].get_config()
    half = Embedding(6, 4, dtype="mixed_float16")
    assert keras.backend.standardize_dtype(half(ids).dtype) == "float16"
    layers[0].enable_lora(2)
    assert tuple(layers[0](ids).shape) == (2, 3, 4)


def check_a_tied_table_is_as_keras_gives_it():
    """In mixed precision a layer that uses the table gets it in half precision, whatever has been looked up before."""

    class Tied(keras.layers.Layer):
        def __init__(self, embedding):
            super().__init__(dtype="mixed_float16")
            self.embedding = embedding

        def call(self, x):
            return keras.ops.matmul(x, keras.ops.transpose(self.embedding.embeddings))

    found = []
    for kind in (Embedding, keras.layers.Embedding):
        embedding = kind(6, 4, dtype="mixed_float16", embeddings_initializer="ones")
        found.append(Tied(embedding)(embedding(tensor(np.array([[1, 5]], np.int32)))))
        assert keras.backend.standardize_dtype(found[-1].dtype) == "float16"
    assert_same_bits(*map(array, found))


def check_torch_embedding_gives_rows_under_fit():
    model = linear(Adagrad(0.3, clipnorm=0.5))
    seen = []
    apply = model.optimizer.apply
    model.optimizer.apply = lambda grads, variables: (seen.append(grads[0].is_sparse), apply(grads, variables))
    model.fit(*batch(), verbose=0, batch_size=8)
    assert seen == [True] * 4
    dense = linear(Adagrad(0.3, clipnorm=0.5))
    dense.layers[1].__class__ = keras.layers.Embedding
    dense.fit(*batch(), verbose=0, batch_size=8)
    for one, other in zip(everything_of(model), everything_of(dense), strict=True):
        assert_same_bits(one, other)


def check_tensorflow_a_training_step_makes_nothing_of_the_table_s_size():
    for policy in ("float32", "mixed_float16"):
        inputs = keras.Input((3,), dtype="int32")
        rows = Embedding(1000, 4, dtype=policy)(inputs)
        model = keras.Model(inputs, keras.layers.Dense(1)(keras.ops.sum(rows, axis=1)))
        model.compile(Adagrad(0.1, clipnorm=1.0), "mse")
        model.optimizer.build(model.trainable_variables)
        step = tf.function(lambda x, y, model=model: model.train_step((x, y)))
        graph = step.get_concrete_function(*map(tf.constant, batch(count=8))).graph
        assert not [op for op in graph.get_operations() for output in op.outputs if output.shape[:1] == [1000]]


def check_mixed_precision():
    for option in MODES[-2:-1] or [{}]:  # compiled by XLA on TensorFlow
        model = small_model(Adagrad(0.1), dtype="mixed_float16")
        model.compile(LossScaleOptimizer(Adagrad(0.1), 2.0**40), "mse", **option)
        model.fit(*batch(count=64), batch_size=8, epochs=4, verbose=0)
        assert float(array(model.optimizer.dynamic_scale)) < 2.0**30
        assert 0 < int(model.optimizer.iterations) < 32
        assert all(np.isfinite(v).all() for v in everything_of(model))
        if BACKEND != "torch":  # there Keras's wrapper, which compile puts around an optimizer, fails on rows
            keras.config.set_dtype_policy("mixed_float16")
            try:
                wrapped = small_model(Adagrad(0.1))
                assert isinstance(wrapped.optimizer, keras.optimizers.LossScaleOptimizer)
                wrapped.fit(*batch(count=64), batch_size=8, verbose=0)
            finally:
                keras.config.set_dtype_policy("float32")
            assert int(wrapped.optimizer.iterations) > 0
    model = small_model(Adagrad(0.1), dtype="mixed_bfloat16")
    first = model.evaluate(*batch(), verbose=0)
    model.fit(*batch(), epochs=3, verbose=0)
    assert model.evaluate(*batch(), verbose=0) < first


def check_callbacks():
    rates = []
    model = small_model(Adagrad(0.5, use_ema=True, ema_momentum=0.9))
    model.fit(
        *batch(count=64), validation_data=batch(1), epochs=3, batch_size=16, verbose=0,
        callbacks=[
            keras.callbacks.LearningRateScheduler(lambda epoch, rate: rates.append(rate) or rate * 0.5),
            keras.callbacks.ReduceLROnPlateau(monitor="loss", patience=0, min_delta=9.0, factor=0.1),
            keras.callbacks.SwapEMAWeights(),
        ],
    )  # fmt: skip
    assert np.allclose(rates, [0.5, 0.25, 0.0125], rtol=1e-6), rates
    for v, average in zip(model.trainable_variables, model.optimizer._model_variables_moving_average, strict=True):
        expected = v.constraint(average.value) if v.constraint else average
        np.testing.assert_allclose(array(v), array(expected), rtol=1e-6)  # the averages are in place
    swap = keras.callbacks.SwapEMAWeights()
    swap.set_model(model)
    model.optimizer.use_ema = True
    model.train_on_batch(*batch(5))
    before = [array(v) for v in model.trainable_variables]
    swap.on_test_begin()
    assert any((array(v) != old).any() for v, old in zip(model.trainable_variables, before, strict=True))
    swap.on_test_end()
    for v, old in zip(model.trainable_variables, before, strict=True):
        np.testing.assert_allclose(array(v), old, rtol=1e-5, atol=1e-6)  # on TensorFlow Keras swaps by adding


def check_frozen_layers():
    model = small_model(Adagrad(0.5, use_ema=True))
    model.get_layer("hidden").trainable = False
    model.compile(Adagrad(0.5, use_ema=True), "mse")
    before = model.get_layer("hidden").get_weights()
    model.fit(*batch(), verbose=0)
    for old, now in zip(before, model.get_layer("hidden").get_weights(), strict=True):
        assert_same_bits(np.asarray(now), np.asarray(old))
    if BACKEND != "jax":  # a variable may be frozen in the middle, without compiling anew: it stays, the others move
        p = [variable(np.ones(2, np.float32)), variable(np.ones(3, np.float32))]
        optimizer = Adagrad(0.5)
        optimizer.build(p)
        optimizer.apply([tensor(np.ones(3, np.float32))], [p[1]])
        assert_same_bits(array(p[0]), np.ones(2, np.float32))
        assert (array(p[1]) < 1).all()


def check_torch_a_rate_for_every_batch_keeps_the_engine():
    """A warm-up by a callback costs no new engine, which would look through all gradient buffers."""
    model = linear(Adagrad(0.3, gradient_accumulation_steps=2))
    model.train_on_batch(*batch())
    engine = model.optimizer._engine
    table, accumulator = model.trainable_variables[0], model.optimizer._accumulators[0]
    model.optimizer.learning_rate = 0.125
    before = array(table)
    model.train_on_batch(*batch(1))
    assert model.optimizer._engine is engine
    step = 0.125 * np.sqrt((array(accumulator) - np.float32(0.1)) / (array(accumulator) + 1e-7))
    np.testing.assert_allclose(np.abs(before - array(table)), step, rtol=1e-4)
    model.optimizer.clipnorm = 0.5  # another argument is another engine
    model.train_on_batch(*batch(2))
    assert model.optimizer._engine is not engine


def check_no_retracing_after_the_first_step():
    model = small_model(Adagrad(0.5, **EVERYTHING))
    count = []
    step = model.optimizer._step if BACKEND != "torch" else model.optimizer._step_engine
    name = "_step" if BACKEND != "torch" else "_step_engine"
    object.__setattr__(model.optimizer, name, lambda *given, **options: (count.append(1), step(*given, **options))[1])
    model.fit(*batch(count=64), batch_size=8, epochs=1, verbose=0)
    traced = len(count)
    model.fit(*batch(count=64), batch_size=8, epochs=2, verbose=0)
    assert len(count) - traced == (16 if BACKEND == "torch" else 0), (traced, len(count))
    if BACKEND == "torch":  # nor is the engine made anew
        engine = model.optimizer._engine
        model.train_on_batch(*batch(count=8))
        assert model.optimizer._engine is engine


def check_tensorflow_programs_of_large_variables():
    """The checks that tell most, as if all variables were large."""
    before = stages.LARGE
    stages.LARGE = 0
    try:
        check_sparse_law()
        check_fit_by_every_argument_equals_the_reference()
        programs_are_shared_and_outlive_a_model()
    finally:
        stages.LARGE = before


def programs_are_shared_and_outlive_a_model():
    """One for variables of one shape, in whatever model; many shapes are no reason for TensorFlow to warn of retracing."""
    shapes = range(3, 12)
    spoken = []
    tf.get_logger().addFilter(lambda record: spoken.append(record.getMessage()) or True)

    def counts():
        variables = [variable(np.ones(n, np.float32)) for n in shapes]
        optimizer = Adagrad(0.5)

        def step():
            optimizer.apply([tf.ones(n) for n in shapes], variables)

        tf.function(step)()
        step()
        for v in variables:
            np.testing.assert_allclose(array(v), 1 - 0.5 * (1.1**-0.5 + 2.1**-0.5), rtol=1e-6)
        return [stages.compiled(optimizer._settings, slot).experimental_get_tracing_count() for slot in optimizer._slots]

    for _ in range(2):
        assert counts() == [1] * 9
        gc.collect()
    assert not [text for text in spoken if "retracing" in text], spoken


def check_tensorflow_a_strategy_of_one_replica():
    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        model = small_model(Adagrad(0.5, **EVERYTHING))
        mirrored = model.trainable_variables[0].value
    other = small_model(Adagrad(0.5, **EVERYTHING))
    for each in (model, other):
        each.fit(*batch(count=32), batch_size=8, shuffle=False, verbose=0)
    assert isinstance(mirrored, tf.distribute.DistributedValues)
    for one, two in zip(model.trainable_variables, other.trainable_variables, strict=True):
        np.testing.assert_allclose(array(one), array(two), rtol=1e-5)


# ---- loops of one's own ----------------------------------------------------------------------------------------------


def check_tensorflow_custom_loops():
    results = []
    for wrap in (lambda f: f, tf.function, lambda f: tf.function(f, jit_compile=True)):
        model = small_model(Adagrad(0.3, global_clipnorm=0.5))
        x, y = map(tf.constant, batch())

        def step(x, y, model=model):
            with tf.GradientTape() as tape:
                loss = keras.losses.MeanSquaredError()(y, model(x, training=True))
            gradients = tape.gradient(loss, model.trainable_variables)
            assert isinstance(gradients[0], tf.IndexedSlices)
            model.optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))

        model.optimizer.build(model.trainable_variables)
        step = wrap(step)
        for _ in range(3):
            step(x, y)
        results.append(everything_of(model))
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            np.testing.assert_allclose(one, two, rtol=2e-5, atol=1e-6)


def check_torch_custom_loops():
    model = small_model(Adagrad(0.3, global_clipnorm=0.5))
    twin = small_model(Adagrad(0.3, global_clipnorm=0.5))
    x, y = batch()
    for _ in range(3):
        model.zero_grad()
        loss = keras.losses.MeanSquaredError()(tensor(y), model(tensor(x), training=True))
        loss.backward()
        gradients = [v.value.grad for v in model.trainable_variables]
        with torch.no_grad():
            model.optimizer.apply(gradients, model.trainable_variables)
        twin.train_on_batch(x, y)
    for one, two in zip(everything_of(model), everything_of(twin), strict=True):
        assert_same_bits(one, two)


def check_torch_devices_without_kernels():
    variables = []
    for context in (contextlib.nullcontext, array_code):
        with context():
            p = variable(np.ones((6, 2), np.float32))
            optimizer = Adagrad(0.5, **EVERYTHING)
            plain, table = Adagrad(0.5), variable(np.ones((6, 2), np.float32))
            rng = np.random.default_rng(4)
            for _ in range(5):
                values = torch.from_numpy(rng.normal(size=(4, 2)).astype(np.float32))
                gradient = torch.sparse_coo_tensor(torch.tensor([[1, 3, 1, 5]]), values, (6, 2), check_invariants=False)
                optimizer.apply([gradient], [p])
                plain.apply([adagrad.IndexedSlices(values, torch.tensor([1, 3, 1, 5], dtype=torch.int32))], [table])
            variables.append([array(v) for v in [p, *optimizer.variables, table, *plain.variables]])
    for one, two in zip(*variables, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-6, atol=1e-7)


# ---- JAX: rows and distribution --------------------------------------------------------------------------------------

if BACKEND == "jax":

    class RowModel(keras.Model):
        def train_step(self, state, data):
            return row_train_step(self, state, data)


def twice_looked_up(kind, optimizer, **options):
    """A model that looks into one table twice, and into another once."""
    keras.utils.set_random_seed(6)
    inputs = keras.Input((3,), dtype="int32")
    table, other = Embedding(20, 4, name="a", **options), Embedding(20, 4, name="b")
    summed = keras.ops.sum(table(inputs), axis=1) * keras.ops.sum(table(19 - inputs) + other(inputs), axis=1)
    model = kind(inputs, keras.layers.Dense(1)(keras.layers.Dropout(0.25)(summed)))
    model.compile(optimizer=optimizer, loss="mse", metrics=["mae"])
    return model


def check_jax_row_train_step_equals_the_dense_one():
    for make in (lambda: LossScaleOptimizer(Adagrad(0.3, clipnorm=0.5), 64.0, 3),):
        results, logs = [], []
        for kind in (RowModel, keras.Model):
            model = twice_looked_up(kind, make())
            logs.append(model.fit(*batch(count=64), batch_size=16, epochs=2, verbose=0).history)
            results.append(everything_of(model))
        for one, two in zip(*results, strict=True):
            np.testing.assert_allclose(one, two, rtol=2e-5, atol=1e-6)
        for name, values in logs[0].items():
            np.testing.assert_allclose(values, logs[1][name], rtol=1e-5)
    with raises(ValueError, "regularizer"):
        twice_looked_up(RowModel, Adagrad(), embeddings_regularizer="l2").train_on_batch(*batch())
    with raises(TypeError, "adagrad.keras.LossScaleOptimizer"):  # which compile puts there for mixed_float16
        twice_looked_up(RowModel, keras.optimizers.LossScaleOptimizer(Adagrad())).train_on_batch(*batch())


def check_jax_row_train_step_makes_no_gradient_of_the_table_s_size():
    keras.utils.set_random_seed(6)
    inputs = keras.Input((3,), dtype="int32")
    model = RowModel(inputs, keras.layers.Dense(1)(keras.ops.sum(Embedding(50_000, 16)(inputs), axis=1)))
    model.compile(optimizer=Adagrad(0.3), loss="mse")
    x, y = batch(count=8)
    model.train_on_batch(x, y)
    variables = (model.trainable_variables, model.non_trainable_variables, model.optimizer.variables, model.metrics_variables)
    state = tuple([v.value for v in part] for part in variables)
    compiled = jax.jit(model.train_step, donate_argnums=0).lower(state, (x, y)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 50_000 * 16 * 4 / 10


def check_jax_distribution():
    devices = keras.distribution.list_devices("cpu")
    assert len(devices) == 4
    results = []
    data = keras.distribution.DataParallel(devices=devices)
    layout = keras.distribution.LayoutMap(keras.distribution.DeviceMesh((2, 2), ["data", "model"], devices))
    layout[".*table/embeddings"] = ("model", None)
    layout[".*hidden/kernel"] = (None, "model")
    split = keras.distribution.ModelParallel(layout_map=layout, batch_dim_name="data")
    for distribution in (data, split):
        keras.distribution.set_distribution(distribution)
        try:
            keras.utils.set_random_seed(3)
            model = keras.Sequential(
                [
                    keras.Input((3,), dtype="int32"),
                    keras.layers.Embedding(20, 4, name="table"),
                    keras.layers.Flatten(),
                    keras.layers.Dense(6, name="hidden"),
                    keras.layers.Dense(1, name="out"),
                ]
            )
            model.compile(Adagrad(0.3, row_wise=True, **EVERYTHING), "mse")
            model.fit(*batch(count=64), batch_size=16, epochs=1, shuffle=False, verbose=0)
            if distribution is split:
                placed = {v.path: v.value.sharding.spec for v in model.optimizer.variables}
                kernel = next(spec for path, spec in placed.items() if "hidden_kernel_average" in path)
                table = next(spec for path, spec in placed.items() if "table_embeddings_accumulator" in path)
                assert tuple(kernel) == (None, "model"), placed
                assert tuple(table) == ("model",), placed  # one a row
            results.append(everything_of(model))
        finally:
            keras.distribution.set_distribution(None)
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-6)


# ---- documentation ---------------------------------------------------------------------------------------------------


def check_page():
    """Every block of docs/keras.md runs, in order; one after a comment with a backend's name, on that one alone."""
    page = (Path(__file__).parents[1] / "docs" / "keras.md").read_text()
    blocks = re.findall(r"(?:^<!-- (\w+) -->\n)?^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert {backend for backend, _ in blocks} == {"", "tensorflow", "jax", "torch"}
    namespace = {"__name__": "__docs__"}
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for backend, code in blocks:
            if backend in ("", BACKEND):
                exec(compile(code, "keras.md", "exec"), namespace)


def check_docstrings():
    for name in ("embedding", "taps"):
        result = doctest.testmod(importlib.import_module(f"adagrad.keras.{name}"))
        assert result.attempted > 0
        assert result.failed == 0
