"""The dynamic-linear summary: a network's whole computation for one image as one matrix W(x).

A B-cos network is a product of matrices that depend on the input, and so is a network of
piecewise-linear layers: ReLU, LeakyReLU, MaxOut and max-pooling multiply by a binary diagonal
matrix, the activation pattern, once the input is given. With everything that makes up W(x) held
fixed, its rows are gradients, and rows of many targets are batched vector-Jacobian products of
one forward pass. `completeness` accounts for what is added along the way.

Böhle et al., arXiv 2205.10268 and 2306.10898; Montúfar et al. on linear regions, arXiv 1402.1869.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from timm.layers import Attention, BlurPool2d, DropPath, LayerScale, SelectAdaptivePool2d
from torch import Tensor, nn

from polysem.errors import SpecError
from polysem.explain.forward import explaining, forward, require_finite_map, target_values
from polysem.explain.target import Target, TargetLike
from polysem.models.attention import BcosAttention
from polysem.models.bcos import BcosConv2d, BcosLinear, LogitBias, explanation_mode
from polysem.models.embed import SincosPositions
from polysem.sites import parse_site

__all__ = [
    "LinearMap",
    "all_targets",
    "bcos",
    "linear_map",
    "require_bcos",
    "require_linear",
    "rows",
    "summarising",
]

#: Layers that multiply by a matrix and add a constant, once their input is given. What has an
#: attribute `explaining` joins them: B-cos layers and norms.
_LINEAR: tuple[type[nn.Module], ...] = (
    nn.Linear, nn.Conv2d, nn.Identity, nn.Flatten, nn.ReLU, nn.LeakyReLU,
    nn.PReLU, nn.MaxPool2d, nn.AdaptiveMaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d,
    nn.BatchNorm2d, nn.Dropout, nn.Dropout2d, nn.ZeroPad2d,
    LogitBias, SincosPositions, BlurPool2d, DropPath, LayerScale, SelectAdaptivePool2d,
)  # fmt: skip

#: Where torch and timm keep layers that bend, of which those above are the exceptions.
_BENDING = (
    "torch.nn.modules.activation", "torch.nn.modules.normalization", "timm.layers.activations",
    "timm.layers.norm",
)  # fmt: skip

#: Images times targets that go through one batched backward pass: enough to keep a processor
#: busy, and no more memory than a forward pass over so many images takes.
_ROWS_AT_A_TIME = {"cpu": 16, "cuda": 128}


@dataclass(frozen=True)
class LinearMap:
    """Rows of W(x) for some targets, with what they multiply.

    Attributes
    ----------
    weights : Tensor
        W(x): [target, image, …], the axes of `source` after the targets.
    source : Tensor
        What W(x) is applied to, the images or the activation of a site: [image, …].
    values : Tensor
        The targets' own numbers [target, image].
    """

    weights: Tensor
    source: Tensor
    values: Tensor

    @property
    def contributions(self) -> Tensor:
        """``source ⊙ W(x)`` [target, image, …], whose sum is what W(x) explains."""
        return self.source * self.weights


def linear_map(
    model: nn.Module,
    images: Tensor,
    targets: Sequence[TargetLike],
    *,
    source: str | None = None,
    rows_at_a_time: int | None = None,
) -> LinearMap:
    """Return the rows of W(x) that belong to some targets, from one forward pass.

    Parameters
    ----------
    model : nn.Module
        B-cos, or piecewise linear.
    images : Tensor
        The model's input [image, channel, y, x].
    targets : sequence of Target or Tensor
        The rows; :func:`all_targets` names every one.
    source : str, optional
        The site whose activation W(x) is applied to, instead of the images. Where other paths
        lead around it (a skip connection), W(x) is the part that goes through the site.
    rows_at_a_time : int, optional
        Images times targets in one backward pass, which memory grows with.

    Returns
    -------
    LinearMap

    Raises
    ------
    SpecError
        If the model is neither of the two, or target, site or images do not fit it.
    NonFiniteError
        If a target's number is not finite.

    Examples
    --------
    >>> from polysem.models.load import load_model
    >>> model = load_model("timm:resnet20_32").model
    >>> found = linear_map(model, torch.rand(1, 3, 32, 32), all_targets(model, n_units=10))
    >>> tuple(found.weights.shape)
    (10, 1, 3, 32, 32)
    """
    require_linear(model)
    if not targets:
        raise SpecError("no target is named, so W(x) has no rows")
    with summarising(model, kernels_for_rows=len(targets) > 1):
        values, start = _graph(model, images, targets, source)
        weights = rows(values, start, rows_at_a_time=rows_at_a_time)
        return LinearMap(weights, start.detach(), values.detach())


def all_targets(
    model: nn.Module,
    *,
    site: str | None = None,
    n_units: int | None = None,
    images: Tensor | None = None,
    positions: bool = False,
) -> list[Target]:
    """Return every class, or every unit of a site: the rows of the full matrix.

    Parameters
    ----------
    model : nn.Module
    site : str, optional
        Instead of the classes.
    n_units : int, optional
        How many there are, where that is known.
    images : Tensor, optional
        Else, images to find out with.
    positions : bool, default False
        Each patch, or place on the map, of a unit by itself, instead of pooled ones.

    Raises
    ------
    SpecError
        If there is no such site, or nothing tells how many units there are.
    """
    shape: tuple[int, ...] | None = None
    n_prefix_tokens = 0
    if n_units is None or positions:
        if images is None:
            raise SpecError("the units are counted by showing images: give some, or n_units")
        shape, n_prefix_tokens = _shape_at(model, images, site)
    if site is None:
        n_classes = n_units if n_units is not None else (shape or (0, 0))[1]
        return [Target(unit) for unit in range(n_classes)]
    dims = parse_site(site).dims
    if n_units is None:
        assert shape is not None
        n_units = shape[dims.index(parse_site(site).unit_dim)]
    if not positions:
        return [Target(unit, site) for unit in range(n_units)]
    assert shape is not None
    places = (
        shape[2] * shape[3] if "channel" in dims else shape[1] - n_prefix_tokens
    )  # hook_pooled has none, which Target says
    return [Target(u, site, position=p) for u in range(n_units) for p in range(places)]


def bcos(model: nn.Module, images: Tensor, target: TargetLike) -> Tensor:
    """Contribution of every pixel in a B-cos network: ``Σ_channels x ⊙ W(x)``.

    The sum of the map is the target's number, less the additive terms that
    :func:`~polysem.explain.completeness.check` names. Böhle et al., arXiv 2306.10898.

    Parameters
    ----------
    model : nn.Module
        Of B-cos layers.
    images : Tensor
        ``[x, 1 − x]``: [image, channel, y, x].
    target : Target or Tensor
        What is explained.

    Returns
    -------
    Tensor
        [image, y, x], in units of the target; positive is evidence for it.

    Raises
    ------
    SpecError
        If the model has no B-cos layers, or target or images do not fit it.
    NonFiniteError
        If the map is not finite.
    """
    require_bcos(model)
    found = linear_map(model, images, [target])
    return require_finite_map(found.contributions[0].sum(1), "bcos")


def require_bcos(model: nn.Module) -> None:
    """Refuse a model without B-cos layers.

    Raises
    ------
    SpecError
        Naming what is the same for other models.
    """
    if not _has_bcos(model):
        raise SpecError(
            f"bcos explains B-cos networks, and {type(model).__name__} has no B-cos layers; "
            "input_gradient is the same for piecewise-linear networks"
        )


def require_linear(model: nn.Module) -> None:
    """Refuse a model that is no product of matrices once its input is given.

    Raises
    ------
    SpecError
        Naming the first layer that is neither B-cos nor piecewise linear.
    """
    strict = not _has_bcos(model)
    for name, module in model.named_modules():
        if _bends(module, strict=strict):
            raise SpecError(
                f"W(x) is for B-cos and piecewise-linear networks, and {name or 'the model'} "
                f"({type(module).__name__}) is neither; input_gradient works for any model"
            )


def _has_bcos(model: nn.Module) -> bool:
    return any(isinstance(module, (BcosLinear, BcosConv2d)) for module in model.modules())


def _bends(module: nn.Module, *, strict: bool) -> bool:
    """Tell whether a layer is no matrix once its input is given; if strict, one not known to be.

    In a B-cos network layers that are not known are taken at their word, as `check` would tell.
    """
    if isinstance(module, Attention):
        return not isinstance(module, BcosAttention)
    if next(module.children(), None) is not None or hasattr(module, "explaining"):
        return False
    if type(module) in _LINEAR or isinstance(module, (nn.Sequential, nn.ModuleList)):
        return False
    return strict or type(module).__module__.startswith(_BENDING)


@contextmanager
def summarising(model: nn.Module, *, kernels_for_rows: bool = False) -> Iterator[None]:
    """Hold fixed what makes up W(x), so that gradients are its rows; see `explaining`."""
    with explaining(model, kernels_for_rows=kernels_for_rows), explanation_mode(model):
        yield


def rows(values: Tensor, start: Tensor, *, rows_at_a_time: int | None = None) -> Tensor:
    """Return the gradients of values [target, image] in what they start from [image, …].

    Each image's values depend on that image alone.

    Parameters
    ----------
    values : Tensor
        With their graph, which is kept.
    start : Tensor
    rows_at_a_time : int, optional
        Images times targets in one backward pass.

    Returns
    -------
    Tensor
        [target, image, …].
    """
    if values.grad_fn is None:  # nothing of the target depends on the start
        return start.new_zeros(len(values), *start.shape)
    limit = rows_at_a_time or _ROWS_AT_A_TIME.get(start.device.type, 64)
    size = max(1, limit // values.shape[1])
    found = []
    for some in values.split(size):
        ones = torch.eye(len(some), dtype=some.dtype, device=some.device)
        ones = ones[:, :, None].expand(-1, -1, some.shape[1])
        batched = len(some) > 1
        (gradient,) = torch.autograd.grad(
            some,
            start,
            ones if batched else ones[0],
            retain_graph=True,
            is_grads_batched=batched,
            materialize_grads=True,
        )
        found.append(gradient if batched else gradient[None])
    return torch.cat(found)


def _graph(
    model: nn.Module, images: Tensor, targets: Sequence[TargetLike], source: str | None
) -> tuple[Tensor, Tensor]:
    """Return the numbers [target, image] and what they start from, the images or a site."""
    if source is None:
        start = images.detach().clone().requires_grad_()
        return target_values(model, start, targets), start
    Target(0, source)  # refuses attention weights, which are part of W(x)
    found: list[Tensor] = []

    def cut(activation: Tensor) -> Tensor:
        found.append(activation.detach().clone().requires_grad_())
        return found[-1]

    values = target_values(model, images.detach(), targets, edits={source: cut})
    if not found:
        raise SpecError(f"the forward pass never reached {source}")
    return values, found[-1]


def _shape_at(model: nn.Module, images: Tensor, site: str | None) -> tuple[tuple[int, ...], int]:
    """Return the shape of the logits or of the activation at a site, and the prefix tokens."""
    shapes: list[tuple[int, ...]] = []
    points = {} if site is None else {site: lambda a: shapes.append(tuple(a.shape))}
    with explaining(model), torch.no_grad():
        logits, n_prefix_tokens, _ = forward(model, images[:1], points)
    return shapes[0] if shapes else tuple(logits.shape), n_prefix_tokens
