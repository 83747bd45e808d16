"""HAM10000 as published: dermatoscopic images in two folders, and a table that names lesions.

Several images show the same lesion, so images are split by lesion: no lesion is on both sides.
Tschandl et al., "The HAM10000 dataset", arXiv 1803.10417.
"""

from __future__ import annotations

import csv
import hashlib
import logging
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from polysem.data.folder import FileData, image_files
from polysem.data.splits import ALL, choose_splits
from polysem.errors import DataError, SpecError, did_you_mean

__all__ = [
    "CLASSES",
    "FRACTIONS",
    "TABLES",
    "Ham10000",
    "find_metadata",
    "load_ham10000",
    "split_by_lesion",
]

#: Diagnoses as coded in the column ``dx``, in the order of the class numbers.
CLASSES = {
    "akiec": "actinic keratoses and intraepithelial carcinoma",
    "bcc": "basal cell carcinoma",
    "bkl": "benign keratosis-like lesions",
    "df": "dermatofibroma",
    "mel": "melanoma",
    "nv": "melanocytic nevi",
    "vasc": "vascular lesions",
}

#: Share of the images of each class that each split aims at.
FRACTIONS = {"train": 0.7, "val": 0.15, "test": 0.15}

_COLUMNS = ("lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization")
_NEEDED = _COLUMNS[:3]
TABLES = (".csv", ".tab", ".tsv")

_log = logging.getLogger(__name__)


class Ham10000(FileData):
    """Images of HAM10000 with what is known of each.

    Parameters
    ----------
    name, keys, root, files, labels
        As in `FileData`.
    metadata : DataFrame
        One row an image, in order, with the published columns; ``age`` in years, NaN where it
        is not known, other gaps as None.
    """

    def __init__(
        self,
        name: str,
        keys: Sequence[str],
        *,
        root: Path,
        files: Sequence[str],
        labels: Sequence[int],
        metadata: pd.DataFrame,
    ) -> None:
        classes = tuple(CLASSES.values())
        super().__init__(name, keys, root=root, files=files, labels=labels, classes=classes)
        self.metadata = metadata


def load_ham10000(path: Path, *, name: str, split: str | None = None, seed: int = 0) -> Ham10000:
    """Read HAM10000 from the folder with its metadata table and its images.

    The table is comma- or tab-separated. Images are looked for in all folders below, so that the
    two published folders, one merged folder, and mirrors with other names or sizes all do. Keys
    are the ``image_id``s, in sorted order; classes are the full names of the seven diagnoses.

    Parameters
    ----------
    path : Path
        The folder, or the metadata table in it.
    name : str
        The spec, for messages.
    split : str, optional
        ``train``, ``val`` or ``test`` of `split_by_lesion`; all images where not given.
    seed : int
        Of the split. Parts of different seeds overlap.

    Raises
    ------
    DataError
        If the table lacks columns or repeats images, or an image has no file or several.
    SpecError
        If there is no such split.
    """
    table = path if path.is_file() else find_metadata(path)
    if table is None:
        raise DataError(
            f"{name}: no HAM10000 metadata in {path}; expected HAM10000_metadata.csv or .tab with "
            f"the columns {', '.join(_COLUMNS)}"
        )
    metadata = _read_metadata(table, name=name)
    files = _one_file_each(table.parent, metadata["image_id"].tolist(), name=name)
    if split not in (None, ALL):
        parts = split_by_lesion(metadata["lesion_id"].tolist(), metadata["dx"].tolist(), seed=seed)
        chosen = choose_splits(name, FRACTIONS, split)
        metadata = metadata[np.isin(parts, chosen)].reset_index(drop=True)
    keys = metadata["image_id"].tolist()
    number = {code: i for i, code in enumerate(CLASSES)}
    return Ham10000(
        name,
        keys,
        root=table.parent,
        files=[files[key] for key in keys],
        labels=[number[code] for code in metadata["dx"]],
        metadata=metadata,
    )


def find_metadata(folder: Path) -> Path | None:
    """Return the table in a folder whose header is HAM10000's; None if there is none.

    Raises
    ------
    SpecError
        If there are several.
    """
    tables = [
        file
        for file in sorted(folder.iterdir())
        if (file.suffix.lower() in TABLES or "metadata" in file.name.lower())
        and file.is_file()
        and set(_NEEDED) <= set(_header(file))
    ]
    if len(tables) > 1:
        raise SpecError(
            f"{folder} has several HAM10000 tables ({', '.join(t.name for t in tables)}); name "
            f"one, as in 'ham10000:{tables[0]}'"
        )
    return tables[0] if tables else None


