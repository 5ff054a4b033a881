"""Files on disk -> sample dicts. No batching and no Lightning here; `datamodules` turns samples into batches."""

from __future__ import annotations

from typing import TypedDict

from torch import Tensor
from torch.utils.data import Dataset


class ImageSample(TypedDict):
    """One image as a dataset gives it."""

    image: Tensor  # uint8 (3, H, W)
    label: int  # 0 <= label < number of classes; -1 marks padding of an evaluation set
    index: int  # position in the data set's own list, before any subset was taken; -1 for padding


class ImageBatch(TypedDict):
    """B samples. `image` is uint8 on its way to the device, and normalised floating point from there on."""

    image: Tensor  # (B, 3, H, W)
    label: Tensor  # int64 (B,)
    index: Tensor  # int64 (B,)


class VideoSample(TypedDict):
    """V views of one video: different times and squares. One in training."""

    video: Tensor  # uint8 (V, 3, T, H, W)
    label: int  # as of ImageSample; -1 also for a video that could not be decoded, where that is allowed
    index: int


class VideoBatch(TypedDict):
    """B samples with equally many views. `video` is uint8 on its way to the device, and normalised from there on."""

    video: Tensor  # (B, V, 3, T, H, W)
    label: Tensor  # int64 (B,)
    index: Tensor  # int64 (B,)


class ImageDataset(Dataset[ImageSample]):
    """What every labelled image data set offers; the labels are known without decoding an image."""

    labels: list[int]
    class_names: list[str]

    def __len__(self) -> int:
        return len(self.labels)


# The modules below use the types above.
from replora.datasets.augment import Augmentation, Augmented, RandomCropFlip  # noqa: E402
from replora.datasets.cache import InMemory, in_memory  # noqa: E402
from replora.datasets.clip_cache import ClipCache  # noqa: E402
from replora.datasets.clips import ClipOptions  # noqa: E402
from replora.datasets.commonsense import (  # noqa: E402
    COMMONSENSE_TASKS,
    UNION_SIZE,
    CommonsenseRecord,
    CommonsenseTask,
    commonsense_task,
)
from replora.datasets.digits import Digits  # noqa: E402
from replora.datasets.errors import (  # noqa: E402
    CorruptImageError,
    CorruptVideoError,
    DatasetNotFoundError,
    ListFileError,
    ProtocolError,
    RecordError,
    SubsetError,
    UnknownTaskError,
)
from replora.datasets.fgvc import FGVC, FGVC_TASKS, FGVCTask, fgvc_task  # noqa: E402
from replora.datasets.file_table import FileTable, FileTableError, read_file_table  # noqa: E402
from replora.datasets.hmdb51 import read_hmdb51  # noqa: E402
from replora.datasets.image_folder import ImageFolder, read_image_table  # noqa: E402
from replora.datasets.images import Framing, Interpolation, read_image  # noqa: E402
from replora.datasets.motion import read_motion  # noqa: E402
from replora.datasets.ssv2 import read_ssv2  # noqa: E402
from replora.datasets.subsample import subsample_indices  # noqa: E402
from replora.datasets.text import ChoiceItem, TextBatch  # noqa: E402
from replora.datasets.video_clips import TestClips, TrainClips  # noqa: E402
from replora.datasets.video_folder import read_video_table  # noqa: E402
from replora.datasets.vtab import VTAB, VTAB_TASKS, VTABTask, vtab_averages, vtab_task  # noqa: E402

__all__ = [
    "COMMONSENSE_TASKS",
    "FGVC",
    "FGVC_TASKS",
    "UNION_SIZE",
    "VTAB",
    "VTAB_TASKS",
    "Augmentation",
    "Augmented",
    "ChoiceItem",
    "ClipCache",
    "ClipOptions",
    "CommonsenseRecord",
    "CommonsenseTask",
    "CorruptImageError",
    "CorruptVideoError",
    "DatasetNotFoundError",
    "Digits",
    "FGVCTask",
    "FileTable",
    "FileTableError",
    "Framing",
    "ImageBatch",
    "ImageDataset",
    "ImageFolder",
    "ImageSample",
    "InMemory",
    "Interpolation",
    "ListFileError",
    "ProtocolError",
    "RandomCropFlip",
    "RecordError",
    "SubsetError",
    "TestClips",
    "TextBatch",
    "TrainClips",
    "UnknownTaskError",
    "VTABTask",
    "VideoBatch",
    "VideoSample",
    "commonsense_task",
    "fgvc_task",
    "in_memory",
    "read_file_table",
    "read_hmdb51",
    "read_image",
    "read_image_table",
    "read_motion",
    "read_ssv2",
    "read_video_table",
    "subsample_indices",
    "vtab_averages",
    "vtab_task",
]
