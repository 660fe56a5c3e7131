"""What the processes of test_torch_distributed.py run: ``python distributed_workers.py RANK FOLDER``.

Three processes go through the phases together, in worlds of 1, 2, 3 and again 1 of them. A case compares what the world
did with the run of one process on everything, which each process also makes for itself. ``FOLDER/RANK.jsonl`` gets a
line for each case that went through, and the traceback of the first that didn't, which ends the process.
"""

from __future__ import annotations

import datetime
import functools
import itertools
import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from adagrad import schedules
from adagrad.torch import Adagrad

# The worlds in order: a name, and how many processes there are.
PHASES = {"one": 1, "two": 2, "three": 3, "one again": 1}
CASES: dict[str, tuple[tuple[str, ...], Callable[[World], None]]] = {}

# A norm over shards is added up in another order than that of one process: the last bit of its double may differ, and
# with it, rarely, the last bit of a float32 factor.
TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-6, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}


class World:
    """The processes of a phase: their mesh, or None for a process alone."""

    def __init__(self, phase: str, rank: int, folder: Path) -> None:
        self.phase, self.rank, self.size, self.folder = phase, rank, PHASES[phase], folder
        self.mesh: DeviceMesh | None = None
        if self.size > 1:
            method = f"file://{folder}/store-{self.size}"
            limit = datetime.timedelta(seconds=200)
            dist.init_process_group("gloo", init_method=method, rank=rank, world_size=self.size, timeout=limit)
            self.mesh = init_device_mesh("cpu", (self.size,))

    def close(self) -> None:
        if self.mesh is not None:
            dist.barrier()
            dist.destroy_process_group()


def case(*phases: str) -> Callable[[Callable[[World], None]], Callable[[World], None]]:
    def register(function: Callable[[World], None]) -> Callable[[World], None]:
        CASES[function.__name__] = phases, function
        return function

    return register


# -- tools -------------------------------------------------------------------------------------------------------------


def numbers(seed: int, shape: tuple[int, ...], dtype: torch.dtype = torch.float32, scale: float = 1.0) -> torch.Tensor:
    """The same on every process."""
    made = torch.randn(shape, dtype=dtype if dtype.is_complex else torch.float64, generator=torch.Generator().manual_seed(seed))
    return (made * scale).to(dtype)


def laid(full: torch.Tensor, placement: Placement | None, mesh: DeviceMesh | None) -> torch.Tensor:
    """``full`` laid out over the mesh; a plain tensor without a placement."""
    return full.clone() if placement is None or mesh is None else distribute_tensor(full.clone(), mesh, [placement])


