"""The state file: what goes in comes out, and no kill, full disk or error leaves half a file."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
import sys
import tempfile
import textwrap
import tracemalloc
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from adagrad import state
from adagrad.state import StateFileError, read, write

DTYPES = [ml_dtypes.bfloat16 if name == "bfloat16" else np.dtype(name) for name in state.TAGS]
SHAPES = [(), (0,), (1,), (17,), (3, 0, 2), (2, 3), (2, 3, 5), (1,) * 64]
METADATA = {"name": "é \"quoted\" \x00 '}}'", "n": 2**80, "x": [0.1, -0.0, 1e-320, True, None, {"": []}]}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def bits(shape: tuple[int, ...], dtype: Any, seed: int = 0) -> np.ndarray:
    """Random bits as an array: every NaN and subnormal, too; booleans are 0 or 1."""
    dtype = np.dtype(dtype)
    raw = np.random.default_rng(seed).bytes(int(np.prod(shape)) * dtype.itemsize)
    array = np.frombuffer(raw, np.uint8)
    return (array % 2 if dtype.kind == "b" else array).copy().view(dtype).reshape(shape)


def assert_same(got: np.ndarray, expected: np.ndarray) -> None:
    assert got.dtype == expected.dtype.newbyteorder("=")
    assert got.dtype.isnative
    assert got.shape == expected.shape
    assert got.tobytes() == expected.astype(got.dtype).tobytes()
    assert got.flags.owndata
    assert got.flags.writeable
    assert got.flags.c_contiguous


def assert_only(path: Path) -> None:
    """No temporary file is left beside it."""
    assert os.listdir(path.parent) == [path.name]


# ---- round trips -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=list(state.TAGS))
def test_every_type_and_shape(path: Path, dtype: Any) -> None:
    arrays = {f"a{j}": bits(shape, dtype, j) for j, shape in enumerate(SHAPES)}
    before = {name: array.tobytes() for name, array in arrays.items()}
    write(path, arrays, METADATA)
    got, metadata = read(path)
    assert list(got) == list(arrays)
    for name in arrays:
        assert_same(got[name], arrays[name])
        assert arrays[name].tobytes() == before[name]
    assert metadata == METADATA
    assert repr(metadata) == repr(METADATA)  # -0.0 and the types, too
    for name, array in safetensors.numpy.load_file(path).items():
        assert array.shape == arrays[name].shape
        assert array.tobytes() == arrays[name].tobytes()
    assert_only(path)


def test_order_names_and_alignment(path: Path) -> None:
    """The caller's order comes back, whatever the order in the file, where every array is aligned to its element."""
    arrays = {"z/é:0": bits((3,), np.uint8), "": bits((5,), np.float16), "\x00\\\"'}}": bits((), np.float64)}
    arrays |= {f"{j}": bits((j,), DTYPES[j % len(DTYPES)]) for j in range(40)}
    write(str(path), arrays, {})
    got, metadata = read(str(path))
    assert list(got) == list(arrays)
    assert metadata == {}
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    assert start % 64 == 0
    entries = json.loads(content[8:start])
    del entries["__metadata__"]
    for name, array in arrays.items():
        assert_same(got[name], array)
        begin, end = entries[name]["data_offsets"]
        assert begin % array.itemsize == 0
        assert content[start + begin : start + end] == array.tobytes()


def test_no_arrays(path: Path) -> None:
    write(path, {}, {"a": 1})
    assert read(path) == ({}, {"a": 1})
    assert safetensors.numpy.load_file(path) == {}