def split_by_lesion(
    lesions: Sequence[str],
    diagnoses: Sequence[str],
    *,
    seed: int = 0,
    fractions: Mapping[str, float] = FRACTIONS,
) -> npt.NDArray[np.str_]:
    """Assign every image to a split so that no lesion is in two, stratified by diagnosis.

    Within each diagnosis, lesions are taken in an order that depends on nothing but the seed and
    their names, and each goes where most images are still missing. Every split so gets at most
    ``m`` images more, and ``m`` × (number of splits − 1) fewer, than its share of each diagnosis,
    where ``m`` is the largest number of images of one lesion of that diagnosis.

    Parameters
    ----------
    lesions : sequence of str [image]
        Lesion of each image.
    diagnoses : sequence of str [image]
        Diagnosis of each image. A lesion whose images differ counts as its most frequent one
        (the first in alphabetical order of several).
    seed : int
        Another seed gives another split.
    fractions : mapping of str to float
        Share of each split; sums to 1.

    Returns
    -------
    str array [image]
        The split of each image, the same however the images are ordered.

    Raises
    ------
    ValueError
        If the fractions do not sum to 1, or there are not as many diagnoses as lesions.
    """
    if abs(sum(fractions.values()) - 1) > 1e-9 or min(fractions.values()) < 0:
        raise ValueError(f"fractions must be positive and sum to 1, not {dict(fractions)}")
    seen: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for lesion, diagnosis in zip(lesions, diagnoses, strict=True):
        seen[lesion][diagnosis] += 1
    strata: defaultdict[str, list[str]] = defaultdict(list)
    for lesion, counts in seen.items():
        strata[min(counts, key=lambda code: (-counts[code], code))].append(lesion)
    split_of: dict[str, str] = {}
    for stratum in strata.values():
        total = sum(seen[lesion].total() for lesion in stratum)
        missing = {split: share * total for split, share in fractions.items()}
        for lesion in sorted(stratum, key=lambda lesion: _shuffled(lesion, seed)):
            split = max(missing, key=lambda split: missing[split])
            missing[split] -= seen[lesion].total()
            split_of[lesion] = split
    return np.array([split_of[lesion] for lesion in lesions], dtype=np.str_)


def _shuffled(lesion: str, seed: int) -> bytes:
    """Return a sort key that puts lesions in random order, on every machine the same."""
    return hashlib.sha256(f"{seed}:{lesion}".encode()).digest()


def _header(file: Path) -> list[str]:
    try:
        with file.open(encoding="utf-8-sig", errors="replace") as lines:
            first = lines.readline(1000)
    except OSError:
        return []
    cells = next(csv.reader([first.rstrip("\r\n")], delimiter=_delimiter(first)), [])
    return [cell.strip().lower() for cell in cells]


def _delimiter(first_line: str) -> str:
    return "\t" if "\t" in first_line else ","


def _read_metadata(table: Path, *, name: str) -> pd.DataFrame:
    """Return the table sorted by image id: words, ages as numbers, gaps as missing."""
    header = _header(table)
    if absent := [column for column in _NEEDED if column not in header]:
        near = did_you_mean(absent[0], header)
        raise DataError(f"{name}: {table} has no column {absent[0]!r}{near}")
    if repeated := [column for column, count in Counter(header).items() if count > 1]:
        raise DataError(f"{name}: {table} has the column {repeated[0]!r} more than once")
    try:
        with table.open(encoding="utf-8-sig") as file:
            delimiter = _delimiter(file.readline())
        rows: pd.DataFrame = pd.read_csv(table, sep=delimiter, dtype=str, encoding="utf-8-sig")
    except (OSError, ValueError) as error:  # pandas' parser errors are ValueErrors
        raise DataError(f"{name}: {table} cannot be read as a table: {error}") from None
    if len(header) != rows.shape[1]:
        raise DataError(f"{name}: {table} has {len(header)} columns in its first line only")
    rows.columns = pd.Index(header)
    for column in rows:
        rows[column] = rows[column].str.strip()
    if len(rows) == 0:
        raise DataError(f"{name}: {table} has no rows")
    for column in _NEEDED:
        if rows[column].isna().any():
            line = int(rows[column].isna().to_numpy().argmax()) + 2
            raise DataError(f"{name}: {table}, line {line}: {column} is missing")
    strange = rows.loc[~rows["dx"].isin(list(CLASSES)), ["image_id", "dx"]]
    if len(strange):
        image, code = strange.iloc[0]
        near = did_you_mean(code, CLASSES)
        raise DataError(f"{name}: image {image!r} has the unknown diagnosis {code!r}{near}")
    twice = rows.loc[rows["image_id"].duplicated(), "image_id"]
    if len(twice):
        raise DataError(
            f"{name}: {table} has several rows for {len(twice)} images, such as {twice.iloc[0]!r}"
        )
    if "age" in rows:
        rows["age"] = pd.to_numeric(rows["age"], errors="coerce").astype(float)
    return rows.sort_values("image_id", ignore_index=True)


def _one_file_each(root: Path, image_ids: Sequence[str], *, name: str) -> dict[str, str]:
    """Return the file of each image; files of other images are passed over."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    wanted, others = set(image_ids), 0
    for file in sorted(image_files(root)):
        stem = Path(file).stem
        if stem in wanted:
            found[stem].append(file)
        else:
            others += 1
    if others:
        _log.info("%s: %d image files are not in the metadata and left out", name, others)
    missing = sorted(wanted - set(found))
    if missing:
        raise DataError(
            f"{name}: {len(missing)} of {len(wanted)} images have no file in {root}, such as "
            f"{', '.join(missing[:3])}; are both image folders there?"
        )
    several = {image: files for image, files in found.items() if len(files) > 1}
    if several:
        copies = " and ".join(next(iter(several.values()))[:3])
        raise DataError(
            f"{name}: {len(several)} images have several files, such as {copies}; remove the copies"
        )
    return {image: files[0] for image, files in found.items()}
