"""`replora-cli report`: the sections of a report in their order, and its table of all runs."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from replora.errors import nearest
from replora.io import csv_text, new_or_existing, replace_text
from replora.reports.grouping import group_runs
from replora.reports.render.charts import vector_files
from replora.reports.render.document import Block, Contents, Heading, Paragraph, Table, as_csv, as_markdown
from replora.reports.render.latex import latex
from replora.reports.render.page import page
from replora.reports.runs import REFERENCE, Group, ReportError, Run, counted, read_runs
from replora.reports.sections.benchmarks import benchmark_section
from replora.reports.sections.commonsense import commonsense_section
from replora.reports.sections.comparisons import answer_section
from replora.reports.sections.learning_curves import learning_curve_section
from replora.reports.sections.learning_rates import learning_rate_section
from replora.reports.sections.limits import limits_section
from replora.reports.sections.low_data import low_data_figure, low_data_section
from replora.reports.sections.provenance import provenance_section
from replora.reports.sections.regret import regret_section
from replora.reports.sections.validation import validation_section
from replora.reports.sections.video import video_section
from replora.results import other_conditions, status_of, stored

TITLE = "Results"
RUN_COLUMNS = (
    *("stage", "method", "task", "shots", "amount", "examples", "seed", "learning_rate", "weight_decay"),
    *("metric", "validation", "test", "diverged", "status", "adapter_trained", "adapter_deployed", "head"),
    *("fit_seconds", "steps", "git", "date"),
)
VIDEO_COLUMNS = ("official_split", "recipe", "train_skipped", "test_skipped")
EVALUATION_COLUMNS = ("run", "verb", "examples", "of them seen in training", "weights", "status", "metrics")
SHOWN_OPTIONS = ("rank", "factors", "hidden", "activation", "sharing")
# Options that have no effect, by `factors`.
UNUSED = {"none": ("hidden", "activation"), "linear": ("activation",)}


def write_report(
    sources: Sequence[Path],
    folder: Path,
    trials: Collection[str] | None = None,
    *,
    format: Literal["page", "latex"] = "page",
    all_tasks: bool = False,
    reference: str | None = None,
) -> list[Path]:
    """Write the report of the runs in `sources`.

    Args:
        sources: Directories of runs (searched recursively), `results.json` files, or `.jsonl` files of earlier reports,
            which gzip may have compressed (`.jsonl.gz`).
        folder: Directory of the report. It gets `report.html` (one file with its pictures inside), `report.md`, one CSV
            file per table, the pictures, `runs.csv` with one line per run, and `runs.jsonl`, the results themselves,
            from which the report can be made again.
        trials: Trials of the sweep whose report it is; results of other trials are left out and named. Default: all.
        format: `latex` also writes each table as LaTeX and each picture as PDF and SVG.
        all_tasks: Whether means include tasks that are trained on at most one example per ten classes.
        reference: The method that all others are compared with, by its name in the tables. Default, and in tables that
            do not have it: LoRA, or the first method where there is none.

    Returns:
        The files; `report.html` is the second.

    Raises:
        ReportError: There are no results, or no run of the reference.
        MixedTracksError: Results of both tracks of VTAB-1K are among them.
    """
    skipped: list[str] = []
    contents = read_runs(sources, skipped)
    if trials is not None:
        of_sweep: list[dict[str, Any]] = []
        for content in contents:
            if content.get("sweep", {}).get("trial") in trials:
                of_sweep.append(content)
            else:
                why = "does not belong to the sweep as its file is now, or as --only_these limits it"
                skipped.append(f"{_name(content)} {why}")
        contents = of_sweep
    groups = group_runs(contents)
    if not groups:
        reasons = "".join(f"\n  {reason}" for reason in skipped)
        raise ReportError(f"The files hold no run that was trained or tested, so there is nothing to report.{reasons}")
    measured = [{run.method for run in group.final} for group in groups]
    if reference is not None and not any(reference in methods for methods in measured):
        close = nearest(reference, sorted(set().union(*measured)))
        raise ReportError(f"No final run is of the method {reference!r}, with which to compare. {close}")
    groups = [
        replace(group, all_tasks=all_tasks, reference=reference if reference in methods else REFERENCE)
        for group, methods in zip(groups, measured, strict=True)
    ]
    with new_or_existing(folder):
        return _write(folder, groups, contents, skipped, format)


def _write(
    folder: Path, groups: Sequence[Group], contents: Sequence[dict[str, Any]], skipped: Sequence[str], format: str
) -> list[Path]:
    """Write all files of a report."""
    with vector_files(("pdf", "svg") if format == "latex" else ()):
        blocks = _blocks(groups, folder, contents, skipped)
    files = [folder / "report.md", folder / "report.html", folder / "runs.csv", folder / "runs.jsonl"]
    lines = sorted(_line(content) for content in contents)
    texts = [as_markdown(blocks), page(blocks, TITLE), _runs_csv(groups), "".join(f"{line}\n" for line in lines)]
    for table in blocks:
        if isinstance(table, Table) and not table.links:
            files.append(folder / f"{table.name}.csv")
            texts.append(as_csv(table))
            if format == "latex":
                files.append(folder / f"{table.name}.tex")
                texts.append(latex(table))
    for file, text in zip(files, texts, strict=True):
        replace_text(file, text)
    return files


def _blocks(
    groups: Sequence[Group], folder: Path, contents: Sequence[dict[str, Any]], skipped: Sequence[str]
) -> list[Block]:
    """The whole report: the answers, then a section for each group that begins with its figure and its limits."""
    blocks: list[Block] = [Heading(1, TITLE)]
    for group in groups:
        blocks += answer_section(group, len(groups) > 1)
    blocks += [Contents()]
    for number, group in enumerate(groups, start=1):
        prefix = f"{number}_" if len(groups) > 1 else ""
        blocks += [Heading(2, group.title), *low_data_figure(group, folder, prefix), *limits_section(group)]
        blocks += [Heading(3, "Methods"), *_conditions(group, prefix)]
        blocks += benchmark_section(group, prefix)
        blocks += commonsense_section(group, prefix)
        blocks += low_data_section(group, prefix)
        blocks += validation_section(group, prefix)
        blocks += regret_section(group, folder, prefix)
        blocks += learning_rate_section(group, folder, prefix)
        blocks += learning_curve_section(group, folder, prefix)
    blocks += video_section(groups)
    blocks += provenance_section(groups)
    blocks.insert(len(blocks) - 1, Paragraph(_summary(groups)))
    return [*blocks, *_left_out(contents, groups, skipped), *_links(groups, folder)]


def is_report(folder: Path) -> bool:
    """Whether a folder is that of an earlier report."""
    if not all((folder / name).is_file() for name in ("report.md", "runs.csv", "runs.jsonl")):
        return False
    with (folder / "runs.jsonl").open("rb") as stream:
        return stream.read(1) == b"{"


def _left_out(contents: Sequence[dict[str, Any]], groups: Sequence[Group], skipped: Sequence[str]) -> list[Block]:
    """Names what stands in no table: repeated runs, evaluations of other data or weights, and unreadable files."""
    replaced = _replaced(groups)
    older = [f"{_name(old)}, replaced by {_name(new)}" for old, new, copy in replaced if not copy]
    copies = [f"{_name(old)} is a copy of {_name(new)}" for old, new, copy in replaced if copy]
    listed = [
        ("Older runs that a newer one of the same setting and seeds replaces", sorted(older)),
        ("Copies of a run, of which the one with the newest measurement counts", sorted(copies)),
        ("Not part of this report", skipped),
    ]
    blocks: list[Block] = [Paragraph(f"{title}: {'; '.join(names)}.") for title, names in listed if names]
    rows = [
        _evaluation_row(content, evaluation)
        for content in contents
        for evaluation in content.get("evaluations", [])
        if evaluation["verb"] != "predict" and evaluation is not content.get(evaluation["verb"])
    ]
    if rows:
        caption = "Further evaluations, of other data, other weights or a part"
        blocks.append(Table("further_evaluations", caption, EVALUATION_COLUMNS, sorted(rows)))
    return [Heading(2, "Left out of the tables"), *blocks] if blocks else []


def _replaced(groups: Sequence[Group]) -> list[tuple[dict[str, Any], dict[str, Any], bool]]:
    """Results that do not count, those that replace them, and whether the two are copies of one run."""
    found = {id(run.results): run for group in groups for run in group.runs}  # some are in several groups
    pairs = []
    for run in found.values():
        known = {run.results.get("run_id"): run.results}
        for old in sorted(run.replaced, key=lambda old: str(old.get("file"))):
            copied = known.setdefault(old["run_id"], old) if "run_id" in old else old
            pairs.append((old, run.results if copied is old else copied, copied is not old))
    return pairs


def _evaluation_row(content: dict[str, Any], evaluation: dict[str, Any]) -> list[str]:
    data, weights = evaluation["data"], evaluation["weights"]
    measured = {name: value for name, value in evaluation["metrics"].items() if "loss" not in name}
    metrics = ", ".join(f"{name} {value}" for name, value in list(measured.items())[:2])
    seen = data.get("seen_in_training", 0)
    conditions = ", ".join(f"{name} {value}" for name, value in other_conditions(content, evaluation).items())
    return [
        _name(content),
        f"{evaluation['verb']} with {conditions}" if conditions else evaluation["verb"],
        f"{data.get('size', 'unknown')}, list {str(data.get('sha256') or 'unknown')[:8]}",
        str(seen),
        f"{weights['source']}{', averaged' if weights.get('averaged') else ''}",
        status_of(content, evaluation["partial"]),
        metrics,
    ]


def _name(content: dict[str, Any]) -> str:
    """How a run is named where it stands in no table: its directory, if it is known, beside what it is."""
    trial = content.get("sweep", {}).get("trial")
    date = content.get("fit", content.get("test", {})).get("date", "unknown date")
    words = str(trial or f"{content.get('method')} run {content.get('run_id', '')[:8]} of {date}")
    place = str(content.get("file", ""))
    return place if trial and place.endswith(words) else f"{place} ({words})" if place else words


def _summary(groups: Sequence[Group]) -> str:
    runs = [run for group in groups for run in group.runs]
    selecting = sum(run.stage == "select" for run in runs)
    diverged = sum(run.diverged for run in runs)
    partial = sum(run.status.startswith("partial") for run in runs)
    copies = [same for _, _, same in _replaced(groups)]
    text = f"{counted(len(runs), 'run')}: {len(runs) - selecting} measured on test data"
    text += f", {selecting} by which options were chosen on validation data" if selecting else ""
    text += f"; {diverged} diverged" if diverged else ""
    text += f"; {partial} partial, in rows of their own and excluded from the means of complete runs" if partial else ""
    if older := copies.count(False):
        text += f"; left out: {counted(older, 'older run')} with the same method, options, data and seed as a newer one"
    if any(copies):
        text += f"; left out: {counted(copies.count(True), 'further copy')} of runs"
    return f"{text}. Every number comes from the runs' results.json files (runs.jsonl beside this report)."


def _conditions(group: Group, prefix: str) -> list[Block]:
    """The conditions that all runs of the group share, and a table of its methods."""
    shared = ", ".join(
        f"{name} {_text(value)}"
        for name, value in group.conditions.items()
        if value not in ("", None) and name != "sweep"
    )
    rows = []
    for method in group.methods:
        runs = [run for run in group.runs if run.method == method and not run.diverged]
        if not runs:
            continue
        counts = runs[0].results["parameters"]
        options = runs[0].results["options"]
        described = ", ".join(f"{name} {_short(options[name])}" for name in SHOWN_OPTIONS if _has_effect(name, options))
        seconds = [run.results["fit"]["seconds"] for run in runs if "fit" in run.results]
        rows.append(
            [
                method,
                described,
                f"{counts['adapter_trained']:,}",
                f"{counts['adapter_deployed']:,}",
                f"{counts['head']:,}",
                f"{len([r for r in runs if r.stage != 'select'])} + {len([r for r in runs if r.stage == 'select'])}",
                f"{sum(seconds) / len(seconds):.1f}" if seconds else "",
            ]
        )
    columns = ["method", "options", "trained", "deployed", "head", "runs (final + selection)", "seconds per fit"]
    caption = "Methods: parameters that train and that remain beside the backbone"
    return [Paragraph(f"All runs: {shared}."), *_skipped(group), Table(f"{prefix}methods", caption, columns, rows)]


def _has_effect(name: str, options: Mapping[str, Any]) -> bool:
    factors = options.get("factors", "")
    if name == "sharing" and factors == "none":  # without networks only equal factors are shared
        return options.get(name) == "tied"
    return name in options and name not in UNUSED.get(factors, ())


def _text(value: Any) -> str:
    if not isinstance(value, dict):
        return str(value)
    return str(value["name"]) if "name" in value else f"({', '.join(f'{key} {item}' for key, item in value.items())})"


def _skipped(group: Group) -> list[Block]:
    """The number of skipped training and test items, if any were skipped."""
    counts = {
        split: sorted({int(run.metrics(verb).get(f"{split}/skipped") or 0) for run in group.runs})
        for split, verb in (("train", "fit"), ("test", "test"))
    }
    if not any(any(found) for found in counts.values()):
        return []
    listed = ", ".join(f"{' or '.join(map(str, found))} of {split}" for split, found in counts.items())
    return [Paragraph(f"Left out because they cannot be decoded: {listed}. They are in no accuracy.")]


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _links(groups: Sequence[Group], folder: Path) -> list[Block]:
    """A link to the directory of each run, where it is known."""
    found = {id(run.results): run for group in groups for run in group.runs}
    rows = sorted(
        ([_short_name(run.results), run.stage, run.method, run.task, str(run.size), str(run.seed), run.status], link)
        for run in found.values()
        for link in [_link(run, folder)]
    )
    columns = ["run", "stage", "method", "task", "size", "seed", "status"]
    cells, links = [row for row, _ in rows], [link for _, link in rows]
    words = "runs.csv has one line per run, and runs.jsonl the results of each."
    return [
        Heading(2, "Runs"),
        Paragraph(words),
        Table("links", counted(len(rows), "run"), columns, cells, folded=True, links=links),
    ]


def _short_name(content: dict[str, Any]) -> str:
    """The trial of a run, else the last part of its directory, else what it is."""
    place = str(content.get("file", ""))
    return str(content.get("sweep", {}).get("trial") or Path(place).name or _name(content))


def _link(run: Run, folder: Path) -> str:
    place = run.results.get("file")
    return quote(os.path.relpath(place, folder)) if place and Path(place).exists() else ""


def _runs_csv(groups: Sequence[Group]) -> str:
    videos = any("recipe" in run.results.get("data", {}) for group in groups for run in group.runs)
    lines: list[Sequence[Any]] = [[*RUN_COLUMNS, *(VIDEO_COLUMNS if videos else ())]]
    for group in groups:
        for run in sorted(group.runs, key=lambda r: (r.stage, r.method, r.task, r.size, r.rate or 0, r.seed)):
            lines.append(["" if value is None else value for value in _run_row(run) + _video_row(run) * videos])
    return csv_text(lines)


def _run_row(run: Run) -> list[Any]:
    fit, counts = run.results.get("fit", {}), run.results.get("parameters", {})
    return [
        run.stage,
        run.method,
        run.task,
        run.size.shots,
        run.size.amount,
        run.examples,
        run.seed,
        run.rate,
        run.decay,
        run.metric,
        run.validation,
        run.score,
        run.diverged,
        run.status,
        counts.get("adapter_trained"),
        counts.get("adapter_deployed"),
        counts.get("head"),
        fit.get("seconds"),
        fit.get("steps"),
        fit.get("git"),
        fit.get("date"),
    ]


def _video_row(run: Run) -> list[Any]:
    data = run.results.get("data", {})
    skipped = [run.metrics(verb).get(f"{split}/skipped") for split, verb in (("train", "fit"), ("test", "test"))]
    return [data.get("official_split"), data.get("recipe"), *skipped]


def _line(content: dict[str, Any]) -> str:
    return json.dumps(stored(content), ensure_ascii=False, separators=(",", ":"))
