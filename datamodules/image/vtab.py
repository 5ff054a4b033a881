"""VTAB-1K, and data sets of one's own in the same layout."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from datamodules.base import Protocol, Split
from datamodules.image.base import ImageDataModule, Normalization
from replora.datasets.image.read import Interpolation
from replora.datasets.vtab.dataset import VTAB, VTABSplit, find_task_folder, lists_sha256, vtab_task
from replora.datasets.vtab.tracks import Track, read_marker, require_track, track_options

LIST_FILES: dict[Split, VTABSplit] = {
    "train": "train800",
    "val": "val200",
    "trainval": "train800val200",
    "test": "test",
}


class VTABDataModule(ImageDataModule):
    """One task of VTAB-1K.

    The defaults are the preprocessing of the track's published rows, 224 x 224 without augmentation.

    Args:
        root: the folder that holds the folders of the tasks, or its parent if it is called `vtab-1k`. By default the
            environment variable REPLORA_DATA, else `data`; relative to the working directory.
        task: one of the 19 (`replora.datasets.VTAB_TASKS`), or the folder of another data set in the same layout.
        num_classes: for a data set outside the 19 only.
        check_sizes: compare the number of images with the table (the 19 tasks only).
        track: `archive` compares with NOAH, FacT and RepAdapter: images re-encoded as JPEG, bicubic, ImageNet mean and
            standard deviation. `clean` compares with VPT and Adapter+: lossless PNG, bilinear, pixels in [-1, 1]. Their
            results do not compare with each other: on `cifar` they are more than ten points apart.
        batch_size: training images per batch and process; two processes with 32 see the batches of one with 64.
        eval_batch_size: images per batch and process elsewhere; twice `batch_size` by default.
        num_workers: loader processes of each training process. By default none for images held in memory, else the
            usable CPU cores divided by the devices, at most 8.
        train_fraction: the part of the training images used, in (0, 1]; stratified, nested for one `subset_seed`.
        shots: training images per class instead of a fraction.
        subset_seed: which images a fraction or shots choose.
        protocol: `tune` trains on 800 images and validates on 200, `final` trains on the 1,000 and tests; `holdout`
            trains on 800, validates on 200 and tests.
        drop_last: leave out the last, incomplete training batch of an epoch.
        shuffle_seed: the order of the training images; it changes every epoch.
        cache_bytes: bound on decoded images held in memory by each process, in bytes; 0 holds nothing.
        image_size: height and width of the images, in pixels.
        interpolation: the filter that resizes an image; that of the track by default.
        normalization: `imagenet` mean and standard deviation, `half` (pixels in [-1, 1]), or `none` (in [0, 1]); that
            of the track by default.

    Raises:
        UnknownTaskError: the task is not known and has no `num_classes`, or contradicts the table.
        TrackError: no such track; from `setup`, the images belong to the other one.
    """

    def __init__(
        self,
        root: Path | None = None,
        task: str = "cifar",
        num_classes: int | None = None,
        check_sizes: bool = True,
        track: Track = "archive",
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
        interpolation: Interpolation | None = None,
        normalization: Normalization | None = None,
    ) -> None:
        options = track_options(track)
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
            interpolation=interpolation or options.interpolation,
            normalization=normalization or options.normalization,
        )
        self.root = Path(root or os.environ.get("REPLORA_DATA") or "data").expanduser()
        self.task = vtab_task(task, num_classes)
        self.num_classes = self.task.num_classes
        self.class_names = [str(label) for label in range(self.num_classes)]
        self.check_sizes = check_sizes
        self.track: Track = track

    def build_dataset(self, split: Split) -> VTAB:
        dataset = VTAB(
            self.root,
            self.task.name,
            LIST_FILES[split],
            num_classes=self.num_classes,
            image_size=self.image_size,
            interpolation=self.interpolation,
            check_sizes=self.check_sizes,
        )
        require_track(dataset.folder, dataset.folder / dataset.paths[0], self.task, self.track)
        return dataset

    def describe(self) -> dict[str, Any]:
        folder = find_task_folder(self.root, self.task)
        return super().describe() | {
            "task": self.task.name,
            "group": self.task.group,
            "root": str(folder.resolve().parent),
            "folder": folder.name,
            "track": self.track,
            "source": (read_marker(folder) or {}).get("source"),
            "lists_sha256": lists_sha256(folder),
            "check_sizes": self.check_sizes,
        }
