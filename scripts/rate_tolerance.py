"""Why does RepLoRA tolerate learning rates that are too high? LoRA with one change at a time, on a CPU core.

    python scripts/rate_tolerance.py                 # runs/tolerance/runs.jsonl, one line per finished run
    python scripts/rate_tolerance.py --report        # results/tolerance, and the tables of docs/tolerance.md

`vit_nano` on digits of 16 x 16 pixels: 80 training images, 100 steps of 16 with AdamW (weight decay 0.0001), warm-up
over 5 steps and then half a cosine down to 0. Each method runs at each rate with five seeds, each with training images,
a head, an adapter and an order of its own. All are tested once, after the last step, on the 797 test images; nothing is
selected. Started again, the script continues where it stopped.
"""

from __future__ import annotations

import functools
import itertools
import math
import statistics
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from evidence import add_run, made_by, options, origin, read_runs, short, table, write_page
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

import replora
from replora.adapters.container import adapters_of
from replora.adapters.low_rank.factors import FactorBank
from replora.backbones.vision import build_vision_backbone
from replora.datasets.common.subsample import subsample_indices
from replora.datasets.image.digits import Digits
from replora.datasets.image.read import ImageReader
from replora.reports.render.charts import draw_curves
from replora.reports.statistics import compare_paired, in_percent, mean_over_seeds
from replora.results import environment_info

RATES = (0.0025, 0.005, 0.01, 0.02, 0.05, 0.1)
SEEDS = 5
STEPS, BATCH, WARMUP = 100, 16, 5
CURVATURE_AT = (10, 40, 80)  # steps after which the Hessian is measured
CURVATURE_RATES = (0.01, 0.05)  # measured with the first seed alone: it takes as long as the training
POWER_ITERATIONS = 8
WINDOW = 10  # steps whose norms are averaged
# Adam with beta1 = 0.9 is unstable on a quadratic whose preconditioned curvature times the rate exceeds this
# (Cohen et al. 2022, arXiv 2207.14484): (2 + 2 beta1) / (1 - beta1).
ADAM_LIMIT = 38.0


