import pytest

from polysem.data.shipped import shipped_file, shipped_names
from polysem.errors import MissingError


def test_what_ships_is_found() -> None:
    assert {"shapes_micro_bcos", "shapes_micro_vit"} <= set(shipped_names("models", ".safetensors"))
    assert shipped_file("concepts", "shapes.csv").is_file()
    assert (shipped_file("models", "shapes_clip") / "open_clip_config.json").is_file()


def test_what_did_not_ship_is_said_to_be_part_of_the_source() -> None:
    with pytest.raises(MissingError, match=r"no models/shapes_giant\.pt at .*source tree"):
        shipped_file("models", "shapes_giant.pt")
    assert shipped_names("nothing", ".csv") == []
