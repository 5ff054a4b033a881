"""How busy does a sweep keep its cores? Wall time against the sum of the trials' own times, and a trial's start-up.

    python benchmarks/sweep_throughput.py

64 trials of one epoch on the packaged digits are run by Ray, by `--workers`, and by as many processes with `--shard
1/1` as there are workers. Each worker trains with one thread. How busy the workers are is the sum of the trials' times,
divided by the wall time of the whole command and by the number of workers; the wall time includes the start of Python
and Ray. A trial's time goes from its `trial.json`, written first, to its `results.json`. The useful share counts only
what fits and tests report as their own, without the options, the data and the model of each trial.

The start-up of a trial is the time from the end of the worker's previous trial, which is when its `results.json` was
written, to the first training step. It contains whatever lies between: the hand-over by the queue, locks, the options,
the data and the model. The validation batches of Lightning's sanity check are subtracted, because they are a part of
the fit that grows with the model. The first trial of each worker, which waits for the imports, is not counted. The
start-up of a plain fit is that of the same command line, run again and again in one process without a sweep: the
difference is what a sweep adds.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import measure
import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer

from replora.launch import launch
from replora.memory import usable_cpus
from replora.results import read_results
from replora.sweeps.sweep_file import read_sweep

SWEEP: dict[str, Any] = {
    "base": ["quickstart.yaml"],
    "options": {"model.pretrained": False, "trainer.logger": False},
    "methods": {"LoRA": {"configs": ["adapter/lora.yaml"]}},
}
FIRST_STEP = "first_step.json"


class FirstStep(Callback):
    """Writes into the directory of a run when its first training step begins, and in which process."""

    def __init__(self) -> None:
        self.sanity_check = 0.0

    def on_sanity_check_start(self, *_: object) -> None:
        self.sanity_check -= time.time()

    def on_sanity_check_end(self, *_: object) -> None:
        self.sanity_check += time.time()

    def on_train_batch_start(self, trainer: Trainer, _module: LightningModule, _batch: object, batch_idx: int) -> None:
        if batch_idx == 0:
            # As if there had been no sanity check.
            found = {"process": os.getpid(), "time": time.time() - self.sanity_check}
            Path(trainer.default_root_dir, FIRST_STEP).write_text(json.dumps(found), encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    parser = measure.common_options(__doc__.splitlines()[0], rounds=1)
    parser.add_argument("--trials", type=int, default=64, help="number of trials")
    parser.add_argument("--epochs", type=int, default=1, help="epochs of a trial")
    parser.add_argument("--workers", type=int, default=usable_cpus(), help="trials at the same time")
    options = parser.parse_args(arguments)
    if options.quick:
        options.trials, options.workers, options.rounds = 4, 2, 1
    with tempfile.TemporaryDirectory() as name:
        write_sweep(Path(name), options)
        plain = plain_start_up(Path(name), options)
    results = {name: run(name, options) | {"plain_start_up": plain} for name in ("shards", "workers", "ray")}
    measure.show(
        f"{options.trials} trials by {options.workers} workers",
        ["queue", "wall, s", "trials, s", "busy", "fits and tests, s", "useful", "start-up, s", "of a plain fit, s"],
        [
            [
                name,
                f"{one['seconds']:.1f}",
                f"{one['trial_seconds']:.1f}",
                f"{one['busy']:.1%}",
                f"{one['useful_seconds']:.1f}",
                f"{one['share']:.1%}",
                f"{one['start_up']:.3f}",
                f"{one['plain_start_up']:.3f}",
            ]
            for name, one in results.items()
        ],
    )
    print(measure.write(options.out, "sweep_throughput", measure.settings(options), results))


def write_sweep(folder: Path, options: Any) -> Path:
    own: dict[str, Any] = {"trainer.max_epochs": options.epochs}
    if options.quick:
        own |= {f"trainer.limit_{verb}_batches": 2 for verb in ("train", "val", "test")}
    own["trainer.callbacks"] = [{"class_path": f"sweep_throughput.{FirstStep.__name__}"}]
    content = SWEEP | {"options": SWEEP["options"] | own, "final": {"seeds": list(range(options.trials))}}
    file = folder / "sweep.yaml"
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    return file


def run(queue: str, options: Any) -> dict[str, float]:
    """Run the sweep once, from an empty directory."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_sweep(folder, options)
        command = [sys.executable, "-W", "ignore", "-m", "replora", "sweep", "--config=sweep.yaml"]
        command += ["--out=out", "--make_report=false"]
        own = {"ray": f"--max_concurrent={options.workers}", "workers": f"--workers={options.workers}"}
        command.append(own.get(queue, "--shard=1/1"))
        count = 1 if queue in own else options.workers
        here = Path(__file__).parent
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{here}{os.pathsep}{here.parent}"}
        begin = time.perf_counter()
        processes = [
            subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            for _ in range(count)
        ]
        for process in processes:
            shown, _ = process.communicate()
            if process.returncode:
                raise SystemExit(shown.decode())
        seconds = time.perf_counter() - begin
        files = list((folder / "out").rglob("results.json"))
        assert len(files) == options.trials
        whole = sum(file.stat().st_mtime - file.with_name("trial.json").stat().st_mtime for file in files)
        useful = sum(useful_seconds(file) for file in files)
        start_up = median(start_ups(folder / "out"))
    available = seconds * options.workers
    return {
        "seconds": seconds,
        "trial_seconds": whole,
        "busy": whole / available,
        "useful_seconds": useful,
        "share": useful / available,
        "start_up": start_up,
    }


def useful_seconds(file: Path) -> float:
    """Seconds of the fit and the test of a trial, without what lies before and between them."""
    results = read_results(file.parent)
    return sum(results[verb]["seconds"] for verb in ("fit", "test"))


def start_ups(home: Path) -> list[float]:
    """Seconds from the end of a trial to the first step of the next one in the same process."""
    of_process: dict[int, list[tuple[float, float]]] = {}  # process -> begin and end of each trial
    for file in home.rglob(FIRST_STEP):
        first = json.loads(file.read_text(encoding="utf-8"))
        trial = first["time"], file.with_name("results.json").stat().st_mtime
        of_process.setdefault(first["process"], []).append(trial)
    found = []
    for trials in of_process.values():
        trials.sort()
        found += [begin - end for (_, end), (begin, _) in itertools.pairwise(trials)]
    return found


def plain_start_up(folder: Path, options: Any) -> float:
    """The median seconds from the call of a fit to its first step, in this process, which has run one before."""
    trials = read_sweep(folder / "sweep.yaml").only_trials()[: 3 if options.quick else 10]
    short = ["--trainer.max_steps=1", "--trainer.limit_val_batches=1", "--trainer.limit_test_batches=1"]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = []
    for trial in trials:
        run_dir = folder / trial.folder
        arguments = [*trial.arguments, *short, f"--run_dir={run_dir}", "--trainer.enable_progress_bar=false"]
        silent = io.StringIO()
        begin = time.time()
        with contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent):
            launch(["fit", *arguments])
        found.append(json.loads((run_dir / FIRST_STEP).read_text(encoding="utf-8"))["time"] - begin)
    torch.set_num_threads(threads)
    return median(found[1:])


if __name__ == "__main__":
    main()
