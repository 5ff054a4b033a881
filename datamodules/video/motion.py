"""The direction of a motion: clips made on this machine, the data of the video demonstration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datamodules.base import Protocol
from datamodules.image.base import Normalization
from datamodules.video.base import Recipe, VideoDataModule
from replora.datasets.common.labelled_files import FileTable
from replora.datasets.video.motion import read_motion
from replora.datasets.video.sampling import ClipError, ClipOptions

MOTION_CLIPS = ClipOptions(num_frames=8, stride=1, image_size=32, crop="centre")


class MotionDataModule(VideoDataModule):
    """A patch that moves left, right, up or down over a still background: four classes, 400 + 100 + 400 clips.

    The patch starts anywhere and comes in again on the other side, so a single frame says nothing about the class.

    Args:
        root: where the clips are made at the first use (a few seconds, 12 MB). By default in `$REPLORA_CACHE`, else in
            the user's cache folder.
        clips: frames, squares and views; 8 frames of 32 x 32 pixels by default. `flip` has to stay 0.
        normalization: `imagenet` mean and standard deviation, `half` (pixels in [-1, 1]), or `none` (in [0, 1]).
        skip_corrupt: leave out videos that cannot be decoded, and count them in the results, instead of stopping at the
            first one.
        cache_dir: a folder for decoded frames, so that each video is decoded once; nothing is kept by default.
        cache_bytes: bound on this folder, in bytes.
        recipe: the recipe that the configuration follows, for the results, which name the options that differ from it;
            nothing else depends on it.
        batch_size: training videos per batch and process; two processes with 8 see the batches of one with 16.
        eval_batch_size: videos per batch and process elsewhere; by default as many as give two training batches of
            clips.
        num_workers: loader processes of each training process, which decode. By default the usable CPU cores divided by
            the devices, at most 8; each holds two batches.
        train_fraction: the part of the training videos used, in (0, 1]; stratified, nested for one `subset_seed`.
        shots: training videos per class instead of a fraction.
        subset_seed: which videos a fraction or shots choose.
        protocol: `tune` trains on train and validates on val, `final` trains on both and tests; `holdout` trains on
            train, validates on val and tests.
        drop_last: leave out the last, incomplete training batch of an epoch.
        shuffle_seed: the order of the training videos and their clips; both change every epoch.

    Raises:
        RepLoRAError: an option is out of its range, or the clips cannot be written.
    """

    def __init__(
        self,
        root: Path | None = None,
        clips: ClipOptions = MOTION_CLIPS,
        normalization: Normalization = "imagenet",
        skip_corrupt: bool = False,
        cache_dir: Path | None = None,
        cache_bytes: int = 50 * 2**30,
        recipe: Recipe = "own",
        batch_size: int = 16,
        eval_batch_size: int | None = None,
        num_workers: int | None = None,
        train_fraction: float = 1.0,
        shots: int | None = None,
        subset_seed: int = 0,
        protocol: Protocol = "holdout",
        drop_last: bool = True,
        shuffle_seed: int = 0,
    ) -> None:
        if clips.flip > 0:
            raise ClipError(f"clips.flip={clips.flip}: mirrored, left is right. Set --data.clips.flip 0.")
        self.root = root
        super().__init__(
            clips=clips,
            val_fraction=0.0,
            split_seed=0,
            normalization=normalization,
            skip_corrupt=skip_corrupt,
            cache_dir=cache_dir,
            cache_bytes=cache_bytes,
            recipe=recipe,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            train_fraction=train_fraction,
            shots=shots,
            subset_seed=subset_seed,
            protocol=protocol,
            drop_last=drop_last,
            shuffle_seed=shuffle_seed,
        )

    def read_table(self) -> FileTable:
        return read_motion(self.root)

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"task": "motion"}
