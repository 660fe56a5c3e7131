"""What PyTorch users do around an optimizer: schedulers, hooks, copies, checkpoints, replaced memory, mixed precision."""

import copy
import gc
import pickle
import weakref

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from torch.optim import lr_scheduler

from adagrad import schedules
from adagrad.torch import Adagrad
from torch_tools import assert_unchanged, coo, parameter, saved, snapshot, states, tensor

EVERYTHING = {
    "lr": 0.3, "use_ema": True, "ema_momentum": 0.8, "ema_overwrite_frequency": 2, "gradient_accumulation_steps": 3,
    "global_clipnorm": 0.9, "weight_decay": 0.05, "loss_scale_factor": 3.0,
}  # fmt: skip
SETTINGS = {
    "defaults": {},
    "row-wise": {"lr": 0.3, "row_wise": True, "clipnorm": 0.5},
    "schedule": {"lr": schedules.InverseTimeDecay(0.5, 2, 0.75), "gradient_accumulation_steps": 2},
    "everything": EVERYTHING,
}


class Training:
    """A table (sparse gradients), a vector and a half vector; each call has gradients that depend on its number alone."""

    def __init__(self, settings, dtype=torch.float32):
        rng = np.random.default_rng(0)
        self.parameters = [parameter(rng.normal(size=s).astype(np.float32)) for s in [(6, 4), (5,)]]
        self.parameters.append(torch.nn.Parameter(tensor(rng.normal(size=5)).to(torch.bfloat16)))
        self.optimizer = Adagrad([{"params": self.parameters[:1]}, {"params": self.parameters[1:], "eps": 0.01}], **settings)
        self.calls = 0

    def step(self):
        rng = np.random.default_rng(self.calls)
        gradients = [coo(rng.normal(size=(4, 4)).astype(np.float32), rng.integers(0, 6, 4), (6, 4))]
        gradients += [tensor(rng.normal(size=5).astype(np.float32)), tensor(rng.normal(size=5)).to(torch.bfloat16)]
        for number, (p, g) in enumerate(zip(self.parameters, gradients, strict=True)):
            p.grad = None if (self.calls + number) % 3 == 1 else g
        self.optimizer.step()
        self.calls += 1

    def run(self, calls):
        for _ in range(calls):
            self.step()
        return self

    def content(self):
        return [p.detach().clone() for p in self.parameters] + [torch.from_numpy(s.copy()) for s in states(self.optimizer)]


