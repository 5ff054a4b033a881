"""The loggers of a run."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger


def loggers(run_dir: Path, verb: str) -> list[Logger]:
    """CSV and TensorBoard loggers in `logs/<verb>`, or `logs/<verb>-2` and so on, as CSVLogger empties its folder."""
    version, count = verb, 1
    while (run_dir / "logs" / version).exists():
        count += 1
        version = f"{verb}-{count}"
    return [
        CSVLogger(run_dir, name="logs", version=version),
        TensorBoardLogger(run_dir, name="logs", version=version, default_hp_metric=False),
    ]
