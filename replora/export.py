"""Export a trained adapter to files that stock tools open: a PEFT folder, or the backbone with the update merged."""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

import replora
from replora.adapters.config import PeftMethodConfig
from replora.adapters.container import adapters_of
from replora.adapters.fingerprint import base_name, check_base_weights, in_head, timm_weights
from replora.adapters.low_rank.layer import WeightUpdate
from replora.adapters.low_rank.ops import add_update_to_weight
from replora.adapters.merge import disabled, merge_and_unload, merged
from replora.adapters.peft_format.export import CONFIG_FILE, export_peft, library_of
from replora.adapters.peft_format.model_card import model_card
from replora.adapters.state import HEADER, read_adapter, read_metadata, save_adapter
from replora.adapters.verify import outputs_on_example
from replora.backbones.image_size import image_size_of
from replora.backbones.vision import VIT_NANO, build_vision_backbone
from replora.backbones.vit_nano import VIT_NANO_ARCHITECTURE, VIT_NANO_MEAN, VIT_NANO_STD, build_vit_nano
from replora.datasets.common.hub import check_hub
from replora.datasets.image.read import describe_images, short_side
from replora.errors import RepLoRAError, nearest
from replora.io import check_output, new_folder
from replora.results import describe_training_data, read_results
from replora.runs import check_usable, open_run, read_entry

Format = Literal["peft", "adapter"]
# Maximum difference between merged and unmerged outputs, as a fraction of the largest output.
TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 0.05, torch.bfloat16: 0.2}


class ExportError(RepLoRAError):
    """The adapter's base is not given or not known, or merged and unmerged outputs differ."""


@dataclass(frozen=True)
class Trained:
    """A model with a trained adapter, and the content of its model card.

    Attributes:
        model: Model in evaluation mode, its adapter not merged.
        base: Name of the frozen model: a path or hub name for transformers, a model name for timm.
        data: Class names and preprocessing, if there are any.
        trained_on: Description of the training data.
        metrics: Name of a metric -> value.
        metadata: Header of the adapter file.
        force: Whether values that are not finite are written all the same.
    """

    model: nn.Module
    base: str | None
    data: dict[str, Any] = field(default_factory=dict)
    trained_on: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    force: bool = False


def load_trained(source: Path, base: str | None = None, checkpoint: Path | None = None, force: bool = False) -> Trained:
    """Load a finished run, or an adapter file together with its base.

    Args:
        source: Directory of a run, or a file of `replora.save_adapter`.
        base: Model that an adapter file was trained on: a folder or hub name of transformers, or a model name of timm.
        checkpoint: File of the backbone's weights for a run or a timm base, if they are not where these look for them.
        force: Whether to load an adapter whose training diverged.

    Raises:
        RepLoRAError: There is no such run or file, or its base is missing or a different model.
    """
    if source.is_file():
        return _from_file(source, base, checkpoint, force)
    if not source.exists():
        raise ExportError(f"There is no adapter file and no run {source} (looked in {Path.cwd()}).")
    if (source / CONFIG_FILE).is_file():
        raise ExportError(
            f"{source} is an adapter folder of the peft library already. To read it into a model: "
            "replora.import_peft(model, folder); to merge it: merge_and_unload of peft, or replora.merge_and_unload."
        )
    if base is not None:
        raise ExportError(f"--base {base} is for an adapter file; {source} is a run, which names its own backbone.")
    run = open_run(source, checkpoint, force)
    results = read_results(source) if (source / "results.json").is_file() else {}
    measured = (results.get("test") or results.get("validate") or {}).get("metrics", {})
    name = run.backbone.name
    if run.backbone.weights.startswith("timm/"):
        name = timm_weights(run.model) or name
    return Trained(
        run.model,
        base_name(run.model) or name,
        run.data,
        _partial(describe_training_data(results.get("data", {})), read_metadata(source / "adapter.safetensors")),
        {name: value for name, value in measured.items() if value is not None},
        read_metadata(source / "adapter.safetensors"),
        force,
    )


