"""The CUDA kernels in Triton's interpreter, on tensors in main memory, beside the CPU kernels: the same bits.

``TRITON_INTERPRET=1 NUMBA_DISABLE_JIT=1 python triton_cases.py`` runs every case and prints what went wrong in each, as
JSON. It is a process of its own, since Triton and TensorFlow in one abort it; and the CPU kernels are plain Python in it,
which `test_interpreted` holds to give the bits of the compiled ones, and which here is quicker than to compile them all.
`test_triton.py` runs it and knows the names in `CASES`.
"""

from __future__ import annotations

import copy
import functools
import json
import math
import sys
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from adagrad import schedules
from adagrad.torch import Adagrad
from torch_tools import laid_out, saved

CASES: dict[str, Callable[[], None]] = {}
SHAPES = ((23, 5), (17,), ())
F64, F32, F16, BF16 = torch.float64, torch.float32, torch.float16, torch.bfloat16


def case(*arguments: Any, name: str = "", **named: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Enter a function, with some arguments, into the table."""

    def enter(function: Callable[..., None]) -> Callable[..., None]:
        title = f"{function.__name__} {name}".strip()
        assert title not in CASES, title
        CASES[title] = functools.partial(function, *arguments, **named)
        return function

    return enter


class OnKernels(Adagrad):
    """The optimizer with the CUDA engine, which Triton's interpreter lets work on any memory."""

    def _current(self) -> Any:
        from adagrad.torch.cuda import CudaEngine

        if not isinstance(self._engine, CudaEngine) or not self._engine.is_current(self.param_groups, self.state):
            self._ensure_states()
            self._engine = CudaEngine(self.param_groups, self.state, self._names())
        return self._engine


def same(found: torch.Tensor, expected: torch.Tensor, what: object) -> None:
    """Equal dtype, shape and bits; every NaN is like every other."""
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape), what
    found, expected = (torch.view_as_real(t.detach()) if t.is_complex() else t.detach() for t in (found, expected))
    if not found.is_floating_point():
        assert torch.equal(found, expected), what
        return
    nan = expected.isnan()
    assert torch.equal(found.isnan(), nan), f"{what}: NaN in other places"
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[found.dtype.itemsize]
    different = (found.contiguous().view(bits) != expected.contiguous().view(bits)) & ~nan
    assert not different.any(), f"{what}: {found[different][:4].tolist()} is not {expected[different][:4].tolist()}"


def assert_alike(kernels: Adagrad, cpu: Adagrad, what: object = "") -> None:
    """Parameters, states and counters of both."""
    mine, theirs = ([p for g in optimizer.param_groups for p in g["params"]] for optimizer in (kernels, cpu))
    for k, (p, q) in enumerate(zip(mine, theirs, strict=True)):
        same(p, q, f"parameter {k} {what}")
        names = cpu.state[q].keys() - {"in_cycle"}
        assert names == kernels.state[p].keys() - {"in_cycle"}
        for name in names:
            same(kernels.state[p][name], cpu.state[q][name], f"{name} {k} {what}")


def pair(parameters: list[torch.Tensor], groups: Any = None, **arguments: Any) -> tuple[OnKernels, Adagrad]:
    """An optimizer on the kernels and one on the CPU's, over equal parameters of their own."""
    made = []
    for cls in (OnKernels, Adagrad):
        own: Any = [
            torch.nn.Parameter(laid_out(p, "C") if p.is_contiguous() else laid_out(p, "transposed")) for p in parameters
        ]
        if groups is not None:
            own = [{"params": [p], **group} for p, group in zip(own, groups, strict=True)]
        made.append(cls(own, **arguments))
    return made[0], made[1]


def give(optimizers: Any, gradients: list[torch.Tensor | None]) -> None:
    """Set the gradients of each optimizer's parameters."""
    for optimizer in optimizers:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for p, g in zip(parameters, gradients, strict=True):
            p.grad_dtype = None  # any may come
            p.grad = None if g is None else g.clone()


def amp(optimizers: Any, scale: float | None, found_inf: float | None) -> None:
    """What `GradScaler` hands to an optimizer before a step."""
    for optimizer in optimizers:
        optimizer.grad_scale = None if scale is None else torch.tensor(scale)
        optimizer.found_inf = None if found_inf is None else torch.tensor(found_inf)


