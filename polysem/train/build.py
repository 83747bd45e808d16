"""From names in a recipe to what the loop works with: model, loss, optimiser, device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from polysem import _torchvision
from polysem.errors import RecipeError, SpecError
from polysem.models.bcos import BcosConv2d, BcosLinear
from polysem.models.conversion import advance
from polysem.models.dropout import set_drop_head_rate
from polysem.models.registry import create, home, require_known
from polysem.train.losses import LOSSES, Loss
from polysem.train.recipe import Clip, Model, Optimiser, Recipe
from polysem.train.schedules import drop_head_rate

_torchvision.repair()

from timm.optim import create_optimizer_v2  # noqa: E402
from timm.utils import ModelEmaV3, adaptive_clip_grad  # noqa: E402

__all__ = [
    "build_model",
    "choose_average",
    "choose_clip",
    "choose_loss",
    "choose_memory_format",
    "choose_optimiser",
    "follow_steps",
    "give_strengths_a_rate",
    "method_args",
    "with_methods",
]


_MUON_MOMENTUM = 0.95
#: First and last weights of open_clip's towers, as patterns.
_ENDS_OF_TOWERS = (
    "token_embedding.*", "positional_embedding", "text_projection", "visual.conv1.*",
    "visual.proj", "visual.*positional_embedding", "visual.class_embedding",
)  # fmt: skip


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
            raise RecipeError(f"model.args.{key}: remove it; weights come from model.weights")


def with_methods(recipe: Recipe) -> Model:
    """Return the recipe's model with the arguments that its methods become.

    Raises
    ------
    RecipeError
        If the model does not have a method, two do not go together, or one is given in
        ``model.args`` as well.
    """
    name = recipe.model.name
    more: dict[str, Any] = {}
    _check_together(recipe)
    for key, argument, value, homes in method_args(recipe):
        if argument in recipe.model.args:
            raise RecipeError(f"{key} and model.args.{argument} say the same; keep {key}")
        if home(name) not in homes:
            raise RecipeError(
                f"{key} is not for {name!r}: it needs a model of {' or '.join(homes.values())}"
            )
        more[argument] = value
    return recipe.model.model_copy(update={"args": {**recipe.model.args, **more}})


_OUR_VIT = {"polysem.models.vit": "polysem's vision transformers (vitc_tiny_patch4_gap_32, …)"}
_OUR_CNN = {"polysem.models.cnn": "polysem's residual networks (bcos_resnet20_32, …)"}
_TIMM_VIT = {"timm.models.vision_transformer": "timm's vision transformers"}


def method_args(recipe: Recipe) -> Iterator[tuple[str, str, Any, dict[str, str]]]:
    """Give key of the recipe, argument of the model, its value, and which models have it."""
    if recipe.attention is not None:
        attention = {"kind": recipe.attention.kind, **recipe.attention.options()}
        yield "attention", "attention", attention, _OUR_VIT
    if recipe.feat_scale:
        yield "feat_scale", "feat_scale", True, _OUR_VIT
    for part in ("center_norm", "post_norm", "weighted_residual", "spectral_init"):
        if getattr(recipe, part):
            yield part, part, True, _OUR_VIT
    if (heads := recipe.drop_head) is not None:
        rate = {"half": "half", "bernoulli": heads.p, "scheduled": heads.p_start}[heads.mode]
        yield "drop_head", "drop_head", rate, _OUR_VIT
    if (drop := recipe.dropout) is not None:
        rates = {
            "hidden": ("proj_drop_rate", drop.hidden),
            "attention": ("attn_drop_rate", drop.attention),
            "tokens": ("pos_drop_rate", drop.tokens),
            "head": ("drop_rate", drop.head),
        }
        for key, (argument, rate) in rates.items():
            if rate:
                homes = {**_OUR_VIT, **_TIMM_VIT, **(_OUR_CNN if key == "head" else {})}
                yield f"dropout.{key}", argument, rate, homes
    if recipe.spatial_dropout:
        homes = {**_OUR_VIT, **_OUR_CNN}
        yield "spatial_dropout", "spatial_drop_rate", recipe.spatial_dropout, homes
    if (patches := recipe.patch_dropout) is not None:
        homes = {**_OUR_VIT, **({} if isinstance(patches.keep, tuple) else _TIMM_VIT)}
        yield "patch_dropout", "patch_drop_rate", patches.rate(), homes


def _check_together(recipe: Recipe) -> None:
    """Refuse methods that exclude each other."""
    manhattan = recipe.attention is not None and recipe.attention.kind == "manhattan"
    if manhattan and recipe.patch_dropout is not None:
        raise RecipeError(
            "patch_dropout does not go with attention.kind 'manhattan', which needs every patch in "
            "its place; allowed with it: softmax, sata, attn_scale, cosine"
        )
    positions = recipe.model.args.get("positions", "attention")
    decomposed = recipe.attention is not None and recipe.attention.decomposed
    if decomposed and positions == "attention":
        raise RecipeError(
            "attention.decomposed takes no positions in the logits; model.args.positions may be "
            "sincos, learn or none"
        )
    if recipe.spatial_dropout and recipe.dropout is not None and recipe.dropout.hidden:
        raise RecipeError("spatial_dropout and dropout.hidden act in the same places; give one")


def follow_steps(
    recipe: Recipe,
    model: nn.Module,
    schedule: Any,
    *,
    total_steps: int,
    average: ModelEmaV3 | None = None,
) -> Callable[[int], None]:
    """Return what is called with the number of each step before it: all that changes by step.

    Parameters
    ----------
    recipe : Recipe
    model : nn.Module
    schedule : timm Scheduler
        Of the learning rate.
    total_steps : int
        Steps in all.
    average : ModelEmaV3, optional
        Whose model is converted with the other.
    """
    heads = recipe.drop_head
    converted = [model] if average is None else [model, average.module]

    def follow(step: int) -> None:
        schedule.step_update(step)
        for network in converted:
            advance(network, step=step, steps=recipe.schedule.conversion_steps)
        if heads is not None and heads.mode == "scheduled":
            rate = drop_head_rate(
                step,
                total_steps=total_steps,
                warmup_steps=recipe.schedule.warmup_steps,
                start=heads.p_start or 0.0,
                end=heads.p_end or 0.0,
            )
            set_drop_head_rate(model, rate)

    return follow


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


def give_strengths_a_rate(
    optimiser: torch.optim.Optimizer, model: nn.Module, lr: float | None
) -> None:
    """Let the strengths of attention (of SATA, AttnScale) learn at a rate of their own.

    Parameters
    ----------
    optimiser : Optimizer
        Gets one more group of parameters, otherwise like the one that they were in.
    model : nn.Module
    lr : float or None
        Their peak rate; None leaves them with all the others.
    """
    if lr is None:
        return
    strengths = {
        id(parameter)
        for name, parameter in model.named_parameters()
        if name.endswith(".mixer.strength")
    }
    for group in list(optimiser.param_groups):
        here = [parameter for parameter in group["params"] if id(parameter) in strengths]
        if here:
            group["params"] = [other for other in group["params"] if id(other) not in strengths]
            optimiser.add_param_group({**group, "params": here, "lr": lr})


def _first_and_last(model: nn.Module) -> tuple[str, ...]:
    """Return patterns for the parameters of the first layer and the classifier, by timm's names."""
    config = getattr(model, "pretrained_cfg", {})
    names: list[str] = []
    for key in ("first_conv", "classifier"):
        value = config.get(key) or ()
        names += [value] if isinstance(value, str) else value
    towers = _ENDS_OF_TOWERS if hasattr(model, "visual") else ()
    return (*(f"{name}.*" for name in names), *towers)