class WeightNorm(nn.Module):
    """Each row (`dim` -1) or column (-2) of a matrix as size times direction (Salimans and Kingma 2016).

    The size is the root mean square of the entries, so that an entry moves by about the rate in a step of Adam, as it
    does without normalization. A matrix of zeros starts with sizes of 0 and random directions.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, size: Tensor, direction: Tensor) -> Tensor:
        return size * direction / direction.square().mean(self.dim, keepdim=True).sqrt()

    def right_inverse(self, matrix: Tensor) -> tuple[Tensor, Tensor]:
        direction = matrix if matrix.any() else torch.randn_like(matrix) / math.sqrt(3 * matrix.shape[self.dim])
        return matrix.square().mean(self.dim, keepdim=True).sqrt(), direction


@dataclass(frozen=True)
class Method:
    """LoRA or RepLoRA with one change.

    Attributes:
        config: The adapter.
        frozen: Parameters of the generators that keep their initial values.
        normalized: Whether A's rows and B's columns have weight normalization.
        b_rate: Factor of the rate of B, as in LoRA+.
        clip_gradient: Largest norm of the gradient of everything that trains, as `trainer.gradient_clip_val` bounds it.
        clip_step: Largest norm of the change of all B A by one step.
        clip_norm: Largest norm of all B A.
    """

    config: replora.RepLoRAConfig
    frozen: tuple[str, ...] = ()
    normalized: bool = False
    b_rate: float = 1.0
    clip_gradient: float = math.inf
    clip_step: float = math.inf
    clip_norm: float = math.inf


LORA, REPLORA = replora.LoRAConfig(), replora.RepLoRAConfig()
# What is clipped is clipped to about the largest values that LoRA reaches at 0.01, where it trains well, with a seed
# that is not one of the five: 1 for the change of B A in a step, and 20 for B A.
METHODS = {
    "LoRA": Method(LORA),
    "RepLoRA": Method(REPLORA),
    "RepLoRA, first layer frozen": Method(REPLORA, frozen=("diagonal", "U", "c")),
    "RepLoRA, only c of it trained": Method(REPLORA, frozen=("diagonal", "U")),
    "RepLoRA, c frozen": Method(REPLORA, frozen=("c",)),
    "RepLoRA, linear": Method(replora.RepLoRAConfig(factors="linear")),
    "LoRA, gradient clipped": Method(LORA, clip_gradient=1.0),
    "LoRA, step of BA clipped": Method(LORA, clip_step=1.0),
    "LoRA, norm of BA clipped": Method(LORA, clip_norm=20.0),
    "LoRA, weight normalization": Method(LORA, normalized=True),
    "LoRA+": Method(LORA, b_rate=16.0),
    "rsLoRA": Method(replora.LoRAConfig(alpha=LORA.rank * math.sqrt(LORA.rank))),  # a scale of alpha / sqrt(rank)
}
REFERENCE = "LoRA"
QUICK = ("LoRA", "RepLoRA", "LoRA, weight normalization")
HIGH = (0.05, 0.1)  # rates that are too high for LoRA


# --- one run


@functools.cache
def images_of(split: str, indices: tuple[int, ...] | None = None) -> tuple[Tensor, Tensor]:
    """Images (N, 3, 16, 16) in [-1, 1] and labels (N) of a split of digits."""
    data = Digits(split, ImageReader(16))  # type: ignore[arg-type]
    samples = [data[i] for i in (range(len(data)) if indices is None else indices)]
    pixels = torch.stack([sample["image"] for sample in samples]).float() / 127.5 - 1
    return pixels, torch.tensor([sample["label"] for sample in samples])


class Run:
    """A model with its adapter, its optimizer and the quantities that are recorded."""

    def __init__(self, method: Method, rate: float, seed: int, steps: int) -> None:
        torch.manual_seed(seed)
        self.method, self.steps = method, steps
        backbone = build_vision_backbone("vit_nano", num_classes=10, image_size=16)
        self.model = replora.inject(backbone.model, method.config, also_train=backbone.head_names)
        (bank,) = adapters_of(self.model).factor_banks()
        self.bank: FactorBank = bank
        for name, parameter in bank.named_parameters():
            if name.split(".")[1] in method.frozen:
                parameter.requires_grad = False
        if method.normalized:
            for side, dim in ((bank.A, -1), (bank.B, -2)):
                for slot in range(len(side)):
                    parametrize.register_parametrization(side, str(slot), WeightNorm(dim))
        self.parameters = [p for p in bank.parameters() if p.requires_grad]
        of_b = {id(p) for p in bank.last_matrices()} if method.b_rate != 1 else set()
        adapter = [[p for p in self.parameters if (id(p) in of_b) == wanted] for wanted in (False, True)]
        head = [p for name in backbone.head_names for p in self.model.get_submodule(name).parameters()]
        self.trained = [*self.parameters, *head]
        groups = [
            {"params": [*adapter[0], *head], "lr": rate},
            *([{"params": adapter[1], "lr": rate * method.b_rate}] if adapter[1] else []),
        ]
        self.optimizer = torch.optim.AdamW(groups, weight_decay=1e-4)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self.factor)

    def factor(self, step: int) -> float:
        """Factor of the rate in a step: linear warm-up, then half a cosine."""
        warmup = min(WARMUP, self.steps - 1)
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (self.steps - warmup + 1)))

    @torch.no_grad()
    def update(self) -> Tensor:
        """The updates of all targets, (targets, out, in)."""
        return torch.cat([B @ A for A, B in self.bank()]) * self.method.config.scale

    def step(self, images: Tensor, labels: Tensor) -> dict[str, float]:
        """One step; norms of the gradient of the adapter, of the update after the step and of its change by it."""
        before = self.update()
        at_start = [p.detach().clone() for p in self.parameters]
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.model(images), labels)
        loss.backward()
        gradient = float(torch.sqrt(sum(p.grad.square().sum() for p in self.parameters)))
        if self.method.clip_gradient < math.inf:
            nn.utils.clip_grad_norm_(self.trained, self.method.clip_gradient)
        self.optimizer.step()
        self.schedule.step()
        after = self.update()
        with torch.no_grad():
            if (change := float((after - before).norm())) > self.method.clip_step:
                for parameter, start in zip(self.parameters, at_start, strict=True):
                    parameter.lerp_(start, 1 - self.method.clip_step / change)
            if (norm := float(after.norm())) > self.method.clip_norm:
                for matrix in self.bank.last_matrices():
                    matrix.mul_(self.method.clip_norm / norm)
        after = self.update()
        return {
            "loss": loss.item(),
            "gradient_norm": gradient,
            "update_norm": float(after.norm()),
            "step_norm": float((after - before).norm()),
        }

    def gradient(self, images: Tensor, labels: Tensor) -> Tensor:
        """The gradient of the loss in all trained parameters of the adapter, flat."""
        loss = F.cross_entropy(self.model(images), labels)
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, self.parameters)])

    @torch.no_grad()
    def move(self, direction: Tensor) -> None:
        for part, parameter in zip(direction.split([p.numel() for p in self.parameters]), self.parameters, strict=True):
            parameter.add_(part.view_as(parameter))

    def largest_eigenvalue(self, images: Tensor, labels: Tensor, root: Tensor, start: Tensor) -> tuple[float, Tensor]:
        """Of diag(root) H diag(root), H the Hessian in the adapter's parameters, with its eigenvector.

        Power iteration; products with H are central differences of gradients.
        """
        vector, value, small = start / start.norm(), 0.0, 3e-3
        here = [p.detach().clone() for p in self.parameters]
        for _ in range(POWER_ITERATIONS):
            direction = root * vector
            length = direction.norm()
            offset = direction * (small / length)
            self.move(offset)
            above = self.gradient(images, labels)
            self.move(-2 * offset)
            below = self.gradient(images, labels)
            self.move(offset)
            product = root * (above - below) * (length / (2 * small))
            value = float(vector @ product)
            vector = product / product.norm().clamp_min(1e-30)
        with torch.no_grad():
            for parameter, value_here in zip(self.parameters, here, strict=True):
                parameter.copy_(value_here)
        return value, vector

    def adam_scale(self) -> Tensor:
        """The square root of what Adam multiplies a direction of descent by: rate / (sqrt(v) + eps)."""
        scales = []
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                state = self.optimizer.state[parameter]
                corrected = state["exp_avg_sq"] / (1 - group["betas"][1] ** float(state["step"]))
                scales.append((id(parameter), (group["lr"] / (corrected.sqrt() + group["eps"])).sqrt().flatten()))
        found = dict(scales)
        return torch.cat([found[id(parameter)] for parameter in self.parameters])


def run(name: str, rate: float, seed: int, steps: int = STEPS, curvature_at: Sequence[int] = ()) -> dict[str, Any]:
    """Train and test one method once."""
    started = time.perf_counter()
    labels = Digits("train", ImageReader(16)).labels
    images, targets = images_of("train", tuple(subsample_indices(labels, fraction=0.1, seed=seed)))
    one = Run(METHODS[name], rate, seed, steps)
    order = torch.Generator().manual_seed(seed)
    norms: list[dict[str, float]] = []
    curvature: dict[str, dict[str, float]] = {}
    starts = [torch.randn(sum(p.numel() for p in one.parameters), generator=order) for _ in range(2)]
    fixed = images[: 2 * BATCH], targets[: 2 * BATCH]
    while len(norms) < steps:
        for batch in torch.randperm(len(images), generator=order).split(BATCH)[: steps - len(norms)]:
            norms.append(one.step(images[batch], targets[batch]))
            if len(norms) in curvature_at:
                largest, starts[0] = one.largest_eigenvalue(*fixed, torch.ones_like(starts[0]), starts[0])
                scaled, starts[1] = one.largest_eigenvalue(*fixed, one.adam_scale(), starts[1])
                curvature[str(len(norms))] = {"largest": short(largest), "of_limit": short(scaled / ADAM_LIMIT)}
    test, test_labels = images_of("test")
    with torch.no_grad():
        accuracy = float((one.model(test).argmax(1) == test_labels).float().mean())
        values = torch.linalg.svdvals(one.update().nan_to_num(0.0, 0.0, 0.0)).clamp_min(1e-30)
        shares = values / values.sum(-1, keepdim=True)
        rank = float(torch.exp(-(shares * shares.log()).sum(-1)).mean())  # effective rank of Roy and Vetterli (2007)
    windows = [norms[i : i + WINDOW] for i in range(0, steps, WINDOW)]
    return {
        "method": name,
        "rate": rate,
        "seed": seed,
        "accuracy": accuracy,
        **{key: [short(statistics.fmean(n[key] for n in window)) for window in windows] for key in norms[0]},
        "effective_rank": short(rank),
        "curvature": curvature,
        "seconds": short(time.perf_counter() - started),
    }


# --- all runs, and what they say


def run_all(file: Path, methods: Iterable[str], rates: Iterable[float], seeds: int, steps: int) -> None:
    """Do the runs that `file` lacks, seed by seed."""
    done = {(one["method"], one["rate"], one["seed"]) for one in read_runs(file)}
    environment = environment_info()
    wanted = [(name, rate, seed) for seed in range(seeds) for name in methods for rate in rates]
    for name, rate, seed in wanted:
        if (name, rate, seed) not in done:
            at = [min(step, steps) for step in CURVATURE_AT] if seed == 0 and rate in CURVATURE_RATES else []
            found = run(name, rate, seed, steps, at) | {"made_by": environment}
            add_run(file, found)
            print(f"{name}, rate {rate}, seed {seed}: {found['accuracy']:.1%}", flush=True)


def summary(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One row for each method and rate: accuracies by seed, and means of what was recorded.

    Seeds that do not have all runs yet are left out.
    """
    rows = []
    counts = Counter(one["seed"] for one in runs)
    runs = [one for one in runs if counts[one["seed"]] == max(counts.values())]
    for name in METHODS:
        for rate in sorted({one["rate"] for one in runs}):
            of = sorted((r for r in runs if (r["method"], r["rate"]) == (name, rate)), key=lambda one: one["seed"])
            if not of:
                continue
            curves = {
                key: [_mean(values) for values in zip(*(one[key] for one in of), strict=True)]
                for key in ("loss", "gradient_norm", "update_norm", "step_norm")
            }
            curvature = next((one["curvature"] for one in of if one["curvature"]), {})
            ranks = _mean([one["effective_rank"] for one in of])
            row = {"method": name, "rate": rate, "seeds": [one["seed"] for one in of]}
            accuracy = {"accuracy": [round(one["accuracy"], 5) for one in of]}
            rows.append({**row, **accuracy, **curves, "effective_rank": ranks, "curvature": curvature})
    return {
        "command": "python scripts/rate_tolerance.py",
        "data": "digits of scikit-learn, 16 x 16 pixels, 80 training images by seed, 797 test images",
        "selection": "none: the last step of every run is tested",
        "steps": STEPS,
        "window": WINDOW,
        "curvature_seeds": [0],
        "methods": {name: _options(method) for name, method in METHODS.items()},
        **made_by(runs),
        "rows": rows,
    }


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return short(statistics.fmean(known)) if known else None


