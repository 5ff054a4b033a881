"""Classify image or video files with a trained run, as its evaluation does; the adapter is merged into the backbone."""

from __future__ import annotations

import glob
import json
import os
from collections import Counter
from pathlib import Path

import torch

import replora
from lightning_modules.predictors import PredictionError, Predictions, Predictor
from replora.datasets.common.files import LeftOut, is_foreign, log_left_out, printable
from replora.errors import check_arguments, nearest
from replora.io import csv_text, replace_text
from replora.runs import module_of, open_run

FORMATS = (".csv", ".json")


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
            f"{run / 'fit.yaml'} is of {module.__name__!r}, but this is for a run that classifies images or videos. "
            "Questions about files: replora-cli ask. The model of any run, in Python: replora.runs.open_run(run).model."
        )
    return module.predictor


@check_arguments
def load_run(
    run: str | os.PathLike[str],
    device: str | torch.device = "auto",
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    force: bool = False,
) -> Predictor:
    """Open a run that classifies images or videos, with its adapter merged into the backbone.

        predictor = replora.load_run("runs/photos")
        found = predictor.predict(["a.jpg", "b.jpg"])
        found.labels, found.probabilities, found.class_names

    `Predictor.predict` takes paths, images of Pillow and arrays, and gives the numbers of `replora-cli predict-files`.

    Args:
        run: Directory of the run, with its `fit.yaml` and `adapter.safetensors`.
        device: Device of the model: cpu, cuda, cuda:1, ...; auto is the first GPU if there is one.
        checkpoint: Weights of the backbone to use instead of the source in `fit.yaml`.
        force: Whether to use an adapter whose training diverged.

    Raises:
        RepLoRAError: A file is missing or of another kind of run, the backbone's weights are not those of the run, or
            the device cannot be used.
    """
    folder = Path(run).expanduser()
    predictor, place = predictor_of(folder), torch_device(str(device))
    opened = open_run(folder, None if checkpoint is None else Path(checkpoint).expanduser(), force)
    model = replora.merge_and_unload(opened.model, force=force)
    return predictor.from_run(model, opened.backbone.head_names[0], opened.data, opened.options, place)


def write(file: Path, found: Predictions, top_k: int = 5, status: str = "complete") -> None:
    """Write predictions atomically as CSV or JSON, by the file's suffix; paths as `printable` writes them.

    Args:
        file: File to write; its folder is created if absent.
        found: Predictions of files.
        top_k: Number of classes per file, most likely first; 0 for all.
        status: That of the run. `partial: ...` or `diverged` is a further, last column in CSV, and an entry in JSON.
    """
    words = {} if status == "complete" else {"status": status}
    ranked = [[(name, round(p, 6)) for name, p in row] for row in found.top(top_k)]
    names = [printable(str(source)) for source in found.sources]
    if file.suffix.lower() == ".json":
        predictions = [
            {"path": name, "predicted": row[0][0], "probability": row[0][1], "probabilities": dict(row)}
            for name, row in zip(names, ranked, strict=True)
        ]
        skipped = [{"path": printable(str(source)), "reason": reason} for source, reason in found.skipped.items()]
        content = {"class_names": found.class_names, "predictions": predictions, "skipped": skipped} | words
        replace_text(file, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
        return
    first = ["path", "predicted", "probability"]
    if top_k == 0:
        lines = [[*first, *(f"p({name})" for name in found.class_names), *words]]
        rest = [[f"{p:.6f}" for p in row] for row in found.probabilities.tolist()]
    else:
        lines = [[*first, *(f"{column}_{k}" for k in range(2, len(ranked[0]) + 1) for column in first[1:]), *words]]
        rest = [[text for name, p in row[1:] for text in (name, f"{p:.6f}")] for row in ranked]
    for name, row, more in zip(names, ranked, rest, strict=True):
        lines.append([name, row[0][0], f"{row[0][1]:.6f}", *more, *words.values()])
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
