"""Do shared factors need fewer samples? The paper's mixture of experts, simulated on a CPU core.

    python scripts/theory_simulation.py              # runs/theory/runs.jsonl, one line per finished fit
    python scripts/theory_simulation.py --report     # results/theory, and the tables of docs/theory.md

A softmax mixture of one frozen expert (j = 0) and L experts whose matrices have rank-1 updates, as in an attention head
with LoRA on query and value:

    f(x) = sum_j w_j(x) N_j x,    w = softmax_j(x^T M_j x + c_j),    c_0 = 0
    M_j = M + B_Q,j A_Q,j,    N_j = N + B_V,j A_V,j    for j = 1 .. L

Data are y = f(x) + noise. Three classes are fitted by least squares with Levenberg-Marquardt (MINPACK, exact Jacobian)
that starts near the truth: `free` (LoRA: B_Q, A_Q, B_V, A_V), `shared` (one B and one A for query and value, the
paper's simple linear reparameterization) and `shared, tanh` (B = 2 tanh(b), A = 2 tanh(a), its non-linear one). Each
seed has a truth, data and a start of its own; a smaller sample is the beginning of a larger one. Started again, the
script continues where it stopped.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from evidence import add_run, made_by, options, origin, read_runs, short, table, write_page
from scipy.optimize import least_squares

from replora.reports.render.charts import draw_curves
from replora.reports.statistics import Mean, mean_over_seeds
from replora.results import environment_info

NOISE = 0.1  # standard deviation of the noise of each output
START = 0.1  # standard deviation of the start's distance from the truth, in each parameter
BOUND = math.sqrt(3)  # inputs are uniform in [-BOUND, BOUND]^d: bounded, as the theorems ask, with variance 1
TANH = 2.0  # largest entry of a factor that tanh generates
TEST_POINTS = 4096
CLASSES = ("free", "shared", "shared, tanh")
FACTORS = ("BQ", "AQ", "BV", "AV")
ERRORS = {
    "prediction": "prediction RMSE",
    "products": "Voronoi loss, products BA",
    "raw": "Voronoi loss, factors B and A",
    "balanced": "Voronoi loss, balanced factors",
}


@dataclass(frozen=True)
class Case:
    """A kind of truth, and what is fitted to it.

    Attributes:
        dimension: d, of inputs and outputs.
        experts: L, the number of true experts besides the frozen one.
        extra: Number of experts that are fitted beyond L.
        tied: Whether query and value of the truth have the same factors, so that the truth is in the shared classes.
        samples: Sample sizes n.
    """

    dimension: int
    experts: int
    extra: int
    tied: bool
    samples: tuple[int, ...]


GRID = (100, 316, 1000, 3162, 10000, 31623)
CASES = {
    "exact": Case(3, 2, 0, True, GRID),
    "one expert too many": Case(3, 2, 1, True, GRID[:-1]),
    "truth not shared": Case(3, 2, 0, False, GRID),
    "exact, d = 6, L = 4": Case(6, 4, 0, True, (316, 1000, 3162)),
}
SEEDS = 12
QUICK = {"exact": Case(2, 1, 0, True, (50, 100)), "one expert too many": Case(2, 1, 1, True, (50, 100))}
Parameters = dict[str, np.ndarray]  # BQ, AQ, BV, AV (L, d) and c (L)


# --- the mixture


class Mixture:
    """The frozen matrices M and N (d, d); predictions and their derivatives."""

    def __init__(self, dimension: int, generator: np.random.Generator) -> None:
        self.M, self.N = generator.normal(0, 1 / math.sqrt(dimension), (2, dimension, dimension))

    def parts(self, x: np.ndarray, p: Parameters) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Weights (n, L + 1), outputs of experts (n, L + 1, d) and predictions (n, d)."""
        updates = (x @ p["BQ"].T) * (x @ p["AQ"].T)  # (n, L)
        frozen = np.einsum("ni,ij,nj->n", x, self.M, x, optimize=True)[:, None]
        scores = np.concatenate([frozen, frozen + updates + p["c"]], axis=1)
        scores -= scores.max(axis=1, keepdims=True)
        weights = np.exp(scores)
        weights /= weights.sum(axis=1, keepdims=True)
        outputs = np.repeat((x @ self.N.T)[:, None, :], 1 + len(p["c"]), axis=1)
        outputs[:, 1:] += (x @ p["AV"].T)[:, :, None] * p["BV"]
        return weights, outputs, np.einsum("nj,njd->nd", weights, outputs)

    def predict(self, x: np.ndarray, p: Parameters) -> np.ndarray:
        return self.parts(x, p)[2]

    def derivatives(self, x: np.ndarray, p: Parameters) -> Parameters:
        """Of the predictions in each parameter: (n, d, L, d), and (n, d, L) for c."""
        weights, outputs, found = self.parts(x, p)
        w = weights[:, 1:]
        of_score = (w[:, :, None] * (outputs[:, 1:] - found[:, None])).transpose(0, 2, 1)  # (n, d, L)
        along = {name: (x @ p[name].T)[:, None, :, None] for name in FACTORS}  # (n, 1, L, 1)
        inputs = x[:, None, None, :]
        identity = np.eye(x.shape[1])[None, :, None, :]  # (1, d, 1, d)
        return {
            "c": of_score,
            "BQ": of_score[..., None] * along["AQ"] * inputs,
            "AQ": of_score[..., None] * along["BQ"] * inputs,
            "BV": w[:, None, :, None] * along["AV"] * identity,
            "AV": (w[:, :, None] * p["BV"]).transpose(0, 2, 1)[..., None] * inputs,
        }


