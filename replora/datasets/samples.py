"""What data sets give and what batches hold."""

from __future__ import annotations

from typing import TypedDict

from torch import Tensor
from torch.utils.data import Dataset

# The modules below use the types above.


PADDING_LABEL = -1  # label of an example that neither losses nor metrics count, such as the padding of an evaluation
PADDING_INDEX = -1  # index or position of such an example
NO_LOSS = -100  # label of a token without a loss


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
