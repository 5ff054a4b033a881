"""`replora-cli predict-files`: classify files with a trained run."""

from __future__ import annotations

from pathlib import Path


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

    from replora import inference as prediction
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
        from replora.plots.contact_sheet import draw

        best = found.probabilities.max(dim=1)
        names = [classifier.class_names[i] for i in best.indices.tolist()]
        draw(contact_sheet, found.pictures, names, best.values.tolist(), [path.name for path in found.paths])
        print(f"contact sheet: {contact_sheet}")
