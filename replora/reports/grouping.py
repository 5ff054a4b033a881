"""Which runs may stand in one table, and the name of each run there."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from replora.errors import RepLoRAError
from replora.identity import compared_fields, option_kind, table_conditions
from replora.reports.runs import Group, ReportError, Run, Size, is_run

METHOD_NAMES = {
    "replora": "RepLoRA",
    "lora": "LoRA",
    "linear": "linear",
    "dora": "DoRA",
    "bitfit": "BitFit",
    "linear_probe": "linear probe",
    "full": "full fine-tuning",
}


class MixedTracksError(RepLoRAError):
    """Results of different tracks were to be compared."""


def group_runs(contents: Iterable[dict[str, Any]]) -> list[Group]:
    """Sort results into groups that may stand in one table. Of repeated runs the newest counts.

    The order of the results does not matter.

    Raises:
        MixedTracksError: Results of a data set have different tracks.
        ReportError: Runs of one method of a sweep have different options.
    """
    runs = sorted(filter(is_run, contents), key=lambda content: json.dumps(content, sort_keys=True))
    _check_sweep_methods(runs)
    newest: dict[str, tuple[str, dict[str, Any], Run]] = {}
    lists = _lists(runs)
    for content, label in zip(runs, _labels(runs), strict=True):
        run, shared = _run(content, label), table_conditions(content)
        if run.stage == "final" and len(lists.get(_data_set(content), ())) > 1:
            shared |= _list_of(content)
        repeats = {name: content.get("data", {}).get(name) for name in ("subset_seed", "shuffle_seed", "split_seed")}
        parts = [shared, run.method, run.task, run.size, run.seed, repeats, run.stage, _point(content)]
        key = json.dumps(parts, default=str)
        date = str(content.get("test", content.get("fit", {})).get("date", ""))
        if key not in newest or newest[key][0] <= date:
            newest[key] = (date, shared, run)
    by_data: dict[str, dict[str, dict[str, Any]]] = {}
    for key, (_, shared, run) in newest.items():
        if not run.diverged:
            by_data.setdefault(shared["dataset"], {})[f"{run.method} on {run.task}, {key}"] = run.results
    for results in by_data.values():
        common_track(results)
    groups: dict[str, Group] = {}
    for _, shared, run in newest.values():
        if run.stage == "final" and not run.diverged:
            _group_of(groups, shared).runs.append(run)
    for _, shared, run in newest.values():
        if run.stage == "select" or run.diverged:
            _add_to(groups, shared, run)
    return sorted(groups.values(), key=lambda group: (group.title, json.dumps(group.conditions, default=str)))


def _data_set(content: dict[str, Any]) -> tuple[str, str]:
    data = content.get("data", {})
    return str(data.get("dataset")), str(data.get("task"))


def _lists(contents: Iterable[dict[str, Any]]) -> dict[tuple[str, str], set[str]]:
    """Data set and task -> the lists that its runs were measured on; several must not share a table."""
    found: dict[tuple[str, str], set[str]] = {}
    for content in contents:
        if _run(content, "").stage != "final":  # measured on validation data, as every first stage
            continue
        found.setdefault(_data_set(content), set()).update(filter(None, _list_of(content).values()))
    return found


def _list_of(content: dict[str, Any]) -> dict[str, Any]:
    """What a run was measured on, as a condition of a table; empty for results that do not record it."""
    measured = content.get("test") or content.get("validate") or {}
    data = measured.get("data") or {}
    splits = content.get("data", {}).get("splits", {})
    known = data if data.get("sha256") else splits.get("test") or splits.get("val") or {}
    if not known.get("sha256"):
        return {}
    return {"measured on": f"{known.get('size')} examples, list {known['sha256'][:8]}"}


def common_track(results: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The track that all results have in common; None for results of data without tracks.

    Args:
        results: Name of a run -> content of its `results.json`.

    Raises:
        MixedTracksError: The results have different tracks, or only some of them have one.
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
            "Results of different tracks cannot be in one table: their images, resize filter and normalization "
            f"differ.\n{listed}\nMake a table for each track, or repeat the runs with one --data.track."
        )
    return next(iter(runs), None)


def _check_sweep_methods(contents: Iterable[dict[str, Any]]) -> None:
    """Check that runs with one name in a sweep have the same options, because they are averaged.

    Points of an axis may set different options.

    Raises:
        ReportError: They have different options.
    """
    first_of: dict[str, dict[str, Any]] = {}
    for content in contents:
        if "sweep" not in content or "options" not in content:
            continue
        sweep = content["sweep"]
        backbone = content.get("backbone", {}).get("fingerprint")
        axes = [sweep.get(axis, {}) for axis in ("task", "size", "grid")]
        key = json.dumps([sweep.get("name"), sweep["method"], backbone, *axes], default=str)
        options = compared_fields(content, "sweep") | _fixed_settings(content)
        first = first_of.setdefault(key, options)
        differing = [name for name in options.keys() | first.keys() if options.get(name) != first.get(name)]
        if differing:
            name = min(differing)
            raise ReportError(
                f"Runs of {sweep['method']!r} in the sweep {sweep.get('name')!r} have different options, and would be "
                f"averaged under one name: {name} is {first.get(name)} in one and {options.get(name)} in "
                f"{sweep.get('trial', 'another')}. Report each directory by itself, or delete the runs not meant."
            )


def _group_of(groups: dict[str, Group], shared: dict[str, Any]) -> Group:
    """The group with these conditions, created if it does not exist."""
    words = [str(shared[key]) for key in ("sweep", "dataset", "backbone") if shared[key]]
    words += [f"split {shared['official_split']}"] if shared.get("official_split") else []
    return groups.setdefault(json.dumps(shared, default=str), Group(", ".join(words), shared, []))


def _add_to(groups: dict[str, Group], shared: dict[str, Any], run: Run) -> None:
    """Add a run of the first stage to the groups of tests under the same conditions, or to a group of its own.

    The record of a run that diverged does not describe its data: the run is added to all groups of its sweep.
    """
    unknown = run.diverged and not shared["dataset"]
    wanted = {"sweep": shared["sweep"]} if unknown else {k: v for k, v in shared.items() if k != "protocol"}
    found = [group for group in groups.values() if all(group.conditions.get(k) == v for k, v in wanted.items())]
    for group in found or [_group_of(groups, shared)]:
        task = run.task or next((other.task for other in group.runs), "")
        group.runs.append(replace(run, task=task))


def _run(content: dict[str, Any], label: str) -> Run:
    sweep, data = content.get("sweep", {}), content.get("data", {})
    shots = data.get("shots", sweep.get("size", {}).get("data.shots"))
    fraction = data.get("train_fraction", sweep.get("size", {}).get("data.train_fraction", 1.0))
    seed = sweep.get("seed", content.get("fit", content.get("test", {})).get("seed", 0))
    if seed is None:  # a run without a seed is a repeat of its own
        seed = -1 - int(content.get("run_id", "0")[:6], 16)
    tuned = data.get("protocol") == "tune"
    return Run(
        results=content,
        method=label,
        task=str(data.get("task", next(iter(sweep.get("task", {}).values()), ""))),
        size=Size(shots is not None, float(fraction if shots is None else shots)),
        seed=_draw(int(seed), data),
        stage=sweep.get("stage", "select" if tuned else "final"),
    )


def _draw(seed: int, data: dict[str, Any]) -> int:
    """The seed of a run, or a number of its own for one whose data have seeds apart from that of the run."""
    own = [data.get(name) or 0 for name in ("subset_seed", "shuffle_seed")]
    if all(value in (0, seed) for value in own) and len(set(own)) == 1:
        return seed
    return seed + 1_000 * own[0] + 1_000_000 * own[1]


def _point(content: dict[str, Any]) -> dict[str, Any]:
    """The point of the grid for a run of the first stage of a sweep: runs of one method and seed differ in it."""
    sweep: dict[str, Any] = content.get("sweep", {})
    point: dict[str, Any] = sweep.get("grid", {})
    return point if sweep.get("stage") == "select" else {}


def _labels(contents: list[dict[str, Any]]) -> list[str]:
    """The name of each run: the sweep's name of its method, else its method and the options in which its runs differ.

    The training length may differ between tasks and sizes: it is named only where runs of one task and size differ.
    """
    options_of: dict[str, list[dict[str, Any]]] = {}  # method -> options of each run
    settings_of: dict[str, list[dict[str, Any]]] = {}  # method -> other options of each run
    lengths_of: dict[tuple[str, str], list[dict[str, Any]]] = {}  # method, cell -> training length of each run
    for content in contents:
        if "sweep" not in content:
            options_of.setdefault(content["method"], []).append(compared_fields(content, "method"))
            settings_of.setdefault(content["method"], []).append(_settings(content))
            lengths_of.setdefault((content["method"], _cell(content)), []).append(_length(content))
    named: dict[str, set[str]] = {}  # method -> fields of the training length that are named
    for (method, _), lengths in lengths_of.items():
        for name in {name for length in lengths for name in length}:
            if len({length[name] for length in lengths if name in length}) > 1:
                named.setdefault(method, set()).add(name)
    labels = []
    for content in contents:
        method = content.get("method", "")
        if "sweep" in content:
            labels.append(str(content["sweep"]["method"]))
            continue
        options, length = compared_fields(content, "method"), _length(content)
        shown = {k: v for k, v in options.items() if any(other.get(k) != v for other in options_of[method])}
        shown |= {k: v for k, v in length.items() if k in named.get(method, ())}
        settings = _settings(content)
        shown |= {k: v for k, v in settings.items() if any(other.get(k) != v for other in settings_of[method])}
        if partial := run_is_partial(content):
            shown["partial:"] = "; ".join(partial)
        labels.append(", ".join([METHOD_NAMES.get(method, method), *(f"{k} {v}" for k, v in shown.items())]))
    return labels


def _fixed_settings(content: dict[str, Any]) -> dict[str, Any]:
    """Settings that no axis of a sweep varies: runs with other ones are of another sweep."""
    sweep = content["sweep"]
    varied = {name for axis in ("task", "size", "grid") for name in sweep.get(axis, {})}
    return {name: value for name, value in _settings(content).items() if name not in varied}


# Settings that the conditions of a table, the method's options, or the training length show already.
_SHOWN_ELSEWHERE = (
    *("model.adapter", "model.backbone", "trainer.max_epochs", "data.batch_size"),
    *("model.schedule.warmup_epochs", "model.schedule.warmup_steps", "model.schedule.warmup_fraction"),
)


def _settings(content: dict[str, Any]) -> dict[str, Any]:
    """The other options of a run in which two runs of a method must not be averaged; none in format 1."""
    conditions = table_conditions(content)
    return {
        name: value
        for name, value in content.get("configuration", {}).items()
        if option_kind(name) == "setting"
        and not name.startswith(_SHOWN_ELSEWHERE)
        and name.rpartition(".")[2] not in conditions
    }


def run_is_partial(content: dict[str, Any]) -> list[str]:
    """Why a run is not a complete one."""
    return [*content.get("fit", {}).get("partial", []), *content.get("test", {}).get("partial", [])]


def _length(content: dict[str, Any]) -> dict[str, Any]:
    """Training length, batch size and, where recorded, warm-up of a run."""
    found = compared_fields(content, "length")
    return found | ({"batch": math.prod(found["batch"].values())} if "batch" in found else {})


def _cell(content: dict[str, Any]) -> str:
    """Conditions, task and size of a run that belongs to no sweep."""
    run = _run(content, "")
    return json.dumps([table_conditions(content), run.task, str(run.size)], default=str)
