"""The eight commonsense tasks: train on the union of their training sets, measure on the test set of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
from torch.utils.data import DataLoader, Dataset

from datamodules.base import BaseDataModule, Split, at_least, one_of
from datamodules.loader import LengthSampler
from datamodules.text.texts import Questions, TrainingTexts
from replora.backbones.language import load_tokenizer
from replora.datasets.common.paths import data_root
from replora.datasets.common.subsample import stratified_order, subsample_indices
from replora.datasets.errors import ProtocolError, SubsetError, UnknownTaskError
from replora.datasets.text.commonsense import (
    COMMONSENSE_TASKS,
    MIXED,
    MIXED_TASKS,
    CommonsenseRecord,
    commonsense_task,
    files_sha256,
    find_task_file,
    read_task,
    read_union,
)
from replora.datasets.text.items import ChoiceItem, TextRow
from replora.datasets.text.prompts import CUTOFF, Preset, choice_items
from replora.errors import RepLoRAError

Validation = Literal["stratified", "llm_adapters"]

# LLM-Adapters: datasets' train_test_split(test_size=120, shuffle=True, seed=42), which permutes by numpy's default_rng.
LLM_ADAPTERS_VALIDATION = 120
LLM_ADAPTERS_SEED = 42
INDICES_SHOWN = 10_000  # results list the chosen training examples up to so many


class CommonsenseDataModule(BaseDataModule):
    """Commonsense questions as LLM-Adapters published them, under one of three presets.

    Training batches are `replora.datasets.TextBatch`es, evaluation batches lists of `replora.datasets.ChoiceItem`s.
    `index`, fractions and splits refer to the union: the training sets of `tasks`, one after another. `val` is held out
    of it, except under the protocol `final`.

    Args:
        root: Folder of the tasks' folders, or its parent if it is called `commonsense` or `dataset`. Default: the
            environment variable REPLORA_DATA, else `data`.
        tokenizer: `smollm2`, a folder, or a hub id. On the command line it is the model's.
        revision: Branch, tag or commit of the tokenizer's hub repository. On the command line it is the model's.
        preset: `llm_adapters` uses its prompts byte for byte, computes the loss on every token and cuts texts that are
            too long; `clean` has one prompt, computes the loss on the answer alone and leaves long texts out; `cloze`
            puts no options into the prompt and learns the text of the right one. docs/commonsense.md shows them.
        tasks: Names of the tasks to train on. Default: all eight.
        test_tasks: Names of the tasks to test on. Default: `tasks`.
        union_file: File with the training sets of all tasks (commonsense_170k.json), instead of each task's own. It
            does not say which of social_i_qa, ARC-Easy, ARC-Challenge and openbookqa a record belongs to: train on all
            four of them or on none.
        check_sizes: Whether to compare the numbers of records with the published ones: 170,420 in all.
        cutoff: Largest number of tokens in a training text (>= 2).
        group_by_length: Whether to make training batches of texts of similar lengths, which need less padding.
            LLM-Adapters did not.
        validation: `stratified` holds out `val_fraction` of each task, keeps copies of these records out of the
            training too, and measures accuracy; `llm_adapters` holds out the 120 records of its seed 42 and measures
            the loss of the training text.
        val_fraction: Fraction of the training records to hold out, in (0, 1).
        test_items: Largest number of test questions of each task (>= 1), always the same ones. Default: all.
        batch_size: Training texts per batch and process (>= 1). Two processes with 8 see the batches of one with 16.
        drop_last: Whether to drop the last, incomplete training batch of an epoch.
        options: Options of `BaseDataModule`.

    Raises:
        UnknownTaskError: A task is not one of the eight.
        DatasetNotFoundError: A task has no test file.
        RepLoRAError: An option is out of its range, or data are missing or wrong (from `setup`, before the first
            batch).
    """

    disjoint_splits = False  # the published files repeat questions; an evaluation records how many

    def __init__(
        self,
        root: Path | None = None,
        tokenizer: str = "smollm2",
        revision: str | None = None,
        preset: Preset = "clean",
        tasks: list[str] | None = None,
        test_tasks: list[str] | None = None,
        union_file: Path | None = None,
        check_sizes: bool = True,
        cutoff: int = CUTOFF,
        group_by_length: bool = True,
        validation: Validation = "stratified",
        val_fraction: float = 0.1,
        test_items: int | None = None,
        batch_size: int = 16,
        drop_last: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(batch_size=batch_size, drop_last=drop_last, **options)
        one_of(get_args(Preset), preset=preset)
        one_of(get_args(Validation), validation=validation)
        at_least(1, test_items=test_items)
        at_least(2, cutoff=cutoff)
        if not 0 < val_fraction < 1:
            raise RepLoRAError(f"val_fraction={val_fraction} is not in (0, 1): 0.1 holds out a tenth of each task.")
        self.root = data_root(root)
        self.tokenizer_name = tokenizer
        self.revision = revision
        self.preset: Preset = preset
        self.train_tasks = _tasks("tasks", tasks, list(COMMONSENSE_TASKS))
        self.test_tasks = _tasks("test_tasks", test_tasks, self.train_tasks)
        self.union_file = None if union_file is None else union_file.expanduser()
        self.check_sizes = check_sizes
        self.cutoff = cutoff
        self.group_by_length = group_by_length
        self.validation: Validation = validation
        self.val_fraction = val_fraction
        self.test_items = test_items
        self._tokenizer: Any = None
        self._union: list[CommonsenseRecord] | None = None
        self._sha256: str | None = None
        if self.protocol != "tune":
            for task in self.test_tasks:  # before a large model is loaded, which takes minutes
                find_task_file(self.root, task, "test")

    @property
    def tasks(self) -> list[str]:
        """The tasks of all questions, in validation and test."""
        return [name for name in COMMONSENSE_TASKS if name in {*self.train_tasks, *self.test_tasks}]

    @property
    def tokenizer(self) -> Any:
        """The tokenizer, loaded at the first access."""
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self.tokenizer_name, self.revision)
        return self._tokenizer

    def token_limits(self) -> tuple[int, int]:
        """The largest token id and the length of the longest text in tokens, of all splits that are built."""
        texts = [cast("TrainingTexts | Questions", dataset) for dataset in self._splits.values()]
        return max(t.largest_id for t in texts), max(t.longest for t in texts)

    def describe(self) -> dict[str, Any]:
        described = super().describe()
        indices = described["train_indices"]
        if indices is not None and len(indices) > INDICES_SHOWN:
            described["train_indices"] = f"{len(indices):,} of them: fraction, seed and files_sha256 tell which"
        validation = None if self.protocol == "final" else self.validation
        texts = cast("TrainingTexts | None", self._splits.get(self.train_split))
        return described | {
            "task": "commonsense" if len(self.train_tasks) == len(COMMONSENSE_TASKS) else "+".join(self.train_tasks),
            "train_tasks": self.train_tasks,
            "test_tasks": self.test_tasks,
            "root": str(self.root.resolve()),
            "union_file": None if self.union_file is None else self.union_file.name,
            "files_sha256": self._files_sha256(),
            "check_sizes": self.check_sizes,
            "preset": self.preset,
            "tokenizer": self.tokenizer_name,
            "cutoff": self.cutoff,
            "group_by_length": self.group_by_length,
            "validation": validation,
            "val_fraction": self.val_fraction if validation == "stratified" else None,
            "test_items": self.test_items,
            "train_texts": None if texts is None else texts.describe(),
        }

    # --- splits

    def build_split(self, split: Split) -> Dataset[Any]:
        if split == "test":
            records = self._test_records()
            self._list(split, records)
            return Questions(choice_items(self.tokenizer, records, self.preset))
        held_out = self._held_out()
        if split == "val":
            records = [self._read_union()[position] for position in sorted(held_out)]
            self._list(split, records)
            if self.validation == "llm_adapters":
                return self._texts(sorted(held_out))
            if any(record.task == MIXED for record in records):
                raise RepLoRAError(
                    f"The accuracy of held-out questions is per task, but {self.union_file} does not distinguish "
                    f"{MIXED}. Leave --data.union_file out, or measure the loss with "
                    "--data.validation llm_adapters."
                )
            return Questions(choice_items(self.tokenizer, records, self.preset))
        left = self._left(held_out)
        pool = set(left)
        self.train_indices = [i for i in self._fold("train") if i in pool] if self.fold else self._subset(left)
        chosen = set(self.train_indices)
        used = [place for place, position in enumerate(left) if position in chosen]
        self._list(split, [self._read_union()[position] for position in left], used)
        return self._texts(self.train_indices)

    def _list(self, split: Split, records: list[CommonsenseRecord], used: list[int] | None = None) -> None:
        self.lists.add(split, [record.instruction for record in records], [record.answer for record in records], used)

    def _read_union(self) -> list[CommonsenseRecord]:
        """All training records of `train_tasks`; the position in this list is the index of a training text."""
        if self._union is None:
            if self.union_file is None:
                read = partial(read_task, self.root, split="train", check_size=self.check_sizes)
                self._union = [record for task in self.train_tasks for record in read(task)]
            else:
                chosen = self._tasks_of_union_file()
                union = read_union(self.union_file, self.check_sizes)
                self._union = [record for record in union if record.task in chosen]
            if not self._union:
                raise RepLoRAError(f"{self.union_file} has no record of {', '.join(self.train_tasks)}.")
        return self._union

    def _tasks_of_union_file(self) -> set[str]:
        chosen, mixed = set(self.train_tasks), set(MIXED_TASKS)
        if chosen & mixed and not mixed <= chosen:
            raise UnknownTaskError(
                f"tasks: {', '.join(sorted(chosen & mixed))} of a union file: it does not say which of {MIXED} a "
                "record belongs to. Take all four or none, or leave --data.union_file out."
            )
        return chosen - mixed | ({MIXED} if chosen & mixed else set())

    def _held_out(self) -> set[int]:
        """Positions of the validation records; none under `final`."""
        if self.protocol == "final":
            return set()
        if self.fold:
            return set(self._fold("val"))
        union = self._read_union()
        if self.validation == "llm_adapters":
            size = LLM_ADAPTERS_VALIDATION
            order = np.random.default_rng(LLM_ADAPTERS_SEED).permutation(len(union)).tolist()
        else:
            size = max(1, round(self.val_fraction * len(union)))
            order = stratified_order(_strata(union), seed=0)
        if size >= len(union):
            raise RepLoRAError(
                f"protocol={self.protocol!r} with validation={self.validation!r} holds out {size} of {len(union)} "
                "training records: none would be left. Take more tasks, or a smaller --data.val_fraction."
            )
        return set(order[:size])

    def _fold(self, split: Split) -> list[int]:
        """Positions of the training or validation records of the fold, stratified by task."""
        return self.part_of_fold(split, _strata(self._read_union()))

    def _left(self, held_out: set[int]) -> list[int]:
        """Positions of the training records, without copies of held-out ones, which LLM-Adapters' validation keeps.

        WinoGrande's training set contains most sentences more than once.
        """
        union = self._read_union()
        kept_apart = set() if self.validation == "llm_adapters" else {union[i].instruction for i in held_out}
        return [i for i, record in enumerate(union) if i not in held_out and record.instruction not in kept_apart]

    def _subset(self, left: list[int]) -> list[int]:
        """The subset of `left` by a fraction or shots, as positions in the union."""
        union = self._read_union()
        records = [union[position] for position in left]
        if self.shots is not None:
            counts = Counter(record.task for record in records)
            if short := [f"{task} has {count}" for task, count in counts.items() if count < self.shots]:
                raise SubsetError(
                    f"shots={self.shots} asks for {self.shots} records of every task, but {', '.join(short)}."
                )
        chosen = subsample_indices(_strata(records), self._fraction, self.shots, self.subset_seed, "tasks")
        return [left[position] for position in chosen]

    def _texts(self, positions: list[int]) -> TrainingTexts:
        records = [self._read_union()[position] for position in positions]
        # LLM-Adapters pads with 0, whatever the tokenizer; padding is always masked.
        pad_id = 0 if self.preset == "llm_adapters" else int(self.tokenizer.pad_token_id)
        return TrainingTexts(records, positions, self.tokenizer, self.preset, self.cutoff, pad_id)

    def _test_records(self) -> list[CommonsenseRecord]:
        found = []
        for task in self.test_tasks:
            records = read_task(self.root, task, "test", self.check_sizes)
            first = stratified_order([0] * len(records), seed=0)[: self.test_items]
            found += [records[i] for i in sorted(first)]
        return found

    def _files_sha256(self) -> str:
        """SHA-256 of the files that a run of this protocol reads."""
        if self._sha256 is None:
            if self.union_file:
                files = [self.union_file]
            else:
                files = [find_task_file(self.root, task, "train") for task in self.train_tasks]
            if self.protocol != "tune":
                files += [find_task_file(self.root, task, "test") for task in self.test_tasks]
            self._sha256 = files_sha256(files)
        return self._sha256

    # --- batches

    def predict_dataloader(self) -> DataLoader[ChoiceItem]:
        if self.eval_split == "val" and self.validation == "llm_adapters":
            raise ProtocolError(
                "Predictions are answers to questions, but the protocol 'tune' with validation='llm_adapters' measures "
                "the loss of texts. Take --data.validation stratified, or --data.protocol final."
            )
        return super().predict_dataloader()

    def padding_of(self, sample: ChoiceItem | TextRow) -> ChoiceItem | TextRow:
        return sample.padding()

    def _train_sampler(self, dataset: Dataset[Any], world: int, rank: int, drop_last: bool) -> LengthSampler:
        lengths = cast("TrainingTexts", dataset).lengths if self.group_by_length else None
        return LengthSampler(lengths, self.batch_size, dataset, world, rank, self.shuffle_seed, drop_last, self._seen)

    def _collate_fn(self, dataset: Dataset[Any]) -> Callable[[list[Any]], Any]:
        return cast("Questions | TrainingTexts", dataset).collate


def _tasks(option: str, names: list[str] | None, default: list[str]) -> list[str]:
    """The named tasks in the order of the table. Raises UnknownTaskError if a name is unknown or there is none."""
    if names is None:
        return default
    chosen = {commonsense_task(name).name for name in names}
    if not chosen:
        raise UnknownTaskError(f"{option}: no task was named. Known: {', '.join(COMMONSENSE_TASKS)}.")
    return [name for name in COMMONSENSE_TASKS if name in chosen]


def _strata(records: list[CommonsenseRecord]) -> list[int]:
    """The number of each record's task."""
    numbers = {name: number for number, name in enumerate([*COMMONSENSE_TASKS, MIXED])}
    return [numbers[record.task] for record in records]
