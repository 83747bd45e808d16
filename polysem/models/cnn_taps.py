"""Where the sites of a CNN sit, for `hooked`: the outputs of its blocks, by hooks like `taps`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from polysem.errors import SpecError
from polysem.models.taps import BOUNDED_BELOW, Point, Tap, input_tap

__all__ = ["cnn_taps"]


def cnn_taps(model: nn.Module) -> dict[str, Tap]:
    """Return the taps of every site of a CNN by site name, in network order.

    A site is the output of an innermost block in a list of blocks, for example ``layer3.5`` of a
    ResNet. Where there is no such list (VGG), it is the output of each activation function that
    follows a convolution in a chain of layers.

    An empty dict means that no site of the model is known.
    """
    if getattr(model, "output_fmt", "NCHW") != "NCHW":
        return {}
    taps = _block_taps(model, _is_list) or _block_taps(model, _is_uniform) or _chain_taps(model)
    if not taps:
        return {}
    classifier: Any = getattr(model, "get_classifier", lambda: getattr(model, "fc", None))
    head = classifier()
    if isinstance(head, nn.Linear):  # a convolutional head sees maps: there is no pooled site
        taps |= input_tap("hook_pooled", head)
    return taps


def _block_taps(model: nn.Module, is_list: Callable[[nn.Module], bool]) -> dict[str, Tap]:
    """Return the sites of the blocks that lie in a list of blocks."""
    taps: dict[str, Tap] = {}
    for name, module in model.named_modules():
        parent = model.get_submodule(name.rpartition(".")[0])
        if name and is_list(parent) and _is_block(module, is_list):
            taps |= _maps_tap(name, module, signed=not _ends_bounded(module))
    return taps


def _is_list(module: nn.Module) -> bool:
    return isinstance(module, (nn.Sequential, nn.ModuleList))


def _is_uniform(module: nn.Module) -> bool:
    """Tell whether all children are of one class, as in stages that run through their children."""
    return _is_list(module) or len({type(child) for child in module.children()}) == 1


def _is_block(module: nn.Module, is_list: Callable[[nn.Module], bool]) -> bool:
    """Tell whether a module is an innermost block: several layers, convolutions among them."""
    if is_list(module):
        return False
    layers = [child for child in module.children() if any(True for _ in child.parameters())]
    if len(layers) < 2 or not any(weight.ndim == 4 for weight in module.parameters()):
        return False
    lists = (inner for inner in module.modules() if inner is not module and is_list(inner))
    return not any(_is_block(child, is_list) for inner in lists for child in inner.children())


def _ends_bounded(block: nn.Module) -> bool:
    """Tell whether a block like ResNet's ends with an activation function that is bounded below.

    The last of its numbered activations is its last layer only if no convolution follows; blocks
    of any other kind count as signed.
    """
    layers = [name for name in block._modules if name.startswith(("conv", "act2", "act3"))]
    last = block._modules[layers[-1]] if layers else None
    return type(last).__name__ in BOUNDED_BELOW


def _chain_taps(model: nn.Module) -> dict[str, Tap]:
    """Return the sites of chains of layers, if most convolutions of the model are in chains."""
    taps: dict[str, Tap] = {}
    n_chained = 0
    for path, chain in model.named_modules():
        if not isinstance(chain, nn.Sequential):
            continue
        convolved = False
        for name, layer in chain.named_children():
            if _weight_ndim(layer) > 1:
                convolved = _weight_ndim(layer) == 4
                n_chained += convolved
            elif convolved and type(layer).__name__ in BOUNDED_BELOW:
                taps |= _maps_tap(f"{path}.{name}" if path else name, layer, signed=False)
    n_convolutions = sum(_weight_ndim(module) == 4 for module in model.modules())
    return taps if 2 * n_chained > n_convolutions else {}


def _weight_ndim(layer: nn.Module) -> int:
    weight = getattr(layer, "weight", None)
    return weight.ndim if isinstance(weight, Tensor) else 0


def _maps_tap(path: str, module: nn.Module, *, signed: bool) -> dict[str, Tap]:
    name = f"{path}.hook_post"

    def attach(points: Mapping[str, Point]) -> list[RemovableHandle]:
        def show(_module: nn.Module, _inputs: Any, output: Any) -> Tensor | None:
            if not (isinstance(output, Tensor) and output.ndim == 4):
                raise SpecError(
                    f"{path} ({type(module).__name__}) does not return maps "
                    "[image, channel, y, x]; leave this site out"
                )
            edited = points[name](output)
            return None if edited is output else edited

        return [module.register_forward_hook(show)]

    return {name: Tap(signed, attach)}
