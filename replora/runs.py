"""A trained run, opened again: its backbone with its adapter, from the run's directory."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import replora
from replora.adapters.config import AdapterConfig
from replora.adapters.state import read_metadata
from replora.backbones.backbone import Backbone
from replora.backbones.language import build_language_backbone
from replora.backbones.video import build_video_backbone
from replora.backbones.vision import build_vision_backbone
from replora.errors import RepLoRAError, nearest
from replora.former_names import renamed


class RunError(RepLoRAError):
    """A directory is not that of a finished fit, of another kind than asked for, or its backbone cannot be had."""


@dataclass(frozen=True)
class Run:
    """A finished fit.

    Attributes:
        folder: Its directory.
        kind: Class of its LightningModule, such as `ImageClassification`.
        backbone: As it was built; its `model` carries the trained adapter, not merged, in evaluation mode.
        data: Class names and preprocessing, where the data have them.
        options: Of the module, as in `fit.yaml`.
    """

    folder: Path
    kind: str
    backbone: Backbone
    data: dict[str, Any]
    options: dict[str, Any]

    @property
    def model(self) -> nn.Module:
        return self.backbone.model


def load_run(folder: Path, checkpoint: Path | None = None, kinds: tuple[str, ...] = ()) -> Run:
    """Build the model of a run from its `fit.yaml` and `adapter.safetensors`.

    Args:
        folder: The run's directory.
        checkpoint: The backbone's weights instead of the source in `fit.yaml`.
        kinds: The kinds of run that will do; any by default.

    Raises:
        RepLoRAError: A file is missing or of another kind of run, or the backbone's weights are not those of the run.
    """
    class_path, options, seed = _read_fit(folder)
    kind = class_path.rpartition(".")[2]
    if kind not in BUILDERS or (kinds and kind not in kinds):
        wanted = " or ".join(repr(name) for name in kinds or BUILDERS)
        raise RunError(f"{folder / 'fit.yaml'} is of {class_path!r}, but this is for a run of {wanted}.")
    file = folder / "adapter.safetensors"
    metadata = read_metadata(file)
    recorded = json.loads(metadata.get("backbone", "{}"))
    data = json.loads(metadata.get("data", "{}"))
    given = checkpoint or options.get("checkpoint")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # random weights are those of the run
        built = BUILDERS[kind](options, data, Path(given) if given else None)
        if recorded and built.fingerprint != recorded["fingerprint"]:
            raise RunError(
                f"The backbone's weights ({built.weights}) are not those that {folder} was trained on "
                f"({recorded['weights']}, fingerprint {recorded['fingerprint']}). Give their file with --checkpoint."
            )
        replora.load_adapter(built.model, file)
    built.model.eval()
    return Run(folder, kind, built, data, options)


def kind_of(folder: Path) -> str:
    """Class of a run's LightningModule, such as `ImageClassification`; nothing is built.

    Raises:
        RunError: The directory is not that of a fit.
    """
    return _read_fit(folder)[0].rpartition(".")[2]


def _vision(options: dict[str, Any], data: dict[str, Any], checkpoint: Path | None) -> Backbone:
    if "class_names" not in data:
        raise RunError(
            "The run's adapter.safetensors does not hold the names of its classes and the preprocessing; a fit of this "
            "release writes them. Repeat the fit."
        )
    return build_vision_backbone(
        options["backbone"],
        num_classes=len(data["class_names"]),
        pretrained=options.get("pretrained", True),
        checkpoint=checkpoint,
    )


def _language(options: dict[str, Any], _data: dict[str, Any], checkpoint: Path | None) -> Backbone:
    return build_language_backbone(
        str(checkpoint or options["backbone"]),
        pretrained=options.get("pretrained", True),
        revision=options.get("revision"),
        dtype=options.get("dtype", "auto"),
        quantization=options.get("quantization", "none"),
    )


def _video(options: dict[str, Any], data: dict[str, Any], checkpoint: Path | None) -> Backbone:
    if "class_names" not in data:
        raise RunError("The run's adapter.safetensors does not hold the names of its classes. Repeat the fit.")
    return build_video_backbone(
        options["backbone"],
        num_classes=len(data["class_names"]),
        pretrained=options.get("pretrained", True),
        checkpoint=checkpoint,
        num_frames=data["clips"]["num_frames"],
    )


def _vision_language(options: dict[str, Any], _data: dict[str, Any], checkpoint: Path | None) -> Backbone:
    """With the adapter in place already: its file holds parts of BART that `load_adapter` alone would not expect."""
    from replora.adapters.extra_trainable import DEFAULT_PARTS, train_parts
    from replora.backbones.vl_bart import build_vl_bart

    parts = options.get("also_train", DEFAULT_PARTS)
    taken = ("revision", "pretrained", "feature_size", "pooled_side", "dropout")
    built = build_vl_bart(
        str(checkpoint or options["backbone"]),
        visual_embedding="visual_embedding" in parts,
        **{name: options[name] for name in taken if name in options},
    )
    replora.inject(built.model, _method(options["adapter"]), also_train=built.head_names)
    train_parts(built.model, parts)
    return built


def _method(options: dict[str, Any]) -> AdapterConfig:
    """{class_path, init_args} -> a method of this package: the file of a run cannot make other code run."""
    name = renamed(options["class_path"]).rpartition(".")[2]
    cls = getattr(replora, name) if name in replora.__all__ else None
    if not (isinstance(cls, type) and issubclass(cls, AdapterConfig)):
        known = [key for key in replora.__all__ if key.endswith("Config")]
        raise RunError(f"The run's method {options['class_path']!r} is not known. {nearest(name, known)}")
    config: AdapterConfig = cls(**(options.get("init_args") or {}))
    return config


# Kind of run -> its backbone, from the options of its module, what its adapter file says of the data, and a checkpoint.
BUILDERS: dict[str, Callable[[dict[str, Any], dict[str, Any], Path | None], Backbone]] = {
    "ImageClassification": _vision,
    "VideoClassification": _video,
    "CausalLanguageModel": _language,
    "VisionLanguage": _vision_language,
}


def _read_fit(folder: Path) -> tuple[str, dict[str, Any], int]:
    """Class of the run's module, the options of its module, and its seed."""
    import yaml  # type: ignore[import-untyped]

    file = folder / "fit.yaml"
    if not file.is_file():
        there = ", ".join(sorted(entry.name for entry in folder.iterdir())) if folder.is_dir() else "no such folder"
        raise RunError(
            f"{folder} is not the directory of a finished fit: it has no fit.yaml ({there or 'it is empty'}). A fit "
            "writes it and adapter.safetensors into its --run_dir."
        )
    config = yaml.safe_load(file.read_text(encoding="utf-8"))
    model = config.get("model") or {}
    seed = config.get("seed_everything")
    return (
        model.get("class_path", ""),
        model.get("init_args") or {},
        seed if isinstance(seed, int) and not isinstance(seed, bool) else 0,
    )
