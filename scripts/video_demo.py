"""Results of the video demonstration: RepLoRA, LoRA and the linear probe, each at its best learning rate.

    python scripts/video_demo.py --out results/video_demo

For each method `video_demo.yaml` is fitted at three learning rates and measured on its 100 validation clips
(`rates.json`); the best one is then fitted again with a test at the last epoch (`METHOD/results.json`). Several
processes can share the work: --methods selects methods.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from replora.cli.main import main as replora_cli
from replora.io import replace_text
from replora.results import read_results

# Method -> learning rates. The grids have equal size and bracket the best rates; both low-rank methods share one grid.
RATES = {
    "linear_probe": (0.01, 0.03, 0.1),
    "lora": (0.003, 0.01, 0.03),
    "replora": (0.003, 0.01, 0.03),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("results/video_demo"), help="output folder of the results")
    parser.add_argument("--runs", type=Path, default=Path("runs/video_demo"), help="folder of the runs")
    parser.add_argument("--methods", nargs="+", default=list(RATES), choices=list(RATES), help="methods to run")
    parser.add_argument("--seed", type=int, default=0, help="random seed for backbone, head, adapter and training")
    options = parser.parse_args()
    for method in options.methods:
        accuracies = {}
        for rate in RATES[method]:
            run = options.runs / f"{method}-{rate}"
            fit(run, method, rate, options.seed, "tune")
            accuracies[rate] = read_results(run)["fit"]["metrics"]["val/accuracy"]
        best = max(accuracies, key=lambda rate: accuracies[rate])
        run = options.runs / method
        fit(run, method, best, options.seed, "holdout")
        home = options.out / method
        home.mkdir(parents=True, exist_ok=True)
        for file in (run / "fit.yaml", run / "results.json", run / "logs" / "fit" / "metrics.csv"):
            shutil.copy(file, home / file.name)
        replace_text(
            home / "rates.json",
            json.dumps({"seed": options.seed, "validation_accuracy_by_rate": accuracies, "chosen": best}, indent=2)
            + "\n",
        )


def fit(run: Path, method: str, rate: float, seed: int, protocol: str) -> None:
    """Execute one run, unless its results exist."""
    if (run / "results.json").is_file():
        return
    adapter = [] if method == "replora" else [f"--config=adapter/{method}.yaml"]
    options = [f"--model.optimizer.lr={rate}", f"--seed_everything={seed}", f"--data.protocol={protocol}"]
    quiet = "--trainer.enable_progress_bar=false"
    replora_cli(["fit", "--config=video_demo.yaml", *adapter, *options, f"--run_dir={run}", quiet])


if __name__ == "__main__":
    main()
