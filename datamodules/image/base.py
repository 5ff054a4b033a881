"""What the image benchmarks share: the in-memory cache, augmentation and normalization."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from datamodules.base import BaseDataModule, Split, at_least, one_of
from datamodules.loader import EpochLoader
from replora.datasets.common.augment import Augmentation, Augmented
from replora.datasets.common.in_memory import InMemory, in_memory
from replora.datasets.common.subsample import check_subset_options, places_within, subsample_indices
from replora.datasets.errors import CorruptImageError, SubsetError
from replora.datasets.image.image_files import ImageFiles
from replora.datasets.image.normalized import Normalized
from replora.datasets.image.read import Framing, ImageReader
from replora.datasets.image.resize import Interpolation
from replora.datasets.image.skip_corrupt import SkipCorrupt
from replora.datasets.samples import (
    PADDING_INDEX,
    PADDING_LABEL,
    ImageBatch,
    ImageDataset,
    ImageForm,
    ImageSample,
)

SubsetRule = Literal["within_final", "by_split"]

log = logging.getLogger(__name__)

LEAVE_OUT = " Or leave such images out, counted in the results: --data.skip_corrupt true"

Normalization = Literal["imagenet", "half", "none"]

# Mean and standard deviation of the channels R, G, B of images in [0, 1].
NORMALIZATIONS: dict[Normalization, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    # What the archive's rows use (NOAH, FacT, RepAdapter), although the checkpoints were not pre-trained with it.
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    # Pixels in [-1, 1], as in the pre-training of Google's ViT checkpoints.
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}

# Test sets are read once a run; only one this small is worth the memory, and its damaged files then show at the start.
SMALL_TEST_SET = 2_000


class ImageDataModule(BaseDataModule):
    """One image classification task, in batches of `replora.datasets.ImageBatch`.

    VTAB-1K's splits have these sizes; other data have other sizes of the same splits.

    | protocol  | trains on           | validates on | tests on | predicts |
    |-----------|---------------------|--------------|----------|----------|
    | `tune`    | train (800)         | val (200)    | refused  | val      |
    | `final`   | train + val (1,000) | nothing      | test     | test     |
    | `holdout` | train (800)         | val (200)    | test     | test     |

    A subclass sets `num_classes` and `class_names` when it is constructed, and gives the images by `build_dataset`. It
    may set `augmentation`; then the images of `train_split` are given in the form that the augmentation takes
    (`form_of`), and they are read from disk every epoch.

    Args:
        cache_bytes: Memory for decoded images per process, in bytes (>= 0). What does not fit, and images that are
            augmented, are read from disk every epoch.
        image_size: Height and width of the images, in pixels (>= 1).
        interpolation: Filter that resizes an image: `bilinear` and `bicubic` are Pillow's and smooth what they shrink;
            `tf1_bilinear` is that of TensorFlow 1, which does not, and its images need four times the memory because
            their pixels are not rounded.
        framing: How an image becomes a square: `crop` cuts out the middle, `pad` adds margins, `squash` ignores the
            aspect ratio.
        background: Color behind transparent pixels: a name of CSS such as `white`, or RRGGBB in hexadecimal digits.
        normalization: `imagenet` subtracts ImageNet's mean and divides by its standard deviation; `half` maps pixels to
            [-1, 1]; `none` to [0, 1].
        subset_rule: What a fraction or shots of `train` is under `tune`. `within_final` takes the part of
            the subset of `final` that is not validation, so that options are selected on images that are trained on
            later. `by_split` draws a subset of its own: the rule of runs whose files do not have this option.
        select_fraction: Fraction of the validation images that `tune` validates on, in (0, 1], stratified and drawn by
            `subset_seed`. With the value of `train_fraction`, options are selected on no more labels than the data that
            are meant to be few.
        skip_corrupt: Whether to leave out images that cannot be read and count them in the results, instead of stopping
            at the first one.
        allowed_roots: Folders outside `root` where links and absolute paths may lead, one or a list, besides those of
            the environment variable REPLORA_ALLOWED_ROOTS.
        options: Options of `BaseDataModule`.

    Raises:
        RepLoRAError: An option is out of its range, or data are missing or wrong (from `setup`, before the first
            batch).
    """

    num_classes: int
    class_names: list[str]
    upright: bool = False  # whether photos are turned as their EXIF orientation says
    augmentation: Augmentation | None = None

    def __init__(
        self,
        cache_bytes: int = 2 * 2**30,
        image_size: int = 224,
        interpolation: Interpolation = "bicubic",
        framing: Framing = "squash",
        background: str = "white",
        normalization: Normalization = "imagenet",
        subset_rule: SubsetRule = "within_final",
        select_fraction: float = 1.0,
        skip_corrupt: bool = False,
        allowed_roots: list[Path] | Path | None = None,
        **options: Any,
    ) -> None:
        super().__init__(
            **options,
        )
        at_least(1, image_size=image_size)
        at_least(0, cache_bytes=cache_bytes)
        one_of(get_args(Interpolation), interpolation=interpolation)
        one_of(get_args(Framing), framing=framing)
        one_of(get_args(Normalization), normalization=normalization)
        one_of(get_args(SubsetRule), subset_rule=subset_rule)
        check_subset_options(select_fraction, None, "select_fraction")
        self._train_labels: list[int] = []
        if self.fold and select_fraction < 1:
            raise SubsetError(f"select_fraction={select_fraction} is a part of val, which a fold replaces. Keep one.")
        self.subset_rule: SubsetRule = subset_rule
        self.select_fraction = select_fraction
        self.cache_bytes = cache_bytes
        self.image_size = image_size
        self.normalization: Normalization = normalization
        self.skip_corrupt = skip_corrupt
        self.allowed_roots = allowed_roots
        mean, std = NORMALIZATIONS[normalization]
        self.reader = ImageReader(image_size, interpolation, framing, self.upright, background, mean)
        self._mean = torch.tensor(mean).view(3, 1, 1)
        self._std = torch.tensor(std).view(3, 1, 1)

    @abstractmethod
    def build_dataset(self, split: Split) -> ImageDataset:
        """All images of a split, not decoded yet; raises on whatever is wrong with them."""

    def form_of(self, split: Split) -> ImageForm:
        """How the images of a split are read."""
        return self.augmentation.form if self.augmentation is not None and split == self.train_split else "square"

    def describe(self) -> dict[str, Any]:
        skipping = {"skip_corrupt": True} if self.skip_corrupt else {}  # else absent, as in earlier results
        described = super().describe() | {"num_classes": self.num_classes, **self.preprocessing(), **skipping}
        if self._within_final():
            described["subset_rule"] = self.subset_rule
        if self._selects_on_part():
            described["select_fraction"] = self.select_fraction
        return described

    def preprocessing(self) -> dict[str, Any]:
        """What turns an image file into an input of the evaluation, as JSON values."""
        mean, std = NORMALIZATIONS[self.normalization]
        return {
            "image_size": self.image_size,
            "interpolation": self.reader.interpolation,
            "framing": self.reader.framing,
            "upright": self.upright,
            "normalization": {"name": self.normalization, "mean": list(mean), "std": list(std)},
            **({} if self.reader.background == "white" else {"background": self.reader.background}),  # as above
        }

    def padding_of(self, sample: ImageSample) -> ImageSample:
        return {**sample, "label": PADDING_LABEL, "index": PADDING_INDEX}

    def build_split(self, split: Split) -> Dataset[ImageSample]:
        dataset: Dataset[ImageSample]
        full = self.build_dataset(self.listed(split))
        if isinstance(full, ImageFiles):
            full.form = self.form_of(split)
        dataset = usable = SkipCorrupt(full, self.image_size) if self.skip_corrupt else full
        names = [str(path) for path in getattr(full, "paths", [])] or [
            f"{self.listed(split)}/{i}" for i in range(len(full))
        ]
        used: list[int] | None = None
        if split == self.train_split:
            self.train_indices = self._subset(full)
            used = self.train_indices
            self._train_labels = [full.labels[i] for i in used]
        elif split == "val" and self.fold:
            used = self.part_of_fold(split, full.labels)
        elif split == "val" and self._selects_on_part():
            used = subsample_indices(full.labels, self.select_fraction, seed=self.subset_seed, option="select_fraction")
        if used is not None and len(used) < len(full):
            dataset = Subset(usable, used)
        classes = self.own_classes
        self.lists.add(split, names, [classes[label] for label in full.labels], used)
        form = self.form_of(split)
        if self.reader.interpolation == "tf1_bilinear" and form != "original":
            dataset = Normalized(dataset, self._mean.cpu(), self._std.cpu())
        if split == self.train_split and self.augmentation is not None:
            return Augmented(dataset, self.augmentation, self.shuffle_seed)  # their shapes differ: not held in memory
        if split == "test" and len(full) > SMALL_TEST_SET:
            log.info("test: %s images, read from disk as they are needed", f"{len(full):,}")
            return dataset
        held = sum(other.images.nbytes for other in self._splits.values() if isinstance(other, InMemory))
        try:
            return in_memory(dataset, self.cache_bytes - held, name=split)
        except CorruptImageError as error:
            raise CorruptImageError(f"{error}{LEAVE_OUT}") from error

    def training_counts(self) -> list[int]:
        """The number of training images of each class, in the order of `class_names`."""
        counts = Counter(self._train_labels)
        return [counts[label] for label in range(self.num_classes)]

    def _loader(self, *arguments: Any, **options: Any) -> EpochLoader:
        loader = super()._loader(*arguments, **options)
        loader.corrupt_image_remedy = LEAVE_OUT
        return loader

    def _within_final(self) -> bool:
        """Whether the subset is the part of that of `final`; elsewhere both rules give the same images."""
        subset = self._fraction is not None or self.shots is not None
        return subset and self.fold is None and self.protocol == "tune" and self.subset_rule == "within_final"

    def _selects_on_part(self) -> bool:
        return self.protocol == "tune" and self.select_fraction < 1

    def _subset(self, full: ImageDataset) -> list[int]:
        """The positions of the training subset in the list of `train_split`, or of the fold."""
        if self.fold:
            return self.part_of_fold("train", full.labels)
        draw = partial(
            subsample_indices,
            fraction=self._fraction,
            shots=self.shots,
            seed=self.subset_seed,
            names=self.own_classes,
        )
        if not self._within_final():
            return draw(full.labels)
        both = self.build_dataset("trainval")
        places = places_within(full.labels, both.labels, getattr(full, "paths", []), getattr(both, "paths", []))
        chosen = set(draw(both.labels))
        found = [position for position, place in enumerate(places) if place in chosen]
        if not found:
            raise SubsetError(
                f"The protocol 'tune' has nothing to train on: the subset of `final` has {len(chosen)} "
                "images, all of them of the validation. Use a larger --data.train_fraction or --data.shots, or another "
                "--data.subset_seed."
            )
        return found

    def _needs_workers(self, dataset: Dataset[Any]) -> bool:
        return not isinstance(dataset, InMemory)

    # --- on the device

    def on_after_batch_transfer(self, batch: ImageBatch, dataloader_idx: int) -> ImageBatch:  # noqa: ARG002
        """uint8 (B, 3, H, W) -> (pixel / 255 - mean) / std, in the precision of the Trainer.

        The batch given is not changed, and an image that is floating point already is left as it is.
        """
        batch = self.with_run_labels(batch)
        if batch["image"].dtype != torch.uint8:
            return batch
        return {**batch, "image": self.normalize(batch["image"])}

    def normalize(self, image: Tensor) -> Tensor:
        """uint8 (..., 3, H, W) -> a new float tensor of this shape."""
        self._mean, self._std = self._mean.to(image.device), self._std.to(image.device)
        normalized = image.float().div_(255).sub_(self._mean).div_(self._std)  # in place on the copy that float() makes
        # Lightning converts inputs to half or double precision before this hook, when they were still uint8.
        return self.trainer.precision_plugin.convert_input(normalized) if self.trainer else normalized

    def denormalize(self, image: Tensor) -> Tensor:
        """The inverse, for pictures: normalized (..., 3, H, W) -> uint8 of this shape."""
        pixels = image.float() * self._std.to(image.device) + self._mean.to(image.device)
        return pixels.mul_(255).round_().clamp_(0, 255).to(torch.uint8)