def assert_equal(one, other):
    for a, b in zip(one.content(), other.content(), strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    for p, q in zip(one.parameters, other.parameters, strict=True):
        assert one.optimizer.state[p]["step"] == other.optimizer.state[q]["step"]


# ---- state out and in ------------------------------------------------------------------------------------------------


def by_file(training):
    other = Training({name: value for name, value in training.optimizer.defaults.items() if name != "calls"})
    for p, q in zip(training.parameters, other.parameters, strict=True):
        q.data = p.detach().clone()
    other.optimizer.load_state_dict(saved(training.optimizer.state_dict()))
    other.calls = training.calls
    return other


@pytest.mark.parametrize(
    "way", [by_file, copy.deepcopy, lambda t: pickle.loads(pickle.dumps(t))], ids=["file", "copy", "pickle"]
)
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_training_goes_on_from_every_call_as_if_it_had_never_stopped(settings, way):
    whole = Training(settings).run(8)
    for stop in range(8):
        first = Training(settings).run(stop)
        other = way(first)
        assert_equal(first, other)
        first.run(8 - stop)  # does not reach into the other
        assert_equal(other.run(8 - stop), whole)
        assert_equal(first, whole)


@pytest.mark.parametrize("way", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["copy", "pickle"])
def test_what_is_asked_of_ids_is_kept(way):
    optimizer = Training({}).optimizer
    optimizer.check_ids = True
    assert way(optimizer).check_ids


def test_a_state_dict_loads_into_the_optimizer_it_came_from():
    training = Training(EVERYTHING).run(4)
    kept, values = copy.deepcopy(training.optimizer.state_dict()), [p.detach().clone() for p in training.parameters]
    expected = training.run(3).content()
    for p, value in zip(training.parameters, values, strict=True):
        p.data.copy_(value)
    training.calls = 4
    training.optimizer.load_state_dict(kept)
    training.run(3)
    assert all(torch.equal(a, b) for a, b in zip(training.content(), expected, strict=True))
    assert kept["state"][0]["step"] < training.optimizer.state[training.parameters[0]]["step"]  # what was given is not written


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_state_of_half_parameters_stays_float32(dtype):
    p = torch.nn.Parameter(torch.ones(3, dtype=dtype))
    optimizer = Adagrad([p], use_ema=True)
    p.grad = torch.full((3,), 0.01, dtype=dtype)
    optimizer.step()
    q = torch.nn.Parameter(p.detach().clone())
    other = Adagrad([q], use_ema=True)
    other.load_state_dict(saved(optimizer.state_dict()))
    for name in ("sum", "ema"):
        assert other.state[q][name].dtype == torch.float32
        assert torch.equal(other.state[q][name], optimizer.state[p][name])
    assert optimizer.state[p]["sum"][0] != optimizer.state[p]["sum"][0].to(dtype)  # there was something to lose


def damaged(change):
    state = copy.deepcopy(Training(EVERYTHING).run(2).optimizer.state_dict())
    change(state)
    return state


DAMAGE = {
    "groups": lambda s: s["param_groups"].pop(),
    "parameters": lambda s: s["param_groups"][1]["params"].pop(),
    "rate": lambda s: s["param_groups"][0].update(lr=-1.0),
    "no rate": lambda s: s["param_groups"][0].pop("lr"),
    "no epsilon": lambda s: s["param_groups"][0].pop("eps"),
    "accumulation": lambda s: [group.update(gradient_accumulation_steps=2) for group in s["param_groups"]],
    "shape": lambda s: s["state"][0].update(sum=torch.ones(6, 5)),
    "row-wise": lambda s: s["param_groups"][0].update(row_wise=True),
    "average": lambda s: s["state"][1].update(ema=torch.ones(3)),
}


@pytest.mark.parametrize("change", DAMAGE.values(), ids=DAMAGE)
def test_a_state_dict_that_does_not_fit_is_refused_and_nothing_is_loaded(change):
    training = Training(EVERYTHING).run(4)
    before = snapshot(training.optimizer)
    with pytest.raises(ValueError):
        training.optimizer.load_state_dict(damaged(change))
    assert_unchanged(before, training.optimizer)
    assert_equal(training.run(3), Training(EVERYTHING).run(7))


def test_a_state_dict_of_another_optimizer_is_refused():
    p = parameter(np.ones(2))
    with pytest.raises(ValueError):
        Adagrad([p]).load_state_dict(torch.optim.SGD([p]).state_dict())


def test_state_is_there_before_the_first_step():
    p = torch.nn.Parameter(torch.ones(3, 2, dtype=torch.float16))
    optimizer = Adagrad([p], initial_accumulator_value=0.5)
    assert optimizer.state[p].keys() == {"sum", "step"}
    assert optimizer.state[p]["step"] == 0
    assert torch.equal(optimizer.state[p]["sum"], torch.full((3, 2), 0.5))


def test_hooks():
    seen, p = [], parameter(np.ones(2, np.float32))
    optimizer = Adagrad([p], 0.5)
    optimizer.register_step_pre_hook(lambda *_: seen.append(("before", p[0].item())))
    optimizer.register_step_post_hook(lambda *_: seen.append(("after", p[0].item())))
    optimizer.register_state_dict_pre_hook(lambda o: seen.append("save"))

    def add(_, state):
        return {**state, "note": 1}

    def halve(_, state):
        assert state.pop("note") == 1
        for values in state["state"].values():
            values["sum"] = values["sum"] / 2
        return state

    optimizer.register_state_dict_post_hook(add)
    optimizer.register_load_state_dict_pre_hook(halve)
    optimizer.register_load_state_dict_post_hook(lambda o: seen.append(("loaded", o.state[p]["sum"][0].item())))
    p.grad = torch.ones(2)
    optimizer.step()
    total = optimizer.state[p]["sum"][0].item()
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert seen == [("before", 1.0), ("after", p[0].item()), "save", ("loaded", total / 2)]
    assert optimizer.state[p]["sum"][0].item() == total / 2
    assert len(optimizer._optimizer_load_state_dict_pre_hooks) == 1


# ---- schedulers ------------------------------------------------------------------------------------------------------

SCHEDULERS = {
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2, 0.5),
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 1 / (1 + epoch)),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 5),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.5, total_steps=8, cycle_momentum=False),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.1, 0.5, 2, cycle_momentum=False),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.3, total_iters=4),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0, factor=0.5),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o, 0.1, 2), lr_scheduler.ExponentialLR(o, 0.9)], [2]
    ),
}


