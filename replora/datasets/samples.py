"""The types of samples and batches."""

from __future__ import annotations

from typing import TypedDict

from torch import Tensor
from torch.utils.data import Dataset

PADDING_LABEL = -1  # label of an example that neither losses nor metrics count, such as the padding of an evaluation
PADDING_INDEX = -1  # index or position of such an example
NO_LOSS = -100  # label of a token without a loss


class ImageSample(TypedDict):
    """One image of a dataset."""

    image: Tensor  # uint8 (3, H, W)
    label: int  # 0 <= label < number of classes; -1 marks padding of an evaluation set
    index: int  # position in the data set's own list, before any subset was taken; -1 for padding


class ImageBatch(TypedDict):
    """B samples. `image` is uint8 until it is on the device, where it is normalized to floating point."""

    image: Tensor  # (B, 3, H, W)
    label: Tensor  # int64 (B,)
    index: Tensor  # int64 (B,)


class VideoSample(TypedDict):
    """V views of one video at different times and places; a single view in training."""

    video: Tensor  # uint8 (V, 3, T, H, W)
    label: int  # as in ImageSample; -1 also for a video that could not be decoded, where that is allowed
    index: int


class VideoBatch(TypedDict):
    """B samples with equally many views. `video` is uint8 until it is on the device, where it is normalized."""

    video: Tensor  # (B, V, 3, T, H, W)
    label: Tensor  # int64 (B,)
    index: Tensor  # int64 (B,)


class ImageDataset(Dataset[ImageSample]):
    """A labeled image data set, whose labels are known without decoding an image."""

    labels: list[int]
    class_names: list[str]

    def __len__(self) -> int:
        return len(self.labels)