def _options(method: Method) -> dict[str, Any]:
    """What a method changes, as JSON values."""
    plain = vars(METHODS[REFERENCE])
    options = {key: value for key, value in vars(method).items() if key != "config" and value != plain[key]}
    return {"config": repr(method.config), **options}


def tables(content: Mapping[str, Any]) -> dict[str, str]:
    """The parts of docs/tolerance.md by their names."""
    rows = content["rows"]
    of = {(row["method"], row["rate"]): row for row in rows}
    methods, rates = list(dict.fromkeys(r["method"] for r in rows)), sorted({r["rate"] for r in rows})
    high = [rate for rate in HIGH if rate in rates]
    shown = [[m, *(in_percent(mean_over_seeds(of[m, r]["accuracy"])) for r in rates)] for m in methods]
    parts = {"made": origin(content, rows[0]["seeds"])}
    picture = "![Test accuracy by rate](../results/tolerance/accuracy.png)"
    parts["accuracy"] = f"{table(['method', *map(str, rates)], shown)}\n\n{picture}"
    compared, diagnosed = [], []
    for method in methods:
        best = max(rates, key=lambda rate: statistics.fmean(of[method, rate]["accuracy"]))
        cells = [method, best, in_percent(mean_over_seeds(of[method, best]["accuracy"]))]
        for rate, other in itertools.product(high, ("LoRA", "RepLoRA")):
            cells.append("" if method == other else _difference(of[method, rate], of[other, rate])[0])
        compared.append(cells)
        row = of[method, high[0]]
        along = [(step, row["curvature"].get(step, {})) for step in map(str, CURVATURE_AT)]
        diagnosed.append(
            [
                method,
                _number(max((g for g in row["gradient_norm"] if g is not None), default=None)),
                _number(max((g for g in row["step_norm"] if g is not None), default=None)),
                _number(row["update_norm"][-1]),
                _number(row["effective_rank"]),
                *(_number(found.get("largest")) for _, found in along),
                *(_number(found.get("of_limit")) for _, found in along),
            ]
        )
    against = [f"minus {other}, at {rate}" for rate, other in itertools.product(high, ("LoRA", "RepLoRA"))]
    parts["compared"] = table(["method", "best rate", "accuracy there", *against], compared)
    eigenvalues = [f"largest eigenvalue, step {step}" for step in CURVATURE_AT]
    limits = [f"of Adam's limit, step {step}" for step in CURVATURE_AT]
    norms = ["gradient, largest", "change of BA in a step, largest", "BA at the end", "effective rank of BA"]
    picture = "![Norm of the update over the steps](../results/tolerance/update_norm.png)"
    parts["diagnosed"] = f"{table(['method', *norms, *eigenvalues, *limits], diagnosed)}\n\n{picture}"
    parts["verdict"] = "\n".join(f"- {line}" for rate in high for line in _verdicts(of, methods, rate))
    return parts


