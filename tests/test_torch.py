"""`adagrad.torch.Adagrad`: the numbers of the contract, bit for bit those of the NumPy face, for every kind of gradient."""

import math
import warnings

import hypothesis
import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from hypothesis import strategies as st

import adagrad
from adagrad import schedules
from adagrad.torch import Adagrad
from plain import DTYPES, assert_same_bits
from strategies import FEW_STAGES, arguments, dtypes_with_stages, numbers
from torch_tools import (
    LAYOUTS,
    array,
    assert_same_state,
    assert_unchanged,
    coo,
    dense_sum,
    laid_out,
    parameter,
    snapshot,
    tensor,
    torch_names,
)

# ---- the sparse law, layouts, combinations ---------------------------------------------------------------------------

SHAPES = [(), (0,), (1,), (17,), (0, 3), (3, 0), (1, 1), (7, 1), (5, 3), (3, 64), (2, 65), (4, 2, 3), (2, 3, 4, 5)]


def gradient_pair(rng, kind, shape, dtype, special):
    """A gradient as a tensor, and the same for NumPy."""
    if kind == "none":
        return None, None
    if kind in ("rows", "hybrid", "entries") and shape:
        sparse = {"rows": 1, "hybrid": min(2, len(shape)), "entries": len(shape)}[kind]
        count = int(rng.integers(0, 13)) if all(shape[:sparse]) else 0
        indices = np.array([rng.integers(0, max(1, min(n, 9)), count) for n in shape[:sparse]])
        values = numbers(rng, (count, *shape[sparse:]), dtype, special)
        given = torch.sparse_coo_tensor(
            torch.from_numpy(indices), laid_out(tensor(values), str(rng.choice(LAYOUTS))), shape, check_invariants=False
        )
        return given, adagrad.IndexedSlices(values, indices[0]) if sparse == 1 else dense_sum(values, indices, shape)
    values = numbers(rng, shape, dtype, special)
    return laid_out(tensor(values), str(rng.choice(LAYOUTS)) if kind == "strided" else "C"), values


@pytest.mark.parametrize(("dtype", "stages"), dtypes_with_stages(), ids=list(DTYPES))
def test_every_gradient_and_layout_gives_the_bits_of_the_numpy_face(dtype, stages):
    kinds = ["dense", "strided", "rows", "rows", "hybrid", "entries", "none"]

    @hypothesis.settings(max_examples=100 if dtype == "float32" else 40)
    @hypothesis.given(
        settings=arguments(stages if dtype == "float32" else FEW_STAGES),
        maximize=st.booleans(),
        variables=st.lists(st.tuples(st.sampled_from(SHAPES), st.sampled_from(LAYOUTS)), min_size=1, max_size=3),
        seed=st.integers(0, 2**32 - 1),
        special=st.sampled_from([0.0, 0.05, 0.5]),
    )
    def law(settings, maximize, variables, seed, special):
        rng = np.random.default_rng(seed)
        arrays = [numbers(rng, shape, DTYPES[dtype], special) for shape, _ in variables]
        parameters = [parameter(a, layout) for a, (_, layout) in zip(arrays, variables, strict=True)]
        optimizer = Adagrad(parameters, maximize=maximize, **torch_names(settings))
        judge = adagrad.Adagrad(**settings)
        judge.build(arrays)
        for call in range(5):
            drawn = [gradient_pair(rng, str(rng.choice(kinds)), a.shape, a.dtype, special) for a in arrays]
            for p, (given, _) in zip(parameters, drawn, strict=True):
                p.grad = given
            optimizer.step()
            judged = [negative(g) if maximize else g for _, g in drawn]
            if settings.get("gradient_accumulation_steps") or any(g is not None for g in judged):
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", "no gradient", UserWarning)
                    judge.apply(judged, arrays)
            assert_same_state(optimizer, judge, arrays, f"after call {call}")

    law()


def negative(gradient):
    if isinstance(gradient, adagrad.IndexedSlices):
        return adagrad.IndexedSlices(-gradient.values, gradient.indices)
    return None if gradient is None else -gradient


def test_coalesced_gradients_and_those_of_the_modules():
    ids = torch.tensor([3, 1, 3, 3, 0, 1])
    for make in (torch.nn.Embedding, torch.nn.EmbeddingBag):
        torch.manual_seed(0)
        sparse, dense = make(5, 4, sparse=True), make(5, 4)
        dense.load_state_dict(sparse.state_dict())
        optimizers = [Adagrad(m.parameters(), lr=0.3, weight_decay=0.1, clipnorm=0.7) for m in (sparse, dense)]
        for step in range(3):
            for module, optimizer in zip((sparse, dense), optimizers, strict=True):
                optimizer.zero_grad()
                inputs = ids if make is torch.nn.Embedding else ids.view(2, 3)
                module(inputs).square().sum().backward()
                assert module.weight.grad.is_sparse == (module is sparse)
                if module is sparse and step == 1:
                    module.weight.grad = module.weight.grad.coalesce()
                optimizer.step()
        torch.testing.assert_close(sparse.weight, dense.weight, rtol=1e-6, atol=0)


