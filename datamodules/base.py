"""What every benchmark shares: protocol, low-data subsets, the in-memory cache, batches and normalisation."""

from __future__ import annotations

import logging
import warnings
from abc import ABC, abstractmethod
from typing import Any, Literal, get_args

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Subset

from datamodules.loader import ImageLoader, TrainSampler
from replora.datasets import (
    Augmentation,
    Augmented,
    Framing,
    ImageBatch,
    ImageDataset,
    ImageSample,
    Interpolation,
    ProtocolError,
    in_memory,
    subsample_indices,
)
from replora.datasets.cache import InMemory, usable_cpus
from replora.datasets.subsample import check_subset_options
from replora.errors import RepLoRAError, nearest

log = logging.getLogger(__name__)

Split = Literal["train", "val", "trainval", "test"]
Protocol = Literal["tune", "final", "holdout"]
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


class BaseDataModule(LightningDataModule, ABC):
    """One benchmark task under the 80/20 protocol, in batches of `replora.datasets.ImageBatch`.

    | protocol  | trains on           | validates on | tests on | predicts |
    |-----------|---------------------|--------------|----------|----------|
    | `tune`    | train (800)         | val (200)    | refused  | val      |
    | `final`   | train + val (1,000) | nothing      | test     | test     |
    | `holdout` | train (800)         | val (200)    | test     | test     |

    Options are chosen under `tune`; then `final` trains once more on all 1,000 images and tests at the last epoch.
    `holdout` shows a learning curve beside a test at the last epoch, for demonstrations; published rows use `final`. A
    choice by test accuracy is not offered.

    The numbers are VTAB-1K's; other data have other sizes of the same splits.

    A subclass sets `num_classes` and `class_names` when it is constructed, and gives the images by `build_dataset`. It
    may set `augmentation`; then `build_dataset` gives the images of `train_split` as the augmentation takes them, and
    they are read from disk every epoch.

    Args:
        batch_size: training images per batch and process; two processes with 32 see the batches of one with 64.
        eval_batch_size: images per batch and process elsewhere; twice `batch_size` by default.
        num_workers: loader processes of each training process. By default none for images held in memory, else the
            usable CPU cores divided by the devices, at most 8.
        train_fraction: the part of the training images used, in (0, 1]; stratified, nested for one `subset_seed`.
        shots: training images per class instead of a fraction.
        subset_seed: which images a fraction or shots choose.
        protocol: see the table.
        drop_last: leave out the last, incomplete training batch of an epoch. A training set smaller than one batch is
            always one batch.
        shuffle_seed: the order of the training images and their augmentation; both change every epoch.
        cache_bytes: bound on decoded images held in memory by each process, in bytes. What does not fit is read from
            disk every epoch. 0 holds nothing.
        image_size: height and width of the images, in pixels.
        interpolation: the filter that resizes an image.
        normalization: `imagenet` mean and standard deviation, `half` (pixels in [-1, 1]), or `none` (in [0, 1]).

    Raises:
        RepLoRAError: an option is out of its range; data are missing or wrong (from `setup`, before the first batch).
    """

    num_classes: int
    class_names: list[str]
    framing: Framing = "squash"  # how an image of the evaluation becomes a square
    upright: bool = False  # whether photos are turned as their EXIF orientation says
    augmentation: Augmentation | None = None

    def __init__(
        self,
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
        interpolation: Interpolation = "bicubic",
        normalization: Normalization = "imagenet",
    ) -> None:
        super().__init__()
        _at_least(1, batch_size=batch_size, eval_batch_size=eval_batch_size, image_size=image_size)
        _at_least(0, num_workers=num_workers, cache_bytes=cache_bytes)
        _one_of(get_args(Protocol), protocol=protocol)
        _one_of(get_args(Interpolation), interpolation=interpolation)
        _one_of(get_args(Normalization), normalization=normalization)
        # All images are the default of train_fraction, which shots may then replace.
        self._fraction = None if train_fraction == 1 else train_fraction
        check_subset_options(self._fraction, shots)
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size or 2 * batch_size
        self.num_workers = num_workers
        self.train_fraction = train_fraction
        self.shots = shots
        self.subset_seed = subset_seed
        self.protocol: Protocol = protocol
        self.drop_last = drop_last
        self.shuffle_seed = shuffle_seed
        self.cache_bytes = cache_bytes
        self.image_size = image_size
        self.interpolation: Interpolation = interpolation
        self.normalization: Normalization = normalization
        self.train_indices: list[int] | None = None
        mean, std = NORMALIZATIONS[normalization]
        self._mean = torch.tensor(mean).view(3, 1, 1)
        self._std = torch.tensor(std).view(3, 1, 1)
        self._splits: dict[str, Dataset[ImageSample]] = {}

    @abstractmethod
    def build_dataset(self, split: Split) -> ImageDataset:
        """All images of a split, not decoded yet; raises on whatever is wrong with them."""

    def describe(self) -> dict[str, Any]:
        """Everything about the data that a result depends on, as JSON values.

        `train_indices` are the positions of the chosen training images in the list of their split, and `split_sizes`
        the images of each split; both hold what `setup` has built so far.
        """
        return {
            "dataset": type(self).__name__.removesuffix("DataModule"),
            "num_classes": self.num_classes,
            "protocol": self.protocol,
            **self.preprocessing(),
            "train_fraction": self.train_fraction,
            "shots": self.shots,
            "subset_seed": self.subset_seed,
            "shuffle_seed": self.shuffle_seed,
            "split_sizes": {name: _length(dataset) for name, dataset in self._splits.items()},
            "train_indices": self.train_indices,
        }

    def preprocessing(self) -> dict[str, Any]:
        """What turns an image file into an input of the evaluation, as JSON values."""
        mean, std = NORMALIZATIONS[self.normalization]
        return {
            "image_size": self.image_size,
            "interpolation": self.interpolation,
            "framing": self.framing,
            "upright": self.upright,
            "normalization": {"name": self.normalization, "mean": list(mean), "std": list(std)},
        }

    # --- splits

    @property
    def train_split(self) -> Split:
        return "trainval" if self.protocol == "final" else "train"

    @property
    def eval_split(self) -> Split:
        """What `predict` predicts, and `tune` and `final` measure; `holdout` validates on `val` as well."""
        return "val" if self.protocol == "tune" else "test"

    def setup(self, stage: str | None = None) -> None:
        """Build what a verb needs; a second call builds nothing again. `fit` checks the test set before training."""
        if stage == "validate":
            self._refuse_validation()
        if stage == "test":
            self._refuse_test()
        if stage in (None, "fit"):
            self._build(self.train_split)
        if self.protocol == "holdout" and stage in (None, "fit", "validate"):
            self._build("val")
        self._build(self.eval_split)

    def _build(self, split: Split) -> None:
        if split in self._splits:
            return
        dataset: Dataset[ImageSample]
        dataset = full = self.build_dataset(split)
        if split == self.train_split:
            self.train_indices = subsample_indices(full.labels, self._fraction, self.shots, self.subset_seed)
            if len(self.train_indices) < len(full):
                dataset = Subset(full, self.train_indices)
        if split == self.train_split and self.augmentation is not None:
            dataset = Augmented(
                dataset, self.augmentation, self.shuffle_seed
            )  # their shapes differ: not held in memory
        elif split == "test" and len(full) > SMALL_TEST_SET:
            log.info("test: %s images, read from disk as they are needed", f"{len(full):,}")
        else:
            held = sum(other.images.nbytes for other in self._splits.values() if isinstance(other, InMemory))
            dataset = in_memory(dataset, self.cache_bytes - held, name=split)
        self._splits[split] = dataset

    def _refuse_test(self) -> None:
        if self.protocol == "tune":
            raise ProtocolError(
                "A test was asked for under the protocol 'tune', which keeps the test set unseen while options are "
                "chosen on the validation images. Train and test with protocol 'final' "
                "(--data.protocol final), or measure this model with `validate`."
            )

    def _refuse_validation(self) -> None:
        if self.protocol == "final":
            raise ProtocolError(
                "A validation was asked for under the protocol 'final', which trains on the validation images as well. "
                "Train and validate with protocol 'tune' (--data.protocol tune), or measure this model with `test`."
            )

    # --- batches

    def train_dataloader(self) -> DataLoader[ImageSample]:
        dataset = self._split(self.train_split)
        world, rank = self._world()
        # The same decision in every process, and the same for one process with the same global batch. Where nothing is
        # dropped, the sampler repeats images to give every process equally many.
        drop = self.drop_last and _length(dataset) >= self.batch_size * world
        # Also for one process: Lightning leaves this sampler alone and calls its set_epoch, and the batches of one
        # process with 2 x B are those of two processes with B together.
        sampler = TrainSampler(dataset, world, rank, self.shuffle_seed, drop, self._seen)
        return self._loader(dataset, self.batch_size, sampler, drop)

    def _seen(self) -> int:
        """Images of the current epoch that this process trained on before the run was interrupted and resumed."""
        fit_loop = getattr(self.trainer, "fit_loop", None)
        return (fit_loop.epoch_loop.batch_idx + 1) * self.batch_size if fit_loop else 0

    def val_dataloader(self) -> DataLoader[ImageSample] | list[DataLoader[ImageSample]]:
        """The validation images, or no loader under `final`: Lightning then skips validation."""
        if self.protocol != "final":
            return self._eval_loader("val")
        # Lightning asks whether this was the intention; it was.
        warnings.filterwarnings("ignore", message="Total length of `list` across ranks is zero")
        return []

    def test_dataloader(self) -> DataLoader[ImageSample]:
        self._refuse_test()
        return self._eval_loader("test")

    def predict_dataloader(self) -> DataLoader[ImageSample]:
        """Without padding: Lightning shares these images out among processes without repeating any."""
        return self._loader(self._split(self.eval_split), self.eval_batch_size)

    def _eval_loader(self, split: Split) -> DataLoader[ImageSample]:
        world, rank = self._world()
        dataset = self._split(split)
        if world == 1:
            return self._loader(dataset, self.eval_batch_size)
        padded = PaddedDataset(dataset, world)
        sampler: DistributedSampler[ImageSample] = DistributedSampler(
            padded, num_replicas=world, rank=rank, shuffle=False
        )
        return self._loader(padded, self.eval_batch_size, sampler)

    def _loader(
        self,
        dataset: Dataset[ImageSample],
        batch_size: int,
        sampler: DistributedSampler[ImageSample] | None = None,
        drop_last: bool = False,
    ) -> DataLoader[ImageSample]:
        """The one place where loaders are made."""
        workers = self.num_workers
        if workers is None:
            devices = self.trainer.num_devices if self.trainer else 1
            decoded = isinstance(dataset.dataset if isinstance(dataset, PaddedDataset) else dataset, InMemory)
            workers = 0 if decoded else max(1, min(8, usable_cpus() // devices))
        return ImageLoader(
            dataset,
            batch_size=batch_size,
            sampler=sampler,
            drop_last=drop_last,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=self.trainer is not None and self.trainer.strategy.root_device.type == "cuda",
            # Its own generator, or each pass over the data would draw from torch's and change dropout.
            generator=torch.Generator().manual_seed(self.shuffle_seed),
        )

    def _split(self, split: Split) -> Dataset[ImageSample]:
        if split not in self._splits:
            raise RepLoRAError(
                f"The split {split!r} is not built yet. Call setup() first, or hand this datamodule to a Trainer, "
                "which calls it."
            )
        return self._splits[split]

    def _world(self) -> tuple[int, int]:
        """The number of processes and the rank of this one."""
        return (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)

    # --- on the device

    def on_after_batch_transfer(self, batch: ImageBatch, dataloader_idx: int) -> ImageBatch:  # noqa: ARG002
        """uint8 (B, 3, H, W) -> (pixel / 255 - mean) / std, in the precision of the Trainer.

        The batch given is not changed, and an image that is floating point already is left as it is.
        """
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
        """The inverse, for pictures: normalised (..., 3, H, W) -> uint8 of this shape."""
        pixels = image.float() * self._std.to(image.device) + self._mean.to(image.device)
        return pixels.mul_(255).round_().clamp_(0, 255).to(torch.uint8)


class PaddedDataset(Dataset[ImageSample]):
    """An evaluation set whose length is a multiple of the number of processes.

    The samples added have label -1, which losses and metrics ignore; so no image counts twice, as it would where a
    distributed sampler repeats some to fill up the last batch.
    """

    def __init__(self, dataset: Dataset[ImageSample], multiple: int) -> None:
        self.dataset = dataset
        self.length = -(-_length(dataset) // multiple) * multiple

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> ImageSample:
        if index < _length(self.dataset):
            return self.dataset[index]
        return {**self.dataset[0], "label": -1, "index": -1}


def _length(dataset: Dataset[ImageSample]) -> int:
    return len(dataset)  # type: ignore[arg-type]


def _at_least(bound: int, **options: int | None) -> None:
    for name, value in options.items():
        if value is not None and value < bound:
            raise RepLoRAError(f"{name}={value} is too small: it is at least {bound}.")


def _one_of(choices: tuple[str, ...], **options: str) -> None:
    for name, value in options.items():
        if value not in choices:
            raise RepLoRAError(f"{name}={value!r} is not an option. {nearest(value, choices)}")
