"""Images of a filter that does not round its pixels."""

from __future__ import annotations

from torch import Tensor
from torch.utils.data import Dataset

from replora.datasets.samples import ImageDataset, ImageSample


class Normalized(ImageDataset):
    """`dataset` with (pixel / 255 - mean) / std as float32.

    Elsewhere an image stays uint8 until it is on the device, and what the Trainer converts to half precision there has
    been normalized. Pixels that are not rounded would be converted before.

    Args:
        dataset: Images with pixels in [0, 255].
        mean, std: Mean and standard deviation of the channels, (3, 1, 1).
    """

    def __init__(self, dataset: Dataset[ImageSample], mean: Tensor, std: Tensor) -> None:
        self.dataset = dataset
        self.mean = mean
        self.std = std

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, position: int) -> ImageSample:
        sample = self.dataset[position]
        return {**sample, "image": sample["image"].div(255).sub_(self.mean).div_(self.std)}
