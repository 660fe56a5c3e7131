"""What users do to an optimizer, its groups and its state between steps, that no argument speaks of."""

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from adagrad import schedules
from adagrad.torch import Adagrad
from torch_tools import parameter


def stepped(optimizer, calls=1):
    for call in range(calls):
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = torch.full_like(p, 1.0 + call)
        optimizer.step()
    return optimizer


class Halving(schedules.LearningRateSchedule):
    """A schedule of the user's own, to be saved."""

    def __init__(self, first: float) -> None:
        self.first = first

    def __call__(self, step: int) -> float:
        return self.first * 0.5 ** int(step)

    def get_config(self) -> dict[str, float]:
        return {"first": self.first}


def test_state_asked_of_a_parameter_that_is_not_the_optimizers():
    p, frozen = parameter(np.ones(3, np.float32)), parameter(np.ones(3, np.float32))
    optimizer = stepped(Adagrad([p], 0.5))
    assert optimizer.state[frozen] == {}  # a defaultdict, as torch has it
    stepped(optimizer, 2)
    optimizer.share_memory()
    assert optimizer.state[p]["step"] == 3
    assert torch.equal(frozen, torch.ones(3))


@pytest.mark.parametrize("way", ["appended to a group", "state cleared"])
def test_an_average_that_begins_late_begins_at_its_parameter(way):
    p, late = parameter(np.full(3, 8.0, np.float32)), parameter(np.full(3, 8.0, np.float32))
    optimizer = stepped(Adagrad([p], 0.5, use_ema=True), 3)
    if way == "state cleared":
        optimizer.state.clear()
        late = p
        before = p.detach().clone()
    else:
        optimizer.param_groups[0]["params"].append(late)
        before = late.detach().clone()
    late.grad = torch.ones(3)
    optimizer.step()
    torch.testing.assert_close(optimizer.state[late]["ema"], 0.99 * before + (1 - 0.99) * late.detach())


@pytest.mark.parametrize("settings", [{"use_ema": True}, {"gradient_accumulation_steps": 4}], ids=str)
def test_state_before_a_parameters_first_step_moves_with_its_dtype(settings):
    """A parameter without a gradient so far, or within its first cycle, has an average, or a gradient buffer."""
    p, other = parameter(np.full(3, 8.0, np.float32)), parameter(np.ones(3, np.float32))
    optimizer = Adagrad([p, other], 0.5, **settings)
    p.grad = torch.full((3,), 2.0) if "use_ema" not in settings else None
    other.grad = torch.ones(3)
    optimizer.step()
    name = "ema" if "use_ema" in settings else "gradient_accumulator"
    before = optimizer.state[p][name].clone()
    assert before.any()
    p.grad = None
    p.data = p.data.double()
    optimizer.step()
    torch.testing.assert_close(optimizer.state[p][name], before.double())


def test_names_that_come_twice_are_refused_where_a_file_goes_by_them(tmp_path):
    one, two = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    optimizer = Adagrad([{"params": one.named_parameters()}, {"params": two.named_parameters()}])
    with pytest.raises(ValueError, match="a name of its own, got bias, weight more than once"):
        optimizer.save(tmp_path / "state")
    assert not (tmp_path / "state").exists()


def test_a_schedule_of_ones_own_in_a_state_dict():
    p, q = (parameter(np.ones(3, np.float32)) for _ in range(2))
    one, other = stepped(Adagrad([p], Halving(0.5)), 2), Adagrad([q], Halving(0.25))
    other.load_state_dict(one.state_dict())
    assert type(other.param_groups[0]["lr"]) is Halving
    assert other.param_groups[0]["lr"].first == 0.5
    with pytest.raises(ValueError, match="class_name must be one of .*, got 'Halving'"):
        Adagrad([q]).load_state_dict(one.state_dict())


def test_a_scheduler_goes_on_after_taking_over_and_loading():
    p = parameter(np.ones(3, np.float32))
    theirs = torch.optim.Adagrad([p], lr=1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(theirs, 1, 0.5)
    ours = stepped(Adagrad.from_torch(theirs))
    ours.load_state_dict(ours.state_dict())
    scheduler.step()
    assert ours.param_groups[0]["lr"] == 0.5


def test_a_state_dict_without_an_array_is_refused():
    p = parameter(np.ones(3, np.float32))
    optimizer = stepped(Adagrad([p], 0.5, use_ema=True))
    for name in ("sum", "ema"):
        state_dict = optimizer.state_dict()
        state_dict["state"] = {0: {key: value for key, value in state_dict["state"][0].items() if key != name}}
        with pytest.raises(ValueError, match=f"the state of parameter 0, which has made steps, must have {name}"):
            optimizer.load_state_dict(state_dict)
    assert optimizer.state[p]["ema"].all()


def test_row_wise_state_does_not_load_transposed(tmp_path):
    p, q = (parameter(np.ones((3, 3), np.float32)) for _ in range(2))
    stepped(Adagrad([p], 0.5, row_wise=True)).save(tmp_path / "state")
    with pytest.raises(ValueError, match="transpose must be empty for row-wise accumulators"):
        Adagrad([q], 0.5, row_wise=True).load(tmp_path / "state", transpose=["param_0"])


@pytest.mark.parametrize("name", ["eps", "weight_decay", "clipnorm"])
def test_a_tensor_that_would_be_ignored_when_it_is_filled_is_refused(name):
    with pytest.raises(ValueError, match=rf"{name} must be a plain number \(only lr may be a tensor\), got tensor"):
        Adagrad([parameter(np.ones(3, np.float32))], 0.5, **{name: torch.tensor(0.5)})


def test_a_default_device_is_not_where_the_counts_go():
    p = parameter(np.ones(3, np.float32))
    optimizer = Adagrad([p], 0.5, gradient_accumulation_steps=2)
    with torch.device("meta"):
        p.grad = torch.ones(3, device="cpu")
        optimizer.step()
        optimizer.step()
        state_dict = optimizer.state_dict()
    assert state_dict["state"][0]["step"] == 1
    assert all(value.is_cpu for value in state_dict["state"][0].values())


def test_nothing_is_skipped_when_a_scaler_has_seen_no_gradient():
    """`GradScaler` then says a plain 0."""
    p = parameter(np.ones(3, np.float32))
    optimizer = Adagrad([p], 0.5, gradient_accumulation_steps=2)
    optimizer.found_inf, optimizer.grad_scale = 0, torch.tensor(2.0)
    optimizer.step()
    assert optimizer.param_groups[0]["calls"] == 1


def test_a_parameter_that_changes_groups_has_the_arguments_of_its_new_one():
    """The list of all parameters stays what it was."""
    p, q = parameter(np.ones(3, np.float32)), parameter(np.ones(3, np.float32))
    last = parameter(np.ones(3, np.float32))
    optimizer = stepped(Adagrad([{"params": [p, q], "eps": 0.5}, {"params": [last], "eps": 3.0}], 0.5))
    before = q.detach().clone()
    optimizer.param_groups[1]["params"].insert(0, optimizer.param_groups[0]["params"].pop())
    q.grad = torch.ones(3)
    p.grad = last.grad = None
    optimizer.step()
    accumulator = 0.1 + 1.0 + 1.0
    torch.testing.assert_close(q.detach(), before - 0.5 / (accumulator + 3.0) ** 0.5)
