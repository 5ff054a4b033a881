"""VTAB-1K, and custom data sets in the same layout."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from datamodules.base import Split
from datamodules.image.base import ImageDataModule, Normalization
from replora.datasets.common.paths import allowing, data_root
from replora.datasets.image.resize import Interpolation
from replora.datasets.vtab.dataset import VTAB, VTABSplit, find_task_folder, lists_sha256, vtab_task
from replora.datasets.vtab.tracks import Track, check_track, filter_of_track, read_marker, track_options

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
        root: Folder that holds the folders of the tasks, or its parent if it is called `vtab-1k`. Default: the
            environment variable REPLORA_DATA, else `data`.
        task: One of the 19 tasks, such as `dtd`, or the folder of another data set in the same layout.
        num_classes: Number of classes (>= 1), for a data set outside the 19 only.
        check_sizes: Whether to compare the number of images with the table (the 19 tasks only).
        track: `archive` compares with NOAH, FacT and RepAdapter: images re-encoded as JPEG, bicubic, ImageNet mean and
            standard deviation. `clean` compares with VPT and Adapter+: lossless PNG, TensorFlow 1's bilinear, pixels in
            [-1, 1]. Their results do not compare with each other: on `cifar` they are more than ten points apart.
        interpolation: Filter that resizes an image: `track` for that of the track. None is what files of earlier runs
            have, and means `bilinear` under `clean`.
        normalization: `imagenet`, `half` (pixels in [-1, 1]), or `none` (in [0, 1]). Default: that of the track.
        options: Options of `ImageDataModule`.

    Raises:
        UnknownTaskError: The task is not known and has no `num_classes`, or contradicts the table.
        TrackError: There is no such track, or (from `setup`) the images belong to the other one.
    """

    def __init__(
        self,
        root: Path | None = None,
        task: str = "cifar",
        num_classes: int | None = None,
        check_sizes: bool = True,
        track: Track = "archive",
        interpolation: Interpolation | Literal["track"] | None = "track",
        normalization: Normalization | None = None,
        **options: Any,
    ) -> None:
        of_track = track_options(track)
        super().__init__(
            interpolation=filter_of_track(track, interpolation),
            normalization=normalization or of_track.normalization,
            **options,
        )
        self.root = data_root(root)
        self.task = vtab_task(task, num_classes)
        self.num_classes = self.task.num_classes
        self.class_names = [str(label) for label in range(self.num_classes)]
        self.check_sizes = check_sizes
        self.track: Track = track

    @classmethod
    def check_files(cls, options: Mapping[str, Any]) -> None:
        task = vtab_task(options["task"], options["num_classes"])
        find_task_folder(data_root(options["root"]), task)

    def build_dataset(self, split: Split) -> VTAB:
        with allowing(self.allowed_roots):
            dataset = VTAB(
                self.root,
                self.task.name,
                LIST_FILES[split],
                num_classes=self.num_classes,
                reader=self.reader,
                check_sizes=self.check_sizes,
            )
        check_track(dataset.folder, dataset.folder / dataset.paths[0], self.task, self.track)
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
