"""Parameters that are not in main memory: the same stages as array code, near the kernels' numbers; and the meta device."""

import copy

import numpy as np
import pytest
import torch

from adagrad import schedules
from adagrad.torch import Adagrad
from adagrad.torch.devices import TensorStages, check_gradient

# Array code rounds where the kernels do; norms are summed in another order, and where a processor has it PyTorch contracts.
ULP = 4


class AsArrays(Adagrad):
    """Array code for tensors in main memory too."""

    def _current(self):
        self._ensure_states()
        return TensorStages(self.param_groups, self.state, self._names())


CASES = {
    "defaults": {"lr": 0.3},
    "paper": {"lr": 0.3, "initial_accumulator_value": 0.0, "eps": 0.0},
    "outside": {"lr": 0.3, "epsilon_placement": "outside", "eps": 0.01},
    "decay": {"lr": 0.3, "weight_decay": 0.1},
    "l2": {"lr": 0.3, "weight_decay": 0.1, "weight_decay_mode": "l2"},
    "clipnorm": {"lr": 0.3, "clipnorm": 0.5},
    "clipvalue": {"lr": 0.3, "clipvalue": 0.4},
    "global_clipnorm": {"lr": 0.3, "global_clipnorm": 0.7},
    "scaled": {"lr": 0.3, "loss_scale_factor": 3.0, "maximize": True},
    "ema": {"lr": 0.3, "use_ema": True, "ema_momentum": 0.8, "ema_overwrite_frequency": 2},
    "accumulation": {"lr": 0.3, "gradient_accumulation_steps": 3, "weight_decay": 0.1, "clipnorm": 0.5},
    "row_wise": {"lr": 0.3, "row_wise": True},
    "schedule": {"lr": schedules.ExponentialDecay(0.3, 3, 0.5)},
    "everything": {
        "lr": 0.3, "weight_decay": 0.1, "global_clipnorm": 0.5, "use_ema": True, "gradient_accumulation_steps": 2,
        "loss_scale_factor": 2.0, "row_wise": True,
    },
}  # fmt: skip


def gradients(kind, parameters, step):
    generator = torch.Generator().manual_seed(step)
    for number, parameter in enumerate(parameters):
        if (step + number) % 4 == 3:
            parameter.grad = None
        elif kind == "sparse" and parameter.dim() == 2:
            ids = torch.randint(0, len(parameter), (1, 6), generator=generator)
            values = torch.randn(6, parameter.shape[1], generator=generator).to(parameter.dtype)
            parameter.grad = torch.sparse_coo_tensor(ids, values, parameter.shape, check_invariants=True)
        else:
            parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)


FEW = ["defaults", "everything"]  # for the other dtypes: each combination of stages is compiled apart
DRAWN = [(name, torch.float32) for name in CASES] + [(name, dtype) for name in FEW for dtype in (torch.float64, torch.bfloat16)]


@pytest.mark.parametrize("kind", ["dense", "sparse"])
@pytest.mark.parametrize(("name", "dtype"), DRAWN)
def test_array_code_is_near_the_kernels(name, dtype, kind):
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(shape).to(dtype)) for shape in ((7, 5), (4,), ())]
    theirs = copy.deepcopy(ours)
    kernels, arrays = Adagrad(ours, **CASES[name]), AsArrays(theirs, **CASES[name])
    for step in range(7):
        for parameters, optimizer in ((ours, kernels), (theirs, arrays)):
            gradients(kind, parameters, step)
            optimizer.step()
        for p, q in zip(ours, theirs, strict=True):
            unit = torch.finfo(dtype).eps * p.detach().abs().clamp(min=0.5).double()
            assert ((p - q).double().abs() <= ULP * (step + 1) * unit).all(), step
            assert kernels.state[p]["step"] == arrays.state[q]["step"]
            assert kernels.state[p]["sum"].dtype == arrays.state[q]["sum"].dtype
    arrays.finalize()
    kernels.finalize()
    for p, q in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(p.detach().double(), q.detach().double(), rtol=0.1 if dtype == torch.bfloat16 else 1e-5)


def test_rows_that_no_id_names_are_not_touched():
    table = torch.nn.Parameter(torch.ones(5, 3))
    optimizer = AsArrays([table], lr=1.0, initial_accumulator_value=0.0, eps=0.0)
    table.grad = torch.sparse_coo_tensor(torch.tensor([[3, 3]]), torch.ones(2, 3), (5, 3), check_invariants=True)
    optimizer.step()
    assert table.detach()[:, 0].tolist() == [1.0, 1.0, 1.0, 0.0, 1.0]
    assert optimizer.state[table]["sum"][:, 0].tolist() == [0.0, 0.0, 0.0, 4.0, 0.0]


