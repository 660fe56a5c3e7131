"""Calls of `adagrad.torch.Adagrad`: what is refused and changes nothing, cycles of accumulation, averages, autograd."""

import math

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

import adagrad
from adagrad import schedules
from adagrad.torch import Adagrad
from plain import assert_same_bits
from test_refusals import BAD_ARGUMENTS
from torch_tools import NAMES, array, assert_same_state, assert_unchanged, coo, parameter, snapshot, tensor

# ---- what is refused -------------------------------------------------------------------------------------------------

BAD = [
    (NAMES.get(name, name), value)
    for (name, _), values in BAD_ARGUMENTS.items()
    if name != "name"
    for value in values
    if not (name == "learning_rate" and isinstance(value, np.ndarray))
]
BAD += [("maximize", 1), ("row_wise", "yes"), ("lr", torch.ones(2)), ("lr", torch.tensor(math.nan)), ("lr", torch.tensor(-1.0))]


@pytest.mark.parametrize(("name", "value"), BAD, ids=lambda value: repr(value)[:20])
def test_bad_arguments(name, value):
    with pytest.raises(ValueError, match=rf"(^|\b){name}\b"):
        Adagrad([parameter(np.ones(2))], **{name: value})


def test_two_kinds_of_clipping_and_unknown_arguments():
    with pytest.raises(ValueError, match="at most one"):
        Adagrad([parameter(np.ones(2))], clipnorm=1.0, clipvalue=1.0)
    with pytest.raises(ValueError, match="at most one"):
        Adagrad([{"params": [parameter(np.ones(2))], "clipnorm": 1.0}], global_clipnorm=1.0)
    with pytest.raises(TypeError, match="lr_decay"):
        Adagrad([parameter(np.ones(2))], lr_decay=0.1)


@pytest.mark.parametrize(
    ("parameters", "error"),
    [
        (lambda: torch.nn.Parameter(torch.ones(2)), TypeError),
        (list, ValueError),
        (lambda: [torch.ones(2, dtype=torch.int64)], TypeError),
        (lambda: [torch.ones(2, dtype=torch.float8_e4m3fn)], TypeError),
        (lambda: [np.ones(2)], TypeError),
        (lambda: [torch.ones(2, requires_grad=True) * 2], ValueError),
        (lambda: [torch.eye(2).to_sparse().requires_grad_()], TypeError),
        (lambda: [{"lr": 0.1}], KeyError),
    ],
    ids=["tensor", "none", "int64", "float8", "array", "not a leaf", "sparse", "no params"],
)
def test_bad_parameters(parameters, error):
    with pytest.raises(error):
        Adagrad(parameters())


def test_a_group_that_is_refused_leaves_no_trace():
    p = parameter(np.ones(2))
    optimizer = Adagrad([p])
    before = snapshot(optimizer)
    others = [torch.ones(3, requires_grad=True), torch.ones(2, dtype=torch.int32)]
    for group, error in [
        ({"params": others}, TypeError),
        ({"params": others[:1], "lr": -1}, ValueError),
        ({"params": [others[0], p]}, ValueError),
        ({"params": {others[0]}}, TypeError),
        ({"params": [torch.eye(2).to_sparse().requires_grad_()]}, TypeError),
        ({"params": [torch.ones(3, 2, dtype=torch.complex64).requires_grad_()], "row_wise": True}, (TypeError, ValueError)),
    ]:
        with pytest.raises(error):
            optimizer.add_param_group(group)
        assert len(optimizer.param_groups) == 1
        assert len(optimizer.state) == 1
    assert_unchanged(before, optimizer)


def set_rate(value):
    def change(optimizer, parameters):
        optimizer.param_groups[0]["lr"] = value

    return change


def set_group(name, value):
    def change(optimizer, parameters):
        optimizer.param_groups[1][name] = value

    return change


def set_gradient(gradient):
    def change(optimizer, parameters):
        parameters[1].grad = gradient

    return change


def other_shape(optimizer, parameters):
    parameters[1].data = torch.ones(2, 2)


class Wrong(schedules.LearningRateSchedule):
    def __call__(self, step):
        return float("nan")

    def get_config(self):
        return {}


WRONG_STEPS = {
    "rate nan": set_rate(math.nan),
    "rate negative": set_rate(-1.0),
    "rate text": set_rate("0.1"),
    "rate tensor": set_rate(torch.tensor(math.inf)),
    "rate of schedule": set_rate(Wrong()),
    "group": set_group("eps", -1.0),
    "group clips twice": set_group("clipvalue", 1.0),
    "group flag": set_group("maximize", 2),
    "id too large": set_gradient(coo(np.ones((2, 3), np.float32), [0, 4], (4, 3))),
    "id negative": set_gradient(coo(np.ones((2, 3), np.float32), [0, -1], (4, 3))),
    "entry out of range": set_gradient(coo(np.ones(1, np.float32), [[0], [3]], (4, 3))),
    "no sparse dimension": set_gradient(
        torch.sparse_coo_tensor(torch.zeros(0, 2, dtype=torch.int64), torch.ones(2, 4, 3), (4, 3), check_invariants=False)
    ),
    "shape of the parameter": other_shape,
}


