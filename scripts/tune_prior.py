"""How does accuracy change with the learning rate? The prior of `tune`'s curve, fitted to the sweeps of this project.

    python scripts/tune_prior.py                  # seconds; results/tune/prior.json

Each method, task and size of a sweep is one curve: the mean validation accuracy of the first stage at each rate. Its
model is that of `replora/tune/curve.py`, and the four numbers are those of the greatest marginal likelihood over all
curves, with the level of each curve unknown. Rates more than 15 points below the best of their curve have failed, and
are left out. The noise of a mean is that of a paired difference on the 200 validation images, of which 15 % differ.

The prior was fitted before `tune` was measured with it, to the sweeps as they were then: results/tune/curves.json has
their curves. Most of these sweeps were run again since; what the fit gives with the results of now stands beside it.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import minimize

from replora.reports.runs import read_runs
from replora.results import write_json
from replora.tune import curve

ROOT = Path(__file__).parents[1] / "results"
SWEEPS = {
    "other tasks": ("transfer_low_data", "commonsense_low_data"),
    "digits": ("digits_low_data", "tied_low_data"),
}
CONFIGURED = 0.01  # rate of LoRA and RepLoRA on images; the linear probe's is ten times that
FAILED = 0.15
NOISE = math.sqrt(0.15 / 200 / 2)
METRICS = ("val/accuracy", "val/acc_norm", "val/acc")
RATE = "model.optimizer.lr"
Line = tuple[np.ndarray, np.ndarray, np.ndarray]  # octaves, mean accuracies, numbers of seeds
Curve = dict[str, Any]  # sweep, method, task, size, and values: rate -> validation accuracy of each seed


def curves_of(sweep: str) -> list[Curve]:
    """The curves of the results of a sweep."""
    found: dict[str, Curve] = {}
    for run in read_runs([ROOT / sweep]):
        label, metrics = run["sweep"], run.get("fit", {}).get("metrics", {})
        value = next((metrics[name] for name in METRICS if metrics.get(name) is not None), None)
        if label["stage"] == "select" and value is not None:
            cell = {"sweep": sweep} | {name: label[name] for name in ("method", "task", "size")}
            curve_there = found.setdefault(json.dumps(cell), {**cell, "values": defaultdict(list)})
            curve_there["values"][str(label["grid"][RATE])].append(value)
    return list(found.values())


def line(of: Curve) -> Line | None:
    """What the fit sees of a curve; None with fewer than three rates at which training has not failed."""
    values = {float(rate): accuracies for rate, accuracies in of["values"].items()}
    rates = sorted(values)
    middle = CONFIGURED * (10 if of["method"] == "linear probe" else 1)
    if of["sweep"] == "commonsense_low_data":
        middle = rates[len(rates) // 2]
    octaves = np.log2(np.array(rates) / middle)
    means = np.array([np.mean(values[rate]) for rate in rates])
    counts = np.array([len(values[rate]) for rate in rates])
    kept = means >= means.max() - FAILED
    return (octaves[kept], means[kept], counts[kept]) if kept.sum() >= 3 else None


def misfit(parameters: np.ndarray, lines: list[Line]) -> float:
    """Minus the logarithm of the marginal likelihood.

    Args:
        parameters: (5,) mean slope, mean curvature, and the logarithms of their deviations and that of single rates.
        lines: The curves.
    """
    slope, curvature = parameters[:2]
    slope_spread, curvature_spread, deviation = np.exp(parameters[2:])
    total = 0.0
    for x, y, counts in lines:
        covariance = slope_spread**2 * np.outer(x, x) + curvature_spread**2 * np.outer(x**2, x**2)
        covariance += np.diag(deviation**2 + NOISE**2 / counts) + 100.0  # the unknown level
        rest = y - y.mean() - slope * x - curvature * x**2
        total += float(np.linalg.slogdet(covariance)[1] + rest @ np.linalg.solve(covariance, rest)) / 2
    return total


def fitted(curves: list[Curve]) -> dict[str, dict[str, float]]:
    """Name of the sweeps -> number of their curves, and the values of the greatest likelihood."""
    names = ("mean_slope", "curvature", "slope", "curvature_spread", "deviation")
    start = np.array([0.0, -0.01, math.log(0.01), math.log(0.005), math.log(0.01)])
    found = {}
    for name, sweeps in SWEEPS.items():
        lines = [one for one in (line(of) for of in curves if of["sweep"] in sweeps) if one is not None]
        best = minimize(misfit, start, args=(lines,), method="Nelder-Mead", options={"maxiter": 5000, "maxfev": 5000}).x
        values = zip(names, (*best[:2], *np.exp(best[2:])), strict=True)
        found[name] = {"curves": len(lines)} | {name: round(float(value), 5) for name, value in values}
    return found


def curves_then() -> list[Curve]:
    found: list[Curve] = json.loads((ROOT / "tune" / "curves.json").read_text(encoding="utf-8"))["curves"]
    return found


def curves_now() -> list[Curve]:
    return [of for sweeps in SWEEPS.values() for sweep in sweeps for of in curves_of(sweep)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "tune" / "prior.json")
    out = parser.parse_args().out
    used = {
        "slope": curve.SLOPE,
        "curvature": curve.CURVATURE,
        "curvature_spread": curve.CURVATURE_SPREAD,
        "deviation": curve.DEVIATION,
    }
    made = {"command": "python scripts/tune_prior.py", "sweeps": SWEEPS, "unit": "part of the examples per octave"}
    found = {"fitted": fitted(curves_then()), "results_of_now": fitted(curves_now()), "used": used}
    write_json(out, made | found)
    print(json.dumps(found, indent=1), out, sep="\n")


if __name__ == "__main__":
    main()
