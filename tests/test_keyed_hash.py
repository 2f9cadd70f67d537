"""The kernel of keyed hashes agrees with Python's own HMAC, on any text and key, slices and nulls, and with the RFC's cases."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.keyed_hash.cpu import ALL, LANES, SHORT, KeyedHash, hash_texts
from kernels.keyed_hash.naive import keyed_hash

VALUES = st.lists(st.none() | st.binary(max_size=200), max_size=30)


@given(key=st.binary(min_size=1, max_size=150), values=VALUES, start=st.integers(0, 5))
def test_it_is_hmac_sha_256_cut_to_128_bits(key: bytes, values: list[bytes | None], start: int) -> None:
    column = pa.array(values, pa.binary()).slice(start)
    got = KeyedHash(key)(column)
    got.validate(full=True)
    expected = [keyed_hash(key, value) for value in values[start:]]
    assert got.to_pylist() == [None if value is None else value.encode() for value in expected]


@pytest.mark.parametrize("size", [0, 1, 54, 55, 56, 57, 63, 64, 65, 119, 120, 127, 128, 129, 1000])
def test_every_length_around_a_block_is_padded_right(size: int) -> None:
    value = bytes(range(256)) * 4
    assert KeyedHash(b"k" * 16)(pa.array([value[:size]]))[0].as_py().decode() == keyed_hash(b"k" * 16, value[:size])


@pytest.mark.parametrize("n", [LANES - 1, LANES, LANES + 1, 3 * LANES + 5])
def test_texts_that_are_hashed_side_by_side_are_hashed_as_by_themselves(n: int) -> None:
    """Of every length up to a block's, with nulls and longer ones between them."""
    rng = np.random.default_rng(n)
    texts: list[bytes | None] = [rng.bytes(k % (SHORT + 1)) for k in range(7, n + 7)]
    for columns in (texts, [None if k % 5 == 2 else text for k, text in enumerate(texts)], [*texts, b"x" * 200, *texts]):
        found = KeyedHash(b"k" * 16)(pa.array(columns, pa.binary())).to_pylist()
        expected = [keyed_hash(b"k" * 16, text) for text in columns]
        assert found == [None if one is None else one.encode() for one in expected]


def test_the_cases_of_rfc_4231() -> None:
    cases = [
        (b"\x0b" * 20, b"Hi There", "b0344c61d8db38535ca8afceaf0bf12b"),
        (b"Jefe", b"what do ya want for nothing?", "5bdcc146bf60754e6a042426089575c7"),
        (b"\xaa" * 131, b"Test Using Larger Than Block-Size Key - Hash Key First", "60e431591ee0b67f0d8a26aacbf5b77f"),
    ]
    for key, value, expected in cases:
        assert keyed_hash(key, value) == expected
        assert KeyedHash(key)(pa.array([value.decode()]))[0].as_py() == expected


def test_every_output_is_written() -> None:
    out = np.full((3, 32), 255, np.uint8)
    starts, valid, state = np.array([0, 1, 2, 3], np.int32), np.array([True, False, True]), np.zeros(8, np.uint32)
    hash_texts(starts, np.frombuffer(b"abc", np.uint8), valid, state, state, out)
    assert not out[1].any()
    assert (out != 255).all()
    hash_texts(starts, np.frombuffer(b"abc", np.uint8), ALL, state, state, out)
    assert out[1].all()


def test_whole_numbers_hash_as_their_digits() -> None:
    hashed = KeyedHash(b"k" * 16)
    numbers = [4111111111111111, None, -7]
    assert hashed(pa.array(numbers)) == hashed(pa.array([None if n is None else str(n) for n in numbers]))
    with pytest.raises(TypeError, match=r"expected a column of strings or whole numbers to hash, got double"):
        hashed(pa.array([1.5]))


def test_nothing_is_compiled_for_another_kind_of_buffer() -> None:
    hashed = KeyedHash(b"k" * 16)
    hashed(pa.array(["a", None]))
    before = len(hash_texts.signatures)
    frozen = pa.py_buffer(b"abc")
    hashed(pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(np.array([0, 3], np.int32)), frozen]))
    hashed(pa.array([b"a", b"b"]).slice(1))
    assert len(hash_texts.signatures) == before
