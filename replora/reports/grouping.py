"""Which runs may stand in one table, and the name of each run there."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from replora.errors import RepLoRAError
from replora.identity import (
    compared_fields,
    differing_settings,
    flat_options,
    options_beside_fields,
    plain_option,
    table_conditions,
)
from replora.reports.runs import UNTUNED, Group, ReportError, Run, Size, is_run, partial_measurement
from replora.results import status_of

METHOD_NAMES = {
    "replora": "RepLoRA",
    "lora": "LoRA",
    "linear": "linear",
    "dora": "DoRA",
    "peft_lora": "LoRA (peft)",
    "replora_peft": "RepLoRA (peft)",
    "replora_dora": "DoRA on RepLoRA",
    "bitfit": "BitFit",
    "linear_probe": "linear probe",
    "full": "full fine-tuning",
    UNTUNED: UNTUNED,
}
BATCH_OPTIONS = {"data.batch_size", "trainer.accumulate_grad_batches", "trainer.devices", "trainer.num_nodes"}
CLASSES_SHOWN = 40  # greatest length of class names that a title lists


class MixedTracksError(RepLoRAError):
    """Results of different tracks were to be compared."""


def group_runs(contents: Iterable[dict[str, Any]]) -> list[Group]:
    """Sort results into groups that may stand in one table. Of repeated runs the newest counts.

    The order of the results does not matter.

    Raises:
        MixedTracksError: Results of a data set have different tracks.
        ReportError: Runs of one method of a sweep have different options.
    """
    runs = sorted(filter(is_run, contents), key=_text_of)
    labels = _labels(runs)
    _check_sweep_methods(runs, labels)
    newest: dict[str, tuple[str, dict[str, Any], Run]] = {}
    data = _data_conditions(runs)
    for content, label, of_data in zip(runs, labels, data, strict=True):
        run, shared = _run(content, label), table_conditions(content) | of_data
        repeats = {name: content.get("data", {}).get(name) for name in ("subset_seed", "shuffle_seed")}
        parts = [shared, run.method, run.task, run.size, run.seed, repeats, run.stage, _point(run)]
        key = json.dumps(parts, default=str)
        date = str(content.get("test", content.get("fit", {})).get("date", ""))
        former_date, _, former = newest.get(key, ("", {}, run))
        kept, other = (run, former) if former_date <= date else (former, run)
        same = kept is other or kept.results == other.results
        replaced = former.replaced if same else (*former.replaced, other.results)
        newest[key] = (max(date, former_date), shared, replace(kept, replaced=replaced))
    by_data: dict[str, dict[str, dict[str, Any]]] = {}
    for number, (_, shared, run) in enumerate(newest.values(), start=1):
        if not run.diverged:
            name = f"{run.method} on {run.task}, {run.size}, seed {run.seed} (run {number})"
            by_data.setdefault(shared["dataset"], {})[name] = run.results
    for results in by_data.values():
        common_track(results)
    groups: dict[str, Group] = {}
    for _, shared, run in newest.values():
        if run.stage != "select" and not run.diverged:
            _group_of(groups, shared).runs.append(run)
    for _, shared, run in newest.values():
        if run.stage == "select" or run.diverged:
            _add_to(groups, shared, run)
    return sorted(_titled(groups.values()), key=lambda group: (group.title, json.dumps(group.conditions, default=str)))


def _text_of(content: dict[str, Any]) -> tuple[str, str]:
    """The results as text, by which they are sorted; where they lie decides only between copies."""
    return json.dumps({k: v for k, v in content.items() if k != "file"}, sort_keys=True), str(content.get("file"))


def _titled(groups: Iterable[Group]) -> list[Group]:
    """Groups whose titles say how they differ from others on the same data set and backbone."""
    alike: dict[str, list[Group]] = {}
    for group in groups:
        alike.setdefault(group.title, []).append(group)
    titled = []
    for title, found in alike.items():
        conditions = [flat_options(group.conditions) for group in found]
        names = [
            n for n in dict.fromkeys(n for c in conditions for n in c) if len({str(c.get(n)) for c in conditions}) > 1
        ]
        for group, own in zip(found, conditions, strict=True):
            words = [f"{name} {own[name]}" for name in names if own.get(name) not in (None, "")]
            titled.append(replace(group, title=", ".join([title, *words])))
    return titled


def _data_conditions(contents: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """What each run was trained and measured on, where runs of one data set, task and protocol differ in it."""
    described = [(_data_set(content), _data_of(content)) for content in contents]
    values: dict[tuple[str, str], set[str]] = {}
    for data_set, found in described:
        for name, value in found.items():
            values.setdefault((data_set, name), set()).add(value)
    return [{n: v for n, v in found.items() if len(values[data_set, n]) > 1} for data_set, found in described]


def _data_set(content: dict[str, Any]) -> str:
    data = content.get("data", {})
    return json.dumps([data.get(name) for name in ("dataset", "task", "protocol", "official_split")], default=str)


def _data_of(content: dict[str, Any]) -> dict[str, str]:
    """The lists and the classes of a run; those that its results do not record are left out."""
    data = content.get("data", {})
    splits, names = data.get("splits", {}), data.get("class_names")
    trained = splits.get("trainval") or splits.get("train") or {}
    measured = content.get("test", content.get("validate", {})).get("data") or {}
    if not measured.get("sha256"):
        measured = splits.get("test") or splits.get("val") or {}
    found = {}
    if trained.get("sha256"):
        found["trained on"] = f"list {trained['sha256'][:8]}"
    if names:
        listed = ", ".join(map(str, names))
        digest = hashlib.sha256(listed.encode()).hexdigest()[:8]
        found["classes"] = listed if len(listed) <= CLASSES_SHOWN else f"{len(names)} classes, list {digest}"
    if measured.get("sha256"):
        # Each size may select its options on a part of one validation list (data.select_fraction).
        count = "" if data.get("protocol") == "tune" else f"{measured.get('size')} examples, "
        found["measured on"] = f"{count}list {measured['sha256'][:8]}"
    return found


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


def _check_sweep_methods(contents: Sequence[dict[str, Any]], labels: Sequence[str]) -> None:
    """Check that runs with one name in a sweep have the same options, because they are averaged or share a curve.

    Only the options that an axis sets may differ between its points. The two stages may have options of their own, but
    not of the method.

    Raises:
        ReportError: They have different options.
    """
    of_sweeps = [(c, label) for c, label in zip(contents, labels, strict=True) if "sweep" in c and "options" in c]
    of_sweeps.sort(key=lambda run: _on_all_data(run[0]))  # they are compared with the first
    varied: dict[str, set[str]] = {}  # sweep, method and stage -> options of their axes
    for content, label in of_sweeps:
        names = {plain_option(name) for options in _axes(content).values() for name in options}
        varied.setdefault(_stage_of(content, label), set()).update(names)
    first_of: dict[str, dict[str, Any]] = {}
    for content, label in of_sweeps:
        sweep, axes, stage = content["sweep"], _axes(content), _stage_of(content, label)
        same_task = json.dumps([stage, axes["task"], table_conditions(content)], default=str)
        same_point = json.dumps([sweep.get("name"), label, content.get("backbone", {}).get("fingerprint"), axes])
        first = first_of.setdefault(same_task, content)
        found = differing_settings(first, content, "stage", varied[stage])
        if _on_all_data(content):
            found.pop("data.subset_rule", None)  # there is no subset whose images could differ
        if not varied[stage] & BATCH_OPTIONS and _length(first).get("batch") != _length(content).get("batch"):
            found["batch"] = _length(first).get("batch"), _length(content).get("batch")
        first = first_of.setdefault(same_point, content)
        before, now = compared_fields(first, "sweep"), compared_fields(content, "sweep")
        different = [name for name in before.keys() | now.keys() if before.get(name) != now.get(name)]
        found |= {name: (before.get(name), now.get(name)) for name in different}
        if found:
            name = min(found, key=lambda name: (name not in content.get("configuration", {}), name))
            raise ReportError(
                f"Runs of {sweep['method']!r} in the sweep {sweep.get('name')!r} have different options, and would be "
                f"averaged under one name: {name} is {found[name][0]} in one and {found[name][1]} in "
                f"{sweep.get('trial', 'another')}. Report each directory by itself, or delete the runs not meant."
            )


def _on_all_data(content: dict[str, Any]) -> bool:
    """Whether a run trained on no subset of the training data."""
    data = content.get("data", {})
    return data.get("train_fraction") in (None, 1.0) and data.get("shots") is None


def _axes(content: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The options of a run at its points of the axes of its sweep."""
    return {axis: content["sweep"].get(axis, {}) for axis in ("task", "size", "grid")}


