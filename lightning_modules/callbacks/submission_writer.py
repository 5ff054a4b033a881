"""Writes the answers to vision-and-language tasks in the formats of the benchmarks' scorers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from lightning_modules.callbacks.results_writer import status_of_evaluation
from replora.datasets.vision_language.tasks import vl_task
from replora.metrics.submissions import write_submission


class SubmissionWriter(Callback):
    """`predictions/` of a `validate`, `test` or `predict`: one file per task, in the format of its benchmark.

    The formats have no place for a word, so the files of a partial or diverged run are in `predictions_partial/` or
    `predictions_diverged/`.

    Its module has `answers`: task -> index of the record -> answer.

    Args:
        run_dir: Directory of the run.
    """

    def __init__(self, run_dir: Path) -> None:
        self.folder = run_dir / "predictions"

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "validate":
            self._write(trainer, pl_module, "validate")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer, pl_module, "test")

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer, pl_module, "predict")

    def _write(self, trainer: Trainer, module: LightningModule, verb: str) -> None:
        if not trainer.is_global_zero or getattr(trainer, "fast_dev_run", False):
            return
        answers = cast("dict[str, dict[int, str]]", module.answers)
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        split = datamodule.split_of(verb)
        status = status_of_evaluation(self.folder.parent, trainer, verb).partition(":")[0]
        folder = self.folder if status == "complete" else self.folder.with_name(f"{self.folder.name}_{status}")
        for name, part in datamodule.parts(split).items():
            said = answers.get(name, {})
            file = write_submission(folder, vl_task(name), split, part.records, said)
            rank_zero_info(f"{len(said):,} answers are in {file}")
