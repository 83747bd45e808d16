from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from polysem.errors import MissingError, RecipeError
from polysem.train.recipe import Recipe, load_recipe, parse_recipe, recipe_to_dict

GOOD: dict[str, Any] = {
    "model": {"name": "vit_micro_patch8_gap_64"},
    "data": {"train": "shapes:train", "test": "shapes:test"},
    "optimiser": {"lr": 1e-3},
    "schedule": {"epochs": 2},
}


def _with(path: str, value: object) -> dict[str, Any]:
    *sections, key = path.split(".")
    data = {name: dict(section) for name, section in GOOD.items()}
    place: dict[str, Any] = data
    for section in sections:
        place = place.setdefault(section, {})
    place[key] = value
    return data


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("optimiser.lrr", 1, ["unknown key 'optimiser.lrr'", "did you mean 'lr'", "weight_decay"]),
        ("sede", 1, ["unknown key 'sede'", "did you mean 'seed'", "batch_size"]),
        ("optimiser.clip.acg", 0.1, ["'optimiser.clip.acg'", "did you mean 'agc'", "norm, agc"]),
        ("loss", "bec", ["loss is 'bec'", "did you mean 'bce'", "'cross_entropy'"]),
        ("optimiser.name", "sgd", ["optimiser.name is 'sgd'", "'adamw'", "'lion'"]),
        ("optimiser.lr", -1, ["optimiser.lr is -1", "greater than 0"]),
        ("optimiser.lr", "fast", ["optimiser.lr is 'fast'", "valid number"]),
        ("optimiser.lr", True, ["optimiser.lr is True", "not true or false"]),
        ("optimiser.lr", float("nan"), ["optimiser.lr is nan", "finite"]),
        ("optimiser.betas", [0.9], ["optimiser.betas.1", "missing"]),
        ("batch_size", 2.5, ["batch_size is 2.5", "integer"]),
        ("batch_size", 0, ["batch_size is 0", "greater than or equal to 1"]),
        ("schedule.steps", 10, ["schedule", "either epochs or steps"]),
        ("optimiser.clip", {"norm": 1, "agc": 0.01}, ["optimiser.clip", "not both"]),
        ("augment", "flip", ["augment is 'flip'", "flip, turn, crop_padding, resized_crop"]),
        ("augment", {"crop_padding": 2, "resized_crop": [0.1, 1]}, ["augment", "not both"]),
        ("augment.resized_crop", [0.9, 0.1], ["augment", "smaller share of the area first"]),
        ("augment.resized_crop", [0.9, 2], ["augment.resized_crop.1 is 2", "less than or equal"]),
        ("augment.randaugment.m", 31, ["augment.randaugment.m is 31", "less than or equal to 30"]),
        ("augment.randaugment", "rand-m9", ["augment.randaugment", "n, m, colour"]),
        ("augment.erasing", 1.5, ["augment.erasing is 1.5", "less than or equal to 1"]),
        ("data.sampling", "balance", ["data.sampling", "did you mean 'balanced'", "'shuffled'"]),
        ("ema", 1, ["ema is 1", "less than 1"]),
        ("accumulate", 0, ["accumulate is 0"]),
        ("threads", 0, ["threads is 0"]),
    ],
)
def test_a_bad_value_is_named_with_what_is_allowed(
    path: str, value: object, said: list[str]
) -> None:
    with pytest.raises(RecipeError) as raised:
        parse_recipe(_with(path, value), where="my.yaml")
    message = str(raised.value)
    assert message.startswith("my.yaml: ")
    assert "\n" not in message
    for words in said:
        assert words in message


def test_crops_that_need_pictures_exclude_images_kept_in_memory() -> None:
    data = {**GOOD["data"], "stream": False}
    with pytest.raises(RecipeError, match=r"data\.stream must be true or left out"):
        parse_recipe({**GOOD, "data": data, "augment": {"resized_crop": [0.1, 1]}})


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("schedule.final_lr", 1e6, r"final_lr \(1e\+06\) must not be above optimiser\.lr"),
        ("seed", 2**63, "seed is 9223372036854775808: it should be less than"),
    ],
)
def test_what_no_training_can_follow(key: str, value: float, said: str) -> None:
    with pytest.raises(RecipeError, match=said) as refused:
        parse_recipe(_with(key, value))
    assert ": :" not in str(refused.value)


def test_lion_has_betas_of_its_own() -> None:
    assert parse_recipe(_with("optimiser.name", "lion")).optimiser.betas == (0.9, 0.99)
    given = {"name": "lion", "lr": 1e-4, "betas": [0.8, 0.9]}
    assert parse_recipe({**GOOD, "optimiser": given}).optimiser.betas == (0.8, 0.9)
    assert parse_recipe(GOOD).optimiser.betas == (0.9, 0.999)


def test_missing_keys_are_named() -> None:
    with pytest.raises(RecipeError, match=r"the key 'optimiser\.lr' is missing"):
        parse_recipe({**GOOD, "optimiser": {}})
    with pytest.raises(RecipeError, match=r"the key 'model' is missing; expected model, data"):
        parse_recipe({key: value for key, value in GOOD.items() if key != "model"})


def test_every_fault_is_reported_at_once() -> None:
    with pytest.raises(RecipeError) as raised:
        parse_recipe({**GOOD, "seed": -1, "loss": "l2"})
    assert len(str(raised.value).splitlines()) == 2


@pytest.mark.parametrize("data", [None, 3, "model", ["model"]])
def test_what_is_no_mapping_is_no_recipe(data: object) -> None:
    with pytest.raises(RecipeError, match="holds no keys; expected model, data"):
        parse_recipe(data)


