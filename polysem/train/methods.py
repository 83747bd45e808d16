"""What a recipe may say about the methods that live in the model: one key each, off by default."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from polysem.train.section import BelowOne, Section

__all__ = ["DropHead"]


class DropHead(Section):
    """Heads left out while training: half of them, each at rate p, or at a rate that changes.

    Scheduled, the rate falls from `p_start` to 0 over the warm-up of the learning rate, then climbs
    to `p_end` at the end of the training.
    """

    mode: Literal["half", "bernoulli", "scheduled"] = "half"
    p: BelowOne | None = None
    p_start: BelowOne | None = None
    p_end: BelowOne | None = None

    @model_validator(mode="after")
    def _rates_of_the_mode(self) -> DropHead:
        takes = {"half": (), "bernoulli": ("p",), "scheduled": ("p_start", "p_end")}[self.mode]
        rates = ("p", "p_start", "p_end")
        given = tuple(name for name in rates if getattr(self, name) is not None)
        if given != takes:
            wanted = " and ".join(takes) or "no rate"
            found = " and ".join(given) or "none"
            raise ValueError(f"mode {self.mode!r} takes {wanted}; got {found}")
        return self
