"""`Adagrad.as_torch` and `Adagrad.from_torch` beside `torch.optim.Adagrad`: the numbers, state dicts both ways, rows.

PyTorch's kernels on CPU contract ``sum + grad*grad`` and ``param + value*grad/std`` into fused multiply-adds (one rounding
where two are written) as the compiler likes, and its foreach and fused forms round ``lr*grad`` at other places than its loop.
So each step's sum may differ by one rounding, and what is divided by its root by half of that. Ours rounds as it is written.
Over 20 steps that came to at most 4 ULP of a sum and 6 ULP of a parameter (at the largest size that it has had).
"""

import copy

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from torch.optim import lr_scheduler

from adagrad.torch import Adagrad
from torch_tools import assert_unchanged, parameter, saved, snapshot

STEPS = 20
ARGUMENTS = {
    "defaults": {},
    "lr": {"lr": 0.3},
    "lr_decay": {"lr": 0.3, "lr_decay": 0.1},
    "weight_decay": {"lr": 0.3, "weight_decay": 0.1},
    "initial_accumulator_value": {"lr": 0.3, "initial_accumulator_value": 0.5},
    "eps": {"lr": 0.3, "eps": 0.01},
    "maximize": {"lr": 0.3, "maximize": True},
    "all": {
        "lr": 0.3, "lr_decay": 0.1, "weight_decay": 0.1, "initial_accumulator_value": 0.5, "eps": 0.01, "maximize": True,
    },
}  # fmt: skip
EXECUTION = {"loop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}
SHAPES = [(70, 33), (17,), ()]


def start_values(dtype):
    rng = np.random.default_rng(0)
    return [torch.from_numpy(np.array(rng.normal(size=shape))).to(dtype) for shape in SHAPES]


def both(dtype, arguments, execution):
    """Equal parameters under both optimizers."""
    ours, theirs = ([parameter(values) for values in start_values(dtype)] for _ in range(2))
    return (ours, Adagrad.as_torch(ours, **arguments, **execution)), (
        theirs,
        torch.optim.Adagrad(theirs, **arguments, **execution),
    )


def step(pairs, seed):
    rng = np.random.default_rng(seed)
    gradients = [torch.from_numpy(np.array(rng.normal(size=shape))) for shape in SHAPES]
    for parameters, optimizer in pairs:
        for p, g in zip(parameters, gradients, strict=True):
            p.grad = g.to(p.dtype)
        optimizer.step()


class Distance:
    """The largest difference in ULP at the largest size that an entry has had; to be told the start too."""

    def __init__(self, pairs):
        self.sizes = {}
        self.worst = {"param": 0.0, "sum": 0.0}
        self.see(pairs)

    def see(self, pairs):
        (ours, one), (theirs, other) = pairs
        for number, (p, q) in enumerate(zip(ours, theirs, strict=True)):
            found = {"param": (p, q), "sum": (one.state[p]["sum"], other.state[q]["sum"])}
            for name, (a, b) in found.items():
                a, b = a.detach().double(), b.detach().double()
                size = self.sizes[number, name] = torch.maximum(self.sizes.get((number, name), b.abs()), b.abs())
                unit = torch.exp2(torch.floor(torch.log2(size.clamp(min=1e-30)))) * torch.finfo(q.dtype).eps
                self.worst[name] = max(self.worst[name], ((a - b).abs() / unit).max().item())
            assert one.state[p]["step"] == other.state[q]["step"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("execution", EXECUTION.values(), ids=EXECUTION)
@pytest.mark.parametrize("arguments", ARGUMENTS.values(), ids=ARGUMENTS)
def test_numbers_are_those_of_torch(arguments, execution, dtype):
    pairs = both(dtype, arguments, execution)
    distance = Distance(pairs)
    for number in range(STEPS):
        step(pairs, number)
        distance.see(pairs)
    assert distance.worst["sum"] <= 4
    assert distance.worst["param"] <= 8


@pytest.mark.parametrize("execution", EXECUTION.values(), ids=EXECUTION)
def test_the_first_step_is_equal_to_the_bit(execution):
    # From a sum of zero a contracted sum is the same: the square is all there is to round.
    for arguments in ({}, {"lr": 0.25}, {"lr": 0.25, "eps": 0.01, "lr_decay": 0.5, "maximize": True}):
        pairs = both(torch.float32, arguments, execution)
        step(pairs, 0)
        for p, q in zip(pairs[0][0], pairs[1][0], strict=True):
            assert torch.equal(pairs[0][1].state[p]["sum"], pairs[1][1].state[q]["sum"])
            assert torch.equal(p, q)


# ---- state dicts both ways -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("execution", EXECUTION.values(), ids=EXECUTION)
def test_state_dicts_load_into_each_other(execution, dtype):
    arguments = ARGUMENTS["all"]
    pairs = both(dtype, arguments, execution)
    for number in range(3):
        step(pairs, number)
    for source, kind in zip(pairs, (torch.optim.Adagrad, Adagrad.as_torch), strict=True):
        parameters, optimizer = source
        copies = [parameter(p.detach()) for p in parameters]
        other = kind(copies, lr=9.0, **execution)  # all other arguments come with the state
        other.load_state_dict(saved(optimizer.state_dict()))
        assert other.param_groups[0]["lr"] == 0.3
        two = (parameters, optimizer), (copies, other)
        distance = Distance(two)
        for number in range(3, 8):
            step(two, number)
            distance.see(two)
            assert distance.worst["param"] <= 8


def test_going_there_and_back_loses_nothing():
    (ours, optimizer), _ = both(torch.float32, ARGUMENTS["all"], {})
    step([(ours, optimizer)], 0)
    before = snapshot(optimizer)
    theirs = torch.optim.Adagrad([parameter(p.detach()) for p in ours])
    theirs.load_state_dict(saved(optimizer.state_dict()))
    optimizer.load_state_dict(saved(theirs.state_dict()))
    assert_unchanged(before, optimizer)
    group, kept = optimizer.state_dict()["param_groups"][0], before[1]["param_groups"][0]
    assert all(group[name] == value for name, value in kept.items())


def test_what_torch_wrote_in_older_versions_loads():
    p = parameter(np.ones(2, np.float32))
    old = torch.optim.Adagrad([p], 0.3).state_dict()
    for name in ("foreach", "maximize", "differentiable", "fused"):
        del old["param_groups"][0][name]
    old["state"][0]["step"] = 4  # a number then
    optimizer = Adagrad.as_torch([p])
    optimizer.load_state_dict(old)
    p.grad = torch.ones(2)
    optimizer.step()
    assert optimizer.state[p]["step"] == 5


def test_the_meaning_of_the_page_does_not_take_over_a_state_of_another_meaning():
    p = parameter(np.ones(2, np.float32))
    page, like_torch, theirs = Adagrad([p]), Adagrad.as_torch([p]), torch.optim.Adagrad([p])
    for state in (like_torch.state_dict(), theirs.state_dict()):
        before = snapshot(page)
        with pytest.raises(ValueError, match=r"as_torch"):
            page.load_state_dict(state)
        assert_unchanged(before, page)
    before = snapshot(like_torch)
    with pytest.raises(ValueError, match="as_torch"):
        like_torch.load_state_dict(page.state_dict())
    assert_unchanged(before, like_torch)


# ---- taking over -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stepped", [0, 3])
def test_from_torch_goes_on_with_the_same_numbers_and_scheduler(stepped):
    arguments = {"lr": 0.3, "lr_decay": 0.1, "weight_decay": 0.01, "eps": 0.01}
    sides = []
    for _ in range(2):
        parameters = [parameter(values) for values in start_values(torch.float32)]
        groups = [{"params": parameters[:1]}, {"params": parameters[1:], "lr": 0.5, "maximize": True}]
        optimizer = torch.optim.Adagrad(groups, **arguments)
        sides.append((parameters, optimizer, lr_scheduler.StepLR(optimizer, 2, 0.5)))
    for number in range(stepped):
        step([side[:2] for side in sides], number)
        for _, _, scheduler in sides:
            scheduler.step()
    (parameters, old, scheduler), (twins, torch_optimizer, other) = sides
    optimizer = Adagrad.from_torch(old)
    assert optimizer.param_groups[1]["lr"] == old.param_groups[1]["lr"]
    pairs = (parameters, optimizer), (twins, torch_optimizer)
    distance = Distance(pairs)
    for number in range(stepped, stepped + 6):
        step(pairs, number)
        distance.see(pairs)
        scheduler.step()
        other.step()
        assert [g["lr"] for g in optimizer.param_groups] == [g["lr"] for g in torch_optimizer.param_groups]
    assert distance.worst["param"] <= 8
    assert optimizer.param_groups[0]["lr"] < 0.3
    copies = [parameter(p.detach()) for p in parameters]
    later = torch.optim.Adagrad([{"params": copies[:1]}, {"params": copies[1:]}])
    later.load_state_dict(saved(optimizer.state_dict()))
    assert later.param_groups[1]["maximize"]
    optimizer.add_param_group({"params": [parameter(np.ones(2))], "lr": 0.1})
    assert optimizer.param_groups[2]["lr_decay"] == 0.1


def test_from_torch_takes_only_torch_adagrad():
    p = parameter(np.ones(2, np.float32))
    for optimizer in (torch.optim.SGD([p], 0.1), Adagrad([p]), Adagrad.as_torch([p]), [p]):
        with pytest.raises(TypeError, match=r"torch\.optim\.Adagrad"):
            Adagrad.from_torch(optimizer)
    with pytest.raises(ValueError, match="differentiable"):
        Adagrad.from_torch(torch.optim.Adagrad([p], differentiable=True))


# ---- arguments and gradients -----------------------------------------------------------------------------------------


def test_arguments_are_those_of_torch():
    import inspect

    ours, theirs = (inspect.signature(f).parameters for f in (Adagrad.as_torch, torch.optim.Adagrad))
    assert {n: (p.kind, p.default) for n, p in ours.items()} == {n: (p.kind, p.default) for n, p in theirs.items()}
    p = parameter(np.ones(2))
    for wrong in ({"lr": -1}, {"lr_decay": -1}, {"eps": -1}, {"weight_decay": -1}, {"initial_accumulator_value": -1},
                  {"differentiable": True}, {"lr": torch.ones(2)}):  # fmt: skip
        (name,) = wrong
        with pytest.raises(ValueError, match=name):
            Adagrad.as_torch([p], **wrong)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled")  # in torch's optimizer
@pytest.mark.parametrize("arguments", [{}, {"lr": 0.3, "lr_decay": 0.1, "initial_accumulator_value": 0.1}], ids=str)
@pytest.mark.parametrize("module", [torch.nn.Embedding, torch.nn.EmbeddingBag])
def test_sparse_gradients_of_embeddings(module, arguments):
    torch.manual_seed(0)
    one, other = module(50, 8, sparse=True), module(50, 8, sparse=True)
    other.load_state_dict(one.state_dict())
    target = torch.rand(4, 6, 8) if module is torch.nn.Embedding else torch.rand(4, 8)
    pairs = ([one.weight], Adagrad.as_torch(one.parameters(), **arguments)), (
        [other.weight], torch.optim.Adagrad(other.parameters(), **arguments))  # fmt: skip
    distance = Distance(pairs)
    for _ in range(STEPS):
        ids = torch.randint(0, 50, (4, 6))
        for m, (_, optimizer) in zip((one, other), pairs, strict=True):
            optimizer.zero_grad()
            (m(ids) * target).sum().backward()
            assert m.weight.grad.is_sparse
            optimizer.step()
        distance.see(pairs)
    assert distance.worst["sum"] <= 16  # ids that repeat are summed in another order there
    assert distance.worst["param"] <= 16


@pytest.mark.parametrize("arguments", [ARGUMENTS["weight_decay"], ARGUMENTS["all"]], ids=["weight_decay", "all"])
def test_rows_take_what_torch_refuses_with_the_numbers_of_the_dense_gradient(arguments):
    p, q = (parameter(torch.ones(5, 3)) for _ in range(2))
    ours, theirs = Adagrad.as_torch([p], **arguments), torch.optim.Adagrad([q], **arguments)
    for _ in range(5):
        p.grad = torch.sparse_coo_tensor(torch.tensor([[4, 0, 4]]), torch.randn(3, 3), (5, 3), check_invariants=False)
        q.grad = p.grad.to_dense()
        ours.step()
        theirs.step()
    torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_parameters(dtype):
    torch.manual_seed(0)
    p = torch.nn.Parameter(torch.randn(6, 3, dtype=dtype))
    q = torch.nn.Parameter(p.detach().clone())
    arguments = {"lr": 0.3, "initial_accumulator_value": 0.5}
    ours, theirs = Adagrad.as_torch([p], **arguments), torch.optim.Adagrad([q], **arguments)
    assert torch.equal(ours.state[p]["sum"], theirs.state[q]["sum"])
    for _ in range(5):
        p.grad = torch.randn(6, 3, dtype=dtype)
        q.grad = p.grad.clone()
        ours.step()
        theirs.step()
    torch.testing.assert_close(p, q, rtol=1e-6, atol=0)
    torch.testing.assert_close(ours.state[p]["sum"], theirs.state[q]["sum"], rtol=1e-6, atol=0)


def test_half_parameters_do_what_torch_should():
    p = torch.nn.Parameter(torch.ones(3, dtype=torch.float16))
    optimizer = Adagrad.as_torch([p])
    p.grad = torch.zeros(3, dtype=torch.float16)
    optimizer.step()
    assert torch.equal(p, torch.ones(3, dtype=torch.float16))  # NaN in torch: its eps is 0 in float16
    copy_of = torch.nn.Parameter(torch.ones(3, dtype=torch.float16))
    theirs = torch.optim.Adagrad([copy_of], initial_accumulator_value=0.3)
    optimizer.load_state_dict(theirs.state_dict())
    assert optimizer.state[p]["sum"].dtype == torch.float32
    assert torch.equal(optimizer.state[p]["sum"], theirs.state[copy_of]["sum"].float())
    b = torch.nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    optimizer = Adagrad.as_torch([b])
    for _ in range(300):
        b.grad = torch.ones(1, dtype=torch.bfloat16)
        optimizer.step()
    assert optimizer.state[b]["sum"].item() == 300  # 256 in torch


def test_execution_flags_have_no_effect():
    results = []
    for execution in (*EXECUTION.values(), {"foreach": None, "fused": None}):
        parameters = [parameter(values) for values in start_values(torch.float32)]
        optimizer = Adagrad.as_torch(parameters, 0.3, **execution)
        step([(parameters, optimizer)], 0)
        optimizer.zero_grad(set_to_none=False)
        assert all(not p.grad.any() for p in parameters)
        results.append(copy.deepcopy(parameters))
    assert all(torch.equal(p, q) for other in results for p, q in zip(results[0], other, strict=True))
