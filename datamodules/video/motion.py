"""Generated clips of moving patches, the data of the video demonstration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datamodules.base import Protocol
from datamodules.video.base import VideoDataModule
from replora.datasets.common.labeled_files import FileTable
from replora.datasets.video.motion import read_motion
from replora.datasets.video.sampling import ClipError, ClipOptions

MOTION_CLIPS = ClipOptions(num_frames=8, stride=1, image_size=32, crop="centre")


class MotionDataModule(VideoDataModule):
    """A patch that moves left, right, up or down over a still background: four classes, 400 + 100 + 400 clips.

    The patch starts anywhere and wraps around, so a single frame does not show the class.

    Args:
        root: Folder of the clips, which are created at the first use (a few seconds, 12 MB). Default: in
            `$REPLORA_CACHE`, else in the user's cache folder.
        clips: How clips are cut from a video: frames, squares and views. `flip` must be 0.
        protocol: `tune` trains on train and validates on val; `final` trains on train and val and tests; `holdout`
            trains on train, validates on val and tests.
        options: Options of `VideoDataModule`.
    """

    def __init__(
        self,
        root: Path | None = None,
        clips: ClipOptions = MOTION_CLIPS,
        protocol: Protocol = "holdout",
        **options: Any,
    ) -> None:
        if clips.flip > 0:
            raise ClipError(f"clips.flip={clips.flip}: a flip exchanges left and right. Set --data.clips.flip 0.")
        self.root = root
        super().__init__(clips=clips, val_fraction=0.0, split_seed=0, protocol=protocol, **options)

    def read_table(self) -> FileTable:
        return read_motion(self.root)

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"task": "motion"}
