"""Every filter with every augmentation: what a model sees is normalized once, whoever resized it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from datamodules import FGVCDataModule, ImageFolderDataModule
from datamodules.image.base import ImageDataModule
from replora.errors import RepLoRAError
from tests.fake_data import write_fgvc_task, write_image_folder


def fgvc(root: Path, **options: Any) -> ImageDataModule:
    write_fgvc_task(root, "cub_200_2011")
    return FGVCDataModule(root, check_sizes=False, **options)


def folder(root: Path, **options: Any) -> ImageDataModule:
    return ImageFolderDataModule(write_image_folder(root / "pets"), test_fraction=0.3, **options)


@pytest.mark.parametrize("interpolation", ["bicubic", "tf1_bilinear"])
@pytest.mark.parametrize(
    ("build", "augmentation"),
    [
        (fgvc, {"augmentation": "crop_flip"}),
        (fgvc, {"augmentation": "resized_crop_flip"}),
        (fgvc, {"augmentation": "resized_crop_flip", "framing": "pad", "skip_corrupt": True}),
        (fgvc, {"augment": False}),
        (folder, {"augmentation": "crop_flip"}),
        (folder, {"augmentation": "none", "skip_corrupt": True}),
    ],
)
def test_batches_are_normalized_once(
    build: Any, augmentation: dict[str, Any], interpolation: str, tmp_path: Path
) -> None:
    data = build(
        tmp_path,
        image_size=14,
        batch_size=6,
        num_workers=0,
        interpolation=interpolation,
        normalization="half",
        **augmentation,
    )
    data.setup("fit")
    for loader in (data.train_dataloader(), data.test_dataloader()):
        for batch in loader:
            image = data.on_after_batch_transfer(batch, 0)["image"]
            assert image.dtype == torch.float32
            assert image.shape[1:] == (3, 14, 14)
            assert -1 <= image.min() < -0.2
            assert 0 < image.max() <= 1


def test_an_augmentation_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(
        RepLoRAError, match=r"augmentation='resized' is not an option\. Did you mean 'resized_crop_flip'"
    ):
        fgvc(tmp_path, augmentation="resized")


def test_no_augmentation_has_no_name(tmp_path: Path) -> None:
    for options, name in (
        ({}, "crop_flip"),
        ({"augmentation": "resized_crop_flip"}, "resized_crop_flip"),
        ({"augment": False}, "none"),
    ):
        assert fgvc(tmp_path / name, **options).describe()["augmentation"] == name
