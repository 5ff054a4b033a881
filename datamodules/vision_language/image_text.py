"""The image-and-text tasks VQAv2, GQA, NLVR2 and COCO captions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

from datamodules.base import Protocol, Split, one_of
from datamodules.vision_language.base import TruncationSide, VisionLanguageDataModule
from replora.datasets.common.paths import data_root
from replora.datasets.vision_language.features import FeatureFolder
from replora.datasets.vision_language.image_text import CLIP_FEATURES, GRID, feature_folder, image_text_records
from replora.datasets.vision_language.tasks import IMAGE_TASKS, Prompts, VLRecord
from replora.errors import RepLoRAError


class ImageTextDataModule(VisionLanguageDataModule):
    """VQAv2, GQA, NLVR2 and COCO captions, trained together.

    | protocol  | trains on   | validates on | tests on | predicts |
    |-----------|-------------|--------------|----------|----------|
    | `tune`    | train       | val          | refused  | val      |
    | `holdout` | train       | val          | test     | test     |
    | `final`   | train + val | nothing      | test     | test     |

    Published rows are `holdout` with the last weights. VQAv2 and COCO have Karpathy's splits, NLVR2 tests on its public
    test set. `final` trains on all captions of COCO's validation images. GQA trains on its train and valid splits, and
    its testdev is validation and test at once, as in the published rows; under `final` it is never trained on.

    Args:
        tokenizer: Name of the backbone whose tokenizer is used. On the command line it is `--model.backbone`.
        root: Folder of the data. Default: the environment variable REPLORA_DATA, else `data`.
        tasks: Names of the tasks to train together, of `vqa`, `gqa`, `nlvr2` and `coco`.
        batch_size: Training examples per batch and process (>= 1): VQA all of it, GQA 100/60, NLVR2 20/60, COCO 50/60,
            as in VL-Adapter.
        protocol: `tune` trains on train and validates on val; `final` trains on train and val and tests; `holdout`
            trains on train, validates on val and tests.
        predict_split: What `predict` writes predictions of instead: `submit`, GQA's questions whose answers are hidden,
            for the GQA challenge; with the task `gqa` alone.
        drop_last: Whether to drop the last, incomplete training batch of each task. VL-Adapter keeps it.
        feature_size: Width of the features (>= 1): 2048 for CLIP RN101's grid.
        features: Name of the folder with the features in `clip_features`.
        prompts: `vl_adapter` puts the name of the task before the text, `none` does not, as VL-Adapter's full
            fine-tuning.
        truncation_side: Where texts that are too long are cut; VL-Adapter cuts on the right. `left` would cut the name
            of the task away, so it goes with `prompts: none` alone.
        options: Options of `VisionLanguageDataModule`.

    Raises:
        RepLoRAError: An option is out of its range; data are missing or wrong (from `setup`, before the first batch).
    """

    known_tasks = IMAGE_TASKS

    def __init__(
        self,
        tokenizer: str = "facebook/bart-base",
        root: Path | None = None,
        tasks: Sequence[str] = IMAGE_TASKS,
        batch_size: int = 500,
        protocol: Protocol = "holdout",
        predict_split: Literal["submit"] | None = None,
        drop_last: bool = False,
        feature_size: int = 2048,
        features: str = CLIP_FEATURES,
        prompts: Prompts = "vl_adapter",
        truncation_side: TruncationSide = "right",
        **options: Any,
    ) -> None:
        if predict_split is not None:
            one_of(("submit",), predict_split=predict_split)
            if list(tasks) != ["gqa"]:
                raise RepLoRAError(
                    f"predict_split: 'submit' is a split of GQA alone, but the tasks are {list(tasks)}. Set "
                    '--data.tasks "[gqa]".'
                )
        if truncation_side == "left" and prompts != "none":
            raise RepLoRAError(
                "truncation_side: 'left' cuts away the beginning of a long text, where the name of its task is. Set "
                "--data.truncation_side right, or leave the names out (--data.prompts none)."
            )
        super().__init__(
            tokenizer=tokenizer,
            tasks=tasks,
            batch_size=batch_size,
            protocol=protocol,
            drop_last=drop_last,
            feature_size=feature_size,
            prompts=prompts,
            truncation_side=truncation_side,
            **options,
        )
        self.root = data_root(root)
        self.features = features
        self.predict_split = predict_split

    @property
    def predicted_split(self) -> Split:
        return cast("Split", self.predict_split or self.eval_split)  # `submit` is no split of a protocol

    def read_task(self, task: str, split: Split) -> tuple[list[VLRecord], FeatureFolder]:
        records = image_text_records(self.root, task, split)
        count = GRID if self.features == CLIP_FEATURES else None  # another folder may hold other encoders' features
        folder = FeatureFolder(feature_folder(self.root, task, split, self.features), self.feature_size, count=count)
        folder.check_names(name for record in records for name in record.images)
        return records, folder