@pytest.mark.parametrize(
    ("change", "steps"),
    [
        pytest.param(change, steps, id=f"{name}-{steps}")
        for name, change in WRONG_STEPS.items()
        for steps in (0, 2)
        if steps or change is not other_shape  # before the first step the state is made anew
    ],
)
def test_a_step_that_is_refused_changes_nothing(change, steps):
    parameters = [parameter(np.ones((4, 3), np.float32)) for _ in range(3)]
    optimizer = Adagrad([{"params": parameters[:1]}, {"params": parameters[1:], "clipnorm": 1.0}], 0.5, use_ema=True)

    def gradients():
        for p in parameters:
            p.grad = torch.ones(4, 3)

    for _ in range(steps):
        gradients()
        optimizer.step()
    gradients()
    data, before = parameters[1].data, snapshot(optimizer)
    settings = [dict(group) for group in optimizer.param_groups]
    change(optimizer, parameters)
    with pytest.raises((ValueError, TypeError)):
        optimizer.step()
    parameters[1].data = data
    for group, kept in zip(optimizer.param_groups, settings, strict=True):
        group.update({name: value for name, value in kept.items() if name != "calls"})
    assert_unchanged(before, optimizer)
    gradients()
    optimizer.step()  # goes on as if nothing had been
    assert all(optimizer.state[p]["step"] == steps + 1 for p in parameters)


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate parameters")
def test_parameters_that_share_memory_are_refused():
    memory = torch.ones(6)
    one = torch.nn.Parameter(memory[:4])
    for parameters in ([one, torch.nn.Parameter(memory[2:])], [one, one], [torch.nn.Parameter(memory[:1].expand(3))]):
        for p in parameters:
            p.grad = torch.ones_like(p)
        optimizer = Adagrad(parameters)
        with pytest.raises(ValueError, match="share memory"):
            optimizer.step()
    assert torch.equal(memory, torch.ones(6))


# ---- calls without gradients -----------------------------------------------------------------------------------------


def test_a_step_without_any_gradient_does_nothing():
    for settings in ({}, {"use_ema": True, "weight_decay": 0.1}):
        optimizer = Adagrad([parameter(np.ones(2))], **settings)
        before = snapshot(optimizer)
        assert optimizer.step() is None
        assert_unchanged(before, optimizer)
    Adagrad([{"params": []}]).step()
    Adagrad([{"params": []}], gradient_accumulation_steps=2).step()
    empty = torch.nn.Parameter(torch.ones(0, 3))
    empty.grad = torch.ones(0, 3)
    Adagrad([empty], clipnorm=1.0).step()


@pytest.mark.parametrize("kind", ["dense", "rows"])
def test_under_accumulation_a_call_without_gradients_counts_as_one_of_zeros(kind):
    settings = {"gradient_accumulation_steps": 3, "weight_decay": 0.1, "use_ema": True, "clipnorm": 1.0}
    start, g = np.arange(8, dtype=np.float32).reshape(4, 2), np.float32([[1, 2], [3, 4]])
    p, q = parameter(start), parameter(start)
    arrays = [start.copy(), start.copy()]
    optimizer, judge = Adagrad([p, q], 0.5, **settings), adagrad.Adagrad(0.5, **settings)
    judge.build(arrays)
    for present in [0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1]:
        values = g if kind == "rows" else np.repeat(g, 2, axis=0)
        p.grad = (coo(g, [3, 3], (4, 2)) if kind == "rows" else tensor(values)) if present else None
        judge.apply([adagrad.IndexedSlices(g, [3, 3]) if kind == "rows" else values, None] if present else [None] * 2, arrays)
        optimizer.step()
        assert_same_state(optimizer, judge, arrays)
    assert optimizer.state[p]["step"] == 3  # the second cycle had no gradient
    assert optimizer.state[q]["step"] == 0


