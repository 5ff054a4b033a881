"""Splits, subsets and batches for PyTorch Lightning: one file per benchmark, one shared base."""

from datamodules.base import BaseDataModule
from datamodules.commonsense import CommonsenseDataModule
from datamodules.digits import DigitsDataModule
from datamodules.fgvc import FGVCDataModule
from datamodules.hmdb51 import HMDB51DataModule
from datamodules.image import ImageDataModule
from datamodules.image_folder import ImageFolderDataModule
from datamodules.image_text import ImageTextDataModule
from datamodules.motion import MotionDataModule
from datamodules.small_images import SmallImagesDataModule
from datamodules.ssv2 import SSv2DataModule
from datamodules.video import VideoDataModule
from datamodules.video_folder import VideoFolderDataModule
from datamodules.video_text import VideoTextDataModule
from datamodules.vision_language import VisionLanguageDataModule
from datamodules.vl_demo import VLDemoDataModule
from datamodules.vtab import VTABDataModule

__all__ = [
    "BaseDataModule",
    "CommonsenseDataModule",
    "DigitsDataModule",
    "FGVCDataModule",
    "HMDB51DataModule",
    "ImageDataModule",
    "ImageFolderDataModule",
    "ImageTextDataModule",
    "MotionDataModule",
    "SSv2DataModule",
    "SmallImagesDataModule",
    "VLDemoDataModule",
    "VTABDataModule",
    "VideoDataModule",
    "VideoFolderDataModule",
    "VideoTextDataModule",
    "VisionLanguageDataModule",
]
