"""The engine's row kernels as XLA custom calls: C functions that Numba compiles, with the memory layout of XLA's own headers.

XLA calls such a function with the address of a struct, whose layout is that of ``xla/ffi/api/c_api.h``. The file comes with
jaxlib; offsets are computed from its text, never assumed. When a function is registered, XLA asks it for the version of
the interface that it was made for, and the function looks at the size of the struct that it is given: a size other than the
header's makes it answer with a version that XLA refuses. Whatever doesn't fit is a reason for `why_not`, and array code runs.
"""

from __future__ import annotations

import ctypes
import functools
import re
import struct
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numba
from numba.core import config

from adagrad.kernels import xla

__all__ = ["Layout", "norm_target", "read_layout", "step_target", "why_not"]

# Size, which is also the alignment, of the types that are no structs.
_SIZES = {"size_t": 8, "int64_t": 8, "uint64_t": 8, "int": 4, "int32_t": 4, "uint32_t": 4}

PROBE = "adagrad_nothing"  # a custom call that does nothing, to see whether XLA takes it

_lock = threading.Lock()
_registered: dict[str, Any] = {}  # what must live as long as XLA may call it


class Layout:
    """Structs and constants of ``c_api.h``, from its text.

    ``offset(struct, *fields)`` follows fields into nested structs; ``struct_size`` is the size that XLA states for it.
    Raises ``ValueError`` where the text is not as it was when this was written.
    """

    def __init__(self, text: str) -> None:
        text = re.sub(r"//[^\n]*|/\*.*?\*/", " ", text, flags=re.DOTALL)
        self._bodies = dict(re.findall(r"struct\s+(\w+)\s*\{([^{}]*)\}", text))
        self._enums = set(re.findall(r"typedef\s+enum\s*\{[^{}]*\}\s*(\w+)\s*;", text))
        self._aliases = {new: old for old, new in re.findall(r"typedef\s+(\w+)\s+(\w+)\s*;", text)}
        self._last = dict(re.findall(r"XLA_FFI_DEFINE_STRUCT_TRAITS\(\s*(\w+)\s*,\s*(\w+)\s*\)", text))
        self._text = text

    def constant(self, name: str) -> int:
        """The value of a macro or of an enumerator."""
        found = re.findall(rf"#define\s+{name}\s+(\d+)\b|\b{name}\s*=\s*(\d+)", self._text)
        if len(found) != 1:
            raise ValueError(f"c_api.h has no single value of {name}")
        return int("".join(found[0]))

    def offset(self, name: str, *fields: str) -> int:
        """Where a field begins in a struct, or in a struct within it."""
        found = self._fields(name)[0]
        if fields[0] not in found:
            raise ValueError(f"{name} in c_api.h has no field {fields[0]}")
        begin, kind = found[fields[0]]
        return begin + (self.offset(kind, *fields[1:]) if len(fields) > 1 else 0)

    def struct_size(self, name: str) -> int:
        """The value that XLA puts into ``struct_size``: up to the end of the last field that it counts."""
        fields, _, _ = self._fields(name)
        if self._last.get(name) not in fields:
            raise ValueError(f"c_api.h states no size of {name}")
        begin, kind = fields[self._last[name]]
        return begin + self._size(kind)[0]

    def _size(self, kind: str) -> tuple[int, int]:
        """Size and alignment of a type."""
        if kind == "*":
            return 8, 8
        if kind in self._enums:
            return 4, 4
        if kind in _SIZES:
            return _SIZES[kind], _SIZES[kind]
        if kind in self._aliases:
            return self._size(self._aliases[kind])
        return self._fields(kind)[1:]

    def _fields(self, name: str) -> tuple[dict[str, tuple[int, str]], int, int]:
        """Each field's offset and type; the size and the alignment of the whole."""
        if name not in self._bodies:
            raise ValueError(f"c_api.h has no struct {name}")
        fields: dict[str, tuple[int, str]] = {}
        end, widest = 0, 1
        for declaration in self._bodies[name].split(";"):
            if not declaration.strip():
                continue
            found = re.fullmatch(r"\s*(?:const\s+)?(?:struct\s+)?(\w+)\s*(\**)\s*(\w+)\s*", declaration)
            if found is None:
                raise ValueError(f"{name} in c_api.h has a field that isn't understood: {declaration.strip()!r}")
            kind = "*" if found[2] else found[1]
            size, alignment = self._size(kind)
            begin = -(-end // alignment) * alignment
            fields[found[3]] = begin, kind
            end, widest = begin + size, max(widest, alignment)
        return fields, -(-end // widest) * widest, widest


def read_layout() -> Layout:
    """The layout of the installed jaxlib; ``OSError`` without its headers."""
    return Layout((Path(jax.ffi.include_dir()) / "xla" / "ffi" / "api" / "c_api.h").read_text())


@functools.cache
def why_not() -> str | None:
    """Why XLA can't call the kernels here, or None; the first time, XLA is asked whether it takes such a function."""
    if config.DISABLE_JIT:  # type: ignore[attr-defined]
        return "NUMBA_DISABLE_JIT is set"
    if sys.byteorder != "little" or struct.calcsize("P") != 8:
        return "the machine is not a little-endian one of 64 bits"
    try:
        layout = read_layout()
        if layout.constant("XLA_FFI_API_MAJOR") != 0:
            return f"jaxlib has version {layout.constant('XLA_FFI_API_MAJOR')} of XLA's interface, and 0 is known here"
        _register(PROBE, None)
    except Exception as error:  # of a jaxlib that is not known yet, anything
        return f"{type(error).__name__}: {error}"
    return None


def step_target(param: str, state: str, row_wise: bool, averaged: bool) -> str:
    """The name of the custom call of `kernels.xla.step_function` with these arguments, compiled when first asked for."""
    name = f"adagrad_step_{param}_{state}{'_rowwise' * row_wise}{'_averaged' * averaged}"
    return _register(name, lambda: xla.step_function(param, state, row_wise, averaged))


def norm_target(values: str, result: str) -> str:
    """The name of the custom call of `kernels.xla.norm_function` with these arguments, compiled when first asked for."""
    return _register(f"adagrad_norm_{values}_{result}", lambda: xla.norm_function(values, result))


def _register(name: str, make: Callable[[], Any] | None) -> str:
    with _lock:
        if name not in _registered:
            body = None if make is None else make()
            handler = _handler(read_layout(), None if body is None else body.address)
            # Nothing is called through this prototype, which only holds the address.
            pointer = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(handler.address)
            jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(pointer), platform="cpu", api_version=1)
            _registered[name] = handler, body
    return name


def _handler(layout: Layout, address: int | None) -> Any:
    """The C function: answers XLA's question for its version, and calls the kernel at ``address`` when it is to execute."""
    args, rets = layout.offset("XLA_FFI_CallFrame", "args", "args"), layout.offset("XLA_FFI_CallFrame", "rets", "rets")
    data, dims, rank = (layout.offset("XLA_FFI_Buffer", field) for field in ("data", "dims", "rank"))
    frame_size = layout.struct_size("XLA_FFI_CallFrame")
    stage = layout.offset("XLA_FFI_CallFrame", "stage")
    execute = layout.constant("XLA_FFI_ExecutionStage_EXECUTE")
    extension_start = layout.offset("XLA_FFI_CallFrame", "extension_start")
    extension_type = layout.offset("XLA_FFI_Extension_Base", "type")
    metadata_type = layout.constant("XLA_FFI_Extension_Metadata")
    metadata = layout.offset("XLA_FFI_Metadata_Extension", "metadata")
    major_at = layout.offset("XLA_FFI_Metadata", "api_version", "major_version")
    minor_at = layout.offset("XLA_FFI_Metadata", "api_version", "minor_version")
    traits_at = layout.offset("XLA_FFI_Metadata", "traits")
    major, minor = layout.constant("XLA_FFI_API_MAJOR"), layout.constant("XLA_FFI_API_MINOR")
    word, half_word = xla.word, xla.half_word
    kernel = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 5)(address or 0)
    has_kernel = address is not None

    @numba.cfunc(numba.int64(numba.int64))
    def handler(frame):  # type: ignore[no-untyped-def]
        extension = word(frame + extension_start)
        if extension != 0:
            if half_word(extension + extension_type)[0] == metadata_type:
                found = word(extension + metadata)
                half_word(found + major_at)[0] = major if word(frame) == frame_size else -1
                half_word(found + minor_at)[0] = minor
                half_word(found + traits_at)[0] = 0
            return 0
        if has_kernel and half_word(frame + stage)[0] == execute:
            kernel(word(frame + args), word(frame + rets), data, dims, rank)
        return 0

    return handler
