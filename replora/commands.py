"""The verbs of `replora-cli` that need no Trainer configuration: plain functions, their arguments are the options."""

from __future__ import annotations

import logging
import os
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from replora.datasets.prepare_images import DataReport

from replora.errors import RepLoRAError

# The quickstart's methods (files of configs/adapter), each at a learning rate that was among its best on validation
# images (results/ablation, results/digits_low_data).
QUICKSTART_METHODS = {"linear_probe": 0.1, "lora": 0.01, "replora": 0.01}
# Its training sets, with options that give both 200 steps.
QUICKSTART_DATA = {
    "few": ["--data.shots=5", "--data.batch_size=10", "--trainer.max_epochs=40", "--trainer.check_val_every_n_epoch=4"],
    "all": [],
}


def configs() -> None:
    """List the configurations that ship with the package, one line each."""
    from replora.cli import packaged_configs

    files = packaged_configs()
    width = max(map(len, files))
    for name, file in files.items():
        print(f"{name:<{width}}  {file.read_text(encoding='utf-8').splitlines()[0].lstrip('# ')}")


def predict_files(
    run: Path,
    images: list[str] | str,
    out: Path = Path("predictions.csv"),
    top_k: int = 5,
    contact_sheet: Path | None = None,
    checkpoint: Path | None = None,
    skip_corrupt: bool = False,
    batch_size: int | None = None,
    device: str = "auto",
    progress: bool = True,
) -> None:
    """Classify image or video files with a trained run.

    Reads the run's fit.yaml and adapter.safetensors, merges the adapter into the backbone, and treats files as the
    run's evaluation does. Writes a line a file: path, class and probabilities.

    Args:
        run: The run's directory.
        images: Image files, folders (searched with the folders inside) and patterns such as "photos/**/*.jpg"; videos
            for a run on videos.
        out: The file to write, .csv or .json.
        top_k: How many classes a file to write, the likeliest first. 0 writes all: in CSV a column a class.
        contact_sheet: A PNG file for a picture of the first 40 files with their predictions.
        checkpoint: The backbone's weights, where they are not where the run had them.
        skip_corrupt: Leave out files that cannot be read, and name and count them, instead of stopping at the first.
        batch_size: Files at once, at least 1. Default: 64 images, or 2 videos, each with all views of the test.
        device: cpu, cuda, cuda:1, ...; auto is the first GPU if there is one.
        progress: Show a progress bar.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from replora import prediction
    from replora.runs import kind_of

    videos = kind_of(run) == "VideoClassification"
    batch_size = (2 if videos else 64) if batch_size is None else batch_size
    prediction.check_options(out, top_k, batch_size)
    asked = [images] if isinstance(images, str) else images
    paths = prediction.find_videos(asked) if videos else prediction.find_images(asked)
    classifier = prediction.load_classifier(run, checkpoint, device)
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
    with Progress(*columns, disable=not progress) as bars:
        bar = bars.add_task("predict", total=len(paths))
        found = prediction.classify(classifier, paths, batch_size, skip_corrupt, lambda count: bars.advance(bar, count))
    prediction.write(out, found, classifier.class_names, top_k)
    print(f"{len(found.paths):,} predictions are in {out}")
    for path, reason in found.skipped.items():
        print(f"skipped: {path}: {reason}")
    if found.skipped:
        print(f"{len(found.skipped):,} of {len(paths):,} files could not be read")
    if contact_sheet is not None:
        from replora.reports.contact_sheet import draw

        best = found.probabilities.max(dim=1)
        names = [classifier.class_names[i] for i in best.indices.tolist()]
        draw(contact_sheet, found.pictures, names, best.values.tolist(), [path.name for path in found.paths])
        print(f"contact sheet: {contact_sheet}")


def export(
    source: Path,
    out: Path | None = None,
    format: Literal["peft", "adapter"] = "peft",
    base: str | None = None,
    checkpoint: Path | None = None,
    license: str = "unknown",
) -> None:
    """Write a trained adapter as a folder of the peft library, or as a small file of A and B.

        replora-cli export runs/NAME --out adapter_for_peft
        replora-cli export adapter.safetensors --base models/llama --out adapter_for_peft

    The folder is plain LoRA: peft.PeftModel.from_pretrained(base, folder) opens it, and nothing of this package is
    needed to use it. Heads are in it.

    Args:
        source: A run's directory, or an adapter file of replora.save_adapter together with --base.
        out: The folder to write, or the file with --format adapter. Default: peft or deployed.safetensors in the run's
            directory; beside an adapter file. Nothing is overwritten.
        format: peft, or adapter: one file of our own for use alone, without the MLPs that only training needs.
        base: For an adapter file: what it was trained on, a folder or hub name of transformers or a model of timm.
        checkpoint: For a run or a timm base: the backbone's weights, where they are not where the run or timm has them.
        license: Of the adapter, for the model card: an identifier of the Hugging Face hub such as apache-2.0.
    """
    from replora import deployment

    out = out or _beside(source, "peft" if format == "peft" else "deployed.safetensors")
    deployment.export(deployment.load_trained(source, base, checkpoint), out, format, license)
    print(f"{'adapter for peft' if format == 'peft' else 'adapter'}: {out}")


def merge(
    source: Path,
    out: Path | None = None,
    base: str | None = None,
    checkpoint: Path | None = None,
    license: str = "unknown",
) -> None:
    """Fold a trained adapter into its backbone, and write the model for timm or transformers.

        replora-cli merge runs/NAME --out model
        replora-cli merge adapter.safetensors --base models/llama --out model

    A timm model is opened by timm.create_model("local-dir:model", pretrained=True), a transformers model by its class's
    from_pretrained("model"). The merged model's outputs are compared with the unmerged one's before it is written.

    Args:
        source: A run's directory, or an adapter file of replora.save_adapter together with --base.
        out: The folder to write. Default: merged in the run's directory; beside an adapter file. Nothing is
            overwritten.
        base: For an adapter file: what it was trained on, a folder or hub name of transformers or a model of timm.
        checkpoint: For a run or a timm base: the backbone's weights, where they are not where the run or timm has them.
        license: Of the merged model, for its card: an identifier of the Hugging Face hub such as apache-2.0.
    """
    from replora import deployment

    out = out or _beside(source, "merged")
    difference = deployment.merge(deployment.load_trained(source, base, checkpoint), out, license)
    print(f"merged and unmerged outputs differ by at most {difference:.1e} of their size")
    print(f"model: {out}")


def _beside(source: Path, name: str) -> Path:
    """RUN -> RUN/name, file.safetensors -> file_name."""
    return source.with_name(f"{source.stem}_{name}") if source.is_file() else source / name


def plot(source: str, output: Path | None = None, data: dict[str, Any] | None = None, images: int = 24) -> None:
    """Draw a run's learning curves and confusion matrix, or training images of any configuration.

        replora-cli plot runs/NAME
        replora-cli plot vtab.yaml --data.root vtab-1k --data.task dtd

    A run gives curves.png, confusion.png (where `predict` has written its predictions.csv) and batch.png; a
    configuration gives batch.png.

    Args:
        source: A run's directory, or a configuration file of one's own or from the package.
        output: Directory of the pictures. Default: RUN/plots, and the current directory for a configuration.
        data: Options of the data that replace those of the configuration, for example --data.task dtd.
        images: How many training images to show, from 1 to 100.
    """
    from replora.cli import find_config
    from replora.reports.pictures import draw_batch, draw_confusion, draw_learning_curves
    from replora.reports.results import read_results

    run = Path(source)
    pictures: list[Path] = []
    has_images = True
    if run.is_dir():
        has_images = "image_size" in read_results(run)["data"]
        output = output or run / "plots"
        output.mkdir(parents=True, exist_ok=True)
        pictures.append(draw_learning_curves(run, output / "curves.png"))
        if (run / "predictions.csv").is_file():
            pictures.append(draw_confusion(run, output / "confusion.png"))
        elif has_images:
            print(f"No confusion matrix without predictions. First: replora-cli predict --config {run / 'fit.yaml'}")
        config = run / "fit.yaml"
    else:
        output = output or Path()
        output.mkdir(parents=True, exist_ok=True)
        config = find_config(source)
    if has_images:
        pictures.append(draw_batch(config, data or {}, images, output / "batch.png"))
    print("\n".join(str(picture) for picture in pictures))


def quickstart(run_dir: Path | None = None, seed: int = 0) -> None:
    """Compare linear probe, LoRA and RepLoRA on digits, offline, in about two minutes.

    Six runs on two CPU cores: three methods, each with 5 images a class and with all 800. Ends with a table and a
    picture of the learning curves and some predictions.

    Args:
        run_dir: Directory for the six runs and the picture. Default: runs/<time>-quickstart.
        seed: Of the heads, the adapters and the training, at least 0.
    """
    import lightning.pytorch  # noqa: F401  (it sets the level of its loggers when it is imported)
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from replora.cli import main
    from replora.reports.quickstart import draw, row, table, title

    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    home = run_dir or Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}-quickstart"
    started = time.monotonic()
    runs: list[Path] = []
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
    with Progress(*columns) as progress:
        bar = progress.add_task("", total=len(QUICKSTART_METHODS) * len(QUICKSTART_DATA))
        for data, options in QUICKSTART_DATA.items():
            for method, rate in QUICKSTART_METHODS.items():
                progress.update(bar, description=title(method, data))
                runs.append(home / f"{data}-{method}")
                main(
                    [
                        "fit",
                        "--config=quickstart.yaml",
                        f"--config=adapter/{method}.yaml",
                        *options,
                        f"--model.optimizer.lr={rate}",
                        f"--seed_everything={seed}",
                        f"--run_dir={runs[-1]}",
                        "--trainer.enable_progress_bar=false",
                    ]
                )
                progress.advance(bar)
        progress.update(bar, description="predictions")
        main(["predict", f"--config={runs[-1] / 'fit.yaml'}", "--trainer.enable_progress_bar=false"])
    picture = home / "quickstart.png"
    draw(runs, picture)
    table([row(run) for run in runs])
    print(f"{time.monotonic() - started:.0f} seconds. Learning curves and predictions: {picture}")
    print(f"Everything about a run, for example: {runs[-1] / 'results.json'}")


def sweep(
    config: str,
    out: Path | None = None,
    options: dict[str, Any] | None = None,
    dry_run: bool = False,
    address: str | None = None,
    cpus_per_trial: float = 1,
    gpus_per_trial: float = 0,
    max_concurrent: int | None = None,
    max_failures: int = 1,
    make_report: bool = True,
) -> None:
    """Run methods, tasks, training set sizes, grids and seeds against each other.

        replora-cli sweep --config sweep/quickstart_low_data.yaml
        replora-cli sweep --config sweep/vtab_low_data.yaml --options '{"data.root": "vtab-1k"}' --gpus_per_trial 0.5

    Every trial is a run of fit in a directory of its own. The same command goes on after an interruption and repeats
    nothing that is finished. Ends with a page of curves and tables (replora-cli report). The form of the file:
    docs/sweeps.md.

    Args:
        config: The sweep's file, a local one or one that ships with the package.
        out: Directory of the trials; on a cluster a path that all machines share. Default: runs/NAME.
        options: Options of every trial beyond those of the file, as on the command line of fit without the dashes.
        dry_run: Print the trials and what they are expected to cost, and run nothing.
        address: Of a Ray cluster, HOST:PORT or auto. Default: this machine alone.
        cpus_per_trial: CPU cores of a trial.
        gpus_per_trial: GPUs of a trial; 0.5 lets two trials share one. The file's base must train on a GPU then.
        max_concurrent: Trials at the same time at most. Default: as many as there is room for.
        max_failures: How often a failed trial is tried again, at least 0.
        make_report: Whether to end with a report in OUT/report, of what there is also after failures.
    """
    from replora.cli import find_config
    from replora.sweeps.estimate import describe_plan
    from replora.sweeps.lock import locked
    from replora.sweeps.plan import read_sweep
    from replora.sweeps.sweep import check_sweep, run_sweep

    plan = read_sweep(find_config(config), options)
    home = out or Path("runs") / plan.name
    _at_least(0, max_failures=max_failures, gpus_per_trial=gpus_per_trial)
    _at_least(0.01, cpus_per_trial=cpus_per_trial, max_concurrent=max_concurrent)
    check_sweep(plan)
    if dry_run:
        print(describe_plan(plan, home, *_trials_at_once(address, cpus_per_trial, gpus_per_trial, max_concurrent)))
        return
    from replora.sweeps.on_ray import Share

    with locked(home):
        try:
            run_sweep(plan, home, address, Share(cpus_per_trial, gpus_per_trial, max_concurrent, max_failures))
        finally:
            if make_report and any(home.rglob("results.json")):
                report([str(home)], home / "report")


def _trials_at_once(
    address: str | None, cpus_per_trial: float, gpus_per_trial: float, most: int | None
) -> tuple[int | None, str]:
    """How many trials there is room for, None if that is not known, and why not."""
    if address is not None:
        return most, f"how many the cluster at {address} has room for is not known before it is asked"
    room = int((os.cpu_count() or 1) / cpus_per_trial)
    if gpus_per_trial:
        from torch import cuda

        if not cuda.is_available():
            return most, "this machine has no GPU, and how many there will be is not known"
        room = min(room, int(cuda.device_count() / gpus_per_trial))
    return max(1, min(room, most or room)), ""


def report(runs: list[str] | str, out: Path = Path("report")) -> None:
    """Make tables and pictures of finished runs: Markdown, CSV, PNG and one HTML page with everything in it.

        replora-cli report runs/quickstart_low_data --out report
        replora-cli report runs/a runs/b results/digits --out report

    Reads results.json files alone: benchmark tables, accuracy against the amount of data, the data that one method
    needs to reach another, paired differences, learning rates, learning curves, published rows apart. Runs under
    different conditions stand in different sections, and the two tracks of VTAB-1K are refused together.

    Args:
        runs: Directories of runs, searched with those inside; results.json files; .jsonl files of earlier reports.
        out: Directory of the report. Files of an earlier report in it are replaced.
    """
    from replora.reports.report import write_report

    sources = [Path(run) for run in ([runs] if isinstance(runs, str) else runs)]
    files = write_report(sources, out)
    print(f"report: {files[1]}")


def _at_least(least: float, **options: float | None) -> None:
    for name, value in options.items():
        if value is not None and value < least:
            raise RepLoRAError(f"--{name} {value:g} is too small: it is at least {least:g}.")


def prepare_vtab(
    root: Path | None = None,
    tasks: list[str] | str | None = None,
    from_tfds: bool = False,
    hub: str | None = None,
    track: Literal["archive", "clean"] | None = None,
    tfds_dir: Path | None = None,
    check_sizes: bool = True,
) -> None:
    """Check a copy of VTAB-1K, image by image; with --from_tfds or --hub get what is missing first.

    Prints a table, everything that is wrong and how to mend it. The exit status is 1 if something is wrong. A task is
    written beside its place and moved there when it is whole; after an interruption the same command continues.

    Args:
        root: The folder of the tasks. Default: the environment variable REPLORA_DATA, else `data`.
        tasks: Names separated by commas, such as dtd,kitti. Default: all 19.
        from_tfds: Build what is missing from TensorFlow Datasets (pip install "replora[tfds]").
        hub: Take what is missing from this data set repository of the Hugging Face hub, as OWNER/NAME.
        track: What to build: archive writes JPEG of quality 75, as published rows used; clean writes lossless PNG.
            Default: archive. For a check: what the images must be. Default: either.
        tfds_dir: Where TensorFlow Datasets keeps its data. Default: its own.
        check_sizes: Compare the number of images with the table; false for data made smaller on purpose.
    """
    from replora.datasets.prepare_vtab import prepare_vtab as prepare
    from replora.datasets.prepare_vtab import print_reports

    home = _data_root(root)
    reports = prepare(home, _names(tasks), from_tfds, hub, track, tfds_dir, check_sizes)
    print_reports(reports, home)
    if any(report.state != "whole" for report in reports):
        sys.exit(1)


def prepare_fgvc(root: Path | None = None, tasks: list[str] | str | None = None, check_sizes: bool = True) -> None:
    """Check the five FGVC data sets: split files, classes, sizes and every image.

    Prints a table and everything that is wrong. The exit status is 1 if something is wrong.

    Args:
        root: The folder of the data sets. Default: the environment variable REPLORA_DATA, else `data`.
        tasks: Names separated by commas, such as nabirds,stanford_cars. Default: all five.
        check_sizes: Compare the number of images with VPT's splits; false for data made smaller on purpose.
    """
    from replora.datasets.fgvc import FGVC_TASKS, fgvc_task
    from replora.datasets.prepare_images import check_fgvc

    chosen = [fgvc_task(name) for name in _names(tasks) or FGVC_TASKS]
    _print_or_exit(check_fgvc(_data_root(root), chosen, check_sizes))


def prepare_images(root: Path, val_fraction: float = 0.1, test_fraction: float = 0.1, split_seed: int = 0) -> None:
    """Check a folder of class folders, or a CSV file of path,label: every image, and the splits that a run makes.

    Prints a table and everything that is wrong. The exit status is 1 if something is wrong.

    Args:
        root: The folder or the CSV file.
        val_fraction: As of the data module: the part that becomes `val` where there is none, in [0, 1).
        test_fraction: The same for `test`.
        split_seed: Which images these are.
    """
    from replora.datasets.prepare_images import check_image_folder

    _print_or_exit(check_image_folder(root.expanduser(), val_fraction, test_fraction, split_seed))


def prepare_commonsense(
    root: Path | None = None,
    tasks: list[str] | str | None = None,
    rebuild: bool = False,
    hub: str | None = None,
    check_sizes: bool = True,
) -> None:
    """Check the eight commonsense tasks of LLM-Adapters, record by record; with --rebuild or --hub get what is missing.

    Prints the number of records of each file, how many are repeated or in both files of a task, everything that is
    wrong and how to mend it. The exit status is 1 if something is wrong or missing.

    Args:
        root: The folder of the tasks' folders. Default: the environment variable REPLORA_DATA, else `data`.
        tasks: Names separated by commas, such as ARC-Easy,boolq. Default: all eight.
        rebuild: Make what is missing from the original data sets on the Hugging Face hub (pip install pyarrow).
        hub: Take what is missing from this data set repository of the Hugging Face hub, as OWNER/NAME: the files of the
            tasks, or commonsense_170k.json (for --data.union_file).
        check_sizes: Compare the number of records with the published ones; false for data made smaller on purpose.
    """
    from replora.datasets.prepare_commonsense import prepare_commonsense as prepare
    from replora.datasets.prepare_commonsense import print_reports

    home = _data_root(root)
    reports = prepare(home, _names(tasks), rebuild, hub, check_sizes)
    print_reports(reports, home)
    if any(report.state != "whole" for report in reports):
        sys.exit(1)


def prepare_ssv2(root: Path | None = None, check_sizes: bool = True, decode: bool = True) -> None:
    """Check Something-Something-V2: the official lists, classes, sizes and every video.

    Prints a table and everything that is wrong. The exit status is 1 if something is wrong.

    Args:
        root: The folder of the lists and the videos. Default: the environment variable REPLORA_DATA, else `data`.
        check_sizes: Compare the numbers of classes and videos with the official ones; false for data made smaller.
        decode: Decode every video to its end, which takes hours for all of them; false checks that they are there.
    """
    from replora.datasets.prepare_videos import check_ssv2

    _print_or_exit(check_ssv2(_data_root(root), check_sizes, decode))


def prepare_hmdb51(root: Path | None = None, check_sizes: bool = True, decode: bool = True) -> None:
    """Check HMDB51: the three official splits, classes, sizes and every video.

    Prints a table and everything that is wrong. The exit status is 1 if something is wrong.

    Args:
        root: The folder of the lists and the videos. Default: the environment variable REPLORA_DATA, else `data`.
        check_sizes: Compare the numbers of classes and videos with the official ones; false for data made smaller.
        decode: Decode every video to its end; false checks that they are there.
    """
    from replora.datasets.prepare_videos import check_hmdb51

    _print_or_exit(check_hmdb51(_data_root(root), check_sizes, decode))


def prepare_videos(
    root: Path, val_fraction: float = 0.1, test_fraction: float = 0.1, split_seed: int = 0, decode: bool = True
) -> None:
    """Check a folder of class folders, or a CSV file of path,label: every video, and the splits that a run makes.

    Prints a table and everything that is wrong. The exit status is 1 if something is wrong.

    Args:
        root: The folder or the CSV file.
        val_fraction: As of the data module: the part that becomes `val` where there is none, in [0, 1).
        test_fraction: The same for `test`.
        split_seed: Which videos these are.
        decode: Decode every video to its end; false checks that they are there.
    """
    from replora.datasets.prepare_videos import check_video_folder

    _print_or_exit(check_video_folder(root.expanduser(), val_fraction, test_fraction, split_seed, decode))


def _print_or_exit(reports: list[DataReport]) -> None:
    """Print what was found; exit with status 1 if something is wrong."""
    from replora.datasets.prepare_images import print_reports

    print_reports(reports)
    if any(report.problems for report in reports):
        sys.exit(1)


def prepare_clip_features(
    source: Path,
    out: Path,
    encoder: Literal["rn101", "vit_b32"] = "rn101",
    checkpoint: Path | None = None,
    seconds: float = 1.5,
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
        checkpoint: The encoder's weights as a timm .safetensors file; by default they are fetched from the hub.
        seconds: Time between two frames of a video, above 0.
        batch_size: Images or frames at once, at least 1.
        device: cpu, cuda, cuda:1, ...; auto is the first GPU if there is one.
        progress: Show a progress bar.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from replora.datasets import clip_features

    clip_features.check_options(seconds, batch_size)
    names = clip_features.find_sources(source.expanduser(), encoder)
    missing = clip_features.missing_features(names, out.expanduser(), encoder)
    print(f"{len(names):,} in {source}, {len(names) - len(missing):,} of them are done")
    if not missing:
        return
    model = clip_features.load_encoder(encoder, checkpoint, device)
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
    with Progress(*columns, disable=not progress) as bars:
        bar = bars.add_task(encoder, total=len(missing))
        unread = clip_features.extract(
            missing, out.expanduser(), model, seconds, batch_size, lambda count: bars.advance(bar, count)
        )
    print(f"{len(missing) - len(unread):,} new files of features are in {out}")
    if unread:
        raise RepLoRAError(
            f"{len(unread):,} of {len(names):,} files have no features. Mend or remove them, then give the command "
            "again:\n  " + "\n  ".join(unread.values())
        )


def _data_root(root: Path | None) -> Path:
    return (root or Path(os.environ.get("REPLORA_DATA") or "data")).expanduser()


def _names(names: list[str] | str | None) -> list[str] | None:
    """Names separated by commas, as a list."""
    return [name.strip() for name in names.split(",") if name.strip()] if isinstance(names, str) else names
