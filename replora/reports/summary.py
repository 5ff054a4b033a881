"""The summary that ends a verb: what was measured, how surely, where the files are, and what to do next."""

from __future__ import annotations

import math
import shlex
import textwrap
from pathlib import Path
from typing import Any

from replora.datasets.vision_language.tasks import VL_TASKS
from replora.errors import visible
from replora.evaluation.significance import wilson_interval
from replora.reports.runs import HEADLINES
from replora.results import PREDICTIONS, TEST_CLASSES, TEST_PREDICTIONS, read_results, status_of, weights_source

# Metrics by their names without split and task, as they are shown; any other has four significant digits.
PERCENT = {*HEADLINES, "mean_class_accuracy", "unparsed", "consistency", "label_score"} - {"score"}
POINTS = {"cider", "score"}  # a hundred times the value, as published tables have them
WHOLE = {"skipped", "tokens", "loss_tokens"}
COUNTED = {"accuracy", "acc", "acc_norm", "unparsed"}  # shares of items
COUNTED_KINDS = {"gqa", "nlvr2", "choice"}  # of vision-and-language tasks; an answer of VQA may be partly right
FILES = (
    *("results.json", "fit.yaml", "adapter.safetensors", "checkpoints/last.ckpt"),
    *(TEST_CLASSES, TEST_PREDICTIONS, "plots"),
    *(PREDICTIONS, "predictions.jsonl", "predictions", "predictions_partial"),
)
WEAKEST = 3  # number of classes that a summary names

Row = tuple[str, str, str, str]
HEADINGS: Row = ("metric", "value", "95 % interval", "epoch")


def format_metric(name: str, value: float | None) -> str:
    """A metric for people: `val/accuracy`, 0.3529411852359772 -> `35.3 %`."""
    if value is None or not math.isfinite(value):
        return "not finite"
    kind = _kind(name)
    if kind in PERCENT:
        return f"{100 * value:.1f} %"
    if kind in POINTS:
        return f"{100 * value:.1f}"
    return f"{value:,.0f}" if kind in WHOLE else f"{value:.4g}"


