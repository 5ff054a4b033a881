"""`replora-cli predict-files`: classify files with a trained run, or answer questions about them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from replora.cli.commands.ask import ask
from replora.errors import RepLoRAError, visible
from replora.io import check_output
from replora.progress import progress_bar

MOST_NAMED = 10  # classes whose counts are printed


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
    import_module: str | None = None,
    force: bool = False,
    overwrite: bool = False,
    task: str | None = None,
    encoder: Path | None = None,
) -> None:
    """Classify image or video files with a trained run, or answer questions about them.

    Reads the run's fit.yaml and adapter.safetensors, merges the adapter into the backbone, and treats files as the
    run's evaluation does. Writes one line per file: path, class and probabilities. Predictions and the contact sheet of
    a partial or diverged run say so. For a run of image_text or video_text, the files are followed by questions or a
    list of them, as for `replora-cli ask`, and each line has a file, a question and the answer.

    Args:
        run: Directory of the run.
        images: Image files, folders (searched recursively) and patterns such as "photos/**/*.jpg"; videos for a run
            on videos.
        out: File to write, .csv or .json.
        top_k: Number of classes per file to write (>= 0), most likely first. 0 writes all; in CSV one column per class.
        contact_sheet: PNG file for a picture of the first 40 files with their predictions.
        checkpoint: File of the backbone's weights, if they are no longer where the run had them.
        skip_corrupt: Whether to skip, list and count files that cannot be read, instead of stopping at the first.
        batch_size: Number of files per batch (>= 1). Default: 64 images, or 2 videos, each with all views of the test.
        device: Device of the model: cpu, cuda, cuda:1, ...; auto is the first GPU if there is one.
        progress: Whether to show a progress bar.
        import_module: Python module that defines the run's LightningModule, if it is your own.
        force: Whether to use an adapter whose training diverged.
        overwrite: Whether to replace the file and the contact sheet if they exist.
        task: Task to ask of a run of image_text or video_text.
        encoder: File or folder of the encoder's weights, for such a run.
    """
    # Only here: the light verbs of the command line do not wait for torch.
    from replora import inference, runs
    from replora.adapters.state import read_metadata
    from replora.datasets.common.files import printable
    from replora.datasets.errors import CorruptImageError, CorruptVideoError

    runs.import_module(import_module)
    if inference.answers_questions(run):
        if contact_sheet is not None:
            raise RepLoRAError("contact_sheet: a run that answers questions has no contact sheet. Omit it.")
        ask(
            run,
            images,
            task,
            out=out,
            encoder=encoder,
            checkpoint=checkpoint,
            skip_corrupt=skip_corrupt,
            batch_size=16 if batch_size is None else batch_size,
            device=device,
            progress=progress,
            force=force,
            overwrite=overwrite,
        )
        return
    kind = inference.predictor_of(run)
    inference.check_options(top_k, kind.batch_size if batch_size is None else batch_size)
    paths = inference.find_files([images] if isinstance(images, str) else images, kind)
    inputs = [*paths, *run.rglob("*"), *([checkpoint] if checkpoint else [])]
    check_output(out, overwrite, inputs, inference.FORMATS)
    if contact_sheet is not None:
        check_output(contact_sheet, overwrite, inputs, [".png"])
    predictor = inference.load_run(run, device, checkpoint=checkpoint, force=force)
    with progress_bar("predict", len(paths), progress) as advance:
        try:
            found = predictor.predict(paths, batch_size, skip_corrupt=skip_corrupt, advance=advance)
        except (CorruptImageError, CorruptVideoError) as error:
            raise type(error)(f"{error} Or leave such files out: --skip_corrupt true") from error
    status = runs.status_of_adapter(read_metadata(run / "adapter.safetensors"))
    inference.write(out, found, top_k, status)
    names = found.labels
    counts = Counter(names).most_common()
    more = f" and {len(counts) - MOST_NAMED} more classes" if len(counts) > MOST_NAMED else ""
    print(f"{len(found.sources):,} predictions are in {out}")
    print(visible(f"predicted: {', '.join(f'{name} {count:,}' for name, count in counts[:MOST_NAMED])}{more}"))
    for path, reason in found.skipped.items():
        print(visible(f"skipped: {printable(str(path))}: {reason}"))
    if found.skipped:
        print(f"{len(found.skipped):,} of {len(paths):,} files could not be read")
    if contact_sheet is not None:
        from replora.plots.contact_sheet import draw

        sources = [printable(path.name) for path in found.sources if isinstance(path, Path)]
        best = found.probabilities.max(dim=1).values.tolist()
        draw(contact_sheet, found.pictures, names, best, sources, status=status)
        print(f"contact sheet: {contact_sheet}")