def choose_clip(recipe: Clip, model: nn.Module) -> Callable[[], object]:
    """Return what is done to the gradients between backward pass and step."""
    parameters = list(model.parameters())
    if recipe.norm is not None:
        return partial(nn.utils.clip_grad_norm_, parameters, recipe.norm)
    if recipe.agc is not None:
        return partial(adaptive_clip_grad, parameters, recipe.agc)
    return lambda: None


def choose_average(recipe: Recipe, model: nn.Module) -> ModelEmaV3 | None:
    """Return timm's moving average of the weights; its decay climbs to the recipe's at first.

    Without that climb a short training's average would remember the random weights it began with.
    """
    return None if recipe.ema is None else ModelEmaV3(model, decay=recipe.ema, use_warmup=True)


def choose_memory_format(model: nn.Module, device: torch.device) -> torch.memory_format:
    """Return channels last for networks that are mostly convolutions, on a GPU, as it is faster."""
    convs = sum(
        parameter.numel()
        for module in model.modules()
        if isinstance(module, (nn.Conv2d, BcosConv2d))
        for parameter in module.parameters()
    )
    mostly = 2 * convs > sum(parameter.numel() for parameter in model.parameters())
    return torch.channels_last if mostly and device.type == "cuda" else torch.contiguous_format
