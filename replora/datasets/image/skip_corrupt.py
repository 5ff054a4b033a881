"""Images of which some cannot be read, without an end to the run."""

from __future__ import annotations

import logging

import torch

from replora.datasets.errors import CorruptImageError
from replora.datasets.samples import PADDING_LABEL, ImageDataset, ImageSample

log = logging.getLogger(__name__)


class SkipCorrupt(ImageDataset):
    """`dataset` with a black image of label -1, which neither loss nor metrics count, for one that cannot be read.

    Args:
        dataset: The images.
        image_size: Height and width of the black image, in pixels.
    """

    def __init__(self, dataset: ImageDataset, image_size: int) -> None:
        self.dataset = dataset
        self.labels = dataset.labels
        self.class_names = dataset.class_names
        self.black = torch.zeros(3, image_size, image_size, dtype=torch.uint8)

    def __getitem__(self, index: int) -> ImageSample:
        try:
            return self.dataset[index]
        except CorruptImageError as error:
            log.warning("skipped, and not counted by loss and metrics: %s", error)
            return {"image": self.black, "label": PADDING_LABEL, "index": range(len(self))[index]}
