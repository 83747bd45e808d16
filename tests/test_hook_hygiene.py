"""Whoever sets hooks or modes leaves everything as found: after success, error and failure.

`USERS` holds every way in which polysem sets hooks on a model or changes its modes, and
`SOURCES` the files that do so; a new one must be added to both.
"""

from __future__ import annotations

import random
import re
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_models import images_for, small_cnn, small_vit
from torch import Tensor, nn

import polysem
from polysem.data.shapes import Shapes
from polysem.errors import SpecError
from polysem.models.bcos import explanation_mode
from polysem.models.hooked import HookedVisionModel
from polysem.models.load import LoadedModel
from polysem.models.transform import Transform

PACKAGE = Path(polysem.__file__).parent

SOURCES = {
    "models/taps.py": "run_with_cache",
    "models/cnn_taps.py": "run_with_cache",
    "models/hooked.py": "run_with_cache",
    "models/bcos.py": "explanation_mode",
    "probe/recorder.py": "probe",
}

SETS_HOOKS = re.compile(
    r"register_\w*hook\(|\.hooks\(|\.add_\w*hooks?\(|run_with_(cache|hooks)\("
    r"|\.(training|explaining) = |requires_grad_\("
)


class BrokenError(Exception):
    """What a layer raises that fails on purpose."""


class Broken(nn.Module):
    def forward(self, *inputs: Any) -> Tensor:
        raise BrokenError


@dataclass
class Work:
    """What a user of hooks is given."""

    model: Any
    site: str
    folder: Path

    @property
    def images(self) -> Tensor:
        return images_for(self.model)


def run_with_cache(work: Work) -> None:
    names = ["hook_pooled", work.site]
    HookedVisionModel(work.model).run_with_cache(work.images, names_filter=names)


def run_with_hooks(work: Work) -> None:
    read = ("hook_pooled", lambda value, hook: None)
    edit = (work.site, lambda value, hook: value * 2)
    HookedVisionModel(work.model).run_with_hooks(work.images, fwd_hooks=[read, edit])


def hooks_with_gradients(work: Work) -> None:
    hooked, images = HookedVisionModel(work.model), work.images.requires_grad_()
    with hooked.hooks(bwd_hooks=[(work.site, lambda gradient, hook: gradient * 2)]):
        torch.autograd.grad(hooked(images).sum(), images)


def explain(work: Work) -> None:
    with explanation_mode(work.model):
        work.model(work.images)


def probe(work: Work, **options: Any) -> None:
    b_cos = work.images.shape[1] == 6
    loaded = LoadedModel(
        model=work.model,
        transform=Transform(size=tuple(work.images.shape[2:]), inverse=b_cos),
        classes=None,
        name="small",
        spec="small",
        sha256="0" * 64,
    )
    data = Shapes("test", n=5, size=32)
    options |= {"out": work.folder / "run", "sites": work.site, "batch_size": 2}
    polysem.probe(loaded, data, device="cpu", progress=False, **options)


def probe_patterns(work: Work) -> None:
    probe(work, patterns=True, pooled=True)


def probe_embedded(work: Work) -> None:
    probe(work, embed="model", smoothing=hasattr(work.model, "blocks"))


USERS: list[Callable[[Work], None]] = [
    run_with_cache,
    run_with_hooks,
    hooks_with_gradients,
    explain,
    probe,
    probe_patterns,
    probe_embedded,
]
WAYS = ["normal", "unknown site", "failing forward"]

CASES = [
    pytest.param(user, network, way, id=f"{user.__name__}-{network}-{way}")
    for user in USERS
    for network in ("class_token", "bcos", "resnet18")
    for way in WAYS
    if not (user is explain and way == "unknown site")  # it takes no site
    if not (user is probe_patterns and network == "resnet18")  # it has no patterns
]


def networks() -> dict[str, tuple[Any, str]]:
    return {
        "class_token": (small_vit("class_token", dtype=torch.float32), "blocks.1.mlp.hook_post"),
        "bcos": (small_vit("bcos", dtype=torch.float32), "blocks.1.mlp.hook_post"),
        "resnet18": (small_cnn("resnet18", dtype=torch.float32), "layer2.1.hook_post"),
    }


def break_late(model: Any) -> None:
    """Make the forward pass fail after most hooks have run."""
    if hasattr(model, "blocks"):
        model.blocks[2].mlp = Broken()
    else:
        model.layer4[1].conv2 = Broken()


def state_of(model: nn.Module) -> dict[str, Any]:
    """Return everything that a user of hooks might have changed."""
    modules = dict(model.named_modules())
    return {
        "hooks": {
            (name, kind): list(hooks)
            for name, module in modules.items()
            for kind, hooks in vars(module).items()
            if "_hooks" in kind
        },
        "modules": {name: type(module) for name, module in modules.items()},
        "forwards": {name: vars(module).get("forward") for name, module in modules.items()},
        "training": {name: module.training for name, module in modules.items()},
        "explaining": {name: getattr(m, "explaining", None) for name, m in modules.items()},
        "requires_grad": {name: p.requires_grad for name, p in model.named_parameters()},
        "gradients": {name: p.grad for name, p in model.named_parameters()},
        "weights": {name: value.sum().item() for name, value in model.state_dict().items()},
        "torch_rng": torch.get_rng_state().tolist(),
        "numpy_rng": np.random.get_state()[1].tolist(),  # type: ignore[index]
        "python_rng": random.getstate(),
        "grad_enabled": torch.is_grad_enabled(),
        "inference_mode": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "interrupt": signal.getsignal(signal.SIGINT),
    }


@pytest.mark.parametrize(("user", "network", "way"), CASES)
def test_everything_is_as_it_was(
    user: Callable[[Work], None], network: str, way: str, tmp_path: Path
) -> None:
    model, site = networks()[network]
    if way == "failing forward":
        break_late(model)
    # a model in the middle of somebody's work: mixed modes, frozen parts, a hook of their own
    first, *rest = model.children()
    first.train()
    rest[-1].requires_grad_(False)
    seen: list[str] = []
    first.register_forward_hook(lambda *_: seen.append("mine"))
    before = state_of(model)
    work = Work(model, site + ("s" if way == "unknown site" else ""), tmp_path)
    if way == "normal":
        user(work)
        assert seen
    elif way == "unknown site":
        with pytest.raises(SpecError, match=re.escape(f"{site}s")):
            user(work)
    else:
        with pytest.raises(BrokenError):
            user(work)
        assert not list(tmp_path.iterdir())
    after = state_of(model)
    for what in before:
        assert after[what] == before[what], what


def test_no_file_sets_hooks_or_modes_that_is_not_tested_here() -> None:
    names = {user.__name__ for user in USERS} | {"explanation_mode"}
    assert set(SOURCES.values()) <= names
    found = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if SETS_HOOKS.search(path.read_text(encoding="utf-8"))
    }
    assert found == set(SOURCES)
