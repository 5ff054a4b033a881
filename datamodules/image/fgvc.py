"""The five fine-grained data sets of FGVC, with VPT's splits and transforms."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from datamodules.base import Split, one_of
from datamodules.image.base import ImageDataModule
from replora.datasets.common.augment import RandomCropFlip
from replora.datasets.common.paths import allowing, data_root
from replora.datasets.image.fgvc import FGVC, fgvc_task, find_fgvc_folder, splits_sha256
from replora.datasets.image.read import Framing
from replora.datasets.image.resize import Interpolation
from replora.datasets.image.resized_crop import RandomResizedCropFlip

TrainAugmentation = Literal["crop_flip", "resized_crop_flip"]


class FGVCDataModule(ImageDataModule):
    """One data set of FGVC.

    The defaults are VPT's transforms: the shorter side resized to 256, bilinear; a random crop of 224 mirrored with
    probability 0.5 in training, the middle elsewhere; ImageNet mean and standard deviation.

    Published rows differ in what they train on. VPT trains on `train` (90 % of the official training images): protocol
    `holdout`. Adapter+ and SSF train on `train` and `val`: protocol `final`, the default. Options are chosen under
    `tune`. The results tell it as `train_on`.

    Args:
        root: Folder that holds the folders of the data sets, or its parent if it is called `fgvc`. Default: the
            environment variable REPLORA_DATA, else `data`.
        task: `cub_200_2011`, `nabirds`, `oxford_flowers`, `stanford_dogs` or `stanford_cars`.
        check_sizes: Whether to compare the numbers of images and classes with the published ones.
        augment: Whether to train on random, mirrored crops instead of the middle of each image.
        augmentation: Crops to train on. `crop_flip` is VPT's, a square of the resized image; `resized_crop_flip` is
            Adapter+'s, 8 to 100 % of the image's area, resized with a random filter whatever `interpolation` and
            `framing` say.
        interpolation: Filter that resizes an image.
        framing: How an image becomes a square: `crop` cuts out the middle, `pad` adds margins, `squash` ignores the
            aspect ratio. Training on `crop_flip` cuts a random square of a slightly larger one.
        options: Options of `ImageDataModule`.

    Raises:
        UnknownTaskError: The task is none of the five.
    """

    def __init__(
        self,
        root: Path | None = None,
        task: str = "cub_200_2011",
        check_sizes: bool = True,
        augment: bool = True,
        augmentation: TrainAugmentation = "crop_flip",
        interpolation: Interpolation = "bilinear",
        framing: Framing = "crop",
        **options: Any,
    ) -> None:
        super().__init__(
            interpolation=interpolation,
            framing=framing,
            **options,
        )
        self.root = data_root(root)
        self.task = fgvc_task(task)
        self.num_classes = self.task.num_classes
        self.class_names = [str(label) for label in range(self.num_classes)]  # the split files know better
        self.check_sizes = check_sizes
        one_of(get_args(TrainAugmentation), augmentation=augmentation)
        self.augmentation_name = augmentation if augment else "none"
        if augment:
            crop = RandomResizedCropFlip if augmentation == "resized_crop_flip" else RandomCropFlip
            self.augmentation = crop(self.image_size)

    @classmethod
    def check_files(cls, options: Mapping[str, Any]) -> None:
        find_fgvc_folder(data_root(options["root"]), fgvc_task(options["task"]))

    def build_dataset(self, split: Split) -> FGVC:
        with allowing(self.allowed_roots):
            dataset = FGVC(
                self.root,
                self.task.name,
                split,
                self.reader,
                check_sizes=self.check_sizes,
            )
        if self._own_classes is None:  # else they are those of the run that is measured
            self.class_names = dataset.class_names
        return dataset

    def describe(self) -> dict[str, Any]:
        folder = find_fgvc_folder(self.root, self.task)
        return super().describe() | {
            "task": self.task.name,
            "root": str(folder.resolve().parent),
            "folder": folder.name,
            "lists_sha256": splits_sha256(folder),
            "check_sizes": self.check_sizes,
            "train_on": self.train_split,
            "augmentation": self.augmentation_name,
        }
