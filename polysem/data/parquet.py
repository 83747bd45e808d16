"""Tables of encoded images in the layout of Hugging Face: parquet files with bytes and labels."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pa_fs
import pyarrow.parquet as pq
from PIL import Image

from polysem.data.blocks import BLOCK_BYTES, Block, BlockReader
from polysem.data.columns import image_column, label_column, labels_and_classes
from polysem.data.dataset import ImageData
from polysem.data.decode import decode_image
from polysem.data.fingerprint import data_sha256, file_chunks
from polysem.data.shards import Shard, find_shards, shard_contents
from polysem.data.splits import of_split
from polysem.errors import DataError, ImageError

__all__ = ["ParquetData", "RowGroup", "load_parquet", "parquet_files"]

_BUFFER_BYTES = 2**20


@dataclass(frozen=True)
class RowGroup:
    """One row group of one file, to be read `batch` rows at a time."""

    file: Path | Shard
    number: int
    rows: int
    batch: int


class ParquetData(ImageData):
    """Images in parquet files, decoded when they are read.

    Parameters
    ----------
    name, keys, labels, classes
        As in `ImageData`.
    groups : sequence of RowGroup
        The row groups of the files, in order.
    column : str
        Column with the images.
    field : str, optional
        Field of that column with the bytes; None where the column itself is of bytes.
    """

    def __init__(
        self,
        name: str,
        keys: Sequence[str],
        *,
        groups: Sequence[RowGroup],
        column: str,
        field: str | None,
        labels: npt.NDArray[np.int64] | None = None,
        classes: Sequence[str] | None = None,
    ) -> None:
        super().__init__(name, keys, labels=labels, classes=classes)
        self.files = list(dict.fromkeys(group.file for group in groups))
        self._blocks = BlockReader(
            [group.rows for group in groups], _RowGroups(tuple(groups), column, field)
        )

    def read(self, index: int) -> Image.Image:
        """Return image number `index`; see `decode_image` for how it is converted."""
        rows, at = self._blocks.fetch(index)
        content = rows[at].as_py()
        if content is None:
            raise ImageError(self.keys[index], "the table holds no bytes for it")
        return decode_image(content, key=self.keys[index])

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of keys, labels, class names and every byte of the files.

        Of shards that were named by address or pattern: of names, sizes, versions and first bytes.
        """
        here = [file for file in self.files if isinstance(file, Path)]
        far = [file for file in self.files if isinstance(file, Shard)]
        return data_sha256(self, chain(file_chunks(here), shard_contents(far)))


def load_parquet(
    path: Path | str,
    *,
    name: str,
    split: str | None = None,
    image: str | None = None,
    label: str | None = None,
) -> ParquetData:
    """Read one parquet file, or a folder of them, with one encoded image in each row.

    Images are a struct column with a field ``bytes``, or a binary column; labels are whole
    numbers named by the ``ClassLabel`` of the Hugging Face metadata, or words. Keys are the
    fields ``path`` where they are all there and unique, otherwise ``FILE#ROW``. Only keys and
    labels are held; images are read a block at a time, in order fastest.

    Parameters
    ----------
    path : Path or str
        File or folder; or as text an address or pattern, as for `find_shards`.
    name : str
        The spec, for messages.
    split : str, optional
        Of several splits the one to read: files called ``train-00000-of-00002.parquet`` or
        ``test.parquet``, or lying in a folder ``test``.
    image, label : str, optional
        Columns, where type and name do not tell; ``label="none"`` leaves labels out.

    Raises
    ------
    DataError
        If a file is no parquet file, files differ in their columns, or labels do not hold.
    SpecError
        If the split or a column is unknown, or one of several has to be named.
    """
    named = _named(path)
    chosen = of_split(name, [relative for relative, _ in named], split)
    files = [file for file, wanted in zip(named, chosen, strict=True) if wanted]
    with _table(files[0][1]) as table:
        features, fields = _features(table.schema_arrow)
    images = image_column(features, image, name=name)
    labelled = label_column(features, label, name=name)
    field = "bytes" if "bytes" in fields[images] else None
    groups: list[RowGroup] = []
    keys: list[str] = []
    paths: list[str | None] = []
    values: list[object] = []
    for relative, file in files:
        with _table(file) as table:
            if _features(table.schema_arrow)[0] != features:
                raise DataError(
                    f"{name}: {_place(file)} and {_place(files[0][1])} differ in their columns or "
                    "classes"
                )
            groups += _row_groups(table, file, f"{images}.bytes" if field else images)
            count = table.metadata.num_rows
            size = file.stat().st_size if isinstance(file, Path) else file.size
            if count > size:  # whatever the bytes are, they are no images
                raise DataError(f"{_place(file)} claims {count:,} images in fewer bytes")
            keys += (f"{relative.as_posix()}#{row}" for row in range(count))
            if "path" in fields[images]:
                paths += pc.struct_field(_column(table, file, images, ".path"), "path").to_pylist()
            if labelled:
                values += _column(table, file, labelled).to_pylist()
    if not keys:
        raise DataError(f"{name}: the table has no rows")
    if len(paths) == len(keys) and all(paths) and len(set(paths)) == len(paths):
        keys = [str(p) for p in paths]
    names = features[labelled].get("names") if labelled else None
    labels, classes = labels_and_classes(values, names, name=name, keys=keys)
    return ParquetData(
        name, keys, groups=groups, column=images, field=field, labels=labels, classes=classes
    )