def full(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def assert_same(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float, what: str) -> None:
    torch.testing.assert_close(
        full(ours), full(theirs), rtol=tolerance, atol=tolerance, equal_nan=True, msg=lambda text: f"{what}: {text}"
    )


def assert_same_on_all(tensor: torch.Tensor, world: World) -> None:
    copies = [torch.empty_like(tensor) for _ in range(world.size)]
    dist.all_gather(copies, tensor.detach().contiguous())
    assert all(torch.equal(copy, tensor) for copy in copies)


class Run:
    """An optimizer and its parameters, over a mesh or (``mesh=None``) on one process."""

    def __init__(
        self, parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer, module: nn.Module | None = None
    ) -> None:
        self.parameters, self.optimizer, self.module = parameters, optimizer, module

    def step(self, gradients: list[torch.Tensor | None]) -> None:
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            if isinstance(parameter, DTensor) and gradient is not None:
                gradient = distribute_tensor(gradient.clone(), parameter.device_mesh, parameter.placements)
            parameter.grad = None if gradient is None else gradient.clone()
        self.optimizer.step()

    def assert_like(self, other: Run, tolerance: float | None, what: str) -> None:
        """Parameters and states are those of ``other``; bit for bit with a tolerance of 0, None for each dtype's own."""
        for k, (parameter, theirs) in enumerate(zip(self.parameters, other.parameters, strict=True)):
            assert_same(parameter, theirs, bound(parameter, tolerance), f"{what}, parameter {k}")
            state, their_state = self.optimizer.state[parameter], other.optimizer.state[theirs]
            assert state.keys() >= their_state.keys() - {"in_cycle"}
            for name in (name for name in their_state if name != "in_cycle"):  # which is noted when a state dict is made
                value = state[name]
                assert value.dtype == their_state[name].dtype, (what, name)
                assert_same(value, their_state[name], bound(value, tolerance), f"{what}, {name} of parameter {k}")
        for group, theirs_ in zip(self.optimizer.param_groups, other.optimizer.param_groups, strict=True):
            assert {n: v for n, v in group.items() if n != "params"} == {n: v for n, v in theirs_.items() if n != "params"}


def bound(tensor: torch.Tensor, tolerance: float | None) -> float:
    return TOLERANCE.get(tensor.dtype, 0.0) if tolerance is None else tolerance


# Odd sizes; with two processes and with three some have nothing of a parameter.
ROWS: list[tuple[tuple[int, ...], Placement | None]] = [
    ((7, 3), Shard(0)), ((1, 4), Shard(0)), ((4,), Shard(0)), ((5, 2, 3), Shard(0)), ((6, 2), Replicate()), ((3, 2), None),
    ((), Replicate()), ((), None),
]  # fmt: skip
LAYOUTS = [*ROWS, ((3, 5), Shard(1)), ((3, 1), Shard(1)), ((2, 2, 3), Shard(2))]


def train(
    make: Callable[..., torch.optim.Optimizer],
    mesh: DeviceMesh | None,
    layouts: list[tuple[tuple[int, ...], Placement | None]],
    dtype: torch.dtype,
    calls: int = 6,
    scale: float = 1.0,
) -> Run:
    """Some calls with made-up gradients, some of which are missing, and all of them in one call."""
    values = [laid(numbers(k, shape, dtype), placement, mesh) for k, (shape, placement) in enumerate(layouts)]
    parameters = [nn.Parameter(value) for value in values]
    run = Run(parameters, make(parameters))
    for call in range(calls):
        run.step(gradients_of(call, [shape for shape, _ in layouts], dtype, scale))
    return run


def gradients_of(call: int, shapes: list[tuple[int, ...]], dtype: torch.dtype, scale: float = 1.0) -> list[torch.Tensor | None]:
    some = [numbers(100 * (call + 1) + k, shape, dtype, scale) for k, shape in enumerate(shapes)]
    return [None if call == 3 or (call + k) % 5 == 1 else gradient for k, gradient in enumerate(some)]


def compare(
    world: World, what: str, options: dict[str, Any], dtype: torch.dtype = torch.float32, tolerance: float | None = 0.0,
    layouts: list[tuple[tuple[int, ...], Placement | None]] = LAYOUTS, make: Any = Adagrad, scale: float = 1.0,
) -> Run:  # fmt: skip
    """Train over the mesh and alone, and compare; the run over the mesh."""
    optimizer = functools.partial(make, **{"lr": 0.1, **options})
    ours, theirs = (train(optimizer, mesh, layouts, dtype, scale=scale) for mesh in (world.mesh, None))
    ours.assert_like(theirs, tolerance, f"{what}, {dtype}")
    return ours


EVERYTHING = {
    "lr": schedules.ExponentialDecay(0.5, 2, 0.7), "weight_decay": 0.1, "use_ema": True, "ema_momentum": 0.8,
    "ema_overwrite_frequency": 2, "gradient_accumulation_steps": 2, "loss_scale_factor": 4.0, "maximize": True,
}  # fmt: skip


# -- DTensor parameters ------------------------------------------------------------------------------------------------


@case("two", "three")
def shards_step_as_the_whole_does_bit_for_bit(world: World) -> None:
    compare(world, "defaults", {})
    compare(world, "decay", {"weight_decay": 0.1})
    compare(world, "clipvalue", {"clipvalue": 0.5})
    compare(world, "L2, outside, climbing", {"weight_decay": 0.1, "weight_decay_mode": "l2", "epsilon_placement": "outside", "maximize": True})  # fmt: skip
    compare(world, "averages", {"use_ema": True, "ema_momentum": 0.9, "ema_overwrite_frequency": 2})
    compare(world, "accumulation", {"gradient_accumulation_steps": 3})
    compare(world, "as_torch", {"lr_decay": 0.1, "weight_decay": 0.1}, make=Adagrad.as_torch)
    compare(world, "row-wise", {"row_wise": True, "weight_decay": 0.1}, layouts=ROWS)
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64):
        compare(world, "everything", EVERYTHING | ({} if dtype.is_complex else {"clipvalue": 0.5}), dtype)