def _from_file(source: Path, base: str | None, checkpoint: Path | None, force: bool) -> Trained:
    (description, state), metadata = read_adapter(source), read_metadata(source)
    check_usable(metadata, str(source), force)
    heads = tuple(description.get("also_train", ()))
    recorded = description.get("base") or {}
    if base is None:
        kind = f" It was trained on {recorded['name'] or 'a model'} ({recorded['class']})." if recorded else ""
        raise ExportError(
            f"{source} is an adapter without its base model. Name that: --base FOLDER, a folder or hub name of "
            f"transformers, or a timm model.{kind} (A run's directory needs no --base.)"
        )
    if _is_timm(base):
        size = read_entry(metadata, "data", source).get("image_size")
        model, base = _load_timm(base.removeprefix("timm/"), state, checkpoint, size)
    else:
        model = load_transformers(base, heads, recorded.get("class"))
    check_base_weights(model, recorded, heads, str(source))
    replora.load_adapter(model, source, force=force)
    data, metrics = (read_entry(metadata, name, source) for name in ("data", "metrics"))
    return Trained(model.eval(), base, data, _partial(metadata.get("trained_on"), metadata), metrics, metadata, force)


def _partial(trained_on: str | None, metadata: dict[str, str]) -> str | None:
    """What a model card says of the training data: also whether the training was a partial one."""
    if "partial" not in metadata:
        return trained_on
    return f"{trained_on or 'unknown data'} (a partial run: {metadata['partial']})"


def _is_timm(base: str) -> bool:
    import timm

    name = base.removeprefix("timm/")
    return not Path(base).is_dir() and (name == VIT_NANO or ("/" not in name and timm.is_model(name)))


def _load_timm(
    name: str, state: dict[str, Tensor], checkpoint: Path | None, image_size: int | None
) -> tuple[nn.Module, str]:
    """A timm model with as many classes as the head in an adapter's `state`, and what to call it."""
    import timm

    classifier = "head" if name == VIT_NANO else timm.models.get_pretrained_cfg_value(name, "classifier")
    layer = classifier[0] if isinstance(classifier, tuple | list) else classifier
    weight = state.get(f"{layer}.weight")
    if weight is None:
        raise ExportError(
            f"--base {name}: the adapter file has no head ({layer!r}) for this timm model. {_FROM_PYTHON}"
        )
    built = build_vision_backbone(name, num_classes=len(weight), checkpoint=checkpoint, image_size=image_size)
    from_hub = built.weights.startswith("timm/")
    return built.model, (timm_weights(built.model) if from_hub else None) or name


_FROM_PYTHON = (
    "Any model can be built in Python: replora.load_adapter(model, file), then replora.export_peft(model, folder) or "
    "replora.merge_and_unload(model)."
)


