"""Contents of `results.json` as a run of a sweep writes them, and what a report of them says in its tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from replora.io import read_csv
from replora.results import write_json

SIZES = {0.1: 80, 1.0: 800}


def result(
    method: str = "LoRA",
    score: float | None = 0.5,
    *,
    size: float = 1.0,
    seed: int = 0,
    stage: str = "final",
    rate: float = 0.01,
    decay: float = 1e-4,
    validation: float = 0.4,
    date: str = "2026-01-01",
    data: dict[str, Any] | None = None,
    sweep: str | None = "s",
) -> dict[str, Any]:
    """The content of a `results.json`, as a run of a sweep writes it."""
    content: dict[str, Any] = {
        "format": 1,
        "backbone": {"name": "vit_nano", "fingerprint": "f"},
        "method": method.lower().replace(" ", "_"),
        "options": {"rank": 8},
        "parameters": {"adapter_trained": 2000, "adapter_deployed": 1000, "head": 10, "backbone": 1},
        "data": {
            "dataset": "Digits",
            "task": "digits",
            "protocol": "tune" if stage == "select" else "holdout",
            "train_fraction": size,
            "shots": None,
            "train_indices": list(range(SIZES.get(size, 8))),
        }
        | (data or {}),
        "fit": {
            "metrics": {"val/accuracy": validation},
            "optimizer": {"class": "AdamW", "lr": rate, "weight_decay": decay},
            "history": {"train/loss": [[1, 2.0], [2, 1.0]], "val/accuracy": [[1, 0.2], [2, validation]]},
            "seed": seed,
            "seconds": 2.0,
            "date": date,
            "git": "abc",
            "versions": {"torch": "2"},
        },
    }
    if sweep:
        content["sweep"] = {
            "name": sweep,
            "stage": stage,
            "method": method,
            "task": {},
            "size": {"data.train_fraction": size},
            "grid": {"model.optimizer.lr": rate, "model.optimizer.weight_decay": decay},
            "seed": seed,
        }
    if stage == "final":
        content["test"] = {"metrics": {"test/accuracy": score}, "date": date}
    return content


def write(folder: Path, contents: list[dict[str, Any]]) -> Path:
    for number, content in enumerate(contents):
        write_json(folder / f"{number}" / "results.json", content)
    return folder


def table(folder: Path, name: str) -> list[dict[str, str]]:
    return read_csv(folder / f"{name}.csv")


def row(folder: Path, name: str, **wanted: str) -> dict[str, str]:
    found = [line for line in table(folder, name) if wanted.items() <= line.items()]
    assert len(found) == 1, (wanted, found)
    return found[0]
