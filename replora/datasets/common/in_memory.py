"""In-memory cache of a small, decoded data set: 1,000 images of 224 x 224 need 144 MiB, those of float32 574 MiB."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor

import torch
from torch.utils.data import Dataset

from replora.datasets.samples import ImageDataset, ImageSample
from replora.memory import usable_cpus

log = logging.getLogger(__name__)

SMALL_IMAGE = 2**14  # bytes, 73 x 73 pixels; handing smaller images to threads takes longer than reading them


class InMemory(ImageDataset):
    """All samples of `dataset`, decoded at construction into one tensor.

    Args:
        dataset: Image data set, or a `torch.utils.data.Subset` of one. All images have the same shape and type.

    Raises:
        CorruptImageError: An image cannot be decoded.
    """

    def __init__(self, dataset: Dataset[ImageSample]) -> None:
        count = len(dataset)  # type: ignore[arg-type]
        first = dataset[0]["image"]
        self.images = torch.empty((count, *first.shape), dtype=first.dtype)  # (N, 3, H, W)
        self.labels = [0] * count
        self.indices = [0] * count

        def decode(position: int) -> None:
            sample = dataset[position]
            self.images[position] = sample["image"]
            self.labels[position] = sample["label"]
            self.indices[position] = sample["index"]

        if first.nbytes < SMALL_IMAGE:
            for position in range(count):
                decode(position)
            return
        with ThreadPoolExecutor(min(16, usable_cpus())) as threads:
            for _ in threads.map(decode, range(count)):
                pass  # an error of decoding is raised here and cancels the rest

    def __getitem__(self, position: int) -> ImageSample:
        """The sample. Its image is a view of the cache: copy it before changing it."""
        return {"image": self.images[position], "label": self.labels[position], "index": self.indices[position]}


def in_memory(dataset: Dataset[ImageSample], max_bytes: int, name: str = "data") -> Dataset[ImageSample]:
    """`dataset` in memory if its decoded images fit into `max_bytes`; otherwise `dataset` itself.

    Args:
        dataset: Image data set.
        max_bytes: Largest size of the decoded images, in bytes (>= 0).
        name: Name of the data set in the log.
    """
    count = len(dataset)  # type: ignore[arg-type]
    needed = count * dataset[0]["image"].nbytes
    if needed <= max_bytes:
        log.info("%s: %s images decoded into %s of memory", name, f"{count:,}", mebibytes(needed))
        return InMemory(dataset)
    log.log(
        logging.WARNING if max_bytes else logging.INFO,
        "%s: %s decoded images need %s, but the cache has %s left; they are read from disk every epoch "
        "(increase cache_bytes to keep them in memory)",
        name,
        f"{count:,}",
        mebibytes(needed),
        mebibytes(max_bytes),
    )
    return dataset


def mebibytes(count: int) -> str:
    """A number of bytes as text."""
    return f"{count / 2**20:,.1f} MiB"
