"""The base of the video benchmarks: clips, splits and normalization."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.base import BaseDataModule, Split, at_least, one_of
from datamodules.image.base import NORMALIZATIONS, Normalization
from replora.datasets.common.labeled_files import FileTable, FileTableError
from replora.datasets.common.paths import allowing
from replora.datasets.common.subsample import subsample_indices
from replora.datasets.samples import PADDING_INDEX, PADDING_LABEL, VideoBatch, VideoSample
from replora.datasets.video.dataset import VideoClips
from replora.datasets.video.decode import check_decoder
from replora.datasets.video.frame_cache import ClipCache
from replora.datasets.video.sampling import ClipOptions
from replora.recipes import named

Recipe = Literal["v_petl", "tuned", "own"]


class VideoDataModule(BaseDataModule):
    """One video classification task, in batches of `replora.datasets.VideoBatch`.

    `val` is a part of the official training videos, so options are never selected on the reported split. It is measured
    on one clip from the middle of each video; `test` on `clips.test_clips` x `clips.test_crops` views, which the module
    averages.

    A subclass reads its videos (`read_table`); `group_of` keeps clips of one film together.

    Args:
        clips: How clips are cut from a video: frames, squares and views.
        val_fraction: Fraction of each class's training videos that becomes `val` if there is none, in [0, 1).
        split_seed: Random seed (>= 0) that chooses the videos of `val`.
        normalization: `imagenet`, `half` (pixels in [-1, 1]), or `none` (in [0, 1]).
        skip_corrupt: Whether to leave out videos that cannot be decoded and count them in the results, instead of
            stopping at the first one.
        allowed_roots: Folders outside `root` where links and absolute paths may lead, one or a list, besides those of
            the environment variable REPLORA_ALLOWED_ROOTS.
        cache_dir: Folder for decoded frames, so that each video is decoded once. Default: none.
        cache_bytes: Bound on this folder, in bytes (>= 0).
        recipe: Recipe that the configuration follows. The results name it with the options that differ from it;
            nothing else depends on it.
        batch_size: Training videos per batch and process (>= 1). Two processes with 8 see the batches of one with 16.
        options: Options of `BaseDataModule`.

    Raises:
        RepLoRAError: An option is out of its range, or the data are missing or wrong.
    """

    def __init__(
        self,
        clips: ClipOptions,
        val_fraction: float = 0.1,
        split_seed: int = 0,
        normalization: Normalization = "imagenet",
        skip_corrupt: bool = False,
        allowed_roots: list[Path] | Path | None = None,
        cache_dir: Path | None = None,
        cache_bytes: int = 50 * 2**30,
        recipe: Recipe = "own",
        batch_size: int = 16,
        **options: Any,
    ) -> None:
        self.clips = clips
        super().__init__(batch_size=batch_size, **options)
        at_least(0, cache_bytes=cache_bytes, split_seed=split_seed)
        one_of(get_args(Normalization), normalization=normalization)
        one_of(get_args(Recipe), recipe=recipe)
        self.split_options = {"val_fraction": val_fraction, "split_seed": split_seed}
        self.normalization: Normalization = normalization
        self.skip_corrupt = skip_corrupt
        self.cache = None if cache_dir is None else ClipCache(Path(cache_dir).expanduser(), cache_bytes)
        self.recipe: Recipe = recipe
        self.recipe_changes: list[str] = []  # options that are not the recipe's; the command line compares them
        with allowing(allowed_roots):
            self.table = self.read_table()
        self.given_validation = "val" in self.table.splits
        self.class_names = self.table.class_names
        self.num_classes = len(self.class_names)
        groups = [self.group_of(path) for path in self.table.paths]
        self.split_of = self.table.assign(val_fraction, self.test_fraction, split_seed, groups)
        mean, std = NORMALIZATIONS[normalization]
        self._mean = torch.tensor(mean).view(3, 1, 1, 1)
        self._std = torch.tensor(std).view(3, 1, 1, 1)

    test_fraction: float = 0.0  # fraction of the training videos that becomes `test` if the data have none

    def default_eval_batch_size(self) -> int:
        """As many videos as give two training batches of clips."""
        return max(1, 2 * self.batch_size // (self.clips.test_clips * self.clips.test_crops))

    @abstractmethod
    def read_table(self) -> FileTable:
        """All videos with their classes and official splits; raise on whatever is wrong."""

    def group_of(self, path: PurePosixPath) -> str:
        """The group of a video; `train` and `val` share no group."""
        return str(path)

    @property
    def image_size(self) -> int:
        """Height and width of the clips, in pixels."""
        return self.clips.image_size

    def describe(self) -> dict[str, Any]:
        listed = zip(self.table.paths, self.table.labels, self.split_of, strict=True)
        classes = self.own_classes
        text = "".join(f"{path}\t{classes[label]}\t{split}\n" for path, label, split in listed)
        return super().describe() | {
            "num_classes": self.num_classes,
            "root": str(self.table.home.resolve()),
            "videos": len(self.table.paths),
            "left_out": self.table.left_out,
            "lists_sha256": hashlib.sha256(text.encode()).hexdigest(),
            "recipe": named(self.recipe, self.recipe_changes),
            **self.split_options,
            **self.preprocessing(),
            "skip_corrupt": self.skip_corrupt,
        }

    def preprocessing(self) -> dict[str, Any]:
        """The options that turn a video file into inputs, as JSON values."""
        mean, std = NORMALIZATIONS[self.normalization]
        return {
            "clips": self.clips.describe(),
            "image_size": self.image_size,
            "normalization": {"name": self.normalization, "mean": list(mean), "std": list(std)},
        }

    # --- splits

    def build_split(self, split: Split) -> Dataset[VideoSample]:
        wanted = ("train", "val") if self.listed(split) == "trainval" else (split,)
        positions = [i for i, own in enumerate(self.split_of) if own in wanted]
        if not positions:
            raise FileTableError(
                f"The protocol {self.protocol!r} needs the split {split!r}, but {self.table.home} has no such "
                "videos. Add videos, or set a fraction above 0 (--data.val_fraction)."
            )
        if not (self.table.home / self.table.paths[positions[0]]).is_dir():
            check_decoder()
        labels = [self.table.labels[i] for i in positions]
        used: list[int] | None = None
        if self.fold and split != "test":
            used = self.part_of_fold(split, labels, [self.group_of(self.table.paths[i]) for i in positions])
        elif split == self.train_split and (self._fraction is not None or self.shots is not None):
            subset = (self._fraction, self.shots, self.subset_seed)
            used = subsample_indices(labels, *subset, names=self.own_classes)
        self._add_list(split, positions, used)
        shared = (self.table, positions, self.clips, self.cache, self.skip_corrupt)
        if split != self.train_split:
            views = (self.clips.test_clips, self.clips.test_crops) if split == "test" else (1, 1)
            return VideoClips(*shared, views, chosen=used)
        self.train_indices = used
        return VideoClips(*shared, seed=self.shuffle_seed, chosen=used)

    def _add_list(self, split: Split, positions: list[int], used: list[int] | None = None) -> None:
        names = [str(self.table.paths[i]) for i in positions]
        classes = self.own_classes
        self.lists.add(split, names, [classes[self.table.labels[i]] for i in positions], used)

    def build_dataset(self, split: Split) -> VideoClips:
        """The videos of a split."""
        dataset = self._splits[split] if split in self._splits else self.build_split(split)
        assert isinstance(dataset, VideoClips)
        return dataset

    def padding_of(self, sample: VideoSample) -> VideoSample:
        return {**sample, "label": PADDING_LABEL, "index": PADDING_INDEX}

    def _needs_workers(self, dataset: Dataset[Any]) -> bool:  # noqa: ARG002
        return True

    # --- on the device

    def on_after_batch_transfer(self, batch: VideoBatch, dataloader_idx: int) -> VideoBatch:  # noqa: ARG002
        """uint8 (B, V, 3, T, H, W) -> (pixel / 255 - mean) / std, in the precision of the Trainer.

        The given batch is not changed. A video in floating point is returned as it is.
        """
        batch = self.with_run_labels(batch)
        if batch["video"].dtype != torch.uint8:
            return batch
        return {**batch, "video": self.normalize(batch["video"])}

    def normalize(self, video: Tensor) -> Tensor:
        """uint8 (..., 3, T, H, W) -> a new float tensor of this shape."""
        self._mean, self._std = self._mean.to(video.device), self._std.to(video.device)
        normalized = video.float().div_(255).sub_(self._mean).div_(self._std)  # in place on the copy of float()
        # Lightning converts inputs to half or double precision before this hook, when they were still uint8.
        return self.trainer.precision_plugin.convert_input(normalized) if self.trainer else normalized
