"""HMDB51."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

from datamodules.video.base import VideoDataModule
from replora.datasets.common.labeled_files import FileTable
from replora.datasets.common.paths import data_root
from replora.datasets.video.hmdb51 import OfficialSplit, film_of, read_hmdb51
from replora.datasets.video.sampling import ClipOptions

# V-PETL's clips: dense, 8 frames of a 16-frame stretch; its test averages 4 x 3 views.
HMDB51_CLIPS = ClipOptions(test_clips=4, test_crops=3)


class HMDB51DataModule(VideoDataModule):
    """HMDB51, 51 classes, one of its three official splits.

    The official number is the mean over the three splits (`replora.reports.sections.video`); V-PETL's tables are of
    split 1.

    Args:
        root: Folder of the official lists and videos. Default: the environment variable REPLORA_DATA, else `data`.
        split: Number of the official split: 1, 2 or 3.
        check_sizes: Whether to compare the numbers of classes and videos with the official ones.
        clips: How clips are cut from a video: frames, squares and views. Default: those of V-PETL.
        options: Options of `VideoDataModule`.
    """

    def __init__(
        self,
        root: Path | None = None,
        split: OfficialSplit = 1,
        check_sizes: bool = True,
        clips: ClipOptions = HMDB51_CLIPS,
        **options: Any,
    ) -> None:
        self.root = data_root(root)
        self.split: OfficialSplit = split
        self.check_sizes = check_sizes
        super().__init__(clips=clips, **options)

    def read_table(self) -> FileTable:
        return read_hmdb51(self.root, self.split, self.check_sizes)

    def group_of(self, path: PurePosixPath) -> str:
        return film_of(path)

    def describe(self) -> dict[str, Any]:
        own = {"task": "hmdb51", "official_split": self.split, "check_sizes": self.check_sizes}
        return super().describe() | own
