"""The hash of categories: the published XXH64, bit for bit, for ever."""

import numpy as np
import pyarrow as pa
import pytest

from adagrad.cli.columns import hashes, list_hashes
from adagrad.cli.hashing import combine, hash_bytes, hash_texts
from adagrad.cli.parsing import texts

P1, P2, P3, P4, P5 = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5
MASK = 2**64 - 1


def slow_xxh64(data: bytes, seed: int) -> int:
    """XXH64 by its specification, in plain integers."""

    def rotate(x: int, bits: int) -> int:
        return (x << bits | x >> (64 - bits)) & MASK

    def mix(a: int, word: int) -> int:
        return rotate((a + word * P2) & MASK, 31) * P1 & MASK

    size, x = len(data), (seed + P5) & MASK
    if size >= 32:
        lanes = [(seed + P1 + P2) & MASK, (seed + P2) & MASK, seed, (seed - P1) & MASK]
        while len(data) >= 32:
            lanes = [mix(a, int.from_bytes(data[8 * k : 8 * k + 8], "little")) for k, a in enumerate(lanes)]
            data = data[32:]
        x = sum(rotate(a, r) for a, r in zip(lanes, (1, 7, 12, 18), strict=True)) & MASK
        for a in lanes:
            x = ((x ^ mix(0, a)) * P1 + P4) & MASK
    x = (x + size) & MASK
    while len(data) >= 8:
        x = (rotate(x ^ mix(0, int.from_bytes(data[:8], "little")), 27) * P1 + P4) & MASK
        data = data[8:]
    if len(data) >= 4:
        x = (rotate(x ^ (int.from_bytes(data[:4], "little") * P1 & MASK), 23) * P2 + P3) & MASK
        data = data[4:]
    for byte in data:
        x = rotate(x ^ (byte * P5 & MASK), 11) * P1 & MASK
    x = (x ^ x >> 33) * P2 & MASK
    x = (x ^ x >> 29) * P3 & MASK
    return x ^ x >> 32


@pytest.mark.parametrize(
    ("data", "seed", "expected"),
    [
        # Of the reference implementation, libxxhash 0.8.
        (b"", 0, 0xEF46DB3751D8E999),
        (b"a", 0, 0xD24EC4F1A98C6E5B),
        (b"abc", 0, 0x44BC2CF5AD770999),
        (b"Nobody inspects the spammish repetition", 0, 0xFBCEA83C8A378BF1),
    ],
)
def test_golden_values(data: bytes, seed: int, expected: int) -> None:
    assert hash_bytes(data, seed) == expected == slow_xxh64(data, seed)


def test_every_length_and_seed() -> None:
    rng = np.random.default_rng(1)
    for size in [*range(70), 127, 128, 1000]:
        data, seed = rng.bytes(size), int(rng.integers(0, 2**64, dtype=np.uint64))
        assert hash_bytes(data, seed) == slow_xxh64(data, seed), size


def test_rows_of_a_sliced_array_with_nulls() -> None:
    array = pa.array(["left out", "a", None, "", "x" * 40, "ü", "left out"])[1:6]
    expected = [slow_xxh64(value, 7) for value in (b"a", b"", b"", b"x" * 40, "ü".encode())]
    assert hash_texts(*texts(array), 7).tolist() == expected


def test_a_cross_hashes_both_hashes() -> None:
    left, right = np.array([1, 2**64 - 1], np.uint64), np.array([2**63, 5], np.uint64)
    pairs = [a.to_bytes(8, "little") + b.to_bytes(8, "little") for a, b in zip(left.tolist(), right.tolist(), strict=True)]
    assert combine(left, right, 9).tolist() == [slow_xxh64(pair, 9) for pair in pairs]


@pytest.mark.parametrize(
    "array",
    [
        pa.array(["a", None, "", "b"]).dictionary_encode(),
        pa.array(["a", None, "", "b"], pa.large_string()),
        pa.array(["a", None, "", "b"], pa.string_view()),
        pa.array([b"a", b"", None, b"b"]),
        pa.array([b"a", b"", None, b"b"], pa.binary_view()),
    ],
)
def test_the_type_that_holds_a_text_does_not_matter(array: pa.Array) -> None:
    assert hashes(array, "text", 3).tolist() == [slow_xxh64(value, 3) for value in (b"a", b"", b"", b"b")]


def test_numbers_and_booleans_hash_as_their_text() -> None:
    assert hashes(pa.array([7, None, -12]), "integer", 3).tolist() == [slow_xxh64(v, 3) for v in (b"7", b"", b"-12")]
    expected = [slow_xxh64(v, 3) for v in (b"true", b"false", b"")]
    assert hashes(pa.array([True, False, None]), "boolean", 3).tolist() == expected
    assert hashes(pa.array([b"True", b"FALSE", b""]), "boolean", 3).tolist() == expected


@pytest.mark.parametrize(
    "array",
    [
        pa.array([["left out"], ["a", "b"], None, [], ["c", None]])[1:],
        pa.array([["a", "b"], None, [], ["c", None]], pa.large_list(pa.string())),
        pa.array([["a", "b"], None, [], ["c", None]], pa.list_(pa.dictionary(pa.int32(), pa.string()))),
    ],
)
def test_lists_are_several_categories_and_an_empty_one_is_missing(array: pa.Array) -> None:
    found, lengths = list_hashes(array, 3)
    assert lengths.tolist() == [2, 1, 1, 2]
    assert found.tolist() == [slow_xxh64(value, 3) for value in (b"a", b"b", b"", b"", b"c", b"")]


def test_lists_of_a_fixed_size() -> None:
    found, lengths = list_hashes(pa.array([[1, 2], None, [3, 4]], pa.list_(pa.int32(), 2)), 3)
    assert lengths.tolist() == [2, 1, 2]
    assert found.tolist() == [slow_xxh64(value, 3) for value in (b"1", b"2", b"", b"3", b"4")]