def format_seconds(seconds: float) -> str:
    """A duration: `8.3 s`, `3 min 20 s` or `2 h 5 min`."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def summarize(run_dir: Path, verb: str, recorded: bool = True) -> str:
    """The summary of a run after a verb, from its `results.json`: at most 80 columns, beside paths and long names.

    After `fit` it has the fit and the test of its weights; after another verb the measurement that it made.

    Args:
        run_dir: Directory of the run.
        verb: `fit`, `validate`, `test` or `predict`.
        recorded: Whether the verb recorded what it did; `fast_dev_run` does not.

    Raises:
        ResultsError: The run has no results, or they cannot be read.
    """
    if not recorded:
        return f"{verb} ran without an error, on the few batches of fast_dev_run. Nothing is recorded."
    results = read_results(run_dir)
    fit: dict[str, Any] = results.get("fit", {}) if verb == "fit" else {}
    measured = "test" if verb == "fit" else verb
    newest = [] if verb == "fit" else results.get("evaluations", [])
    evaluation = newest[-1] if newest else results.get(measured, {})
    rows = [*_fit_rows(results, fit), *_evaluation_rows(evaluation)]
    lines = [_title(results), "", *_table(rows)] if rows else [_title(results)]
    facts: list[tuple[str, str]] = []
    if fit:
        facts += _epochs(results, fit)
    elif evaluation:
        facts.append(("weights", weights_source(evaluation)))
    if not evaluation.get("partial"):
        facts += _by_class(results, evaluation)
    status = status_of(results, evaluation.get("partial", []))
    if status != "complete":
        facts.append(("status", status))
    spent = [(name, part["seconds"]) for name, part in (("fit", fit), (measured, evaluation)) if part]
    facts.append(("time", ", ".join(f"{format_seconds(seconds)} ({name})" for name, seconds in spent)))
    facts.append(("folder", str(run_dir)))
    written = ", ".join(name for name in FILES if (run_dir / name).exists())
    lines_of_files = textwrap.wrap(written, 71, break_on_hyphens=False)
    facts += zip(("files", *[""] * len(lines_of_files)), lines_of_files, strict=False)
    facts.append(("next", next_command(results, run_dir, verb)))
    return "\n".join([*lines, "", *(f"{name:<9}{text}" for name, text in facts if text)])


def next_command(results: dict[str, Any], run_dir: Path, verb: str) -> str:
    """The command that usually follows, for a shell."""
    data = results.get("data", {})
    config = run_dir / "fit.yaml"
    classifies = "num_classes" in data
    words: list[str | Path]
    if not config.is_file() or "fit" not in results:
        words = ["report", run_dir, "--out", run_dir / "report"]
    elif data.get("protocol") == "tune" and verb != "predict":
        final = run_dir.with_name(f"{run_dir.resolve().name}-final")
        words = ["fit", "--config", config, "--data.protocol", "final", "--run_dir", final]
    elif "test" not in results and data.get("protocol") in ("final", "holdout"):
        words = ["test", "--config", config]
    elif classifies and not (run_dir / PREDICTIONS).is_file():
        words = ["predict", "--config", config]
    elif classifies:
        words = ["plot", run_dir]
    else:
        words = ["merge" if "answers" in results["fit"] else "export", run_dir]
    return shlex.join(["replora-cli", *map(str, words)])


def _title(results: dict[str, Any]) -> str:
    data = results.get("data", {})
    task = data.get("task") or data.get("dataset")
    return f"{results['method']} on {results['backbone']['name']}" + (f", {task}" if task else "")


def _fit_rows(results: dict[str, Any], fit: dict[str, Any]) -> list[Row]:
    metrics = {name: value for name, value in fit.get("metrics", {}).items() if _kind(name) != "learning_rate"}
    epochs = fit.get("epoch_of", {})
    validation = _validation(results, metrics) if fit else {}
    rows = []
    for name, value in metrics.items():
        count = _count(name, validation) if name.startswith("val/") else None
        rows.append((name, _value(name, value, count), _interval(count), str(epochs.get(name, ""))))
    return sorted(rows, key=lambda row: not row[0].startswith("train/"))


def _validation(results: dict[str, Any], metrics: dict[str, float | None]) -> dict[str, Any]:
    """A validation of the fit in the form of an evaluation."""
    split = results.get("data", {}).get("splits", {}).get("val", {})
    return {**results["fit"], "metrics": metrics, "data": split}


def _evaluation_rows(evaluation: dict[str, Any]) -> list[Row]:
    rows = []
    for name, value in evaluation.get("metrics", {}).items():
        count = _count(name, evaluation)
        rows.append((name, _value(name, value, count), _interval(count), ""))
    return rows


def _epochs(results: dict[str, Any], fit: dict[str, Any]) -> list[tuple[str, str]]:
    """How many epochs there were, and the best one by the metric that runs are compared by."""
    planned = results.get("configuration", {}).get("trainer.max_epochs")
    more = f" of {planned}" if isinstance(planned, int) and planned > fit["epochs"] else ""
    lines = [("epochs", f"{fit['epochs']}{more}; the last one's weights are kept and measured")]
    best = fit.get("best", {})
    name = next((name for kind in (*HEADLINES, "loss") if (name := f"val/{kind}") in best), None)
    if name is not None:
        epoch, value = best[name]
        count = _count(name, _validation(results, {**fit["metrics"], name: value}))
        lines.append(("best", f"epoch {epoch}, {name} {_value(name, value, count)}"))
    return lines


def _by_class(results: dict[str, Any], evaluation: dict[str, Any]) -> list[tuple[str, str]]:
    """The classes that fared worst, and whether the probabilities can be believed."""
    lines = []
    names = results.get("data", {}).get("class_names") or []
    found = zip(names, evaluation.get("classes", []), strict=False)
    weak = sorted((row["recall"], name, row["support"]) for name, row in found if row["support"] and row["recall"] < 1)
    if weak:
        shown = [f"{visible(name)} ({recall:.0%} of {support:,})" for recall, name, support in weak[:WEAKEST]]
        lines.append(("weakest", ", ".join(shown)))
    calibration = evaluation.get("calibration", {})
    if calibration.get("ece") is not None:
        says, right = calibration["confidence"], calibration["accuracy"]
        text = f"{says:.1%} by its probabilities, {right:.1%} in truth; ECE {calibration['ece']:.1%}"
        lines.append(("sure", text))
    return lines


def _count(name: str, measured: dict[str, Any]) -> tuple[int, int] | None:
    """Right items and all items of a share of items; None for another metric, or where the items are not known.

    The value has to be such a share within the six digits that results have.
    """
    kind, task = _kind(name), name.split("/")[2:]
    value = measured["metrics"][name]
    if kind not in COUNTED or value is None:
        return None
    if task and task[0] in measured.get("tasks", {}):
        items = measured["tasks"][task[0]]["items"]
    elif task and task[0] in measured.get("answers", {}):
        items = measured["answers"][task[0]] if VL_TASKS[task[0]].kind in COUNTED_KINDS else 0
    elif task or kind != "accuracy" or measured.get("partial"):
        return None
    else:
        skipped = measured["metrics"].get(f"{name.split('/')[0]}/skipped") or 0
        items = (measured.get("data", {}).get("size") or 0) - round(skipped)
    right = round(value * items)
    return (right, items) if items > 0 and abs(right / items - value) < 1e-6 else None


def _value(name: str, value: float | None, count: tuple[int, int] | None) -> str:
    return format_metric(name, value) + (f", {count[0]:,} of {count[1]:,}" if count else "")


def _interval(count: tuple[int, int] | None) -> str:
    if count is None:
        return ""
    low, high = wilson_interval(*count)
    return f"{100 * low:.1f} to {100 * high:.1f} %"


def _kind(name: str) -> str:
    """val/accuracy/vqa -> accuracy."""
    split, _, rest = name.partition("/")
    return (rest if split in ("train", "val", "test", "predict") and rest else name).split("/")[0]


def _table(rows: list[Row]) -> list[str]:
    filled = [column for column in zip(HEADINGS, *rows, strict=True) if any(column[1:])]
    widths = [max(map(len, column)) + 2 for column in filled]
    lines = zip(*filled, strict=True)
    return ["".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
