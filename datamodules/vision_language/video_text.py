"""The video-and-text tasks TVQA, How2QA, TVC and YC2C."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from datamodules.base import Protocol, Split, one_of
from datamodules.vision_language.base import TruncationSide, VisionLanguageDataModule
from replora.datasets.errors import ProtocolError
from replora.datasets.vision_language.features import FeatureFolder
from replora.datasets.vision_language.tasks import VIDEO_TASKS, Prompts, VLRecord
from replora.datasets.vision_language.video_text import CLIP_VIT, FRAMES, feature_folder, video_text_records


class VideoTextDataModule(VisionLanguageDataModule):
    """TVQA, How2QA, TVC and YC2C of the VALUE benchmark, trained together and measured on their validation splits.

    The answers of the test splits were never published, and the server that scored them is gone, so no test is offered.
    The published rows are test results: numbers of this module stand beside each other, not beside those. Predictions
    of the test splits can still be written (`predict_split: test`).

    Args:
        tokenizer: Of the texts: the name of the backbone; on the command line it is that of `--model.backbone`.
        root: The folder of the data, which holds `video`. Default: the environment variable REPLORA_DATA, else `data`.
        tasks: Of `tvqa`, `how2qa`, `tvc` and `yc2c`.
        batch_size: Training examples of each task per batch and process.
        task_batch_sizes: Task -> its batch size instead.
        eval_batch_size: Examples per batch and process elsewhere; `batch_size` by default.
        num_workers: Loader processes of each training process. By default the usable CPU cores divided by the devices,
            at most 8.
        train_fraction: The part of each task's training examples used, in (0, 1]; nested for one `subset_seed`.
        task_fractions: Task -> its fraction instead.
        subset_seed: Which examples a fraction chooses.
        protocol: `tune` alone: train on train, validate on val.
        predict_split: What `predict` writes predictions of: `val` or `test`.
        drop_last: Leave out the last, incomplete training batch of each task. VL-Adapter keeps it.
        shuffle_seed: Of the order of examples and tasks.
        feature_size: Width of the features: 512 of CLIP ViT-B/32's frames.
        features: Name of the folder of the features in `vis_features/{tv,how2,yc2}`.
        prompts: `vl_adapter` puts the name of the task behind the text, `none` does not.
        truncation_side: Where texts of more than 600 tokens are cut. VL-Adapter cuts on the right, where the question
            of a video with long subtitles is; `left` keeps the question, and deviates from published numbers. Answers
            are cut on the right in any case.
        revision: Branch, tag or commit of the tokenizer's hub repository. On the command line it is the model's.

    Raises:
        RepLoRAError: An option is out of its range; data are missing or wrong (from `setup`, before the first batch).
    """

    known_tasks = VIDEO_TASKS

    def __init__(
        self,
        tokenizer: str = "facebook/bart-base",
        root: Path | None = None,
        tasks: Sequence[str] = VIDEO_TASKS,
        batch_size: int = 50,
        task_batch_sizes: dict[str, int] | None = None,
        eval_batch_size: int | None = None,
        num_workers: int | None = None,
        train_fraction: float = 1.0,
        task_fractions: dict[str, float] | None = None,
        subset_seed: int = 0,
        protocol: Protocol = "tune",
        predict_split: Literal["val", "test"] = "val",
        drop_last: bool = False,
        shuffle_seed: int = 0,
        feature_size: int = 512,
        features: str = CLIP_VIT,
        prompts: Prompts = "vl_adapter",
        truncation_side: TruncationSide = "right",
        revision: str | None = None,
    ) -> None:
        if protocol != "tune":
            raise ProtocolError(
                f"protocol: {protocol!r} ends with a test, but the answers of VALUE's test splits were never published."
                " Measure on the validation splits (--data.protocol tune)."
            )
        one_of(("val", "test"), predict_split=predict_split)
        super().__init__(
            tokenizer=tokenizer,
            revision=revision,
            tasks=tasks,
            batch_size=batch_size,
            task_batch_sizes=task_batch_sizes,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            train_fraction=train_fraction,
            task_fractions=task_fractions,
            subset_seed=subset_seed,
            protocol=protocol,
            drop_last=drop_last,
            shuffle_seed=shuffle_seed,
            feature_size=feature_size,
            prompts=prompts,
            truncation_side=truncation_side,
        )
        self.root = (root or Path(os.environ.get("REPLORA_DATA") or "data")).expanduser()
        self.features = features
        self.predict_split = predict_split

    @property
    def predicted_split(self) -> Literal["val", "test"]:
        return self.predict_split

    def read_task(self, task: str, split: Split) -> tuple[list[VLRecord], FeatureFolder]:
        assert split != "trainval"  # no protocol here trains on both
        records = video_text_records(self.root, task, split)
        folder = FeatureFolder(feature_folder(self.root, task, self.features), self.feature_size, FRAMES)
        folder.require(name for record in records for name in record.images)
        return records, folder
