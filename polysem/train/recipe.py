"""What a training run is made from: a YAML recipe, checked in full before any work starts.

`load_recipe` reads the file, the loop follows it, and the finished checkpoint carries it as a plain
dict, so that a model always says how it was made.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from polysem.errors import MissingError, RecipeError, did_you_mean
from polysem.train.inputs import Augment, Contrast, Data, RandAugment
from polysem.train.methods import Attention, DropHead, Dropout, PatchDropout
from polysem.train.section import BelowOne as _BelowOne
from polysem.train.section import Count as _Count
from polysem.train.section import CountOrZero as _CountOrZero
from polysem.train.section import Positive as _Positive
from polysem.train.section import PositiveOrZero as _PositiveOrZero
from polysem.train.section import Section as _Section

__all__ = [
    "OPEN_CLIP",
    "Augment",
    "Clip",
    "Contrast",
    "Data",
    "Model",
    "Optimiser",
    "RandAugment",
    "Recipe",
    "Schedule",
    "load_recipe",
    "parse_recipe",
    "recipe_to_dict",
]

OPEN_CLIP = "open_clip"
"""What ``model.name`` says where open_clip builds the model, two towers, from ``model.args``."""

_METHODS = (
    "attention", "feat_scale", "drop_head", "dropout", "spatial_dropout", "patch_dropout",
    "center_norm", "post_norm", "weighted_residual", "spectral_init",
)  # fmt: skip

#: Values that a recipe may have, aliases written out: far more than any needs.
_MOST_VALUES = 10_000

_MOST_SHOWN = 80


class Model(_Section):
    """The network: a name from timm's registry (polysem's included) and its arguments.

    With `weights`, a checkpoint, training starts from that instead of from random weights; one of
    polysem's own says name and arguments itself. `sha256` pins what is in it.
    """

    name: str = ""
    args: dict[str, Any] = Field(default_factory=dict)
    weights: str | None = None
    sha256: str | None = None

    @model_validator(mode="after")
    def _something(self) -> Model:
        if not self.name and self.weights is None:
            raise ValueError("give name, a model of timm's registry, or weights, a checkpoint")
        return self


class Clip(_Section):
    """How gradients are kept small: by their global norm, or relative to each unit's weights."""

    norm: _Positive | None = None
    agc: _Positive | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Clip:
        if self.norm is not None and self.agc is not None:
            raise ValueError("give norm or agc, not both")
        return self


