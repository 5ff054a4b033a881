"""Small image tasks in the form of VTAB-1K's that can be had without a network, for experiments on a laptop."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from torch.utils.data import Dataset

from datamodules.base import Split, one_of
from datamodules.image.base import ImageDataModule, Normalization
from replora.datasets.common.paths import data_root
from replora.datasets.image.fashion_mnist import CLASSES, FashionMNIST, find_fashion_mnist
from replora.datasets.image.grayscale import GrayImages
from replora.datasets.image.sprites import CLASSES as SPRITE_CLASSES
from replora.datasets.image.sprites import Sprites

Task = Literal["fashion_mnist", "sprites_location", "sprites_orientation"]


class SmallImagesDataModule(ImageDataModule):
    """Fashion-MNIST, or where a drawn shape is, or how it is turned: 800 + 200 images and a test set.

    Args:
        task: `fashion_mnist` (ten classes, 10,000 test images), `sprites_location` or `sprites_orientation` (16
            classes, 2,000 test images, drawn on this machine).
        root: Folder of Fashion-MNIST's files. Default: the environment variable REPLORA_DATA, else `data`, else where
            Debian's package puts them.
        image_size: Height and width of the images, in pixels (>= 1).
        normalization: `imagenet`, `half` (pixels in [-1, 1]), or `none` (in [0, 1]).
        options: Options of `ImageDataModule`.

    Raises:
        RepLoRAError: An option is out of its range, or data are missing or wrong (from `setup`, before the first
            batch).
    """

    def __init__(
        self,
        task: Task = "fashion_mnist",
        root: Path | None = None,
        image_size: int = 32,
        normalization: Normalization = "half",
        **options: Any,
    ) -> None:
        super().__init__(image_size=image_size, normalization=normalization, **options)
        one_of(get_args(Task), task=task)
        self.task = task
        self.root = data_root(root)
        self.num_classes = len(CLASSES) if task == "fashion_mnist" else SPRITE_CLASSES
        self.class_names = list(CLASSES) if task == "fashion_mnist" else [str(k) for k in range(SPRITE_CLASSES)]

    @classmethod
    def check_files(cls, options: Mapping[str, Any]) -> None:
        if options["task"] == "fashion_mnist":
            find_fashion_mnist(data_root(options["root"]))

    def build_dataset(self, split: Split) -> GrayImages:
        if self.task == "fashion_mnist":
            return FashionMNIST(split, self.root, self.reader)
        return Sprites(split, "location" if self.task == "sprites_location" else "orientation", self.reader)

    def describe(self) -> dict[str, Any]:
        source = "Fashion-MNIST" if self.task == "fashion_mnist" else "drawn"
        return super().describe() | {"task": self.task, "source": source}

    def _needs_workers(self, dataset: Dataset[Any]) -> bool:  # noqa: ARG002
        return False  # the images are in memory
