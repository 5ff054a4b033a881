"""The base of the vision-and-language benchmarks: multi-task training in batches of one task, and tokenization."""

from __future__ import annotations

import hashlib
import logging
import os
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Literal, cast, get_args

import torch
from torch.utils.data import DataLoader, Dataset

from datamodules.base import BaseDataModule, Split, at_least, one_of
from datamodules.vision_language.task_batches import Key, TaskBatches
from replora.datasets.common.paths import data_root
from replora.datasets.common.subsample import check_subset_options, subsample_indices
from replora.datasets.errors import DatasetNotFoundError
from replora.datasets.samples import NO_LOSS, PADDING_INDEX
from replora.datasets.vision_language.clip_encoder import (
    FEATURE_SIZES,
    TIMM_NAMES,
    EncoderName,
    FileFeatures,
    load_encoder,
)
from replora.datasets.vision_language.features import RECORD, FeatureError, FeatureSource
from replora.datasets.vision_language.tasks import Prompts, VLBatch, VLDataset, VLRecord, VLSample, VLTask, vl_task
from replora.errors import RepLoRAError, nearest

log = logging.getLogger(__name__)
TruncationSide = Literal["right", "left"]
MOST_LISTED = 10_000  # indices of chosen examples that results list one by one


class TaskParts(Dataset[Any]):
    """The data sets of several tasks, indexed by complete batches of `TaskBatches`."""

    def __init__(self, parts: Mapping[str, VLDataset]) -> None:
        self.parts = dict(parts)

    def __len__(self) -> int:
        return sum(map(len, self.parts.values()))

    def __getitem__(self, keys: list[Key]) -> list[VLSample]:
        return [
            padding_of(self.parts[task].sample(0, epoch))
            if position == PADDING_INDEX
            else self.parts[task].sample(position, epoch)
            for task, epoch, position in keys
        ]