@given(
    lr=st.floats(1e-8, 1e3),
    seed=st.integers(0, 2**62),
    steps=st.integers(1, 10**9),
    notes=st.text(st.characters(codec="utf-8")),
    agc=st.none() | st.floats(1e-6, 1),
    turn=st.booleans(),
)
def test_a_recipe_survives_the_way_through_a_checkpoint(
    tiny_recipe: Callable[..., Recipe],
    lr: float,
    seed: int,
    steps: int,
    notes: str,
    agc: float | None,
    turn: bool,
) -> None:
    recipe = tiny_recipe(
        {
            "optimiser": {"lr": lr, "clip": {"agc": agc}},
            "schedule": {"epochs": None, "steps": steps},
            "augment": {"turn": turn},
            "seed": seed,
            "notes": notes,
        }
    )
    assert parse_recipe(recipe_to_dict(recipe)) == recipe


def test_a_file_gives_its_recipe(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    # YAML 1.1 reads 1e-3 as text; it must count as a number all the same
    path.write_text(yaml.safe_dump(GOOD).replace("0.001", "1e-3"), encoding="utf-8")
    assert load_recipe(path) == Recipe.model_validate(GOOD)
    assert load_recipe(path).optimiser.lr == 0.001


def test_values_are_changed_by_the_names_of_their_keys(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(GOOD), encoding="utf-8")
    changes = {"seed": 3, "optimiser.clip": {"norm": 1}, "augment.flip": True, "data.train": "a/b"}
    recipe = load_recipe(path, changes=changes)
    assert (recipe.seed, recipe.optimiser.clip.norm, recipe.augment.flip) == (3, 1, True)
    assert (recipe.data.train, recipe.data.test) == ("a/b", "shapes:test")
    with pytest.raises(RecipeError, match=r"unknown key 'data\.trian'; did you mean 'train'"):
        load_recipe(path, changes={"data.trian": "x"})
    with pytest.raises(RecipeError, match=r"unknown key 'seed'|seed is \{"):
        load_recipe(path, changes={"seed.x": 1})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed: 1\nseed: 2\n", "the key 'seed' is given twice"),
        ("optimiser: {lr: 1, lr: 2}\n", "the key 'lr' is given twice"),
        ("seed: [1\n", "is not YAML"),
        ("!!python/object/apply:os.getcwd []", "is not YAML"),
        ("? [a]\n: 1\n", "is not YAML"),
        ("", "holds no keys"),
    ],
)
def test_a_file_that_is_no_recipe(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError, match=said) as raised:
        load_recipe(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"no recipe file .*nothing\.yaml"):
        load_recipe(tmp_path / "nothing.yaml")
    with pytest.raises(MissingError):
        load_recipe(tmp_path)


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(RecipeError, match="not a text file"):
        load_recipe(path)


RECIPES = Path(__file__).parents[2] / "analyses" / "recipes"


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_here_is_one(path: Path) -> None:
    assert load_recipe(path).notes


def test_the_shipped_twins_are_trained_alike() -> None:
    standard, bcos = (
        recipe_to_dict(load_recipe(RECIPES / f"shapes_micro_{twin}.yaml"))
        for twin in ("vit", "bcos")
    )
    assert standard["model"].pop("name") == "vit_micro_patch8_gap_64"
    assert bcos["model"].pop("name") == "bcos_vit_micro_patch8_64"
    assert standard == bcos


@pytest.mark.parametrize(
    ("arms", "names"),
    [
        ("cifar10_cpu", ("vitc_micro_patch4_gap_32", "bcos_vitc_micro_patch4_32")),
        ("cifar10_gpu_micro", ("vitc_micro_patch4_gap_32", "bcos_vitc_micro_patch4_32")),
        ("cifar10_gpu_tiny", ("vitc_tiny_patch4_gap_32", "bcos_vitc_tiny_patch4_32")),
        ("shapes_micro", ("vit_micro_patch8_gap_64", "bcos_vit_micro_patch8_64")),
    ],
)
def test_arms_differ_in_layers_and_heads_alone(arms: str, names: tuple[str, str]) -> None:
    plain = [
        recipe_to_dict(load_recipe(RECIPES / f"{arms}_{kind}{more}.yaml"))
        for kind in ("vit", "bcos")
        for more in ("", "_drophead")
    ]
    assert [arm["model"].pop("name") for arm in plain] == [name for name in names for _ in "12"]
    heads = [arm.pop("drop_head") for arm in plain]
    assert heads[0] is heads[2] is None
    assert heads[1]["mode"] == heads[3]["mode"] == "half"
    assert all(arm == plain[0] for arm in plain)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed: " + "1" * 5000, "is not YAML"),
        ("notes: 2024-13-45", "month must be in"),
        ("model: " + "[" * 3000, "nested too deeply"),
        ("model: &a [*a]", "refers to its own parts"),
        (
            "a: &a [x, x, x, x, x, x, x, x, x]\n"
            + "\n".join(
                f"{c}: &{c} [{', '.join(['*' + before] * 9)}]"
                for before, c in zip("abcdefgh", "bcdefghi", strict=True)
            ),
            "refers to its own parts",
        ),
    ],
)
def test_yaml_that_is_made_to_hurt_is_one_sentence(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    with pytest.raises(RecipeError, match=said) as caught:
        load_recipe(file)
    assert len(str(caught.value)) < 1000


def test_a_huge_value_is_shown_in_part(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(f"model: [{'x' * 100_000}]")
    with pytest.raises(RecipeError, match="model is") as caught:
        load_recipe(file)
    assert len(str(caught.value)) < 2000
