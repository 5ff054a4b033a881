"""The five fine-grained data sets of FGVC, with VPT's splits and transforms."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from datamodules.base import Protocol, Split
from datamodules.image.base import ImageDataModule, Normalization
from replora.datasets.common.augment import RandomCropFlip
from replora.datasets.image.fgvc import FGVC, fgvc_task, find_fgvc_folder, splits_sha256
from replora.datasets.image.read import Interpolation


class FGVCDataModule(ImageDataModule):
    """One data set of FGVC.

    The defaults are VPT's transforms: the shorter side resized to 256, bilinear; a random crop of 224 mirrored with
    probability 0.5 in training, the middle elsewhere; ImageNet mean and standard deviation.

    Published rows differ in what they train on. VPT trains on `train` (90 % of the official training images): protocol
    `holdout`. Adapter+ and SSF train on `train` and `val`: protocol `final`, the default. Options are chosen under
    `tune`. The results tell it as `train_on`.

    Args:
        root: the folder that holds the folders of the data sets, or its parent if it is called `fgvc`. By default the
            environment variable REPLORA_DATA, else `data`; relative to the working directory.
        task: `cub_200_2011`, `nabirds`, `oxford_flowers`, `stanford_dogs` or `stanford_cars`.
        check_sizes: compare the numbers of images and classes with the published ones.
        augment: random crops and mirroring in training; without, the middle of each image.
        batch_size: training images per batch and process; two processes with 32 see the batches of one with 64.
        eval_batch_size: images per batch and process elsewhere; twice `batch_size` by default.
        num_workers: loader processes of each training process. By default none for images held in memory, else the
            usable CPU cores divided by the devices, at most 8.
        train_fraction: the part of the training images used, in (0, 1]; stratified, nested for one `subset_seed`.
        shots: training images per class instead of a fraction.
        subset_seed: which images a fraction or shots choose.
        protocol: `tune` trains on train and validates on val, `final` trains on both and tests; `holdout` trains on
            train, validates on val and tests.
        drop_last: leave out the last, incomplete training batch of an epoch.
        shuffle_seed: the order of the training images and their augmentation; both change every epoch.
        cache_bytes: bound on decoded images held in memory by each process, in bytes; 0 holds nothing. Augmented
            images are read from disk every epoch.
        image_size: height and width of the images, in pixels.
        interpolation: the filter that resizes an image.
        normalization: `imagenet` mean and standard deviation, `half` (pixels in [-1, 1]), or `none` (in [0, 1]).

    Raises:
        UnknownTaskError: the task is none of the five.
    """

    framing = "crop"

    def __init__(
        self,
        root: Path | None = None,
        task: str = "cub_200_2011",
        check_sizes: bool = True,
        augment: bool = True,
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        num_workers: int | None = None,
        train_fraction: float = 1.0,
        shots: int | None = None,
        subset_seed: int = 0,
        protocol: Protocol = "final",
        drop_last: bool = True,
        shuffle_seed: int = 0,
        cache_bytes: int = 2 * 2**30,
        image_size: int = 224,
        interpolation: Interpolation = "bilinear",
        normalization: Normalization = "imagenet",
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            train_fraction=train_fraction,
            shots=shots,
            subset_seed=subset_seed,
            protocol=protocol,
            drop_last=drop_last,
            shuffle_seed=shuffle_seed,
            cache_bytes=cache_bytes,
            image_size=image_size,
            interpolation=interpolation,
            normalization=normalization,
        )
        self.root = Path(root or os.environ.get("REPLORA_DATA") or "data").expanduser()
        self.task = fgvc_task(task)
        self.num_classes = self.task.num_classes
        self.class_names = [str(label) for label in range(self.num_classes)]  # the split files know better
        self.check_sizes = check_sizes
        if augment:
            self.augmentation = RandomCropFlip(image_size)

    def build_dataset(self, split: Split) -> FGVC:
        dataset = FGVC(
            self.root,
            self.task.name,
            split,
            self.image_size,
            self.interpolation,
            cropped=split != self.train_split or self.augmentation is None,
            check_sizes=self.check_sizes,
        )
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
            "augmentation": "none" if self.augmentation is None else "crop_flip",
        }
