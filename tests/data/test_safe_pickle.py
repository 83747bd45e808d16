"""Published batches can be read; nothing in a pickle is ever run."""

from __future__ import annotations

import io
import os
import pickle
import pickletools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polysem.data.safe_pickle import read_pickled_dict
from polysem.errors import DataError

PIXELS = np.arange(35, dtype=np.uint8).reshape(5, 7)

# What Python 2 with old numpy wrote, as CIFAR was published: protocol 2, byte strings.
PYTHON_2 = (
    b"\x80\x02}q\x01(U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\n"
    b"q\x04K\x00\x85U\x01bq\x05\x87Rq\x06(K\x01K\x01K\x03\x86q\x07cnumpy\ndtype\nq\x08U\x02u1q\t"
    b"K\x00K\x01\x87Rq\n(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x03\x00\x7f"
    b"\xfftbU\x06labels]q\x0bK\x06aU\x0bbatch_labelU\x04testu."
)


class Evil:
    def __init__(self, call: Any, *arguments: Any) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple[Any, Any]:
        return self.call, self.arguments


def read(content: bytes) -> dict[str, Any]:
    return read_pickled_dict(content, where="batch")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_any_protocol(protocol: int) -> None:
    content = pickle.dumps({b"data": PIXELS, "labels": [3, 1], "n": None}, protocol)
    found = read(content)
    np.testing.assert_array_equal(found["data"], PIXELS)
    assert found["data"].dtype == np.uint8
    assert found["labels"] == [3, 1]


def test_python_2() -> None:
    pickletools.dis(PYTHON_2, io.StringIO())  # the bytes above are a pickle
    found = read(PYTHON_2)
    assert found["data"].tolist() == [[0, 127, 255]]
    assert (found["labels"], found["batch_label"]) == ([6], b"test")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_nothing_is_run(tmp_path: Path, protocol: int) -> None:
    trap = tmp_path / "ran"
    for call in (Evil(os.mkdir, str(trap)), Evil(eval, f"__import__('os').mkdir({str(trap)!r})")):
        for content in (call, {b"data": call}, [call]):
            with pytest.raises(DataError, match=r"it holds a call of \S+; nothing was run"):
                read(pickle.dumps(content, protocol))
    assert not trap.exists()


@pytest.mark.parametrize(
    "value",
    [
        np.array([[object()]], dtype=object),
        np.arange(6, dtype=np.int64),
        np.asfortranarray(PIXELS),
        np.float64(3),
        Evil(np.load, "x.npy"),
    ],
)
def test_other_arrays_are_refused(value: Any) -> None:
    for protocol in (2, 4, 5):
        with pytest.raises(DataError, match=r"nothing was run"):
            read(pickle.dumps({"data": value}, protocol))


def test_codecs_are_limited_to_spelling_bytes() -> None:
    content = b"\x80\x02}U\x01ac_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00zip\x86Rs."
    with pytest.raises(DataError, match=r"codecs\.encode to 'zip'"):
        read(content)


def test_other_things_than_dictionaries() -> None:
    with pytest.raises(DataError, match="a list where a dictionary was expected"):
        read(pickle.dumps([1]))


def test_false_sizes() -> None:
    content = PYTHON_2.replace(b"K\x01K\x03\x86q\x07", b"K\x09K\x03\x86q\x07")
    with pytest.raises(DataError, match="is damaged"):
        read(content)


@settings(deadline=None)
@given(st.binary(max_size=60), st.integers(0, 200))
def test_damage_is_a_data_error(noise: bytes, cut: int) -> None:
    for content in (noise, PYTHON_2[:cut], PYTHON_2[:cut] + noise):
        try:
            assert isinstance(read(content), dict)
        except DataError:
            continue
