"""`results.json`: the measurements of one run, and everything that they depend on.

    {
      "format": 1,
      "backbone": {name, weights, sha256, fingerprint},         what was adapted
      "method": "replora", "options": {...}, "targets": [...],   with what
      "parameters": {backbone, adapter_trained, adapter_deployed, head},
      "data": {...},                                             a datamodule's describe()
      "fit":  {"metrics": {"val/accuracy": 0.9, ...}, "epochs": 100, "steps": 1500, ...},
      "test": {"metrics": {...}, "weights": "last epoch", ...},
      "sweep": {name, stage, method, task, size, grid, seed, ...}   for a run of a sweep (replora.sweeps.trial)
    }

Beside its metrics, `fit` holds the optimizer (`optimizer`), the learning-rate schedule (`schedule`), the batch size
(`batch`) and the history of the metrics (`history`: name -> [[epoch, value], ...], at most 50 epochs with the last).

Each verb (`fit`, `validate`, `test`, `predict`) has an entry with its metrics, the weights that it used, its seed,
command, date, duration, peak memory and software versions. A later verb is added to the file of its run.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from replora.errors import RepLoRAError
from replora.identity import differing
from replora.io import replace_text

FORMAT = 1
VERBS = ("fit", "validate", "test", "predict")
PACKAGES = ("replora", "torch", "lightning", "timm", "transformers", "peft", "torchvision", "torchmetrics")


class ResultsError(RepLoRAError):
    """A results file is missing, corrupt, of a newer format, or of another run."""


def describe_training_data(data: dict[str, Any]) -> str | None:
    """The training data of a run in a few words, from the `data` of its results: data set, task and number of items."""
    items = len(data.get("train_indices") or [])
    words = [data.get("dataset"), data.get("task"), f"{items:,} training items" if items else None]
    return ", ".join(str(word) for word in words if word) or None


def read_results(path: Path) -> dict[str, Any]:
    """Read a `results.json`, or the one in a run's directory.

    Raises:
        ResultsError: The file does not exist, or this release cannot read it.
    """
    file = path / "results.json" if path.is_dir() else path
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ResultsError(f"There is no {file}. A run writes it when fit, validate, test or predict ends.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ResultsError(f"{file} is corrupt: {error}.") from error
    if not isinstance(results, dict) or not isinstance(results.get("format"), int):
        raise ResultsError(f"{file} is not a results file of this project: it has no 'format'.")
    if results["format"] > FORMAT:
        raise ResultsError(f"{file} has format {results['format']}; this release reads up to {FORMAT}. Update replora.")
    return results


def add_to_results(file: Path, model: dict[str, Any], data: dict[str, Any], verb: str, entry: dict[str, Any]) -> None:
    """Add the entry of one verb to `file`, beside the entries of other verbs of the same run. The write is atomic.

    Args:
        file: The results file; it is created, with its folder, if it does not exist.
        model: Backbone, method, options, targets and parameter counts.
        data: Description of the data.
        verb: One of `VERBS`. It replaces an earlier entry of the same verb.
        entry: Metrics of the verb, and its environment.

    Raises:
        ResultsError: `file` exists and belongs to a run of another backbone or method, or cannot be read.
    """
    before = read_results(file) if file.exists() else {}
    check_same_run(file, before, model)
    entries = {name: before[name] for name in (*VERBS, "sweep") if name in before} | {verb: entry}
    # Earlier verbs may have described data that this verb's datamodule has not built.
    known = before.get("data", {})
    merged = {key: known.get(key) if value in (None, {}, []) else value for key, value in data.items()}
    if isinstance(known.get("split_sizes"), dict) and isinstance(data.get("split_sizes"), dict):
        merged["split_sizes"] = known["split_sizes"] | data["split_sizes"]
    write_json(file, {"format": FORMAT, **model, "data": merged, **entries})


def check_same_run(file: Path, before: dict[str, Any], model: dict[str, Any]) -> None:
    """Check that results and a model are of the same run: of one backbone and one method.

    Args:
        file: The results file, for the message.
        before: Content of the file.
        model: Backbone, method and options of the model.

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
        import resource

        usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        peaks["cpu"] = usage if sys.platform == "darwin" else usage * 1024
    except ImportError:  # Windows
        pass
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        peaks["cuda"] = torch.cuda.max_memory_allocated()
    return peaks


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
