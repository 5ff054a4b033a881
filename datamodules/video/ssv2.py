"""Something-Something-V2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datamodules.base import Protocol
from datamodules.image.base import Normalization
from datamodules.video.base import Recipe, VideoDataModule, data_root
from replora.datasets.common.labelled_files import FileTable
from replora.datasets.video.sampling import ClipError, ClipOptions
from replora.datasets.video.ssv2 import read_ssv2

# V-PETL's clips: dense, 8 frames of a 16-frame stretch; its test averages 4 x 3 views.
SSV2_CLIPS = ClipOptions(test_clips=4, test_crops=3)


class SSv2DataModule(VideoDataModule):
    """Something-Something-V2, 174 classes: `test` is the official validation set, the only one with public labels.

    Videos are never mirrored: classes such as "Pushing something from left to right" would change.

    Args:
        root: the folder of the official lists and videos. By default the environment variable REPLORA_DATA, else
            `data`.
        check_sizes: compare the number of classes and videos with the official ones.
        clips: frames, squares and views; those of V-PETL by default. `flip` has to stay 0.
        val_fraction: the part of the training videos of each class that becomes `val`, in [0, 1).
        split_seed: which videos these are.
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
        ClipError: `clips.flip` is not 0.
        RepLoRAError: an option is out of its range, or the data are missing or wrong.
    """

    def __init__(
        self,
        root: Path | None = None,
        check_sizes: bool = True,
        clips: ClipOptions = SSV2_CLIPS,
        val_fraction: float = 0.05,
        split_seed: int = 0,
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
        protocol: Protocol = "final",
        drop_last: bool = True,
        shuffle_seed: int = 0,
    ) -> None:
        if clips.flip > 0:
            raise ClipError(
                f"clips.flip={clips.flip}: a mirrored video of Something-Something-V2 belongs to another class ('... "
                "from left to right'). Set --data.clips.flip 0."
            )
        self.root = data_root(root)
        self.check_sizes = check_sizes
        super().__init__(
            clips=clips,
            val_fraction=val_fraction,
            split_seed=split_seed,
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
        return read_ssv2(self.root, self.check_sizes)

    def describe(self) -> dict[str, Any]:
        tested = {"reported_on": "the official validation set"}
        return super().describe() | {"task": "ssv2", "check_sizes": self.check_sizes} | tested
