"""Load a trained adapter and its base, with what a model card says of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError
from torch import Tensor, nn

import replora
from replora.adapters.container import Description
from replora.adapters.fingerprint import base_name, check_base_weights, in_head, timm_weights
from replora.adapters.peft_format.export import CONFIG_FILE
from replora.adapters.peft_format.model_card import model_card
from replora.adapters.state import read_adapter, read_metadata
from replora.backbones.backbone import Backbone
from replora.backbones.vision import OFFLINE, VisionBackbone, build_vision_backbone
from replora.datasets.common.hub import check_hub
from replora.datasets.image.read import describe_images
from replora.errors import RepLoRAError, nearest
from replora.results import describe_training_data, read_results
from replora.runs import check_usable, open_run, read_entry


class ExportError(RepLoRAError):
    """The adapter's base is not given or not known, or merged and unmerged outputs differ."""


@dataclass(frozen=True)
class Trained:
    """A model with a trained adapter, and the content of its model card.

    Attributes:
        model: Model in evaluation mode, its adapter not merged.
        base: Name of the frozen model: a path or hub name for transformers, a model name for timm.
        data: Class names and preprocessing, if there are any.
        backbone: Where the frozen model is from, if this package built it.
        trained_on: Description of the training data.
        metrics: Name of a metric -> value.
        metadata: Header of the adapter file.
        force: Whether values that are not finite are written all the same.
    """

    model: nn.Module
    base: str | None
    data: dict[str, Any] = field(default_factory=dict)
    backbone: Backbone | None = None
    trained_on: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    force: bool = False

    def card(self, description: Description, license: str, library: str, usage: str) -> str:
        """The model card, as Markdown.

        Args:
            description: What `replora.describe` said of the model before it was merged.
            license: An identifier of the Hugging Face hub.
            library: Which opens what is written: `replora`, `timm`, `onnx` ...
            usage: Code that opens it.
        """
        return model_card(
            description,
            self.base,
            license,
            self.trained_on,
            describe_images(self.data),
            self.metrics,
            classes=self.data.get("class_names", ()),
            base_class=type(self.model).__name__,
            library=library,
            usage=usage,
        )


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
    return Trained(
        run.model,
        base_name(run.model) or _timm_name(run.backbone),
        run.data,
        run.backbone,
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
        built = _load_timm(base.removeprefix("timm/"), state, checkpoint, size)
        model, base = built.model, _timm_name(built)
    else:
        built, model = None, load_transformers(base, heads, recorded.get("class"))
    check_base_weights(model, recorded, heads, str(source))
    replora.load_adapter(model, source, force=force)
    data, metrics = (read_entry(metadata, name, source) for name in ("data", "metrics"))
    trained_on = _partial(metadata.get("trained_on"), metadata)
    return Trained(model.eval(), base, data, built, trained_on, metrics, metadata, force)


def _partial(trained_on: str | None, metadata: dict[str, str]) -> str | None:
    """What a model card says of the training data: also whether the training was a partial one."""
    if "partial" not in metadata:
        return trained_on
    return f"{trained_on or 'unknown data'} (a partial run: {metadata['partial']})"


def _is_timm(base: str) -> bool:
    import timm

    name = base.removeprefix("timm/")
    return not Path(base).is_dir() and (name in OFFLINE or ("/" not in name and timm.is_model(name)))


def _timm_name(backbone: Backbone) -> str:
    """What to call a backbone: where timm has its weights, if they are from there, else by its own name."""
    from_hub = backbone.weights.startswith("timm/")
    return (timm_weights(backbone.model) if from_hub else None) or backbone.name


def _load_timm(name: str, state: dict[str, Tensor], checkpoint: Path | None, image_size: int | None) -> VisionBackbone:
    """A timm model with as many classes as the head in an adapter's `state`."""
    import timm

    classifier = "head" if name in OFFLINE else timm.models.get_pretrained_cfg_value(name, "classifier")
    layer = classifier[0] if isinstance(classifier, tuple | list) else classifier
    weight = state.get(f"{layer}.weight")
    if weight is None:
        raise ExportError(
            f"--base {name}: the adapter file has no head ({layer!r}) for this timm model. {_FROM_PYTHON}"
        )
    return build_vision_backbone(name, num_classes=len(weight), checkpoint=checkpoint, image_size=image_size)


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
