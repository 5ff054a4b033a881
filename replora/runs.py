"""A trained run, opened again: its backbone with its adapter, from the run's directory."""

from __future__ import annotations

import importlib
import inspect
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import lightning_modules
import replora
from lightning_modules.base import AdaptedModule
from replora.adapters.state import read_metadata
from replora.backbones.backbone import Backbone
from replora.config_files import read_config
from replora.errors import RepLoRAError
from replora.io import NUMBER, Entries, check_types, parse_json
from replora.results import status_of


class RunError(RepLoRAError):
    """A directory is not that of a finished fit, its module is not known, or its backbone is not available."""


@dataclass(frozen=True)
class Run:
    """A finished fit.

    Attributes:
        folder: Its directory.
        module: Class of its LightningModule.
        backbone: The backbone; its `model` carries the trained adapter, not merged, in evaluation mode.
        data: Class names and preprocessing, where the data have them.
        options: Options of the module, as in `fit.yaml`.
    """

    folder: Path
    module: type[AdaptedModule]
    backbone: Backbone
    data: dict[str, Any]
    options: dict[str, Any]

    @property
    def model(self) -> nn.Module:
        return self.backbone.model


def check_usable(metadata: dict[str, str], where: str, force: bool) -> None:
    """Check what an adapter file says of its training; warn of a partial one.

    Args:
        metadata: Metadata of the adapter file.
        where: Its run or file, for the message.
        force: Whether to accept an adapter whose training diverged.

    Raises:
        RunError: The training diverged.
    """
    if metadata.get("diverged") == "true" and not force:
        raise RunError(
            f"The fit of {where} diverged: weights or losses are not finite numbers. Train it again with a lower "
            "--model.optimizer.lr or with --trainer.gradient_clip_val 1.0. To use it all the same: --force true."
        )
    if partial := metadata.get("partial"):
        warnings.warn(
            f"{where} is a partial run ({partial}): its numbers are not those of a complete fit.", stacklevel=2
        )


def status_of_adapter(metadata: dict[str, str]) -> str:
    """What an adapter file says of its training: `complete`, `diverged` or `partial: ` and why."""
    partial = [metadata["partial"]] if "partial" in metadata else []
    return status_of({"fit": {"diverged": metadata.get("diverged") == "true", "partial": partial}})


def open_run(folder: Path, checkpoint: Path | None = None, force: bool = False) -> Run:
    """Build the model of a run from its `fit.yaml` and `adapter.safetensors`.

    Args:
        folder: The run's directory.
        checkpoint: Weights of the backbone to use instead of the source in `fit.yaml`.
        force: Whether to open a run that diverged.

    Raises:
        RepLoRAError: A file is missing, the module is not known, or the backbone's weights are not those of the run.
    """
    class_path, options, seed = _read_fit(folder)
    module = _module_class(folder, class_path)
    file = folder / "adapter.safetensors"
    metadata = read_metadata(file)
    check_usable(metadata, str(folder), force)
    recorded, data = (read_entry(metadata, name, file) for name in ("backbone", "data"))
    given = checkpoint or options.get("checkpoint")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # random weights are those of the run
        try:
            built = module.build_backbone(options, data, Path(given) if given else None)
        except (AttributeError, KeyError, TypeError) as error:
            raise RunError(f"The options of the model in {folder / 'fit.yaml'} do not fit together: {error}") from error
        if recorded and built.fingerprint != recorded["fingerprint"]:
            raise RunError(
                f"The backbone's weights ({built.weights}) are not those that {folder} was trained on "
                f"({recorded['weights']}, fingerprint {recorded['fingerprint']}). Give their file with --checkpoint."
            )
        # Resampled values differ in the last bit between kinds of processors; the published ones were compared above.
        resampled = "resampled" in recorded
        replora.load_adapter(built.model, file, force=force or resampled)
    built.model.eval()
    return Run(folder, module, built, data, options)


def module_of(folder: Path) -> type[AdaptedModule]:
    """Class of a run's LightningModule; nothing is built.

    Raises:
        RunError: The directory is not that of a fit, or the class is not known.
    """
    return _module_class(folder, _read_fit(folder)[0])


def import_module(name: str | None) -> None:
    """Import the Python module that defines a custom LightningModule, so that its runs can be opened.

    Args:
        name: Module name on the Python path, such as `mymodule`; None does nothing.

    Raises:
        RunError: There is no such module.
    """
    if name is None:
        return
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise RunError(f"--import_module {name}: {error}. Add its folder to PYTHONPATH.") from error


def _module_class(folder: Path, class_path: str) -> type[AdaptedModule]:
    """A class of `lightning_modules`, or one that is imported already: the file of a run cannot make other code run."""
    package, _, name = class_path.rpartition(".")
    own = getattr(lightning_modules, name, None) if package.partition(".")[0] in ("", "lightning_modules") else None
    if isinstance(own, type) and issubclass(own, AdaptedModule):
        return own
    for cls in concrete_subclasses(AdaptedModule):
        if class_path == f"{cls.__module__}.{cls.__qualname__}":
            return cls
    raise RunError(
        f"{folder / 'fit.yaml'} is of {class_path!r}, but this is for a run of lightning_modules or of an imported "
        f"class. Import your own class first: --import_module {package or 'MODULE'}; in Python, import its module."
    )


def concrete_subclasses(base: type) -> Iterator[type]:
    """All imported subclasses of a class, at any depth, that are not abstract."""
    cls: type
    for cls in base.__subclasses__():
        if not inspect.isabstract(cls):
            yield cls
        yield from concrete_subclasses(cls)


def _read_fit(folder: Path) -> tuple[str, dict[str, Any], int]:
    """Class of the run's module, the options of its module, and its seed."""
    file = folder / "fit.yaml"
    if not file.is_file():
        there = ", ".join(sorted(entry.name for entry in folder.iterdir())) if folder.is_dir() else "no such folder"
        raise RunError(
            f"{folder} is not the directory of a finished fit: it has no fit.yaml ({there or 'it is empty'}). A fit "
            "writes it and adapter.safetensors into its --run_dir."
        )
    config = read_config(file)
    check_types(config, {"model": {"class_path": str, "init_args": dict}}, str(file))
    model = Entries(Entries(config, str(file))["model"], str(file))
    seed = config.get("seed_everything")
    seed = seed if isinstance(seed, int) and not isinstance(seed, bool) else 0
    return model["class_path"], Entries(model.get("init_args", {}), str(file)), seed


# What the entries of an adapter file's header are.
_ENTRIES = {
    "backbone": {"name": str, "weights": str, "fingerprint": str},
    "data": {
        "class_names": [str],
        "image_size": int,
        "interpolation": str,
        "framing": str,
        "upright": bool,
        "normalization": {"mean": [NUMBER], "std": [NUMBER]},
        "clips": dict,
    },
    "metrics": {None: NUMBER},
}


def read_entry(metadata: dict[str, str], name: str, file: Path) -> dict[str, Any]:
    """An entry `backbone`, `data` or `metrics` of an adapter file; empty if it has none.

    Raises:
        UnreadableFileError: It is no JSON, or a value in it is of another type.
    """
    where = f"The entry {name!r} in the header of {file}"
    content = parse_json(metadata.get(name, "{}"), where)
    check_types(content, _ENTRIES[name], where)
    entries: dict[str, Any] = content
    return entries