def rows(ids: Any, values: torch.Tensor, shape: Any) -> torch.Tensor:
    """A sparse gradient, not coalesced."""
    return torch.sparse_coo_tensor(torch.atleast_2d(torch.as_tensor(ids)), values, shape, check_invariants=False)


def drawn(step: int, parameters: list[torch.Tensor], dtype: torch.dtype | None = None) -> list[torch.Tensor | None]:
    """Gradients: dense, rows with repeated ids, or none, in turn."""
    generator = torch.Generator().manual_seed(step)
    found: list[torch.Tensor | None] = []
    for k, p in enumerate(parameters):
        kind = dtype or p.dtype
        if (step + k) % 4 == 3:
            found.append(None)
        elif (step + k) % 2 == 0 and p.dim() > 0:
            ids = torch.randint(0, len(p), (7,), generator=generator)
            ids[3] = ids[5] = ids[0]
            values = 3 * torch.randn(7, *p.shape[1:], dtype=F64, generator=generator)
            found.append(rows(ids, values.to(kind), p.shape))
        else:
            found.append((3 * torch.randn(p.shape, dtype=F64, generator=generator)).to(kind))
    return found


# ---- every argument ------------------------------------------------------------------------------------------------

ARGUMENTS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "initial_accumulator_value": {"initial_accumulator_value": 0.7},
    "eps": {"eps": 0.01},
    "paper": {"initial_accumulator_value": 0.0, "eps": 0.0},
    "outside": {"epsilon_placement": "outside", "eps": 0.01},
    "weight_decay": {"weight_decay": 0.1},
    "l2": {"weight_decay": 0.1, "weight_decay_mode": "l2"},
    "clipnorm": {"clipnorm": 0.7},
    "clipvalue": {"clipvalue": 0.3},
    "global_clipnorm": {"global_clipnorm": 0.9},
    "ema": {"use_ema": True, "ema_momentum": 0.8, "ema_overwrite_frequency": 2},
    "loss_scale_factor": {"loss_scale_factor": 3.0},
    "accumulation": {"gradient_accumulation_steps": 3},
    "maximize": {"maximize": True},
    "row_wise": {"row_wise": True},
    "schedule": {"lr": schedules.InverseTimeDecay(0.5, 2, 0.75)},
    "row_wise, clipnorm, l2": {"row_wise": True, "clipnorm": 0.6, "weight_decay": 0.02, "weight_decay_mode": "l2"},
    "everything": {
        "gradient_accumulation_steps": 2, "global_clipnorm": 0.8, "weight_decay": 0.05, "use_ema": True, "ema_momentum": 0.8,
        "ema_overwrite_frequency": 2, "loss_scale_factor": 3.0, "lr": schedules.PolynomialDecay(0.5, 10, 0.1),
    },
    "everything, by rows": {
        "gradient_accumulation_steps": 3, "clipnorm": 0.6, "row_wise": True, "maximize": True, "epsilon_placement": "outside",
        "eps": 0.003,
    },
}  # fmt: skip


def argument(arguments: dict[str, Any], dtype: torch.dtype, by_device: bool) -> None:
    """Some calls with gradients of all kinds. ``by_device``: as under `GradScaler`, when only the device knows the counts."""
    torch.manual_seed(0)
    parameters = [torch.randn(shape, dtype=F64).to(dtype) for shape in SHAPES]
    both = pair(parameters, **{"lr": 0.3, **arguments})
    for step in range(4):
        give(both, drawn(step, parameters))
        if by_device:
            amp(both, 4.0, 0.0)
        for optimizer in both:
            optimizer.step()
        assert_alike(*both, what=f"call {step}")
    for optimizer in both:
        optimizer.finalize()
    assert_alike(*both, what="finalized")
    counts = [[g["calls"] for g in optimizer.state_dict()["param_groups"]] for optimizer in both]
    assert counts[0] == counts[1] == [4]


for _title, _arguments in ARGUMENTS.items():
    case(_arguments, F32, False, name=_title)(argument)
for _title in ("defaults", "accumulation", "everything", "everything, by rows"):
    case(ARGUMENTS[_title], F32, True, name=f"{_title}, counted on the device")(argument)
