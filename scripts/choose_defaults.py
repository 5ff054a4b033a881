"""Measure RepLoRA's options on validation images, each over the same grid of learning rates, to choose the defaults.

    python scripts/choose_defaults.py --out results/defaults.json

`vit_nano` on digits: 10 images a class, 20 epochs, batch 16, accuracy on the 200 validation images at the last epoch;
the test images are not used. Every run is an ordinary `replora-cli fit` with the protocol `tune`. Takes less than half
an hour on two CPU cores (two processes of one thread). Finished runs are kept in a `.jsonl` beside the output, and a
second start goes on from there. `docs/method.md` quotes the result.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
SEEDS = (0, 1, 2)
REPLORA = "--model.adapter.init_args"

# Name -> configuration of the adapter and options beyond it.
VARIANTS: dict[str, list[str]] = {
    "linear probe": ["--config=adapter/linear_probe.yaml"],
    "LoRA": ["--config=adapter/lora.yaml"],
    "linear, hidden 64, exponent 0.5": ["--config=adapter/linear.yaml"],
    **{
        f"RepLoRA gelu, hidden {hidden}, exponent {exponent}": [
            "--config=adapter/replora.yaml",
            f"{REPLORA}.hidden={hidden}",
            f"{REPLORA}.scale_exponent={exponent}",
        ]
        for hidden, exponent in itertools.product((16, 64), (0.0, 0.5, 1.0))
    },
    **{
        f"RepLoRA {activation}, hidden 64, exponent 0.5": [
            "--config=adapter/replora.yaml",
            f"{REPLORA}.activation={activation}",
        ]
        for activation in ("relu", "tanh")
    },
}


def validation_accuracy(variant: str, rate: float, seed: int) -> float:
    """One run: accuracy on the validation images after the last epoch, in [0, 1]."""
    import torch

    from replora.cli import main
    from replora.reports.results import read_results

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        main(
            [
                "fit",
                "--config=quickstart.yaml",
                *VARIANTS[variant],
                "--data.protocol=tune",
                "--data.shots=10",
                f"--data.subset_seed={seed}",
                f"--data.shuffle_seed={seed}",
                "--data.batch_size=16",
                "--trainer.max_epochs=20",
                "--trainer.check_val_every_n_epoch=20",
                "--trainer.enable_progress_bar=false",
                f"--model.optimizer.lr={rate}",
                f"--seed_everything={seed}",
                f"--run_dir={folder}/run",
            ]
        )
        accuracy: float = read_results(Path(folder) / "run")["fit"]["metrics"]["val/accuracy"]
        return accuracy


def summary(accuracies: dict[float, list[float]]) -> dict[str, Any]:
    """Mean and standard deviation over the seeds at each rate, in percent, and the rate with the best mean."""
    means = {rate: 100 * statistics.fmean(values) for rate, values in accuracies.items()}
    best = max(means, key=lambda rate: means[rate])
    return {
        "best_rate": best,
        "best_mean": round(means[best], 2),
        "best_std": round(100 * statistics.stdev(accuracies[best]), 2),
        "mean_by_rate": {f"{rate:g}": round(mean, 2) for rate, mean in means.items()},
        "accuracies_by_rate": {f"{rate:g}": values for rate, values in accuracies.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results/defaults.json"))
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()

    from replora.reports.results import circumstances

    done_file = args.out.with_suffix(".jsonl")
    done_file.parent.mkdir(parents=True, exist_ok=True)
    runs = [json.loads(line) for line in done_file.read_text().splitlines()] if done_file.exists() else []
    done = {(run["variant"], run["rate"], run["seed"]) for run in runs}
    jobs = [job for job in itertools.product(VARIANTS, RATES, SEEDS) if job not in done]
    with ProcessPoolExecutor(args.workers, mp_context=get_context("spawn")) as pool, done_file.open("a") as log:
        for job, accuracy in zip(jobs, pool.map(validation_accuracy, *zip(*jobs, strict=True)), strict=True):
            runs.append(dict(zip(("variant", "rate", "seed"), job, strict=True)) | {"accuracy": round(accuracy, 4)})
            log.write(json.dumps(runs[-1]) + "\n")
            log.flush()
            print(*runs[-1].values(), flush=True)
    measured: dict[str, dict[float, list[float]]] = {name: {rate: [] for rate in RATES} for name in VARIANTS}
    for run in sorted(runs, key=lambda run: run["seed"]):
        measured[run["variant"]][run["rate"]].append(run["accuracy"])
    result = {
        "task": "vit_nano on digits, 10 images a class, 20 epochs, batch 16; accuracy on the 200 validation images",
        "selection": "last epoch of each run; the best learning rate of each variant by the mean over the seeds",
        "seeds": list(SEEDS),
        "learning_rates": list(RATES),
        "variants": {name: summary(accuracies) for name, accuracies in measured.items()},
        **circumstances(),
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
