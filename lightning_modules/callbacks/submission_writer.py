"""Writes the answers to vision-and-language tasks as the benchmarks' scorers take them."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from lightning_modules.vision_language import VisionLanguage
from replora.datasets.vision_language.tasks import vl_task
from replora.metrics.submissions import write_submission


class SubmissionWriter(Callback):
    """`predictions/` of a `validate`, `test` or `predict`: a file a task in the format of its benchmark.

    Args:
        run_dir: The run's directory.
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
        if not isinstance(module, VisionLanguage) or not trainer.is_global_zero:
            return
        if getattr(trainer, "fast_dev_run", False):
            return
        datamodule = module.datamodule
        split = datamodule.split_of(verb)
        for name, part in datamodule.parts(split).items():
            file = write_submission(self.folder, vl_task(name), split, part.records, module.answers.get(name, {}))
            rank_zero_info(f"{len(module.answers.get(name, {})):,} answers are in {file}")
