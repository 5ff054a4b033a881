"""Clips of labeled videos: random ones in every epoch of training, fixed views for evaluation."""

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
    """Base of the training and evaluation clips.

    Args:
        table: Table of the videos.
        positions: Positions of the videos in the table, in order. `index` of a sample is a position in this list.
        options: Options of the clips.
        cache: Cache of decoded frames. Default: none.
        skip_corrupt: Whether a video that cannot be decoded becomes black frames with label -1, which neither loss nor
            metrics count, and a warning; otherwise it is an error.
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
        """The selected frames before the crop, uint8 (T, 3, h, w)."""
        path = self.home / self.paths[index]
        if self.cache is None:
            return read_clip(path, choose, self.options.side)
        return self.cache.read(path, choose, self.options.side, self._kept())

    def _kept(self) -> str:
        """Key of the frames that the cache keeps of a video: all of them, or those of certain views."""
        raise NotImplementedError

    def _skipped(self, index: int, views: int, error: CorruptVideoError) -> VideoSample:
        if not self.skip_corrupt:
            raise CorruptVideoError(
                f"{error} To skip such videos and count them in the results: --data.skip_corrupt true"
            ) from error
        log.warning("skipped, without loss and metrics: %s", error)
        size = self.options.image_size
        black = torch.zeros(views, 3, self.options.num_frames, size, size, dtype=torch.uint8)
        return {"video": black, "label": -1, "index": index}


class TrainClips(VideoClips, PerEpoch):
    """One random clip of each video; it follows from (seed, epoch, video) alone.

    Args:
        table, positions, options, cache, skip_corrupt: Same as in `VideoClips`.
        seed: Random seed (>= 0) of the clips.
        chosen: Positions in the list to train on. Default: all.
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
            CorruptVideoError: The video cannot be decoded.
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
    """Fixed views of each video: `clips` in time, with `crops` squares each.

    Args:
        table, positions, options, cache, skip_corrupt: Same as in `VideoClips`.
        clips, crops: Numbers of clips and crops (>= 1); a test uses `options.test_clips` and `options.test_crops`.
    """

    __test__ = False  # pytest would collect the class by its name

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
            CorruptVideoError: The video cannot be decoded.
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
        options: Options of the clips.
        read: Function that returns the frames selected by its argument, uint8 (N, 3, h, w), with the shorter side
            `options.side`.
        clips, crops: Numbers of clips in time and of squares per clip.
    """
    frames = read(lambda count: [i for clip in range(clips) for i in view_frames(options, count, clip, clips)])
    in_time = torch.split(frames, options.num_frames)
    return torch.stack([crop.transpose(0, 1) for clip in in_time for crop in view_crops(options, clip, crops)])
