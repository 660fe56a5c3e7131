"""The CUDA kernels without a GPU: in Triton's interpreter, bit for bit beside the CPU kernels; and the PTX they become."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from adagrad import schedules
from adagrad.torch.cuda_schedules import rate_on_device
from triton_cases import CASES

HERE = Path(__file__).parent


def _answer(program: str, cache: Path, *arguments: str, **environment: str) -> dict[str, str]:
    """What a program beside this one prints, in a process of its own."""
    done = subprocess.run(
        [sys.executable, HERE / program, *arguments],
        env={**os.environ, "TRITON_CACHE_DIR": str(cache), **environment},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, str] = json.loads(done.stdout)
    return found


# ---- in the interpreter ----------------------------------------------------------------------------------------------


def _is_slow(name: str) -> bool:
    """Whether a case is another's in another dtype, size or way; of each argument and each kind one is not."""
    kind, _, more = name.partition(" ")
    return "torch." in more or "counted" in more if kind == "argument" else bool(more)


@pytest.fixture(scope="module")
def failures(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """By case that is to be tested, the traceback of what went wrong, empty if nothing did."""
    calls = [item.callspec.params for item in request.session.items if item.path == request.path and hasattr(item, "callspec")]
    names = [params["name"] for params in calls if "name" in params]
    folder = tmp_path_factory.mktemp("triton")
    return _answer("triton_cases.py", folder, *names, TRITON_INTERPRET="1", NUMBA_DISABLE_JIT="1")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if _is_slow(n) else n for n in CASES])
def test_kernels_give_the_bits_of_the_cpu(name: str, failures: dict[str, str]) -> None:
    assert not failures[name], failures[name]


# ---- compiled --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The PTX of the kernels, by name and architecture."""
    return _answer("triton_compile.py", tmp_path_factory.mktemp("triton"), TRITON_INTERPRET="0")


def _instructions(text: str) -> list[str]:
    return re.findall(r"^\s*(?:@!?%\w+\s+)?([a-z][a-z0-9_]*(?:[.:]+[a-z0-9_]+)*)\s", text, re.MULTILINE)


def test_ptx_has_no_instruction_that_rounds_otherwise(texts: dict[str, str]) -> None:
    assert {name.rpartition(" ")[2] for name in texts} == {"sm_80", "sm_90"}
    for name, text in texts.items():
        for instruction in _instructions(text):
            parts = instruction.split(".")
            wrong = {"approx", "ftz", "full", "sat"} & set(parts) or parts[0] in ("fma", "mad24", "ex2", "rcp", "rsqrt")
            wrong = wrong or (parts[0] == "mad" and parts[-1].startswith("f"))
            if parts[0] in ("add", "sub", "mul", "div", "sqrt") and parts[-1] in ("f32", "f64"):
                wrong = wrong or "rn" not in parts  # without it a mul and an add may become one instruction
            assert not wrong, f"{name}: {instruction}"


def test_ptx_divides_and_takes_roots_exactly(texts: dict[str, str]) -> None:
    for name, text in texts.items():
        found = set(_instructions(text))
        if "step" in name:
            kind = "f64" if "fp64" in name else "f32"
            assert {f"div.rn.{kind}", f"sqrt.rn.{kind}"} <= found, name
        if "step u16" in name or "step fp16" in name:
            assert not any("bf16" in instruction for instruction in found), name
    assert {"div.rn.f64", "sqrt.rn.f64"} <= set(_instructions(texts["factors sm_90"]))


def test_ptx_has_addresses_of_64_bits_and_wide_loads(texts: dict[str, str]) -> None:
    for name, text in texts.items():
        assert ".address_size 64" in text
        memory = re.findall(r"\b(?:ld|st)\.global[.\w:]*\s[^;]*\[\s*%(\w+?)\d+", text)
        assert memory, name
        assert set(memory) == {"rd"}, name  # 64-bit registers
    for name in ("step fp32 given sm_80", "step fp32 given sm_90", "step fp32 alone sm_90"):
        assert "ld.global.v4.b32" in texts[name], name
        assert "st.global.v4.b32" in texts[name], name


def test_offsets_are_widened_before_they_are_multiplied(texts: dict[str, str]) -> None:
    """A table of 100 million rows of 64 has offsets beyond 2**31: of rows, columns and widths, no product has 32 bits."""
    for name in ("rows step fp32 alone sm_90", "gather u16 sm_90", "rows step u16 mapped sm_90"):
        products = {i for i in _instructions(texts[name]) if i.startswith(("mul.lo", "mad.lo"))}
        assert products, name
        assert all(product.endswith("64") for product in products), f"{name}: {products}"


# ---- schedules on the device -----------------------------------------------------------------------------------------

SCHEDULES = [
    schedules.ExponentialDecay(0.3, 7, 0.9),
    schedules.ExponentialDecay(0.3, 7, 0.5, staircase=True),
    schedules.ExponentialDecay(0.3, 0.1, 0.99, staircase=True),
    schedules.InverseTimeDecay(0.5, 2.5, 0.75),
    schedules.InverseTimeDecay(0.5, 3, 0.75, staircase=True),
    schedules.PolynomialDecay(0.5, 40, 0.01, power=1.5),
    schedules.PolynomialDecay(0.5, 7, 0.01, cycle=True),
    schedules.CosineDecay(0.4, 50, alpha=0.1),
    schedules.CosineDecay(0.0, 50, warmup_target=0.4, warmup_steps=11),
    schedules.CosineDecayRestarts(0.3, 10, t_mul=1.1, m_mul=0.9, alpha=0.01),
    schedules.CosineDecayRestarts(0.3, 3, t_mul=2, m_mul=1.1),
    schedules.CosineDecayRestarts(0.3, 2.5, t_mul=1.0),
    schedules.PiecewiseConstantDecay([3, 7.5, 20], [1.0, 0.5, 0.25, 0.125]),
]


@pytest.mark.parametrize("number", range(len(SCHEDULES)))
def test_schedules_on_the_device(number: int) -> None:
    """Within 16 roundings of the host's double precision; at restarts, which a step too late would miss, too."""
    schedule = SCHEDULES[number]
    for step in [*range(130), 10**6, 2**31 + 1, 10**12]:
        found = rate_on_device(schedule, torch.tensor([0, step]), capturing=True)
        assert found is not None
        assert found.dtype is torch.float64
        assert float(found) == pytest.approx(schedule(step), rel=16 * 2.0**-52, abs=1e-15), step


def test_a_schedule_that_is_not_evaluated_on_the_device() -> None:
    class Own(schedules.LearningRateSchedule):
        def __call__(self, step: object) -> float:
            return 1.0

    third = 1000 / 3  # periods of it can't be counted in int64
    for schedule in (
        Own(),
        schedules.CosineDecayRestarts(0.1, 10, t_mul=1.0001),
        schedules.CosineDecayRestarts(0.1, third, t_mul=1.0),
        schedules.PolynomialDecay(0.1, third, 0.01, cycle=True),
        schedules.InverseTimeDecay(0.1, third, 0.5, staircase=True),
    ):
        assert rate_on_device(schedule, torch.tensor([3]), capturing=False) is None
        with pytest.raises(ValueError, match="in a CUDA graph lr must be a number, a tensor on the device, or a built-in"):
            rate_on_device(schedule, torch.tensor([3]), capturing=True)
