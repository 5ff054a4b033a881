"""A sweep that ends in seconds: random weights, a few digits, one epoch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

SMALL: dict[str, Any] = {
    "base": ["quickstart.yaml"],
    "options": {
        "model.pretrained": False,
        "data.batch_size": 8,
        "trainer.max_epochs": 1,
        "trainer.limit_val_batches": 1,
        "trainer.limit_test_batches": 1,
        "trainer.num_sanity_val_steps": 0,
        "trainer.logger": False,
    },
    "sizes": {"data.shots": [1]},
    "methods": {
        "LoRA": {"configs": ["adapter/lora.yaml"], "grid": {"model.optimizer.lr": [0.01, 0.02]}},
        "RepLoRA": {"configs": ["adapter/replora.yaml"], "grid": {"model.optimizer.lr": [0.005, 0.01]}},
    },
    "select": {"seeds": [0], "metric": "val/accuracy", "options": {"data.protocol": "tune"}},
    "final": {"seeds": [0, 1], "options": {"data.protocol": "holdout"}},
}


def write_sweep(file: Path, **changes: Any) -> Path:
    """The small sweep as a file; a change of None leaves a key out."""
    content = {key: value for key, value in (SMALL | changes).items() if value is not None}
    file.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return file
