"""What a recipe may say about images: where they come from, how often they are shown, what is done.

Nothing here knows about the class: a recipe switches on what leaves its labels true.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from polysem.train.section import Count, CountOrZero, Positive, PositiveOrZero, Section

__all__ = ["Augment", "Contrast", "Data", "RandAugment"]

_Share = Annotated[PositiveOrZero, Field(le=1)]


class Data(Section):
    """What it learns from and what it is tested on: two data specs.

    ``sampling: balanced`` shows every class equally often, ``shuffled`` every image once an epoch.
    With `permute_labels` the training images keep their number in every class but swap labels at
    random, so that nothing can be learned except by heart (data randomisation, arXiv 1810.03292).
    `stream` reads images anew in every epoch, with worker processes, instead of keeping them in
    memory; left out, memory decides.
    """

    train: str
    test: str
    train_limit: Count | None = None
    test_limit: Count | None = None
    sampling: Literal["shuffled", "balanced"] = "shuffled"
    permute_labels: bool = False
    stream: bool | None = None


class RandAugment(Section):
    """Some of torchvision's 14 operations, at one strength: `n` an image, `m` of 30 strong.

    One of the operations leaves the image as it is, five move its pixels, eight change its colours;
    ``colour: false`` leaves those out, for pictures whose colours tell the class (skin lesions).
    """

    n: CountOrZero = 2
    m: Annotated[CountOrZero, Field(le=30)] = 9
    colour: bool = True


class Augment(Section):
    """Random changes of the training images that leave their class as it is.

    `resized_crop` is the smallest and the largest share of a picture's area that is cut out and
    scaled to the model's size. `mixup` is α of the Beta distribution that pairs of images are
    mixed by, `erasing` the probability that a rectangle goes black; 0 switches them off.
    """

    flip: bool = False
    turn: bool = False
    crop_padding: CountOrZero = 0
    resized_crop: tuple[Positive, Annotated[Positive, Field(le=1)]] | None = None
    randaugment: RandAugment | None = None
    erasing: _Share = 0.0
    mixup: PositiveOrZero = 0.0

    @model_validator(mode="after")
    def _one_crop(self) -> Augment:
        if self.resized_crop is not None:
            if self.crop_padding:
                raise ValueError("give crop_padding or resized_crop, not both")
            if self.resized_crop[0] > self.resized_crop[1]:
                raise ValueError("resized_crop takes the smaller share of the area first")
        return self


class Contrast(Section):
    """Phrases about drawn images, true of some images of a step and false of others.

    Each image gives `phrases` to a step, drawn anew every time. Of the images, `crops` is the share
    that is cut, most often around one object, and scaled to the model's size; what a phrase says
    then has to be seen in the cutting.
    """

    phrases: Count = 2
    crops: _Share = 0.6
