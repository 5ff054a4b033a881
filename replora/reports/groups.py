"""Results, sorted into groups of runs that may stand in one table."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from replora.errors import RepLoRAError
from replora.recipes import shared_by_methods
from replora.reports.runs import METHOD_NAMES, ReportError, Run, Size, is_run, ordered

# What must be the same for two results to stand in one table, beside the backbone's weights.
CONDITIONS = (
    "dataset",
    "track",
    "protocol",
    "preset",
    "image_size",
    "interpolation",
    "framing",
    "upright",
    "normalization",
    "cutoff",
    "test_items",
    "official_split",
    "recipe",
    "clips",
    "skip_corrupt",
    "prompts",
    "truncation_side",
)


@dataclass(frozen=True)
class Group:
    """Runs that may stand in one table.

    Attributes:
        title: Data set and backbone.
        conditions: What they have in common.
        runs: All of them.
    """

    title: str
    conditions: dict[str, Any]
    runs: list[Run]

    @property
    def methods(self) -> list[str]:
        return ordered({run.method for run in self.runs})

    @property
    def final(self) -> list[Run]:
        return [run for run in self.runs if run.stage == "final"]

    @property
    def selection(self) -> list[Run]:
        return [run for run in self.runs if run.stage == "select"]


def group_runs(contents: Iterable[dict[str, Any]]) -> list[Group]:
    """Sort results into groups that may stand in one table; of a run that is there twice, the newest counts.

    The order of the results does not matter.

    Raises:
        MixedTracksError: Results of a data set have different tracks.
        ReportError: Runs of one method of a sweep have different options.
    """
    whole = sorted(filter(is_run, contents), key=lambda content: json.dumps(content, sort_keys=True))
    _refuse_other_options(whole)
    labels = _labels(whole)
    newest: dict[str, tuple[str, dict[str, Any], Run]] = {}
    for content, label in zip(whole, labels, strict=True):
        run = _run(content, label)
        key = json.dumps(
            [_conditions(content), run.method, run.task, run.size, run.seed, run.stage, _point(content)], default=str
        )
        date = str(content.get("test", content.get("fit", {})).get("date", ""))
        if key not in newest or newest[key][0] <= date:
            newest[key] = (date, _conditions(content), run)
    by_data: dict[str, dict[str, dict[str, Any]]] = {}
    for key, (_, conditions, run) in newest.items():
        if not run.diverged:
            by_data.setdefault(conditions["dataset"], {})[f"{run.method} on {run.task}, {key}"] = run.results
    for results in by_data.values():
        common_track(results)
    groups: dict[str, Group] = {}
    for _, conditions, run in newest.values():
        if run.stage == "final" and not run.diverged:
            group = Group(_title(conditions), conditions, [])
            groups.setdefault(json.dumps(conditions, default=str), group).runs.append(run)
    for _, conditions, run in newest.values():
        if run.stage == "select" or run.diverged:
            _add_to(groups, conditions, run)
    return sorted(groups.values(), key=lambda group: (group.title, json.dumps(group.conditions, default=str)))


def _refuse_other_options(contents: Iterable[dict[str, Any]]) -> None:
    """Raise if runs that a sweep calls by one name are not of one method: they would be averaged.

    What a point of an axis sets may differ between points.

    Raises:
        ReportError: They are.
    """
    alike: dict[str, dict[str, Any]] = {}
    for content in contents:
        if "sweep" not in content or "options" not in content:
            continue
        sweep = content["sweep"]
        backbone = content.get("backbone", {}).get("fingerprint")
        axes = [sweep.get(axis, {}) for axis in ("task", "size", "grid")]
        key = json.dumps([sweep.get("name"), sweep["method"], backbone, *axes], default=str)
        now = content["options"] | {"targets found": content.get("targets")}
        first = alike.setdefault(key, now)
        differing = [name for name in now.keys() | first.keys() if now.get(name) != first.get(name)]
        if differing:
            name = min(differing)
            raise ReportError(
                f"Runs of {sweep['method']!r} in the sweep {sweep.get('name')!r} have different options, and would be "
                f"averaged under one name: {name} is {first.get(name)} in one and {now.get(name)} in "
                f"{sweep.get('trial', 'another')}. Report each directory by itself, or delete the runs not meant."
            )


def _title(conditions: dict[str, Any]) -> str:
    words = [str(conditions[key]) for key in ("sweep", "dataset", "backbone") if conditions[key]]
    return ", ".join([*words, *(f"split {split}" for split in [conditions.get("official_split")] if split)])


def _add_to(groups: dict[str, Group], conditions: dict[str, Any], run: Run) -> None:
    """A run of the first stage belongs to the tests under the same conditions, if there are any.

    A run that diverged says nothing of its data: it belongs to all groups of its sweep.
    """
    shared = {key: value for key, value in conditions.items() if key != "protocol"}
    homes = [
        group
        for group in groups.values()
        if all(group.conditions.get(key) == value for key, value in shared.items() if not run.diverged)
        and group.conditions["sweep"] == conditions["sweep"]
    ]
    if not homes:
        group = Group(_title(conditions), conditions, [])
        homes = [groups.setdefault(json.dumps(conditions, default=str), group)]
    for group in homes:
        task = run.task or next((other.task for other in group.runs), "")
        group.runs.append(replace(run, task=task))


def _run(content: dict[str, Any], label: str) -> Run:
    sweep, data = content.get("sweep", {}), content.get("data", {})
    shots = data.get("shots", sweep.get("size", {}).get("data.shots"))
    fraction = data.get("train_fraction", sweep.get("size", {}).get("data.train_fraction", 1.0))
    seed = sweep.get("seed", content.get("fit", content.get("test", {})).get("seed", 0))
    tuned = data.get("protocol") == "tune"
    return Run(
        results=content,
        method=label,
        task=str(data.get("task", next(iter(sweep.get("task", {}).values()), ""))),
        size=Size(shots is not None, float(fraction if shots is None else shots)),
        seed=int(seed),
        stage=sweep.get("stage", "select" if tuned else "final"),
    )


def _conditions(content: dict[str, Any]) -> dict[str, Any]:
    data, backbone = content.get("data", {}), content.get("backbone", {})
    found = {name: data[name] for name in CONDITIONS if data.get(name) is not None}
    if "recipe" in found:
        found["recipe"] = shared_by_methods(found["recipe"])
    if skipped := content.get("test", {}).get("metrics", {}).get("test/skipped"):
        found["skipped test items"] = int(skipped)
    if tokenizer := content.get("test", content.get("fit", {})).get("caption_tokenizer"):
        found["caption tokenizer"] = tokenizer
    return {
        "sweep": content.get("sweep", {}).get("name", ""),
        "dataset": data.get("dataset", ""),
        "backbone": backbone.get("name", ""),
        "fingerprint": backbone.get("fingerprint", ""),
    } | found


def _point(content: dict[str, Any]) -> dict[str, Any]:
    """By what runs of one method and stage differ: the point of the grid in the first stage of a sweep."""
    sweep: dict[str, Any] = content.get("sweep", {})
    point: dict[str, Any] = sweep.get("grid", {})
    return point if sweep.get("stage") == "select" else {}


def _labels(contents: list[dict[str, Any]]) -> list[str]:
    """A name for each run: the sweep's, else the method's with the options in which runs of it differ.

    The length of a run may differ between tasks and sizes: it is named where runs of one task and size differ.
    """
    plain: dict[str, list[dict[str, Any]]] = {}
    of_cell: dict[str, list[dict[str, Any]]] = {}
    for content in contents:
        if "sweep" not in content:
            plain.setdefault(content["method"], []).append(_choices(content))
            of_cell.setdefault(_cell(content), []).append(_length(content))
    lengths: dict[str, set[str]] = {}
    for cell, found in of_cell.items():
        values: dict[str, set[float]] = {}
        for name, value in (pair for length in found for pair in length.items()):
            values.setdefault(name, set()).add(value)
        names = {name for name, there in values.items() if len(there) > 1}
        lengths.setdefault(json.loads(cell)[0], set()).update(names)
    labels = []
    for content in contents:
        if "sweep" in content:
            labels.append(str(content["sweep"]["method"]))
            continue
        name, own = METHOD_NAMES.get(content["method"], content["method"]), _choices(content)
        differing = [key for key in own if any(other.get(key) != own[key] for other in plain[content["method"]])]
        length = {key: value for key, value in _length(content).items() if key in lengths[content["method"]]}
        shown = {key: own[key] for key in differing} | length
        labels.append(", ".join([name, *(f"{key} {value}" for key, value in shown.items())]))
    return labels


def _choices(content: dict[str, Any]) -> dict[str, Any]:
    optimizer = content.get("fit", {}).get("optimizer", {})
    options: dict[str, Any] = content.get("options", {})
    return options | {key: optimizer[key] for key in ("lr", "weight_decay") if key in optimizer}


def _length(content: dict[str, Any]) -> dict[str, Any]:
    """How long and in what batches a run was trained, and its warm-up where that was recorded."""
    fit = content.get("fit", {})
    batch = math.prod(fit.get("batch", {}).values()) or None
    found = {"epochs": fit.get("epochs"), "steps": fit.get("steps"), "batch": batch}
    for name in ("warmup_epochs", "warmup_steps", "warmup_fraction"):
        found[name.replace("_", " ")] = fit.get("schedule", {}).get(name)
    return {key: value for key, value in found.items() if value is not None}


def _cell(content: dict[str, Any]) -> str:
    """Method, conditions, task and size of a run by hand."""
    run = _run(content, "")
    return json.dumps([content["method"], _conditions(content), run.task, str(run.size)], default=str)


class MixedTracksError(RepLoRAError):
    """Results of different tracks were to be compared."""


def common_track(results: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The track that all results have in common; None for results of data without tracks.

    Args:
        results: name of a run -> content of its `results.json`.

    Raises:
        MixedTracksError: they have different tracks, or only some have one.
    """
    runs: dict[str | None, list[str]] = {}
    for name, content in results.items():
        runs.setdefault(content.get("data", {}).get("track"), []).append(name)
    if len(runs) > 1:
        listed = "\n".join(
            f"  {track or 'none recorded'}: {', '.join(names[:10])}{', ...' if len(names) > 10 else ''}"
            for track, names in runs.items()
        )
        raise MixedTracksError(
            f"Results of different tracks do not go into one table: their images, resize filter and normalisation "
            f"differ.\n{listed}\nMake a table for each track, or repeat the runs with one --data.track."
        )
    return next(iter(runs), None)