@case("two", "three")
def norms_are_those_of_all_shards(world: World) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        compare(world, "clipnorm", {"clipnorm": 0.5}, dtype, None)
        compare(world, "global_clipnorm", {"global_clipnorm": 0.5}, dtype, None)
    compare(world, "everything", EVERYTHING | {"global_clipnorm": 0.5}, torch.float32, None)
    compare(world, "everything", EVERYTHING | {"clipnorm": 0.5}, torch.float32, None)
    compare(world, "row-wise", {"row_wise": True, "global_clipnorm": 0.5}, torch.float32, None, ROWS)
    compare(world, "complex", {"clipnorm": 0.5}, torch.complex64, 1e-6)
    # Squares that overflow or vanish are summed again, on every process.
    for scale in (1e200, 1e-200):
        compare(world, f"gradients about {scale}", {"clipnorm": scale / 2, "lr": 1.0}, torch.float64, None, scale=scale)
        compare(world, f"gradients about {scale}", {"global_clipnorm": scale / 2}, torch.float64, None, scale=scale)


@case("two", "three")
def a_norm_that_is_not_finite_reaches_every_process(world: World) -> None:
    bad = numbers(5, (7, 3))
    bad[0, 0] = torch.inf
    for option in ({"clipnorm": 1.0}, {"global_clipnorm": 1.0}):
        runs = []
        for mesh in (world.mesh, None):
            values = [laid(numbers(1, (7, 3)), Shard(0), mesh), laid(numbers(2, (3,)), Replicate(), mesh), numbers(3, (2,))]
            parameters = [nn.Parameter(value) for value in values]
            runs.append(Run(parameters, Adagrad(parameters, **option)))
            runs[-1].step([bad, numbers(6, (3,)), numbers(7, (2,))])
        runs[0].assert_like(runs[1], None, str(option))
        assert full(runs[0].parameters[0]).isnan().all()


@case("two", "three")
def state_is_laid_out_as_its_parameter(world: World) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        values = [laid(numbers(k, shape, dtype), placement, world.mesh) for k, (shape, placement) in enumerate(LAYOUTS)]
        parameters = [nn.Parameter(value) for value in values]
        optimizer = Adagrad(parameters, use_ema=True, gradient_accumulation_steps=2)
        for parameter, (_, placement) in zip(parameters, LAYOUTS, strict=True):
            state = optimizer.state[parameter]
            assert state["step"].dtype == torch.int64
            for name in ("sum", "ema", "gradient_accumulator"):
                assert state[name].dtype == torch.float32
                assert state[name].shape == parameter.shape
                assert isinstance(state[name], DTensor) == (placement is not None)
                if placement is not None:
                    assert state[name].placements == parameter.placements
                    assert state[name].device_mesh == parameter.device_mesh
                    assert state[name].to_local().shape == parameter.to_local().shape
    rows = nn.Parameter(laid(numbers(1, (7, 3)), Shard(0), world.mesh))
    accumulator = Adagrad([rows], row_wise=True).state[rows]["sum"]
    assert accumulator.placements == rows.placements
    assert accumulator.shape == (7,)
    assert accumulator.to_local().shape == rows.to_local().shape[:1]


