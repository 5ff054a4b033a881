"""Take VTAB-1K tasks from a data set repository of the Hugging Face hub: folders in the layout, or archives of them."""

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
    """The files of a repository, in a hidden folder that is kept until its tasks are installed."""

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
    """Move what a download has of `tasks` to `root/<task>`, each as a whole; archives are unpacked first.

    Args:
        root: the folder of the tasks.
        download: from `download_repository` with the same root; deleted at the end.
        tasks: which; none of them is in `root` yet.
        track: what the images are. By default by their format: JPEG `archive`, PNG `clean`.
        advance: called after each file unpacked.

    Raises:
        PrepareError: an archive is damaged or unsafe, or the repository has none of the tasks.
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
            f"The download is kept in {here}; delete it if it is of no use."
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
    """The files of a data set repository, into a hidden folder of `root`; after an interruption it continues.

    Args:
        root: the folder of the tasks.
        repository: OWNER/NAME.
        revision: branch, tag or commit; the newest by default.
        patterns: which files, such as `*.parquet`; all by default.

    Raises:
        PrepareError: the name is none, huggingface_hub is not installed, or the download fails.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", repository):
        raise PrepareError(f"--hub {repository}: a repository is named OWNER/NAME, such as XiN0919/VTAB-1k.")
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
            f"Check the name and the connection, or download it by hand and unpack it into {root}. Starting again "
            "continues here."
        ) from error
    return Download(folder, repository, commit)


def _task_folders(*roots: Path) -> dict[str, Path]:
    """Name -> folder with the four list files and no link inside, at any depth."""
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


def _track(folder: Path, task: VTABTask, asked: Track | None) -> Track:
    """The track of the images, by the first of the test list."""
    lines = (folder / "test.txt").read_text(encoding="utf-8-sig", errors="replace").strip()
    first = lines.split("\n")[0].rpartition(" ")[0]
    image = folder / first
    if not first or ".." in image.parts or not image.is_relative_to(folder) or not image.is_file():
        raise PrepareError(f"{folder / 'test.txt'} begins with {first!r}, which is no image of {folder}.")
    track = track_of_format(image_format(image))
    if track is None or asked not in (None, track):
        raise PrepareError(
            f"{image} of {task.name} is {image_format(image) or 'neither JPEG nor PNG'}"
            + (f", as in the track {track}; asked for was --track {asked}." if track else ".")
        )
    return track