def test_a_group_added_within_a_cycle_takes_part_in_its_rest():
    settings = {"gradient_accumulation_steps": 3, "use_ema": True, "weight_decay": 0.1}
    start = np.arange(8, dtype=np.float32).reshape(4, 2)
    p, q, a, b = parameter(start), parameter(start), start.copy(), start.copy()
    optimizer, judge = Adagrad([p], 0.5, **settings), adagrad.Adagrad(0.5, **settings)
    judge.build([a, b])
    for call in range(8):
        ids, values = np.array([call % 4, 1]), np.full((2, 2), 1.0 + call, np.float32)
        if call == 1:
            optimizer.add_param_group({"params": [q]})
        p.grad, q.grad = coo(values, ids, (4, 2)), None if call < 2 else coo(values, ids, (4, 2))
        rows = adagrad.IndexedSlices(values, ids)
        judge.apply([rows, None if call < 2 else rows], [a, b])
        optimizer.step()
        assert_same_bits(array(p), a)
        assert_same_bits(array(q), b)
        if call == 2:  # q's average has begun
            q.data += 1
            b += 1
            with optimizer.averaged():
                assert torch.equal(q, optimizer.state[q]["ema"])
    assert_same_state(optimizer, judge, [a, b])


# ---- averages --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_finalize_and_averaged(dtype):
    rng = np.random.default_rng(0)
    starts = [rng.normal(size=(4, 3)).astype(dtype), rng.normal(size=5).astype(dtype)]
    parameters, arrays = [parameter(starts[0], "transposed"), parameter(starts[1])], [s.copy() for s in starts]
    settings = {"use_ema": True, "ema_momentum": 0.7, "gradient_accumulation_steps": 2}
    optimizer, judge = Adagrad(parameters, 0.5, **settings), adagrad.Adagrad(0.5, **settings)
    judge.build(arrays)

    def assert_parameters(expected):
        for p, e in zip(parameters, expected, strict=True):
            assert_same_bits(array(p), e)

    def spoil():
        parameters[0].data.zero_()
        raise KeyError("body")

    for call in range(5):
        if call < 2:  # no average yet
            optimizer.finalize()
            with optimizer.averaged():
                assert_parameters(starts)
        gradients = [rng.normal(size=s.shape).astype(dtype) for s in starts]
        for p, g in zip(parameters, gradients, strict=True):
            p.grad = tensor(g)
        optimizer.step()
        judge.apply(gradients, arrays)
    averages = [a.astype(dtype) for a in judge.variables[2:4]]
    assert any((a != e).any() for a, e in zip(arrays, averages, strict=True))
    with optimizer.averaged():
        assert_parameters(averages)
    assert_parameters(arrays)
    with pytest.raises(KeyError, match="body"), optimizer.averaged():
        spoil()
    assert_parameters(arrays)
    optimizer.finalize()
    judge.finalize_variable_values(arrays)
    assert_parameters(averages)
    assert_same_state(optimizer, judge, arrays)


def test_without_averages_finalize_and_averaged_change_nothing():
    p = parameter(np.ones(2))
    optimizer = Adagrad([p])
    p.grad = torch.ones(2, dtype=torch.float64)
    optimizer.step()
    before = snapshot(optimizer)
    with optimizer.averaged():
        assert_unchanged(before, optimizer)
    optimizer.finalize()
    assert_unchanged(before, optimizer)


# ---- autograd --------------------------------------------------------------------------------------------------------


def test_autograd_sees_the_change_in_place():
    w, frozen = parameter(np.ones(3)), parameter(np.ones(3))
    optimizer = Adagrad([w, frozen], 0.5)
    loss = (w * w).sum() + (frozen * frozen).sum()
    w.grad = torch.ones(3, dtype=torch.float64)
    versions = w._version, frozen._version
    optimizer.step()
    assert w._version > versions[0]
    assert frozen._version == versions[1]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    (frozen * frozen).sum().backward()


def test_an_average_that_overwrites_is_seen_too():
    w, frozen = parameter(np.ones(3)), parameter(np.ones(3))
    optimizer = Adagrad([w, frozen], 0.5, use_ema=True, ema_overwrite_frequency=1)
    loss = (frozen * frozen).sum()
    w.grad = torch.ones(3, dtype=torch.float64)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    for change in (optimizer.finalize, lambda: optimizer.averaged().__enter__()):
        loss = (frozen * frozen).sum()
        change()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_a_call_that_only_accumulates_changes_no_parameter():
    w = parameter(np.ones(3))
    optimizer = Adagrad([w], 0.5, gradient_accumulation_steps=2)
    loss = (w * w).sum()
    w.grad = torch.ones(3, dtype=torch.float64)
    optimizer.step()
    loss.backward()


def test_gradients_with_a_graph_of_their_own():
    w = parameter(np.full(3, 2.0))
    (w.grad,) = torch.autograd.grad((w**3).sum(), w, create_graph=True)
    optimizer = Adagrad([w], 1.0, initial_accumulator_value=0.0, eps=0.0)
    optimizer.step()
    np.testing.assert_array_equal(array(w), 1.0)
    w.grad = None
