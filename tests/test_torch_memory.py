"""Memory that users replace, move or share under `adagrad.torch.Adagrad`, and mixed precision."""

import multiprocessing

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

import adagrad.arrays.torch as arrays
from adagrad.torch import Adagrad
from torch_tools import assert_unchanged, coo, parameter, snapshot


def pair(**settings):
    """Two equal parameters with optimizers of their own, three steps old."""
    result = []
    for _ in range(2):
        p = parameter(np.linspace(-1, 1, 9, dtype=np.float32).reshape(3, 3))
        result.append((p, Adagrad([p], 0.5, **settings)))
    step(result, 3)
    return result


def step(pairs, calls=1):
    for call in range(calls):
        for p, optimizer in pairs:
            p.grad = torch.arange(9.0, dtype=p.dtype).reshape(3, 3) - call
            optimizer.step()


def assert_equal(pairs):
    (p, one), (q, other) = pairs
    assert torch.equal(p, q)
    for name in ("sum", "step", "ema", "gradient_accumulator"):
        assert (name in one.state[p]) == (name in other.state[q])
        assert name not in one.state[p] or torch.equal(one.state[p][name], other.state[q][name])


@pytest.mark.parametrize("settings", [{}, {"use_ema": True, "gradient_accumulation_steps": 2}, {"row_wise": True}], ids=str)
def test_replaced_memory_is_the_one_that_is_used(settings):
    pairs = pair(**settings)
    (p, optimizer), _ = pairs
    p.data = p.data.clone()
    step(pairs)
    assert_equal(pairs)
    p.data = torch.cat([p.data, p.data])[:3].t().contiguous().t()  # of other strides
    step(pairs, 2)
    assert_equal(pairs)
    for name, value in list(optimizer.state[p].items()):
        optimizer.state[p][name] = value.clone()
    step(pairs, 2)
    assert_equal(pairs)
    optimizer.state[p] = {name: value.clone() for name, value in optimizer.state[p].items()}
    step(pairs, 2)
    assert_equal(pairs)


def test_the_same_memory_in_other_strides():
    (p, _), (q, _) = pairs = pair()
    p.data = p.data.t()
    q.data = q.data.t().clone(memory_format=torch.preserve_format)
    step(pairs, 2)
    assert_equal(pairs)


def test_state_written_in_place_is_used():
    (p, optimizer), _ = pairs = pair()
    for variable, o in pairs:
        o.state[variable]["sum"].fill_(2.0)
        o.state[variable]["step"].fill_(7)
    step(pairs)
    assert optimizer.state[p]["step"] == 8
    fresh = parameter(np.linspace(-1, 1, 9, dtype=np.float32).reshape(3, 3))
    rule = Adagrad([fresh], 0.5, initial_accumulator_value=2.0)
    fresh.grad = torch.arange(9.0).reshape(3, 3)
    rule.step()
    assert torch.equal(optimizer.state[p]["sum"], rule.state[fresh]["sum"])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_a_model_whose_dtype_changes_keeps_its_state(dtype):
    (p, optimizer), _ = pair(use_ema=True)
    total, average = optimizer.state[p]["sum"].clone(), optimizer.state[p]["ema"].clone()
    p.grad = None
    p.data = p.data.to(dtype)
    p.grad = torch.ones(3, 3, dtype=dtype)
    optimizer.step()
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert optimizer.state[p]["sum"].dtype == optimizer.state[p]["ema"].dtype == wide
    assert torch.equal(optimizer.state[p]["sum"], total.to(wide) + 1)
    moved = 0.99 * average.to(wide) + (1 - 0.99) * p.detach().to(wide)
    torch.testing.assert_close(optimizer.state[p]["ema"], moved)


def test_a_shape_that_changes_starts_anew_before_the_first_step_and_is_refused_later():
    p = parameter(np.ones((2, 2), np.float32))
    optimizer = Adagrad([p])
    p.data = torch.ones(3)
    p.grad = torch.ones(3)
    optimizer.step()
    assert optimizer.state[p]["sum"].shape == (3,)
    p.grad = None
    p.data = torch.ones(4)
    p.grad = torch.ones(4)
    with pytest.raises(ValueError, match="shape"):
        optimizer.step()
    assert torch.equal(p, torch.ones(4))


