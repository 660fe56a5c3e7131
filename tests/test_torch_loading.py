"""Checkpoints through `torch.distributed.checkpoint`: to and from torch's optimizer, and with every argument of ours."""

import copy
import shutil

import pytest

pytest.importorskip("torch")

import torch
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict, set_optimizer_state_dict

from adagrad import schedules
from adagrad.torch import Adagrad
from torch_tools import saved

ARGUMENTS = {"lr": 0.1, "lr_decay": 0.01, "weight_decay": 0.01}


def torch_adagrad(parameters, **more):
    return torch.optim.Adagrad(parameters, **ARGUMENTS | more)


def as_torch(parameters, **more):
    return Adagrad.as_torch(parameters, **ARGUMENTS | more)


def model(seed=0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Embedding(20, 4), torch.nn.Flatten(), torch.nn.Linear(8, 1))


def train(module, optimizer, calls):
    for call in calls:
        ids = torch.randint(0, 20, (16, 2), generator=torch.Generator().manual_seed(call))
        optimizer.zero_grad()
        module(ids).square().mean().backward()
        optimizer.step()


class Plain:
    """The state dicts themselves."""

    @staticmethod
    def get(_, optimizer):
        return optimizer.state_dict()

    @staticmethod
    def put(_, optimizer, state):
        optimizer.load_state_dict(state)


class Named:
    """By the names of the parameters, as under FSDP."""

    options = StateDictOptions()

    @classmethod
    def get(cls, module, optimizer):
        return get_optimizer_state_dict(module, optimizer, options=cls.options)

    @classmethod
    def put(cls, module, optimizer, state):
        set_optimizer_state_dict(module, optimizer, state, options=cls.options)


class Flat(Named):
    """An entry for each argument of each parameter, as torchtitan writes it."""

    options = StateDictOptions(flatten_optimizer_state_dict=True)


def through_files(way, source, target, folder):
    """Load all of ``target``, a model and its optimizer, from a checkpoint of ``source``; every key must be there."""
    shutil.rmtree(folder, ignore_errors=True)
    checkpoint.save({"model": source[0].state_dict(), "optimizer": way.get(*source)}, checkpoint_id=folder, no_dist=True)
    state = {"model": target[0].state_dict(), "optimizer": way.get(*target)}
    checkpoint.load(state, checkpoint_id=folder, no_dist=True)
    target[0].load_state_dict(state["model"])
    way.put(*target, state["optimizer"])


@pytest.mark.filterwarnings("ignore::FutureWarning:torch", "ignore::UserWarning:torch")
@pytest.mark.parametrize("way", [Plain, Named, Flat])
@pytest.mark.parametrize(("written", "read"), [(torch_adagrad, as_torch), (as_torch, torch_adagrad), (as_torch, as_torch)])
def test_a_distributed_checkpoint_loads_on_either_side(way, written, read, tmp_path):
    source, target = model(), model(seed=1)
    one, other = written(source.parameters()), read(target.parameters(), lr=9.0, lr_decay=0.0, weight_decay=0.0)
    train(source, one, range(3))
    through_files(way, (source, one), (target, other), tmp_path / "checkpoint")
    assert all(torch.equal(p, q) for p, q in zip(source.parameters(), target.parameters(), strict=True))
    for name, value in ARGUMENTS.items():
        assert other.param_groups[0][name] == value
    for p, q in zip(source.parameters(), target.parameters(), strict=True):
        assert torch.equal(one.state[p]["sum"], other.state[q]["sum"])
        assert other.state[q]["step"] == 3
    train(source, one, range(3, 6))
    train(target, other, range(3, 6))
    for p, q in zip(source.parameters(), target.parameters(), strict=True):
        if written is read:
            assert torch.equal(p, q)
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-7)


