"""The candidates of a tune, and the measurements by which they are compared: which trials they are."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from replora.options.settings import CONFIG, Setting, settings_of
from replora.sweeps.plan import ONLY, Options, Point, Trial, written

RATE, RANK, EPOCHS = "model.optimizer.lr", "model.adapter.rank", "trainer.max_epochs"
FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)  # of the configuration's rate; a step of the grids that ship with the package
# Below, the usual fifth for validation has fewer than 200 examples, whose standard error at 90 % exceeds 2 points: as
# much as twice the learning rate changes (results/digits_low_data).
FEW_EXAMPLES = 1_000
FOLDS = 5
REPEATS = 3  # of a measurement on one validation set, with other seeds
# Largest number of divisions that a budget is spent on. Beyond, what remains of the error is mostly that of the choice
# of the examples, which no division makes smaller.
DIVISIONS = 10


@dataclass(frozen=True)
class Candidate:
    """One point of the grid of one method.

    Attributes:
        method: Name of the method.
        config: Packaged configuration of the method; empty for the method of the given configurations.
        point: Options of the candidate.
        octaves: By how many factors of two its rate is above or below the middle of the grid, where the configured rate
            is.
    """

    method: str
    config: str
    point: Point
    octaves: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.method}, {self.point.name.replace('=', ' ').replace(',', ', ')}"


def candidate(method: str, config: str, options: Options, octaves: float = 0.0) -> Candidate:
    """A candidate, named by its options."""
    named = (f"{name.rpartition('.')[2].removeprefix('max_')}={value:g}" for name, value in options.items())
    return Candidate(method, config, Point(",".join(named), options), octaves)


def grid_of(
    method: str, config: str, rates: Sequence[float], ranks: Sequence[int], epochs: Sequence[int]
) -> list[Candidate]:
    """All combinations; an option without values stays as it is configured."""
    axes = {RATE: rates, RANK: ranks, EPOCHS: epochs}
    axes = {name: values for name, values in axes.items() if values}
    middle = math.sqrt(min(rates) * max(rates))
    points = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    return [candidate(method, config, point, math.log2(point[RATE] / middle)) for point in points]


def around(rate: float) -> list[float]:
    """The default grid of learning rates around a configured one."""
    return [float(f"{rate * factor:.3g}") for factor in FACTORS]


@dataclass(frozen=True)
class Plan:
    """What is measured, in which order, and how many candidates are left when.

    Attributes:
        arguments: Arguments of `fit` as they were given.
        candidates: The candidates.
        folds: Number of folds; 1 for the validation data as they are.
        draws: Number of draws: of the folds, of the training examples of a subset, and of all seeds.
        repeats: How often the examples of each draw are divided into folds, each time with other seeds.
        subset: Whether each draw has other training examples.
        seed: First seed of the runs.
        subset_seed: First seed of the subsets and folds.
        extra: Further options of the trials that choose.
        protocol: Protocol of the final fit.
    """

    arguments: list[str]
    candidates: list[Candidate]
    folds: int
    draws: int
    seed: int
    subset_seed: int
    extra: Options
    protocol: str
    repeats: int = 1
    subset: bool = False

    @property
    def round(self) -> int:
        """The number of measurements of a candidate before any examples are divided again."""
        return self.folds * self.draws

    @property
    def measurements(self) -> int:
        """The largest number of measurements of a candidate."""
        return self.round * self.repeats

    @property
    def division(self) -> int:
        """How many measurements in a row are of different examples; those that follow are of the same ones again.

        Without folds, all measurements count as different.
        """
        return self.folds if self.folds > 1 and not self.subset else self.round

    def trial(self, one: Candidate, number: int) -> Trial:
        """The trial of a candidate's measurement, from 0."""
        division, fold = divmod(number, self.folds)
        repeat, draw = divmod(division, self.draws)
        # The first division has no seed of its own: it is the one that a tune without repeats measures.
        again = f"@{self.subset_seed + division}" if repeat else ""
        of_fold = {"data.fold": f"{fold + 1}/{self.folds}{again}"} if self.folds > 1 else {}
        names = [f"draw={draw}"] * (self.draws > 1) + [f"repeat={repeat + 1}"] * (repeat > 0)
        size = Point(",".join([*names, *[f"fold={fold + 1}"] * (self.folds > 1)]), {})
        options = self._seeds(draw, division) | self.extra | {"data.protocol": "tune"} | of_fold
        folder = "/".join(name for name in ("select", one.method, one.point.name, size.name) if name)
        return self._trial("select", one, size, options, folder)

    def final(self, one: Candidate) -> Trial:
        """The trial that fits a candidate on all training and validation examples, and tests it."""
        return self._trial("final", one, ONLY, self._seeds(0, 0) | {"data.protocol": self.protocol}, "final")

    def kept(self, measured: int) -> int:
        """How many candidates are left at least after so many measurements of each: successive halving.

        Each rung has half as many candidates as the one before and twice as many measurements of each, so that all
        rungs cost the same; but no measurement halves them twice. The last rung ends before examples are divided again.
        """
        count = len(self.candidates)
        rungs = max(0, math.ceil(math.log2(count)) - 1) if count > 1 else 0  # two are left for the last
        ends: list[int] = []
        for rung in range(rungs):
            ends.append(max(math.ceil(self.round / 2.0 ** (rungs - rung)), ends[-1] + 1 if ends else 1))
        return math.ceil(count / 2.0 ** sum(end <= measured for end in ends))

    def with_candidate(self, one: Candidate) -> Plan:
        return replace(self, candidates=[*self.candidates, one])

    def _seeds(self, draw: int, division: int) -> Options:
        return {"seed_everything": self.seed + division, "data.subset_seed": self.subset_seed + draw}

    def _trial(self, stage: Any, one: Candidate, size: Point, options: Options, folder: str) -> Trial:
        given = _with_config(self.arguments, one.config)
        listed = [f"--{name}={written(value)}" for name, value in (one.point.options | options).items()]
        seed = int(options["seed_everything"])
        return Trial(stage, one.method, ONLY, size, one.point, seed, [*given, *listed], folder)


def _with_config(arguments: list[str], config: str) -> list[str]:
    """The arguments with a configuration after the last one of theirs."""
    if not config:
        return arguments
    places = [i for i, argument in enumerate(arguments) if argument.partition("=")[0] in CONFIG]
    last = places[-1] if places else -1
    end = last + (2 if places and "=" not in arguments[last] else 1)
    return [*arguments[:end], f"--config={config}", *arguments[end:]]


def given_values(arguments: list[str]) -> dict[str, Setting]:
    """Option -> its last setting, in the files or on the command line."""
    return {setting.name: setting for setting in settings_of(arguments)}


def default_home(arguments: list[str]) -> Path:
    """`runs/tune-image_folder-photos`: the same for the same command, which continues there."""
    configs = [value for option, value in _pairs(arguments) if option in CONFIG and "\n" not in value]
    values = given_values(arguments)
    root, task = values.get("data.root"), values.get("data.task")
    parts = [Path(configs[0]).stem if configs else "data", Path(str(root.value)).stem if root and not root.file else ""]
    parts.append(str(task.value) if task else "")
    return Path("runs") / "-".join(["tune", *filter(None, parts)])


def _pairs(arguments: list[str]) -> list[tuple[str, str]]:
    following = [*arguments[1:], ""]
    split = [(argument.partition("="), after) for argument, after in zip(arguments, following, strict=False)]
    return [(option, value if equals else after) for (option, equals, value), after in split]