for _dtype in (F64, F16, BF16):
    for _title in ("defaults", "everything", *(["row_wise, clipnorm, l2"] if _dtype is not F16 else [])):
        case(ARGUMENTS[_title], _dtype, _title == "everything", name=f"{_title} {_dtype}")(argument)
case({"lr": 0.3, "weight_decay": 0.1, "use_ema": True}, torch.complex64, False, name="complex64")(argument)


# ---- sizes and numbers ---------------------------------------------------------------------------------------------


@case(F32, F32, (8193,), clipnorm=0.5)
@case(F64, F64, (4097,), name="float64, global_clipnorm", global_clipnorm=0.5, use_ema=True)
@case(BF16, F32, (), name="bfloat16 with float32 gradients", gradient_accumulation_steps=2)
@case(F16, BF16, (), name="float16 with bfloat16 gradients", clipvalue=1.0)
def sizes(stored: torch.dtype, dtype: torch.dtype, more: tuple[int, ...], **arguments: Any) -> None:
    """Around the sizes of blocks and chunks, in one list; addresses that are no multiples of 16, too."""
    torch.manual_seed(0)
    parameters = [torch.randn(n).to(stored) for n in (0, 1, 15, 16, 17, 1023, 1024, 1025, *more)]
    both = pair(parameters, lr=0.3, **arguments)
    for _ in range(2):
        gradients = [torch.randn(p.shape).to(dtype) for p in parameters]
        give(both, gradients)
        both[0].param_groups[0]["params"][6].grad = laid_out(gradients[6], "offset")
        for optimizer in both:
            optimizer.step()
        assert_alike(*both)


SPECIAL = [0.0, -0.0, 1.0, -1.0, math.inf, -math.inf, math.nan, 1e-45, -1e-40, 3e38, 6e-8, 65504.0, 1e-30]


@case(F32, initial_accumulator_value=0.0, eps=0.0)
@case(F32, name="with decay", initial_accumulator_value=0.0, eps=0.0, weight_decay=0.1)
@case(F32, name="clipvalue", clipvalue=1e-20, initial_accumulator_value=0.0, eps=0.0, epsilon_placement="outside")
@case(F16, name="float16", eps=0.0)
@case(BF16, name="bfloat16", use_ema=True)
@case(F64, name="float64", eps=0.0, initial_accumulator_value=0.0)
def special_numbers(dtype: torch.dtype, **arguments: Any) -> None:
    """Zeros, infinities, NaN, subnormal and huge gradients, on parameters that are such themselves."""
    values = torch.tensor(SPECIAL, dtype=F64).to(dtype)
    start = [p.to(dtype) for p in torch.cartesian_prod(values, values).T]
    both = pair([start[0].contiguous()], lr=0.3, **arguments)
    for _ in range(2):
        give(both, [start[1]])
        for optimizer in both:
            optimizer.step()
        assert_alike(*both)


@case()
def bfloat16_is_rounded_to_nearest() -> None:
    """Parameters that land on every kind of tie: ``p - 0`` stays, and ``m`` overwrites them with numbers between."""
    bits = torch.randint(0, 2**31 - 2**24, (4096,), generator=torch.Generator().manual_seed(1)).to(torch.int32)
    bits[:2048] = bits[:2048] // 65536 * 65536 + 32768  # half way
    both = pair([torch.zeros(4096, dtype=BF16)], lr=0.3, use_ema=True, ema_momentum=1.0, ema_overwrite_frequency=2)
    for step in range(2):
        give(both, [torch.ones(4096, dtype=BF16)])
        for optimizer in both:
            if step == 1:
                state = optimizer.state[optimizer.param_groups[0]["params"][0]]
                state["ema"].copy_(bits.view(F32))
            optimizer.step()
    assert_alike(*both)
    assert both[0].param_groups[0]["params"][0].unique().numel() > 1000


