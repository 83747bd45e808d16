"""Layers of a model drawn anew, for `sanity`: what a map must notice if it explains the model.

Fresh values come from building the architecture once more. Every parameter then follows its own
initial distribution, whatever its layer is and however the architecture sets it: positions, class
tokens, position biases, layer scales and the learned numbers of attention variants as well as the
weights of B-cos layers and norms.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from polysem.errors import SpecError

__all__ = ["Randomised", "layers_of"]

By = Literal["block", "module"]

# "blocks.3" of "blocks.3.mlp.fc1", "stages.0.blocks.1" of "stages.0.blocks.1.conv_dw"
_BLOCK = re.compile(r".*?\.\d+(?:\.(?:blocks?|layers?)\.\d+)*(?=\.)")


def layers_of(model: nn.Module, *, by: By = "block") -> dict[str, tuple[str, ...]]:
    """Return the names of the tensors of each layer, from the input to the logits.

    Every parameter and every running statistic is in exactly one layer. Parameters that the model
    itself holds (positions, class token) are layers of their own, at the input. The order is that
    of registration, which is the order of computing in timm's, Hugging Face's and our models.

    Parameters
    ----------
    model : nn.Module
    by : {"block", "module"}
        A layer is a block of the network (``blocks.3``, ``layer2.0``; what is outside of blocks is
        taken module by module), or every module that holds parameters.

    >>> layers = layers_of(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)), by="module")
    >>> layers
    {'0': ('0.weight', '0.bias'), '2': ('2.weight', '2.bias')}
    """
    held = [name for name, _ in model.named_parameters()]
    kept = model.state_dict().keys()
    held += [name for name, _ in model.named_buffers() if name in kept]
    place = {name: i for i, (name, _) in enumerate(model.named_modules())}
    held.sort(key=lambda name: place[name.rpartition(".")[0]])
    layers: dict[str, list[str]] = {}
    for name in held:
        layers.setdefault(_layer(name, by), []).append(name)
    return {layer: tuple(names) for layer, names in layers.items()}


def _layer(name: str, by: By) -> str:
    block = _BLOCK.match(name) if by == "block" else None
    return block[0] if block else name.rpartition(".")[0] or name


class Randomised:
    """A model of which chosen layers are drawn anew; the model it is made from stays as it is.

    A layer has the same fresh values whichever others are drawn, and no two layers share theirs.
    Statistics of batch norms are not drawn but measured again on `images`, as an untrained
    network's would be; without, signals of a deep network in evaluation mode vanish or overflow.

    Parameters
    ----------
    model : nn.Module
        The trained model, in evaluation mode.
    build : callable
        Builds its architecture with newly drawn weights, as `LoadedModel.build` does.
    images : Tensor
        As the model takes them, [image, channel, y, x].
    seed : int
        Of the fresh values.

    Raises
    ------
    SpecError
        If `build` gives another architecture.
    """

    def __init__(
        self,
        model: nn.Module,
        build: Callable[[], nn.Module],
        images: Tensor,
        *,
        by: By = "block",
        seed: int = 0,
    ) -> None:
        self._model = deepcopy(model).eval()
        self._trained = {name: value.clone() for name, value in _tensors(model)}
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(_unlike_training(seed))
            self._fresh = {name: value.to(images.device) for name, value in _tensors(build())}
        odd = [
            name
            for name, value in _tensors(model)
            if name not in self._fresh or self._fresh[name].shape != value.shape
        ]
        if odd:
            raise SpecError(
                f"the architecture that is built anew has no tensor like {odd[0]!r} of the model, "
                "so its layers cannot be drawn anew; give the `build` that made it"
            )
        self._images = images
        self.layers = layers_of(model, by=by)

    @torch.no_grad()
    def with_layers(self, drawn: Collection[str]) -> nn.Module:
        """Return the model with the layers `drawn` anew and all others as trained.

        The same object at every call, in evaluation mode.
        """
        chosen = {name for layer in drawn for name in self.layers[layer]}
        for name, value in _tensors(self._model):
            value.copy_(self._fresh[name] if name in chosen else self._trained[name])
        norms: list[Any] = [
            module
            for prefix, module in self._model.named_modules()
            if f"{prefix}.running_var" in chosen
        ]
        if norms:
            with _measuring(norms):
                self._model(self._images)
        return self._model


def _unlike_training(seed: int) -> int:
    """Return another seed: with a trained model's own it would get back its first weights."""
    return int(np.random.SeedSequence([seed, *b"sanity"]).generate_state(1, np.uint64)[0] >> 1)


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.state_dict().items()


@contextmanager
def _measuring(norms: list[Any]) -> Iterator[None]:
    """Let norms take over the statistics of the next batch."""
    before = [norm.momentum for norm in norms]
    try:
        for norm in norms:
            norm.momentum = 1.0
            norm.train()
        yield
    finally:
        for norm, momentum in zip(norms, before, strict=True):
            norm.momentum = momentum
            norm.eval()
