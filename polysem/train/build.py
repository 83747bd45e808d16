"""From names in a recipe to what the loop works with: model, loss, optimiser, device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import nn

from polysem import _torchvision
from polysem.errors import RecipeError, SpecError
from polysem.models.bcos import BcosConv2d, BcosLinear
from polysem.models.registry import create, require_known
from polysem.train.losses import LOSSES, Loss
from polysem.train.recipe import Clip, Model, Optimiser, Recipe

_torchvision.repair()

from timm.optim import create_optimizer_v2  # noqa: E402
from timm.utils import adaptive_clip_grad  # noqa: E402

__all__ = [
    "build_model",
    "choose_clip",
    "choose_loss",
    "choose_optimiser",
]


_MUON_MOMENTUM = 0.95


def build_model(recipe: Model, *, n_classes: int) -> nn.Module:
    """Build the untrained network, its weights drawn from torch's global generator.

    Raises
    ------
    RecipeError
        If timm's registry has no such model, or it does not take the arguments in the recipe.
    """
    _check_args(recipe.args)
    try:
        require_known(recipe.name)
        return create(recipe.name, {**recipe.args, "num_classes": n_classes})
    except SpecError as error:
        raise RecipeError(f"the recipe's model cannot be built: {error}") from None


def _check_args(args: Mapping[str, object]) -> None:
    for key in args:
        if key == "num_classes":
            raise RecipeError("model.args.num_classes: the data decides this; remove the key")
        if key.startswith(("pretrained", "checkpoint_path", "cache_dir")):
            raise RecipeError(f"model.args.{key}: training starts from random weights; remove it")


def choose_loss(recipe: Recipe, model: nn.Module) -> Loss:
    """Return the loss that the recipe names, or for "auto" the one that fits the model."""
    if recipe.loss != "auto":
        return LOSSES[recipe.loss]
    is_bcos = any(isinstance(module, (BcosLinear, BcosConv2d)) for module in model.modules())
    return LOSSES["bce" if is_bcos else "cross_entropy"]


def choose_optimiser(recipe: Optimiser, model: nn.Module) -> torch.optim.Optimizer:
    """Return timm's optimiser; weights of one axis (norms, biases) and positions are not decayed.

    Muon, with Nesterov momentum, changes the matrices between the first layer and the classifier;
    these two, vectors and positions are left to NAdamW, at the same rate.
    """
    muon = recipe.name == "muon"
    optimiser: torch.optim.Optimizer = create_optimizer_v2(
        model,
        opt="nmuon" if muon else recipe.name,
        lr=recipe.lr,
        weight_decay=recipe.weight_decay,
        betas=recipe.betas,
        momentum=_MUON_MOMENTUM,  # the Adams take theirs from betas
        fallback_list=_first_and_last(model) if muon else (),
        fallback_no_weight_decay=muon,
    )
    return optimiser


def _first_and_last(model: nn.Module) -> tuple[str, ...]:
    """Return patterns for the parameters of the first layer and the classifier, by timm's names."""
    config = getattr(model, "pretrained_cfg", {})
    names: list[str] = []
    for key in ("first_conv", "classifier"):
        value = config.get(key) or ()
        names += [value] if isinstance(value, str) else value
    return tuple(f"{name}.*" for name in names)


def choose_clip(recipe: Clip, model: nn.Module) -> Callable[[], object]:
    """Return what is done to the gradients between backward pass and step."""
    parameters = list(model.parameters())
    if recipe.norm is not None:
        return partial(nn.utils.clip_grad_norm_, parameters, recipe.norm)
    if recipe.agc is not None:
        return partial(adaptive_clip_grad, parameters, recipe.agc)
    return lambda: None
