"""VTAB-1K tasks from a data set repository of the Hugging Face hub, as folders or as archives of folders."""

from __future__ import annotations

import importlib
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from replora.datasets.common.archive import SUFFIXES, is_archive, unpack
from replora.datasets.errors import PrepareError
from replora.datasets.vtab.dataset import SPLITS, VTABTask
from replora.datasets.vtab.tracks import Track, image_format, track_of_format, write_marker


@dataclass(frozen=True)
class Download:
    """The files of a repository in a hidden folder, which is deleted when its tasks are installed."""

    folder: Path
    repository: str
    commit: str


def install_tasks(
    root: Path,
    download: Download,
    tasks: list[VTABTask],
    track: Track | None = None,
    advance: Callable[[], object] = lambda: None,
) -> None:
    """Move the tasks of a download to `root/<task>`, after unpacking its archives.

    Args:
        root: Folder of the tasks.
        download: Download with the same root. It is deleted at the end.
        tasks: Tasks to install. None of them is in `root` yet.
        track: Track of the images. Default: by their format, JPEG for `archive` and PNG for `clean`.
        advance: Function that is called after each unpacked file.

    Raises:
        PrepareError: An archive is corrupt or unsafe, or the repository has none of the tasks.
    """
    here = download.folder
    unpacked = here.with_name(here.name + "-unpacked")
    shutil.rmtree(unpacked, ignore_errors=True)
    files = [path for path in sorted(here.rglob("*")) if ".cache" not in path.relative_to(here).parts]
    for number, archive in enumerate(path for path in files if path.is_file() and is_archive(path)):
        unpack(archive, unpacked / str(number), advance)
    folders = _task_folders(here, unpacked)
    found = [(task, folders[name]) for task in tasks for name in task.folders[::-1] if name in folders]
    if not found:
        raise PrepareError(
            f"{download.repository} has none of {', '.join(task.name for task in tasks)}: neither folders with "
            f"{', '.join(f'{split}.txt' for split in SPLITS)} nor such folders in {', '.join(SUFFIXES)} files. It has: "
            f"{', '.join(path.relative_to(here).as_posix() for path in files[:20]) or 'nothing'}. "
            f"The download is kept in {here}; delete it if you do not need it."
        )
    source = f"huggingface.co/datasets/{download.repository}@{download.commit}"
    for task, folder in dict(found).items():
        write_marker(folder, task, _track(folder, task, track), source, {})
        folder.rename(root / task.name)
    shutil.rmtree(unpacked, ignore_errors=True)
    shutil.rmtree(here, ignore_errors=True)


def download_repository(
    root: Path, repository: str, revision: str | None = None, patterns: list[str] | None = None
) -> Download:
    """Download a data set repository to a hidden folder of `root`, or continue an interrupted download.

    Args:
        root: Folder of the tasks.
        repository: Name of the repository, OWNER/NAME.
        revision: Branch, tag or commit. Default: the newest.
        patterns: Patterns of the files, such as `*.parquet`. Default: all files.

    Raises:
        PrepareError: The name is invalid, huggingface_hub is not installed, or the download fails.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", repository):
        raise PrepareError(f"--hub {repository}: the name of a repository is OWNER/NAME, such as XiN0919/VTAB-1k.")
    try:
        hub: Any = importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise PrepareError(
            f"--hub needs huggingface_hub, which cannot be imported here ({error}). Install it with: "
            "pip install huggingface_hub"
        ) from error
    folder = root / f".hub-{repository.replace('/', '-')}"
    try:
        commit = str(hub.HfApi().dataset_info(repository, revision=revision).sha)
        hub.snapshot_download(
            repository, repo_type="dataset", revision=commit, local_dir=str(folder), allow_patterns=patterns
        )
    except Exception as error:
        raise PrepareError(
            f"{repository} could not be downloaded from the Hugging Face hub: {type(error).__name__}: {error}\n"
            f"Check the name and the connection, or download it yourself and unpack it into {root}. The same "
            "command continues the download."
        ) from error
    return Download(folder, repository, commit)


def _task_folders(*roots: Path) -> dict[str, Path]:
    """Name -> folder with the four list files, at any depth. Raises PrepareError if such a folder contains a link."""
    found: dict[str, Path] = {}
    for root in roots:
        for directory, names, files in os.walk(root):
            names.sort()
            if {f"{split}.txt" for split in SPLITS} <= set(files):
                folder = Path(directory)
                if links := [path for path in folder.rglob("*") if path.is_symlink()]:
                    raise PrepareError(f"{links[0]} is a link. Copy the files themselves, or use another repository.")
                found.setdefault(folder.name, folder)
                names.clear()
    return found


def _track(folder: Path, task: VTABTask, requested: Track | None) -> Track:
    """The track of the images, by the first image of the test list."""
    lines = (folder / "test.txt").read_text(encoding="utf-8-sig", errors="replace").strip()
    first = lines.split("\n")[0].rpartition(" ")[0]
    image = folder / first
    if not first or ".." in image.parts or not image.is_relative_to(folder) or not image.is_file():
        raise PrepareError(f"{folder / 'test.txt'} begins with {first!r}, which is not an image of {folder}.")
    track = track_of_format(image_format(image))
    if track is None or requested not in (None, track):
        raise PrepareError(
            f"{image} of {task.name} is {image_format(image) or 'neither JPEG nor PNG'}"
            + (f", as in the track {track}; --track {requested} was requested." if track else ".")
        )
    return track
