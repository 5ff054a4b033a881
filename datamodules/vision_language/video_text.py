"""The video-and-text tasks TVQA, How2QA, TVC and YC2C."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from datamodules.base import Protocol, Split, one_of
from datamodules.vision_language.base import VisionLanguageDataModule
from replora.datasets.errors import ProtocolError
from replora.datasets.vision_language.features import FeatureFolder
from replora.datasets.vision_language.tasks import VIDEO_TASKS, VLRecord
from replora.datasets.vision_language.video_text import CLIP_VIT, FRAMES, LAYOUT, feature_folder, video_text_records


class VideoTextDataModule(VisionLanguageDataModule):
    """TVQA, How2QA, TVC and YC2C of the VALUE benchmark, trained together and measured on their validation splits.

    The answers of the test splits were never published, and the server that scored them is gone, so no test is offered.
    The published rows are test results, which do not compare with the results of this module. Predictions of the test
    splits can still be written (`predict_split: test`).

    Args:
        tasks: Names of the tasks to train together, of `tvqa`, `how2qa`, `tvc` and `yc2c`.
        batch_size: Training examples of each task per batch and process (>= 1).
        protocol: Only `tune`, which trains on train and validates on val.
        predict_split: Split that `predict` predicts: `val` or `test`.
        feature_size: Width of the features (>= 1): 512 for CLIP ViT-B/32's frames.
        features: Name of the folder with the features in `vis_features/{tv,how2,yc2}`.
        options: Options of `VisionLanguageDataModule`.
    """

    known_tasks = VIDEO_TASKS
    encoder = "vit_b32"
    frames = FRAMES
    layout = LAYOUT

    def __init__(
        self,
        tasks: Sequence[str] = VIDEO_TASKS,
        batch_size: int = 50,
        protocol: Protocol = "tune",
        predict_split: Literal["val", "test"] = "val",
        feature_size: int = 512,
        features: str = CLIP_VIT,
        **options: Any,
    ) -> None:
        if protocol != "tune":
            raise ProtocolError(
                f"protocol: {protocol!r} ends with a test, but the answers of VALUE's test splits were never published."
                " Measure on the validation splits (--data.protocol tune)."
            )
        one_of(("val", "test"), predict_split=predict_split)
        super().__init__(tasks=tasks, batch_size=batch_size, protocol=protocol, feature_size=feature_size, **options)
        self.features = features
        self.predict_split = predict_split

    def _check_protocol(self, stage: str | None) -> None:
        if stage == "test":
            raise ProtocolError(
                "A test was requested, but the answers of VALUE's test splits were never published. Measure this model "
                "with `validate`, or write answers to the test with `predict` and --data.predict_split test."
            )
        super()._check_protocol(stage)

    def read_task(self, task: str, split: Split) -> tuple[Sequence[VLRecord], FeatureFolder]:
        assert split != "trainval"  # no protocol here trains on both
        records = video_text_records(self.root, task, split)
        folder = FeatureFolder(feature_folder(self.root, task, self.features), self.feature_size, self.frames)
        folder.check_names(name for record in records for name in record.images)
        return records, folder
