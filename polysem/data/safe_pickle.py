"""Pickled dictionaries of byte arrays, as CIFAR is published in, read without running anything.

A pickle is a program. Here its every call lands in a stand-in that only keeps the arguments; not
even numpy sees them before they have been checked.
"""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np
import numpy.typing as npt

from polysem.errors import DataError

__all__ = ["read_pickled_dict"]


def read_pickled_dict(content: bytes, *, where: str) -> dict[str, Any]:
    """Return a pickled dictionary of plain values and arrays of bytes, its keys as words.

    Parameters
    ----------
    content : bytes
        The pickle, of any protocol, from Python 2 or 3.
    where : str
        Its file, for messages.

    Returns
    -------
    dict
        Strings of Python 2 come as ``bytes``, arrays as uint8 arrays.

    Raises
    ------
    DataError
        If it would call anything but what builds numpy arrays, or is damaged.
    """
    try:
        found = _Unpickler(io.BytesIO(content), encoding="bytes").load()
        if not isinstance(found, dict):
            raise _ForeignError(f"a {type(found).__name__} where a dictionary was expected")
        return {
            key.decode() if isinstance(key, bytes) else str(key): (
                value.to_numpy() if isinstance(value, _Array) else value
            )
            for key, value in found.items()
        }
    except _ForeignError as error:
        raise DataError(f"{where} is no CIFAR batch: it holds {error}; nothing was run") from None
    except Exception as error:  # the unpickler raises nearly anything on damaged input
        raise DataError(f"{where} is damaged: {error or type(error).__name__}") from None


class _ForeignError(Exception):
    """Something that no array of bytes needs."""


class _Kept:
    """Takes the place of whatever a pickle calls, and keeps the arguments."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _ArrayType(_Kept):
    """In place of the class ``numpy.ndarray``."""


class _Dtype(_Kept):
    """In place of ``numpy.dtype``."""


class _Array(_Kept):
    """In place of ``numpy…._reconstruct``: the array comes as state."""

    def to_numpy(self) -> npt.NDArray[np.uint8]:
        _, shape, dtype, is_fortran, content = self.state
        return _bytes_to_numpy(content, dtype, shape, "F" if is_fortran else "C")


class _ArrayFromBuffer(_Array):
    """In place of ``numpy…._frombuffer`` (pickle protocol 5): the array comes as arguments."""

    def to_numpy(self) -> npt.NDArray[np.uint8]:
        return _bytes_to_numpy(*self.arguments)


def _bytes_to_numpy(content: Any, dtype: Any, shape: Any, order: Any) -> npt.NDArray[np.uint8]:
    if not isinstance(dtype, _Dtype) or dtype.arguments[:1] not in (("u1",), (b"u1",)):
        raise _ForeignError("an array of something else than bytes")
    if not isinstance(content, (bytes, bytearray)) or order != "C":
        raise _ForeignError("an array in an unknown order")
    return np.frombuffer(content, dtype=np.uint8).reshape(shape)


def _latin1(text: Any, encoding: Any) -> bytes:
    """In place of ``codecs.encode``, which is how protocols 0 to 2 spell bytes."""
    if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
        raise _ForeignError(f"a call of codecs.encode to {encoding!r}")
    return text.encode("latin1")


_STAND_INS: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _ArrayType,
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy.core.numeric", "_frombuffer"): _ArrayFromBuffer,
    ("numpy._core.numeric", "_frombuffer"): _ArrayFromBuffer,
    ("_codecs", "encode"): _latin1,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _STAND_INS[module, name]
        except KeyError:
            raise _ForeignError(f"a call of {module}.{name}") from None
