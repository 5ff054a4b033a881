"""One trial of a sweep: `replora-cli fit` in its own directory.

A trial is finished when its `results.json` names its sweep, which is written last. Anything else in the directory was
left by a killed process, and is used as far as possible:

    results.json with all verbs                   only the name of the sweep is missing
    results.json with a fit, and a checkpoint     only the test is missing
    checkpoints/last.ckpt                         the fit resumes
    anything else                                 is deleted; the fit starts again

A file that is corrupt, by a loss of power for example, counts as absent, and its trial starts again and says so.

Checkpoints of the first stage are deleted at the end; those of the second stage are kept.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import inspect
import io
import itertools
import json
import logging
import os
import shutil
import sys
import traceback
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from replora.errors import RepLoRAError
from replora.identity import differing_options, flat_options, plain_option
from replora.io import UnreadableFileError, check_types, read_json, read_text, replace_text
from replora.launch import launch
from replora.options.class_options import find_class
from replora.results import FORMAT, DivergedError, parse_results, read_results, stored, write_json
from replora.run_directory import last_checkpoint
from replora.sweeps.plan import Point, Trial
from replora.sweeps.slurm import drop_task_variables

log = logging.getLogger(__name__)


class TrialError(RepLoRAError):
    """A trial failed, or its directory holds a trial with other options."""


def finished(home: Path, trial: Trial) -> dict[str, Any] | None:
    """The results of a trial; None if it has not ended, or if its files are corrupt.

    Raises:
        TrialError: The directory holds a trial with other arguments.
        ResultsError: The results are of a newer format.
    """
    folder = home / trial.folder
    try:
        _check_same_arguments(folder, trial)
        results = results_there(folder)
    except UnreadableFileError:  # `run_trial` names the file
        return None
    return results if "sweep" in results else None


def run_trial(
    home: Path,
    sweep: str,
    trial: Trial,
    rule: dict[str, Any] | None = None,
    tell: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Fit, and test if the protocol has a test; or continue where a killed process stopped.

    A loss that is not finite is a result of the trial, because a retry would give the same. Output is written to
    `output.log` in the directory of the trial.

    Args:
        home: Directory of the sweep.
        sweep: Name of the sweep.
        trial: The trial to run.
        rule: Rule by which its point was or will be selected; None without a selection.
        tell: Receives what was corrupt, as a sentence.

    Returns:
        The content of `results.json`.

    Raises:
        TrialError: The command line is not valid, or the directory holds a trial with other options.
    """
    drop_task_variables()
    # Only here: checking a plan does not wait for torch.
    from lightning_modules.base import NonFiniteLossError

    done = finished(home, trial)
    if done is not None:
        return done
    folder = home / trial.folder
    _discard_corrupt(folder, tell)
    arguments = _remaining(home, trial)
    folder.mkdir(parents=True, exist_ok=True)
    replace_text(folder / "trial.json", json.dumps({"arguments": trial.arguments}, indent=1) + "\n")
    (folder / "error.txt").unlink(missing_ok=True)  # of an earlier attempt
    label = _label(sweep, trial) | ({"chosen_by": rule} if rule else {})
    try:
        with _called(arguments), output_to(folder / "output.log"):
            if arguments:
                launch([*arguments, "--trainer.enable_progress_bar=false"])
    except (NonFiniteLossError, DivergedError) as error:
        content: dict[str, Any] = {"format": FORMAT, "sweep": label | {"failed": str(error)}}
    except SystemExit as error:  # a signal ended it
        raise TrialError(f"{trial.folder}: the run was ended with status {error.code}.") from error
    except Exception as error:
        with contextlib.suppress(OSError):  # the disk may be full, which `error` says better
            replace_text(folder / "error.txt", f"{error}\n\n{traceback.format_exc()}")
        raise
    else:
        content = read_results(folder) | {"sweep": label}
    write_json(folder / "results.json", stored(content))
    if trial.stage == "select":
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    _freeze_libraries()
    return content


@functools.cache
def _freeze_libraries() -> None:
    """Keep the garbage collector off what the first trial has loaded; visiting it takes 0.3 s, every few trials."""
    gc.collect()
    gc.freeze()


def configuration(trial: Trial) -> dict[str, Any]:
    """The resolved configuration of a trial, with the defaults of the code: option -> value. Nothing is run.

    Raises:
        TrialError: An option does not exist, or a value is not valid.
    """
    return _options(_configuration_text(trial))


def _configuration_text(trial: Trial) -> str:
    shown = io.StringIO()
    try:
        with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(io.StringIO()):
            launch(["fit", *trial.arguments, "--print_config"])
    except RepLoRAError as error:
        raise TrialError(f"The trials of {trial.method!r} ({trial.stage}) cannot run: {error}") from error
    except SystemExit:  # the configuration is printed
        pass
    text = shown.getvalue()
    return text[text.index("seed_everything:") :]  # before it the files that were read