def test_ids_that_repeat_are_summed_in_float32_in_the_order_they_came():
    p = parameter(np.zeros((2, 1), np.float32))
    p.grad = coo(np.float32([[1e8], [1.0], [-1e8], [2.0]]), [1, 1, 1, 0], (2, 1))
    Adagrad([p], 1.0, initial_accumulator_value=0.0, eps=0.0).step()
    assert p.tolist() == [[-1.0], [0.0]]  # (1e8 + 1) - 1e8 is 0 from left to right
    half = parameter(np.zeros((2, 1), np.float16))
    half.grad = coo(np.full((301, 1), 2.0**-11, np.float16) + np.eye(301, 1, dtype=np.float16), np.zeros(301), (2, 1))
    optimizer = Adagrad([half], 1.0)
    optimizer.step()
    total = np.float32(half.grad._values().double().sum().item())
    assert optimizer.state[half]["sum"][0, 0].item() == np.float32(0.1) + total * total


def test_gradients_with_a_negative_bit_count_negative():
    p, other = parameter(np.ones(3, np.float32)), parameter(np.ones(3, np.float32))
    p.grad, other.grad = torch._neg_view(torch.ones(3)), -torch.ones(3)
    assert p.grad.is_neg()
    for q in (p, other):
        Adagrad([q], 0.5).step()
    assert torch.equal(p, other)


@pytest.mark.parametrize("sharing", ["itself", "twin", "state"])
def test_a_gradient_may_share_memory_with_what_a_step_writes(sharing):
    start, g = np.arange(1.0, 7.0, dtype=np.float32).reshape(2, 3), np.float32([[1, 2, 3], [4, 5, 6]])
    p, twin = parameter(start), parameter(start[::-1].copy())
    optimizer = Adagrad([p, twin], 0.5, initial_accumulator_value=0.7)
    arrays, judge = [start.copy(), start[::-1].copy()], adagrad.Adagrad(0.5, 0.7)
    p.grad = {"itself": p.detach(), "twin": twin.detach(), "state": optimizer.state[twin]["sum"]}[sharing]
    twin.grad = tensor(g)
    judge.apply([array(p.grad), g], arrays)
    optimizer.step()
    assert_same_state(optimizer, judge, arrays)


# ---- complex ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["dense", "conjugate", "rows"])
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.parametrize(
    "settings",
    [{}, {"clipnorm": 1.0, "weight_decay": 0.1}, {"use_ema": True, "gradient_accumulation_steps": 2, "maximize": True}],
    ids=["rule", "clip", "cycle"],
)
def test_complex_parameters_are_pairs_of_real_ones(kind, dtype, settings):
    torch.manual_seed(0)
    z = torch.nn.Parameter(torch.randn(6, 3, dtype=dtype))
    x = torch.nn.Parameter(torch.view_as_real(z.detach()).clone())
    ours, pairs = Adagrad([z], 0.3, **settings), Adagrad([x], 0.3, **settings)
    for _ in range(4):
        if kind == "rows":
            values = torch.randn(4, 3, dtype=dtype)
            ids = torch.tensor([[5, 0, 5, 2]])
            z.grad = torch.sparse_coo_tensor(ids, values, (6, 3), check_invariants=False)
            x.grad = torch.sparse_coo_tensor(ids, torch.view_as_real(values), (6, 3, 2), check_invariants=False)
        else:
            z.grad = torch.randn(6, 3, dtype=dtype)
            z.grad = z.grad.conj() if kind == "conjugate" else z.grad
            x.grad = torch.view_as_real(z.grad.resolve_conj()).clone()
        ours.step()
        pairs.step()
        assert torch.equal(torch.view_as_real(z), x)
        for name in {"sum", *(["ema", "gradient_accumulator"] if "use_ema" in settings else [])}:
            assert ours.state[z][name].dtype == dtype
            assert torch.equal(torch.view_as_real(ours.state[z][name]), pairs.state[x][name])


def test_row_wise_needs_real_parameters():
    with pytest.raises((TypeError, ValueError), match="row_wise"):
        Adagrad([torch.nn.Parameter(torch.zeros(4, 3, dtype=torch.complex64))], row_wise=True)
    z = torch.nn.Parameter(torch.zeros(4, dtype=torch.complex64))  # of one dimension: as any vector
    optimizer = Adagrad([z], 0.5, row_wise=True)
    z.grad = torch.ones(4, dtype=torch.complex64)
    optimizer.step()
    assert optimizer.state[z]["sum"].shape == (4,)
    expected = -0.5 / math.sqrt(0.1 + 1 + 1e-7)
    torch.testing.assert_close(torch.view_as_real(z.detach()), torch.tensor([[expected, 0.0]]).expand(4, 2))


# ---- the learning rate -----------------------------------------------------------------------------------------------