def _difference(row: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[str, int]:
    """The paired difference in points with its interval, and its sign if that excludes 0."""
    pairs = [[a - b] for a, b in zip(row["accuracy"], other["accuracy"], strict=True)]
    found = compare_paired(pairs)
    if found.low is None or found.high is None:
        return f"{100 * found.difference:+.1f}", 0
    sign = (found.low > 0) - (found.high < 0)
    return f"{100 * found.difference:+.1f} ({100 * found.low:+.1f} to {100 * found.high:+.1f})", sign


def _verdicts(of: Mapping[tuple[str, float], Mapping[str, Any]], methods: Sequence[str], rate: float) -> list[str]:
    """Which methods are better than LoRA at a rate, and how these compare with RepLoRA."""
    better = [m for m in methods if m != "LoRA" and _difference(of[m, rate], of["LoRA", rate])[1] > 0]
    signs = {m: _difference(of[m, rate], of["RepLoRA", rate])[1] for m in better if m != "RepLoRA"}
    lines = [f"At {rate}, significantly better than LoRA: {'; '.join(better) or 'none'}."]
    for sign, words in ((1, "significantly better than RepLoRA"), (0, "no significant difference to RepLoRA")):
        if listed := [m for m, found in signs.items() if found == sign]:
            lines.append(f"At {rate}, of these, {words}: {'; '.join(listed)}.")
    return lines


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.3g}"