@pytest.mark.parametrize("swap", [False, True])
def test_a_model_made_on_the_meta_device(swap):
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(swap)
    try:
        with torch.device("meta"):
            model = torch.nn.Linear(3, 2)
        optimizer = Adagrad(model.parameters(), 0.5, use_ema=True, initial_accumulator_value=0.5)
        assert optimizer.state[model.weight]["sum"].is_meta
        old = list(model.parameters())
        model.to_empty(device="cpu")
        if not swap:  # other parameters: given to the optimizer as PyTorch users do
            optimizer.param_groups[0]["params"] = list(model.parameters())
            for p in old:
                del optimizer.state[p]
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)
    twin = torch.nn.Linear(3, 2)
    model.load_state_dict(twin.state_dict())
    other = Adagrad(twin.parameters(), 0.5, use_ema=True, initial_accumulator_value=0.5)
    for _ in range(2):
        for m, o in ((model, optimizer), (twin, other)):
            o.zero_grad()
            m(torch.ones(4, 3)).square().sum().backward()
            o.step()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(p, q)
        assert optimizer.state[p]["sum"].device.type == "cpu"
        assert all(torch.equal(value, other.state[q][name]) for name, value in optimizer.state[p].items())


# ---- several processes -----------------------------------------------------------------------------------------------


def one_step(p, optimizer):
    p.grad = torch.ones(3, 3)
    optimizer.step()


@pytest.mark.parametrize("first", ["shared", "stepped"])
def test_share_memory(first):
    p = parameter(np.ones((3, 3), np.float32))
    optimizer = Adagrad([p], 0.5, use_ema=True)
    if first == "stepped":
        one_step(p, optimizer)
    p.share_memory_()
    optimizer.share_memory()
    total, value = optimizer.state[p]["sum"].clone(), p.detach().clone()
    process = multiprocessing.get_context("fork").Process(target=one_step, args=(p, optimizer))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert torch.equal(optimizer.state[p]["sum"], total + 1)  # what the child did
    assert (p < value).all()
    one_step(p, optimizer)
    assert torch.equal(optimizer.state[p]["sum"], total + 1 + 1)
    assert optimizer.state[p]["sum"].is_shared()
    assert optimizer.state[p]["ema"].is_shared()


# ---- mixed precision -------------------------------------------------------------------------------------------------


def scaled_step(scaler, optimizer, parameters, gradients):
    """One step of gradients as backward would give them from a scaled loss."""
    scaler.scale(torch.ones(()))
    for p, g in zip(parameters, gradients, strict=True):
        p.grad = None if g is None else g * scaler.get_scale()
    scaler.step(optimizer)
    scaler.update()


@pytest.mark.parametrize("unscale", [False, True])
@pytest.mark.parametrize("kind", ["dense", "rows"])
@pytest.mark.parametrize("settings", [{}, {"clipnorm": 1.0}, {"gradient_accumulation_steps": 2, "use_ema": True}], ids=str)
def test_grad_scaler(settings, kind, unscale):
    torch.manual_seed(0)
    (p, optimizer), (q, other) = pairs = pair(**settings)
    r, bias = parameter(np.ones(3, np.float32)), parameter(np.ones(3, np.float32))
    optimizer.add_param_group({"params": r})
    other.add_param_group({"params": bias})
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3)
    for call in range(6):
        g = torch.randn(3, 3)
        if kind == "rows":
            g = torch.sparse_coo_tensor(torch.tensor([[2, 0, 2]]), g, (3, 3), check_invariants=False)
        bad, h = call == 2, torch.randn(3)
        scale = scaler.get_scale()
        before = snapshot(optimizer)
        scaler.scale(torch.ones(()))
        p.grad, r.grad = g * scale, h * scale
        if bad:
            r.grad[1] = float("inf")
        if unscale:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        if bad:  # the whole step is skipped
            assert_unchanged(before, optimizer)
            assert scaler.get_scale() == scale / 2
            continue
        q.grad, bias.grad = g, h
        other.step()
        assert_equal(pairs)
        assert torch.equal(r, bias)
    assert scaler.get_scale() == 1024.0  # halved once, doubled once
    assert not hasattr(optimizer, "found_inf")


def test_grad_scaler_and_loss_scale_factor():
    p, q = parameter(np.ones(2, np.float32)), parameter(np.ones(2, np.float32))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaled_step(scaler, Adagrad([p], 0.5, loss_scale_factor=4.0), [p], [torch.ones(2) * 4])
    q.grad = torch.ones(2)
    Adagrad([q], 0.5).step()
    assert torch.equal(p, q)


