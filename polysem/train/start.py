"""Where a training starts from if not from random weights: those in a file, for `prepare`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from polysem.errors import RecipeError
from polysem.models.checkpoint import is_ours, parse_checkpoint
from polysem.models.conversion import Conversion
from polysem.models.registry import evaluation_transform
from polysem.models.transform import Transform
from polysem.models.weights import fit, read_tensors, state_digest
from polysem.train.build import method_args
from polysem.train.recipe import Recipe

__all__ = ["check_conversion", "start_weights", "with_start"]


def with_start(recipe: Recipe) -> Recipe:
    """Return the recipe with name, arguments and digest of the model that it starts from.

    A recipe without ``model.weights`` stays as it is, and so does one completed before. What the
    recipe says of the arguments goes before what the file says.

    Raises
    ------
    MissingError
        If there is no such file.
    CheckpointError
        If it cannot be read.
    RecipeError
        If it holds another model than the recipe names, or other weights, or does not say what it
        holds and the recipe does not either.
    """
    given = recipe.model
    if given.weights is None:
        return recipe
    path = Path(given.weights).expanduser()
    tensors, header = read_tensors(path)
    digest = state_digest(tensors)
    if given.sha256 is not None and given.sha256 != digest:
        raise RecipeError(
            f"model.sha256 is {given.sha256[:12]}…, but the weights in {path} are {digest[:12]}…: "
            "not those that the recipe was written for"
        )
    if is_ours(header):
        checkpoint = parse_checkpoint(tensors, header, source=str(path))
        name, args = checkpoint.model_name, dict(checkpoint.model_args)
        if given.name not in ("", name):
            raise RecipeError(
                f"model.name is {given.name!r}, but {path} holds a {name}; leave model.name out"
            )
        for decided in ("num_classes", *(argument for _, argument, *_ in method_args(recipe))):
            args.pop(decided, None)  # by the data, and by the recipe's methods
    else:
        name, args = given.name, {}
        if not name:
            raise RecipeError(f"{path} does not say what model it is of; name it in model.name")
    found = {"name": name, "args": {**args, **given.args}, "sha256": digest}
    return recipe.model_copy(update={"model": given.model_copy(update=found)})


def start_weights(recipe: Recipe, model: nn.Module) -> Transform:
    """Put the weights that the recipe starts from into a new model; return its transform.

    The classifier keeps its new weights if the file's has another number of classes.

    Raises
    ------
    CheckpointError
        If the weights do not fit; the first differences are named.
    """
    if recipe.model.weights is None:
        return evaluation_transform(model)
    path = Path(recipe.model.weights).expanduser()
    tensors, header = read_tensors(path)
    transform = evaluation_transform(model)
    if is_ours(header):
        checkpoint = parse_checkpoint(tensors, header, source=str(path))
        tensors, transform = checkpoint.state_dict, checkpoint.transform
    own = model.state_dict()
    classifier = [key for key in own if key.startswith(_classifier(model))]
    if any(key in tensors and tensors[key].shape != own[key].shape for key in classifier):
        tensors = {**tensors, **{key: own[key] for key in classifier}}
    fit(model, tensors, source=str(path), name=recipe.model.name)
    return transform


def _classifier(model: nn.Module) -> tuple[str, ...]:
    """Return what the names of the classifier's parameters begin with."""
    names: Any = getattr(model, "pretrained_cfg", {}).get("classifier") or ()
    return tuple(f"{name}." for name in ([names] if isinstance(names, str) else names))


def check_conversion(recipe: Recipe, model: nn.Module, total_steps: int) -> None:
    """Refuse a schedule of B-cosification that this training cannot follow.

    Raises
    ------
    RecipeError
        If the model is not B-cosified, or the training ends before it is.
    """
    steps = recipe.schedule.conversion_steps
    if not steps:
        return
    if not any(isinstance(module, Conversion) for module in model.modules()):
        raise RecipeError(
            f"schedule.conversion_steps needs a B-cosified model in model.weights (see polysem "
            f"bcosify); this is a {recipe.model.name}"
        )
    if steps >= total_steps:
        raise RecipeError(
            f"schedule.conversion_steps is {steps}, but the training has only {total_steps} steps: "
            "it would end before the model is a B-cos network"
        )
