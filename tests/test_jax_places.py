"""Where the JAX face runs and where its state goes: shards, double precision, state files, Orbax, the examples."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adagrad
from adagrad import schedules
from adagrad.jax import Adagrad, counting
from jax_tools import numpy_run

ROOT = Path(__file__).parents[1]
EVERYTHING = {
    "weight_decay": 0.1, "clipnorm": 0.7, "use_ema": True, "ema_momentum": 0.8, "ema_overwrite_frequency": 2,
    "gradient_accumulation_steps": 3, "loss_scale_factor": 2.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("program", "variables"),
    [
        ("sharding", {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}),
        pytest.param("double", {"JAX_ENABLE_X64": "1"}, marks=pytest.mark.slow),
    ],
)
def test_in_a_process_of_its_own(program, variables):
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")])
    done = subprocess.run(
        [sys.executable, "-W", "error", Path(__file__).parent / "jax_worker.py", program],
        env={**os.environ, **variables, "JAX_PLATFORMS": "cpu", "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain", "flax", "equinox"])
def test_examples_learn(name, capsys):
    ran = runpy.run_path(str(ROOT / "examples" / f"jax_{name}.py"))
    assert ran["last"] < ran["first"] / 3
    assert "->" in capsys.readouterr().out


# -- the state file ----------------------------------------------------------------------------------------------------


def gradients(step, dtype):
    rng = np.random.default_rng(step)
    return {"dense": {"kernel": rng.normal(size=(4, 3)).astype(dtype), "bias": rng.normal(size=3).astype(dtype)}}


def flat(tree):
    return {f"dense/{name}": array for name, array in tree["dense"].items()}


def test_a_run_moves_between_numpy_jax_and_torch(tmp_path):
    dtype = jnp.bfloat16  # which NumPy has no name of its own for
    torch = pytest.importorskip("torch")
    from adagrad.torch import Adagrad as TorchAdagrad
    from torch_tools import tensor

    start = gradients(90, dtype)
    straight, _ = numpy_run({"learning_rate": 0.3, **EVERYTHING}, flat(start), [flat(gradients(s, dtype)) for s in range(9)])

    in_numpy, first = numpy_run(
        {"learning_rate": 0.3, **EVERYTHING}, flat(start), [flat(gradients(s, dtype)) for s in range(2)]
    )
    first.save(tmp_path / "one")

    in_jax = jax.tree.map(jnp.asarray, {"layer": {"w": in_numpy["dense/kernel"].T, "b": in_numpy["dense/bias"]}})
    second = Adagrad(0.3, **EVERYTHING)
    names = {"dense/kernel": "layer/w", "dense/bias": "layer/b"}
    state = second.load(tmp_path / "one", in_jax, names=names, transpose=["layer/w"])
    assert counting.to_int(state.count) == 2
    assert bool(state.in_cycle["layer"]["w"])
    step = jax.jit(second.apply)
    for k in range(2, 5):
        g = gradients(k, dtype)["dense"]
        in_jax, state = step({"layer": {"w": g["kernel"].T, "b": g["bias"]}}, state, in_jax)
    second.save(tmp_path / "two", state, in_jax)

    bias, weight = (torch.nn.Parameter(tensor(np.asarray(in_jax["layer"][name]))) for name in ("b", "w"))
    third = TorchAdagrad([("bias", bias), ("weight", weight)], lr=0.3, **EVERYTHING)
    third.load(tmp_path / "two", names={"layer/w": "weight", "layer/b": "bias"})
    for k in range(5, 9):
        g = gradients(k, dtype)["dense"]
        weight.grad, bias.grad = tensor(g["kernel"].T), tensor(g["bias"])
        third.step()
    eps = float(jnp.finfo(dtype).eps)
    for found, name in ((weight.detach().float().numpy().T, "dense/kernel"), (bias.detach().float().numpy(), "dense/bias")):
        np.testing.assert_allclose(found, straight[name].astype(np.float32), rtol=16 * eps, atol=16 * eps)


def test_a_state_file_resumes_bit_for_bit(tmp_path):
    """Also in the middle of a cycle that has brought one parameter nothing, and with a schedule."""
    arguments = EVERYTHING | {"learning_rate": schedules.CosineDecay(0.3, 20)}
    optimizer = Adagrad(**arguments, weight_decay_mask={"dense": {"kernel": True, "bias": False}})
    params = jax.tree.map(jnp.asarray, gradients(90, np.float32))
    state = optimizer.init(params)
    step = jax.jit(optimizer.apply)
    for k in range(5):
        params, state = step(gradients(k, np.float32), state, params)
        if k == 3:
            optimizer.save(tmp_path / "state", state, params)
            at_three = params
    again = Adagrad(**arguments, weight_decay_mask={"dense": {"kernel": True, "bias": False}})
    resumed = again.load(tmp_path / "state", at_three)
    new, resumed = jax.jit(again.apply)(gradients(4, np.float32), resumed, at_three)
    jax.tree.map(np.testing.assert_array_equal, (new, resumed), (params, state))

    other = Adagrad(**arguments)
    with pytest.raises(ValueError, match="decays of dense/bias"):
        other.load(tmp_path / "state", params)
    assert counting.to_int(other.load(tmp_path / "state", params, strict=False).count) == 4


def test_what_a_state_file_refuses(tmp_path):
    params = {"w": jnp.ones(3)}
    optimizer = Adagrad(0.5)
    optimizer.save(tmp_path / "state", optimizer.init(params), params)
    for other, like, options, what in (
        (Adagrad(0.5), {"w": jnp.ones(4)}, {}, "shape of w"),
        (Adagrad(0.5), {"v": jnp.ones(3)}, {}, "no variable v"),
        (Adagrad(0.5, clipnorm=1.0), params, {}, "clipnorm"),
        (Adagrad(0.1), params, {}, "learning_rate is 0.5 there and 0.1 here"),
        (Adagrad(0.5), params, {"names": {"x": "w"}}, "has no x"),
        (Adagrad(0.5), params, {"transpose": ["x"]}, "has no x"),
    ):
        with pytest.raises(ValueError, match=what):
            other.load(tmp_path / "state", like, **options)
    assert Adagrad(0.1).load(tmp_path / "state", params, strict=False).accumulator["w"].tolist() == pytest.approx([0.1] * 3)
    z = {"z": jnp.ones(2, jnp.complex64)}
    with pytest.raises(ValueError, match="no place for parameters of complex64, as z is"):
        optimizer.save(tmp_path / "new", optimizer.init(z), z)
    twice = {"a": {"b": jnp.ones(1)}, "a/b": jnp.ones(1)}
    with pytest.raises(ValueError, match="a/b comes twice"):
        optimizer.save(tmp_path / "new", optimizer.init(twice), twice)
    with pytest.raises(ValueError, match="learning_rate are traced"):
        jax.jit(lambda rate: Adagrad(rate).save(tmp_path / "new", optimizer.init(params), params))(0.5)
    assert not (tmp_path / "new").exists()
    alone = jnp.ones(2)
    optimizer.save(tmp_path / "alone", optimizer.init(alone), alone)
    on_numpy = adagrad.Adagrad(0.5)
    on_numpy.build({"params": np.ones(2, np.float32)})
    on_numpy.load(tmp_path / "alone")


def test_orbax(tmp_path):
    ocp = pytest.importorskip("orbax.checkpoint")
    optimizer = Adagrad(0.3, **EVERYTHING)
    params = jax.tree.map(jnp.asarray, gradients(90, np.float32))
    params, state = optimizer.apply(gradients(0, np.float32), optimizer.init(params), params)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "checkpoint", {"params": params, "state": state})
        checkpointer.wait_until_finished()
        like = {"params": params, "state": optimizer.init(params)}
        found = checkpointer.restore(tmp_path / "checkpoint", jax.tree.map(ocp.utils.to_shape_dtype_struct, like))
    assert isinstance(found["state"], type(state))
    jax.tree.map(np.testing.assert_array_equal, found, {"params": params, "state": state})