class VisionLanguageDataModule(BaseDataModule):
    """Several tasks trained together, in single-task batches (`VLBatch` of `replora.datasets.vision_language.tasks`).

    An epoch contains each task once. A subclass reads the records and features of a task and split (`read_task`).

    Args:
        tokenizer: Name of the backbone whose tokenizer is used. On the command line it is `--model.backbone`.
        root: Folder of the data. Default: the environment variable REPLORA_DATA, else `data`.
        tasks: Names of the tasks to train together.
        batch_size: Training examples per batch and process (>= 1). The image tasks take parts of it, as in VL-Adapter:
            VQA all of it, GQA 100/60, NLVR2 20/60, COCO 50/60.
        feature_size: Width of the features (>= 1).
        task_batch_sizes: Batch size of single tasks, as a mapping from task to size.
        task_fractions: Training fraction of single tasks, as a mapping from task to a number in (0, 1].
        prompts: `vl_adapter` puts the name of the task into the text; `none` does not, as VL-Adapter's full fine-tuning
            on images.
        truncation_side: Side on which texts that are too long are cut. VL-Adapter cuts on the right, where the question
            of a video with long subtitles is; `left` keeps the question and deviates from published numbers. On images
            `left` would cut the name of the task, so it needs `prompts: none`. Answers are always cut on the right.
        drop_last: Whether to drop the last, incomplete training batch of each task. VL-Adapter keeps it.
        revision: Branch, tag or commit of the tokenizer's hub repository. On the command line it is the model's.
        options: Options of `BaseDataModule`.

    Raises:
        RepLoRAError: An option is out of its range, or data are missing or wrong (from `setup`).
    """

    known_tasks: tuple[str, ...]
    encoder: ClassVar[EncoderName | None] = None  # encoder of the features of image or video files
    frames: ClassVar[int | None] = None  # number of vectors per video
    layout = ""  # what `root` must contain; empty for data without files
    predict_split: str | None = None  # what `predict` predicts instead of `eval_split`

    disjoint_splits = False  # published files may repeat a question; an evaluation records how many

    def __init__(
        self,
        tasks: Sequence[str],
        batch_size: int,
        feature_size: int,
        tokenizer: str = "facebook/bart-base",
        root: Path | None = None,
        task_batch_sizes: dict[str, int] | None = None,
        task_fractions: dict[str, float] | None = None,
        prompts: Prompts = "vl_adapter",
        truncation_side: TruncationSide = "right",
        revision: str | None = None,
        drop_last: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(batch_size=batch_size, shots=None, fold=None, drop_last=drop_last, **options)
        at_least(1, feature_size=feature_size)
        one_of(get_args(Prompts), prompts=prompts)
        one_of(get_args(TruncationSide), truncation_side=truncation_side)
        for option, names in (
            ("tasks", tasks),
            ("task_batch_sizes", task_batch_sizes or {}),
            ("task_fractions", task_fractions or {}),
        ):
            known = self.known_tasks if option == "tasks" else tuple(tasks)
            if unknown := [name for name in names if name not in known]:
                raise RepLoRAError(f"{option}: there is no task {unknown[0]!r} here. {nearest(unknown[0], known)}")
        if not tasks or len(set(tasks)) < len(tasks):
            raise RepLoRAError(f"tasks: {list(tasks)} is empty or names a task twice. {nearest('', self.known_tasks)}")
        for name, size in (task_batch_sizes or {}).items():
            at_least(1, **{f"task_batch_sizes.{name}": size})
        for name, fraction in (task_fractions or {}).items():
            check_subset_options(fraction, None, f"task_fractions.{name}")
        self.class_names: list[str] = []  # answers are texts
        self.root = data_root(root)
        self.tokenizer_name = tokenizer
        self.revision = revision
        self.tasks = list(tasks)
        self.task_batch_sizes = {
            name: (task_batch_sizes or {}).get(name) or max(1, batch_size * task.batch_share[0] // task.batch_share[1])
            for name, task in ((name, vl_task(name)) for name in tasks)
        }
        self.task_fractions = {name: (task_fractions or {}).get(name, self.train_fraction) for name in tasks}
        self.feature_size = feature_size
        self.prompts: Prompts = prompts
        self.truncation_side: TruncationSide = truncation_side
        self.extractions: dict[str, dict[str, Any]] = {}  # task -> how its features were extracted, if that is known
        self.chosen: dict[str, list[int]] = {}  # task -> positions of a fraction in its training set
        self._tokenizer: Any = None
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else tokenizers warns in every loader process

    @classmethod
    def check_files(cls, options: Mapping[str, Any]) -> None:
        if cls.layout and not (root := data_root(options["root"])).is_dir():
            raise DatasetNotFoundError(
                f"There is no folder {root} (looked in {Path.cwd()}). Set --data.root or the environment variable "
                f"REPLORA_DATA to the folder that contains {cls.layout}"
            )

    def default_eval_batch_size(self) -> int:
        """Examples per batch and process in evaluations."""
        return self.batch_size

    @abstractmethod
    def read_task(self, task: str, split: Split) -> tuple[Sequence[VLRecord], FeatureSource]:
        """Records and features of a task and split; raise on whatever is wrong.

        `trainval` contains the validation records in the form of training records: one record per caption.
        """

    def preprocessing(self) -> dict[str, Any]:
        """How the features were extracted, for answers about other images and videos."""
        return {"extractions": self.extractions}

    def file_features(
        self,
        recorded: Mapping[str, Any],
        weights: Path | None,
        device: str,
        fps: float | None = None,
        upright: bool = False,
    ) -> FeatureSource:
        """The source that extracts features of files, named by their paths, as those in the data were extracted.

        Args:
            recorded: The options of that extraction; those that are not recorded have the defaults of `prepare
                clip-features`.
            weights: File or folder of the encoder's weights. Default: they are downloaded from the hub.
            device: Device of the encoder; `auto` is the first GPU, if there is one.
            fps: Frames per second (> 0) of folders of frames, if it is not recorded.
            upright: Whether to turn photos as their EXIF orientation says.

        Raises:
            RepLoRAError: The encoder is not that of the data, or its weights are not available.
        """
        name: EncoderName | None = recorded.get("encoder", self.encoder)
        if name is None or name != self.encoder or FEATURE_SIZES[name] != self.feature_size:
            known = f"{name} ({RECORD})" if "encoder" in recorded else f"an encoder that no {RECORD} names"
            raise FeatureError(
                f"The run was trained on features of width {self.feature_size} of {known}. Files can be encoded by "
                f"{' or '.join(f'{key} (width {size})' for key, size in FEATURE_SIZES.items())}: rn101 for images, "
                "vit_b32 for videos. Train a run on such features (replora-cli prepare clip-features)."
            )
        encoder = load_encoder(name, weights, device, "--encoder")
        if recorded.get("weights", encoder.weights) != encoder.weights:
            raise FeatureError(
                f"The weights of {weights or TIMM_NAMES[name]} ({encoder.weights}) are not those that extracted the "
                f"features of the training ({recorded['weights']}). Give their file with --encoder."
            )
        seconds = recorded.get("seconds") or 1.5
        return FileFeatures(encoder, self.frames, seconds, recorded.get("fps") or fps, upright)

    @property
    def tokenizer(self) -> Any:
        """The tokenizer, with the added tokens."""
        if self._tokenizer is None:
            from replora.backbones.vl_bart import load_vl_tokenizer  # transformers takes seconds to import

            self._tokenizer = load_vl_tokenizer(self.tokenizer_name, self.revision)
        return self._tokenizer

    def describe(self) -> dict[str, Any]:
        sizes = {name: {t: len(d) for t, d in self.parts(name).items()} for name in self._splits}
        chosen = {
            task: indices if len(indices) <= MOST_LISTED else {"count": len(indices), "sha256": _digest(indices)}
            for task, indices in self.chosen.items()
        }
        return super().describe() | {
            "task": "-".join(self.tasks),
            "tasks": self.tasks,
            "batch_sizes": self.task_batch_sizes,
            "task_fractions": self.task_fractions,
            "feature_size": self.feature_size,
            "prompts": self.prompts,
            "truncation_side": self.truncation_side,
            "split_sizes": sizes,
            "train_indices": chosen or None,
            **self.preprocessing(),
        }

    # --- splits

    @property
    def predicted_split(self) -> Split:
        """The split that `predict` predicts, which may be no split of a protocol."""
        return cast("Split", self.predict_split or self.eval_split)

    def split_of(self, verb: str) -> Split:
        """The split that `validate`, `test` or `predict` runs on."""
        return self.predicted_split if verb == "predict" else "test" if verb == "test" else "val"

    def setup(self, stage: str | None = None) -> None:
        if stage == "predict":
            self._build(self.predicted_split)
        else:
            super().setup(stage)

    def parts(self, split: str) -> dict[str, VLDataset]:
        """Task -> its data set in a split that is built."""
        return cast("TaskParts", self._split(cast("Split", split))).parts

    def build_split(self, split: Split) -> TaskParts:
        parts: dict[str, VLDataset] = {}
        read: list[tuple[str, Sequence[VLRecord]]] = []
        used: list[Sequence[int]] = []
        for task in self.tasks:
            records, positions, features = self._chosen_records(task, split)
            before = sum(len(others) for _, others in read)
            used.append(range(before, before + len(records)) if positions is None else [before + p for p in positions])
            read.append((task, records))
            chosen = records if positions is None else (records[position] for position in positions)
            parts[task] = VLDataset(vl_task(task), chosen, features, self.prompts, self.shuffle_seed)
        self.lists.add(
            split,
            (f"{task} {r.images} {r.text}" for task, records in read for r in records),
            (f"{r.id} {r.answers} {r.truth}" for _, records in read for r in records),
            chain(*used),
        )
        return TaskParts(parts)

    def _chosen_records(
        self, name: str, split: Split
    ) -> tuple[Sequence[VLRecord], Sequence[int] | None, FeatureSource]:
        """All records of a task, the positions of those in use unless all are, and the features."""
        records, features = self.read_task(name, split)
        if not records:
            raise RepLoRAError(f"{name}: the split {split!r} is empty.")
        trained_on = self.extractions.setdefault(name, features.extraction)
        if differing := [k for k, v in features.extraction.items() if trained_on.get(k, v) != v]:
            raise FeatureError(
                f"{name}: the features of the split {split!r} have another {differing[0]} "
                f"({features.extraction[differing[0]]}) than those of the other splits ({trained_on[differing[0]]}), "
                f"according to their {RECORD}. Extract both with the same options."
            )
        if split != self.train_split or self.task_fractions[name] == 1:  # the largest fraction
            return records, None, features
        strata, fraction = [record.stratum for record in records], self.task_fractions[name]
        option = "train_fraction" if fraction == self.train_fraction else f"task_fractions.{name}"
        self.chosen[name] = subsample_indices(strata, fraction, None, self.subset_seed, option=option)
        return records, self.chosen[name], features

    def padding_of(self, sample: VLSample) -> VLSample:
        return padding_of(sample)

    # --- batches

    def train_dataloader(self) -> DataLoader[Any]:
        dataset = self._split(self.train_split)
        world, rank = self._world()
        sizes = {task: len(part) for task, part in self.parts(self.train_split).items()}
        sampler = TaskBatches(sizes, self.task_batch_sizes, world, rank, self.shuffle_seed, self.drop_last, self._seen)
        return self._loader(dataset, None, sampler)

    def _seen(self) -> int:
        """Batches of the current epoch that this process trained on before the run was interrupted and resumed."""
        fit_loop = getattr(self.trainer, "fit_loop", None)
        return fit_loop.epoch_loop.batch_idx + 1 if fit_loop else 0

    def predict_dataloader(self) -> list[DataLoader[Any]]:  # type: ignore[override]
        return [self._loader(part, self.eval_batch_size) for part in self.parts(self.predicted_split).values()]

    def _eval_loader(self, split: Split) -> list[DataLoader[Any]]:  # type: ignore[override]
        """One loader per task."""
        return [self._part_loader(part) for part in self.parts(split).values()]

    def _needs_workers(self, dataset: Dataset[Any]) -> bool:  # noqa: ARG002
        return True  # a file of features for each sample

    def _collate_fn(self, dataset: Dataset[Any]) -> Callable[[list[VLSample]], VLBatch]:  # noqa: ARG002
        return self.collate

    def collate(self, samples: list[VLSample]) -> VLBatch:
        """Samples of one task -> a batch."""
        task = vl_task(samples[0]["task"])
        text = self._tokenize([sample["text"] for sample in samples], task.max_text, self.truncation_side)
        target = self._tokenize([sample["target"] for sample in samples], task.max_target, "right")
        index = torch.tensor([sample["index"] for sample in samples])
        counted = target["attention_mask"].bool() & (index >= 0)[:, None]
        return {
            "task": task.name,
            "input_ids": text["input_ids"],
            "attention_mask": text["attention_mask"],
            "features": torch.stack([sample["features"] for sample in samples]),
            "labels": target["input_ids"].masked_fill(~counted, NO_LOSS),
            "weight": torch.tensor([sample["weight"] for sample in samples]),
            "index": index,
        }

    def warn_of_long_texts(self, task: VLTask, texts: Sequence[str]) -> None:
        """Warn of texts that `collate` truncates."""
        most = min(task.max_text or self.tokenizer.model_max_length, self.tokenizer.model_max_length)
        lengths = [len(self.tokenizer(text, truncation=False, verbose=False).input_ids) for text in texts]
        if long := [(length, text) for length, text in zip(lengths, texts, strict=True) if length > most]:
            log.warning(
                "%s of %s texts are longer than the %s tokens that %s reads, and their %s is cut off, as in training; "
                "the longest has %s: %.60r ...",
                *(f"{len(long):,}", f"{len(texts):,}", most, task.name),
                *("end" if self.truncation_side == "right" else "beginning", *max(long)),
            )

    def _tokenize(self, texts: list[str], most: int | None, side: TruncationSide) -> Any:
        self.tokenizer.truncation_side = side
        most = min(most or self.tokenizer.model_max_length, self.tokenizer.model_max_length)
        return self.tokenizer(texts, truncation=True, max_length=most, padding=True, return_tensors="pt")


def padding_of(sample: VLSample) -> VLSample:
    """A sample like `sample` that no loss and no metric counts."""
    return {**sample, "index": PADDING_INDEX, "target": "", "weight": 0.0}


def _digest(indices: Sequence[int]) -> str:
    return hashlib.sha256(",".join(map(str, indices)).encode()).hexdigest()[:16]
