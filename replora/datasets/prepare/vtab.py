"""`replora-cli prepare vtab`: build or download what is missing, check everything, say what is wrong and what to do."""

from __future__ import annotations

import shlex
from pathlib import Path

from replora.datasets.errors import DatasetNotFoundError, PrepareError
from replora.datasets.vtab.dataset import ARCHIVE_SOURCES, SPLITS, VTAB_TASKS, VTABTask, find_task_folder, vtab_task
from replora.datasets.vtab.hub import download_repository, install_tasks
from replora.datasets.vtab.tfds import build_task, import_tfds, open_builder
from replora.datasets.vtab.tracks import Track
from replora.datasets.vtab.verify import TaskCheck, TaskReport
from replora.progress import progress_bar


def prepare_vtab(
    root: Path,
    tasks: list[str] | None = None,
    from_tfds: bool = False,
    hub: str | None = None,
    track: Track | None = None,
    tfds_dir: Path | None = None,
    check_sizes: bool = True,
) -> list[TaskReport]:
    """Build or download the tasks that `root` lacks, where that is asked for, then check all of them.

    Args:
        root: the folder of the tasks. It is made if something is built or downloaded.
        tasks: names; all 19 if None.
        from_tfds: build what is missing from TensorFlow Datasets.
        hub: OWNER/NAME of a Hugging Face data set repository to take what is missing from.
        track: what to build, `archive` if None; when checking, what the images must be, either if None.
        tfds_dir: the data folder of TensorFlow Datasets; its own default if None.
        check_sizes: compare the number of images with the table.

    Returns:
        A report for each task. A task that could not be built is missing, with the reason among its problems; the
        others are built all the same.

    Raises:
        UnknownTaskError: a name is not one of the 19.
        PrepareError: TensorFlow Datasets is not installed, or the download from the hub failed.
    """
    chosen = [vtab_task(name) for name in dict.fromkeys(tasks or VTAB_TASKS)]
    if from_tfds and hub:
        raise PrepareError("--from_tfds and --hub were both given: choose one source for what is missing.")
    missing = [task for task in chosen if not _is_there(root, task)]
    failed: dict[VTABTask, str] = {}
    if missing and from_tfds:
        import_tfds()
    if missing and (from_tfds or hub):
        root.mkdir(parents=True, exist_ok=True)
        if hub:
            _install(root, missing, hub, track)
        else:
            failed = _build_all(root, missing, track or "archive", tfds_dir, check_sizes)
    checks = [TaskCheck(root, task, track, check_sizes) for task in chosen]
    for check in checks:
        if check.report.task in failed:
            check.report.problems.append(failed[check.report.task])
    reports = []
    with progress_bar("", sum(map(len, checks))) as advance:
        for check in checks:
            advance(0, f"check {check.report.task.name}")
            reports.append(check.run(advance))
    return reports


# Downloads show progress bars of their own: ours begin after them.


def _install(root: Path, tasks: list[VTABTask], hub: str, track: Track | None) -> None:
    download = download_repository(root, hub)
    with progress_bar(f"unpack {hub}", None) as advance:
        install_tasks(root, download, tasks, track, advance)


def _build_all(
    root: Path, tasks: list[VTABTask], track: Track, tfds_dir: Path | None, check_sizes: bool
) -> dict[VTABTask, str]:
    """Why each task that could not be built could not."""
    failed = {}
    for task in tasks:
        try:
            _build(root, task, track, tfds_dir, check_sizes)
        except PrepareError as error:
            failed[task] = str(error)
    return failed


def _build(root: Path, task: VTABTask, track: Track, tfds_dir: Path | None, check_sizes: bool) -> None:
    builder = open_builder(task, tfds_dir)
    with progress_bar(f"write {task.name}", sum(task.size(split) or 0 for split in SPLITS)) as advance:
        build_task(root, task, track, builder, check_sizes, advance)


def _is_there(root: Path, task: VTABTask) -> bool:
    try:
        find_task_folder(root, task)
    except DatasetNotFoundError:
        return False
    return True


# --- what is printed


def remedy(reports: list[TaskReport], root: Path) -> str:
    """What to do about the reports, with the commands to copy."""
    complete = [report for report in reports if report.state == "complete"]
    lines = [f"{len(complete)} of {len(reports)} tasks are complete in {root}."]
    corrupt = [report for report in reports if report.state == "corrupt"]
    todo = [report for report in reports if report.state in ("missing", "corrupt")]
    if corrupt:
        folders = " ".join(shlex.quote(str(report.folder)) for report in corrupt)
        lines.append(
            f"Corrupt: {_names(corrupt)}. Move them away or delete them, then get them again:\n  rm -r {folders}"
        )
    other = [report for report in reports if report.state == "other track"]
    if other:
        track = other[0].track_wanted
        lines.append(
            f"Of the track {other[0].track}, not {track}: {_names(other)}. Their results cannot be compared; give the "
            f"track {track} a folder of its own (another --root)."
        )
    if todo:
        command = f"replora-cli prepare vtab --root {shlex.quote(str(root))} --tasks {_names(todo, ',')}"
        lines += [
            f"To get {_names(todo)}:",
            f'  {command} --from_tfds true      (needs: pip install "replora[tfds]")',
            f"  {command} --hub OWNER/NAME      (a copy on the Hugging Face hub, such as XiN0919/VTAB-1k)",
            f"  or by hand into {root}: {ARCHIVE_SOURCES}.",
        ]
    return "\n".join(lines)


def _names(reports: list[TaskReport], separator: str = ", ") -> str:
    return separator.join(report.task.name for report in reports)
