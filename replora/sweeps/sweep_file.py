"""Reads and checks a sweep's file.

    base: [quickstart.yaml]                   configurations of every trial, as for --config
    options: {trainer.max_epochs: 20}         options of every trial, as on the command line without the dashes
    seconds_per_trial: 10                     for the estimate of a dry run, until some trials have finished
    tasks: {data.task: [dtd, kitti]}          an axis (see below); optional
    sizes: {data.train_fraction: [0.1, 1]}    an axis: amount of training data; optional
    methods:
      LoRA:                                   the name in reports
        configs: [adapter/lora.yaml]
        options: {}                           optional
        grid:                                 an axis; optional
          model.optimizer.lr: [0.005, 0.01]
          model.optimizer.weight_decay: [0.0001]
      RepLoRA: ...                            its grid must have as many points
    select:                                   the first stage: every method, task and size at every point of the grid
      seeds: [0]
      metric: val/accuracy
      mode: max                               or min; optional
      source: own_task                        or other_tasks: never by the task's own runs; optional
      options: {data.protocol: tune}
    final:                                    the second stage: each at the point with the best mean metric
      seeds: [0, 1, 2, 3, 4]
      points: selected                        or all: at every point of the grid; optional
      options: {data.protocol: final}

An axis is either a mapping of options to lists of values, which stands for all combinations, or a list of mappings of
options to values, each of which is one point, named by its first option. Options are applied in this order, and later
ones win: sweep, task, size, method, point of the grid, stage, `--options` of the command line. Last comes the seed: it
sets `seed_everything`, `data.subset_seed` and `data.shuffle_seed`, so that each seed draws other training images. A
file is refused in which an option would lose against an earlier one that contains it, or that it contains.

Without `select` every method has one point. Without `final` the sweep ends with the selection.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

from replora.config_files import find_config, parse_yaml, read_config
from replora.errors import RepLoRAError, nearest
from replora.identity import flat_options, plain_option
from replora.sweeps.plan import (
    ONLY,
    SEED_OPTIONS,
    Method,
    Options,
    Point,
    Points,
    Source,
    StagePlan,
    Sweep,
    directory_name,
    shown,
)

LEAST_TASKS = 3  # of a selection on the other tasks: with two of them, a mean and its noise are known
NOT_SAID = object()
OPTION = re.compile(r"[A-Za-z_]\w*(\.\w+)*")


class SweepError(RepLoRAError):
    """A sweep's file is not valid, or would compare methods unfairly."""


