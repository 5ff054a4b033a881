"""`results.json`: the record of one run. docs/results.md says what is in it, and when two runs may be compared.

    {
      "format": 2, "run_id": "...",
      "configuration": {option: value}, "configuration_sha256": "...",   every option of the fit, resolved
      "backbone": {...}, "method": "replora", "options": {...}, "targets": [...], "parameters": {...},
      "data": {...},                           a datamodule's describe(), of the training
      "fit": {"metrics": {...}, "processes": [...], "partial": [], "diverged": false, ...},
      "evaluations": [{"verb": "test", "metrics": {...}, "data": {...}, "weights": {...}, "partial": [], ...}],
      "sweep": {...}                           of a run of a sweep (replora.sweeps.trial)
    }

Format 1 had one entry for each verb (`fit`, `validate`, `test`, `predict`). Readers of both formats find the run's own
measurements under these names: `read_results` adds them to what a file of format 2 holds.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from replora.errors import RepLoRAError
from replora.identity import differing, is_compared
from replora.io import (
    NUMBER,
    OPTIONAL_NUMBER,
    Entries,
    UnreadableFileError,
    check_types,
    parse_json,
    read_text,
    replace_text,
)

FORMAT = 2
EVALUATIONS = ("validate", "test", "predict")
# Files of a classifier beside its record: predictions of `predict` and of `test`, and how each class fared in a test.
PREDICTIONS, TEST_PREDICTIONS, TEST_CLASSES = "predictions.csv", "test_predictions.csv", "test_classes.csv"
PACKAGES = ("replora", "torch", "lightning", "timm", "transformers", "peft", "torchvision", "torchmetrics")


class DivergedError(RepLoRAError):
    """A fit ended with weights or a loss that are not finite numbers."""


class ResultsError(RepLoRAError):
    """A results file is missing, corrupt, of a newer format, or of another run."""


_MEASURED = {"metrics": {None: OPTIONAL_NUMBER}, "partial": [str], "versions": dict, "seconds": NUMBER}
# What the parts of a results file are, where it has them.
_TYPES = {
    "method": str,
    "configuration": dict,
    "backbone": {"name": str},
    "options": dict,
    "parameters": {None: OPTIONAL_NUMBER},
    "data": {
        "dataset": str,
        "task": str,
        "num_classes": int | None,
        "class_names": list | None,
        "splits": {None: dict},
        "train_size": int | None,
        "train_fraction": OPTIONAL_NUMBER,
        "shots": OPTIONAL_NUMBER,
    },
    "fit": _MEASURED
    | {
        "history": {None: [[OPTIONAL_NUMBER]]},
        "optimizer": {"lr": OPTIONAL_NUMBER, "weight_decay": OPTIONAL_NUMBER},
        "processes": [dict],
        "seed": int | None,
        "date": str,
    },
    "evaluations": [_MEASURED | {"verb": str, "data": dict, "weights": dict}],
    "sweep": dict,
    **dict.fromkeys(EVALUATIONS, _MEASURED),
}


def describe_training_data(data: dict[str, Any]) -> str | None:
    """What a run was trained on, from the `data` of its results: data set, task and number of items."""
    items = data.get("train_size") or len(data.get("train_indices") or [])
    words = [data.get("dataset"), data.get("task"), f"{items:,} training items" if items else None]
    return ", ".join(str(word) for word in words if word) or None


def read_results(path: Path) -> dict[str, Any]:
    """Read a `results.json`, or the one in a run's directory.

    Raises:
        ResultsError: The file does not exist, or this release cannot read it.
    """
    file = path / "results.json" if path.is_dir() else path
    try:
        return parse_results(read_text(file), str(file))
    except FileNotFoundError as error:
        raise ResultsError(f"There is no {file}. A run writes it when fit, validate, test or predict ends.") from error
    except UnreadableFileError as error:
        raise ResultsError(str(error)) from error


def parse_results(text: str, where: str) -> dict[str, Any]:
    """Parse the results of one run.

    Args:
        text: JSON.
        where: Its file, for the error.

    Raises:
        ResultsError: They are not of this project, or of a newer format.
        UnreadableFileError: They are corrupt or not complete.
    """
    results = parse_json(text, where)
    if not isinstance(results, dict) or not isinstance(results.get("format"), int):
        raise ResultsError(f"{where} is not a results file of this project: it has no 'format'.")
    if results["format"] > FORMAT:
        raise ResultsError(
            f"{where} has format {results['format']}; this release reads up to {FORMAT}. Update replora."
        )
    check_types(results, _TYPES, where)
    return Entries(with_own_measurements(results), where)


def with_own_measurements(results: dict[str, Any]) -> dict[str, Any]:
    """Add `validate`, `test` and `predict`: the newest evaluation of the data and the weights of the fit.

    It was made under the fit's conditions (`other_conditions`). A complete one comes before one of a part, which says
    so in its `partial`. Results of format 1 have these entries already.
    """
    if results["format"] < 2:
        return results
    own = [e for e in results.get("evaluations", []) if _is_own(results, e)]
    by_verb = {e["verb"]: e for e in sorted(own, key=lambda e: not e["partial"])}
    return {**results, **by_verb}


def stored(results: dict[str, Any]) -> dict[str, Any]:
    """What is written into a file: without the entries that `with_own_measurements` adds."""
    derived = EVALUATIONS if results["format"] >= 2 else ()
    return {name: value for name, value in results.items() if name not in derived}


def _is_own(results: dict[str, Any], evaluation: dict[str, Any]) -> bool:
    if "fit" not in results:  # a model that was only measured
        return True
    if evaluation["weights"]["sha256"] != results["fit"]["weights_sha256"]:
        return False
    known = results["data"].get("splits", {}).get(evaluation["data"].get("split"), {})
    same_list = known.get("sha256") == evaluation["data"].get("sha256")
    return bool(same_list) and not other_conditions(results, evaluation)


def other_conditions(results: dict[str, Any], evaluation: dict[str, Any]) -> dict[str, Any]:
    """The preprocessing, options and precision of an evaluation that are not those of the run's fit: name -> value.

    What one of the two does not have, an earlier release did not record, and it is not compared.
    """
    data = {k: v for k, v in evaluation["data"].items() if is_compared(f"data.{k}", "measurement")}
    pairs = [
        (data, results.get("data", {})),
        (evaluation.get("options", {}), results.get("configuration", {})),
        ({k: v for k, v in evaluation.items() if k == "precision"}, results.get("fit", {})),
    ]
    return {k: one[k] for one, other in pairs for k in one if k in other and one[k] != other[k]}


def status_of(results: Mapping[str, Any], partial: Iterable[str] = ()) -> str:
    """The state of a run, as everything that is made of it says: `complete`, `diverged`, or `partial: ` and why.

    Args:
        results: Content of its `results.json`; it may be empty.
        partial: Why an evaluation of the run does not cover its split.
    """
    fit = results.get("fit", {})
    if fit.get("diverged") or "failed" in results.get("sweep", {}):
        return "diverged"
    reasons = dict.fromkeys([*fit.get("partial", []), *partial])
    return f"partial: {'; '.join(reasons)}" if reasons else "complete"


UNTRAINED = "untrained"  # source of the weights of a model that nothing trained


def weights_source(evaluation: dict[str, Any]) -> str:
    """Where the weights of an evaluation came from, in words: "last epoch", "untrained", or a checkpoint."""
    weights = evaluation["weights"]
    return str(weights["source"] if isinstance(weights, dict) else weights)  # format 1 has the words alone


def record_fit(
    file: Path, model: dict[str, Any], data: dict[str, Any], fit: dict[str, Any], run: dict[str, Any]
) -> None:
    """Write what a fit did. Earlier evaluations of the same run stay in the file.

    Args:
        file: Results file; it is created with its folder if it does not exist.
        model: Backbone, method, options, targets and parameter counts.
        data: Description of the training data.
        fit: Metrics and environment_info of the training.
        run: `run_id`, `configuration` and its hash.

    Raises:
        ResultsError: `file` belongs to another run, or cannot be read.
    """
    before = stored(read_results(file)) if file.exists() else {}
    check_same_run(file, before, model)
    kept: dict[str, Any] = {name: before[name] for name in ("evaluations", "sweep") if name in before}
    write_json(file, {"format": FORMAT, **run, **model, "data": data, "fit": fit, "evaluations": [], **kept})


def record_evaluation(file: Path, model: dict[str, Any], data: dict[str, Any], evaluation: dict[str, Any]) -> None:
    """Add one evaluation. It replaces only the same measurement: of the same verb, data, weights, options and part.

    Args:
        file: Results file; it is created with its folder if it does not exist.
        model: Backbone, method, options, targets and parameter counts.
        data: Description of the data, for a file that has none because nothing was trained.
        evaluation: Its verb, metrics, data, weights and environment_info.

    Raises:
        ResultsError: `file` belongs to another run, or cannot be read.
    """
    before: dict[str, Any] = stored(read_results(file)) if file.exists() else {"format": FORMAT}
    check_same_run(file, before, model)
    before = _upgraded(before)
    evaluation = json.loads(json.dumps(evaluation))
    others = [e for e in before.get("evaluations", []) if _measured(e) != _measured(evaluation)]
    content = {**model, "data": data} | before | {"evaluations": [*others, evaluation]}
    write_json(file, {"format": FORMAT} | content | {"format": FORMAT})


def _measured(evaluation: dict[str, Any]) -> dict[str, Any]:
    """What an evaluation is a measurement of, and how."""
    data = {name: value for name, value in evaluation["data"].items() if name != "root"}
    how = {name: evaluation.get(name) for name in ("verb", "options", "precision", "partial")}
    return {**how, "data": data, "weights": evaluation["weights"]["sha256"]}


def _upgraded(results: dict[str, Any]) -> dict[str, Any]:
    """Results of format 1 as those of format 2; what format 1 did not record stays unknown."""
    if results["format"] >= 2:
        return results
    evaluations = [
        {
            **results[verb],
            "verb": verb,
            "data": {},
            "partial": [],
            "weights": {"source": results[verb]["weights"], "sha256": None},
        }
        for verb in EVALUATIONS
        if verb in results
    ]
    fit = {"fit": {**results["fit"], "weights_sha256": None, "partial": []}} if "fit" in results else {}
    kept = {name: value for name, value in results.items() if name not in (*EVALUATIONS, "fit", "format")}
    return {"format": FORMAT, **kept, **fit, "evaluations": evaluations}


def check_same_run(file: Path, before: dict[str, Any], model: dict[str, Any]) -> None:
    """Raise if `before`, read from `file`, is of another backbone or method than `model`.

    Raises:
        ResultsError: They are not.
    """
    now = {key: value for key, value in json.loads(json.dumps(model)).items() if key in before}
    found = differing(before, now, "run")
    if found:
        listed = "\n  ".join(f"{name}: {there!r} there, {here!r} here" for name, (there, here) in found.items())
        raise ResultsError(f"{file} belongs to another run:\n  {listed}\nChoose a new directory with --run_dir.")


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Write JSON atomically: readers see the old file or the new one, never a part of it."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    # Write a list of indices on one line. A raw line break tells them from brackets inside strings.
    text = re.sub(r"\[\n[\s\d,]+\]", lambda found: f"[{', '.join(re.findall('[0-9]+', found[0]))}]", text)
    replace_text(file, text)


def environment_info() -> dict[str, Any]:
    """The environment of this process: command, date (UTC), versions, git commit of the code, and platform."""
    return {
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        "git": git_commit(),
        "platform": platform.platform(),
    }


def git_commit() -> str | None:
    """Git commit of this code, with `-dirty` if tracked files differ from it; None outside a repository."""
    package = Path(__file__).resolve().parent
    if _git(package, "ls-files", "--error-unmatch", "errors.py") is None:
        return None
    commit = _git(package, "rev-parse", "HEAD")
    if commit is None:
        return None
    return commit + ("-dirty" if _git(package, "status", "--porcelain", "--untracked-files=no") else "")


def peak_memory() -> dict[str, int]:
    """Peak memory of this process so far, in bytes: `cpu` resident, `cuda` allocated by torch where a GPU was used."""
    peaks = {}
    try:
        import resource  # absent on Windows

        usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        peaks["cpu"] = usage if sys.platform == "darwin" else usage * 1024
    except ImportError:  # Windows
        pass
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        peaks["cuda"] = torch.cuda.max_memory_allocated()
    return peaks


@functools.cache
def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
