"""`replora-cli ask`: answer questions about images and videos with a trained run."""

from __future__ import annotations

from pathlib import Path

from replora.errors import visible
from replora.io import check_output
from replora.progress import progress_bar


def ask(
    run: Path,
    asked: list[str] | str,
    task: str | None = None,
    choices: list[str] | None = None,
    times: str = "",
    subtitles: str = "",
    encoder: Path | None = None,
    fps: float | None = None,
    out: Path | None = None,
    checkpoint: Path | None = None,
    skip_corrupt: bool = False,
    batch_size: int = 16,
    device: str = "auto",
    progress: bool = False,
    import_module: str | None = None,
    force: bool = False,
    overwrite: bool = False,
    upright: bool = True,
) -> None:
    """Answer questions about images or videos, or describe them, with a trained run of image_text or video_text.

        replora-cli ask runs/images photo.jpg "what is it?"
        replora-cli ask runs/images photo.jpg
        replora-cli ask runs/images left.jpg right.jpg "Both images show a dog." --task nlvr2
        replora-cli ask runs/images questions.csv --out answers.csv

    Features of the files are extracted by the encoder of the training's features, whose weights are downloaded from the
    hub or given (--encoder). Each question is asked about each file. Answers are generated as in the run's evaluation.

    Args:
        run: Directory of the run.
        asked: Files, folders or patterns of images or videos; questions, in quotation marks; lists of questions (.txt,
            a question per line), or of files and questions (.csv with the columns image and question, .json, .jsonl).
        task: Task of the run to ask, such as vqa, gqa, nlvr2 or coco. Default: the first one that fits.
        choices: Answers to choose from, which TVQA and How2QA need, such as '["in the kitchen", "at home"]'.
        times: Beginning and end of the scene in a video, such as 1.5-3 for TVQA.
        subtitles: What is said in a video.
        encoder: File or folder of the encoder's weights (timm's model.safetensors), for machines without a network.
        fps: Frames per second (> 0) of a video that is a folder of frames, if the run does not record it.
        out: File to write, .csv or .json, instead of printing the answers.
        checkpoint: Folder of the backbone, if it is no longer where the run had it.
        skip_corrupt: Whether to skip, list and count files that cannot be read, instead of stopping at the first.
        batch_size: Number of questions per batch (>= 1).
        device: Device of the model: cpu, cuda, cuda:1, ...; auto is the first GPU if there is one.
        progress: Whether to show a progress bar.
        import_module: Python module that defines the run's datamodule, if it is your own.
        force: Whether to use an adapter whose training diverged.
        overwrite: Whether to replace the file if it exists.
        upright: Whether to turn photos as their EXIF orientation says. The training's were read as stored.
    """
    # Only here: the light verbs of the command line do not wait for torch.
    from replora import inference, runs
    from replora.adapters.state import read_metadata
    from replora.datasets.common.files import printable
    from replora.datasets.vision_language.questions import shown_answer

    runs.import_module(import_module)
    data = inference.data_of(run)
    inference.check_options(0, batch_size)
    if out is not None:
        check_output(
            out,
            overwrite,
            [*run.rglob("*"), *map(Path, [asked] if isinstance(asked, str) else asked)],
            inference.FORMATS,
        )
    defaults = {"choices": tuple(choices or ()), "times": times, "subtitles": subtitles}
    selected, questions = inference.find_questions([asked] if isinstance(asked, str) else asked, data, task, defaults)
    answerer = inference.load_answerer(run, data, selected, encoder, fps, checkpoint, device, force, upright)
    with progress_bar("ask", len(questions), progress) as advance:
        found = inference.answer_questions(answerer, questions, batch_size, skip_corrupt, advance)
    status = runs.status_of_adapter(read_metadata(run / "adapter.safetensors"))
    if out is None:
        for question, answer in zip(found.questions, found.answers, strict=True):
            asked_about = " | ".join(filter(None, [*map(printable, question.files), question.text]))
            print(visible(f"{asked_about}\n  {shown_answer(question, answer)}"))
        if status != "complete":
            print(f"status of the run: {status}")
    else:
        inference.write_answers(out, found, selected, status)
        print(f"{len(found.answers):,} answers ({selected.name}) are in {out}")
    for path, reason in found.skipped.items():
        print(visible(f"skipped: {printable(path)}: {reason}"))
    if found.skipped:
        print(f"{len(questions) - len(found.answers):,} of {len(questions):,} questions are about such files")
