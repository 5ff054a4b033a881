"""A sweep that ends in seconds: random weights, a few digits, one epoch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import yaml

from replora.results import read_results
from replora.run_directory import files_named

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


def start(folder: Path, *options: str, limit: str = "--max_concurrent=1", **environment: str) -> subprocess.Popen[str]:
    """A sweep in a process group of its own; `limit` is the option for the number of trials at the same time."""
    command = [sys.executable, "-W", "ignore", "-m", "replora", "sweep", "--config=s.yaml", "--out=out", limit]
    return subprocess.Popen(
        [*command, *options],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
    )


def wait_until(condition: Callable[[], object], seconds: float = 200) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.1)


def wait_for_processes(
    running: Callable[[], list[psutil.Process]], sweep: subprocess.Popen[str]
) -> list[psutil.Process]:
    """Those that are seen first to run a trial; trials are short, so asking twice may find none."""
    found: list[psutil.Process] = []
    wait_until(lambda: found.extend(running()) or found or sweep.poll() is not None)
    assert found, sweep.communicate()[0]
    return found


def finished(folder: Path) -> dict[str, dict]:
    """Directory -> results of every finished trial."""
    found = {}
    for file in files_named("results.json", folder / "out"):
        content = json.loads(file.read_text())
        if "sweep" in content:
            found[content["sweep"]["trial"]] = content
    return found


def measurements(home: Path) -> dict[str, Any]:
    """Directory -> what a trial has measured and how its point was selected."""
    found = {}
    for file in home.rglob("results.json"):
        results = read_results(file.parent)
        verbs = {verb: results[verb]["metrics"] for verb in ("fit", "test") if verb in results}
        found[results["sweep"]["trial"]] = (verbs, results["fit"]["history"], results["sweep"].get("chosen_by"))
    return found
