"""Writes the answers of a language model, one JSON object per question, in the order of the dataset."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from lightning_modules.callbacks.results_writer import status_of_evaluation
from replora.io import replace_text


class AnswerWriter(Callback):
    """`predictions.jsonl` of a `test` or `predict`: prompt, options, correct option, selected option and scores.

    The first process writes the answers of all processes, each question once. Answers of a partial or diverged run have
    a further entry, `status`.

    Args:
        run_dir: Directory of the run.
    """

    def __init__(self, run_dir: Path) -> None:
        self.file = run_dir / "predictions.jsonl"
        self.answers: dict[tuple[str, int], Any] = {}  # (task, index) -> the module's answer

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        self.answers = {}

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        self.answers = {}

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any, **__: Any) -> None:  # noqa: ARG002
        self._keep(outputs)

    def on_predict_batch_end(
        self,
        trainer: Trainer,  # noqa: ARG002
        pl_module: LightningModule,  # noqa: ARG002
        outputs: Any,
        *_: Any,
        **__: Any,
    ) -> None:
        self._keep(outputs)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        self._write(trainer, "test")

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        self._write(trainer, "predict")

    def _keep(self, outputs: Any) -> None:
        self.answers |= {(answer["task"], answer["index"]): answer for answer in outputs["answers"]}

    def _write(self, trainer: Trainer, verb: str) -> None:
        answers = self.answers
        if trainer.world_size > 1:
            gathered: list[Any] | None = [None] * trainer.world_size if trainer.is_global_zero else None
            torch.distributed.gather_object(answers, gathered)
            for part in gathered or []:
                answers = answers | part
        if trainer.is_global_zero and not getattr(trainer, "fast_dev_run", False):
            status = status_of_evaluation(self.file.parent, trainer, verb)
            words = {} if status == "complete" else {"status": status}
            lines = [json.dumps(answers[key] | words, ensure_ascii=False) for key in sorted(answers)]
            replace_text(self.file, "".join(f"{line}\n" for line in lines))
            rank_zero_info(f"{len(lines):,} answers are in {self.file}")
