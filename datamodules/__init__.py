"""Splits, subsets and batches for PyTorch Lightning: one file per benchmark, one shared base."""

from datamodules.base import BaseDataModule
from datamodules.image.base import ImageDataModule
from datamodules.image.digits import DigitsDataModule
from datamodules.image.fgvc import FGVCDataModule
from datamodules.image.folder import ImageFolderDataModule
from datamodules.image.small_images import SmallImagesDataModule
from datamodules.image.vtab import VTABDataModule
from datamodules.text.commonsense import CommonsenseDataModule
from datamodules.video.base import VideoDataModule
from datamodules.video.folder import VideoFolderDataModule
from datamodules.video.hmdb51 import HMDB51DataModule
from datamodules.video.motion import MotionDataModule
from datamodules.video.ssv2 import SSv2DataModule
from datamodules.vision_language.base import VisionLanguageDataModule
from datamodules.vision_language.demo import VLDemoDataModule
from datamodules.vision_language.image_text import ImageTextDataModule
from datamodules.vision_language.video_text import VideoTextDataModule

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
