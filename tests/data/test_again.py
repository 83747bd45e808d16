"""The images of a run, loaded once more, are those or none."""

from __future__ import annotations

import pytest

from polysem.data.again import load_again
from polysem.data.sources import load_data
from polysem.errors import DataError

SPEC = "shapes:test?n=9&size=32"


def described(spec: str, limit: int | None = None) -> dict[str, object]:
    data = load_data(spec, limit=limit)
    return {"name": spec, "n_images": len(data), "fingerprint": data.fingerprint}


def test_the_same_images_or_the_same_sample_of_them() -> None:
    whole, some = described(SPEC), described(SPEC, limit=4)
    assert list(load_again(whole).keys) == list(load_data(SPEC).keys)
    assert list(load_again(some).keys) == list(load_data(SPEC, limit=4).keys)


def test_others_are_refused() -> None:
    whole = described(SPEC)
    with pytest.raises(DataError, match="holds 5 images, and this run was probed on 9"):
        load_again(whole, "shapes:test?n=5&size=32")
    with pytest.raises(DataError, match="does not hold the images"):
        load_again(whole, "shapes:train?n=9&size=32")
