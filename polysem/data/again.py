"""The images of a run once more: from what its manifest says of them to the same data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from polysem.data.dataset import ImageData
from polysem.data.sources import load_data
from polysem.errors import DataError

__all__ = ["load_again"]


def load_again(described: Mapping[str, Any], spec: str | None = None) -> ImageData:
    """Load the images that a run was probed on, and no others.

    Parameters
    ----------
    described : mapping
        ``run.manifest["data"]``: name, n_images and fingerprint.
    spec : str, optional
        Where they are, if they have moved.

    Raises
    ------
    PolysemError
        If they cannot be loaded, or are not those that the run was probed on.
    """
    spec = described["name"] if spec is None else spec
    # a limit of all images is none, and any other draws the same sample again
    source = load_data(spec, limit=described["n_images"])
    if len(source) != described["n_images"]:
        raise DataError(
            f"{spec} holds {len(source):,} images, and this run was probed on "
            f"{described['n_images']:,}"
        )
    if source.fingerprint != described["fingerprint"]:
        raise DataError(
            f"{spec} does not hold the images that this run was probed on: its fingerprint is "
            f"{source.fingerprint[:12]}, not {described['fingerprint'][:12]}"
        )
    return source