@pytest.mark.parametrize("name", CASES)
def test_the_meta_device(name):
    parameters = [torch.nn.Parameter(torch.empty(3, 2, device="meta")), torch.nn.Parameter(torch.empty(4, device="meta"))]
    optimizer = Adagrad(parameters, **CASES[name])
    for _ in range(3):
        for parameter in parameters:
            parameter.grad = torch.empty_like(parameter)
        optimizer.step()
    assert all(optimizer.state[parameter]["sum"].is_meta for parameter in parameters)
    assert optimizer.param_groups[0]["calls"] == 3


def test_moved_from_meta_before_the_first_step(monkeypatch):
    monkeypatch.setattr(torch.__future__, "_swap_module_params_on_conversion", True)  # a parameter then stays the same object
    module = torch.nn.Linear(3, 2, device="meta")
    optimizer = Adagrad(module.parameters(), lr=1.0, initial_accumulator_value=0.0, eps=0.0)
    module.to_empty(device="cpu")
    torch.nn.init.zeros_(module.weight)
    module.weight.grad = torch.full_like(module.weight, 2.0)
    optimizer.step()
    assert (module.weight == -1).all()
    assert (optimizer.state[module.weight]["sum"] == 4).all()


def refused(optimizer, parameter, kind, words):
    """The step raises, and has changed nothing."""
    before, start = copy.deepcopy(optimizer.state_dict()), parameter.detach().clone()
    with pytest.raises(kind, match=words):
        optimizer.step()
    after = optimizer.state_dict()
    assert torch.equal(parameter.detach(), start)
    assert after["param_groups"][0]["calls"] == before["param_groups"][0]["calls"]
    assert all(torch.equal(after["state"][0][name], value) for name, value in before["state"][0].items())


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
def test_wrong_gradients_are_refused_before_anything_changes():
    first, table = (torch.nn.Parameter(torch.ones(4, 3)) for _ in range(2))
    optimizer = AsArrays([("first", first), ("table", table)], lr=0.5, gradient_accumulation_steps=2)
    first.grad = torch.ones(4, 3)
    for ids, got in (([[0, 4]], "4 at position 1"), ([[-1, 0]], "-1 at position 0")):
        table.grad = torch.sparse_coo_tensor(ids, torch.ones(2, 3), (4, 3), check_invariants=False)
        refused(optimizer, first, ValueError, rf"the indices of table must be in \[0, 4\), got {got}")
    table.grad = torch.ones(4, 3)
    table.grad.data = torch.ones(3, 4)  # PyTorch looks at an assignment only
    refused(optimizer, first, ValueError, r"the gradient of table must have its shape \(4, 3\), got \(3, 4\)")
    table.grad = None
    table.grad_dtype = None
    table.grad = torch.ones(4, 3, dtype=torch.int64)
    refused(optimizer, first, TypeError, "the gradient of table must be one of .*, got torch.int64")
    table.grad = torch.ones(4, 3, dtype=torch.complex64)
    refused(optimizer, first, TypeError, "the gradient of table must be real, got torch.complex64")
    with pytest.raises(TypeError, match="the gradient of table must be dense or sparse COO, got torch.sparse_csr"):
        check_gradient(torch.ones(4, 3).to_sparse_csr(), "table", table)
    with pytest.raises(TypeError, match="sparse in its first dimension, got no sparse dimension"):
        check_gradient(
            torch.sparse_coo_tensor(torch.empty(0, 1), torch.ones(1, 4, 3), (4, 3), check_invariants=False), "table", table
        )
    with pytest.raises(ValueError, match="the gradient of table must be on its device, cpu, got meta"):
        check_gradient(torch.empty(4, 3, device="meta"), "table", table)


def test_a_gradient_of_another_shape_is_refused_on_meta():
    table = torch.nn.Parameter(torch.empty(4, 3, device="meta"))
    optimizer = Adagrad([table])
    table.grad = torch.empty(4, 3, device="meta")
    table.grad.data = torch.empty(3, 4, device="meta")
    with pytest.raises(ValueError, match="must have its shape"):
        optimizer.step()
    assert optimizer.param_groups[0]["calls"] == 0
