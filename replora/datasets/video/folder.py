"""Custom videos: a folder with a folder for each class, or a CSV file of paths and labels.

A video is a file (`VIDEO_SUFFIXES`), or a folder of numbered images.
"""

from __future__ import annotations

from pathlib import Path

from replora.datasets.common.file_table import read_file_table
from replora.datasets.common.labeled_files import FileKind, FileTable
from replora.datasets.video.decode import VIDEO_SUFFIXES, clip_files

VIDEOS = FileKind("video", VIDEO_SUFFIXES, clip_files, folders=True)


def read_video_table(root: Path) -> FileTable:
    """The table of a folder or CSV file (`read_file_table`), without opening a video."""
    return read_file_table(root, VIDEOS)
