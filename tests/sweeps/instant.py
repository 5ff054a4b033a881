"""Sweeps whose trials train nothing: a queue that writes results at once, and what a test asks of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from replora.results import write_json
from replora.sweeps.part import WHOLE, Part
from replora.sweeps.plan import Sweep, Trial
from replora.sweeps.progress import Progress
from replora.sweeps.sweep import run_sweep
from replora.sweeps.sweep_file import read_sweep
from tests.sweeps.small_sweep import SMALL, write_sweep

Value = Callable[[Trial], float | None]
LORA = {"LoRA": SMALL["methods"]["LoRA"]}


class Instant:
    """A queue whose trials have ended at once: with a value, diverged where it is None, or failed by an error."""

    def __init__(self, value: Value = lambda _: 0.5) -> None:
        self.value = value
        self.ran: list[str] = []

    def run(
        self, home: Path, sweep: str, trials: Sequence[Trial], rules: Sequence[dict[str, Any] | None], shown: Progress
    ) -> None:
        for trial, rule in zip(trials, rules, strict=True):
            self.ran.append(trial.folder)
            (home / trial.folder).mkdir(parents=True, exist_ok=True)
            (home / trial.folder / "trial.json").write_text(json.dumps({"arguments": trial.arguments}))
            label = {"name": sweep, "stage": trial.stage, "method": trial.method, "task": trial.task.options}
            label |= {"size": trial.size.options, "grid": trial.grid.options, "seed": trial.seed}
            label |= {"trial": trial.folder} | ({"chosen_by": rule} if rule else {})
            try:
                value = self.value(trial)
            except OSError as error:
                (home / trial.folder / "error.txt").write_text(str(error))
                shown.failed(trial, str(error))
                continue
            (home / trial.folder / "error.txt").unlink(missing_ok=True)
            label |= {} if value is not None else {"failed": "the loss is nan"}
            fit = {"fit": {"metrics": {"val/accuracy": value}}} if value is not None else {}
            write_json(home / trial.folder / "results.json", {"format": 1, "sweep": label} | fit)


def planned(folder: Path, **changes: Any) -> Sweep:
    """LoRA at two rates, the lower of which is selected by `Instant`, and two final seeds."""
    return read_sweep(write_sweep(folder / "s.yaml", **({"methods": LORA} | changes)))


def run(sweep: Sweep, home: Path, value: Value = lambda _: 0.5, part: Part = WHOLE, **options: Any) -> list[str]:
    """The directories of the trials that a command runs."""
    queue = Instant(value)
    run_sweep(sweep, home, queue, part=part, **options)  # type: ignore[arg-type]
    return queue.ran


def at_rate(rate: float) -> Value:
    """The values of a first stage that selects this rate."""
    return lambda trial: 0.9 if trial.grid.options["model.optimizer.lr"] == rate else 0.1


def results_of(home: Path, folder: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((home / folder / "results.json").read_text())
    return content


def select_again(sweep: Sweep, home: Path, value: Value) -> None:
    """Let the finished first stage have other values, as more seeds or another rule would."""
    trials = sweep.selection_trials()
    Instant(value).run(home, sweep.name, trials, [None] * len(trials), None)  # type: ignore[arg-type]
