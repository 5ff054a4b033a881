"""Answer questions about images and videos with a trained VL-BART, as its evaluation does; the adapter is merged."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import datamodules
import replora
from datamodules import VisionLanguageDataModule
from lightning_modules import VisionLanguage
from lightning_modules.predictors import ImagePredictor, PredictionError, VideoPredictor
from replora.adapters.state import read_metadata
from replora.backbones.vl_answers import answer
from replora.config_files import read_config
from replora.datasets.common.files import printable
from replora.datasets.errors import CorruptImageError, CorruptVideoError
from replora.datasets.vision_language.clip_encoder import check_options
from replora.datasets.vision_language.features import FeatureSource
from replora.datasets.vision_language.questions import (
    Question,
    pair,
    read_questions,
    record_of,
    select_task,
    sort_arguments,
)
from replora.datasets.vision_language.tasks import VLDataset, VLTask, vl_task, with_prompt
from replora.inference.classification import find_files, torch_device
from replora.io import csv_text, replace_text
from replora.runs import concrete_subclasses, module_of, open_run, read_entry

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answerer:
    """A trained VL-BART and the preprocessing of its evaluation.

    Attributes:
        model: The model in evaluation mode on `device`, its adapter not merged.
        data: Datamodule of the run, which holds no data.
        task: Task that is asked.
        features: Source of the features of files, by their paths.
        num_beams: Number of beams of the run; None for the task's own.
        device: Device of the model.
    """

    model: nn.Module
    data: VisionLanguageDataModule
    task: VLTask
    features: FeatureSource
    num_beams: int | None
    device: torch.device


@dataclass
class Answers:
    """What `answer_questions` found.

    Attributes:
        questions: The questions about files that could be read, in the order given.
        answers: Their answers.
        skipped: File that could not be read -> reason.
    """

    questions: list[Question] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    skipped: dict[Path, str] = field(default_factory=dict)


def answers_questions(run: Path) -> bool:
    """Whether a run is one of `VisionLanguage`; nothing is built. Raises RepLoRAError if it is not that of a fit."""
    return issubclass(module_of(run), VisionLanguage)


def data_of(run: Path) -> VisionLanguageDataModule:
    """The datamodule of a run of `VisionLanguage`, without its data.

    Raises:
        PredictionError: The run is of another kind, or its data are.
    """
    if not answers_questions(run):
        raise PredictionError(
            f"{run / 'fit.yaml'} is of {module_of(run).__name__!r}, but only a run of 'VisionLanguage' answers "
            "questions about images and videos. Runs that classify them: replora-cli predict-files."
        )
    section = read_config(run / "fit.yaml").get("data") or {}
    path, options = str(section.get("class_path")), section.get("init_args") or {}
    package, _, name = path.rpartition(".")
    own = getattr(datamodules, name, None) if package.partition(".")[0] in ("", "datamodules") else None
    imported = {f"{c.__module__}.{c.__qualname__}": c for c in concrete_subclasses(VisionLanguageDataModule)}
    cls = own or imported.get(path)
    if not (isinstance(cls, type) and issubclass(cls, VisionLanguageDataModule)):
        raise PredictionError(
            f"{run / 'fit.yaml'} has the data {path!r}, which are not data of images or videos with text. Import your "
            "own class first: --import_module."
        )
    names = ("tasks", "feature_size", "features", "prompts", "truncation_side")
    return cls(**{name: options[name] for name in names if name in options})


def find_questions(
    asked: Sequence[str], data: VisionLanguageDataModule, task: str | None, defaults: Mapping[str, Any]
) -> tuple[VLTask, list[Question]]:
    """What arguments ask about which files.

    Args:
        asked: Files, folders and patterns; questions; lists of questions. Each question is asked about each file.
        data: Datamodule of the run.
        task: Name of the task. Default: the first of the run's tasks that fits the questions.
        defaults: `choices`, `times` and `subtitles` of the questions that have none of their own.

    Returns:
        The task, and the questions in the form that it needs.

    Raises:
        RepLoRAError: There is no file to look at, a list is corrupt, or a question has another form than its task.
    """
    kind = VideoPredictor if vl_task(data.tasks[0]).video else ImagePredictor
    names, lists, texts = sort_arguments(asked, kind.suffixes)
    given = [Question((), text) for text in texts] + [question for file in lists for question in read_questions(file)]
    complete, loose = [q for q in given if q.files], [q for q in given if not q.files]
    if not names and (loose or not complete):
        about = f" for the question {loose[0].text!r}" if loose else ""
        raise PredictionError(
            f"No {kind.file_kind} was given{about} (looked in {Path.cwd()}). {kind.file_kind.capitalize()}s end in "
            f"{', '.join(kind.suffixes)}."
        )
    selected = select_task(data.tasks, task, given)
    files = find_files(names, kind)
    questions = [*(pair(files, loose or [Question(())], selected) if files else []), *complete]
    questions = [
        replace(q, **{name: getattr(q, name) or default for name, default in defaults.items()}) for q in questions
    ]
    for index, question in enumerate(questions):
        record_of(index, question, selected)  # raises before anything is loaded
    return selected, questions


def load_answerer(
    run: Path,
    data: VisionLanguageDataModule,
    task: VLTask,
    encoder: Path | None = None,
    fps: float | None = None,
    checkpoint: Path | None = None,
    device: str = "auto",
    force: bool = False,
    upright: bool = True,
) -> Answerer:
    """Build the model of a run and the encoder of its features.

    Args:
        run: The run's directory.
        data: Datamodule of the run, of `data_of`.
        task: Task to ask.
        encoder: File or folder of the weights of CLIP's encoder. Default: they are downloaded from the hub.
        fps: Frames per second (> 0) of folders of frames, if the run does not record it.
        checkpoint: Folder of the backbone to use instead of the source in `fit.yaml`.
        device: A torch device, or `auto` for the first GPU if there is one, else the CPU.
        force: Whether to use an adapter whose training diverged.
        upright: Whether to turn photos as their EXIF orientation says, although the training's were read as stored.

    Raises:
        RepLoRAError: A file is missing or of another kind of run, weights are not available or not those of the run, or
            the device cannot be used.
    """
    check_options(1.5, 1, fps)
    place = torch_device(device)
    adapter = run / "adapter.safetensors"
    known = read_entry(read_metadata(adapter), "data", adapter).get("extractions", {})
    recorded = known.get(task.name, {})
    if not recorded and data.encoder is not None:
        log.warning(
            "%s does not record how the features of its training were extracted; the defaults of `replora-cli prepare "
            "clip-features` are assumed (%s).",
            run,
            data.encoder,
        )
    features = data.file_features(recorded, encoder, str(place), fps, upright)
    loaded = open_run(run, checkpoint, force)
    data.tokenizer_name, data.revision = str(checkpoint or loaded.backbone.name), loaded.options.get("revision")
    return Answerer(loaded.model.to(place), data, task, features, loaded.options.get("num_beams"), place)


def answer_questions(
    answerer: Answerer,
    questions: list[Question],
    batch_size: int = 16,
    skip_corrupt: bool = False,
    advance: Callable[[int], object] = lambda _: None,
) -> Answers:
    """Answer questions about files.

    Args:
        answerer: Answerer of `load_answerer`.
        questions: Questions, each about files.
        batch_size: Number of questions per batch (>= 1).
        skip_corrupt: Whether to leave out questions about files that cannot be read.
        advance: Called with the number of questions of each batch that is done.

    Raises:
        QuestionError: A question has another form than its task.
        CorruptImageError, CorruptVideoError: A file cannot be read, and `skip_corrupt` is off.
        PredictionError: No file could be read.
    """
    task, data, found = answerer.task, answerer.data, Answers()
    records = [record_of(index, question, task) for index, question in enumerate(questions)]
    dataset = VLDataset(task, records, answerer.features, data.prompts, seed=0)
    data.warn_of_long_texts(task, [with_prompt(task, record.text, data.prompts) for record in records])
    with replora.merged(answerer.model):
        for start in range(0, len(records), batch_size):
            samples = []
            for position in range(start, min(start + batch_size, len(records))):
                try:
                    samples.append(dataset[position])
                    found.questions.append(questions[position])
                except (CorruptImageError, CorruptVideoError) as error:
                    if not skip_corrupt:
                        raise type(error)(f"{error} Or leave such files out: --skip_corrupt true") from error
                    found.skipped[questions[position].files[0]] = str(error)
            if samples:
                batch: Any = {
                    key: value.to(answerer.device) if isinstance(value, Tensor) else value
                    for key, value in data.collate(samples).items()
                }
                found.answers += answer(answerer.model, data.tokenizer, batch, answerer.num_beams)
            advance(min(batch_size, len(records) - start))
    if not found.answers:
        raise PredictionError(f"None of the files can be read. {next(iter(found.skipped.values()), '')}")
    return found


def write_answers(file: Path, found: Answers, task: VLTask, status: str = "complete") -> None:
    """Write answers atomically as CSV or JSON, by the file's suffix; paths as `printable` writes them.

    Args:
        file: File to write; its folder is created if absent.
        found: Answers from `answer_questions`.
        task: Task that was asked.
        status: That of the run, as in `write`.
    """
    words = {} if status == "complete" else {"status": status}
    kind = "video" if task.video else "image"
    names = [kind, f"{kind}2"][: task.images]
    rows: list[dict[str, str]] = [
        {**dict(zip(names, map(printable, question.files), strict=True)), "question": question.text, "answer": text}
        for question, text in zip(found.questions, found.answers, strict=True)
    ]
    if file.suffix.lower() == ".json":
        skipped = [{"path": printable(path), "reason": reason} for path, reason in found.skipped.items()]
        content = {"task": task.name, "answers": rows, "skipped": skipped} | words
        replace_text(file, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
        return
    headings = [*names, "question", "answer", "task", *words]
    lines = [{**row, "task": task.name, **words} for row in rows]
    replace_text(file, csv_text([headings, *([line[name] for name in headings] for line in lines)]))
