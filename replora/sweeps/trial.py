"""One trial of a sweep: the command line's own `fit` in a directory of its own.

A trial is finished when its `results.json` says of which sweep it is; that is written last. Whatever else is in the
directory was left behind by a killed one, and is taken up as far as it goes:

    results.json with all verbs                   only the sweep's name is missing
    results.json with a fit, and a checkpoint     only the test is missing
    checkpoints/last.ckpt                         the fit resumes
    anything else                                 is deleted, the fit starts anew

The checkpoint of a trial of the first stage is deleted in the end; the second stage's are kept.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import shutil
import sys
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from replora.errors import RepLoRAError
from replora.identity import flat_options, options_of_kind
from replora.io import replace_text
from replora.results import FORMAT, read_results, write_json
from replora.sweeps.plan import Point, Trial


class TrialError(RepLoRAError):
    """A trial failed, or its directory holds one with other options."""


def finished(home: Path, trial: Trial) -> dict[str, Any] | None:
    """The results of a trial that has ended, None of one that has not.

    Raises:
        TrialError: The directory holds a trial with other arguments.
        ResultsError: Its results cannot be read.
    """
    folder = home / trial.folder
    _check_same_arguments(folder, trial)
    if not (folder / "results.json").is_file():
        return None
    results = read_results(folder)
    return results if "sweep" in results else None


def run_trial(home: Path, sweep: str, trial: Trial, choice: dict[str, Any] | None = None) -> dict[str, Any]:
    """Fit, and test where the protocol has a test; or go on where a killed process stopped.

    A loss that is not finite ends the trial with a result: it is the outcome of these options, and trying again
    would give the same. Output goes to `output.log` in the trial's directory.

    Args:
        home: The sweep's directory.
        sweep: The sweep's name.
        trial: What to run.
        choice: By what its point was chosen; for the first stage, by what it will be.

    Returns:
        The content of `results.json`.

    Raises:
        TrialError: The fit failed; the message has its last words. Or what was begun had other options.
    """
    from lightning_modules.base import NonFiniteLossError
    from replora.launch import launch

    done = finished(home, trial)
    if done is not None:
        return done
    folder = home / trial.folder
    arguments = _remaining(home, trial)
    folder.mkdir(parents=True, exist_ok=True)
    replace_text(folder / "trial.json", json.dumps({"arguments": trial.arguments}, indent=1) + "\n")
    label = _label(sweep, trial) | ({"chosen_by": choice} if choice else {})
    try:
        with _called(arguments), _output_to(folder / "output.log"):
            if arguments:
                launch([*arguments, "--trainer.enable_progress_bar=false"])
    except NonFiniteLossError as error:
        content: dict[str, Any] = {"format": FORMAT, "sweep": label | {"failed": str(error)}}
    except SystemExit as error:  # the parser's way to refuse an option
        _, _, mistake = (folder / "output.log").read_text(encoding="utf-8").rpartition("error:")
        mistake = " ".join(mistake.split())
        replace_text(folder / "error.txt", mistake)
        raise TrialError(f"{trial.folder}: {mistake}") from error
    except Exception as error:
        replace_text(folder / "error.txt", f"{error}\n\n{traceback.format_exc()}")
        raise
    else:
        content = read_results(folder) | {"sweep": label}
    write_json(folder / "results.json", content)
    if trial.stage == "select":
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return content


def configuration(trial: Trial) -> dict[str, Any]:
    """What a trial's command line comes to with the defaults of the code, without running it: option -> value.

    Raises:
        TrialError: It has an option that does not exist, or a value that does not fit.
    """
    from replora.launch import launch

    shown, words = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(words):
            launch(["fit", *trial.arguments, "--print_config"])
    except SystemExit as stopped:
        if stopped.code:
            _, _, mistake = words.getvalue().partition("error:")
            raise TrialError(f"The trials of {trial.method!r} ({trial.stage}) cannot run: {mistake.strip()}") from None
    text = shown.getvalue()
    return _options(text[text.index("seed_everything:") :])  # before it the files that were read


def check_options(trial: Trial) -> None:
    """Parse a trial's command line, without running it.

    Raises:
        TrialError: It has an option that does not exist, or a value that does not fit, or a trial of the first stage
            would not leave the test images alone.
    """
    protocol = configuration(trial).get("data.protocol")
    if trial.stage == "select" and protocol != "tune":
        raise TrialError(
            f"{trial.folder}: trials of the first stage have data.protocol tune, which leaves the test images alone; "
            f"here it is {protocol or 'not an option of the data'}. Write `options: {{data.protocol: tune}}` under "
            "`select`, and set it nowhere else."
        )


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
    names = sorted((then.keys() | now.keys()) - set(options_of_kind("harmless")))
    differing = [f"  {n}: {then.get(n)} there, {now.get(n)} here" for n in names if then.get(n) != now.get(n)]
    if differing:
        listed = "\n".join(differing)
        raise TrialError(
            f"{folder} was begun with other defaults, of the code or of a configuration that ships:\n{listed}\nGo back "
            "to the code of then (git in its results.json), begin in another directory with --out, or delete this one."
        )


def _options(text: str) -> dict[str, Any]:
    """The options of a configuration in YAML, without the `init_args` of their names."""
    import yaml  # type: ignore[import-untyped]

    options = flat_options(yaml.safe_load(text)).items()
    return {name.replace(".init_args", ""): value for name, value in options if value != {}}


def set_aside_other_point(home: Path, trial: Trial, grid: Iterable[Point]) -> Path | None:
    """Rename what a final trial left at another point of its grid, where the choice fell before.

    Its `results.json` is renamed as well, so that no report finds it.

    Args:
        home: The sweep's directory.
        trial: Of the second stage, at the point chosen now.
        grid: Of its method.

    Returns:
        The directory's new name, None if there was nothing to do.
    """
    folder = home / trial.folder
    before = _arguments_there(folder)
    of_grid = tuple(f"--{option}=" for point in grid for option in point.options)
    same = [[a for a in arguments if not a.startswith(of_grid)] for arguments in (before or [], trial.arguments)]
    if before is None or before == trial.arguments or same[0] != same[1]:
        return None
    if (folder / "results.json").is_file():
        (folder / "results.json").rename(folder / "former_results.json")
    number = next(n for n in itertools.count(1) if not folder.with_name(f"{folder.name}.former-{n}").exists())
    return folder.rename(folder.with_name(f"{folder.name}.former-{number}"))


def reason_of_failure(home: Path, trial: Trial) -> str:
    """The first line of what a failed trial left behind."""
    file = home / trial.folder / "error.txt"
    lines = file.read_text(encoding="utf-8").strip().splitlines() if file.is_file() else []
    return lines[0].strip() if lines else "its process died (out of memory?)"


def _remaining(home: Path, trial: Trial) -> list[str]:
    """The verb and options that bring the trial from what is in its directory to its end; none if nothing is left."""
    folder = home / trial.folder
    fresh = ["fit", *trial.arguments, f"--run_dir={folder}"]
    results = read_results(folder) if (folder / "results.json").is_file() else {}
    checkpoint = folder / "checkpoints" / "last.ckpt"
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
    """What `results.json` says of the trial: enough to make every table of the sweep."""
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
        raise TrialError(
            f"{folder} holds a trial with other options.\n  there: {' '.join(left) or 'another order'}\n"
            f"  here:  {' '.join(now) or 'another order'}\nChoose another directory with --out, or delete that one."
        )


def _arguments_there(folder: Path) -> list[str] | None:
    """Those of the trial in a directory, None if there is none."""
    file = folder / "trial.json"
    if not file.is_file():
        return None
    arguments: list[str] = json.loads(file.read_text(encoding="utf-8"))["arguments"]
    return arguments


@contextlib.contextmanager
def _output_to(file: Path) -> Iterator[None]:
    with (
        file.open("a", encoding="utf-8") as stream,
        contextlib.redirect_stdout(stream),
        contextlib.redirect_stderr(stream),
    ):
        yield


@contextlib.contextmanager
def _called(arguments: list[str]) -> Iterator[None]:
    """The command that results record: the trial's, not that of a worker of Ray."""
    before = sys.argv
    sys.argv = ["replora-cli", *arguments]
    try:
        yield
    finally:
        sys.argv = before
