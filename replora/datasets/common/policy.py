"""Published policies of color and shape changes, by torchvision, before the crop of another augmentation."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torchvision.transforms import v2

from replora.datasets.common.augment import Augmentation
from replora.datasets.samples import ImageForm

Policy = Literal["none", "rand_augment", "trivial_augment"]
POLICIES = {"rand_augment": v2.RandAugment, "trivial_augment": v2.TrivialAugmentWide}


class WithPolicy:
    """An augmentation, and after it a policy: RandAugment (Cubuk et al. 2020) or TrivialAugment (Müller, Hutter 2021).

    Neither mirrors an image. Both use the defaults of torchvision, bilinear.

    Args:
        augmentation: What cuts the square.
        policy: `rand_augment` or `trivial_augment`.
    """

    def __init__(self, augmentation: Augmentation, policy: Policy) -> None:
        self.augmentation = augmentation
        self.policy = POLICIES[policy](interpolation=v2.InterpolationMode.BILINEAR)

    @property
    def form(self) -> ImageForm:
        return self.augmentation.form

    def __call__(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """uint8 (3, H, W) -> uint8 (3, size, size)."""
        square = self.augmentation(image, generator)
        seed = int(torch.randint(2**62, (), generator=generator))
        with torch.random.fork_rng(devices=[]):  # torchvision draws from the generator of the process
            torch.manual_seed(seed)
            changed: Tensor = self.policy(square)
        return changed