def test_grad_scaler_with_sparse_half_gradients_sums_before_it_looks():
    p = torch.nn.Parameter(torch.ones(3, 2, dtype=torch.float16))
    optimizer = Adagrad([p], 0.5)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    before = snapshot(optimizer)
    scaler.scale(torch.ones(()))
    p.grad = coo(np.full((2, 2), 4e4, np.float16), [1, 1], (3, 2))  # finite, but not their sum
    scaler.step(optimizer)
    scaler.update()
    assert_unchanged(before, optimizer)
    assert scaler.get_scale() == 1.0
    p.grad = coo(np.full((2, 2), 2.0, np.float16), [1, 1], (3, 2))
    scaler.step(optimizer)
    scaler.update()
    q = torch.nn.Parameter(torch.ones(3, 2, dtype=torch.float16))
    q.grad = coo(np.full((1, 2), 4.0, np.float16), [1], (3, 2))
    Adagrad([q], 0.5).step()
    assert torch.equal(p, q)


def test_grad_scaler_over_a_model():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
    optimizer = Adagrad(model.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cpu")
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = (model(torch.ones(3, 4)).float() - 1).square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


def test_clip_grad_norm_before_the_step():
    (p, optimizer), (q, other) = pair()
    for _ in range(3):
        g = torch.randn(3, 3)
        p.grad, q.grad = g.clone(), g * (0.5 / (g.norm() + 1e-6))
        torch.nn.utils.clip_grad_norm_([p], 0.5)
        optimizer.step()
        other.step()
    torch.testing.assert_close(p, q)
    torch.testing.assert_close(optimizer.state[p]["sum"], other.state[q]["sum"])


def test_compiled_models():
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    twin = torch.nn.Linear(3, 2)
    twin.load_state_dict(model.state_dict())
    compiled = torch.compile(model, backend="eager")
    optimizers = [Adagrad(m.parameters(), 0.5) for m in (model, twin)]
    for _ in range(3):
        for forward, optimizer in zip((compiled, twin), optimizers, strict=True):
            optimizer.zero_grad()
            forward(torch.ones(4, 3)).square().sum().backward()
            optimizer.step()
    assert torch.equal(model.weight, twin.weight)


def other_kinds():
    plain = torch.arange(9.0).reshape(3, 3) - 4
    yield "replaced by one in double precision", plain.double()
    yield "transposed", plain.t().contiguous().t()
    yield "every other column", torch.stack([plain, -plain], 2).reshape(3, 6)[:, ::2]
    yield "negated lazily", torch._neg_view(-plain)
    yield "sparse", plain.to_sparse(1)
    yield "with a history", plain.clone().requires_grad_()
    yield "usual again", plain.clone()


@pytest.mark.parametrize("fast", [True, False], ids=["compared by PyTorch", "compared one by one"])
def test_gradients_of_another_kind_after_the_usual_ones(fast, monkeypatch):
    if not fast:
        monkeypatch.setattr("adagrad.arrays.torch.TensorGuards", None)
    ps, qs = ([parameter(np.linspace(-1, 1, 9, dtype=np.float32).reshape(3, 3)) for _ in range(2)] for _ in range(2))
    optimizer = Adagrad(ps, 0.5)
    for call, (kind, gradient) in enumerate([("usual", torch.ones(3, 3)), ("usual", torch.ones(3, 3)), *other_kinds()]):
        anew = Adagrad(qs, 0.5)
        if call:
            anew.load_state_dict(optimizer.state_dict())
        for p, q in zip(ps, qs, strict=True):
            p.grad, q.grad = torch.ones(3, 3), torch.ones(3, 3)
        if gradient.dtype == torch.float32:
            ps[1].grad = gradient
        else:
            ps[1].grad.data = gradient  # an assignment to grad refuses it
        qs[1].grad = gradient.detach().resolve_neg().float().to_dense().contiguous()
        optimizer.step()
        anew.step()
        for p, q in zip(ps, qs, strict=True):
            assert torch.equal(p, q), kind
    ps[0].grad, ps[1].grad = torch.ones(3, 3), None
    before = ps[1].detach().clone()
    optimizer.step()
    assert torch.equal(ps[1], before)


@pytest.mark.skipif(arrays.TensorGuards is None, reason="this PyTorch has no such comparison")
def test_usual_gradients_are_not_looked_at_one_by_one(monkeypatch):
    ps = [parameter(np.ones((3, 3), np.float32)) for _ in range(2)]
    optimizer = Adagrad(ps, 0.5)
    looked = []
    look = arrays.TensorLayout._lies_ready
    monkeypatch.setattr(arrays.TensorLayout, "_lies_ready", lambda *a: looked.append(a) or look(*a))
    for _ in range(3):
        for p in ps:
            p.grad = torch.ones(3, 3)
        optimizer.step()
    assert len(looked) == 2