def read_sweep(file: Path, more_options: Mapping[str, Any] | None = None, source: Source | None = None) -> Sweep:
    """Read and check a sweep's file.

    Args:
        file: The YAML file.
        more_options: Options of every trial that replace those of the file.
        source: Replaces the file's `source`: whose runs select the point of a task.

    Raises:
        SweepError: A key is missing, unknown, there twice or of a wrong type, an option would be undone by an earlier
            one that it is to replace in part, the grids of two methods differ in size, points would
            be selected by other than validation images, `more_options` sets an option that the trials vary, or `source`
            needs more tasks or a first stage.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SweepError(f"{file} cannot be read as a sweep: {error}") from error
    try:
        content = parse_yaml(text, str(file))
    except RepLoRAError as error:
        raise SweepError(str(error)) from error
    top = _Section(str(file), content)
    known = {"base", "options", "tasks", "sizes", "methods", "select", "final", "seconds_per_trial"}
    top.only(known, required={"base", "methods"})
    methods = [_method(top, name, section) for name, section in top.mapping("methods").items()]
    sweep = Sweep(
        name=file.stem,
        base=top.names("base"),
        options=top.options("options"),
        tasks=top.axis("tasks"),
        sizes=top.axis("sizes"),
        methods=methods,
        select=_stage(top, "select"),
        final=_stage(top, "final"),
        overriding=dict(more_options or {}),
        seconds_per_trial=top.number("seconds_per_trial"),
    )
    if source is not None:
        if sweep.select is None:
            raise SweepError(f"{file} has no stage `select`, so there is nothing for source: {source} to select.")
        sweep = replace(sweep, select=replace(sweep.select, source=source))
    _check_grid_sizes(file, sweep)
    _check_stages(file, sweep)
    _check_unique_folders(file, sweep)
    _check_overrides(file, sweep)
    _check_order(file, sweep)
    return sweep


def _method(top: _Section, name: Any, content: Any) -> Method:
    if not isinstance(name, str):
        raise SweepError(
            f"{top.where}, methods: the name {name!r} is no text, as YAML reads it. Put it in quotes, such as 'no'."
        )
    section = _Section(f"{top.where}, methods: {name}", content or {})
    section.only({"configs", "options", "grid"})
    return Method(name, section.names("configs"), section.options("options"), section.axis("grid"))


def _stage(top: _Section, name: str) -> StagePlan | None:
    if top.content.get(name) is None:
        return None
    section = _Section(f"{top.where}, {name}", top.content[name])
    own = {"metric", "mode", "source"} if name == "select" else {"points"}
    section.only({"seeds", "options"} | own, required={"seeds"} | (own & {"metric"}))
    metric = str(section.content.get("metric", ""))
    if "metric" in own and not metric.startswith("val/"):
        raise SweepError(
            f"{section.where}, metric: {metric} is not measured on validation images, and no choice may see others. "
            "Take one such as val/accuracy."
        )
    return StagePlan(
        section.seeds(),
        section.options("options"),
        metric,
        section.one_of("mode", Literal["max", "min"]),
        section.one_of("source", Source),
        section.one_of("points", Points),
    )


def _check_grid_sizes(file: Path, sweep: Sweep) -> None:
    sizes = {method.name: len(method.grid) for method in sweep.methods}
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise SweepError(
            f"{file}: the methods' grids have different numbers of points ({listed}). A method with more points is "
            "chosen from more tries, so its lead would prove nothing. Give every method as many points, around its own "
            "best values."
        )
    if sweep.select is None and max(sizes.values()) > 1:
        raise SweepError(f"{file}: grids need a stage `select` that chooses among their points.")
    if sweep.select is None and sweep.final is None:
        raise SweepError(f"{file}: there is neither a stage `select` nor a stage `final`, so nothing would run.")


def check_tasks(where: Path | str, sweep: Sweep) -> None:
    """Refuse too few tasks to select for each other.

    Args:
        where: What says which tasks there are, for the message.
        sweep: The sweep.

    Raises:
        SweepError: The runs of other tasks are to select, and there are less than `LEAST_TASKS` tasks.
    """
    if sweep.select and sweep.select.source == "other_tasks" and len(sweep.tasks) < LEAST_TASKS:
        there = ", ".join(task.name for task in sweep.tasks if task is not ONLY) or "no axis `tasks`"
        raise SweepError(
            f"{where}: source: other_tasks needs at least {LEAST_TASKS} tasks, so that each has two others by "
            f"which its point is selected; there is {there}. Add tasks, or take own_task."
        )


def _check_stages(file: Path, sweep: Sweep) -> None:
    check_tasks(file, sweep)
    if sweep.final and sweep.final.points == "all" and sweep.select is None:
        raise SweepError(
            f"{file}, final, points: all runs the points that are not selected as well, so it needs a stage `select`. "
            "Add one, or leave the key out."
        )


def _check_unique_folders(file: Path, sweep: Sweep) -> None:
    for method in sweep.methods:
        if not directory_name(method.name):
            raise SweepError(f"{file}, methods: {method.name!r} has no letter or digit, so it names no directory.")
    seen: set[str] = set()
    for trial in [*sweep.selection_trials(), *sweep.planned_final_trials()]:
        if trial.folder in seen:
            raise SweepError(
                f"{file}: two trials have the directory {trial.folder}. A seed, a point of an axis (called by its "
                "first option) or the name of a method is there twice."
            )
        seen.add(trial.folder)


def _check_overrides(file: Path, sweep: Sweep) -> None:
    """Check that `--options`, which applies to all trials, sets no option in which methods, stages or points differ.

    An option is also set by an option that contains it (`model.adapter`), and by one that it contains.
    """
    for option in sweep.overriding:
        if option in ("config", "run_dir", "ckpt_path"):
            raise SweepError(f"--options: {option} is what a sweep sets for each trial. Change {file} instead.")
        for own, where in _varied(sweep):
            if _overlap(option, own):
                raise SweepError(
                    f"--options: {option} would undo {own}, which {file} varies ({where}). Copy the file and change it "
                    "there."
                )


def _overlap(one: str, other: str) -> bool:
    """Whether two options are the same, or one contains the other."""
    one, other = f"{plain_option(one)}.", f"{plain_option(other)}."
    return one.startswith(other) or other.startswith(one)


def _check_order(file: Path, sweep: Sweep) -> None:
    """Check that of two options that overlap the one that is set last has the last word.

    Trials give an option where it is set first, with the value that is set last. Stored trials are compared with this
    order, so that it has to stay, and what it would turn around is refused.
    """
    names = dict.fromkeys([*sweep.options, *sweep.overriding, *(option for option, _ in _varied(sweep))])
    pairs = [pair for pair in itertools.combinations(names, 2) if _overlap(*pair)]
    stages = [stage for stage in (sweep.select, sweep.final) if stage and pairs]
    for stage, task, size, method in itertools.product(stages, sweep.tasks, sweep.sizes, sweep.methods):
        for point in method.grid:
            layers = sweep.layers(stage, method, task, size, point, stage.seeds[0])
            for pair in pairs:
                if all(any(option in options for options in layers.values()) for option in pair):
                    _check_pair(file, layers, pair)


def _check_pair(file: Path, layers: Mapping[str, Options], pair: tuple[str, str]) -> None:
    places = [(where, option) for where, options in layers.items() for option in options]
    first = {option: min(n for n, (_, name) in enumerate(places) if name == option) for option in pair}
    last = {option: max(n for n, (_, name) in enumerate(places) if name == option) for option in pair}
    early, late = sorted(pair, key=last.__getitem__)
    if first[early] < first[late]:
        return
    where = {option: places[last[option]][0] for option in pair}
    outer, inner = sorted(pair, key=lambda option: len(plain_option(option)))
    said = _part_of(layers[where[outer]][outer], outer, inner)
    if said is not NOT_SAID and said != layers[where[inner]][inner]:
        raise SweepError(
            f"{file}: {late} ({where[late]}) would be undone by {early} ({where[early]}), because it is set before it "
            f"as well ({places[first[late]][0]}), which decides the order. Leave {late} out there; if trials were run, "
            "choose another directory with --out."
        )


def _part_of(value: Any, outer: str, inner: str) -> Any:
    """What the value of an option says of an option that lies in it.

    `NOT_SAID` where it names a class or arguments and not that one, which then keeps the value that it has.
    """
    for key in plain_option(inner).split(".")[plain_option(outer).count(".") + 1 :]:
        if not isinstance(value, Mapping):
            return NOT_SAID
        arguments = value.get("init_args") or {}
        if key in value or key in arguments:
            value = value[key] if key in value else arguments[key]
        else:
            return NOT_SAID if {"class_path", "init_args"} & value.keys() else None
    return value


def _varied(sweep: Sweep) -> Iterator[tuple[str, str]]:
    """Each option in which trials differ, and where it is set."""
    places = [("tasks", point.options) for point in sweep.tasks]
    places += [("sizes", point.options) for point in sweep.sizes]
    for method in sweep.methods:
        places.append((f"methods: {method.name}, options", method.options))
        places += [(f"methods: {method.name}, grid", point.options) for point in method.grid]
    places.append(("the methods' configs", dict.fromkeys(_differing_in_configs(sweep))))
    for name, stage in (("select", sweep.select), ("final", sweep.final)):
        places += [(f"{name}, options", stage.options)] if stage else []
    places.append(("seeds", dict.fromkeys(SEED_OPTIONS)))
    return ((option, where) for where, options in places for option in options)


def _differing_in_configs(sweep: Sweep) -> list[str]:
    """The options that have different values in the configurations of the methods."""
    values: dict[str, set[str]] = {}
    for method in sweep.methods:
        merged: dict[str, Any] = {}
        for name in method.configs:
            merged |= flat_options(read_config(find_config(name)))
        for option, value in merged.items():
            values.setdefault(option, set()).add(json.dumps(value))
    return [option for option, found in values.items() if len(found) > 1]


class _Section:
    """One mapping of the file, with errors that name its position in the file."""

    def __init__(self, where: str, content: Any) -> None:
        if not isinstance(content, dict):
            raise SweepError(f"{where} must be a mapping of keys to values, not {_kind(content)}.")
        self.where, self.content = where, content

    def only(self, known: set[str], required: set[str] | None = None) -> None:
        for key in self.content:
            if key not in known:
                raise SweepError(f"{self.where}: there is no key {key!r}. {nearest(str(key), sorted(known))}")
        for key in sorted(required or ()):
            if not self.content.get(key):
                raise SweepError(f"{self.where}: the key {key!r} is missing.")

    def mapping(self, key: str) -> dict[str, Any]:
        value = self.content.get(key) or {}
        if not isinstance(value, dict):
            raise SweepError(f"{self.where}, {key}: must be a mapping, not {_kind(value)}.")
        return value

    def names(self, key: str) -> list[str]:
        value = self.content.get(key) or []
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            raise SweepError(f"{self.where}, {key}: must be a list of names of configurations, not {value!r}.")
        return value

    def one_of(self, key: str, values: Any) -> Any:
        """One of the words of a Literal type; the first where the key is absent."""
        known = get_args(values)
        value = self.content.get(key, known[0])
        if value not in known:
            raise SweepError(f"{self.where}: {key} {value!r} is not known. It must be {' or '.join(map(repr, known))}.")
        return value

    def seeds(self) -> list[int]:
        value = self.content["seeds"]
        if not isinstance(value, list) or not all(isinstance(s, int) and not isinstance(s, bool) for s in value):
            raise SweepError(f"{self.where}, seeds: must be a list of whole numbers such as [0, 1, 2], not {value!r}.")
        for seed in value:
            if not 0 <= seed < 2**32:
                raise SweepError(f"{self.where}, seeds: {seed} is not a seed. It must be in [0, {2**32 - 1}].")
        return value

    def number(self, key: str) -> float | None:
        value = self.content.get(key)
        if value is None:
            return None
        if not isinstance(value, int | float) or not 0 < value < math.inf:
            raise SweepError(f"{self.where}, {key}: must be a number above 0, not {value!r}.")
        return float(value)

    def options(self, key: str) -> Options:
        return self._checked(key, self.mapping(key))

    def axis(self, key: str) -> list[Point]:
        """The points of an axis; `ONLY` where the key is absent."""
        value = self.content.get(key)
        if value is None:
            return [ONLY]
        if isinstance(value, list) and value:
            points = [self._checked(key, point) for point in value]
            return [Point(_named(dict(itertools.islice(point.items(), 1))), point) for point in points]
        if isinstance(value, dict) and value:
            for option, choices in self._checked(key, value).items():
                if not isinstance(choices, list) or not choices:
                    raise SweepError(f"{self.where}, {key}: {option} must have a list of values, not {choices!r}.")
            numbers = [[_number(choice) for choice in choices] for choices in value.values()]
            products = [dict(zip(value, choices, strict=True)) for choices in itertools.product(*numbers)]
            return [Point(_named(point), point) for point in products]
        raise SweepError(
            f"{self.where}, {key}: must be a mapping of options to lists of values, or a list of mappings of options "
            f"to values, not {value!r}."
        )

    def _checked(self, key: str, point: Any) -> Options:
        if not isinstance(point, dict):
            raise SweepError(f"{self.where}, {key}: {point!r} is no mapping of options to values.")
        for option in point:
            if not isinstance(option, str) or not OPTION.fullmatch(option):
                raise SweepError(
                    f"{self.where}, {key}: {option!r} is no option. Write it as on the command line without the "
                    "dashes, such as model.optimizer.lr."
                )
        return {option: _number(value) for option, value in point.items()}


def _number(value: Any) -> Any:
    """Convert text such as 1e-3, which YAML does not read as a number because it has no decimal point."""
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value):
        return float(value)
    return value


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"


def _named(options: Options) -> str:
    """{"data.train_fraction": 0.1} -> `train_fraction=0.1`."""
    return ",".join(f"{name.rpartition('.')[2]}={shown(value)}" for name, value in options.items())