@case("two", "three")
def row_wise_needs_whole_rows(world: World) -> None:
    columns = nn.Parameter(laid(numbers(1, (3, 6)), Shard(1), world.mesh))
    with raises(ValueError, "row_wise needs whole rows"):
        Adagrad([columns], row_wise=True)


class raises:  # noqa: N801
    """As ``pytest.raises``, which these processes do without."""

    def __init__(self, kind: type[Exception], text: str) -> None:
        self.kind, self.text = kind, text

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: Any, _: Any) -> bool:
        assert kind is not None, f"no {self.kind.__name__} was raised"
        if not issubclass(kind, self.kind):
            return False
        assert self.text in str(error), str(error)
        return True


@case("two", "three")
def gradients_come_in_any_layout(world: World) -> None:
    """A replicated weight with a sharded input has a gradient that is only the sum of what the processes have of it."""
    inputs, start = numbers(1, (2 * world.size, 3)), numbers(2, (3, 4))
    runs = []
    for mesh in (world.mesh, None):
        weight = nn.Parameter(laid(start, Replicate(), mesh))
        run = Run([weight], Adagrad([weight], lr=0.1, clipnorm=0.5))
        (laid(inputs, Shard(0), mesh) @ weight).square().sum().backward()
        if mesh is not None:
            assert isinstance(weight.grad, DTensor)
            assert weight.grad.placements == (Partial(),)
        run.optimizer.step()
        runs.append(run)
    runs[0].assert_like(runs[1], 1e-6, "a partial gradient")

    assert world.mesh is not None
    gradient = numbers(3, (3, 4))
    alone = nn.Parameter(start.clone())
    expected = Run([alone], Adagrad([alone], lr=0.1))
    expected.step([gradient])
    for placement, other in itertools.permutations((Shard(0), Shard(1), Replicate()), 2):
        weight = nn.Parameter(laid(start, placement, world.mesh))
        run = Run([weight], Adagrad([weight], lr=0.1))
        weight.grad = laid(gradient, other, world.mesh)
        run.optimizer.step()
        run.assert_like(expected, 0.0, f"{other} for {placement}")


@case("two", "three")
def averages_and_back(world: World) -> None:
    runs = []
    for mesh in (world.mesh, None):
        run = train(functools.partial(Adagrad, lr=0.3, use_ema=True, ema_momentum=0.5), mesh, LAYOUTS, torch.bfloat16)
        before = [full(parameter).clone() for parameter in run.parameters]
        with run.optimizer.averaged():
            inside = [full(parameter).clone() for parameter in run.parameters]
        for value, parameter in zip(before, run.parameters, strict=True):
            assert_same(parameter, value, 0.0, "after averaged()")
        run.optimizer.finalize()
        for value, parameter in zip(inside, run.parameters, strict=True):
            assert_same(parameter, value, 0.0, "after finalize()")
        runs.append(run)
    runs[0].assert_like(runs[1], 0.0, "averages")


@case("two", "three")
def a_mesh_may_have_dimensions_of_replicas(world: World) -> None:
    mesh = init_device_mesh("cpu", (1, world.size), mesh_dim_names=("replicas", "shards"))
    start, gradient = numbers(1, (7, 3)), numbers(2, (7, 3))
    alone, flat = nn.Parameter(start.clone()), nn.Parameter(numbers(3, (4,)))
    expected = Run([alone, flat], Adagrad([alone, flat], global_clipnorm=0.1))
    both = nn.Parameter(distribute_tensor(start, mesh, [Replicate(), Shard(0)]))
    other = nn.Parameter(distribute_tensor(numbers(3, (4,)), mesh["shards"], [Shard(0)]))
    run = Run([both, other], Adagrad([both, other], global_clipnorm=0.1))
    for each in (expected, run):
        each.step([gradient, numbers(4, (4,))])
    run.assert_like(expected, 1e-6, "two meshes")