class Optimiser(_Section):
    """Update rule and its peak learning rate; one-dimensional parameters are never decayed.

    Lion's steps are of one size for every weight: it takes a rate 3 to 10 times lower than
    AdamW's and a decay as many times higher; its betas are (0.9, 0.99) unless given.
    """

    name: Literal["adamw", "adam", "lion", "muon"] = "adamw"
    lr: _Positive
    weight_decay: _PositiveOrZero = 0.0
    betas: tuple[_BelowOne, _BelowOne] = (0.9, 0.999)
    clip: Clip = Clip()

    @model_validator(mode="before")
    @classmethod
    def _betas_of_lion(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and given.get("name") == "lion":
            return {"betas": (0.9, 0.99), **given}
        return given


class Schedule(_Section):
    """How long: epochs or steps; the rate climbs for `warmup_steps`, then falls as a cosine.

    A B-cosified model is converted over `conversion_steps`, or at once.
    """

    epochs: _Count | None = None
    steps: _Count | None = None
    warmup_steps: _CountOrZero = 0
    final_lr: _PositiveOrZero = 0.0
    conversion_steps: _CountOrZero = 0

    @model_validator(mode="after")
    def _one_length(self) -> Schedule:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give either epochs or steps")
        return self


class Recipe(_Section):
    """Everything that decides what a training run gives, together with the code and the machine.

    Attributes
    ----------
    model, data, optimiser, schedule, augment : section
        See the class of each.
    attention, feat_scale, drop_head, dropout, spatial_dropout, patch_dropout, center_norm, \
    post_norm, weighted_residual, spectral_init
        Methods that live in the model, see `polysem.train.methods`; off by default.
    contrast : section, optional
        Learn which phrases are true of an image instead of its class: a CLIP model.
    loss : str
        ``cross_entropy``; ``bce``, binary cross-entropy with clamped targets; or ``auto``: bce for
        B-cos models, cross-entropy for all others.
    batch_size : int
        Images per step, over all processes.
    accumulate : int
        In how many parts each process takes its share of a step's images, one after the other, to
        save memory; the step is the same.
    ema : float or None
        Decay of the moving average of the weights, which is tested and saved beside them.
    seed : int
        Decides initial weights, order of images and augmentation.
    precision : str
        ``fp32``, or ``bf16`` for autocast.
    compile : bool
        Whether torch compiles the network.
    threads : int, optional
        CPU threads; None leaves torch's own choice.
    workers : int, optional
        Processes that read images where these are streamed; None takes one for each core but
        one, 8 at most, shared between the training's processes.
    snapshots : int
        How many moments of the training to keep, from untrained to trained, spaced evenly in
        log(step); 0 keeps none.
    checkpoint_every : int
        Steps between two states that an interrupted training can resume from.
    save_as : str
        Number format of the final weights and the snapshots.
    notes : str
        What the model is for and what it must not be used for; goes into the model card.
    """

    model: Model
    data: Data
    optimiser: Optimiser
    schedule: Schedule
    augment: Augment = Augment()
    contrast: Contrast | None = None
    attention: Attention | None = None
    feat_scale: bool = False
    drop_head: DropHead | None = None
    dropout: Dropout | None = None
    spatial_dropout: _BelowOne = 0.0
    patch_dropout: PatchDropout | None = None
    center_norm: bool = False
    post_norm: bool = False
    weighted_residual: bool = False
    spectral_init: bool = False
    loss: Literal["auto", "cross_entropy", "bce"] = "auto"
    batch_size: _Count = 128
    accumulate: _Count = 1
    ema: _BelowOne | None = None
    seed: Annotated[_CountOrZero, Field(lt=2**63)] = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False
    threads: _Count | None = None
    workers: _CountOrZero | None = None
    snapshots: _CountOrZero = 10
    checkpoint_every: _Count = 500
    save_as: Literal["float32", "float16"] = "float32"
    notes: str = ""

    @model_validator(mode="after")
    def _crops_need_pictures(self) -> Recipe:
        if self.augment.resized_crop is not None and self.data.stream is False:
            raise ValueError(
                "augment.resized_crop cuts from whole pictures, which are streamed: data.stream "
                "must be true or left out"
            )
        return self

    @model_validator(mode="after")
    def _classes_or_phrases(self) -> Recipe:
        if (self.contrast is not None) != (self.model.name == OPEN_CLIP):
            raise ValueError(
                f"contrast trains a CLIP model and nothing else does: give it with model.name "
                f"{OPEN_CLIP!r}, or neither"
            )
        if self.contrast is not None and (foreign := list(self._about_classes())):
            raise ValueError(f"with contrast these keep their defaults: {', '.join(foreign)}")
        return self

    def _about_classes(self) -> Iterator[str]:
        """Yield what is set that only a training on classes follows."""
        keys = (*_METHODS, "loss", "accumulate", "ema")
        yield from (k for k in keys if getattr(self, k) != type(self).model_fields[k].default)
        if self.model.weights is not None:
            yield "model.weights"
        if self.schedule.conversion_steps:
            yield "schedule.conversion_steps"
        if self.augment != Augment(flip=self.augment.flip):
            yield "augment (but flip)"
        if self.data != Data(train=self.data.train, test=self.data.test):
            yield "data (but train and test)"
        if self.snapshots:
            yield "snapshots (0 here: none are kept)"

    @model_validator(mode="after")
    def _rate_falls(self) -> Recipe:
        if self.schedule.final_lr > self.optimiser.lr:
            raise ValueError(
                f"schedule.final_lr ({self.schedule.final_lr:g}) must not be above optimiser.lr "
                f"({self.optimiser.lr:g}), from which the rate falls"
            )
        return self


def load_recipe(path: str | Path, *, changes: Mapping[str, Any] | None = None) -> Recipe:
    """Read a recipe from a YAML file.

    Parameters
    ----------
    path : path
    changes : mapping, optional
        Values to put in place of the file's, by the full name of their key:
        ``{"data.train": "data/cifar10/train.parquet", "seed": 3}``.

    Raises
    ------
    MissingError
        If there is no such file.
    RecipeError
        If it is not YAML, names a key twice, or does not make a recipe; each fault in one sentence
        that names the key and what is allowed there.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError):
        raise MissingError(f"there is no recipe file {str(path)!r}") from None
    except UnicodeDecodeError:
        raise RecipeError(f"{path} is not a text file") from None
    try:
        data = yaml.load(text, Loader=_UniqueKeys)
    except (yaml.YAMLError, ValueError) as error:  # a date or number that there is none of
        raise RecipeError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise RecipeError(f"{path} is nested too deeply for a recipe") from None
    if _written_out(data) > _MOST_VALUES:
        raise RecipeError(f"{path} refers to its own parts until it is too large for a recipe")
    return parse_recipe(_changed(data, changes or {}), where=str(path))


def _written_out(data: Any, sizes: dict[int, float] | None = None) -> float:
    """Return how many values data have once their aliases are written out; infinity in a ring."""
    sizes = {} if sizes is None else sizes
    if not isinstance(data, (Mapping, list, tuple, set)):
        return 1
    if id(data) not in sizes:
        inside = data.values() if isinstance(data, Mapping) else data
        sizes[id(data)] = math.inf  # what it is as long as it is not known
        sizes[id(data)] = 1 + sum(_written_out(value, sizes) for value in inside)
    return sizes[id(data)]


def _changed(data: Any, changes: Mapping[str, Any]) -> Any:
    """Return the data with each value put at its place; sections on the way are made."""
    for name, value in changes.items():
        section, dot, rest = name.partition(".")
        inside = data if isinstance(data, Mapping) else {}
        data = {**inside, section: _changed(inside.get(section), {rest: value}) if dot else value}
    return data


def parse_recipe(data: object, *, where: str = "recipe") -> Recipe:
    """Check plain data (parsed YAML, or a recipe kept in a checkpoint) and return the recipe.

    Parameters
    ----------
    data : mapping
        Sections and keys as in a recipe file.
    where : str
        Where the data is from, for messages.

    Raises
    ------
    RecipeError
        If it does not make a recipe.

    Examples
    --------
    >>> parse_recipe({"model": {"nme": "vit_micro_patch8_gap_64"}})  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    polysem.errors.RecipeError: recipe: unknown key 'model.nme'; did you mean 'name'?...
    """
    if not isinstance(data, Mapping):
        raise RecipeError(f"{where} holds no keys; expected {_allowed(Recipe)}")
    try:
        return Recipe.model_validate(dict(data))
    except ValidationError as error:
        faults = [_sentence(fault) for fault in error.errors(include_url=False)]
        raise RecipeError("\n".join(f"{where}: {fault}" for fault in faults)) from None


def recipe_to_dict(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe as plain JSON data; `parse_recipe` turns it back."""
    return recipe.model_dump(mode="json")


def _sentence(fault: Any) -> str:
    """Say in one sentence what is wrong with one key, and what it may be."""
    path = [str(part) for part in fault["loc"] if isinstance(part, (str, int))]
    key, kind = ".".join(path), fault["type"]
    if kind == "extra_forbidden":
        section = _section(path[:-1])
        near = did_you_mean(path[-1], section.model_fields)
        return f"unknown key {key!r}{near}; allowed here: {_allowed(section)}"
    if kind == "missing":
        return f"the key {key!r} is missing; expected {_allowed(_section(path[:-1]))}"
    if kind == "literal_error":
        near = did_you_mean(
            _shown(fault["input"]).strip("'"), fault["ctx"]["expected"].split("'")[1::2]
        )
        return f"{key} is {_shown(fault['input'])}{near}; allowed: {fault['ctx']['expected']}"
    if kind == "model_type":
        section = _section(path)
        return f"{key} is {_shown(fault['input'])}; expected keys below it: {_allowed(section)}"
    if kind == "value_error":
        reason = str(fault["ctx"]["error"])
        shown = "" if isinstance(fault["input"], Mapping) else f" is {_shown(fault['input'])}"
        return f"{key}{shown}: {reason}" if key else reason
    reason = fault["msg"].removeprefix("Input ")
    return f"{key} is {_shown(fault['input'])}: it {reason}"


def _shown(value: Any) -> str:
    """Return what was given, cut to what fits a sentence."""
    text = reprlib.repr(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}…"


def _section(path: list[str]) -> type[BaseModel]:
    section: type[BaseModel] = Recipe
    for name in path:
        said = section.model_fields[name].annotation if name in section.model_fields else None
        inner = [
            kind
            for kind in (said, *get_args(said))  # a section that may be left out is a union
            if isinstance(kind, type) and issubclass(kind, BaseModel)
        ]
        if not inner:
            break
        section = inner[0]
    return section


def _allowed(section: type[BaseModel]) -> str:
    return ", ".join(section.model_fields)


class _UniqueKeys(yaml.SafeLoader):
    """YAML that refuses a key given twice, where plain YAML would silently take the last one."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        # Scalar keys only: others are refused by yaml itself, as they cannot name anything.
        scalars = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        seen: set[str] = set()
        for key in scalars:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} is given twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)
