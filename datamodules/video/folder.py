"""A folder of custom videos, or a CSV file of paths and labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datamodules.base import Protocol
from datamodules.video.base import VideoDataModule
from replora.datasets.common.labeled_files import FileTable
from replora.datasets.video.folder import read_video_table
from replora.datasets.video.sampling import ClipOptions

FOLDER_CLIPS = ClipOptions(sampling="uniform")


class VideoFolderDataModule(VideoDataModule):
    """Videos in a folder for each class, with or without `train`, `val` and `test` above, or listed in a CSV file.

    A video is a file or a folder of numbered images. Splits that are absent are made from the training videos,
    stratified, and the same on every machine.

    Args:
        root: Folder of the videos, or a CSV file with the columns `path,label` and optionally `split`; paths are
            relative to the file.
        test_fraction: Fraction of each class's training videos that becomes `test` if there is none, in [0, 1).
        clips: How clips are cut from a video: frames, squares and views. Default: one frame of each eighth of a video.
            `flip` is for classes that mirroring does not change.
        batch_size: Training videos per batch and process (>= 1).
        protocol: `tune` trains on train and validates on val; `final` trains on train and val and tests; `holdout`
            trains on train, validates on val and tests.
        options: Options of `VideoDataModule`.
    """

    def __init__(
        self,
        root: Path,
        test_fraction: float = 0.1,
        clips: ClipOptions = FOLDER_CLIPS,
        batch_size: int = 8,
        protocol: Protocol = "holdout",
        **options: Any,
    ) -> None:
        self.root = Path(root).expanduser()
        self.test_fraction = test_fraction
        super().__init__(clips=clips, batch_size=batch_size, protocol=protocol, **options)

    def read_table(self) -> FileTable:
        return read_video_table(self.root)

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"task": self.root.resolve().stem, "test_fraction": self.test_fraction}
