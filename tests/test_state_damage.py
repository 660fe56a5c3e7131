"""The state file: any damage is seen, and a file of another kind, or one forged to do harm, is refused."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from adagrad.state import StateFileError, read, write


@pytest.fixture(scope="module")
def small() -> Iterator[tuple[Path, bytes]]:
    """A small state file, to be overwritten by its damaged copies."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "small.safetensors"
        write(
            path, {"w": np.float32([[1, 2, -3], [0, 1e-40, 7]]), "n": np.array(7), "e": np.zeros((0, 2), np.int8)}, {"step": 3}
        )
        yield path, path.read_bytes()


def assert_damage_seen(path: Path) -> str:
    """Return the one sentence that says so."""
    with pytest.raises(StateFileError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(f"{path} can't be read as a state file: ")
    assert "\n" not in message
    return message


def assert_refused(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return assert_damage_seen(path)


def test_every_truncation(small: tuple[Path, bytes]) -> None:
    path, content = small
    path.write_bytes(content)
    for length in reversed(range(len(content))):
        os.truncate(path, length)
        assert_damage_seen(path)


def test_every_byte(small: tuple[Path, bytes]) -> None:
    """Every bit flipped, and bytes replaced by some that mean something in JSON: the header may still be parsed then."""
    path, content = small
    path.write_bytes(content)
    with path.open("r+b", buffering=0) as file:
        for position, byte in enumerate(content):
            for wrong in {byte ^ 1 << bit for bit in range(8)} | set(b' 0"}') - {byte}:
                os.pwrite(file.fileno(), bytes([wrong]), position)
                assert_damage_seen(path)
            os.pwrite(file.fileno(), bytes([byte]), position)
    assert read(path)[1] == {"step": 3}


def test_bytes_added_or_lost(small: tuple[Path, bytes]) -> None:
    path, content = small
    for position in range(0, len(content), 5):
        assert_refused(path, content[:position] + b" " + content[position:])
        assert_refused(path, content[:position] + content[position + 1 :])
        assert_refused(path, content[:position] + content[position + 1 :] + b" ")
    assert_refused(path, content + b"\0")
    assert_refused(path, content * 2)


@given(st.binary(max_size=300) | st.binary(max_size=200).map(lambda text: len(text).to_bytes(8, "little") + text))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_arbitrary_bytes(small: tuple[Path, bytes], content: bytes) -> None:
    assert_refused(small[0], content)


def forge(entries: dict[str, Any], data: bytes, **ours: Any) -> bytes:
    """Make a file with right digests around whatever is to be refused for another reason."""
    digests = {}
    for name, entry in entries.items():
        offsets = entry.get("data_offsets")
        part = data[slice(*offsets)] if isinstance(offsets, list) else data
        digests[name] = hashlib.blake2b(part, digest_size=32).hexdigest()
    mine = {"format": "adagrad-state", "version": "1", "metadata": "{}", "digests": json.dumps(digests), **ours}
    text = json.dumps({**entries, "__metadata__": {**mine, "header_digest": "0" * 64}}).encode()
    header = len(text).to_bytes(8, "little") + text
    digest = hashlib.blake2b(header, digest_size=32).hexdigest().encode()
    return digest.join(header.rsplit(b"0" * 64, 1)) + data


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8), **more: Any) -> dict[str, Any]:
    shape, offsets = (list(x) if isinstance(x, tuple) else x for x in (shape, offsets))
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


def test_a_forged_file_is_read_if_it_is_right(tmp_path: Path) -> None:
    """So those below are refused for the reason they name. Another writer may use other spaces, as JSON allows."""
    path = tmp_path / "forged"
    path.write_bytes(forge({"a": entry()}, b"\0" * 8, metadata='{"a": 1}'))
    arrays, metadata = read(path)
    assert arrays["a"].tolist() == [0.0, 0.0]
    assert metadata == {"a": 1}


HUGE = 2**62


