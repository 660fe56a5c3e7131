"""Compiles the CUDA kernels to PTX, which needs no GPU: ``python triton_compile.py`` prints the text of each, as JSON.

A process of its own: Triton and TensorFlow in one abort it, and the interpreter must be off.
"""

import json
import sys

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from adagrad.kernels import cuda, cuda_elements, cuda_norms, cuda_rows, cuda_scalars

ARCHITECTURES = (80, 90)
STATES = {tl.float64: tl.float64, tl.float32: tl.float32, tl.float16: tl.float32, tl.uint16: tl.float32}
POINTERS = {
    "slots": "*i64", "grads": "*i64", "chunks": "*i64", "scalars": "*fp64", "active": "*i32", "flags": "*i32", "cycle": "*i32",
    "calls": "*i64", "steps": "*i64", "rates": "*fp64", "grad_scale": "*fp32", "found_inf": "*fp32", "ids": "*i32",
    "order": "*i64", "ends": "*i64", "positions": "*i32", "partials": "*fp64", "members": "*i64", "found": "*fp64",
}  # fmt: skip
NAMES = {tl.float64: "fp64", tl.float32: "fp32", tl.float16: "fp16", tl.uint16: "u16"}


def compiled(kernel, architecture, types, **constants):
    """The PTX of a kernel, with every pointer that PyTorch allocates and every width a multiple of 16."""
    signature, attributes = {}, {}
    for place, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
            continue
        signature[name] = types.get(name) or POINTERS.get(name) or "i32"
        if signature[name].startswith("*") or name == "width":
            attributes[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    target = GPUTarget("cuda", architecture, 32)
    return triton.compile(source, target=target, options=dict(cuda_elements.EXACT)).asm["ptx"]


def variants():
    """Every kernel, compiled for every dtype and for all that there can be beside it: (name, kernel, types, constants)."""
    block = {"CHUNK": cuda.CHUNK, "BLOCK": cuda.BLOCK}
    tile = {"ROWS": cuda_rows.TILE // 64, "COLUMNS": 64}
    yield "prepare", cuda_scalars.prepare, {}, {"SCALED": True, "CHECKED": True, "GROUPS": 4, "BLOCK": 256}
    yield "count", cuda_scalars.count, {}, {"BLOCK": 256}
    yield "totals", cuda_norms.totals, {}, {"RESCUED": True}
    yield "total", cuda_norms.total, {}, {"RESCUED": True}
    yield "factors", cuda_norms.factors, {}, {"OVER_ALL": True, "RESCUED": True, "SLOTS": 256}
    for stored, state in STATES.items():
        name = NAMES[stored]
        types = {"sums": f"*{NAMES[state]}", "values": f"*{name}"}
        for gradient in (stored, None):
            all_of_it = {"STORED": stored, "GRAD": gradient, "STATE": state, "AVERAGED": True, "STAGED": True, "ALIGNED": True}
            kind = f"{name} {'buffered' if gradient is None else 'given'}"
            yield f"step {kind}", cuda.step, types, {**all_of_it, **block}
            rows = {"LISTED": gradient is None, "MAPPED": False, "ROW_WISE": True}
            yield f"rows step {kind}", cuda_rows.step, types, {**all_of_it, **rows, **tile}
            norm = {"GRAD": gradient, "STATE": state, "STAGED": True, "RESCUED": state == tl.float64}
            yield f"squares {kind}", cuda_norms.dense_squares, types, {**norm, "BLOCKS": cuda_norms.BLOCKS}
        plain = {"STORED": stored, "GRAD": stored, "STATE": state, "AVERAGED": False, "STAGED": False, "ALIGNED": True}
        yield f"step {name} alone", cuda.step, types, {**plain, **block}
        rows = {"LISTED": True, "MAPPED": False, "ROW_WISE": False}
        yield f"rows step {name} alone", cuda_rows.step, types, {**plain, "GRAD": state, **rows, **tile}
        mapped = {"GRAD": state, "LISTED": False, "MAPPED": True, "ROW_WISE": False}
        yield f"rows step {name} mapped", cuda_rows.step, types, {**plain, "STAGED": True, "AVERAGED": True, **mapped, **tile}
        gathering = {"STATE": state, "MAPPED": True, "COLUMNS": 64, "UNROLL": cuda_rows.UNROLL}
        yield f"gather {name}", cuda_rows.gather, types, gathering
        yield f"accumulate {name}", cuda.accumulate, types, {"GRAD": stored, "STATE": state, "ALIGNED": True, **block}
        if stored == state:
            yield f"rows accumulate {name}", cuda_rows.accumulate, types, {"STATE": state, **tile}
            for buffered in (False, True):
                norm = {"STATE": state, "BUFFERED": buffered, "RESCUED": state == tl.float64}
                yield f"row squares {name} {buffered}", cuda_norms.row_squares, types, norm


# What is compiled for both kinds of GPU; each of the others only for the newer one, to save time.
BOTH = ("step fp32 given", "step u16 given", "rows step fp32 alone", "squares fp32 given")
ONCE = (
    "prepare", "count", "totals", "total", "factors", "step fp64 given", "step fp16 given", "step fp32 buffered", "step fp32 alone",
    "rows step fp32 given", "rows step u16 mapped", "gather fp64", "gather u16", "accumulate fp16", "rows accumulate fp32",
    "row squares fp64 False", "row squares fp32 True",
)  # fmt: skip


if __name__ == "__main__":
    everything = "all" in sys.argv[1:]  # a minute and a half
    print(
        json.dumps(
            {
                f"{name} sm_{architecture}": compiled(kernel, architecture, types, **constants)
                for architecture in ARCHITECTURES
                for name, kernel, types, constants in variants()
                if everything or name in BOTH or (name in ONCE and architecture == ARCHITECTURES[-1])
            }
        )
    )
