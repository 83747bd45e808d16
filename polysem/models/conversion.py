"""How far a B-cosified network is on its way from standard to B-cos: one number for all its layers.

`bcosified` has the layers, `bcosify` makes the network, training moves it along. At share s every
layer gives ``(1 − s) · trained layer + s · B-cos layer``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import overload

import torch
from torch import Tensor, nn

from polysem.errors import SpecError

__all__ = ["Conversion", "Converted", "advance"]


class Conversion(nn.Module):
    """How far a network has been converted; its layers share one, which the state dict keeps.

    Parameters
    ----------
    share : float
        From 0, the original function, to 1, a B-cos network. May be set at any time.
    b : float
        The exponent B of the B-cos layers.

    Raises
    ------
    SpecError
        If a number is out of its range.
    """

    def __init__(self, share: float = 0.0, b: float = 2.0) -> None:
        super().__init__()
        if not 1 <= b < math.inf:
            raise SpecError(f"B of a B-cos layer must be at least 1 (1 is linear), got {b}")
        self.b = b
        self.share = share

    @property
    def share(self) -> float:
        """How much of the conversion is done."""
        return self._share

    @share.setter
    def share(self, value: float) -> None:
        if not 0 <= value <= 1:
            raise SpecError(f"the share of a conversion must be from 0 to 1, got {value}")
        self._share = value

    @overload
    def left_of(self, term: Tensor) -> Tensor: ...
    @overload
    def left_of(self, term: None) -> None: ...
    def left_of(self, term: Tensor | None) -> Tensor | None:
        """Return what is left of an additive term; None stays None.

        At share 1 that is zeros rather than nothing, since training on several processes waits
        for a gradient of every parameter.
        """
        return term if term is None or self.share == 0 else term * (1 - self.share)

    def mix(self, trained: Tensor, bcos: Callable[[Tensor], Tensor]) -> Tensor:
        """Return what a layer gives: `trained`, what `bcos` makes of it, or some of both."""
        if self.share == 0:
            return trained
        converted = bcos(trained)
        return converted if self.share == 1 else torch.lerp(trained, converted, self.share)

    def get_extra_state(self) -> Tensor:
        """Return the share, as a tensor that any checkpoint can hold."""
        return torch.tensor(self.share, dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """Take the share from a state dict."""
        self.share = float(state)

    def extra_repr(self) -> str:
        """Return the numbers that `repr` shows."""
        return f"share={self.share:g}, b={self.b:g}"


def advance(model: nn.Module, *, step: int, steps: int) -> None:
    """Set the share that a B-cosified model has after some steps of fine-tuning; never set it back.

    Parameters
    ----------
    model : nn.Module
        Any; without a :class:`Conversion` it stays as it is.
    step : int
        Steps taken.
    steps : int
        The share grows evenly over so many; 0 converts at once.
    """
    share = min(1.0, step / steps) if steps else 1.0
    for module in model.modules():
        if isinstance(module, Conversion):
            module.share = max(module.share, share)


class Converted(nn.Module):
    """A layer that looks at the network's conversion, which stays a module of the network alone."""

    _shared: tuple[Conversion]

    @property
    def conversion(self) -> Conversion:
        """The conversion that this layer is part of."""
        return self._shared[0]

    def share_in(self, conversion: Conversion) -> None:
        """Follow a conversion."""
        self._shared = (conversion,)  # in a tuple, as a module would be registered

    def take(self, like: nn.Module, conversion: Conversion) -> None:
        """Take the very parameters of the layer that is replaced."""
        self.share_in(conversion)
        for name in ("weight", "bias"):
            self.register_parameter(name, getattr(like, name))
        self.train(like.training)