# -- models ------------------------------------------------------------------------------------------------------------


class Model(nn.Module):
    """Odd sizes, ids that repeat, and a bias of one number, of which only one process has any."""

    def __init__(self, sparse: bool = False, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 5, sparse=sparse)
        self.hidden = nn.Linear(5, 7)
        self.out = nn.Linear(7, 1)
        for k, parameter in enumerate(self.parameters()):
            parameter.data = numbers(k, tuple(parameter.shape), scale=0.5)
        self.to(dtype)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.out(torch.tanh(self.hidden(self.table(ids)))).squeeze(-1)


def batch(call: int) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(0, 8, (12,), generator=torch.Generator().manual_seed(call))
    return ids, numbers(500 + call, (12,))


def part(whole: torch.Tensor, world: World) -> torch.Tensor:
    return whole.chunk(world.size)[world.rank]


def loss_of(model: nn.Module, ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return (model(ids) - targets.to(next(model.parameters()).dtype)).square().mean()


MODEL_OPTIONS: list[dict[str, Any]] = [
    {},
    {"clipnorm": 0.1, "weight_decay": 0.01},
    {"global_clipnorm": 0.1},
    EVERYTHING | {"global_clipnorm": 0.1, "maximize": False},
]


def whole_batch(options: dict[str, Any], sparse: bool, calls: int, dtype: torch.dtype = torch.float32) -> Run:
    model = Model(sparse, dtype)
    run = Run(list(model.parameters()), Adagrad(model.parameters(), **{"lr": 0.1, **options}), model)
    for call in range(calls):
        run.optimizer.zero_grad()
        loss_of(model, *batch(call)).backward()
        run.optimizer.step()
    return run


def ddp(world: World, sparse: bool) -> None:
    for options in MODEL_OPTIONS:
        model = DistributedDataParallel(Model(sparse))
        run = Run(list(model.parameters()), Adagrad(model.parameters(), **{"lr": 0.1, **options}))
        # Beside it, one with the very gradients that come out of DDP: the same bits.
        twins = [nn.Parameter(parameter.detach().clone()) for parameter in run.parameters]
        twin = Run(twins, Adagrad(twins, **{"lr": 0.1, **options}))
        for call in range(4):
            run.optimizer.zero_grad()
            loss_of(model, *(part(whole, world) for whole in batch(call))).backward()
            assert run.parameters[0].grad is not None
            assert run.parameters[0].grad.is_sparse == sparse
            twin.step([None if p.grad is None else p.grad.to_dense() for p in run.parameters])
            run.optimizer.step()
        run.assert_like(whole_batch(options, sparse, 4), 1e-5, f"DDP {options}")
        run.assert_like(twin, 0.0 if "norm" not in str(options) else None, f"DDP {options}")
        for parameter in run.parameters:
            assert_same_on_all(parameter, world)


@case("two", "three")
def ddp_with_dense_gradients(world: World) -> None:
    ddp(world, sparse=False)


@case("two", "three")
def ddp_with_sparse_gradients(world: World) -> None:
    ddp(world, sparse=True)


def sharded(model: Model, world: World, **options: Any) -> Model:
    for module in (model.table, model.hidden, model.out):
        fully_shard(module, mesh=world.mesh, **options)
    return fully_shard(model, mesh=world.mesh, **options)


@case("two", "three")
def fsdp(world: World) -> None:
    for options, dtype in [*((options, torch.float32) for options in MODEL_OPTIONS), (EVERYTHING, torch.bfloat16)]:
        model = sharded(Model(dtype=dtype), world)
        run = Run(list(model.parameters()), Adagrad(model.parameters(), **{"lr": 0.1, **options}))
        assert any(parameter.to_local().numel() == 0 for parameter in run.parameters) or world.rank == 0
        for call in range(4):
            run.optimizer.zero_grad()
            loss_of(model, *(part(whole, world) for whole in batch(call))).backward()
            run.optimizer.step()
        tolerance = 1e-5 if dtype == torch.float32 else 0.1
        run.assert_like(whole_batch(options, False, 4, dtype), tolerance, f"FSDP {options}")
        for parameter in run.parameters:
            for name in ("sum", "ema"):
                if name in run.optimizer.state[parameter]:
                    value = run.optimizer.state[parameter][name]
                    assert value.dtype == torch.float32
                    assert value.placements == parameter.placements


@case("two", "three")
def fsdp_beside_a_parameter_that_is_not_sharded(world: World) -> None:
    for option in ({"clipnorm": 0.1}, {"global_clipnorm": 0.1}):
        model = Model()
        fully_shard(model, mesh=world.mesh, ignored_params={model.out.weight})
        assert not isinstance(model.out.weight, DTensor)
        run = Run(list(model.parameters()), Adagrad(model.parameters(), lr=0.1, **option))
        for call in range(3):
            run.optimizer.zero_grad()
            loss_of(model, *(part(whole, world) for whole in batch(call))).backward()
            assert model.out.weight.grad is not None
            dist.all_reduce(model.out.weight.grad)
            model.out.weight.grad /= world.size
            run.optimizer.step()
        run.assert_like(whole_batch(option, False, 3), 1e-5, f"FSDP with a plain parameter, {option}")
        assert_same_on_all(model.out.weight, world)


@case("two", "three")
def fsdp_from_the_meta_device(world: World) -> None:
    """The optimizer may be made before there is any memory."""
    with torch.device("meta"):
        model = Model.__new__(Model)
        nn.Module.__init__(model)
        model.table, model.hidden, model.out = nn.Embedding(11, 5), nn.Linear(5, 7), nn.Linear(7, 1)
    sharded(model, world)
    optimizer = Adagrad(model.parameters(), lr=0.1, use_ema=True, global_clipnorm=0.1)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for k, parameter in enumerate(model.parameters()):
            value = numbers(k, tuple(parameter.shape), scale=0.5)
            parameter.copy_(distribute_tensor(value, parameter.device_mesh, parameter.placements))
    for call in range(3):
        optimizer.zero_grad()
        loss_of(model, *(part(whole, world) for whole in batch(call))).backward()
        optimizer.step()
    run = Run(list(model.parameters()), optimizer)
    run.assert_like(whole_batch({"use_ema": True, "global_clipnorm": 0.1}, False, 3), 1e-5, "meta")


@case("two", "three")
def a_scaler_skips_the_step_of_all_shards(world: World) -> None:
    model = sharded(Model(), world)
    run = Run(list(model.parameters()), Adagrad(model.parameters(), lr=0.1))
    plain = sharded(Model(), world)
    expected = Run(list(plain.parameters()), Adagrad(plain.parameters(), lr=0.1))
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for call in range(3):
        for each in (run, expected):
            each.optimizer.zero_grad()
        ids, targets = (part(whole, world) for whole in batch(call))
        scaler.scale(loss_of(model, ids, targets)).backward()
        if call == 1:  # in a shard of the first process alone
            if world.rank == 0:
                model.hidden.weight.grad.to_local()[0, 0] = torch.inf
        else:
            loss_of(plain, ids, targets).backward()
            expected.optimizer.step()
        scaler.step(run.optimizer)
        scaler.update()
    for ours, theirs in zip(run.parameters, expected.parameters, strict=True):
        assert_same(ours, theirs, 1e-6, "GradScaler")
        assert int(run.optimizer.state[ours]["step"]) == 2
    assert scaler.get_scale() == 4.0


# -- checkpoints -------------------------------------------------------------------------------------------------------


def checkpoint_options() -> dict[str, tuple[dict[str, Any], torch.dtype]]:
    return {
        "bfloat16 and all but norms": (EVERYTHING, torch.bfloat16),
        "a norm": ({"global_clipnorm": 0.5, "use_ema": True}, torch.float32),
        "row-wise": ({"row_wise": True}, torch.float32),
    }


def model_run(world: World, options: dict[str, Any], dtype: torch.dtype, mesh: DeviceMesh | None, seed: int = 0) -> Run:
    """Two groups with different rates; with another ``seed``, other values, which a checkpoint must replace."""
    model = Model(dtype=dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(seed)
    if mesh is not None:
        sharded(model, world)
    first, rest = [model.table.weight], [*model.hidden.parameters(), *model.out.parameters()]
    rate = options.get("lr", 0.1)
    groups = [{"params": first, "lr": 0.7, "eps": 1e-5}, {"params": rest, "lr": rate}]
    return Run([*first, *rest], Adagrad(groups, **options), model)


def go(run: Run, calls: range) -> None:
    for call in calls:
        run.step(gradients_of(call, [tuple(p.shape) for p in run.parameters], run.parameters[0].dtype))


def stored(run: Run, options: StateDictOptions | None = None) -> dict[str, Any]:
    assert run.module is not None
    return {
        "model": get_model_state_dict(run.module, options=options),
        "optimizer": get_optimizer_state_dict(run.module, run.optimizer, options=options),
    }


def restore(run: Run, state: dict[str, Any], options: StateDictOptions | None = None) -> None:
    assert run.module is not None
    set_model_state_dict(run.module, state["model"], options=options)
    set_optimizer_state_dict(run.module, run.optimizer, state["optimizer"], options=options)


@case("one", "two")
def checkpoints_are_written(world: World) -> None:
    for flat in (False, True):
        kind = StateDictOptions(flatten_optimizer_state_dict=flat)
        for name, (options, dtype) in checkpoint_options().items():
            run = model_run(world, options, dtype, world.mesh)
            go(run, range(5))
            dcp.save(stored(run, kind), checkpoint_id=world.folder / f"{world.size}-{flat}-{name}")


def continue_from(world: World, writers: int) -> None:
    for flat in (False, True):
        kind = StateDictOptions(flatten_optimizer_state_dict=flat)
        for name, (options, dtype) in checkpoint_options().items():
            tolerance = None if "norm" in name else 0.0
            expected = model_run(world, options, dtype, None)
            go(expected, range(5))
            run = model_run(world, options, dtype, world.mesh, seed=3)
            state = stored(run, kind)
            dcp.load(state, checkpoint_id=world.folder / f"{writers}-{flat}-{name}", no_dist=world.mesh is None)
            restore(run, state, kind)
            what = f"{name} from {writers} to {world.size}"
            run.assert_like(expected, tolerance, what)
            for parameter in run.parameters:
                assert run.optimizer.state[parameter]["sum"].dtype == torch.float32
                assert run.optimizer.state[parameter]["step"].dtype == torch.int64
            for each in (run, expected):
                go(each, range(5, 10))
            run.assert_like(expected, tolerance, f"{what}, continued")


@case("two")
def checkpoints_of_one_go_on_with_two(world: World) -> None:
    continue_from(world, 1)


@case("three")
def checkpoints_of_two_go_on_with_three(world: World) -> None:
    continue_from(world, 2)


@case("one again")
def checkpoints_of_two_go_on_with_one(world: World) -> None:
    continue_from(world, 2)


@case("two", "three")
def full_state_is_gathered_and_handed_out(world: World) -> None:
    """A state dict of whole tensors on the first process, and from there to all."""
    gather = StateDictOptions(full_state_dict=True, cpu_offload=True)
    scatter = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    for name, (options, dtype) in checkpoint_options().items():
        run = model_run(world, options, dtype, world.mesh)
        go(run, range(5))
        state = stored(run, gather)
        if world.rank == 0:
            torch.save(state, world.folder / "full.pt")
            state = torch.load(world.folder / "full.pt", weights_only=True)
            assert not any(isinstance(value, DTensor) for value in state["optimizer"]["state"]["table.weight"].values())
            alone = model_run(world, options, dtype, None, seed=3)
            restore(alone, state)
        other = model_run(world, options, dtype, world.mesh, seed=3)
        restore(other, state if world.rank == 0 else {"model": {}, "optimizer": {}}, scatter)
        other.assert_like(run, 0.0, name)
        for each in (run, other):
            go(each, range(5, 8))
        other.assert_like(run, 0.0, f"{name}, continued")


@case("two", "three")
def state_dicts_of_shards_are_safe_to_load(world: World) -> None:
    path = world.folder / f"shards-{world.size}-{world.rank}.pt"
    for name, (options, dtype) in checkpoint_options().items():
        run = model_run(world, options, dtype, world.mesh)
        go(run, range(5))
        torch.save(run.optimizer.state_dict(), path)
        other = model_run(world, options, dtype, world.mesh)
        restored = torch.load(path, weights_only=True)
        # A mesh that came out of a file, in another program, isn't equal to that of the same processes here.
        restored["state"][0]["sum"].device_mesh._thread_id = -1
        other.optimizer.load_state_dict(restored)
        mesh = other.optimizer.state[other.parameters[0]]["sum"].device_mesh
        assert mesh == world.mesh
        for ours, theirs in zip(other.parameters, run.parameters, strict=True):
            with torch.no_grad():
                ours.copy_(theirs)
        for each in (run, other):
            go(each, range(5, 8))
        other.assert_like(run, 0.0, name)


@case("two", "three")
def state_of_another_layout_is_laid_out_anew_or_refused(world: World) -> None:
    gradients = [numbers(2, (5, 4)), numbers(3, (5, 4))]
    start = numbers(1, (5, 4))
    alone = nn.Parameter(start.clone())
    expected = Run([alone], Adagrad([alone]))
    expected.step(gradients[:1])
    single = expected.optimizer.state_dict()
    single = {**single, "state": {0: {name: value.clone() for name, value in single["state"][0].items()}}}
    expected.step(gradients[1:])
    for placement, other in itertools.permutations((Shard(0), Shard(1), Replicate()), 2):
        first = nn.Parameter(laid(start, placement, world.mesh))
        run = Run([first], Adagrad([first]))
        run.step(gradients[:1])
        second = nn.Parameter(laid(full(first), other, world.mesh))
        later = Run([second], Adagrad([second]))
        later.optimizer.load_state_dict(run.optimizer.state_dict())
        later.step(gradients[1:])
        later.assert_like(expected, 0.0, f"{placement} as {other}")
        assert later.optimizer.state[second]["sum"].placements == (other,)
        assert run.optimizer.state[first]["sum"].placements == (placement,)
    # Whole arrays for a sharded parameter: `set_optimizer_state_dict` deals them out, the plain way doesn't.
    run = Run([first], Adagrad([first]))
    with raises(ValueError, "must be a DTensor"):
        run.optimizer.load_state_dict(single)
    with raises(ValueError, "must be a plain tensor"):
        expected.optimizer.load_state_dict(later.optimizer.state_dict())
    expected.assert_like(later, 0.0, "after a state dict that was refused")


# -- the processes -----------------------------------------------------------------------------------------------------


def main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    with (folder / f"{rank}.jsonl").open("w") as report:
        for phase, size in PHASES.items():
            if rank >= size:
                continue
            name = "the start of the phase"
            try:
                world = World(phase, rank, folder)
                for name, (phases, function) in CASES.items():
                    if phase in phases:
                        function(world)
                        report.write(json.dumps([name, phase, None]) + "\n")
                        report.flush()
                world.close()
            except BaseException:
                report.write(json.dumps([name, phase, traceback.format_exc()]) + "\n")
                report.flush()
                os._exit(1)  # the others then find the connection closed


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
