"""Generated scenes of coloured shapes: questions and captions without a download."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from torch.utils.data import Dataset

from datamodules.base import Protocol, Split
from datamodules.vision_language.base import VisionLanguageDataModule
from replora.datasets.vision_language.demo import FEATURE_SIZE, SCENES, DemoFeatures, demo_records, demo_scenes
from replora.datasets.vision_language.tasks import VLRecord


class VLDemoDataModule(VisionLanguageDataModule):
    """Scenes of `replora.datasets.vision_language.demo`: 3,000 to train on, 300 to validate and 300 to test.

    Each has a question and a caption. The metrics are those of VQAv2 and COCO captions. No scene is in two splits.

    Args:
        tokenizer: Of the texts: the name of the backbone; on the command line it is that of `--model.backbone`.
        tasks: Of `vqa` (questions) and `coco` (captions).
        batch_size: Questions per training batch and process; captions 50/60 of it.
        task_batch_sizes: Task -> its batch size instead.
        eval_batch_size: Examples per batch and process elsewhere; `batch_size` by default.
        train_fraction: The part of each task's training examples used, in (0, 1]; nested for one `subset_seed`.
        task_fractions: Task -> its fraction instead.
        subset_seed: Which examples a fraction chooses.
        protocol: See `BaseDataModule`.
        shuffle_seed: Of the order of examples and tasks.
        scene_seed: Of the scenes and questions.

    Raises:
        RepLoRAError: An option is out of its range.
    """

    known_tasks = ("vqa", "coco")

    def __init__(
        self,
        tokenizer: str = "bart_nano",
        tasks: Sequence[str] = ("vqa", "coco"),
        batch_size: int = 60,
        task_batch_sizes: dict[str, int] | None = None,
        eval_batch_size: int | None = None,
        train_fraction: float = 1.0,
        task_fractions: dict[str, float] | None = None,
        subset_seed: int = 0,
        protocol: Protocol = "holdout",
        shuffle_seed: int = 0,
        scene_seed: int = 0,
    ) -> None:
        super().__init__(
            tokenizer=tokenizer,
            revision=None,
            tasks=tasks,
            batch_size=batch_size,
            task_batch_sizes=task_batch_sizes,
            eval_batch_size=eval_batch_size,
            num_workers=None,
            train_fraction=train_fraction,
            task_fractions=task_fractions,
            subset_seed=subset_seed,
            protocol=protocol,
            drop_last=False,
            shuffle_seed=shuffle_seed,
            feature_size=FEATURE_SIZE,
            prompts="vl_adapter",
            truncation_side="right",
        )
        self.scene_seed = scene_seed

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"scene_seed": self.scene_seed}

    def read_task(self, task: str, split: Split) -> tuple[list[VLRecord], DemoFeatures]:
        scenes = {name: demo_scenes(name, self.scene_seed) for name in SCENES}
        together = {name: scene for some in scenes.values() for name, scene in some.items()}
        some: list[Literal["train", "val", "test"]] = ["train", "val"] if split == "trainval" else [split]
        records = [record for part in some for record in demo_records(task, part, scenes[part], self.scene_seed)]
        return [replace(record, index=index) for index, record in enumerate(records)], DemoFeatures(together)

    def _needs_workers(self, dataset: Dataset[Any]) -> bool:  # noqa: ARG002
        return False
