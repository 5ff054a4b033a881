"""Custom videos: a folder with a folder for each class, or a CSV file of paths and labels.

A video is a file (`VIDEO_SUFFIXES`), or a folder of numbered images.
"""

from __future__ import annotations

from pathlib import Path

from replora.datasets.common.file_table import read_file_table
from replora.datasets.common.labelled_files import FileKind, FileTable
from replora.datasets.video.decode import VIDEO_SUFFIXES, clip_files

VIDEOS = FileKind("video", VIDEO_SUFFIXES, clip_files, folders=True)


def read_video_table(root: Path) -> FileTable:
    """Scan a folder of class folders, or read a CSV file of paths and labels; no video is opened.

    Args:
        root: Folder or CSV file.

    Raises:
        RepLoRAError: The table is invalid, see `read_file_table`.
    """
    return read_file_table(root, VIDEOS)
