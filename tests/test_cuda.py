"""On a real GPU, where there is one: the CPU's bits, CUDA graphs, streams, and that no step waits for the device."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from adagrad import schedules
from adagrad.torch import Adagrad
from triton_cases import ARGUMENTS, BF16, F16, F32, F64, SHAPES, drawn, rows, same

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
    pytest.mark.skipif("tensorflow" in sys.modules, reason="Triton can't be imported beside TensorFlow"),
]


@pytest.fixture
def no_waiting() -> Iterator[Callable[[], Any]]:
    """From its call on, whatever waits for the device is an error."""
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


def both(parameters: list[torch.Tensor], **arguments: Any) -> tuple[Adagrad, Adagrad]:
    """An optimizer on the device and one in main memory, over equal parameters."""
    made = []
    for device in ("cuda", "cpu"):
        lr = arguments.get("lr")
        own = {**arguments, "lr": lr.to(device)} if isinstance(lr, torch.Tensor) else arguments
        made.append(Adagrad([torch.nn.Parameter(p.detach().clone().to(device)) for p in parameters], **own))
    return made[0], made[1]


def of(optimizer: Adagrad) -> list[torch.Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def give(optimizer: Adagrad, gradients: list[torch.Tensor | None]) -> None:
    for p, g in zip(of(optimizer), gradients, strict=True):
        p.grad = None if g is None else g.to(p.device, copy=True)


def assert_same(on_device: Adagrad, on_cpu: Adagrad, what: object = "") -> None:
    """All bits are those of the CPU, of parameters, states and counters."""
    for k, (p, q) in enumerate(zip(of(on_device), of(on_cpu), strict=True)):
        same(p.cpu(), q, f"parameter {k} {what}")
        for name in on_cpu.state[q].keys() - {"in_cycle"}:
            same(on_device.state[p][name].cpu(), on_cpu.state[q][name], f"{name} {k} {what}")


@pytest.mark.parametrize("dtype", [F32, F64, F16, BF16], ids=str)
@pytest.mark.parametrize("title", ARGUMENTS)
def test_every_argument_gives_the_bits_of_the_cpu(title: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    parameters = [torch.randn(shape).to(dtype) for shape in (*SHAPES, (5000, 64), (100_003,), (128, 128))]
    device, cpu = both(parameters, **{"lr": 0.3, **ARGUMENTS[title]})
    for step in range(7):
        gradients = drawn(step, parameters)
        for optimizer in (device, cpu):
            give(optimizer, gradients)
            optimizer.step()
        assert_same(device, cpu, step)
    for optimizer in (device, cpu):
        optimizer.finalize()
    assert_same(device, cpu, "finalized")


def test_many_ids_on_a_large_table() -> None:
    torch.manual_seed(0)
    device, cpu = both([torch.randn(50_000, 64)], lr=0.3, clipnorm=5.0)
    for _ in range(3):
        ids = (torch.rand(8192) ** 4 * 50_000).long()
        ids[:1500] = 7
        gradient = rows(ids, torch.randn(8192, 64), (50_000, 64))
        for optimizer in (device, cpu):
            give(optimizer, [gradient])
            optimizer.step()
        assert_same(device, cpu)


def test_offsets_beyond_32_bits() -> None:
    """The last rows of a table of more than 2**32 elements, by rows and dense."""
    count = 2**32 // 64 + 100
    if torch.cuda.mem_get_info()[0] < 3.5 * count * 64 * 4:
        pytest.skip("needs 60 GB of the device's memory")
    table = torch.nn.Parameter(torch.zeros(count, 64, device="cuda"))
    optimizer = Adagrad([table], lr=1.0, initial_accumulator_value=0.0, eps=0.0)
    table.grad = rows([[count - 1, 5]], torch.ones(2, 64), (count, 64)).cuda()
    optimizer.step()
    assert table[count - 1].eq(-1).all()
    assert table.detach().sum() == -128
    table.grad = torch.zeros_like(table)
    table.grad[count - 1] = -2.0
    optimizer.step()
    assert table[count - 1].ne(-1).all()
    assert table[5].eq(-1).all()


@pytest.mark.parametrize(
    "title", ["defaults", "global_clipnorm", "ema", "accumulation", "everything", "row_wise", "weight_decay"]
)
def test_a_step_does_not_wait(title: str, no_waiting: Callable[[], Any]) -> None:
    torch.manual_seed(0)
    parameters = [torch.randn(shape) for shape in ((500, 8), (17,), (33, 3))]
    device, _ = both(parameters, **{"lr": 0.3, **ARGUMENTS[title]})
    gradients = [[None if g is None else g.cuda() for g in drawn(step, parameters)] for step in range(6)]
    device.step()
    no_waiting()
    for step, given in enumerate(gradients):
        for p, g in zip(of(device), given, strict=True):
            p.grad = g
        if step % 2:
            device.found_inf, device.grad_scale = torch.zeros((), device="cuda"), torch.ones((), device="cuda")
        device.step()


@pytest.mark.parametrize("by_rows", [False, True])
@pytest.mark.parametrize("title", ["defaults", "global_clipnorm", "accumulation", "everything", "row_wise"])
def test_captured_in_a_graph(title: str, by_rows: bool) -> None:
    """Replayed with other gradients and a rate that changes in place, the graph gives the bits of the CPU."""
    torch.manual_seed(0)
    parameters = [torch.randn(40, 8), torch.randn(1025)]
    arguments = {key: value for key, value in ARGUMENTS[title].items() if key != "lr"}
    device, cpu = both(parameters, lr=torch.tensor(0.3), **arguments)

    def drawn_again() -> list[torch.Tensor | None]:
        table = rows(torch.randint(0, 40, (9,)), torch.randn(9, 8), (40, 8)) if by_rows else torch.randn(40, 8)
        return [table, torch.randn(1025)]

    first = drawn_again()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # PyTorch's way: a few steps beside it before the capture
        for optimizer in (device, cpu):
            give(optimizer, first)
            optimizer.step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        device.step()
    for turn in range(6):
        gradients = drawn_again()
        for p, g in zip(of(device), gradients, strict=True):
            if g.layout is torch.sparse_coo:
                p.grad._indices().copy_(g._indices())
                p.grad._values().copy_(g._values())
            else:
                p.grad.copy_(g)
        for optimizer in (device, cpu):
            optimizer.param_groups[0]["lr"].fill_(0.3 / (turn + 1))
        graph.replay()
        give(cpu, gradients)
        cpu.step()
        assert_same(device, cpu, turn)
    counts = [optimizer.state_dict()["param_groups"][0]["calls"] for optimizer in (device, cpu)]
    assert counts[0] == counts[1] == 7


def test_a_schedule_in_a_graph() -> None:
    device, cpu = both([torch.ones(100)], lr=schedules.CosineDecayRestarts(0.5, 3, t_mul=2.0))
    for optimizer in (device, cpu):
        give(optimizer, [torch.ones(100)])
        optimizer.step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        device.step()
    for _ in range(12):
        graph.replay()
        cpu.step()
        torch.testing.assert_close(of(device)[0].cpu(), of(cpu)[0], rtol=1e-6, atol=0)


def test_the_first_step_is_not_captured() -> None:
    device, _ = both([torch.ones(100)], lr=0.1)
    give(device, [torch.ones(100)])
    with (
        pytest.raises(RuntimeError, match="must have made a step before one is captured"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        device.step()


def test_streams_of_the_user() -> None:
    torch.manual_seed(0)
    device, cpu = both([torch.randn(1000, 64)], lr=0.3)
    streams = [torch.cuda.Stream() for _ in range(3)]
    for turn in range(9):
        gradient = torch.randn(1000, 64)
        stream = streams[turn % 3]
        stream.wait_stream(streams[(turn - 1) % 3])
        with torch.cuda.stream(stream):
            give(device, [gradient])
            device.step()
        give(cpu, [gradient])
        cpu.step()
    torch.cuda.synchronize()
    assert_same(device, cpu)


def test_grad_scaler() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 1)).cuda()
    optimizer = Adagrad(model.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**40)  # so large that the first steps are skipped
    x = torch.randn(256, 64, device="cuda")
    before = [p.detach().clone() for p in model.parameters()]
    for turn in range(40):
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.float16):
            loss = (model(x) - x[:, :1]).square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        if turn == 0:
            assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    calls = optimizer.state_dict()["param_groups"][0]["calls"]
    assert 0 < calls < 40
    assert all(int(state["step"]) == calls for state in optimizer.state.values())
    assert all(p.isfinite().all() for p in model.parameters())


def test_state_moves_between_device_and_main_memory() -> None:
    torch.manual_seed(0)
    parameters = [torch.randn(30, 4), torch.randn(9)]
    device, cpu = both(parameters, lr=0.3, gradient_accumulation_steps=2, use_ema=True)
    for step in range(3):
        for optimizer in (device, cpu):
            give(optimizer, drawn(step, parameters))
            optimizer.step()
    crossed = both([p.detach() for p in of(cpu)], lr=0.3, gradient_accumulation_steps=2, use_ema=True)
    crossed[0].load_state_dict(copy.deepcopy(cpu.state_dict()))
    crossed[1].load_state_dict(copy.deepcopy(device.state_dict()))
    for optimizer in crossed:
        give(optimizer, drawn(5, parameters))
        optimizer.step()
    assert_same(*crossed)


def test_against_torch_fused() -> None:
    """`as_torch` beside the peer on the device: a few units in the last place, since the peer contracts."""
    torch.manual_seed(0)
    start = torch.randn(10_000, device="cuda")
    p, q = (torch.nn.Parameter(start.clone()) for _ in range(2))
    ours, theirs = Adagrad.as_torch([p], lr=0.1), torch.optim.Adagrad([q], lr=0.1, fused=True)
    for _ in range(20):
        p.grad = torch.randn_like(p)
        q.grad = p.grad.clone()
        ours.step()
        theirs.step()
    torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.state[p]["sum"], theirs.state[q]["sum"], rtol=1e-5, atol=1e-6)
    assert ours.state[p]["step"] == 20
