"""Generated scenes of colored shapes: questions and captions without a download."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from torch.utils.data import Dataset

from datamodules.base import Protocol, Split, at_least
from datamodules.vision_language.base import VisionLanguageDataModule
from replora.datasets.vision_language.demo import (
    FEATURE_SIZE,
    SCENES,
    DemoFeatures,
    PictureFeatures,
    demo_records,
    demo_scenes,
)
from replora.datasets.vision_language.tasks import VLRecord


class VLDemoDataModule(VisionLanguageDataModule):
    """Scenes of `replora.datasets.vision_language.demo`: 3,000 for training, 300 for validation and 300 for the test.

    Each has a question and a caption. The metrics are those of VQAv2 and COCO captions. No scene is in two splits.

    Args:
        tokenizer: Name of the backbone whose tokenizer is used. On the command line it is `--model.backbone`.
        tasks: Names of the tasks to train together, of `vqa` (questions) and `coco` (captions).
        batch_size: Questions per training batch and process (>= 1). Batches of captions have 50/60 of it.
        protocol: `tune` trains on train and validates on val; `final` trains on train and val and tests; `holdout`
            trains on train, validates on val and tests.
        scene_seed: Random seed (>= 0) for the scenes and questions.
        options: Options of `VisionLanguageDataModule`.
    """

    known_tasks = ("vqa", "coco")

    def __init__(
        self,
        tokenizer: str = "bart_nano",
        tasks: Sequence[str] = ("vqa", "coco"),
        batch_size: int = 60,
        protocol: Protocol = "holdout",
        scene_seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(
            tokenizer=tokenizer,
            revision=None,
            tasks=tasks,
            batch_size=batch_size,
            num_workers=None,
            protocol=protocol,
            drop_last=False,
            root=None,
            feature_size=FEATURE_SIZE,
            prompts="vl_adapter",
            truncation_side="right",
            **options,
        )
        at_least(0, scene_seed=scene_seed)
        self.scene_seed = scene_seed

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"scene_seed": self.scene_seed}

    def read_task(self, task: str, split: Split) -> tuple[Sequence[VLRecord], DemoFeatures]:
        scenes = {name: demo_scenes(name, self.scene_seed) for name in SCENES}
        together = {name: scene for some in scenes.values() for name, scene in some.items()}
        some: list[Literal["train", "val", "test"]] = ["train", "val"] if split == "trainval" else [split]
        records = [record for part in some for record in demo_records(task, part, scenes[part], self.scene_seed)]
        return [replace(record, index=index) for index, record in enumerate(records)], DemoFeatures(together)

    def file_features(
        self,
        recorded: Mapping[str, Any],  # noqa: ARG002
        weights: Path | None,  # noqa: ARG002
        device: str,  # noqa: ARG002
        fps: float | None = None,  # noqa: ARG002
        upright: bool = False,
    ) -> PictureFeatures:
        return PictureFeatures(upright)

    def _needs_workers(self, dataset: Dataset[Any]) -> bool:  # noqa: ARG002
        return False
