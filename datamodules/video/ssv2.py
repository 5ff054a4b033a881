"""Something-Something-V2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datamodules.video.base import VideoDataModule
from replora.datasets.common.labeled_files import FileTable
from replora.datasets.common.paths import data_root
from replora.datasets.video.sampling import ClipError, ClipOptions
from replora.datasets.video.ssv2 import read_ssv2

# V-PETL's clips: dense, 8 frames of a 16-frame stretch; its test averages 4 x 3 views.
SSV2_CLIPS = ClipOptions(test_clips=4, test_crops=3)


class SSv2DataModule(VideoDataModule):
    """Something-Something-V2, 174 classes: `test` is the official validation set, the only one with public labels.

    Videos are never mirrored: classes such as "Pushing something from left to right" would change.

    Args:
        root: Folder of the official lists and videos. Default: the environment variable REPLORA_DATA, else `data`.
        check_sizes: Whether to compare the numbers of classes and videos with the official ones.
        clips: How clips are cut from a video: frames, squares and views. Default: those of V-PETL. `flip` must be 0.
        val_fraction: Fraction of each class's training videos that becomes `val`, in [0, 1).
        options: Options of `VideoDataModule`.

    Raises:
        ClipError: `clips.flip` is not 0.
    """

    def __init__(
        self,
        root: Path | None = None,
        check_sizes: bool = True,
        clips: ClipOptions = SSV2_CLIPS,
        val_fraction: float = 0.05,
        **options: Any,
    ) -> None:
        if clips.flip > 0:
            raise ClipError(
                f"clips.flip={clips.flip}: a mirrored video of Something-Something-V2 belongs to another class ('... "
                "from left to right'). Set --data.clips.flip 0."
            )
        self.root = data_root(root)
        self.check_sizes = check_sizes
        super().__init__(clips=clips, val_fraction=val_fraction, **options)

    def read_table(self) -> FileTable:
        return read_ssv2(self.root, self.check_sizes)

    def describe(self) -> dict[str, Any]:
        tested = {"reported_on": "the official validation set"}
        return super().describe() | {"task": "ssv2", "check_sizes": self.check_sizes} | tested
