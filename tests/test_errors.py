"""The error tree: one root, leaves that are also builtins, and near matches for names."""

from __future__ import annotations

import pickle
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polysem import errors

BUILTINS = {
    "SpecError": ValueError,
    "MissingError": FileNotFoundError,
    "CheckpointError": ValueError,
    "DataError": ValueError,
    "ImageError": ValueError,
    "RunError": ValueError,
    "RecipeError": ValueError,
    "NonFiniteError": ArithmeticError,
}


def classes() -> dict[str, type[Exception]]:
    return {
        name: value
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, Exception)
    }


def test_every_error_is_public_and_has_one_root() -> None:
    assert {*classes(), "did_you_mean"} == set(errors.__all__)
    assert all(issubclass(kind, errors.PolysemError) for kind in classes().values())


@pytest.mark.parametrize(("name", "builtin"), BUILTINS.items())
def test_leaves_are_builtins_too(name: str, builtin: type[Exception]) -> None:
    assert issubclass(classes()[name], builtin)
    assert {*BUILTINS, "PolysemError"} == classes().keys()


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    drawn = re.findall(
        r"^    (?:[│ ]*[├└]── )?(\w+Error)\b(?: +\((\w+)\))?", errors.__doc__ or "", re.M
    )
    assert {name for name, _ in drawn} == classes().keys()
    for name, builtin in drawn:
        if builtin:
            assert builtin == BUILTINS[name].__name__


@pytest.mark.parametrize("name", BUILTINS)
def test_the_message_is_what_is_shown(name: str) -> None:
    if name == "ImageError":
        return
    error = classes()[name]("one sentence")
    assert str(error) == "one sentence"
    assert str(pickle.loads(pickle.dumps(error))) == "one sentence"


def test_an_image_error_names_image_and_reason() -> None:
    error = errors.ImageError("train/a.png", "it is cut short")
    assert str(error) == "image 'train/a.png' cannot be read: it is cut short"
    assert (error.key, error.reason) == ("train/a.png", "it is cut short")
    again = pickle.loads(pickle.dumps(error))  # it crosses from a loader's worker
    assert (str(again), again.key, again.reason) == (str(error), error.key, error.reason)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("attm", "; did you mean 'attn'?"),
        ("hook_pots", "; did you mean 'hook_post', 'hook_pre'?"),
        ("hook", "; did you mean 'hook_pre', 'hook_post'?"),
        ("zzz", ""),
        ("", ""),
    ],
)
def test_near_matches(name: str, expected: str) -> None:
    assert errors.did_you_mean(name, iter(["hook_post", "hook_pre", "attn"])) == expected


@given(st.text(), st.lists(st.text()))
def test_only_known_names_are_offered(name: str, known: list[str]) -> None:
    hint = errors.did_you_mean(name, known)
    assert hint == "" or any(repr(each) in hint for each in known)
    assert errors.did_you_mean(name, []) == ""
