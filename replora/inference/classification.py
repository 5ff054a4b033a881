"""Classify image or video files with a trained run, as its evaluation does; the adapter is merged into the backbone."""

from __future__ import annotations

import glob
import json
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

import replora
from lightning_modules.predictors import Predictor
from replora.datasets.common.files import LeftOut, is_foreign, log_left_out, printable
from replora.datasets.errors import CorruptImageError, CorruptVideoError
from replora.errors import RepLoRAError, nearest
from replora.io import csv_text, replace_text
from replora.memory import usable_cpus
from replora.runs import load_run, module_of

PICTURES = 40  # files kept for a contact sheet
FORMATS = (".csv", ".json")


class PredictionError(RepLoRAError):
    """There is no file to classify, an option is out of its range, or the device cannot be used."""


@dataclass
class Predictions:
    """What `classify` found.

    Attributes:
        paths: The N images or videos that could be read, in the order given.
        probabilities: float32 (N, classes).
        pictures: The first `PICTURES` files as the model saw them (one frame per video), each uint8 (3, S, S).
        skipped: File that could not be read -> reason.
    """

    paths: list[Path]
    probabilities: Tensor
    pictures: list[Tensor] = field(default_factory=list)
    skipped: dict[Path, str] = field(default_factory=dict)


def check_options(top_k: int, batch_size: int) -> None:
    """Check options before anything is loaded.

    Raises:
        PredictionError: A number is too small.
    """
    if top_k < 0 or batch_size < 1:
        raise PredictionError(f"top_k={top_k} and batch_size={batch_size}: top_k is at least 0, batch_size at least 1.")


def find_files(asked: list[str], predictor: type[Predictor]) -> list[Path]:
    """Find the files that files, folders and glob patterns name.

    Args:
        asked: Files (of any suffix), folders (searched recursively) and patterns.
        predictor: Class of the predictor that will read them.

    Returns:
        Each file once, in the order asked; alphabetically within a folder.

    Raises:
        PredictionError: One of them leads to no file that the predictor reads.
    """
    kind = predictor.file_kind
    found: dict[Path, None] = {}
    for name in asked:
        path = Path(name).expanduser()
        if path.is_file() or predictor.select([path]):
            files = [path]
        elif path.is_dir():
            left_out: LeftOut = Counter()
            files = predictor.find(path, left_out)
            log_left_out(path, left_out)
        else:
            matches = glob.glob(str(path), recursive=True)  # noqa: PTH207 (`**`, cwd)
            files = predictor.select(match for match in map(Path, matches) if not _in_foreign_folder(match, path))
        if not files:
            problem = f"the folder holds no {kind}" if path.is_dir() else "there is no such file, folder or match"
            raise PredictionError(
                f"{printable(name)}: {problem} (looked in {Path.cwd()}). {kind.capitalize()}s end in "
                f"{', '.join(predictor.suffixes)}."
            )
        found |= dict.fromkeys(files)
    return list(found)


def _in_foreign_folder(match: Path, pattern: Path) -> bool:
    """Whether a wildcard of `pattern` stands for a folder of another program, such as `@eaDir`."""
    return any(is_foreign(part) for part in set(match.parts) - set(pattern.parts))


def predictor_of(run: Path) -> type[Predictor]:
    """The predictor class of a run's module; nothing is built.

    Raises:
        RepLoRAError: The directory is not that of a fit, or its module does not classify files.
    """
    module = module_of(run)
    if module.predictor is None:
        raise PredictionError(
            f"{run / 'fit.yaml'} is of {module.__name__!r}, but this is for a run that classifies images or videos, or "
            "answers questions about them."
        )
    return module.predictor


def load_predictor(run: Path, checkpoint: Path | None = None, device: str = "auto", force: bool = False) -> Predictor:
    """Build the model of a run from its `fit.yaml` and `adapter.safetensors`.

    Args:
        run: The run's directory.
        checkpoint: Weights of the backbone to use instead of the source in `fit.yaml`.
        device: A torch device, or `auto` for the first GPU if there is one, else the CPU.
        force: Whether to use an adapter whose training diverged.

    Raises:
        RepLoRAError: A file is missing or of another kind of run, the backbone's weights are not those of the run, or
            the device cannot be used.
    """
    predictor = predictor_of(run)
    loaded = load_run(run, checkpoint, force)
    return predictor.from_run(loaded.model, loaded.data, loaded.options, torch_device(device))


