"""The types of samples and batches."""

from __future__ import annotations

from typing import Literal, TypedDict

from torch import Tensor
from torch.utils.data import Dataset

PADDING_LABEL = -1  # label of an example that neither losses nor metrics count, such as the padding of an evaluation
PADDING_INDEX = -1  # index or position of such an example
NO_LOSS = -100  # label of a token without a loss
# How an image is read: as the square of the evaluation, larger for a square to be cut out, or at its own size.
ImageForm = Literal["square", "uncropped", "original"]


class ImageSample(TypedDict):
    """One image of a dataset."""

    image: Tensor  # (3, H, W), uint8, or float32 that is normalized already
    label: int  # 0 <= label < number of classes; -1 marks padding of an evaluation set
    index: int  # position in the data set's own list, before any subset was taken; -1 for padding


class ImageBatch(TypedDict):
    """B samples. An `image` of uint8 is normalized to floating point once it is on the device."""

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