def check_options(trial: Trial) -> None:
    """Parse a trial's command line and build its model without weights, without running it.

    Raises:
        TrialError: It has an option that does not exist, or a value that does not fit, the adapter's targets are not in
            the model, or a trial of the first stage would not leave the test images alone.
    """
    text = _configuration_text(trial)
    options = _options(text)
    protocol = options.get("data.protocol")
    if trial.stage == "select" and protocol != "tune":
        raise TrialError(
            f"{trial.folder}: trials of the first stage have data.protocol tune, which leaves the test images alone; "
            f"here it is {protocol or 'not an option of the data'}. Write `options: {{data.protocol: tune}}` under "
            "`select`, and set it nowhere else."
        )
    model = yaml.safe_load(text)["model"]
    for name in ("optimizer", "schedule"):  # which do not change what is built
        model["init_args"].pop(name, None)
    of_data = {"image_size": options.get("data.image_size"), "num_frames": options.get("data.clips.num_frames")}
    if problem := _target_not_found(json.dumps(model), json.dumps(of_data)):
        raise TrialError(f"The trials of {trial.method!r} ({trial.stage}) cannot run: {problem}")


@functools.cache
def _target_not_found(model: str, of_data: str) -> str | None:
    """Build a model on the meta device, which has shapes and no values: what is wrong with the adapter's targets.

    Args:
        model: Class of the module and its options, as JSON.
        of_data: What it gets from the data, as JSON.
    """
    import torch  # as below

    # Only here: checking a plan's words alone does not wait for torch.
    from lightning_modules import AdaptedModule
    from replora.adapters.config import AdapterConfig
    from replora.adapters.targets import TargetNotFoundError

    def made(section: dict[str, Any], base: type, **more: Any) -> Any:
        cls = find_class(section["class_path"], (base,))
        assert cls is not None
        taken = {name: value for name, value in more.items() if name in inspect.signature(cls).parameters}
        return cls(**section.get("init_args", {}) | taken)

    section = json.loads(model)
    no_weights = {"num_classes": 2, "pretrained": False, "checkpoint": None, "quantization": "none", "compile": False}
    try:
        with torch.device("meta"), contextlib.redirect_stderr(io.StringIO()):
            adapter = section["init_args"].get("adapter")
            adapter = {"adapter": made(adapter, AdapterConfig)} if adapter else {}
            made(section, AdaptedModule, **no_weights, **json.loads(of_data), **adapter)
    except TargetNotFoundError as error:
        return str(error)
    except Exception:  # a model that cannot be built like this, for lack of a file for example, is left to its trials
        log.debug("targets are not checked", exc_info=True)
    return None


def check_same_configuration(home: Path, trial: Trial) -> None:
    """Raise if the trial was begun with the same command line, but with other defaults.

    Its `fit.yaml` has every option of then. Trials before and after would stand under one name in a report.

    Raises:
        TrialError: It was.
    """
    folder = home / trial.folder
    if not (folder / "fit.yaml").is_file():
        return
    then, now = _options((folder / "fit.yaml").read_text(encoding="utf-8")), configuration(trial)
    found = differing_options(then, now)
    differing = [f"  {name}: {there} there, {here} here" for name, (there, here) in found.items()]
    if differing:
        listed = "\n".join(differing)
        raise TrialError(
            f"{folder} was begun with other defaults, of the code or of a configuration that ships:\n{listed}\nGo back "
            "to the code of then (git in its results.json), begin in another directory with --out, or delete this one."
        )


def _options(text: str) -> dict[str, Any]:
    """The options of a configuration in YAML, without `init_args` in their names."""
    options = flat_options(yaml.safe_load(text)).items()
    return {plain_option(name): value for name, value in options if value != {}}


def set_aside_other_point(home: Path, trial: Trial, grid: Iterable[Point]) -> Path | None:
    """Rename the directory of a final trial at another point of its grid, which was selected before.

    Its `results.json` is renamed as well, so that reports do not find it.

    Args:
        home: The sweep's directory.
        trial: Trial of the second stage, at the point that is selected now.
        grid: Grid of its method.

    Returns:
        The new directory; None if nothing had to be renamed, or if a corrupt file does not say what it holds.
    """
    return set_aside(home / trial.folder) if at_other_point(home, trial, grid) else None


def at_other_point(home: Path, trial: Trial, grid: Iterable[Point]) -> bool:
    """Whether `set_aside_other_point` would rename the directory."""
    folder = home / trial.folder
    try:
        before = _arguments_there(folder)
        if before is None:  # as where results alone were copied
            return results_there(folder).get("sweep", {}).get("grid") not in (None, trial.grid.options)
    except UnreadableFileError:  # `run_trial` names the file
        return False
    of_grid = tuple(f"--{option}=" for point in grid for option in point.options)
    same = [[a for a in arguments if not a.startswith(of_grid)] for arguments in (before, trial.arguments)]
    return before != trial.arguments and same[0] == same[1]


def set_aside(folder: Path) -> Path:
    """Rename the directory of a trial to one that is free, and its results so that reports do not find them."""
    if (folder / "results.json").is_file():
        (folder / "results.json").rename(folder / "former_results.json")
    number = next(n for n in itertools.count(1) if not folder.with_name(f"{folder.name}.former-{n}").exists())
    return folder.rename(folder.with_name(f"{folder.name}.former-{number}"))