def _stage_of(content: dict[str, Any], label: str) -> str:
    """The sweep, method and stage of a run."""
    sweep, backbone = content["sweep"], content.get("backbone", {})
    return json.dumps([sweep.get("name"), label, backbone.get("fingerprint"), sweep.get("stage")])


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
        stage=_stage(sweep, tuned),
    )


def _stage(sweep: dict[str, Any], tuned: bool) -> str:
    """The stage of a run; final runs at every point of a grid record which of them is selected."""
    stage = str(sweep.get("stage", "select" if tuned else "final"))
    selected = sweep.get("chosen_by", {}).get("point")
    return "unselected" if stage == "final" and selected not in (None, sweep.get("grid")) else stage


def _draw(seed: int, data: dict[str, Any]) -> int:
    """The seed of a run, or a number of its own for one whose data have seeds apart from that of the run."""
    own = [data.get(name) or 0 for name in ("subset_seed", "shuffle_seed")]
    if all(value in (0, seed) for value in own) and len(set(own)) == 1:
        return seed
    return seed + 1_000 * own[0] + 1_000_000 * own[1]


def _point(run: Run) -> dict[str, Any]:
    """The point of the grid for a run of a sweep that is not at the selected one: runs of one seed differ in it."""
    point: dict[str, Any] = run.results.get("sweep", {}).get("grid", {})
    return {} if run.stage == "final" else point


