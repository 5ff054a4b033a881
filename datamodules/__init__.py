"""Splits, subsets and batches for PyTorch Lightning: one file per benchmark, one shared base."""

from datamodules.base import BaseDataModule
from datamodules.commonsense import CommonsenseDataModule
from datamodules.digits import DigitsDataModule
from datamodules.fgvc import FGVCDataModule
from datamodules.image import ImageDataModule
from datamodules.image_folder import ImageFolderDataModule
from datamodules.image_text import ImageTextDataModule
from datamodules.video_text import VideoTextDataModule
from datamodules.vision_language import VisionLanguageDataModule
from datamodules.vl_demo import VLDemoDataModule
from datamodules.vtab import VTABDataModule

__all__ = [
    "BaseDataModule",
    "CommonsenseDataModule",
    "DigitsDataModule",
    "FGVCDataModule",
    "ImageDataModule",
    "ImageFolderDataModule",
    "ImageTextDataModule",
    "VLDemoDataModule",
    "VTABDataModule",
    "VideoTextDataModule",
    "VisionLanguageDataModule",
]
