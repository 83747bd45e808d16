"""Whoever sets hooks or modes leaves everything as found: after success, error and failure.

`USERS` holds every way in which polysem sets hooks on a model or changes its modes, and
`SOURCES` the files that do so; a new one must be added to both.
"""

from __future__ import annotations

import random
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
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
from polysem.explain.baselines import input_gradient
from polysem.explain.circuits import circuits
from polysem.explain.completeness import check
from polysem.explain.edges import edges
from polysem.explain.linear import linear_map, require_linear
from polysem.explain.localise import localise
from polysem.explain.methods import applicable_methods
from polysem.explain.run_maps import explain_run
from polysem.explain.sanity import sanity_checks
from polysem.explain.target import Target, sites_of
from polysem.explain.upstream import upstream
from polysem.models.bcos import explanation_mode
from polysem.models.hooked import HookedVisionModel
from polysem.models.load import LoadedModel
from polysem.models.transform import Transform
from polysem.probe.heads import heads
from polysem.probe.snapshots import require_units
from polysem.store.run import Run

PACKAGE = Path(polysem.__file__).parent

SOURCES = {
    "cli/bench/planted_names.py": "run_with_cache",
    "models/taps.py": "run_with_cache",
    "models/cnn_taps.py": "run_with_cache",
    "models/hooked.py": "run_with_cache",
    "models/bcos.py": "explanation_mode",
    "probe/recorder.py": "probe",
    "explain/forward.py": "explain_by_all",
    "explain/linear.py": "explain_by_all",
    "explain/completeness.py": "account",
    "explain/cam.py": "explain_by_all",
    "explain/rollout.py": "explain_by_all",
    "explain/baselines.py": "explain_by_all",
    "explain/run_exemplars.py": "explain_exemplars",
    "explain/cuts.py": "find_circuits",
    "probe/gates.py": "study_heads",
    "probe/head_writes.py": "study_heads",
    "probe/interactions.py": "study_heads",
    "probe/snapshots.py": "look_for_units",
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


def explain_by_all(work: Work) -> None:
    """Every method, of a class by fused kernels and of a unit, whose site may not be there."""
    for method in applicable_methods(work.model).values():
        method(work.model, work.images, Target(1, work.site))
        method(work.model, work.images, torch.tensor([0, 1]))


def account(work: Work) -> None:
    """Rows of W(x) and what is added beside it, where a network has one."""
    try:
        require_linear(work.model)
    except SpecError:
        input_gradient(work.model, work.images, Target(1, work.site))
        return
    check(work.model, work.images, [Target(1, work.site), Target(0)])
    linear_map(work.model, work.images, [Target(1, work.site), Target(0)])


def explain_exemplars(work: Work) -> None:
    with probed_whole(work) as (run, loaded, data):
        explain_run(run, loaded, data=data, sites=work.site, device="cpu", progress=False)


def trace_exemplars(work: Work) -> None:
    with probed_whole(work) as (run, loaded, data):
        upstream(run, loaded, data=data, sites=work.site, device="cpu", progress=False)


def find_circuits(work: Work) -> None:
    """Edges of all units, of which one is ablated, and a circuit; norms free, then held."""
    with probed_whole(work) as (run, loaded, data):
        options: dict[str, Any] = {"data": data, "device": "cpu", "progress": False}
        sites = [*run.sites, work.site]
        edges(run, loaded, sites=sites, exemplars=1, check=1, **options)
        of_class = int(run.images["prediction"].iloc[0])
        circuits(run, loaded, of_class=of_class, sites=sites, exemplars=1, nodes=1, **options)


@contextmanager
def probed_whole(work: Work) -> Iterator[tuple[Run, LoadedModel, Shapes]]:
    """The probe before is a user of its own; a run of a whole model is explained by this one."""
    site = work.site if work.site in sites_of(work.model) else work.site.removesuffix("s")
    whole = deepcopy(work.model)
    for module in whole.modules():
        for name, child in module.named_children():
            if isinstance(child, Broken):
                setattr(module, name, nn.Identity())
    before = "layer1.1.hook_post" if site.startswith("layer") else "blocks.0.mlp.hook_post"
    probe(Work(whole, f"{before},{site}", work.folder))
    try:
        run = Run.open(work.folder / "run")
        loaded = LoadedModel(
            work.model, Transform(**run.manifest["model"]["transform"]), None, "small", "small",
            run.manifest["model"]["sha256"],
        )  # fmt: skip
        yield run, loaded, Shapes("test", n=5, size=32)
    except BaseException:
        shutil.rmtree(work.folder / "run")
        raise


def look_for_units(work: Work) -> None:
    require_units(loaded_by_hand(work), [(work.site, 0)], sites=work.site)


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


class Labelled(Shapes):
    """Drawn images whose labels take turns, so that a model is sometimes right."""

    def __init__(self) -> None:
        super().__init__("test", n=10, size=32)
        self.labels, self.classes = np.arange(10) % 5, None


def loaded_by_hand(work: Work) -> LoadedModel:
    size, inverse = tuple(work.images.shape[2:]), work.images.shape[1] == 6
    return LoadedModel(
        model=work.model, transform=Transform(size=size, inverse=inverse), classes=None,
        name="small", spec="small", sha256="0" * 64, build=partial(deepcopy, work.model),
    )  # fmt: skip


def compare_methods(work: Work) -> None:
    localise(
        loaded_by_hand(work), Labelled(), methods="input_gradient", grids=(), steps=2,
        n_images=2, progress=False,
    )  # fmt: skip


def check_sanity(work: Work) -> None:
    sanity_checks(
        loaded_by_hand(work), Labelled(), methods="input_gradient", orders=("independent",),
        n_images=2, progress=False,
    )  # fmt: skip


def probe_embedded(work: Work) -> None:
    probe(work, embed="model", smoothing=hasattr(work.model, "blocks"))


def study_heads(work: Work) -> None:
    loaded = LoadedModel(
        model=work.model,
        transform=Transform(size=tuple(work.images.shape[2:]), inverse=work.images.shape[1] == 6),
        classes=None,
        name="small",
        spec="small",
        sha256="0" * 64,
    )
    heads(
        loaded, Shapes("test", n=3, size=32), out=work.folder / "run", device="cpu", draws=1,
        exact_pairs=2, progress=False,
    )  # fmt: skip


USERS: list[Callable[[Work], None]] = [
    run_with_cache,
    run_with_hooks,
    hooks_with_gradients,
    explain,
    probe,
    probe_patterns,
    explain_by_all,
    account,
    explain_exemplars,
    trace_exemplars,
    find_circuits,
    compare_methods,
    check_sanity,
    probe_embedded,
    study_heads,
    look_for_units,
]
WITHOUT_SITE = (explain, compare_methods, check_sanity)
WAYS = ["normal", "unknown site", "failing forward"]

CASES = [
    pytest.param(user, network, way, id=f"{user.__name__}-{network}-{way}")
    for user in USERS
    for network in ("class_token", "bcos", "resnet18")
    for way in WAYS
    if not (user in WITHOUT_SITE and way == "unknown site")
    if not (user is probe_patterns and network == "resnet18")  # it has no patterns
    if not (user in (explain, study_heads) and way == "unknown site")  # they take no site
    if not (user in (probe_patterns, study_heads) and network == "resnet18")  # it has no heads
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