def pictures(content: Mapping[str, Any], folder: Path) -> None:
    """Accuracy by rate, and the norm of the update over steps at a rate that is too high."""
    rows = content["rows"]
    groups = {"Parts of RepLoRA": [m for m in METHODS if m.startswith("RepLoRA")]}
    groups["LoRA with one change"] = [m for m in METHODS if not m.startswith("RepLoRA")]
    accuracy = {
        title: {
            m: {row["rate"]: mean_over_seeds(row["accuracy"]) for row in rows if row["method"] == m}
            for m in dict.fromkeys([REFERENCE, "RepLoRA", *members])
        }
        for title, members in groups.items()
    }
    draw_curves(folder / "accuracy.png", accuracy, "learning rate", "test accuracy in %")
    norms = {
        f"rate {rate}": {
            row["method"]: {
                WINDOW * (i + 1): mean_over_seeds([value])
                for i, value in enumerate(row["update_norm"])
                if value is not None
            }
            for row in rows
            if row["rate"] == rate and row["method"] in SHOWN
        }
        for rate in (0.01, HIGH[0])
    }
    draw_curves(folder / "update_norm.png", norms, "step", "norm of BA", logarithmic=False)


SHOWN = ("LoRA", "RepLoRA", "RepLoRA, first layer frozen", "LoRA, step of BA clipped", "LoRA, weight normalization")


def main(arguments: Sequence[str] | None = None) -> None:
    given = options(__doc__, "tolerance").parse_args(arguments)
    if not given.report:
        if given.quick:
            run_all(given.runs, QUICK, HIGH[:1], 1, 1)
        else:
            run_all(given.runs, METHODS, RATES, SEEDS, STEPS)
        return
    content = summary(read_runs(given.runs))
    write_page(given, "tolerance", content, tables(content))
    pictures(content, given.out)


if __name__ == "__main__":
    main()
