"""The image-and-text tasks VQAv2, GQA, NLVR2 and COCO captions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from datamodules.base import Protocol, Split, one_of
from datamodules.vision_language.base import VisionLanguageDataModule
from replora.datasets.vision_language.features import FeatureFolder
from replora.datasets.vision_language.image_text import CLIP_FEATURES, GRID, LAYOUT, feature_folder, image_text_records
from replora.datasets.vision_language.tasks import IMAGE_TASKS, VLRecord
from replora.errors import RepLoRAError


class ImageTextDataModule(VisionLanguageDataModule):
    """VQAv2, GQA, NLVR2 and COCO captions, trained together.

    Published rows are `holdout` with the last weights. VQAv2 and COCO have Karpathy's splits, NLVR2 tests on its public
    test set. `final` trains on all captions of COCO's validation images. GQA trains on its train and valid splits, and
    its testdev is validation and test at once, as in the published rows; under `final` it is never trained on.

    Args:
        tasks: Names of the tasks to train together, of `vqa`, `gqa`, `nlvr2` and `coco`.
        batch_size: Training examples per batch and process (>= 1): VQA all of it, GQA 100/60, NLVR2 20/60, COCO 50/60,
            as in VL-Adapter.
        protocol: `tune` trains on train and validates on val; `final` trains on train and val and tests; `holdout`
            trains on train, validates on val and tests.
        predict_split: `submit` lets `predict` predict GQA's questions with hidden answers, for the GQA challenge. It
            needs the task `gqa` alone.
        feature_size: Width of the features (>= 1): 2048 for CLIP RN101's grid.
        features: Name of the folder with the features in `clip_features`.
        options: Options of `VisionLanguageDataModule`.
    """

    known_tasks = IMAGE_TASKS
    encoder = "rn101"
    layout = LAYOUT

    def __init__(
        self,
        tasks: Sequence[str] = IMAGE_TASKS,
        batch_size: int = 500,
        protocol: Protocol = "holdout",
        predict_split: Literal["submit"] | None = None,
        feature_size: int = 2048,
        features: str = CLIP_FEATURES,
        **options: Any,
    ) -> None:
        if predict_split is not None:
            one_of(("submit",), predict_split=predict_split)
            if list(tasks) != ["gqa"]:
                raise RepLoRAError(
                    f"predict_split: 'submit' is a split of GQA alone, but the tasks are {list(tasks)}. Set "
                    '--data.tasks "[gqa]".'
                )
        super().__init__(tasks=tasks, batch_size=batch_size, protocol=protocol, feature_size=feature_size, **options)
        self.features = features
        self.predict_split = predict_split
        if self.truncation_side == "left" and self.prompts != "none":
            raise RepLoRAError(
                "truncation_side: 'left' cuts the beginning of a long text, which is the name of its task. Set "
                "--data.truncation_side right, or omit the names (--data.prompts none)."
            )

    def read_task(self, task: str, split: Split) -> tuple[Sequence[VLRecord], FeatureFolder]:
        records = image_text_records(self.root, task, split)
        count = GRID if self.features == CLIP_FEATURES else None  # other folders may contain features of other encoders
        folder = FeatureFolder(feature_folder(self.root, task, split, self.features), self.feature_size, count=count)
        folder.check_names(name for record in records for name in record.images)
        return records, folder