@pytest.mark.parametrize("tensor_rate", [False, True], ids=["number", "tensor"])
@pytest.mark.parametrize("make", SCHEDULERS.values(), ids=SCHEDULERS)
def test_schedulers_set_the_rate_of_every_group(make, tensor_rate):
    p, q = parameter(np.zeros(1)), parameter(np.zeros(1))
    rates = [torch.tensor(r, dtype=torch.float64) if tensor_rate else r for r in (0.25, 0.5)]
    groups = [{"params": [p]}, {"params": [q], "lr": rates[1]}]
    optimizer = Adagrad(groups, rates[0], initial_accumulator_value=0.0, eps=0.0)
    scheduler = make(optimizer)
    seen = []
    for _ in range(7):
        now = [float(group["lr"]) for group in optimizer.param_groups]
        for variable in (p, q):
            variable.grad = torch.ones(1, dtype=torch.float64)
            variable.data.zero_()
            optimizer.state[variable]["sum"].zero_()
        optimizer.step()
        assert [-p.item(), -q.item()] == now  # from an empty accumulator a step is lr * sign(g)
        scheduler.step(1.0) if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau) else scheduler.step()
        seen.append(now)
    assert len({tuple(rates) for rates in seen}) > 2


# ---- groups, names, closures -----------------------------------------------------------------------------------------


def test_named_parameters():
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
    optimizer = Adagrad(model.named_parameters())
    assert optimizer.param_groups[0]["param_names"] == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert optimizer.state_dict()["param_groups"][0]["param_names"][0] == "0.weight"
    model[0].weight.grad = coo(np.ones((1, 2), np.float32), [7], (3, 2))
    with pytest.raises(ValueError, match=r"0\.weight"):
        optimizer.step()


def test_a_group_added_in_mid_training():
    for settings in ({"lr": 0.3}, {"lr": 0.3, "use_ema": True}):
        p, q, r = (parameter(np.ones(3, np.float32)) for _ in range(3))
        optimizer, fresh = Adagrad([p], **settings), Adagrad([r], **settings, weight_decay=0.1)
        for call in range(5):
            for variable in (p, q, r):
                variable.grad = torch.full((3,), 1.0 + call)
            if call == 2:
                optimizer.add_param_group({"params": q, "weight_decay": 0.1})
            if call >= 2:
                fresh.step()
            optimizer.step()
        assert torch.equal(q, r)
        assert all(torch.equal(optimizer.state[q][name], value) for name, value in fresh.state[r].items())
        assert optimizer.state[p]["step"] == 5


def test_closures():
    p = parameter(np.ones(3, np.float32))
    optimizer = Adagrad([p], 0.5)

    def closure():
        optimizer.zero_grad()
        loss = (p * p).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 3.0
    assert (p < 1).all()


def test_zero_grad():
    p = parameter(np.ones(3, np.float32))
    optimizer = Adagrad([p])
    p.grad = torch.ones(3)
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)
    assert torch.equal(p.grad, torch.zeros(3))
    value = p.detach().clone()
    optimizer.step()
    assert torch.equal(p, value)
    optimizer.zero_grad()
    assert p.grad is None


def test_it_is_gone_when_no_one_holds_it():
    p = parameter(np.ones(1000))
    p.grad = torch.ones(1000, dtype=torch.float64)
    optimizer = Adagrad([p])
    optimizer.step()
    gone = weakref.ref(optimizer), weakref.ref(optimizer.state[p]["sum"])
    del optimizer
    gc.collect()
    assert [reference() for reference in gone] == [None, None]