def classify(
    predictor: Predictor,
    paths: list[Path],
    batch_size: int | None = None,
    skip_corrupt: bool = False,
    advance: Callable[[int], object] = lambda _: None,
    force: bool = False,
) -> Predictions:
    """Classify images or videos; threads decode one batch while the model works on the previous one.

    Args:
        predictor: Predictor from `load_predictor`.
        paths: Image or video files.
        batch_size: Number of files per batch (>= 1). Default: that of the predictor.
        skip_corrupt: Whether to leave out files that cannot be read.
        advance: Called with the number of files of each batch that is done.
        force: Whether to use an adapter whose training diverged.

    Raises:
        CorruptImageError, CorruptVideoError: A file cannot be read, and `skip_corrupt` is off.
        PredictionError: No file could be read.
    """
    batch_size = predictor.batch_size if batch_size is None else batch_size
    found = Predictions([], torch.empty(0, len(predictor.class_names)))
    parts: list[Tensor] = []
    batches = [paths[start : start + batch_size] for start in range(0, len(paths), batch_size)]
    with (
        ThreadPoolExecutor(min(16, usable_cpus()), "decode") as threads,
        replora.merged(predictor.model, force=force),
    ):

        def submit(number: int) -> list[Future[Tensor]]:
            batch = batches[number] if number < len(batches) else []
            return [threads.submit(predictor.read, path) for path in batch]

        ahead = submit(0)
        for number, batch in enumerate(batches):
            decoding, ahead = ahead, submit(number + 1)
            inputs = []
            for path, future in zip(batch, decoding, strict=True):
                try:
                    inputs.append(future.result())
                    found.paths.append(path)
                except (CorruptImageError, CorruptVideoError) as error:
                    if not skip_corrupt:
                        for waiting in (*decoding, *ahead):
                            waiting.cancel()
                        raise type(error)(f"{error} Or leave such files out: --skip_corrupt true") from error
                    found.skipped[path] = str(error)
            if inputs:
                shown = inputs[: PICTURES - len(found.pictures)]
                found.pictures += [predictor.picture(one).clone() for one in shown]  # a view would keep the whole video
                parts.append(predictor.probabilities(torch.stack(inputs)))
            advance(len(batch))
    if not parts:
        raise PredictionError(f"None of the {len(paths):,} files can be read. {next(iter(found.skipped.values()), '')}")
    found.probabilities = torch.cat(parts)
    return found


def write(file: Path, found: Predictions, class_names: list[str], top_k: int = 5, status: str = "complete") -> None:
    """Write predictions atomically as CSV or JSON, by the file's suffix; paths as `printable` writes them.

    Args:
        file: File to write; its folder is created if absent.
        found: Predictions from `classify`.
        class_names: Class names in the order of the probabilities.
        top_k: Number of classes per file, most likely first; 0 for all.
        status: That of the run. `partial: ...` or `diverged` is a further, last column in CSV, and an entry in JSON.
    """
    words = {} if status == "complete" else {"status": status}
    count = min(top_k or len(class_names), len(class_names))
    values, indices = found.probabilities.topk(count, dim=1)
    ranked = [
        [(class_names[i], round(p, 6)) for p, i in zip(*row, strict=True)]
        for row in zip(values.tolist(), indices.tolist(), strict=True)
    ]
    if file.suffix.lower() == ".json":
        predictions = [
            {"path": printable(path), "predicted": row[0][0], "probability": row[0][1], "probabilities": dict(row)}
            for path, row in zip(found.paths, ranked, strict=True)
        ]
        skipped = [{"path": printable(path), "reason": reason} for path, reason in found.skipped.items()]
        content = {"class_names": class_names, "predictions": predictions, "skipped": skipped} | words
        replace_text(file, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
        return
    first = ["path", "predicted", "probability"]
    if top_k == 0:
        lines = [[*first, *(f"p({name})" for name in class_names), *words]]
        rest = [[f"{p:.6f}" for p in row] for row in found.probabilities.tolist()]
    else:
        lines = [[*first, *(f"{column}_{k}" for k in range(2, count + 1) for column in first[1:]), *words]]
        rest = [[text for name, p in row[1:] for text in (name, f"{p:.6f}")] for row in ranked]
    for path, row, more in zip(found.paths, ranked, rest, strict=True):
        lines.append([printable(path), row[0][0], f"{row[0][1]:.6f}", *more, *words.values()])
    replace_text(file, csv_text(lines))


def torch_device(name: str) -> torch.device:
    """The device of a name, or of `auto`. Raises PredictionError if it cannot be used."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        known = ["auto", "cpu", *(["cuda"] if torch.cuda.is_available() else [])]
        raise PredictionError(
            f"The device {name!r} cannot be used ({str(error).splitlines()[0]}). {nearest(name, known)}"
        ) from error
    return device
