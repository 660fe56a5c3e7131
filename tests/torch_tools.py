"""Numbers between NumPy and PyTorch, and the PyTorch face as a row of the capability table."""

from __future__ import annotations

import copy
import io
import re
from typing import Any

import ml_dtypes
import numpy as np
import torch

import adagrad
from adagrad.torch import Adagrad
from capability import CASES, COMBINATIONS, Case, Face, start_values
from plain import assert_same_bits, state_dtype

NAMES = {"learning_rate": "lr", "epsilon": "eps"}
STATE = ("ema", "gradient_accumulator", "sum")  # as `adagrad.Adagrad.variables` has them in turn


def torch_names(arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `adagrad.Adagrad` as those of `adagrad.torch.Adagrad`."""
    return {NAMES.get(name, name): value for name, value in arguments.items()}


def tensor(array: Any) -> torch.Tensor:
    """The same bits in a tensor with memory of its own."""
    array = np.asarray(array)
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(np.array(array))


def array(tensor: torch.Tensor) -> np.ndarray:
    """The same bits in an array with memory of its own."""
    tensor = tensor.detach().clone(memory_format=torch.contiguous_format)
    if tensor.dtype is torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def parameter(values: Any, layout: str = "C") -> torch.nn.Parameter:
    """A parameter of these values, in memory of some layout."""
    return torch.nn.Parameter(laid_out(values if isinstance(values, torch.Tensor) else tensor(values), layout))


LAYOUTS = ["C", "transposed", "strided", "channels_last", "offset"]


def laid_out(values: torch.Tensor, layout: str) -> torch.Tensor:
    """The values in memory of another layout, where the number of dimensions has one."""
    if layout == "transposed":
        backwards = tuple(reversed(range(values.dim())))
        return values.permute(backwards).contiguous().permute(backwards)
    if layout == "strided" and values.dim():
        result = torch.zeros(*values.shape[:-1], 2 * values.shape[-1] + 1, dtype=values.dtype)[..., 1::2]
        return result.copy_(values)
    if layout == "channels_last" and values.dim() == 4:
        return values.contiguous(memory_format=torch.channels_last)
    if layout == "offset":
        return torch.cat([values.new_zeros(1), values.reshape(-1)])[1:].view(values.shape)
    return values.clone(memory_format=torch.contiguous_format)


def coo(values: Any, indices: Any, shape: tuple[int, ...]) -> torch.Tensor:
    """A sparse gradient, not coalesced; ``indices`` are ids, or coordinates with a row for each sparse dimension."""
    indices = torch.from_numpy(np.atleast_2d(indices).astype(np.int64))
    return torch.sparse_coo_tensor(indices, tensor(values), shape, check_invariants=False)


def gradient_of(gradient: Any, shape: tuple[int, ...]) -> torch.Tensor | None:
    """A gradient as the judges take it (`plain`) as a tensor; ("sparse", ...) as single entries."""
    if gradient is None:
        return None
    if not isinstance(gradient, tuple):
        return tensor(gradient)
    kind, values, ids = gradient
    if kind == "sparse" and len(shape) == 2:
        coordinates = np.stack([np.repeat(ids, shape[1]), np.tile(np.arange(shape[1]), len(ids))])
        return coo(np.reshape(values, -1), coordinates, shape)
    return coo(values, ids, shape)


def numpy_gradient(gradient: Any) -> Any:
    """The same for `adagrad.Adagrad`."""
    return adagrad.IndexedSlices(*gradient[1:]) if isinstance(gradient, tuple) else gradient


def dense_sum(values: np.ndarray, coordinates: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Entries (or blocks) at coordinates of the leading dimensions, summed in order in the dtype of the arithmetic."""
    total = np.zeros(shape, state_dtype(values.dtype))
    with np.errstate(all="ignore"):
        np.add.at(total, tuple(coordinates), values.astype(total.dtype))
    return total


def states(optimizer: Adagrad) -> list[np.ndarray]:
    """Averages, gradient buffers and accumulators, as far as there are any, in the order of the parameters."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return [array(optimizer.state[p][name]) for name in STATE for p in parameters if name in optimizer.state[p]]


def assert_same_state(optimizer: Adagrad, other: adagrad.Adagrad, arrays: list[np.ndarray], what: object = "") -> None:
    """Parameters and state have the bits of the NumPy face, whose rate must be a number."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for k, (p, expected) in enumerate(zip(parameters, arrays, strict=True)):
        assert_same_bits(array(p), expected, f"parameter {k} {what}")
    for k, (found, expected) in enumerate(zip(states(optimizer), other.variables[2:], strict=True)):
        assert_same_bits(found, expected, f"state {k} {what}")


def snapshot(optimizer: torch.optim.Optimizer) -> Any:
    """Everything that a step may change, copied."""
    parameters = [p.detach().clone() for group in optimizer.param_groups for p in group["params"]]
    return parameters, copy.deepcopy(optimizer.state_dict())


def assert_unchanged(before: Any, optimizer: torch.optim.Optimizer) -> None:
    """All is, bit for bit, as `snapshot` had it; groups may have been changed by the caller."""
    after = snapshot(optimizer)
    for old, new in zip(before[0], after[0], strict=True):
        assert torch.equal(old, new)
    assert before[1]["state"].keys() == after[1]["state"].keys()
    for number, state in before[1]["state"].items():
        assert state.keys() == after[1]["state"][number].keys()
        assert all(torch.equal(value, after[1]["state"][number][name]) for name, value in state.items())
    for old, new in zip(before[1]["param_groups"], after[1]["param_groups"], strict=True):
        assert old.get("calls") == new.get("calls")


def saved(state_dict: Any) -> Any:
    """The state dict after a way through a file that may hold data only."""
    buffer = io.BytesIO()
    torch.save(state_dict, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


class TorchFace(Face):
    """`adagrad.torch.Adagrad`; a variable excluded from decay has a group without it."""

    name = "adagrad.torch.Adagrad"
    bitwise = True
    kinds = {  # noqa: RUF012
        "dense": "tensors of the parameter's dtype",
        "rows": "sparse COO tensors of rows, not coalesced, ids repeated, in any order",
        "sparse": "sparse COO tensors of single entries, not coalesced, entries repeated",
        "mixed": "dense, rows, None and sparse in turn",
    }
    lacks = {  # noqa: RUF012
        case.name: reason
        for case in CASES
        for reason, found in {
            "PyTorch's optimizers have no name": "name" in case.arguments,
            "`lr` is a number, a tensor or a schedule": case.callable_rate,
            "parameters have no constraint": case.constraints and case not in COMBINATIONS,
        }.items()
        if found
    }
    remarks = (
        "`learning_rate` is called `lr` here, and `epsilon` `eps`. The combinations with a constraint run without it.",
        "`exclude_from_weight_decay` is a group with `weight_decay=None`.",
    )

    @staticmethod
    def adapted(case: Case) -> Case:
        """The case without constraints."""
        return case.unconstrained

    def __init__(self, case: Case, dtype: np.dtype) -> None:
        self.case = case
        self.variables = {name: parameter(array) for name, array in start_values(dtype).items()}
        self.optimizer = self._built()

    def _built(self) -> Adagrad:
        groups: list[dict[str, Any]] = []
        for name, variable in self.variables.items():
            groups.append({"params": [(name, variable)]})
            if any(re.search(pattern, name) for pattern in self.case.excluded):
                groups[-1]["weight_decay"] = None
        return Adagrad(groups, **torch_names(self.case.arguments))

    def apply(self, gradients: dict[str, Any]) -> None:
        for name, gradient in gradients.items():
            self.variables[name].grad = gradient_of(gradient, tuple(self.variables[name].shape))
        self.optimizer.step()

    def save_and_load(self) -> None:
        """Go on with other parameters and another optimizer, which has only what the file holds."""
        self.variables = {name: torch.nn.Parameter(p.detach().clone()) for name, p in self.variables.items()}
        content = saved(self.optimizer.state_dict())
        self.optimizer = self._built()
        self.optimizer.load_state_dict(content)

    def parameters(self) -> list[np.ndarray]:
        return [array(p) for p in self.variables.values()]

    def state(self) -> list[np.ndarray]:
        return states(self.optimizer)