def parquet_files(path: Path) -> list[Path]:
    """Return the parquet files in a folder and below, sorted, hidden ones left out; or the file."""
    if path.is_file():
        return [path.absolute()]
    root = path.absolute()
    return sorted(
        file
        for file in root.rglob("*.parquet")
        if file.is_file() and not any(p.startswith(".") for p in file.relative_to(root).parts)
    )


@dataclass(frozen=True)
class _RowGroups:
    """Reads row groups for `BlockReader`; holds no open files, so that it pickles."""

    groups: tuple[RowGroup, ...]
    column: str
    field: str | None

    def __call__(self, part: int) -> Generator[Block[pa.Array], None, None]:
        group = self.groups[part]
        leaf = f"{self.column}.{self.field}" if self.field else self.column
        with _table(group.file) as table:
            try:
                for batch in table.iter_batches(
                    group.batch, row_groups=[group.number], columns=[leaf], use_threads=False
                ):
                    column = batch.column(0)
                    rows = column.field(self.field) if self.field else column
                    yield Block(rows, len(rows), rows.nbytes)
            except (OSError, ValueError, pa.ArrowException) as error:
                raise DataError(
                    f"{_place(group.file)}: row group {group.number} cannot be read: {error}"
                ) from None


def _table(file: Path | Shard) -> pq.ParquetFile:
    try:
        if isinstance(file, Path):
            return pq.ParquetFile(file, buffer_size=_BUFFER_BYTES, pre_buffer=False)
        fs, path = file.place()
        store = pa_fs.PyFileSystem(pa_fs.FSSpecHandler(fs))
        return pq.ParquetFile(path, filesystem=store, pre_buffer=True)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{_place(file)} cannot be read as a parquet file: {error}") from None


def _column(
    table: pq.ParquetFile, file: Path | Shard, column: str, field: str = ""
) -> pa.ChunkedArray:
    try:
        return table.read(columns=[column + field]).column(column)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{_place(file)}: the column {column!r} cannot be read: {error}") from None


def _features(schema: pa.Schema) -> tuple[dict[str, dict[str, Any]], dict[str, list[str]]]:
    """Return each column's Hugging Face feature, as the metadata or its type tells, and fields."""
    try:
        told = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        told = {}
    features, fields = {}, {}
    for column in schema:
        is_struct = pa.types.is_struct(column.type)
        fields[column.name] = [part.name for part in column.type] if is_struct else []
        if "bytes" in fields[column.name] or _is_binary(column.type):
            features[column.name] = {"_type": "Image"}
        else:
            feature = told.get(column.name) if isinstance(told, dict) else None
            features[column.name] = feature if isinstance(feature, dict) else {}
    return features, fields


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _row_groups(table: pq.ParquetFile, file: Path | Shard, leaf: str) -> Iterator[RowGroup]:
    for number in range(table.num_row_groups):
        group = table.metadata.row_group(number)
        chunks = (group.column(i) for i in range(group.num_columns))
        size = sum(c.total_uncompressed_size for c in chunks if c.path_in_schema == leaf)
        blocks = max(1, round(size / BLOCK_BYTES))
        yield RowGroup(file, number, group.num_rows, max(1, -(-group.num_rows // blocks)))


def _named(path: Path | str) -> list[tuple[Path, Path | Shard]]:
    """Return the files that a path or pattern names, with the names that keys begin with.

    Raises
    ------
    DataError
        If there are none.
    """
    if isinstance(path, str):
        shards = find_shards(path, (".parquet",))
        short = len({shard.name for shard in shards}) == len(shards)
        return [(Path(shard.name if short else shard.url), shard) for shard in shards]
    root = path.absolute() if path.is_dir() else path.absolute().parent
    files = parquet_files(path)
    if not files:
        raise DataError(f"{path}: no parquet files in {root}")
    return [(file.relative_to(root), file) for file in files]


def _place(file: Path | Shard) -> str:
    return file.url if isinstance(file, Shard) else str(file)
