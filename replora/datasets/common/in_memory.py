"""Decode a small data set once and keep it in memory: 1,000 images of 224 x 224 are 144 MiB."""

from __future__ import annotations

import logging
import os
from concurrent.futures import ThreadPoolExecutor

import torch
from torch.utils.data import Dataset

from replora.datasets.samples import ImageDataset, ImageSample

log = logging.getLogger(__name__)


class InMemory(ImageDataset):
    """All samples of `dataset`, decoded now, by threads, into one uint8 tensor.

    Args:
        dataset: an image data set, or a `torch.utils.data.Subset` of one; every image has the same shape.

    Raises:
        CorruptImageError: one of the images cannot be decoded.
    """

    def __init__(self, dataset: Dataset[ImageSample]) -> None:
        count = len(dataset)  # type: ignore[arg-type]
        self.images = torch.empty((count, *dataset[0]["image"].shape), dtype=torch.uint8)  # (N, 3, H, W)
        self.labels = [0] * count
        self.indices = [0] * count

        def decode(position: int) -> None:
            sample = dataset[position]
            self.images[position] = sample["image"]
            self.labels[position] = sample["label"]
            self.indices[position] = sample["index"]

        with ThreadPoolExecutor(min(16, usable_cpus())) as threads:
            for _ in threads.map(decode, range(count)):
                pass  # a failed decode is raised here, and what still waits is cancelled

    def __getitem__(self, position: int) -> ImageSample:
        """The sample; its image is a view of the cache, to be copied before it is changed."""
        return {"image": self.images[position], "label": self.labels[position], "index": self.indices[position]}


def in_memory(dataset: Dataset[ImageSample], max_bytes: int, name: str = "data") -> Dataset[ImageSample]:
    """`dataset` held in memory if its decoded images fit into `max_bytes`, else unchanged (read from disk every epoch).

    Args:
        dataset: the data set.
        max_bytes: the bound on the decoded images, in bytes; 0 holds nothing.
        name: what the log calls the data set.
    """
    count = len(dataset)  # type: ignore[arg-type]
    needed = count * dataset[0]["image"].nbytes
    if needed <= max_bytes:
        log.info("%s: %s images decoded into %s of memory", name, f"{count:,}", mebibytes(needed))
        return InMemory(dataset)
    log.log(
        logging.WARNING if max_bytes else logging.INFO,
        "%s: %s images need %s decoded, the cache has %s left: they are read from disk every epoch "
        "(raise cache_bytes to hold them in memory)",
        name,
        f"{count:,}",
        mebibytes(needed),
        mebibytes(max_bytes),
    )
    return dataset


def mebibytes(count: int) -> str:
    """A number of bytes for people to read."""
    return f"{count / 2**20:,.1f} MiB"


def usable_cpus() -> int:
    """The CPU cores that this process may use (a cluster often grants fewer than the machine has)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