@pytest.mark.parametrize("dtype", ["<f8", ">f8", ">f4", ">i2", ">u8", "?", ml_dtypes.bfloat16])
def test_strides_and_byte_order(path: Path, dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Views of every kind are written in C order, also where they are longer than a piece."""
    monkeypatch.setattr(state, "_PIECE", 256)
    base = bits((30, 41), np.dtype(dtype).newbyteorder("=") if dtype == "?" else dtype)
    views = {
        "fortran": np.asfortranarray(base),
        "transposed": base.T,
        "backward": base[::-1, ::-1],
        "columns": base[:, 3:40:5],
        "stride": base.reshape(-1)[::7],
        "broadcast": np.broadcast_to(base[:1], (9, 41)),
        "read only": base[2:4].view(),
        "scalar": base[3, 4, None].reshape(()),
    }
    views["read only"].flags.writeable = False
    unaligned = np.empty(base.nbytes + 1, np.uint8)[1:].view(base.dtype).reshape(base.shape)
    unaligned[...] = base
    views["unaligned"] = unaligned
    write(path, views, {})
    got, _ = read(path)
    for name, view in views.items():
        assert_same(got[name], view)


def test_a_memory_mapped_array(tmp_path: Path, path: Path) -> None:
    mapped = np.memmap(tmp_path / "table", np.float32, "w+", shape=(50, 3))
    mapped[:] = bits((50, 3), np.float32)
    write(path, {"table": mapped}, {})
    got = read(path)[0]["table"]
    assert type(got) is np.ndarray
    assert_same(got, np.asarray(mapped))


def test_bfloat16_without_its_package(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(path, {"a": np.zeros(3, ml_dtypes.bfloat16)}, {})
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(StateFileError, match="bfloat16 arrays, which need the package ml_dtypes"):
        read(path)


def test_the_layout_as_documented(path: Path) -> None:
    """Read and checked with nothing but the module's docstring, byte for byte."""
    array = bits((2, 3), np.float32)
    write(path, {"w": array}, {"step": 7})
    content = path.read_bytes()
    header = content[: 8 + int.from_bytes(content[:8], "little")]
    entries = json.loads(header[8:])
    ours = entries["__metadata__"]
    assert entries["w"] == {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
    assert content[len(header) :] == array.tobytes()
    assert {key: ours[key] for key in ("format", "version", "metadata")} == {
        "format": "adagrad-state",
        "version": "1",
        "metadata": '{"step":7}',
    }
    assert json.loads(ours["digests"]) == {"w": hashlib.blake2b(array.tobytes(), digest_size=32).hexdigest()}
    blank = header.replace(ours["header_digest"].encode(), b"0" * 64)
    assert hashlib.blake2b(blank, digest_size=32).hexdigest() == ours["header_digest"]


def test_equal_content_is_an_equal_file(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / name, {"x": bits((9,), np.float64), "y": bits((3,), np.int8)}, METADATA)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_memory(path: Path) -> None:
    """Writing takes about 1 MiB, of strided arrays too; reading takes one copy."""
    arrays = {"a": np.zeros((2000, 2000)), "b": np.zeros((2000, 2000), np.float32).T, "c": np.zeros(4_000_000)[::2]}
    size = sum(array.nbytes for array in arrays.values())
    tracemalloc.start()
    try:
        write(path, arrays, {})
        assert tracemalloc.get_traced_memory()[1] < 2 << 20 < size / 30
        tracemalloc.reset_peak()
        got = read(path)[0]
        assert tracemalloc.get_traced_memory()[1] < size + (2 << 20)
    finally:
        tracemalloc.stop()
    assert {name: array.shape for name, array in got.items()} == {name: array.shape for name, array in arrays.items()}


# ---- refusals of write -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arrays", "error", "message"),
    [
        ({"a": [1.0]}, TypeError, "array 'a' must be a NumPy array, got list"),
        ({"a": np.float32(1)}, TypeError, "array 'a' must be a NumPy array, got float32"),
        ({"a": np.array("x")}, ValueError, "array 'a' must be of a type in float64, .*, got str32"),
        ({"a": np.array(None)}, ValueError, "got object"),
        ({"a": np.zeros(1, complex)}, ValueError, "got complex128"),
        ({"a": np.zeros(1, np.longdouble)}, ValueError, "got float128|got longdouble"),
        ({"a": np.zeros(1, "m8[s]")}, ValueError, "got timedelta64"),
        ({"a": np.zeros(1, "f4,i2")}, ValueError, "got void48"),
        ({"a": np.zeros(1, ml_dtypes.float8_e4m3fn)}, ValueError, "got float8_e4m3fn"),
        ({"a": np.zeros(1, ml_dtypes.int4)}, ValueError, "got int4"),
        ({"__metadata__": np.zeros(1)}, ValueError, "other than '__metadata__'"),
        ({1: np.zeros(1)}, ValueError, "name must be a string .*, got 1"),
        ({"\ud800": np.zeros(1)}, ValueError, "valid Unicode"),
    ],
)
def test_refused_arrays(path: Path, arrays: Any, error: type[Exception], message: str) -> None:
    write(path, {}, {"old": True})
    with pytest.raises(error, match=message):
        write(path, arrays, {})
    assert read(path) == ({}, {"old": True})
    assert_only(path)


@pytest.mark.parametrize(
    "metadata",
    [
        *(None, [], {"a": float("nan")}, {"a": float("inf")}, {"a": (1, 2)}, {1: "a"}, {"a": np.zeros(2)}, {"a": b""}),
        *({"a": {1}}, {"a": "\ud800"}, {"a": np.float32(1)}, {"a": 10**5000}),
    ],
)
def test_refused_metadata(path: Path, metadata: Any) -> None:
    write(path, {}, {"old": True})
    with pytest.raises(ValueError, match=r"must be a dict of JSON values|must be valid Unicode"):
        write(path, {}, metadata)
    assert read(path) == ({}, {"old": True})
    assert_only(path)


def test_a_header_too_long_for_safetensors(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(path, {}, {"a": "x" * 2000})
    monkeypatch.setattr(state, "_HEADER_LIMIT", 2000)
    with pytest.raises(StateFileError, match="not a safetensors file"):
        read(path)
    with pytest.raises(ValueError, match=r"at most 2000 bytes, got 2[0-9]{3}$"):
        write(path, {}, {"a": "x" * 2000})
    monkeypatch.undo()
    assert read(path)[1] == {"a": "x" * 2000}


# ---- what stands at the path -----------------------------------------------------------------------------------------


def test_permissions(path: Path) -> None:
    old = os.umask(0o027)
    try:
        write(path, {}, {})
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        for mode in (0o600, 0o666, 0o755):
            path.chmod(mode)
            write(path, {}, {"mode": mode})
            assert stat.S_IMODE(path.stat().st_mode) == mode
    finally:
        os.umask(old)


def test_symbolic_links(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    target, link = tmp_path / "real" / "model", tmp_path / "link"
    link.symlink_to(target)
    for count in range(2):  # at first the link leads to nothing
        write(link, {"a": np.arange(count)}, {"count": count})
        assert link.is_symlink()
        assert not target.is_symlink()
        assert read(target)[1] == read(link)[1] == {"count": count}
    assert_only(target)


def test_a_relative_path_and_a_long_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = "é" * 127
    write(name, {}, {"a": 1})
    assert read(name)[1] == {"a": 1}
    assert os.listdir() == [name]


def test_what_is_not_replaced(tmp_path: Path) -> None:
    """A folder and a pipe, which stands for a device: on a real one, a failure of this test as root would destroy it."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (tmp_path, pipe):
        with pytest.raises(StateFileError, match=f"{path} can't be replaced .* not a regular file"):
            write(path, {}, {})
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert_only(pipe)
    with pytest.raises(FileNotFoundError) as caught:
        write(tmp_path / "no" / "model", {}, {})
    assert caught.value.filename == str(tmp_path / "no" / "model")
    assert_only(pipe)


@pytest.mark.parametrize("failing", ["fsync", "replace", "fchmod"])
@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), KeyboardInterrupt()], ids=["OSError", "Ctrl-C"])
def test_an_error_leaves_the_old_file(path: Path, failing: str, error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    write(path, {}, {"old": True})

    def fail(*_: Any) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(os, failing, fail)
        with pytest.raises(type(error)):
            write(path, {"a": np.zeros(10)}, {})
    assert read(path) == ({}, {"old": True})
    assert_only(path)


@pytest.mark.parametrize("stride", [1, 2])
def test_what_is_hashed_is_written(path: Path, stride: int, monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.ones(100)[::stride]
    digest = hashlib.blake2b

    class Meanwhile:
        """Another thread changes the array as soon as a piece of it is hashed."""

        def __init__(self, *arguments: Any, **options: Any) -> None:
            self.hash = digest(*arguments, **options)
            self.hexdigest = self.hash.hexdigest

        def update(self, piece: Any) -> None:
            self.hash.update(piece)
            array[...] = 2

    with monkeypatch.context() as patched:
        patched.setattr(hashlib, "blake2b", Meanwhile)
        write(path, {"a": array}, {})
    np.testing.assert_array_equal(read(path)[0]["a"], np.ones(len(array)))
    assert (array == 2).all()


def test_the_order_of_flushing_and_renaming(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The content is on disk before it gets the name, and then the name is: else a power cut could leave neither."""
    events = []
    fsync, replace = os.fsync, os.replace

    def note_fsync(descriptor: int) -> None:
        events.append("flush folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "flush file")
        fsync(descriptor)

    def note_replace(source: str, target: str) -> None:
        events.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    write(path, {"a": np.zeros(3)}, {})
    assert events == ["flush file", "rename", "flush folder"]


def test_what_killed_writers_left_goes_after_a_day(path: Path) -> None:
    path = path.parent / "a[b].state"
    left = [path.parent / f".{name}.{'0f' * 8}.tmp" for name in (path.name, "other", path.name + ".x")]
    fresh = path.parent / f".{path.name}.{'1e' * 8}.tmp"
    for file in (*left, fresh):
        file.write_bytes(b"half a file")
    for file in left:
        os.utime(file, (0, 0))
    write(path, {}, {})
    assert sorted(path.parent.iterdir()) == sorted([path, fresh, *left[1:]])


# ---- kills and full disks --------------------------------------------------------------------------------------------


def run(script: str, *arguments: object) -> str:
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_full_disk(path: Path) -> None:
    """The limit on a file's size stands for the disk's: the write fails in the middle."""
    write(path, {}, {"old": True})
    out = run(
        """
        import resource, sys
        import numpy as np
        from adagrad.state import write
        resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, 3_000_000))
        try:
            write(sys.argv[1], {"a": np.ones(1_000_000)}, {})
        except OSError as error:
            print(type(error).__name__, error.filename)
        """,
        path,
    )
    assert out == f"OSError {path}\n"
    assert read(path) == ({}, {"old": True})
    assert_only(path)


def test_a_folder_without_permission() -> None:
    """As a user without rights, which root isn't."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        write(path, {}, {"old": True})
        os.chmod(folder, 0o555)
        out = run(
            """
            import os, sys
            from adagrad.state import write
            if os.geteuid() == 0:
                os.setuid(65534)
            try:
                write(sys.argv[1], {}, {})
            except PermissionError as error:
                print("refused", error.filename)
            """,
            path,
        )
        assert out == f"refused {path}\n"
        assert read(path) == ({}, {"old": True})
        assert_only(path)
        os.chmod(folder, 0o755)


def test_kills(path: Path) -> None:
    """A process that writes two contents by turns is killed 50 times, at any moment: the file is always one of them.

    It also shows that kills did come within a write (a temporary file is left), and that both contents were met.
    """
    out = run(
        """
        import os, random, signal, sys, time
        import numpy as np
        from adagrad.state import read, write

        path, rng = sys.argv[1], random.Random(3)
        folder, name = os.path.split(path)
        contents = [np.full(200_000, value) for value in (1.0, 2.0)]
        which, met, within = 0, set(), 0
        begin = time.monotonic()
        write(path, {"a": contents[0]}, {"which": 0})
        took = time.monotonic() - begin
        for _ in range(50):
            child = os.fork()
            if child == 0:
                while True:
                    which = 1 - which
                    write(path, {"a": contents[which]}, {"which": which})
            time.sleep(rng.uniform(0.0, 4 * took))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            arrays, metadata = read(path)
            which = metadata["which"]
            assert np.array_equal(arrays["a"], contents[which])
            met.add(which)
            for left in set(os.listdir(folder)) - {name}:
                assert left.startswith(f".{name}.") and left.endswith(".tmp")
                within += 1
                os.unlink(os.path.join(folder, left))
            if within >= 5 and len(met) == 2 and time.monotonic() > begin + 5:
                break
        print(met, within >= 5)
        """,
        path,
    )
    assert out == "{0, 1} True\n"
