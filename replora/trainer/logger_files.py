"""The pictures and the record of a run, for loggers that keep files: TensorBoard, Weights & Biases, MLflow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from PIL import Image


def send_files(loggers: Sequence[Logger], pictures: Sequence[Path], results: Path) -> None:
    """Give each logger the pictures, and where it keeps files `results.json` too. Others get nothing.

    Args:
        loggers: Those of the Trainer.
        pictures: PNG files.
        results: Record of the run.
    """
    for logger in loggers:
        to: Any = logger
        if isinstance(logger, TensorBoardLogger):
            for picture in pictures:
                with Image.open(picture) as image:
                    to.experiment.add_image(picture.stem, np.asarray(image.convert("RGB")), dataformats="HWC")
            to.experiment.flush()
        elif isinstance(logger, WandbLogger):
            for picture in pictures:
                to.log_image(key=picture.stem, images=[str(picture)])
            to.experiment.save(str(results), base_path=str(results.parent), policy="now")
        elif isinstance(logger, MLFlowLogger):
            for file in (*pictures, results):
                to.experiment.log_artifact(to.run_id, str(file))
