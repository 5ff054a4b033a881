"""The vision-and-language tasks: their table, records and samples.

Prompts, lengths and losses are those of VL-Adapter (github.com/ylsung/VL_adapter, VL-T5/src), which DoRA uses as well.
`gpa: ` is its own spelling of the prompt of GQA, and each prompt ends with a space.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from replora.datasets.common.packed import Packed
from replora.datasets.errors import UnknownTaskError
from replora.datasets.vision_language.features import FeatureSource
from replora.errors import nearest

VLKind = Literal["vqa", "gqa", "nlvr2", "caption", "choice"]
Prompts = Literal["vl_adapter", "none"]


@dataclass(frozen=True)
class VLTask:
    """One task and how VL-Adapter puts it to the model."""

    name: str  # name in options, metrics and files
    kind: VLKind  # kind of the answers: of VQA, of GQA, true or false (`nlvr2`), a sentence, or one of several choices
    prompt: str  # prompt that names the task to the model
    video: bool  # whether the task is about videos. The prompt then follows the text instead of preceding it
    max_text: int | None  # largest number of tokens of the text, including prompt, `<s>` and `</s>`, or None
    max_target: int | None  # largest number of tokens of the answer, or None
    images: int = 1  # images per sample
    batch_share: tuple[int, int] = (1, 1)  # batch size of the task as (a, b), int(batch_size * a / b)
    beams: int = 1  # number of beams of the generation
    # whether the loss is the mean over the samples' means or over all tokens of the batch
    mean_over: Literal["samples", "tokens"] = "samples"
    metric: str = "accuracy"  # metric of the published tables


VL_TASKS = {
    task.name: task
    for task in (
        VLTask("vqa", "vqa", "vqa: ", False, 20, 10),
        VLTask("gqa", "gqa", "gpa: ", False, 20, None, batch_share=(100, 60)),
        VLTask("nlvr2", "nlvr2", "nlvr: ", False, None, None, images=2, batch_share=(20, 60)),
        VLTask("coco", "caption", "caption: ", False, 40, 40, 1, (50, 60), 5, "tokens", "cider"),
        VLTask("tvqa", "choice", "tvqa: ", True, 600, 20, beams=5),
        VLTask("how2qa", "choice", "how2qa: ", True, 600, 20, beams=5),
        VLTask("tvc", "caption", "tvc: ", True, 600, 20, beams=5, metric="cider"),
        VLTask("yc2c", "caption", "yc2c: ", True, 600, 20, beams=5, metric="cider"),
    )
}
IMAGE_TASKS = tuple(name for name, task in VL_TASKS.items() if not task.video)
VIDEO_TASKS = tuple(name for name, task in VL_TASKS.items() if task.video)


@dataclass(frozen=True)
class VLRecord:
    """One question, or one image or clip to describe."""

    index: int  # position in the list of its split
    id: int | str  # id in the benchmark: question id, identifier, image id or clip id
    text: str  # input text without the prompt
    images: tuple[str, ...]  # names of the features of its images, or of its video
    answers: tuple[str, ...] = ()  # answers to learn; empty if the answer is hidden
    # weights of the answers. One is drawn in proportion, and its weight multiplies the loss
    weights: tuple[float, ...] = ()
    # reference of the metric: ten human answers and the scores of answers (`vqa`), scores (`gqa`), a label
    # (`nlvr2`), sentences (`caption`), a number (`choice`); or None if it is hidden
    truth: Any = None
    stratum: int = 0  # stratum of the record; fractions of the training set are stratified
    about: dict[str, Any] = field(default_factory=dict)  # fields that are copied to a submission


def pack_records(records: Iterable[VLRecord]) -> Packed[VLRecord]:
    """Records whose memory loader processes share."""
    return Packed(records, _encode, _decode)


def _encode(record: VLRecord) -> bytes:
    return pickle.dumps(tuple(vars(record).values()))


def _decode(content: bytes) -> VLRecord:
    return VLRecord(*pickle.loads(content))


class VLSample(TypedDict):
    """A record with its features and one answer."""

    task: str
    index: int  # of the record; -1 marks padding, which nothing may count
    text: str  # with the prompt
    target: str  # "" where there is none
    weight: float
    features: Tensor  # float32 (images, n, feature_size)


class VLBatch(TypedDict):
    """B samples of one task."""

    task: str
    input_ids: Tensor  # int64 (B, T), padded on the right
    attention_mask: Tensor  # int64 (B, T); 0 is padding
    features: Tensor  # (B, images, n, feature_size)
    labels: Tensor  # int64 (B, L); -100 where there is no loss
    weight: Tensor  # float32 (B,)
    index: Tensor  # int64 (B,)


def vl_task(name: str) -> VLTask:
    """The task of this name. Raises UnknownTaskError if there is none."""
    if name not in VL_TASKS:
        raise UnknownTaskError(f"tasks: there is no task {name!r}. {nearest(name, VL_TASKS)}")
    return VL_TASKS[name]


def with_prompt(task: VLTask, text: str, prompts: Prompts) -> str:
    """The text that the model reads, byte for byte that of VL-Adapter."""
    prompt = task.prompt if prompts == "vl_adapter" else ""
    return f"{text} {prompt}" if task.video else f"{prompt}{text}"


class VLDataset(Dataset[VLSample]):
    """The records of one task and split; position in this list -> sample.

    Args:
        task: The task.
        records: Records of a split or of a subset.
        features: Source of the features of their images.
        prompts: Whether the task's prompt is part of the text.
        seed: Random seed for the draw of answers.
    """

    def __init__(
        self, task: VLTask, records: Iterable[VLRecord], features: FeatureSource, prompts: Prompts, seed: int
    ) -> None:
        self.task = task
        self.records = records if isinstance(records, Packed) else pack_records(records)
        self.features = features
        self.prompts: Prompts = prompts
        self.seed = seed

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, position: int) -> VLSample:
        return self.sample(position)

    def sample(self, position: int, epoch: int = 0) -> VLSample:
        """The record at `position`, with the answer that it has in this epoch."""
        record = self.records[position]
        target, weight = self._answer(record, epoch)
        return {
            "task": self.task.name,
            "index": record.index,
            "text": with_prompt(self.task, record.text, self.prompts),
            "target": target,
            "weight": weight,
            "features": torch.stack([self.features.read(name) for name in record.images]),
        }

    def _answer(self, record: VLRecord, epoch: int) -> tuple[str, float]:
        """An answer in proportion to its weight; it follows from seed, epoch and record alone."""
        total = sum(record.weights)
        if not record.answers or total <= 0:
            return "", 0.0  # as VL-Adapter trains on a question whose answers all have the score 0
        if len(record.answers) == 1:
            return record.answers[0], record.weights[0]
        draw = np.random.default_rng((self.seed, epoch, record.index)).random() * total
        passed = np.cumsum(record.weights)
        chosen = min(int(np.searchsorted(passed, draw, side="right")), len(record.answers) - 1)
        return record.answers[chosen], record.weights[chosen]
