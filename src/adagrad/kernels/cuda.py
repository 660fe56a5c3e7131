"""Dense CUDA kernels: a whole list of parameters in one launch, over a table of addresses, in one pass over the memory.

``slots`` is an int64 table with a row for each parameter (`SLOT_COLUMNS`): where its parameter, accumulator, average and
gradient buffer begin, its size, its group. ``grads`` says where each gradient lies, which changes from step to step.
``chunks`` has a row (slot, first element) for each program, of at most `CHUNK` elements. ``scalars`` are the rows of
`cuda_elements`; ``flags`` and ``active`` (whether a slot has a gradient in this real step) are what `cuda_scalars` has found
on the device. All offsets have 64 bits. A kernel is compiled for the dtypes and for what there is: STORED and STATE are
those of parameter and state, GRAD that of the gradients or None, bfloat16 being uint16; ALIGNED that addresses and sizes
are multiples of 16.
"""

import torch
import triton
import triton.language as tl

from adagrad.kernels.cuda_elements import average, follow, gradient, mean_gradient, narrow, prepare, scalars_of, widen

__all__ = [
    "BLOCK",
    "CHUNK",
    "SLOT_COLUMNS",
    "TYPES",
    "accumulate",
    "pointer",
    "step",
]

PARAMETER, ACCUMULATOR, AVERAGE, BUFFER, SIZE, GROUP = map(tl.constexpr, range(6))
SLOT_COLUMNS = tl.constexpr(6)
SKIP, REAL, OVERWRITE = map(tl.constexpr, range(3))
CHUNK = 8192  # two blocks of a norm
BLOCK = 1024
# What memory of these dtypes is to a kernel; a bfloat16 is its bits.
TYPES = {torch.float64: tl.float64, torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.uint16}


@triton.jit
def pointer(address, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """A number as a pointer; ALIGNED, if it is a multiple of 16: the compiler may then load 16 bytes at once."""
    found = address.to(tl.pointer_type(DTYPE))
    if ALIGNED:
        found = tl.multiple_of(found, 16)
    return found


@triton.jit
def step(
    slots,
    grads,
    chunks,
    scalars,
    active,
    flags,
    STORED: tl.constexpr,
    GRAD: tl.constexpr,
    STATE: tl.constexpr,
    AVERAGED: tl.constexpr,
    STAGED: tl.constexpr,
    ALIGNED: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Stages 3 to 10 in place; GRAD None: the gradient of the cycle is in the buffer, which is zero afterwards.

    A slot that is not active only has its average moved. Where there are none and no gradient, the launch is left out.
    """
    if tl.load(flags + REAL) != 0:
        v = tl.load(chunks + 2 * tl.program_id(0))
        first = tl.multiple_of(tl.load(chunks + 2 * tl.program_id(0) + 1), CHUNK)
        row = slots + v * SLOT_COLUMNS
        size = tl.load(row + SIZE)
        if ALIGNED:
            size = tl.multiple_of(size, 16)
        s = scalars_of(scalars, v, STATE)
        p = pointer(tl.load(row + PARAMETER), STORED, ALIGNED)
        a = pointer(tl.load(row + ACCUMULATOR), STATE, ALIGNED)
        m = pointer(tl.load(row + AVERAGE), STATE, ALIGNED)
        b = pointer(tl.load(row + BUFFER), STATE, ALIGNED)
        overwrite = tl.load(flags + OVERWRITE) != 0
        moves = tl.load(active + v) != 0
        for begin in range(first, tl.minimum(first + CHUNK, size), BLOCK):
            i = begin + tl.arange(0, BLOCK)
            inside = i < size
            stored = tl.load(p + i, inside)
            if moves:
                if GRAD is None:
                    g = mean_gradient(tl.load(b + i, inside), s)
                    tl.store(b + i, tl.zeros_like(g), inside)
                else:
                    g = widen(tl.load(pointer(tl.load(grads + v), GRAD, ALIGNED) + i, inside)).to(STATE)
                    if STAGED:
                        g = gradient(g, s)
                wide = widen(stored)
                if STAGED:
                    wide, g = prepare(wide, g, s)
                new, total = follow(wide, tl.load(a + i, inside), g, g * g, s)
                tl.store(a + i, total, inside)
                stored = narrow(new, STORED)
            if AVERAGED:
                mean = average(tl.load(m + i, inside), widen(stored), s)
                tl.store(m + i, mean, inside)
                if overwrite:
                    stored = narrow(mean, STORED)
            tl.store(p + i, stored, inside)


@triton.jit
def accumulate(
    slots,
    grads,
    chunks,
    scalars,
    flags,
    GRAD: tl.constexpr,
    STATE: tl.constexpr,
    ALIGNED: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Stages 3 and 4: ``b = b + g / scale``, in place on b."""
    if tl.load(flags + SKIP) == 0:
        v = tl.load(chunks + 2 * tl.program_id(0))
        first = tl.multiple_of(tl.load(chunks + 2 * tl.program_id(0) + 1), CHUNK)
        row = slots + v * SLOT_COLUMNS
        size = tl.load(row + SIZE)
        if ALIGNED:
            size = tl.multiple_of(size, 16)
        s = scalars_of(scalars, v, STATE)
        b = pointer(tl.load(row + BUFFER), STATE, ALIGNED)
        g = pointer(tl.load(grads + v), GRAD, ALIGNED)
        for begin in range(first, tl.minimum(first + CHUNK, size), BLOCK):
            i = begin + tl.arange(0, BLOCK)
            inside = i < size
            x = gradient(widen(tl.load(g + i, inside)).to(STATE), s)
            tl.store(b + i, tl.load(b + i, inside) + x, inside)