class Fitted:
    """One class: flat vector -> parameters of the mixture, and the chain rule."""

    def __init__(self, name: str, experts: int, dimension: int) -> None:
        self.name, self.shape = name, (experts, dimension)
        self.roles = FACTORS if name == "free" else ("B", "A")
        self.numbers = experts * (1 + len(self.roles) * dimension)
        # A factor of B may move to A, one in each product: these numbers change nothing.
        self.effective = experts * (1 + len(self.roles) * dimension - len(self.roles) // 2)

    def unpack(self, flat: np.ndarray) -> tuple[Parameters, dict[str, np.ndarray]]:
        """The mixture's parameters, and the derivative of each factor in its own numbers."""
        experts, dimension = self.shape
        own = flat[experts:].reshape(len(self.roles), experts, dimension)
        values = TANH * np.tanh(own) if self.name.endswith("tanh") else own
        slopes = TANH - values**2 / TANH if self.name.endswith("tanh") else np.ones_like(own)
        of_role = dict(zip(self.roles, values, strict=True))
        parameters = {name: of_role[name if name in of_role else name[0]] for name in FACTORS}
        return parameters | {"c": flat[:experts]}, dict(zip(self.roles, slopes, strict=True))

    def start(self, truth: Parameters) -> np.ndarray:
        """The flat vector of the truth; where it is not shared, of the mean of query and value."""
        if self.name == "free":
            own = [truth[name] for name in FACTORS]
        else:
            own = [(truth[f"{role}Q"] + truth[f"{role}V"]) / 2 for role in self.roles]
        values = np.arctanh(np.array(own) / TANH) if self.name.endswith("tanh") else np.array(own)
        return np.concatenate([truth["c"], values.ravel()])

    def jacobian(self, mixture: Mixture, x: np.ndarray, flat: np.ndarray) -> np.ndarray:
        parameters, slopes = self.unpack(flat)
        found = mixture.derivatives(x, parameters)
        columns = [found["c"]]
        for role in self.roles:
            summed = found[role] if role in found else found[f"{role}Q"] + found[f"{role}V"]
            columns.append((summed * slopes[role]).reshape(*summed.shape[:2], -1))
        return np.concatenate(columns, axis=2).reshape(x.size, -1)


# --- errors


def voronoi_losses(fitted: Parameters, truth: Parameters) -> dict[str, float]:
    """The losses of the paper's kind: each fitted expert belongs to the nearest true one (by products).

    A true expert with one fitted expert counts with the distance, one with several with the squared distances (the
    order of the over-specified case), both weighted by exp(c); the sums of exp(c) are compared besides.
    """
    apart = np.stack(
        [
            [sum(np.sum((_product(fitted, t, i) - _product(truth, t, j)) ** 2) for t in "QV") for j in _experts(truth)]
            for i in _experts(fitted)
        ]
    )  # (fitted, true)
    nearest = apart.argmin(axis=1)
    losses = dict.fromkeys(("products", "raw", "balanced"), 0.0)
    balanced, balanced_truth = _balanced(fitted), _balanced(truth)
    for j in _experts(truth):
        members = np.flatnonzero(nearest == j)
        weights = np.exp(fitted["c"][members])
        power = 1 if len(members) == 1 else 2
        for name in losses:
            losses[name] += abs(weights.sum() - np.exp(truth["c"][j]))
        for i, weight in zip(members, weights, strict=True):
            products = [np.linalg.norm(_product(fitted, t, i) - _product(truth, t, j)) for t in "QV"]
            losses["products"] += weight * sum(distance**power for distance in products)
            for name, (one, other) in {"raw": (fitted, truth), "balanced": (balanced, balanced_truth)}.items():
                # The signs of B and A may be swapped together; the nearer ones count.
                signs = (1, -1) if name == "balanced" else (1,)
                for t in "QV":
                    losses[name] += weight * min(
                        sum(np.linalg.norm(sign * one[f"{f}{t}"][i] - other[f"{f}{t}"][j]) ** power for f in "BA")
                        for sign in signs
                    )
    return {name: float(value) for name, value in losses.items()}


def _product(p: Parameters, t: str, expert: int) -> np.ndarray:
    return np.outer(p[f"B{t}"][expert], p[f"A{t}"][expert])


def _experts(p: Parameters) -> range:
    return range(len(p["c"]))


def _balanced(p: Parameters) -> Parameters:
    """The same products with B and A of equal length."""
    found = dict(p)
    for t in "QV":
        lengths = {f: np.linalg.norm(p[f"{f}{t}"], axis=1, keepdims=True) for f in "BA"}
        root = np.sqrt(lengths["A"] / np.maximum(lengths["B"], 1e-300))
        found |= {f"B{t}": p[f"B{t}"] * root, f"A{t}": p[f"A{t}"] / np.maximum(root, 1e-300)}
    return found


# --- one seed of one case


def draw_truth(case: Case, generator: np.random.Generator) -> Parameters:
    """Entries of +-0.6 to +-1.2, so that no expert vanishes and the generated factors reach them."""
    shape = (case.experts, case.dimension)
    truth = {name: generator.uniform(0.6, 1.2, shape) * generator.choice((-1.0, 1.0), shape) for name in FACTORS}
    if case.tied:
        truth |= {"BV": truth["BQ"], "AV": truth["AQ"]}
    return truth | {"c": generator.uniform(-0.3, 0.3, case.experts)}


def fits(name: str, case: Case, seed: int) -> list[dict[str, Any]]:
    """Fit every class to every sample size."""
    generator = np.random.default_rng([seed, case.dimension, case.experts, case.tied])
    mixture, truth = Mixture(case.dimension, generator), draw_truth(case, generator)
    test = generator.uniform(-BOUND, BOUND, (TEST_POINTS, case.dimension))
    x_all = generator.uniform(-BOUND, BOUND, (max(case.samples), case.dimension))
    y_all = mixture.predict(x_all, truth) + generator.normal(0, NOISE, x_all.shape)
    wanted = mixture.predict(test, truth)
    grown = {key: np.concatenate([value, value[: case.extra]]) for key, value in truth.items()}
    if case.extra:  # the first expert is fitted twice, each time with half of its weight
        halves = [*range(case.extra), *range(case.experts, case.experts + case.extra)]
        grown["c"][halves] -= math.log(2)
    rows = []
    for kind in CLASSES:
        fitted = Fitted(kind, case.experts + case.extra, case.dimension)
        centre = fitted.start(grown)
        start = centre + generator.normal(0, START, centre.shape)
        for n in case.samples:
            x, y = x_all[:n], y_all[:n]
            began = time.perf_counter()
            found = least_squares(
                lambda flat, x=x, y=y, fitted=fitted: (mixture.predict(x, fitted.unpack(flat)[0]) - y).ravel(),
                start,
                jac=lambda flat, x=x, fitted=fitted: fitted.jacobian(mixture, x, flat),
                method="lm",
                xtol=1e-8,
                ftol=1e-10,
                gtol=1e-10,
                max_nfev=200,
            )
            parameters = fitted.unpack(found.x)[0]
            error = math.sqrt(np.mean((mixture.predict(test, parameters) - wanted) ** 2))
            row = {"case": name, "class": kind, "seed": seed, "n": n, "prediction": short(error)}
            losses = {key: short(value) for key, value in voronoi_losses(parameters, truth).items()}
            numbers = {"parameters": fitted.numbers, "effective": fitted.effective}
            ended = {"converged": found.status > 0, "evaluations": int(found.nfev)}
            rows.append({**row, **losses, **numbers, **ended, "seconds": short(time.perf_counter() - began)})
    return rows


# --- all seeds, and what they say


def summary(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One row for each case, class and n with the errors by seed, and the slopes of their logarithms in log n.

    Seeds that do not have all cases yet are left out.
    """
    counts = Counter(run["seed"] for run in runs)
    runs = [run for run in runs if counts[run["seed"]] == max(counts.values())]
    rows: list[dict[str, Any]] = []
    slopes: list[dict[str, Any]] = []
    for case in dict.fromkeys(run["case"] for run in runs):
        for kind in CLASSES:
            fitted = [run for run in runs if (run["case"], run["class"]) == (case, kind)]
            samples, seeds = sorted({run["n"] for run in fitted}), sorted({run["seed"] for run in fitted})
            of = {(run["n"], run["seed"]): run for run in fitted}
            for n in samples:
                errors = {error: [of[n, seed][error] for seed in seeds] for error in ERRORS}
                converged = sum(of[n, seed]["converged"] for seed in seeds)
                numbers = {key: fitted[0][key] for key in ("parameters", "effective")}
                rows.append({"case": case, "class": kind, "n": n, "converged": converged, **numbers, **errors})
            used = [n for n in samples if n >= SLOPE_FROM] if max(samples) > SLOPE_FROM else samples
            for error in ERRORS:
                each = [_slope(used, [of[n, seed][error] for n in used]) for seed in seeds]
                slopes.append({"case": case, "class": kind, "error": error, "samples": used, "by_seed": each})
    return {
        "command": "python scripts/theory_simulation.py",
        "seeds": sorted({run["seed"] for run in runs}),
        "cases": {name: asdict(case) for name, case in CASES.items()},
        "noise": NOISE,
        "start": START,
        **made_by(runs),
        "rows": rows,
        "slopes": slopes,
    }


SLOPE_FROM = 1000  # the smallest n of a slope: below, the error is not yet a power of n


def _slope(samples: Sequence[int], errors: Sequence[float | None]) -> float | None:
    """Least squares of log error on log n; None where an error is not finite."""
    if None in errors:
        return None
    return short(float(np.polyfit(np.log(samples), np.log([max(float(e or 0), 1e-12) for e in errors]), 1)[0]))


def tables(content: Mapping[str, Any]) -> dict[str, str]:
    """The parts of docs/theory.md by their names."""
    of = {(row["case"], row["class"], row["n"]): row for row in content["rows"]}
    slopes = []
    for case, kind in dict.fromkeys((row["case"], row["class"]) for row in content["slopes"]):
        mine = {s["error"]: s for s in content["slopes"] if (s["case"], s["class"]) == (case, kind)}
        cells = [_interval([v for v in mine[error]["by_seed"] if v is not None]) for error in ERRORS]
        slopes.append([case, kind, *cells])
    gains, last = [], []
    sizes = sorted({n for _, _, n in of})
    for case, kind in dict.fromkeys((case, kind) for case, kind, _ in of):
        largest = max(n for c, _, n in of if c == case)
        free, row = of[case, "free", largest], of[case, kind, largest]
        last.append([case, kind, largest, row["converged"], *(_quartiles(row[error]) for error in ERRORS)])
        if kind != "free":
            counted = math.sqrt(free["effective"] / row["effective"])
            gained = [_gain(of[case, "free", n], of[case, kind, n]) if (case, kind, n) in of else "" for n in sizes]
            gains.append([case, kind, f"{counted:.2f}", *gained])
    words = ["case", "class"]
    return {
        "made": origin(content, content["seeds"]),
        "slopes": _two_words([*words, *ERRORS.values()], slopes),
        "gains": _two_words([*words, "by counting", *(f"n = {n:,}" for n in sizes)], gains),
        "last": _two_words([*words, "n", "converged", *ERRORS.values()], last),
    }


def _gain(free: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """The ratio of prediction errors: geometric mean over the seeds with its interval."""
    mean = mean_over_seeds([math.log(a / b) for a, b in zip(free["prediction"], row["prediction"], strict=True)])
    if mean.low is None or mean.high is None:
        return f"{math.exp(mean.value):.3g}"
    return f"{math.exp(mean.value):.3g} ({math.exp(mean.low):.3g} to {math.exp(mean.high):.3g})"


def _two_words(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table whose first two columns are words."""
    text = table(columns, rows)
    return text.replace("| --- | ---: |", "| --- | --- |", 1)


def _interval(values: Sequence[float]) -> str:
    if not values:
        return ""
    mean = mean_over_seeds(values)
    half = "" if mean.high is None else f" ± {mean.high - mean.value:.2f}"
    return f"{mean.value:+.2f}{half}"


def _quartiles(values: Sequence[float | None]) -> str:
    """Median and quartiles; what is not finite counts as infinite."""
    low, middle, high = np.quantile([math.inf if v is None else v for v in values], (0.25, 0.5, 0.75), method="nearest")
    return f"{middle:.3g} ({low:.3g} to {high:.3g})"


def pictures(content: Mapping[str, Any], folder: Path) -> None:
    """Errors by n, one picture for each kind: medians over seeds with quartiles, both axes logarithmic."""
    for error, label in list(ERRORS.items())[:3]:
        panels: dict[str, dict[str, dict[float, Mean]]] = {}
        for row in content["rows"]:
            values = [math.log10(v) for v in row[error] if v]
            low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
            point = Mean(float(middle), float(low), float(high), len(values), None)
            panels.setdefault(row["case"], {}).setdefault(row["class"], {})[row["n"]] = point
        draw_curves(folder / f"{error}.png", panels, "samples n", f"log10 of {label}")


def main(arguments: Sequence[str] | None = None) -> None:
    given = options(__doc__, "theory").parse_args(arguments)
    runs = read_runs(given.runs)
    if not given.report:
        environment = environment_info()
        done = {(run["case"], run["seed"]) for run in runs}
        wanted = [
            (name, seed) for seed in range(2 if given.quick else SEEDS) for name in (QUICK if given.quick else CASES)
        ]
        for name, seed in (key for key in wanted if key not in done):
            rows = fits(name, (QUICK if given.quick else CASES)[name], seed)
            add_run(given.runs, {"case": name, "seed": seed, "fits": rows, "made_by": environment})
            print(f"{name}, seed {seed}: {sum(row['seconds'] for row in rows):.1f} s", flush=True)
        return
    content = summary([fit | {"made_by": run["made_by"]} for run in runs for fit in run["fits"]])
    write_page(given, "theory", content, tables(content))
    pictures(content, given.out)


if __name__ == "__main__":
    main()