def reason_of_failure(home: Path, trial: Trial) -> str:
    """The first line of the error that a failed trial left."""
    file = home / trial.folder / "error.txt"
    lines = file.read_text(encoding="utf-8", errors="replace").strip().splitlines() if file.is_file() else []
    return lines[0].strip() if lines else "its process died (out of memory?)"


def leave_reason(home: Path, trial: Trial, reason: str) -> None:
    """Write `error.txt` for a trial that could not do so, because its process died for example. Its lock is held."""
    file = home / trial.folder / "error.txt"
    if not file.exists():
        with contextlib.suppress(OSError):  # as where it is written
            replace_text(file, f"{reason}\n")


def _discard_corrupt(folder: Path, tell: Callable[[str], None]) -> None:
    """Delete what a trial cannot go on from: all of it if its arguments are not known, else only the corrupt file."""
    for file, read in (
        (folder / "trial.json", lambda: _arguments_there(folder)),
        (folder / "results.json", lambda: results_there(folder)),
        (last_checkpoint(folder), lambda: _check_archive(last_checkpoint(folder))),
    ):
        try:
            read()
        except UnreadableFileError as error:
            shutil.rmtree(folder) if file.name == "trial.json" else file.unlink()
            where = "from its last checkpoint" if last_checkpoint(folder).is_file() else "from the beginning"
            tell(f"{str(error).partition('. ')[0]}; the trial runs again {where}")


def _check_archive(checkpoint: Path) -> None:
    """Raise an UnreadableFileError if a checkpoint, which is an archive with checksums, is corrupt."""
    if not checkpoint.is_file():
        return
    try:
        with zipfile.ZipFile(checkpoint) as archive:
            damaged = archive.testzip()
    except zipfile.BadZipFile as error:
        raise UnreadableFileError(f"{checkpoint} is corrupt: {error}") from error
    if damaged is not None:
        raise UnreadableFileError(f"{checkpoint} is corrupt: {damaged} has another checksum")


def _remaining(home: Path, trial: Trial) -> list[str]:
    """The command line that completes a trial from the state of its directory; empty if nothing is left to run."""
    folder = home / trial.folder
    fresh = ["fit", *trial.arguments, f"--run_dir={folder}"]
    results = results_there(folder)
    checkpoint = last_checkpoint(folder)
    if "fit" in results and ("test" in results or results["data"].get("protocol") == "tune"):
        return []
    if not checkpoint.is_file():
        shutil.rmtree(folder, ignore_errors=True)
        return fresh
    check_same_configuration(home, trial)
    if "fit" in results:
        return ["test", f"--config={folder / 'fit.yaml'}", f"--run_dir={folder}"]
    return [*fresh, f"--ckpt_path={checkpoint}"]


def _label(sweep: str, trial: Trial) -> dict[str, Any]:
    """The entry of the trial in `results.json`, from which every table of the sweep can be made."""
    return {
        "name": sweep,
        "stage": trial.stage,
        "method": trial.method,
        "task": trial.task.options,
        "size": trial.size.options,
        "grid": trial.grid.options,
        "seed": trial.seed,
        "trial": trial.folder,
    }


def _check_same_arguments(folder: Path, trial: Trial) -> None:
    before = _arguments_there(folder)
    if before is not None and before != trial.arguments:
        left, now = sorted(set(before) - set(trial.arguments)), sorted(set(trial.arguments) - set(before))
        none = "nothing more" if left or now else "another order"
        raise TrialError(
            f"{folder} holds a trial with other options.\n  there: {' '.join(left) or none}\n"
            f"  here:  {' '.join(now) or none}\nChoose another directory with --out, or delete that one."
        )


def _arguments_there(folder: Path) -> list[str] | None:
    """Arguments of the trial in a directory; None if there is none."""
    file = folder / "trial.json"
    if not file.is_file():
        return None
    content = read_json(file)
    check_types(content, {"arguments": [str]}, str(file))
    arguments: list[str] = content["arguments"]
    return arguments


def results_there(folder: Path) -> dict[str, Any]:
    """Content of the results file in a directory; empty if there is none.

    Raises:
        UnreadableFileError: It is corrupt.
        ResultsError: It is of a newer format, or of another program.
    """
    file = folder / "results.json"
    return parse_results(read_text(file), str(file)) if file.is_file() else {}


@contextlib.contextmanager
def output_to(file: Path) -> Iterator[None]:
    """Append all output of this process to a file, by the descriptors of its streams.

    Log handlers, warnings and libraries in C hold the streams that were there when they were loaded.
    """
    with file.open("a", encoding="utf-8", buffering=1) as stream, contextlib.ExitStack() as after:
        for number in (1, 2):
            former = os.dup(number)
            after.callback(os.close, former)
            after.callback(os.dup2, former, number)
            os.dup2(stream.fileno(), number)
        with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
            yield


@contextlib.contextmanager
def _called(arguments: list[str]) -> Iterator[None]:
    """Let results record the command of the trial instead of that of a Ray worker."""
    before = sys.argv
    sys.argv = ["replora-cli", *arguments]
    try:
        yield
    finally:
        sys.argv = before
