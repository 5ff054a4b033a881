"""How busy does a sweep keep its cores? Wall time against the sum of the trials' own times.

    python benchmarks/sweep_throughput.py

64 trials of one epoch on the packaged digits are run by Ray, and by as many processes with `--shard 1/1` as there are
workers. Each worker trains with one thread. The useful share of its time is the sum of the times that fits and tests
report, divided by the wall time of the whole command and by the number of workers. The wall time includes the start of
Python and Ray, and that of each trial.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import measure
import yaml

from replora.memory import usable_cpus

SWEEP: dict[str, Any] = {
    "base": ["quickstart.yaml"],
    "options": {"model.pretrained": False, "trainer.logger": False},
    "methods": {"LoRA": {"configs": ["adapter/lora.yaml"]}},
}


def main(arguments: list[str] | None = None) -> None:
    parser = measure.common_options(__doc__.splitlines()[0], rounds=1)
    parser.add_argument("--trials", type=int, default=64, help="number of trials")
    parser.add_argument("--epochs", type=int, default=1, help="epochs of a trial")
    parser.add_argument("--workers", type=int, default=usable_cpus(), help="trials at the same time")
    options = parser.parse_args(arguments)
    if options.quick:
        options.trials, options.workers, options.rounds = 4, 2, 1
    results = {name: run(name, options) for name in ("shards", "ray")}
    measure.show(
        f"{options.trials} trials by {options.workers} workers",
        ["queue", "wall time, s", "sum of trials, s", "useful share of the workers' time"],
        [
            [name, f"{one['seconds']:.1f}", f"{one['trial_seconds']:.1f}", f"{one['share']:.1%}"]
            for name, one in results.items()
        ],
    )
    settings = {key: value for key, value in vars(options).items() if key != "out"}
    print(measure.write(options.out, "sweep_throughput", settings, results))


def run(queue: str, options: Any) -> dict[str, float]:
    """Run the sweep once, from an empty directory."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        own = {"trainer.max_epochs": options.epochs} | ({"trainer.limit_train_batches": 2} if options.quick else {})
        content = SWEEP | {"options": SWEEP["options"] | own, "final": {"seeds": list(range(options.trials))}}
        (folder / "sweep.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
        command = [sys.executable, "-W", "ignore", "-m", "replora", "sweep", "--config=sweep.yaml"]
        command += ["--out=out", "--make_report=false"]
        count = 1 if queue == "ray" else options.workers
        command += [f"--max_concurrent={options.workers}"] if queue == "ray" else ["--shard=1/1"]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
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
        spent = [trial_seconds(file) for file in (folder / "out").rglob("results.json")]
        assert len(spent) == options.trials
    share = sum(spent) / seconds / options.workers
    return {"seconds": seconds, "trial_seconds": sum(spent), "share": share}


def trial_seconds(file: Path) -> float:
    """Seconds of the fit and the test of a trial, without what lies before and between them."""
    results = json.loads(file.read_text(encoding="utf-8"))
    return sum(results.get(verb, {}).get("seconds", 0.0) for verb in ("fit", "test"))


if __name__ == "__main__":
    main()