def _labels(contents: list[dict[str, Any]]) -> list[str]:
    """The name of each run: the sweep's name of its method, else its method and the options in which its runs differ.

    The training length may differ between tasks and sizes: it is named only where runs of one task and size differ.
    Partial runs say so, and are rows of their own.
    """
    options_of: dict[str, list[dict[str, Any]]] = {}  # method -> options of each run
    settings_of: dict[str, list[dict[str, Any]]] = {}  # method -> other options of each run
    lengths_of: dict[tuple[str, str], list[dict[str, Any]]] = {}  # method, cell -> training length of each run
    for content in contents:
        if "sweep" not in content:
            options_of.setdefault(content["method"], []).append(compared_fields(content, "method"))
            settings_of.setdefault(content["method"], []).append(options_beside_fields(content))
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
            labels.append(", ".join([str(content["sweep"]["method"]), *_partial(content)]))
            continue
        options, length = compared_fields(content, "method"), _length(content)
        shown = {k: v for k, v in options.items() if any(other.get(k) != v for other in options_of[method])}
        shown |= {k: v for k, v in length.items() if k in named.get(method, ())}
        settings = options_beside_fields(content)
        shown |= {k: v for k, v in settings.items() if any(other.get(k) != v for other in settings_of[method])}
        words = [METHOD_NAMES.get(method, method), *(f"{k} {v}" for k, v in shown.items()), *_partial(content)]
        labels.append(", ".join(words))
    return labels


def _partial(content: dict[str, Any]) -> list[str]:
    """The words of a partial run; none of a complete one, nor of one that diverged, which is in no mean."""
    status = status_of(content, partial_measurement(content))
    return [status] if status.startswith("partial") else []


def _length(content: dict[str, Any]) -> dict[str, Any]:
    """Training length, batch size and, where recorded, warm-up of a run."""
    found = compared_fields(content, "length")
    return found | ({"batch": math.prod(found["batch"].values())} if "batch" in found else {})


def _cell(content: dict[str, Any]) -> str:
    """Conditions, task and size of a run that belongs to no sweep."""
    run = _run(content, "")
    return json.dumps([table_conditions(content), run.task, str(run.size)], default=str)
