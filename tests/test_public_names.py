"""What ``import polysem`` offers, and what it does not yet load."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
from types import ModuleType

import pytest

import polysem

HEAVY = {
    "torch",
    "timm",
    "torchvision",
    "transformers",
    "transformer_lens",
    "numpy",
    "pandas",
    "zarr",
}


def loaded_after(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(' '.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def modules() -> list[str]:
    found = pkgutil.walk_packages(polysem.__path__, "polysem.", onerror=lambda name: None)
    return sorted(each.name for each in found if not each.name.endswith("__main__"))


def test_every_public_name_imports_and_nothing_else_is_offered() -> None:
    assert polysem.__all__ == sorted(polysem.__all__)
    for name in polysem.__all__:
        assert callable(getattr(polysem, name)), name
    offered = {name for name in dir(polysem) if not name.startswith("_")}
    submodules = {name for name in offered if isinstance(getattr(polysem, name), ModuleType)}
    plumbing = {"annotations", "import_module", "Any"}
    assert offered - submodules - plumbing == set(polysem.__all__) - submodules


def test_star_import_gives_the_public_names() -> None:
    scope: dict[str, object] = {}
    exec("from polysem import *", scope)
    assert set(polysem.__all__) <= scope.keys()


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'polysem' has no attribute 'prob'"):
        polysem.prob  # noqa: B018
    assert not hasattr(polysem, "load_modell")


@pytest.mark.parametrize("name", modules())
def test_what_a_module_promises_it_has(name: str) -> None:
    module = importlib.import_module(name)
    promised = getattr(module, "__all__", [])
    assert len(set(promised)) == len(promised)
    assert [each for each in promised if not hasattr(module, each)] == []


@pytest.mark.parametrize(
    "statement",
    [
        "import polysem",
        "import polysem.errors, polysem.sites",
        "import polysem.cli",
        "from typer.testing import CliRunner; from polysem.cli import app; "
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0",
    ],
)
def test_light_imports_stay_light(statement: str) -> None:
    assert loaded_after(statement) & HEAVY == set()


def test_public_names_load_what_they_need() -> None:
    assert "timm" in loaded_after("from polysem import load_model")
