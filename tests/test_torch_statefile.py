"""The state file that all faces share, in PyTorch: a run that moves between faces gives the numbers of one that never moved."""

import numpy as np
import pytest
import torch

import adagrad
from adagrad import schedules
from adagrad.torch import Adagrad

NAMES = {"dense/kernel": "linear.weight", "dense/bias": "linear.bias"}
CASES = {
    "defaults": {},
    "everything": {
        "weight_decay": 0.1, "clipnorm": 0.7, "use_ema": True, "ema_momentum": 0.8, "ema_overwrite_frequency": 2,
        "gradient_accumulation_steps": 3, "loss_scale_factor": 2.0,
    },
    "switches": {"epsilon_placement": "outside", "weight_decay_mode": "l2", "weight_decay": 0.1, "row_wise": True},
}  # fmt: skip
DTYPES = {
    "float32": (np.float32, torch.float32),
    "float64": (np.float64, torch.float64),
    "float16": (np.float16, torch.float16),
}


def gradients(step, dtype):
    rng = np.random.default_rng(step)
    return {"dense/kernel": rng.normal(size=(4, 4)).astype(dtype), "dense/bias": rng.normal(size=4).astype(dtype)}


def on_numpy(variables, optimizer, steps, dtype):
    for step in steps:
        optimizer.apply(gradients(step, dtype), variables)


def in_torch(parameters, optimizer, steps, dtype, transposed):
    for step in steps:
        for (name, gradient), parameter in zip(gradients(step, dtype).items(), parameters, strict=True):
            turned = gradient.T.copy() if transposed and name == "dense/kernel" else gradient
            parameter.grad = torch.from_numpy(turned)
        optimizer.step()


@pytest.mark.parametrize("moved", range(1, 5))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_a_run_moves_between_numpy_and_torch(tmp_path, name, dtype, moved):
    kind, transposed = DTYPES[dtype][0], not CASES[name].get("row_wise") and "clipnorm" not in CASES[name]
    start = {"dense/kernel": gradients(90, kind)["dense/kernel"], "dense/bias": gradients(91, kind)["dense/bias"]}
    straight, wandering = ({key: value.copy() for key, value in start.items()} for _ in range(2))
    on_numpy(straight, adagrad.Adagrad(0.3, **CASES[name]), range(9), kind)

    first = adagrad.Adagrad(0.3, **CASES[name])
    on_numpy(wandering, first, range(moved), kind)
    first.save(tmp_path / "one")

    kernel = wandering["dense/kernel"].T.copy() if transposed else wandering["dense/kernel"].copy()
    parameters = [
        torch.nn.Parameter(torch.from_numpy(kernel)),
        torch.nn.Parameter(torch.from_numpy(wandering["dense/bias"].copy())),
    ]
    second = Adagrad(zip(NAMES.values(), parameters, strict=True), lr=0.9, **CASES[name])
    second.load(tmp_path / "one", names=NAMES, transpose=["linear.weight"] if transposed else [])
    assert second.param_groups[0]["lr"] == 0.3
    in_torch(parameters, second, range(moved, 6), kind, transposed)
    second.save(tmp_path / "two")

    third = adagrad.Adagrad(0.3, **CASES[name])
    kernel = parameters[0].detach().numpy()
    back = {
        "dense/kernel": kernel.T.copy() if transposed else kernel.copy(),
        "dense/bias": parameters[1].detach().numpy().copy(),
    }
    third.build(back)
    other_way = {theirs: ours for ours, theirs in NAMES.items()}
    third.load(tmp_path / "two", names=other_way, transpose=["dense/kernel"] if transposed else [])
    on_numpy(back, third, range(6, 9), kind)
    for key, value in straight.items():
        assert back[key].tobytes() == value.tobytes(), key


def test_steps_calls_and_tensor_rates_come_back(tmp_path):
    p, q = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizer = Adagrad([p, q], lr=torch.tensor(0.5))
    for step in range(4):
        p.grad, q.grad = torch.ones(3), torch.ones(3) if step else None
        optimizer.step()
    optimizer.save(tmp_path / "state")
    again = Adagrad([p, q], lr=torch.tensor(0.1))
    again.load(tmp_path / "state")
    assert [int(again.state[parameter]["step"]) for parameter in (p, q)] == [4, 3]
    assert again.param_groups[0]["calls"] == 4
    assert again.param_groups[0]["lr"] == torch.tensor(0.5)
    assert torch.equal(again.state[q]["sum"], optimizer.state[q]["sum"])


def test_what_a_state_file_can_not_hold(tmp_path):
    p, q = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    for optimizer, what in (
        (Adagrad([{"params": [p]}, {"params": [q], "eps": 0.1}]), "groups differ"),
        (Adagrad([{"params": [p]}, {"params": [q], "lr": 0.1}]), "groups differ"),
        (Adagrad.as_torch([p], lr_decay=0.1), "lr_decay"),
        (Adagrad([torch.nn.Parameter(torch.empty(2, device="meta"))]), "main memory"),
    ):
        with pytest.raises(ValueError, match=what):
            optimizer.save(tmp_path / "state")
    assert not (tmp_path / "state").exists()


def test_a_file_that_does_not_fit_changes_nothing(tmp_path):
    p = torch.nn.Parameter(torch.ones(3))
    saved = Adagrad([("w", p)], lr=0.5)
    p.grad = torch.ones(3)
    saved.step()
    saved.save(tmp_path / "state")
    for optimizer, options, what in (
        (Adagrad([("w", torch.nn.Parameter(torch.ones(4)))]), {}, "shape of w"),
        (Adagrad([("v", torch.nn.Parameter(torch.ones(3)))]), {}, "no variable v"),
        (Adagrad([("w", torch.nn.Parameter(torch.ones(3)))], clipnorm=1.0), {}, "clipnorm"),
        (Adagrad([("w", torch.nn.Parameter(torch.ones(3)))], lr=schedules.CosineDecay(0.1, 5)), {}, "learning_rate"),
        (Adagrad([("w", torch.nn.Parameter(torch.ones(3)))]), {"names": {"x": "w"}}, "has no x"),
        (Adagrad([("w", torch.nn.Parameter(torch.ones(3)))]), {"transpose": ["x"]}, "has no x"),
    ):
        before = optimizer.state_dict()
        with pytest.raises(ValueError, match=what):
            optimizer.load(tmp_path / "state", **options)
        assert str(optimizer.state_dict()) == str(before)
