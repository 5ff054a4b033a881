"""A folder of images of one's own, or a CSV file of paths and labels."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

from datamodules.base import Protocol, Split
from datamodules.image.base import ImageDataModule, Normalization
from replora.datasets.common.augment import RandomCropFlip
from replora.datasets.common.labelled_files import FileTableError
from replora.datasets.image.folder import ImageFolder, read_image_table
from replora.datasets.image.read import Interpolation

TrainAugmentation = Literal["crop_flip", "crop", "none"]


class ImageFolderDataModule(ImageDataModule):
    """Images in a folder for each class, with or without `train`, `val` and `test` above, or listed in a CSV file.

    Splits that are absent are made from the training images, stratified, and the same on every machine. An image is
    resized by its shorter side and cut to a square: at random in training, in the middle elsewhere.

    Args:
        root: the folder, or a CSV file of the columns `path,label` (and `split`, if wanted), paths relative to it.
        val_fraction: the part of the training images of each class that becomes `val` where there is none, in [0, 1).
        test_fraction: likewise for `test`.
        split_seed: which images these are.
        augmentation: `crop_flip` (a random square, mirrored or not), `crop` where mirroring changes the class, `none`.
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
        RepLoRAError: the folder or the CSV file is not as `replora.datasets.image.folder` says, or images in it cannot
            be read.
    """

    framing = "crop"
    upright = True

    def __init__(
        self,
        root: Path,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        split_seed: int = 0,
        augmentation: TrainAugmentation = "crop_flip",
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        num_workers: int | None = None,
        train_fraction: float = 1.0,
        shots: int | None = None,
        subset_seed: int = 0,
        protocol: Protocol = "holdout",
        drop_last: bool = True,
        shuffle_seed: int = 0,
        cache_bytes: int = 2 * 2**30,
        image_size: int = 224,
        interpolation: Interpolation = "bilinear",
        normalization: Normalization = "half",
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
        self.root = root
        self.table = read_image_table(root)
        self.split_of = self.table.assign(val_fraction, test_fraction, split_seed)
        self.num_classes = len(self.table.class_names)
        self.class_names = self.table.class_names
        self.split_options = {"val_fraction": val_fraction, "test_fraction": test_fraction, "split_seed": split_seed}
        self.augmentation_name = augmentation
        if augmentation != "none":
            self.augmentation = RandomCropFlip(image_size, flip=0.5 if augmentation == "crop_flip" else 0.0)

    def build_dataset(self, split: Split) -> ImageFolder:
        wanted = ("train", "val") if split == "trainval" else (split,)
        positions = [i for i, own in enumerate(self.split_of) if own in wanted]
        if not positions:
            raise FileTableError(
                f"The protocol {self.protocol!r} needs the split {split!r}, but {self.root} has no image in it: give "
                "it images, or a fraction above 0 (--data.val_fraction, --data.test_fraction)."
            )
        cropped = split != self.train_split or self.augmentation is None
        return ImageFolder(self.table, positions, self.image_size, self.interpolation, cropped)

    def describe(self) -> dict[str, Any]:
        listed = zip(self.table.paths, self.table.labels, self.split_of, strict=True)
        text = "".join(f"{path}\t{self.class_names[label]}\t{split}\n" for path, label, split in listed)
        return super().describe() | {
            "task": self.root.resolve().stem,
            "root": str(self.root.resolve()),
            "images": len(self.table.paths),
            # Which images, labels and splits a result is about.
            "lists_sha256": hashlib.sha256(text.encode()).hexdigest(),
            "made_splits": sorted(set(self.split_of) - set(self.table.splits) - {"train"}),
            **self.split_options,
            "augmentation": self.augmentation_name,
        }