@case(F64, 1e200, clipnorm=1.0)
@case(F64, 1e-165, name="vanishing", clipnorm=1e-166, initial_accumulator_value=0.0, eps=1e-165, epsilon_placement="outside")
@case(F64, 1e200, name="over all", global_clipnorm=1.0)
@case(F32, 1e30, name="float32", global_clipnorm=1.0)
@case(F32, math.inf, name="infinite", clipnorm=1.0)
@case(F32, math.nan, name="NaN", global_clipnorm=1.0)
def norms(dtype: torch.dtype, size: float, **arguments: Any) -> None:
    """Norms whose squares leave the range of double, or that are no numbers; of rows and dense gradients."""
    torch.manual_seed(0)
    parameters = [torch.randn(9, 3, dtype=dtype), torch.randn(50, dtype=dtype)]
    both = pair(parameters, lr=0.3, **arguments)
    gradients = [rows([1, 8, 1], torch.randn(3, 3, dtype=dtype) * size, (9, 3)), torch.randn(50, dtype=dtype)]
    gradients[1][::7] = 0
    for _ in range(2):
        give(both, gradients)
        for optimizer in both:
            optimizer.step()
        assert_alike(*both)


# ---- rows ----------------------------------------------------------------------------------------------------------


@case((40, 1), 60)
@case((40, 700), 12, name="wide", clipnorm=1.0)
@case((3, 4200), 4, name="over blocks of the norm", clipnorm=0.5)
@case((150, 33), 60, name="many to a block", global_clipnorm=0.5, loss_scale_factor=2.0)
@case((7, 2, 3), 12, name="three dimensions, row-wise", row_wise=True)
@case((64, 16), 40, name="all move", weight_decay=0.1, use_ema=True)
@case((64, 16), 40, name="row-wise, all move", row_wise=True, use_ema=True)
@case((9, 4), 0, name="no ids", weight_decay=0.1)
@case((9, 0), 4, name="no columns", clipnorm=1.0)
def tables(shape: tuple[int, ...], count: int, **arguments: Any) -> None:
    """Repeated ids, one of them often; rows of all widths."""
    torch.manual_seed(0)
    both = pair([torch.randn(shape)], lr=0.3, **arguments)
    for _ in range(2):
        ids = torch.randint(0, shape[0], (count,))
        ids[: count // 3] = 2
        give(both, [rows(ids, torch.randn(count, *shape[1:]), shape)])
        for optimizer in both:
            optimizer.step()
        assert_alike(*both)


@case(row_wise=False)
@case(name="row-wise", row_wise=True)
@case(name="accumulated", row_wise=False, gradient_accumulation_steps=2, clipnorm=0.4)
def entries(**arguments: Any) -> None:
    """Gradients with two sparse dimensions; a gradient of rows in the same cycle."""
    torch.manual_seed(0)
    both = pair([torch.randn(6, 5, 2)], lr=0.3, **arguments)
    for step in range(4):
        indices = torch.stack([torch.randint(0, 6, (14,)), torch.randint(0, 5, (14,))])
        indices[:, 4:7] = indices[:, :1]
        given = rows(indices, torch.randn(14, 2), (6, 5, 2))
        if step == 3:
            given = rows([3, 3, 1], torch.randn(3, 5, 2), (6, 5, 2))
        give(both, [given])
        for optimizer in both:
            optimizer.step()
        assert_alike(*both)


@case()
def ids_outside() -> None:
    """They change nothing, or are refused where that is asked for, before anything has changed."""
    both = pair([torch.ones(4, 3)], lr=0.3)
    values = torch.ones(6, 3)
    give(both[:1], [rows([1, 4, -1, 2**40, -(2**33), 2**32 + 1], values, (4, 3))])
    both[0].step()
    give(both[1:], [rows([1], values[:1], (4, 3))])
    both[1].step()
    assert_alike(*both)
    both[0].check_ids = True
    before = both[0].param_groups[0]["params"][0].detach().clone()
    for wrong in (4, -1):
        give(both[:1], [rows([1, wrong], values[:2], (4, 3))])
        refused(both[0], ValueError, rf"indices of param_0 must be in \[0, 4\), got {wrong} at position 1")
    same(both[0].param_groups[0]["params"][0], before, "refused")


def refused(optimizer: Adagrad, kind: type[Exception], words: str) -> None:
    """A step raises, and has changed no counter."""
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(kind, match=words):
        optimizer.step()
    after = optimizer.state_dict()
    assert after["param_groups"][0]["calls"] == before["param_groups"][0]["calls"]
    assert all(torch.equal(after["state"][0][name], value) for name, value in before["state"][0].items())


@case()
def shared_memory() -> None:
    """Parameters that a launch would write twice."""
    memory = torch.ones(8)
    for wrong, words in (
        ([memory[:5], memory[4:]], "must not share memory, got param_0 and param_1"),
        ([memory.view(2, 4)[:, :3], memory.view(2, 4)[:, 2:]], "must not share memory, got param_0 and param_1"),
        ([torch.ones(1).expand(4)], "param_0 must not be an expanded view"),
    ):
        optimizer = OnKernels([torch.nn.Parameter(p) for p in wrong])
        for p in optimizer.param_groups[0]["params"]:
            p.grad = torch.ones(p.shape)
        refused(optimizer, ValueError, words)


@case()
def wrong_gradients() -> None:
    """What can't be a gradient is refused by name before anything changes."""
    optimizer = pair([torch.ones(4, 3)], lr=0.3)[0]
    p = optimizer.param_groups[0]["params"][0]
    p.grad = torch.ones(4, 3)
    optimizer.step()
    p.grad.data = torch.ones(3, 4)  # PyTorch looks at an assignment only
    refused(optimizer, ValueError, r"gradient of param_0 must have its shape \(4, 3\), got \(3, 4\)")
    p.grad = None
    p.grad = rows([0], torch.ones(1, 3), (4, 3))
    p.grad.data = rows([[0], [0]], torch.ones(1), (5, 3))
    refused(optimizer, ValueError, "must have its shape")


# ---- what the device decides -----------------------------------------------------------------------------------------


@case(None, False)
@case(None, True, name="by rows")
@case(2, False, name="accumulated")
@case(2, True, name="accumulated, by rows")
def skipped(steps: int | None, by_rows: bool) -> None:
    """A found_inf makes a call do nothing at all, counters and cycle included; the scale of the others changes."""
    torch.manual_seed(0)
    both = pair([torch.randn(6, 4), torch.randn(5)], lr=schedules.ExponentialDecay(0.5, 3, 0.5), use_ema=True, ema_momentum=0.5,
                gradient_accumulation_steps=steps)  # fmt: skip
    for step, bad in enumerate((0.0, 1.0, 0.0, 0.0, math.inf, math.nan, 0.0)):
        table = rows([1, 1, step % 6], torch.randn(3, 4), (6, 4)) if by_rows else torch.randn(6, 4)
        give(both, [table, torch.full((5,), math.nan) if bad else torch.randn(5)])
        amp(both, 2.0**step, bad)
        for optimizer in both:
            optimizer.step()
        assert_alike(*both, what=step)
        if step == 3:  # the counts come to the host and go on from there
            assert both[0].state_dict()["param_groups"][0]["calls"] == 3
    calls = [optimizer.state_dict()["param_groups"][0]["calls"] for optimizer in both]
    assert calls == [4, 4]
    amp(both, None, None)
    give(both, [torch.ones(6, 4), torch.ones(5)])
    for optimizer in both:
        optimizer.step()
    assert_alike(*both, what="known again")


@case()
def rates() -> None:
    """A tensor on the device that changes in place; as_torch's decay by each parameter's own steps; groups of their own."""
    torch.manual_seed(0)
    parameters = [torch.randn(7), torch.randn(3, 2), torch.randn(4)]
    rate = torch.tensor(0.25)
    groups = [{"lr": rate}, {"lr": 0.1, "clipnorm": 0.5, "row_wise": True}, {"maximize": True, "weight_decay": 0.1, "eps": 0.5}]
    both = pair(parameters, groups, lr=0.3)
    for step in range(3):
        rate.fill_(0.25 / (step + 1))
        give(both, [torch.randn(p.shape) for p in parameters])
        for optimizer in both:
            optimizer.step()
        assert_alike(*both)
    made = [cls.as_torch([torch.nn.Parameter(p.clone()) for p in parameters], lr=0.5, lr_decay=0.3, weight_decay=0.1)
            for cls in (OnKernels, Adagrad)]  # fmt: skip
    for step in range(4):
        give(made, [torch.randn(p.shape) if (step + k) % 3 else None for k, p in enumerate(parameters)])
        for optimizer in made:
            optimizer.step()
        assert_alike(*made)


@case()
def schedules_of_the_user() -> None:
    """A class of one's own is asked on the host, which the count of calls is brought back for."""

    class Own(schedules.LearningRateSchedule):
        def __call__(self, step: Any) -> float:
            return 1 / (1 + int(step))

    both = pair([torch.ones(5)], lr=Own())
    for bad in (0.0, 1.0, 0.0, 0.0):
        give(both, [torch.ones(5)])
        amp(both, None, bad)
        for optimizer in both:
            optimizer.step()
        assert_alike(*both)


# ---- memory ----------------------------------------------------------------------------------------------------------


@case()
def layouts() -> None:
    """Strided parameters and gradients; a gradient that is part of what the step writes."""
    torch.manual_seed(0)
    parameters = [torch.randn(5, 4).t(), torch.randn(6)]
    both = pair(parameters, lr=0.3, clipnorm=0.5)
    assert not both[0].param_groups[0]["params"][0].is_contiguous()
    for _ in range(2):
        give(both, [torch.randn(5, 4).t(), torch.randn(12)[::2]])
        for optimizer in both:
            optimizer.step()
        assert_alike(*both)
    for optimizer in both:
        p, q = optimizer.param_groups[0]["params"]
        p.grad, q.grad = None, optimizer.state[q]["sum"]
        optimizer.step()
    assert_alike(*both)


@case()
def saved_and_loaded() -> None:
    """In the middle of a cycle, from the kernels to the CPU's and back; a group that joins later."""
    torch.manual_seed(0)
    parameters = [torch.randn(6, 3, dtype=BF16), torch.randn(4, dtype=BF16)]
    arguments: Any = {"lr": 0.3, "gradient_accumulation_steps": 3, "use_ema": True, "ema_momentum": 0.5}
    both = pair(parameters, **arguments)
    for step in range(8):
        give(both, drawn(step, parameters))
        for optimizer in both:
            optimizer.step()
        assert_alike(*both, what=step)
        if step in (1, 4):
            content = [saved(optimizer.state_dict()) for optimizer in both]
            values = [p.detach().clone() for p in both[0].param_groups[0]["params"]]
            both = pair(values, **arguments)
            for optimizer, other in zip(both, content[::-1], strict=True):
                optimizer.load_state_dict(other)
        if step == 6:
            parameters = [*parameters, torch.ones(3, dtype=BF16)]
            for optimizer in both:
                optimizer.param_groups[0]["params"][0].grad = None
                optimizer.add_param_group({"params": [torch.nn.Parameter(parameters[2].clone())]})


@case()
def copied() -> None:
    """deepcopy, and a parameter moved to other memory."""
    both = pair([torch.ones(5)], lr=0.3)
    for turn in range(3):
        give(both, [torch.arange(5.0)])
        for optimizer in both:
            optimizer.step()
        assert_alike(*both)
        if turn == 0:
            both = copy.deepcopy(both)
        for optimizer in both:
            p = optimizer.param_groups[0]["params"][0]
            p.data = p.data.clone()
    version = both[0].param_groups[0]["params"][0]._version
    both[0].step()
    assert both[0].param_groups[0]["params"][0]._version > version


# ---- running them ----------------------------------------------------------------------------------------------------


def quicken() -> None:
    """Let the interpreter put its functions into `triton.language` once, not for every call of a function of a kernel."""
    from triton.runtime import interpreter

    patch, done = interpreter._patch_lang, set()

    class Stays:
        def restore(self) -> None:
            """It is left as it is: nothing is compiled in this process."""

    def once(function: Any) -> Stays:
        if id(function.__globals__) not in done:
            done.add(id(function.__globals__))
            patch(function)
        return Stays()

    interpreter._patch_lang = once


def main() -> None:
    """Run the cases, all or those that are named, and print the traceback of each that failed."""
    import adagrad.torch.cuda

    assert "triton" not in sys.modules, "importing the face imports Triton"
    assert adagrad.torch.cuda
    from adagrad.kernels import cuda_rows

    quicken()
    cuda_rows.UNROLL = 2  # takes the interpreter long; so few repetitions make several turns
    torch.set_num_threads(1)
    failures = {}
    with np.errstate(all="ignore"):  # the interpreter computes with NumPy
        for title, run in CASES.items():
            if len(sys.argv) < 2 or title in sys.argv[1:]:
                try:
                    run()
                except Exception:
                    failures[title] = traceback.format_exc()
                else:
                    failures[title] = ""
    print(json.dumps(failures))


if __name__ == "__main__":
    main()
