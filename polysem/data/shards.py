"""Files that data are cut into, here or in an object store: named by patterns, read in parts.

Everything goes through fsspec, so that an address may be a path or begin with ``s3://``,
``gs://``, ``https://``, ``hf://`` or any other protocol whose package is installed.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO, Any

import fsspec

from polysem.errors import DataError, MissingError, PolysemError, SpecError

__all__ = ["Shard", "expand_braces", "find_shards", "is_address", "shard_contents"]

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")

#: Bytes from the start of each shard that go into the fingerprint.
_HEAD_BYTES = 1 << 16


@dataclass(frozen=True)
class Shard:
    """One file.

    Attributes
    ----------
    url : str
        Its address.
    size : int
        Bytes.
    version : str
        What the store says of its content (ETag, or time of the last change); empty for local
        files, which may be copied.
    """

    url: str
    size: int
    version: str

    @property
    def name(self) -> str:
        """The last part of its address."""
        return PurePosixPath(self.url).name

    def read(self, start: int, stop: int) -> bytes:
        """Return some of its bytes; fewer if it ends before.

        Raises
        ------
        MissingError
            If it is gone.
        DataError
            If the store refuses.
        """
        with _in_words(self.url):
            fs, path = fsspec.url_to_fs(self.url)
            found: bytes = fs.cat_file(path, start=start, end=min(stop, self.size))
            return found

    def place(self) -> tuple[Any, str]:
        """Return its file system and its path there."""
        with _in_words(self.url):
            found: tuple[Any, str] = fsspec.url_to_fs(self.url)
            return found

    @contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """Open it to be read from start to end; errors as in `read`."""
        with _in_words(self.url):
            fs, path = fsspec.url_to_fs(self.url)
            with fs.open(path, "rb") as file:
                yield file


def is_address(text: str) -> bool:
    """Whether a text begins with a protocol.

    >>> is_address("s3://bucket/{000..123}.tar"), is_address("data/a.tar"), is_address("hub:a/b")
    (True, False, False)
    """
    return _ADDRESS.match(text) is not None


def expand_braces(pattern: str) -> list[str]:
    """Return all that a pattern stands for, as a shell would.

    >>> expand_braces("{train,val}-{08..10}.tar")[1:4]
    ['train-09.tar', 'train-10.tar', 'val-08.tar']
    """
    pieces: list[Sequence[str]] = []
    at = 0
    for found in _BRACES.finditer(pattern):
        pieces += [[pattern[at : found.start()]], _alternatives(found[1])]
        at = found.end()
    return ["".join(parts) for parts in itertools.product(*pieces, [pattern[at:]])]


def find_shards(pattern: str, endings: Sequence[str]) -> list[Shard]:
    """Return the files that a pattern names, in its order; those of a folder, sorted.

    Parameters
    ----------
    pattern : str
        A path or address; ``{000..123}``, ``{a,b}`` and the stars of globs may be in it.
    endings : sequence of str
        How files in a folder have to end.

    Raises
    ------
    SpecError
        If the protocol is unknown, or its package is not installed.
    MissingError
        If there is nothing of that name.
    DataError
        If the store refuses.
    """
    shards: list[Shard] = []
    for one in expand_braces(pattern):
        with _in_words(one):
            fs, path = fsspec.url_to_fs(one)
            if any(c in path for c in "*["):
                paths = sorted(fs.glob(path))
            elif fs.isdir(path):
                paths = sorted(p for p in fs.find(path) if p.endswith(tuple(endings)))
            else:
                paths = [path]
            shards += (_shard(fs, path) for path in paths)
    if not shards:
        raise MissingError(f"there are no files {' or '.join(endings)} at {pattern}")
    return shards


def shard_contents(shards: Sequence[Shard]) -> Iterator[bytes]:
    """Yield what a fingerprint takes of shards: names, sizes, versions and first bytes."""
    for shard in shards:
        yield f"{shard.name}\0{shard.size}\0{shard.version}\n".encode()
        yield shard.read(0, min(_HEAD_BYTES, shard.size))


def _alternatives(inside: str) -> list[str]:
    if ends := _RANGE.fullmatch(inside):
        width = len(ends[1])
        return [str(n).zfill(width) for n in range(int(ends[1]), int(ends[2]) + 1)]
    return inside.split(",")


def _shard(fs: Any, path: str) -> Shard:
    info = fs.info(path)
    size = info.get("size")
    if size is None:
        raise DataError(f"{path}: the server does not tell its size, so parts of it cannot be read")
    return Shard(fs.unstrip_protocol(path), int(size), _version(fs, info))


def _version(fs: Any, info: dict[str, Any]) -> str:
    if "file" in (fs.protocol if isinstance(fs.protocol, tuple) else (fs.protocol,)):
        return ""
    names = ("ETag", "etag", "LastModified", "last_modified", "mtime")
    return str(next((info[name] for name in names if name in info), ""))


@contextmanager
def _in_words(url: str) -> Iterator[None]:
    """Turn what stores raise, which is nearly anything, into a sentence."""
    try:
        yield
    except PolysemError:
        raise
    except FileNotFoundError:
        raise MissingError(f"there is no file {url}") from None
    except ImportError as error:
        raise SpecError(f"{url} cannot be read here: {error}") from None
    except ValueError as error:
        raise SpecError(f"{url} cannot be read: {error}") from None
    except OSError as error:
        raise DataError(f"{url} cannot be read: {error.strerror or error}") from None
    except Exception as error:
        if type(error).__module__.split(".")[0] in ("polysem", "builtins", "tarfile", "pyarrow"):
            raise
        raise DataError(f"{url} cannot be read: {error}") from None
