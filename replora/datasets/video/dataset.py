"""Clips of labeled videos: random ones in every epoch of training, fixed views for evaluation."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

from replora.datasets.common.augment import PerEpoch, generator_of
from replora.datasets.common.labeled_files import FileTable
from replora.datasets.common.packed import pack_paths
from replora.datasets.errors import CorruptVideoError
from replora.datasets.samples import VideoSample
from replora.datasets.video.decode import Choice, read_clip
from replora.datasets.video.frame_cache import EVERY_FRAME, ClipCache
from replora.datasets.video.sampling import ClipOptions, random_crop, random_frames, view_crops, view_frames

log = logging.getLogger(__name__)


class VideoClips(Dataset[VideoSample], PerEpoch):
    """Clips of labeled videos.

    Args:
        table: Table of the videos.
        positions: Positions of the videos in the table, in order. `index` of a sample is a position in this list.
        options: Options of the clips.
        cache: Cache of decoded frames. Default: none.
        skip_corrupt: Whether a video that cannot be decoded becomes black frames with label -1, which neither loss nor
            metrics count, and a warning; otherwise it is an error.
        views: Numbers of clips in time and of squares per clip, for evaluation (>= 1). Default: one random clip, which
            follows from (seed, epoch, video) alone.
        seed: Random seed (>= 0) of random clips.
        chosen: Positions in the list to use. Default: all.
    """

    def __init__(
        self,
        table: FileTable,
        positions: Sequence[int],
        options: ClipOptions,
        cache: ClipCache | None = None,
        skip_corrupt: bool = False,
        views: tuple[int, int] | None = None,
        seed: int = 0,
        chosen: Sequence[int] | None = None,
    ) -> None:
        self.home = table.home
        self.class_names = table.class_names
        self.paths = pack_paths(table.paths[i] for i in positions)
        self.labels = [table.labels[i] for i in positions]
        self.options = options
        self.cache = cache
        self.skip_corrupt = skip_corrupt
        self.views = views
        self.seed = seed
        self.chosen = range(len(self.labels)) if chosen is None else chosen

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, drawn: tuple[int, int] | int) -> VideoSample:
        """The sample: uint8 (V, 3, T, image_size, image_size) with V views, one in training.

        Raises:
            CorruptVideoError: The video cannot be decoded.
        """
        epoch, position = self._epoch_and_position(drawn)
        index = self.chosen[position]
        try:
            if self.views is None:
                video = self._random_clip(index, generator_of(self.seed, epoch, index))
            else:
                video = views(self.options, lambda choose: self._read(index, choose), *self.views)
        except CorruptVideoError as error:
            return self._skipped(index, error)
        return {"video": video, "label": self.labels[index], "index": index}

    def _random_clip(self, index: int, generator: torch.Generator) -> Tensor:
        frames = self._read(index, lambda count: random_frames(self.options, count, generator))
        return random_crop(self.options, frames, generator).transpose(0, 1)[None].contiguous()

    def _read(self, index: int, choose: Choice) -> Tensor:
        """The selected frames before the crop, uint8 (T, 3, h, w)."""
        path, o = self.home / self.paths[index], self.options
        if self.cache is None:
            return read_clip(path, choose, o.side)
        keep = EVERY_FRAME
        if self.views is not None:
            keep = f"{o.num_frames} {o.sampling} {o.stride if o.sampling == 'dense' else ''} {self.views[0]}"
        return self.cache.read(path, choose, o.side, keep)

    def _skipped(self, index: int, error: CorruptVideoError) -> VideoSample:
        if not self.skip_corrupt:
            raise CorruptVideoError(
                f"{error} To skip such videos and count them in the results: --data.skip_corrupt true"
            ) from error
        log.warning("skipped, without loss and metrics: %s", error)
        clips, crops = self.views or (1, 1)
        size = self.options.image_size
        black = torch.zeros(clips * crops, 3, self.options.num_frames, size, size, dtype=torch.uint8)
        return {"video": black, "label": -1, "index": index}


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