@pytest.mark.filterwarnings("ignore::FutureWarning:torch", "ignore::UserWarning:torch")
@pytest.mark.parametrize("way", [Plain, Named, Flat])
@pytest.mark.parametrize(
    "settings",
    [
        {"lr": schedules.CosineDecay(0.1, 10), "row_wise": True},
        {"lr": torch.tensor(0.1), "use_ema": True, "gradient_accumulation_steps": 3, "global_clipnorm": 1.0},
    ],
    ids=["schedule", "cycle"],
)
def test_a_distributed_checkpoint_holds_every_argument(way, settings, tmp_path):
    source, target = model(), model(seed=1)
    one, other = (Adagrad(m.parameters(), **copy.deepcopy(settings)) for m in (source, target))
    train(source, one, range(4))
    through_files(way, (source, one), (target, other), tmp_path / "checkpoint")
    train(source, one, range(4, 8))
    train(target, other, range(4, 8))
    assert all(torch.equal(p, q) for p, q in zip(source.parameters(), target.parameters(), strict=True))


def test_the_groups_of_as_torch_have_torchs_keys_and_no_others():
    module = model()
    theirs = torch_adagrad(module.parameters())
    keys = theirs.param_groups[0].keys()
    ours = as_torch(module.parameters())
    taken_over = Adagrad.from_torch(copy.deepcopy(theirs))
    for optimizer in (ours, taken_over, copy.deepcopy(ours)):
        train(module, optimizer, range(2))
        optimizer.load_state_dict(saved(optimizer.state_dict()))
        train(module, optimizer, range(2))
        assert optimizer.param_groups[0].keys() == keys
        assert optimizer.state_dict()["param_groups"][0].keys() == keys
        assert optimizer.param_groups[0]["epsilon_placement"] == "outside"  # to be read all the same
        with pytest.raises(KeyError, match="momentum"):
            optimizer.param_groups[0]["momentum"]


def test_a_group_of_as_torch_keeps_what_torch_does_not_have():
    def made():
        module = model()
        groups = [{"params": module[0].parameters(), "row_wise": True}, {"params": module[2].parameters(), "clipnorm": 0.01}]
        return module, as_torch(groups, lr=schedules.InverseTimeDecay(0.5, 2, 0.75))

    (source, one), (target, other) = made(), made()
    train(source, one, range(3))
    target.load_state_dict(source.state_dict())
    other.load_state_dict(saved(one.state_dict()))
    assert other.param_groups[0]["row_wise"] is True
    assert other.param_groups[1]["clipnorm"] == 0.01
    for module, optimizer in ((source, one), (target, other), (copied := copy.deepcopy((source, one)))):
        train(module, optimizer, range(3, 6))
    for p, q, r in zip(source.parameters(), target.parameters(), copied[0].parameters(), strict=True):
        assert torch.equal(p, q)
        assert torch.equal(p, r)
    plain = model()
    without = as_torch(plain.parameters(), lr=schedules.InverseTimeDecay(0.5, 2, 0.75))
    train(plain, without, range(6))
    assert not torch.equal(plain[2].weight, source[2].weight)


def test_a_schedule_of_as_torch_goes_on_where_it_was_though_no_parameter_stepped_at_every_call():
    def made():
        parameters = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
        return parameters, as_torch(parameters, lr=schedules.InverseTimeDecay(0.5, 2, 0.75))

    def turns(parameters, optimizer, calls):
        for call in calls:
            parameters[call % 2].grad, parameters[(call + 1) % 2].grad = torch.ones(3), None
            optimizer.step()

    (whole, one), (resumed, other) = made(), made()
    turns(whole, one, range(3))
    for p, q in zip(whole, resumed, strict=True):
        q.data.copy_(p.detach())
    other.load_state_dict(saved(one.state_dict()))
    assert [state["step"].item() for state in other.state.values()] == [2, 1]
    turns(whole, one, range(3, 6))
    turns(resumed, other, range(3, 6))
    assert all(torch.equal(p, q) for p, q in zip(whole, resumed, strict=True))
