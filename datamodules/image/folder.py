"""A folder of custom images, or a CSV file of paths and labels."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal, get_args

from datamodules.base import Protocol, Split, at_least, one_of
from datamodules.image.base import ImageDataModule, Normalization
from replora.datasets.common.augment import RandomCropFlip
from replora.datasets.common.labeled_files import FileTableError
from replora.datasets.common.paths import allowing
from replora.datasets.common.policy import Policy, WithPolicy
from replora.datasets.image.folder import ImageFolder, read_image_table
from replora.datasets.image.read import Framing
from replora.datasets.image.resize import Interpolation
from replora.datasets.image.resized_crop import RandomResizedCropFlip

TrainAugmentation = Literal["crop_flip", "crop", "resized_crop_flip", "resized_crop", "none"]


class ImageFolderDataModule(ImageDataModule):
    """Images in a folder for each class, with or without `train`, `val` and `test` above, or listed in a CSV file.

    Splits that are absent are made from the training images, stratified, and the same on every machine. An image is
    resized by its shorter side and cut to a square: at random in training, in the middle elsewhere.

    Args:
        root: Folder of the images, or a CSV file with the columns `path,label` and optionally `split`; paths are
            relative to the file.
        val_fraction: Fraction of each class's training images that becomes `val` if there is none, in [0, 1).
        test_fraction: Fraction of each class's training images that becomes `test` if there is none, in [0, 1).
        split_seed: Random seed (>= 0) that chooses the images of these splits.
        augmentation: `crop_flip` takes a random square, mirrored or not; `crop` never mirrors, for classes that
            mirroring changes (text, arrows, left and right hands); `resized_crop_flip` and `resized_crop` take a random
            part of 8 to 100 % of the image; `none` takes the middle.
        policy: Further changes of colors and shape: `rand_augment` or `trivial_augment`, as in torchvision; neither
            mirrors.
        protocol: `tune` trains on train and validates on val; `final` trains on train and val and tests; `holdout`
            trains on train, validates on val and tests.
        interpolation: Filter that resizes an image.
        framing: How an image becomes a square: `crop` cuts out the middle, `pad` adds margins, `squash` ignores the
            aspect ratio. Training with an augmentation cuts a random square of a slightly larger one.
        normalization: `imagenet`, `half` (pixels in [-1, 1]), or `none` (in [0, 1]).
        options: Options of `ImageDataModule`.

    Raises:
        RepLoRAError: The folder or the CSV file is not as `replora.datasets.image.folder` says, or images in it cannot
            be read.
    """

    upright = True

    def __init__(
        self,
        root: Path,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        split_seed: int = 0,
        augmentation: TrainAugmentation = "crop_flip",
        policy: Policy = "none",
        protocol: Protocol = "holdout",
        interpolation: Interpolation = "bilinear",
        framing: Framing = "crop",
        normalization: Normalization = "half",
        **options: Any,
    ) -> None:
        super().__init__(
            protocol=protocol,
            interpolation=interpolation,
            framing=framing,
            normalization=normalization,
            **options,
        )
        at_least(0, split_seed=split_seed)
        self.root = root
        with allowing(self.allowed_roots):
            self.table = read_image_table(root, self.skip_corrupt)
        self.split_of = self.table.assign(val_fraction, test_fraction, split_seed)
        self.given_validation = "val" in self.table.splits
        self.num_classes = len(self.table.class_names)
        self.class_names = self.table.class_names
        self.split_options = {"val_fraction": val_fraction, "test_fraction": test_fraction, "split_seed": split_seed}
        one_of(get_args(TrainAugmentation), augmentation=augmentation)
        one_of(get_args(Policy), policy=policy)
        self.augmentation_name = augmentation
        self.policy = policy
        if augmentation != "none":
            crop = RandomResizedCropFlip if augmentation.startswith("resized") else RandomCropFlip
            self.augmentation = crop(self.image_size, flip=0.5 if augmentation.endswith("flip") else 0.0)
        if policy != "none":
            if self.augmentation is None or interpolation == "tf1_bilinear":
                raise FileTableError(
                    f"policy: {policy!r} changes the squares that an augmentation cuts, as whole numbers. Set "
                    "--data.augmentation crop and --data.interpolation bilinear, or --data.policy none."
                )
            self.augmentation = WithPolicy(self.augmentation, policy)

    def build_dataset(self, split: Split) -> ImageFolder:
        wanted = ("train", "val") if split == "trainval" else (split,)
        positions = [i for i, own in enumerate(self.split_of) if own in wanted]
        if not positions:
            raise FileTableError(
                f"The protocol {self.protocol!r} needs the split {split!r}, but {self.root} has no image in it: give "
                "it images, or a fraction above 0 (--data.val_fraction, --data.test_fraction)."
            )
        return ImageFolder(self.table, positions, self.reader)

    def describe(self) -> dict[str, Any]:
        listed = zip(self.table.paths, self.table.labels, self.split_of, strict=True)
        names = self.own_classes
        text = "".join(f"{path}\t{names[label]}\t{split}\n" for path, label, split in listed)
        return super().describe() | {
            "task": self.root.resolve().stem,
            "root": str(self.root.resolve()),
            "images": len(self.table.paths),
            "left_out": self.table.left_out,
            # Which images, labels and splits a result is about.
            "lists_sha256": hashlib.sha256(text.encode()).hexdigest(),
            "made_splits": sorted(set(self.split_of) - set(self.table.splits) - {"train"}),
            **self.split_options,
            "augmentation": self.augmentation_name,
            **({} if self.policy == "none" else {"policy": self.policy}),  # absent in earlier results
        }
