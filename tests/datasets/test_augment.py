from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch.utils.data import DataLoader
from torchvision.transforms import v2 as transforms
from torchvision.transforms.v2 import functional

from datamodules.loader import TrainSampler
from replora.datasets.common.augment import Augmented, RandomCropFlip
from replora.datasets.image import resized_crop
from replora.datasets.image.read import ImageReader, short_side
from replora.datasets.image.resized_crop import RandomResizedCropFlip
from replora.datasets.samples import ImageDataset, ImageSample


class Noise(ImageDataset):
    def __init__(self, count: int = 12) -> None:
        self.labels = [0] * count
        self.class_names = ["noise"]

    def __getitem__(self, index: int) -> ImageSample:
        generator = torch.Generator().manual_seed(index)
        image = torch.randint(0, 256, (3, 10, 14), dtype=torch.uint8, generator=generator)
        return {"image": image, "label": 0, "index": index}


def seen(seed: int = 0, world: int = 1, workers: int = 0, start: int = 0, count: int = 2) -> dict[int, torch.Tensor]:
    """(100 * epoch + index) -> the image trained on, joined over the processes."""
    images = {}
    for rank in range(world):
        dataset = Augmented(Noise(), RandomCropFlip(8), seed)
        sampler = TrainSampler(dataset, world, rank, 5, drop_last=False, seen=lambda: 0)
        loader = DataLoader(
            dataset,
            batch_size=3,
            sampler=sampler,
            num_workers=workers,
            persistent_workers=workers > 0,
            generator=torch.Generator(),
        )
        for epoch in range(start, start + count):
            sampler.set_epoch(epoch)
            for batch in loader:
                for index, image in zip(batch["index"].tolist(), batch["image"], strict=True):
                    images[100 * epoch + index] = image
    return images


def equal(one: dict[int, torch.Tensor], other: dict[int, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_augmentation_follows_from_seed_epoch_and_image_alone() -> None:
    first = seen()
    state = torch.get_rng_state()
    assert equal(first, seen())
    assert torch.equal(torch.get_rng_state(), state)
    assert not equal(first, seen(seed=1))
    assert any(not torch.equal(first[index], first[100 + index]) for index in range(12))
    resumed = seen(start=1, count=1)
    assert equal(resumed, {key: image for key, image in first.items() if key >= 100})


def test_processes_and_workers_change_nothing() -> None:
    assert equal(seen(), seen(world=2))
    assert equal(seen(), seen(workers=1))  # the worker lives through both epochs


def test_crops_and_mirrors_are_of_the_image() -> None:
    image = Noise()[0]["image"]
    found = set()
    for seed in range(300):
        crop = RandomCropFlip(8)(image, torch.Generator().manual_seed(seed))
        assert crop.shape == (3, 8, 8)
        found |= {
            (top, left, mirrored)
            for top in range(3)
            for left in range(7)
            for mirrored in (False, True)
            if torch.equal(crop.flip(-1) if mirrored else crop, image[:, top : top + 8, left : left + 8])
        }
    assert len(found) == 3 * 7 * 2  # every place, mirrored and not
    plain = RandomCropFlip(10, flip=0)(image[:, :, :10], torch.Generator())
    assert torch.equal(plain, image[:, :, :10])


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("shape", [(61, 47), (47, 61), (50, 50), (9, 31)])
def test_middle_crop_is_that_of_torchvision(tmp_path: Path, shape: tuple[int, int], interpolation: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (shape[1], shape[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    steps = [
        transforms.Resize(short_side(21), transforms.InterpolationMode(interpolation)),
        transforms.CenterCrop(21),
        transforms.PILToTensor(),
    ]
    expected = transforms.Compose(steps)(Image.open(tmp_path / "image.png"))
    assert torch.equal(ImageReader(21, interpolation, "crop").read(tmp_path / "image.png"), expected)  # type: ignore[arg-type]
    uncropped = ImageReader(21, framing="crop").read(tmp_path / "image.png", "uncropped")
    assert min(uncropped.shape[1:]) == short_side(21) == 24
    assert short_side(224) == 256


class Draws:
    """`random` of the standard library as timm calls it, over the stream of a generator."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def uniform(self, low: float, high: float) -> float:
        return resized_crop._uniform(low, high, self.generator)

    def randint(self, low: int, high: int) -> int:
        return low + resized_crop._integer(high - low + 1, self.generator)

    def choice(self, options: tuple[Any, ...]) -> Any:
        return options[resized_crop._integer(len(options), self.generator)]


@pytest.mark.parametrize("shape", [(61, 47), (47, 61), (224, 224), (300, 31), (31, 300), (9, 12)])
def test_resized_crop_is_timms_with_the_same_draws(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Adapter+ trains with it on FGVC; an image of (300, 31) has no part of the ratio, and its middle is taken."""
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    theirs = RandomResizedCropAndInterpolation(21, interpolation="random")
    for seed in range(40):
        monkeypatch.setattr("timm.data.transforms.random", Draws(seed))
        expected = functional.pil_to_tensor(theirs(Image.fromarray(pixels)))
        generator = torch.Generator().manual_seed(seed)
        assert torch.equal(RandomResizedCropFlip(21, flip=0)(image, generator), expected)
        mirrored = RandomResizedCropFlip(21, flip=1)(image, torch.Generator().manual_seed(seed))
        assert torch.equal(mirrored, expected.flip(-1))


def test_parts_have_the_areas_and_filters_of_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    parts, filters = [], []

    def seen(part: Image.Image, width: int, height: int, interpolation: str) -> torch.Tensor:
        parts.append(part.size)
        filters.append(interpolation)
        return torch.zeros(3, height, width, dtype=torch.uint8)

    monkeypatch.setattr(resized_crop, "resize", seen)
    image = torch.zeros(3, 300, 400, dtype=torch.uint8)
    for seed in range(500):
        RandomResizedCropFlip(8)(image, torch.Generator().manual_seed(seed))
    areas = [width * height / (300 * 400) for width, height in parts]
    ratios = [width / height for width, height in parts]
    assert 0.078 < min(areas) < 0.1 < 0.9 < max(areas) <= 1
    assert 0.74 < min(ratios) < 0.78 < 1.28 < max(ratios) < 1.35
    assert 200 < filters.count("bilinear") < 300
    assert set(filters) == {"bilinear", "bicubic"}
