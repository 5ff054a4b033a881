"""Clips of labelled videos: drawn anew every epoch for training, the same views every time for evaluation."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath

import torch
from torch import Tensor
from torch.utils.data import Dataset

from replora.datasets.common.augment import PerEpoch, generator_of
from replora.datasets.common.labelled_files import FileTable
from replora.datasets.errors import CorruptVideoError
from replora.datasets.samples import VideoSample
from replora.datasets.video.decode import Choice, read_clip
from replora.datasets.video.frame_cache import EVERY_FRAME, ClipCache
from replora.datasets.video.sampling import ClipOptions, random_crop, random_frames, view_crops, view_frames

log = logging.getLogger(__name__)


class VideoClips(Dataset[VideoSample]):
    """What training and evaluation share.

    Args:
        table: the videos.
        positions: which of them, in this order; `index` of a sample counts in this list.
        options: of the clips.
        cache: where decoded frames are kept; nothing is kept without.
        skip_corrupt: give black frames with label -1, which neither loss nor metrics count, for a video that cannot be
            decoded, and say so; otherwise it is an error.
    """

    def __init__(
        self,
        table: FileTable,
        positions: Sequence[int],
        options: ClipOptions,
        cache: ClipCache | None = None,
        skip_corrupt: bool = False,
    ) -> None:
        self.home = table.home
        self.class_names = table.class_names
        self.paths: list[PurePosixPath] = [table.paths[i] for i in positions]
        self.labels: list[int] = [table.labels[i] for i in positions]
        self.options = options
        self.cache = cache
        self.skip_corrupt = skip_corrupt

    def __len__(self) -> int:
        return len(self.labels)

    def _read(self, index: int, choose: Choice) -> Tensor:
        """The frames chosen, not cropped: uint8 (T, 3, h, w)."""
        path = self.home / self.paths[index]
        if self.cache is None:
            return read_clip(path, choose, self.options.side)
        return self.cache.read(path, choose, self.options.side, self._kept())

    def _kept(self) -> str:
        """What the cache keeps of a video: all of its frames, or those of named views."""
        raise NotImplementedError

    def _skipped(self, index: int, views: int, error: CorruptVideoError) -> VideoSample:
        if not self.skip_corrupt:
            raise CorruptVideoError(
                f"{error} Or leave such videos out, counted in the results: --data.skip_corrupt true"
            ) from error
        log.warning("skipped, and not counted by loss and metrics: %s", error)
        size = self.options.image_size
        black = torch.zeros(views, 3, self.options.num_frames, size, size, dtype=torch.uint8)
        return {"video": black, "label": -1, "index": index}


class TrainClips(VideoClips, PerEpoch):
    """One random clip of each video; it follows from (seed, epoch, video) alone.

    Args:
        table, positions, options, cache, skip_corrupt: as of `VideoClips`.
        seed: of all clips.
        chosen: positions in the list that are trained on, such as a stratified part of it; all by default.
    """

    def __init__(
        self,
        table: FileTable,
        positions: Sequence[int],
        options: ClipOptions,
        cache: ClipCache | None = None,
        skip_corrupt: bool = False,
        seed: int = 0,
        chosen: Sequence[int] | None = None,
    ) -> None:
        super().__init__(table, positions, options, cache, skip_corrupt)
        self.seed = seed
        self.chosen = list(range(len(self.labels)) if chosen is None else chosen)

    def __len__(self) -> int:
        return len(self.chosen)

    def _kept(self) -> str:
        return EVERY_FRAME

    def __getitem__(self, drawn: tuple[int, int] | int) -> VideoSample:
        """The sample: uint8 (1, 3, T, image_size, image_size).

        Raises:
            CorruptVideoError: the video cannot be decoded.
        """
        epoch, position = self._epoch_and_position(drawn)
        index = self.chosen[position]
        generator = generator_of(self.seed, epoch, index)
        try:
            frames = self._read(index, lambda count: random_frames(self.options, count, generator))
        except CorruptVideoError as error:
            return self._skipped(index, 1, error)
        clip = random_crop(self.options, frames, generator)
        return {"video": clip.transpose(0, 1)[None].contiguous(), "label": self.labels[index], "index": index}


class TestClips(VideoClips):
    """The same views of each video every time: `clips` in time, each cut into `crops` squares.

    Args:
        table, positions, options, cache, skip_corrupt: as of `VideoClips`.
        clips, crops: how many; `options.test_clips` and `options.test_crops` are those of a test.
    """

    __test__ = False  # the name looks like a test's to pytest

    def __init__(
        self,
        table: FileTable,
        positions: Sequence[int],
        options: ClipOptions,
        cache: ClipCache | None = None,
        skip_corrupt: bool = False,
        clips: int = 1,
        crops: int = 1,
    ) -> None:
        super().__init__(table, positions, options, cache, skip_corrupt)
        self.clips, self.crops = clips, crops

    def __getitem__(self, index: int) -> VideoSample:
        """The sample: uint8 (clips * crops, 3, T, image_size, image_size).

        Raises:
            CorruptVideoError: the video cannot be decoded.
        """
        index = range(len(self))[index]
        try:
            video = views(self.options, lambda choose: self._read(index, choose), self.clips, self.crops)
        except CorruptVideoError as error:
            return self._skipped(index, self.clips * self.crops, error)
        return {"video": video, "label": self.labels[index], "index": index}

    def _kept(self) -> str:
        o = self.options
        return f"{o.num_frames} {o.sampling} {o.stride if o.sampling == 'dense' else ''} {self.clips}"


def views(options: ClipOptions, read: Callable[[Choice], Tensor], clips: int, crops: int) -> Tensor:
    """The views of a video: uint8 (clips * crops, 3, T, image_size, image_size).

    Args:
        options: of the clips.
        read: gives the frames that its argument chooses, uint8 (N, 3, h, w), their shorter side `options.side`.
        clips, crops: how many in time, and squares of each.
    """
    frames = read(lambda count: [i for clip in range(clips) for i in view_frames(options, count, clip, clips)])
    in_time = torch.split(frames, options.num_frames)
    return torch.stack([crop.transpose(0, 1) for clip in in_time for crop in view_crops(options, clip, crops)])