def load_transformers(base: str, heads: tuple[str, ...] = (), wanted: str | None = None) -> nn.Module:
    """Load the model of a transformers folder or hub name in its own dtype.

    Args:
        base: Folder or hub name.
        heads: Modules whose weights may be missing there, because an adapter file has them.
        wanted: Name of the model class; ignored if its configuration is of another class than that of `base`.

    Raises:
        ExportError: There is none, it is corrupt or lacks weights, or this transformers has no such class.
    """
    import transformers

    failed, unknown = f"--base {base}: transformers cannot open it", "and timm has no model of that name"
    try:
        check_hub(base)
        config = transformers.AutoConfig.from_pretrained(base, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ExportError(f"{failed} ({str(error).splitlines()[0]}), {unknown}. {_FROM_PYTHON}") from error
    cls: Any = getattr(transformers, wanted or "", None)
    if getattr(cls, "config_class", None) is not type(config):
        architecture = (config.architectures or [""])[0]
        cls = getattr(transformers, architecture, None)
        if cls is None:
            known = [name for name in dir(transformers) if name.startswith(architecture[:3])]
            raise ExportError(
                f"{base} is of the class {architecture!r}, which transformers {transformers.__version__} does not "
                f"have. {nearest(architecture, known)}"
            )
    try:
        model, info = cls.from_pretrained(base, dtype="auto", output_loading_info=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ExportError(f"{failed} ({(str(error).splitlines() or [''])[0]}).") from error
    missing = sorted(name for name in info["missing_keys"] if not in_head(name, heads))
    if missing:
        raise ExportError(
            f"--base {base} lacks {len(missing)} of the weights of {cls.__name__}, such as {missing[0]}. Get the "
            "complete model; random values would be merged."
        )
    return cast(nn.Module, model)


def export(trained: Trained, out: Path, form: Format, license: str = "unknown", overwrite: bool = False) -> None:
    """Write the adapter for PEFT, or as a file of this package without the weights that only training needs.

    Raises:
        RepLoRAError: PEFT cannot express the adapter, or `out` exists.
        OSError: It cannot be written.
    """
    if form == "adapter":
        check_output(out, overwrite)
        metadata = {key: value for key, value in trained.metadata.items() if key not in HEADER}
        if trained.trained_on:
            metadata["trained_on"] = trained.trained_on
        if trained.metrics:
            metadata["metrics"] = json.dumps(trained.metrics)
        save_adapter(trained.model, out, metadata, deploy=True, force=trained.force)
        return
    export_peft(
        trained.model,
        out,
        base_model=trained.base,
        license=license,
        data=trained.trained_on,
        images=describe_images(trained.data),
        metrics=trained.metrics,
        force=trained.force,
        overwrite=overwrite,
    )


def merge(trained: Trained, out: Path, license: str = "unknown", overwrite: bool = False) -> float:
    """Merge the update into the backbone, verify it on an input, and write the model for stock tools.

    A timm model becomes a folder that `timm.create_model("local-dir:OUT", pretrained=True)` opens, a transformers model
    one for `from_pretrained`, any other a folder with `model.safetensors`. Each has a model card.

    Returns:
        The largest difference between merged and unmerged outputs, as a fraction of the largest output.

    Raises:
        RepLoRAError: A weight is quantized, the outputs differ, or `out` exists and `overwrite` is off.
        OSError: It cannot be written; then nothing is left behind.
    """
    model, description = trained.model, replora.describe(trained.model)
    difference = _difference(model, trained.force)
    merge_and_unload(model, force=trained.force)
    with new_folder(out, overwrite) as folder:
        library, usage = _save(model, trained, folder)
        about = (trained.base, license, trained.trained_on, describe_images(trained.data), trained.metrics)
        card = model_card(description, *about, base_class=type(model).__name__, library=library, usage=usage)
        (folder / "README.md").write_text(card, encoding="utf-8")
    return difference


def _difference(model: nn.Module, force: bool) -> float:
    """Verify merging; return the largest difference between merged and unmerged outputs, relative to the largest.

    In 16 bits the outputs alone tell little, so each merged weight is also compared with W0 + scale * B A. The methods
    of peft keep no W0: there the merged model must be closer to the unmerged one than the frozen model is. Values that
    are not finite are not compared with `force`.

    Raises:
        ExportError: Outputs or weights differ by more than rounding, or no example input is known.
    """
    unmerged = outputs_on_example(model)
    if unmerged is None:
        raise ExportError(f"No input is known for {type(model).__name__}, so merging could not be checked.")
    with merged(model, force=force):
        found = outputs_on_example(model) or []
        wrong = [name for update in adapters_of(model).updates if not _is_sum(update) for name in update.names]
    difference = _relative_difference(found, unmerged)
    if force and not math.isfinite(difference):
        return difference
    dtypes = {p.dtype for p in model.parameters()} & TOLERANCES.keys()
    dtype = max(dtypes, key=TOLERANCES.__getitem__)
    allowed = TOLERANCES[dtype]
    if isinstance(adapters_of(model).config, PeftMethodConfig):
        with disabled(model):
            effect = _relative_difference(outputs_on_example(model) or [], unmerged)
        allowed = min(allowed, max(0.9 * effect, allowed / 10))
    if not difference <= allowed:
        raise ExportError(
            f"The merged model's outputs differ from the unmerged one's by {difference:.2g} of their size, more than "
            f"{allowed:.2g} allowed in {dtype}. Load the base in float32, or keep the adapter apart (export)."
        )
    if wrong:
        raise ExportError(
            f"The merged weight of {wrong[0]}{f' and {len(wrong) - 1} more' if wrong[1:] else ''} is not the sum of "
            "the frozen one and its update. Keep the adapter apart (export)."
        )
    return difference


def _relative_difference(outputs: list[Tensor], reference: list[Tensor]) -> float:
    """The largest difference, as a fraction of the largest output."""
    largest = max(float(output.abs().max()) for output in reference)
    differences = [float((a - b).abs().max()) for a, b in zip(outputs, reference, strict=True)]
    return float(torch.tensor(differences, dtype=torch.float64).max()) / max(largest, 1e-30)  # NaN, if one is


@torch.no_grad()
def _is_sum(update: WeightUpdate) -> bool:
    """Whether a merged weight is W0 + scale * B A, rounded to its type."""
    assert update.base_before_merge is not None
    exact = torch.promote_types(update.base.dtype, torch.float32)
    want = add_update_to_weight(update.turned(update.base_before_merge.to(exact)), update.pieces(exact), update.scale)
    eps, largest = torch.finfo(update.base.dtype).eps, float(want.abs().max())
    return torch.allclose(update.turned(update.base.to(exact)), want, rtol=eps, atol=1e-5 * largest + 1e-7)


def _save(model: Any, trained: Trained, folder: Path) -> tuple[str, str]:
    """Write the plain model; return the library that opens it, and the code to do so."""
    if hasattr(model, "save_pretrained"):
        model.save_pretrained(folder)
        _copy_processors(trained.base, folder)
        name = type(model).__name__
        return (
            "transformers",
            f'from {library_of(model)} import {name}\n\nmodel = {name}.from_pretrained("this folder")',
        )
    if getattr(model, "pretrained_cfg", None) or _is_vit_nano(model):
        _save_timm(model, trained, folder)
        return "timm", 'import timm\n\nmodel = timm.create_model("local-dir:this folder", pretrained=True)'
    tensors: dict[str, Tensor] = {name: tensor.contiguous().clone() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    load = 'model.load_state_dict(load_file("this folder/model.safetensors"))'
    return "pytorch", f"from safetensors.torch import load_file\n\n{load}"


# What transformers opens from a folder beside the weights -> files that show whether the folder has it.
PROCESSORS = {
    "AutoTokenizer": ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt"),
    "AutoImageProcessor": ("preprocessor_config.json", "processor_config.json"),
    "GenerationConfig": ("generation_config.json",),
}


def _copy_processors(base: str | None, folder: Path) -> None:
    """Copy what serving needs beside the weights: tokenizer, image processor and generation options.

    Nothing is loaded for a base without such files, as transformers may create an empty tokenizer then.
    """
    if base is None:  # a model built in Python
        return
    import transformers
    from transformers.utils import cached_file

    for name, files in PROCESSORS.items():
        try:
            missing = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
            if any(cached_file(base, file, **missing) for file in files):
                getattr(transformers, name).from_pretrained(base, trust_remote_code=False).save_pretrained(folder)
        except (ImportError, OSError, ValueError, TypeError, KeyError) as error:
            warnings.warn(f"{name} of {base} was not copied ({error}). Copy its files by hand.", stacklevel=2)


def _is_vit_nano(model: Any) -> bool:
    """Whether the model has the class of `vit_nano` and its shapes, with any head and any size of images."""
    nano: Any = build_vit_nano()
    if type(model) is not type(nano) or getattr(model, "pretrained_cfg", None):
        return False
    nano.set_input_size(img_size=model.patch_embed.img_size)
    shapes = [{n: p.shape for n, p in m.named_parameters() if not in_head(n, ("head",))} for m in (model, nano)]
    return shapes[0] == shapes[1]


def _save_timm(model: Any, trained: Trained, folder: Path) -> None:
    import timm

    config: dict[str, Any] = {}
    size = image_size_of(model)
    if not getattr(model, "pretrained_cfg", None):  # vit_nano, which timm does not know by name
        model.pretrained_cfg = {
            "architecture": "vit_tiny_patch16_224",
            "input_size": (3, size, size),
            "fixed_input_size": True,
            "mean": VIT_NANO_MEAN,
            "std": VIT_NANO_STD,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        }
        config["model_args"] = {**VIT_NANO_ARCHITECTURE, "img_size": size}
    if size not in (None, model.pretrained_cfg["input_size"][-1]):  # resampled for other images
        config.setdefault("model_args", {})["img_size"] = size
    if trained.data:
        size = trained.data["image_size"]
        framing = trained.data["framing"]
        config["label_names"] = trained.data["class_names"]
        config["pretrained_cfg"] = {
            "input_size": (3, size, size),
            "interpolation": trained.data["interpolation"].removeprefix("tf1_"),  # the nearest that timm has
            "crop_mode": {"crop": "center", "pad": "border", "squash": "squash"}[framing],
            # timm rounds size / crop_pct down.
            "crop_pct": math.nextafter(size / short_side(size), 0) if framing == "crop" else 1.0,
            "mean": tuple(trained.data["normalization"]["mean"]),
            "std": tuple(trained.data["normalization"]["std"]),
        }
    timm.models.save_for_hf(model, str(folder), model_config=config, safe_serialization=True)
