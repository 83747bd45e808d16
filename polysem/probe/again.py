"""The images of a run loaded again, for what is computed from them after the probe."""

from __future__ import annotations

from polysem.data.dataset import ImageData
from polysem.data.sources import load_data
from polysem.errors import DataError
from polysem.store.run import Run

__all__ = ["images_again"]


def images_again(run: Run, spec: str | None = None) -> ImageData:
    """Return the data that a run was probed on, skipped images included.

    Parameters
    ----------
    run : Run
    spec : str, optional
        Where the images are now; by default where they were.

    Raises
    ------
    PolysemError
        If they cannot be loaded, or are not those that the run was probed on.
    """
    described = run.manifest["data"]
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
