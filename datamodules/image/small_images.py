"""Small image tasks in the form of VTAB-1K's that can be had without a network, for experiments on a laptop."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from torch.utils.data import Dataset

from datamodules.base import Split, at_least, one_of
from datamodules.image.base import ImageDataModule, Normalization
from replora.datasets.common.paths import data_root
from replora.datasets.common.subsample import stratified_order
from replora.datasets.image import fashion_mnist, letters, sprites, stamps
from replora.datasets.image.digits import Digits
from replora.datasets.image.pixels import PixelImages

Task = Literal["fashion_mnist", "sprites_location", "sprites_orientation", "digits", "letters", "stamps"]
SPRITES = tuple(map(str, range(sprites.CLASSES)))
CLASSES: dict[Task, tuple[str, ...]] = {
    "fashion_mnist": fashion_mnist.CLASSES,
    "sprites_location": SPRITES,
    "sprites_orientation": SPRITES,
    "digits": tuple(map(str, range(10))),
    "letters": letters.CLASSES,
    "stamps": stamps.CLASSES,
}


class SmallImagesDataModule(ImageDataModule):
    """Fashion-MNIST, drawn shapes, digits, letters or small pictures: at most 800 + 200 images and a test set.

    Args:
        task: `fashion_mnist` (ten classes, 10,000 test images), `sprites_location` or `sprites_orientation` (16
            classes, 2,000 test images, drawn on this machine), `digits` (ten classes, 797 test images), `letters` (26
            classes, 1,000 test images of other fonts) or `stamps` (small pictures of six classes: 202 + 50 and 151 test
            images).
        root: Folder of Fashion-MNIST's files, of the fonts or of the pictures. Default: the environment variable
            REPLORA_DATA, else `data`, else where Debian's packages put them.
        test_images: Largest number of test images (>= 1), the first ones of a stratified order with seed 0. Default:
            all.
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
        test_images: int | None = None,
        image_size: int = 32,
        normalization: Normalization = "half",
        **options: Any,
    ) -> None:
        super().__init__(image_size=image_size, normalization=normalization, **options)
        one_of(get_args(Task), task=task)
        self.task = task
        self.root = data_root(root)
        if test_images is not None:
            at_least(1, test_images=test_images)
        self.test_images = test_images
        self.num_classes = len(CLASSES[task])
        self.class_names = list(CLASSES[task])

    @classmethod
    def check_files(cls, options: Mapping[str, Any]) -> None:
        find = {
            "fashion_mnist": fashion_mnist.find_fashion_mnist,
            "letters": letters.find_fonts,
            "stamps": stamps.find_stamps,
        }.get(options["task"])
        if find:
            find(data_root(options["root"]))

    def build_dataset(self, split: Split) -> PixelImages:
        dataset = self._complete(split)
        if split == "test" and self.test_images is not None:
            dataset.keep(sorted(stratified_order(dataset.labels, seed=0)[: self.test_images]))
        return dataset

    def _complete(self, split: Split) -> PixelImages:
        match self.task:
            case "fashion_mnist":
                return fashion_mnist.FashionMNIST(split, self.root, self.reader)
            case "digits":
                return Digits(split, self.reader)
            case "letters":
                return letters.Letters(split, self.root, self.reader)
            case "stamps":
                return stamps.Stamps(split, self.root, self.reader)
            case "sprites_location":
                return sprites.Sprites(split, "location", self.reader)
            case "sprites_orientation":
                return sprites.Sprites(split, "orientation", self.reader)

    def describe(self) -> dict[str, Any]:
        sources = {"fashion_mnist": "Fashion-MNIST", "digits": "scikit-learn", "stamps": "Tux Paint"}
        source = sources.get(self.task, "drawn")
        if self.task == "letters":
            source = f"drawn with fonts {letters.fonts_sha256(self.root)[:8]}"
        return super().describe() | {"task": self.task, "source": source}

    def _needs_workers(self, dataset: Dataset[Any]) -> bool:  # noqa: ARG002
        return False  # the images are in memory
