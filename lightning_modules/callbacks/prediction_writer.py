"""Writes the predictions of a classifier, one line per image or video, in the order of the dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from lightning_modules.callbacks.results_writer import status_of_evaluation
from replora.datasets.common.files import printable
from replora.io import csv_text, replace_text
from replora.results import PREDICTIONS, TEST_CLASSES, TEST_PREDICTIONS

COLUMNS = ["index", "path", "label", "label_name", "predicted", "predicted_name", "probability"]


class PredictionWriter(Callback):
    """`predictions.csv` of a classifier: the most likely class and its probability, beside the true label.

    A test writes the same of its examples, `test_predictions.csv`, and `test_classes.csv`: how each class fared. The
    first process writes the predictions of all processes, each example once. A video that could not be decoded is left
    out. Predictions of a partial or diverged run have a further column, `status`.

    Args:
        run_dir: Directory of the run.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.rows: dict[int, tuple[int, int, float]] = {}  # index -> label, predicted class, probability

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        self.rows = {}

    on_test_start = on_predict_start

    def on_predict_batch_end(
        self,
        trainer: Trainer,  # noqa: ARG002
        pl_module: LightningModule,  # noqa: ARG002
        outputs: Any,
        batch: Any,
        batch_idx: int,  # noqa: ARG002
        dataloader_idx: int = 0,  # noqa: ARG002
    ) -> None:
        probability, predicted = outputs["probabilities"].max(dim=-1)
        columns = (outputs["index"], batch["label"], predicted, probability)
        for index, label, best, p in zip(*(column.tolist() for column in columns), strict=True):
            if index >= 0 and label >= 0:  # -1 marks padding, and videos that could not be decoded
                self.rows[index] = (label, best, p)

    on_test_batch_end = on_predict_batch_end

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        self._end(trainer, "predict", self.run_dir / PREDICTIONS)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end(trainer, "test", self.run_dir / TEST_PREDICTIONS)
        module: Any = pl_module
        classes = module.measured("test").get("classes", [])
        if classes and trainer.is_global_zero and not getattr(trainer, "fast_dev_run", False):
            names = _class_names(trainer) or range(len(classes))
            rows = [[name, *row.values()] for name, row in zip(names, classes, strict=True)]
            replace_text(self.run_dir / TEST_CLASSES, csv_text([["class", *classes[0]], *rows]))

    def _end(self, trainer: Trainer, verb: str, file: Path) -> None:
        rows = self.rows
        if trainer.world_size > 1:
            gathered: list[Any] | None = [None] * trainer.world_size if trainer.is_global_zero else None
            torch.distributed.gather_object(rows, gathered)
            for part in gathered or []:
                rows = rows | part
        if trainer.is_global_zero and not getattr(trainer, "fast_dev_run", False):
            status = status_of_evaluation(self.run_dir, trainer, verb)
            names = _class_names(trainer)
            _write(file, rows, names, _paths(trainer), [] if status == "complete" else [status])
            if verb == "predict":  # those of a test are for other verbs to read
                rank_zero_info(f"{len(rows):,} predictions are in {file}")


def _write(
    file: Path, rows: dict[int, tuple[int, int, float]], names: list[str], paths: list[str], status: list[str]
) -> None:
    lines: list[list[object]] = [[*COLUMNS, *(["status"] if status else [])]]
    for index in sorted(rows):
        label, predicted, probability = rows[index]
        path = printable(paths[index]) if paths else ""
        label_name, predicted_name = (names[i] if 0 <= i < len(names) else "" for i in (label, predicted))
        cells = [index, path, label, label_name, predicted, predicted_name, f"{probability:.6f}"]
        lines.append([*cells, *status])
    replace_text(file, csv_text(lines))


def _class_names(trainer: Trainer) -> list[str]:
    datamodule: Any = getattr(trainer, "datamodule", None)
    return list(datamodule.class_names) if hasattr(datamodule, "build_dataset") else []


def _paths(trainer: Trainer) -> list[str]:
    """The paths of images or videos, if the dataset has files."""
    datamodule: Any = getattr(trainer, "datamodule", None)
    if not hasattr(datamodule, "build_dataset"):
        return []
    paths = getattr(datamodule.build_dataset(datamodule.listed(datamodule.eval_split)), "paths", [])
    return [str(path) for path in paths]
