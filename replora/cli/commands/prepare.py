"""`replora-cli prepare ...`: check data sets, or get what is missing of them."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from replora.datasets.prepare.report import DataReport, Report
from replora.cli.arguments import split_arguments
from replora.datasets.common.paths import data_root
from replora.errors import RepLoRAError
from replora.io import UnreadableFileError, check_output, read_text, replace_text
from replora.progress import progress_bar


def name_root(arguments: list[str]) -> list[str]:
    """`images photos` -> `images --root=photos`: a check takes the place of the data in both forms.

    Args:
        arguments: Arguments behind `prepare`.

    Raises:
        RepLoRAError: Two different places are given.
    """
    if not arguments or arguments[0] == "clip-features":  # which reads from one place and writes to another
        return arguments
    plain, options = split_arguments(arguments[1:])
    if not plain:
        return arguments
    place, *more = plain
    named: list[str] = []  # what --root says
    for position, option in enumerate(options):
        name, equals, value = option.partition("=")
        if name == "--root":
            named += [value] if equals else options[position + 1 : position + 2]
    if other := [name for name in named if Path(name).expanduser().absolute() != Path(place).expanduser().absolute()]:
        raise RepLoRAError(
            f"prepare {arguments[0]}: two places are given for the data, {place} and --root {other[0]}. Give one of "
            "them."
        )
    return [arguments[0], f"--root={place}", *more, *options]


def prepare_vtab(
    root: Path | None = None,
    tasks: list[str] | str | None = None,
    from_tfds: bool = False,
    hub: str | None = None,
    track: Literal["archive", "clean"] | None = None,
    tfds_dir: Path | None = None,
    check_sizes: bool = True,
    unreadable: Path = Path("unreadable.txt"),
) -> None:
    """Check a copy of VTAB-1K, image by image; with --from_tfds or --hub get what is missing first.

    Prints a table, everything that is wrong and how to fix it. The exit status is 1 if something is wrong. A task is
    written beside its place and moved there when it is complete; after an interruption the same command continues.

    Args:
        root: The folder of the tasks; `--root` may be omitted. Default: the environment
            variable REPLORA_DATA, else `data`.
        tasks: Names separated by commas, such as dtd,kitti. Default: all 19.
        from_tfds: Build what is missing from TensorFlow Datasets (pip install "replora[tfds]").
        hub: Take what is missing from this data set repository of the Hugging Face hub, as OWNER/NAME.
        track: What to build: archive writes JPEG of quality 75, as published rows used; clean writes lossless PNG.
            Default: archive. For a check: what the images must be. Default: either.
        tfds_dir: Where TensorFlow Datasets keeps its data. Default: its own.
        check_sizes: Compare the number of images with the table; false for data made smaller on purpose.
        unreadable: File to write, if there are files that cannot be read: all of them, each with its reason.
    """
    from replora.datasets.prepare.vtab import prepare_vtab as prepare
    from replora.datasets.prepare.vtab import remedy

    home = data_root(root)
    reports = prepare(home, _names(tasks), from_tfds, hub, track, tfds_dir, check_sizes)
    _print_or_exit(reports, "task", remedy(reports, home), unreadable=unreadable)


def prepare_fgvc(
    root: Path | None = None,
    tasks: list[str] | str | None = None,
    check_sizes: bool = True,
    unreadable: Path = Path("unreadable.txt"),
) -> None:
    """Check the five FGVC data sets: split files, classes, sizes and every image.

    Prints a table and everything that is wrong. The exit status is 1 if something is wrong.

    Args:
        root: The folder of the data sets; `--root` may be omitted. Default: the environment
            variable REPLORA_DATA, else `data`.
        tasks: Names separated by commas, such as nabirds,stanford_cars. Default: all five.
        check_sizes: Compare the number of images with VPT's splits; false for data made smaller on purpose.
        unreadable: File to write, if there are files that cannot be read: all of them, each with its reason.
    """
    from replora.datasets.image.fgvc import FGVC_TASKS, fgvc_task
    from replora.datasets.prepare.images import check_fgvc

    chosen = [fgvc_task(name) for name in _names(tasks) or FGVC_TASKS]
    _print_or_exit(_note_small_tests(check_fgvc(data_root(root), chosen, check_sizes)), unreadable=unreadable)


def prepare_images(
    root: Path | None = None,
    val_fraction: float = 0.1,
    test_fraction: float = 0.1,
    split_seed: int = 0,
    unreadable: Path = Path("unreadable.txt"),
) -> None:
    """Check a folder of class folders, or a CSV file of path,label: every image, and the splits that a run makes.

    Prints a table and everything that is wrong. The exit status is 1 if something is wrong.

    Args:
        root: The folder or the CSV file; `--root` may be omitted.
        val_fraction: Fraction of the training part, in [0, 1), that becomes `val` if there is none, as in training.
        test_fraction: The same for `test`.
        split_seed: Which images these are.
        unreadable: File to write, if there are files that cannot be read: all of them, each with its reason.
    """
    from replora.datasets.prepare.images import check_image_folder

    given = _given(root, "images")
    reports = _note_small_tests(check_image_folder(given, val_fraction, test_fraction, split_seed))
    look = f"replora-cli plot image_folder.yaml --data.root {shlex.quote(str(given))}"
    reports[0].notes.append(
        f"training mirrors images at random: {look} shows some. If a mirrored one would belong to another class (text, "
        "arrows, left and right), train with --data.augmentation crop"
    )
    _print_or_exit(reports, unreadable=unreadable)


def prepare_commonsense(
    root: Path | None = None,
    tasks: list[str] | str | None = None,
    rebuild: bool = False,
    hub: str | None = None,
    check_sizes: bool = True,
) -> None:
    """Check the eight commonsense tasks of LLM-Adapters, record by record; with --rebuild or --hub get what is missing.

    Prints the number of records of each file, how many are repeated or in both files of a task, everything that is
    wrong and how to fix it. The exit status is 1 if something is wrong or missing.

    Args:
        root: The folder of the tasks' folders; `--root` may be omitted. Default: the environment
            variable REPLORA_DATA, else `data`.
        tasks: Names separated by commas, such as ARC-Easy,boolq. Default: all eight.
        rebuild: Make what is missing from the original data sets on the Hugging Face hub (pip install pyarrow).
        hub: Take what is missing from this data set repository of the Hugging Face hub, as OWNER/NAME: the files of the
            tasks, or commonsense_170k.json (for --data.union_file).
        check_sizes: Compare the number of records with the published ones; false for data made smaller on purpose.
    """
    from replora.datasets.prepare.commonsense import prepare_commonsense as prepare
    from replora.datasets.prepare.commonsense import remedy

    home = data_root(root)
    reports = prepare(home, _names(tasks), rebuild, hub, check_sizes)
    _print_or_exit(reports, "task", remedy(reports, home))


def prepare_ssv2(
    root: Path | None = None, check_sizes: bool = True, decode: bool = True, unreadable: Path = Path("unreadable.txt")
) -> None:
    """Check Something-Something-V2: the official lists, classes, sizes and every video.

    Prints a table and everything that is wrong. The exit status is 1 if something is wrong.

    Args:
        root: The folder of the lists and the videos; `--root` may be omitted. Default: the environment
            variable REPLORA_DATA, else `data`.
        check_sizes: Compare the numbers of classes and videos with the official ones; false for data made smaller.
        decode: Decode every video to its end, which takes hours for all of them; false checks that they are there.
        unreadable: File to write, if there are files that cannot be read: all of them, each with its reason.
    """
    from replora.datasets.prepare.videos import check_ssv2

    _print_or_exit(check_ssv2(data_root(root), check_sizes, decode), unreadable=unreadable)


def prepare_hmdb51(
    root: Path | None = None, check_sizes: bool = True, decode: bool = True, unreadable: Path = Path("unreadable.txt")
) -> None:
    """Check HMDB51: the three official splits, classes, sizes and every video.

    Prints a table and everything that is wrong. The exit status is 1 if something is wrong.

    Args:
        root: The folder of the lists and the videos; `--root` may be omitted. Default: the environment
            variable REPLORA_DATA, else `data`.
        check_sizes: Compare the numbers of classes and videos with the official ones; false for data made smaller.
        decode: Decode every video to its end; false checks that they are there.
        unreadable: File to write, if there are files that cannot be read: all of them, each with its reason.
    """
    from replora.datasets.prepare.videos import check_hmdb51

    _print_or_exit(check_hmdb51(data_root(root), check_sizes, decode), unreadable=unreadable)


def prepare_videos(
    root: Path | None = None,
    val_fraction: float = 0.1,
    test_fraction: float = 0.1,
    split_seed: int = 0,
    decode: bool = True,
    unreadable: Path = Path("unreadable.txt"),
) -> None:
    """Check a folder of class folders, or a CSV file of path,label: every video, and the splits that a run makes.

    Prints a table and everything that is wrong. The exit status is 1 if something is wrong.

    Args:
        root: The folder or the CSV file; `--root` may be omitted.
        val_fraction: Fraction of the training part, in [0, 1), that becomes `val` if there is none, as in training.
        test_fraction: The same for `test`.
        split_seed: Which videos these are.
        decode: Decode every video to its end; false checks that they are there.
        unreadable: File to write, if there are files that cannot be read: all of them, each with its reason.
    """
    from replora.datasets.prepare.videos import check_video_folder

    _print_or_exit(
        _note_small_tests(check_video_folder(_given(root, "videos"), val_fraction, test_fraction, split_seed, decode)),
        unreadable=unreadable,
    )


def _given(root: Path | None, word: str) -> Path:
    """The place of custom data, which has no default."""
    if root is None:
        raise RepLoRAError(
            f"prepare {word} needs a folder of class folders, or a CSV file of path,label: replora-cli prepare {word} "
            "ROOT"
        )
    return root.expanduser()


def _print_or_exit(
    reports: Sequence[Report], heading: str = "data set", remedy: str = "", unreadable: Path | None = None
) -> None:
    """Print what was found and list unreadable files; exit with status 1 if something is wrong or missing."""
    from replora.datasets.prepare.report import print_reports

    print_reports(reports, heading, remedy)
    if unreadable is not None and (lines := [line for report in reports for line in report.unreadable]):
        check_output(unreadable, None, is_own=_is_list)
        replace_text(unreadable, "".join(f"{line}\n" for line in lines))
        print(f"all {len(lines):,} files that cannot be read: {unreadable}")
    if any(report.state != "complete" for report in reports):
        sys.exit(1)


def _is_list(file: Path) -> bool:
    """Whether a file is a list of unreadable files that an earlier check wrote."""
    try:
        return all(" cannot be " in line for line in read_text(file).splitlines())
    except UnreadableFileError:
        return False


def _note_small_tests(reports: list[DataReport]) -> list[DataReport]:
    """Add what a test set of few files can tell: with 100, an accuracy of 90 % may be one of 83 to 94 %."""
    from replora.evaluation.significance import wilson_interval

    for report in reports:
        count = report.sizes.get("test", 0)
        right = round(0.9 * count)
        low, high = wilson_interval(right, count)
        if count and high - low > 0.1:
            report.notes.append(
                f"{count:,} test files are few: an accuracy of {right / count:.1%} ({right} of {count}) would have a "
                f"95 % confidence interval from {low:.1%} to {high:.1%} (Wilson)"
            )
    return reports


def prepare_clip_features(
    source: Path,
    out: Path,
    encoder: Literal["rn101", "vit_b32"] = "rn101",
    checkpoint: Path | None = None,
    seconds: float = 1.5,
    fps: float | None = None,
    batch_size: int = 32,
    device: str = "auto",
    progress: bool = True,
) -> None:
    """Extract CLIP features of images or videos for the vision-and-language tasks; goes on where it stopped.

        replora-cli prepare clip-features images/coco data/COCO/clip_features/data_clip_RN101_att
        replora-cli prepare clip-features videos/tv data/video/vis_features/tv/clip-vit --encoder vit_b32

    rn101 writes a file NAME.h5 an image, a 7 x 7 grid of 2048 numbers; vit_b32 a file NAME.npz a video, 512 numbers a
    frame. Files that are there are checked and not made again. Images and videos that cannot be read are listed at the
    end, which is then an error; the others are done. Videos need PyAV (pip install av).

    Args:
        source: A folder of images or videos, searched with the folders inside.
        out: The folder to write.
        encoder: rn101, CLIP ResNet-101's last grid, as VL-Adapter uses it for images; vit_b32, CLIP ViT-B/32's
            embedding, as VALUE uses it for videos.
        checkpoint: The encoder's weights, timm's model.safetensors or its folder; by default they are fetched from the
            hub.
        seconds: Time between two frames of a video, above 0. The folder records it, and takes no other later.
        fps: Frames per second of folders of numbered images, which hold no times: 3 for TVQA's.
        batch_size: Images or frames at once, at least 1.
        device: cpu, cuda, cuda:1, ...; auto is the first GPU if there is one.
        progress: Show a progress bar.
    """
    from replora.datasets.vision_language import clip_encoder as clip_features

    clip_features.check_options(seconds, batch_size, fps)
    names = clip_features.find_sources(source.expanduser(), encoder, fps)
    options = {"encoder": encoder} | ({"seconds": seconds, "fps": fps} if encoder == "vit_b32" else {})
    clip_features.check_same_extraction(out.expanduser(), options)
    missing = clip_features.missing_features(names, out.expanduser(), encoder)
    print(f"{len(names):,} in {source}, {len(names) - len(missing):,} of them are done")
    if not missing:
        return
    model = clip_features.load_encoder(encoder, checkpoint, device)
    clip_features.check_same_extraction(out.expanduser(), options | {"weights": model.weights})
    with progress_bar(encoder, len(missing), progress) as advance:
        unread = clip_features.extract(missing, out.expanduser(), model, seconds, batch_size, advance, fps)
    print(f"{len(missing) - len(unread):,} new files of features are in {out}")
    if unread:
        raise RepLoRAError(
            f"{len(unread):,} of {len(names):,} files have no features. Repair or remove them, then give the command "
            "again:\n  " + "\n  ".join(unread.values())
        )


def _names(names: list[str] | str | None) -> list[str] | None:
    """Names separated by commas, as a list."""
    return [name.strip() for name in names.split(",") if name.strip()] if isinstance(names, str) else names