@pytest.mark.parametrize(
    ("entries", "ours", "message"),
    [
        ({"a": entry(offsets=(0, 4))}, {}, "shape .* and offsets"),
        ({"a": entry(offsets=(4, 12))}, {}, "shape .* and offsets"),
        ({"a": entry(offsets=(-8, 0))}, {}, "shape .* and offsets"),
        ({"a": entry(offsets=(0,))}, {}, "shape .* and offsets"),
        ({"a": entry(offsets=None)}, {}, "shape .* and offsets"),
        ({"a": entry(shape=(1,), offsets=(0, 4)), "b": entry(shape=(1,), offsets=(0, 4))}, {}, "'b' has shape"),
        ({"a": entry(shape=(1,), offsets=(0, 4))}, {}, "has .* bytes and should have"),
        ({"a": entry(shape=(HUGE,), offsets=(0, 4 * HUGE))}, {}, "has .* bytes and should have"),
        ({"a": entry(shape=(HUGE, HUGE, 0)), "b": entry()}, {}, "shape .* and offsets"),
        ({"a": entry(), "b": entry(shape=(HUGE, HUGE, 0), offsets=(8, 8))}, {}, "'b' has shape"),
        ({"a": entry(), "b": entry(shape=(0, 2**70), offsets=(8, 8))}, {}, "'b' has shape"),
        ({"a": entry(shape=(1,) * 64 + (2,))}, {}, "shape .* and offsets"),
        ({"a": entry(shape=(-2,))}, {}, "shape .* and offsets"),
        ({"a": entry(shape=(-1, -2))}, {}, "shape .* and offsets"),
        ({"a": entry(shape=(2.0,))}, {}, "shape .* and offsets"),
        ({"a": entry(shape=(2, True))}, {}, "shape .* and offsets"),
        ({"a": entry(shape=2)}, {}, "shape .* and offsets"),
        ({"a": entry(shape=None)}, {}, "shape .* and offsets"),
        ({"a": entry(dtype="C64", shape=(1,))}, {}, "is of type 'C64', which is not one of F64"),
        ({"a": entry(dtype="O")}, {}, "is of type 'O'"),
        ({"a": entry(dtype=["F32"])}, {}, "is of type"),
        ({"a": entry(more=1)}, {}, "is described as"),
        ({"a": {"dtype": "F32", "shape": [2]}}, {}, "is described as"),
        ({"a": {}}, {}, "is described as {}"),
        ({"a": entry()}, {"digests": "{}"}, "digests are not those of its arrays"),
        ({"a": entry()}, {"digests": '{"a": "", "b": ""}'}, "digests are not those of its arrays"),
        ({"a": entry()}, {"digests": '{"a": ""}'}, "'a' doesn't fit its digest"),
        ({"a": entry()}, {"digests": '{"a": null}'}, "'a' doesn't fit its digest"),
        ({"a": entry()}, {"digests": "[]"}, "digests is not a JSON object"),
        ({"a": entry()}, {"digests": 5}, "digests is not JSON"),
        ({"a": entry()}, {"metadata": None}, "metadata is not JSON"),
        ({"a": entry()}, {"metadata": "5"}, "metadata is not a JSON object"),
        ({"a": entry()}, {"metadata": "{"}, "metadata is not JSON"),
        ({"a": entry()}, {"metadata": '{"a": NaN}'}, "NaN is not JSON"),
        ({"a": entry()}, {"metadata": '{"a": 1, "a": 2}'}, "a key stands there twice"),
        ({"a": entry()}, {"metadata": '{"a": ' + "1" * 5000 + "}"}, "metadata is not JSON"),
        ({"a": entry()}, {"metadata": '{"a": ' + "[" * 100_000 + "}"}, "metadata is not JSON"),
        ({"a": entry()}, {"more": "x"}, "__metadata__ has other keys"),
        ({"a": entry()}, {"version": "2"}, "format version '2', and this adagrad reads '1'"),
        ({"a": entry()}, {"version": 1}, "format version 1, and this adagrad reads '1'"),
        ({"a": entry()}, {"format": "pt"}, "safetensors file of another kind"),
    ],
)
def test_forged_files(tmp_path: Path, entries: dict, ours: dict, message: str) -> None:
    """Refused although every digest fits, and before anything of the claimed size is allocated."""
    path = tmp_path / "forged"
    path.write_bytes(forge(entries, b"\0" * 8, **ours))
    tracemalloc.start()
    try:
        assert re.search(message, assert_damage_seen(path))
        assert tracemalloc.get_traced_memory()[1] < 1 << 22
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("text", ["[]", "5", '"a"', "{", '{"__metadata__": 5}', "\ufeff{}", '{"a": 1, "a": 1}', ""])
def test_headers_that_are_no_header(tmp_path: Path, text: str) -> None:
    path, body = tmp_path / "header", text.encode()
    assert_refused(path, len(body).to_bytes(8, "little") + body)
    assert_refused(path, len(body).to_bytes(8, "little") + text.encode("utf-16"))


def test_foreign_files(tmp_path: Path) -> None:
    path = tmp_path / "foreign"
    safetensors.numpy.save_file({"a": np.zeros(3)}, path, metadata={"format": "pt"})
    with pytest.raises(StateFileError, match="safetensors file of another kind, without the format 'adagrad-state'"):
        read(path)
    safetensors.numpy.save_file({"a": np.zeros(3)}, path)
    with pytest.raises(StateFileError, match="safetensors file of another kind"):
        read(path)
    np.savez(tmp_path / "a.npz", a=np.zeros(3))
    with pytest.raises(StateFileError, match="not a safetensors file, or cut off"):
        read(tmp_path / "a.npz")
    for content in (b"", b"id,x\n1,2\n", b"\xff" * 8, b"\xff" * 100, bytes(8), bytes(100)):
        assert_refused(path, content)
    with pytest.raises(StateFileError, match="not a regular file"):
        read(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StateFileError, match="not a regular file"):
        read(tmp_path / "pipe")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read(tmp_path / "nowhere")