def train(lr, calls=5, **settings):
    p = parameter(np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3))
    optimizer = Adagrad([p], lr, **settings)
    for call in range(calls):
        p.grad = torch.full((4, 3), 0.5 + call)
        optimizer.step()
    return p.detach()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.int64])
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_a_rate_may_be_a_tensor(dtype, shape):
    assert torch.equal(train(torch.full(shape, 2, dtype=dtype)), train(2.0))
    rate = torch.tensor(0.25)
    p = parameter(np.zeros(1))
    optimizer = Adagrad([p], rate, initial_accumulator_value=0.0, eps=0.0)
    for value in (0.25, 0.5):
        rate.fill_(value)
        p.grad, before = torch.full((1,), 1e9, dtype=torch.float64), p.item()
        optimizer.state[p]["sum"].zero_()
        optimizer.step()
        assert before - p.item() == value


def test_a_rate_may_be_a_schedule_that_counts_calls():
    schedule = schedules.InverseTimeDecay(0.5, 2, 0.75)
    p, a = parameter(np.ones(3, np.float32)), np.ones(3, np.float32)
    q, b = parameter(np.ones(3, np.float32)), np.ones(3, np.float32)
    optimizer = Adagrad([{"params": [p]}, {"params": [q], "lr": 0.1}], schedule, gradient_accumulation_steps=2)
    judges = [adagrad.Adagrad(rate, gradient_accumulation_steps=2) for rate in (schedule, 0.1)]
    for call in range(6):
        g = np.float32([1, -2, call])
        p.grad, q.grad = tensor(g), tensor(g)
        optimizer.step()
        judges[0].apply([g], [a])
        judges[1].apply([g], [b])
        assert_same_bits(array(p), a)
        assert_same_bits(array(q), b)


# ---- groups ----------------------------------------------------------------------------------------------------------

OWN = [
    {"lr": 0.7},
    {"eps": 0.01},
    {"weight_decay": 0.1},
    {"clipnorm": 0.5},
    {"clipvalue": 0.3},
    {"row_wise": True},
    {"maximize": True},
    {"initial_accumulator_value": 0.9},
    {"lr": 0.2, "eps": 0.5, "weight_decay": 0.3, "clipnorm": 0.2, "row_wise": True, "maximize": True},
]


@pytest.mark.parametrize("kind", ["dense", "rows"])
@pytest.mark.parametrize("whole", [{}, {"use_ema": True, "gradient_accumulation_steps": 2, "loss_scale_factor": 3.0}], ids=str)
def test_groups_with_arguments_of_their_own_are_as_optimizers_of_their_own(kind, whole):
    rng = np.random.default_rng(0)
    groups, alone = [], []
    for own in [{}, *OWN]:
        start = rng.normal(size=(6, 4)).astype(np.float32)
        groups.append({"params": [parameter(start)], **own})
        alone.append((parameter(start), Adagrad([parameter(start)], **{"lr": 0.3, **whole, **own})))
    optimizer = Adagrad(groups, 0.3, **whole)
    for _ in range(4):
        for group, (_, single) in zip(groups, alone, strict=True):
            values = rng.normal(size=(6, 4)).astype(np.float32)
            for p in (*group["params"], *single.param_groups[0]["params"]):
                p.grad = tensor(values) if kind == "dense" else coo(values, [5, 0, 5, 5, 2, 0], (6, 4))
            single.step()
        optimizer.step()
    for group, (_, single) in zip(groups, alone, strict=True):
        (p,), (q,) = group["params"], single.param_groups[0]["params"]
        assert torch.equal(p, q)
        assert all(torch.equal(optimizer.state[p][name], value) for name, value in single.state[q].items())


@pytest.mark.parametrize(
    ("name", "value"),
    [("global_clipnorm", 1.0), ("use_ema", True), ("ema_momentum", 0.5), ("ema_overwrite_frequency", 3),
     ("loss_scale_factor", 2.0), ("gradient_accumulation_steps", 2), ("epsilon_placement", "outside"),
     ("weight_decay_mode", "l2"), ("lr_decay", 0.1)],
)  # fmt: skip
def test_arguments_of_the_whole_optimizer_are_refused_in_a_group(name, value):
    p = parameter(np.ones(2))
    with pytest.raises(ValueError, match=name):
        Adagrad([{"params": [p], name: value}])
    optimizer = Adagrad([parameter(np.ones(2))])
    with pytest.raises(ValueError, match=name):
        optimizer.add_param_group({"params": [p], name: value})
    assert len(optimizer.param_groups) == 1
    assert p not in optimizer.state
    p.grad = torch.ones(2, dtype=torch.float64)
    optimizer = Adagrad([p])
    before = snapshot(optimizer)
    if name != "lr_decay":
        optimizer.param_groups[0][name] = value
        with pytest.raises(ValueError, match=name):
            optimizer.step()
        optimizer.param_groups[0][name] = optimizer.defaults[name]
        assert_unchanged(before, optimizer)
    optimizer.step()
    assert p[0] != 1
