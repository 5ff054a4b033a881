"""Parts of a backbone that train beside an adapter: a new embedding, all biases, all layer-norm weights.

VL-Adapter's and DoRA's recipes for VL-BART train these with their low-rank matrices. They are counted apart from the
adapter, with the head.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from torch import nn

from replora.adapters.container import adapters_of
from replora.adapters.wrappers import unwrap
from replora.errors import RepLoRAError, nearest

Part = Literal["visual_embedding", "biases", "layer_norm_weights"]
PARTS: tuple[Part, ...] = ("visual_embedding", "biases", "layer_norm_weights")
BACKBONE_PARTS = PARTS[1:]
DEFAULT_PARTS: tuple[Part, ...] = ("visual_embedding", "biases")  # as VL-Adapter trains beside LoRA


def train_parts(model: nn.Module, parts: Iterable[Part]) -> dict[str, int]:
    """Let `biases` or `layer_norm_weights` of a model that carries an adapter train and be saved with it.

    `replora.parameter_counts` then counts them in `head`. What trains already, by the method or as a head, stays there.

    Args:
        model: The model, changed in place.
        parts: Which parts; `visual_embedding` is a whole module, which `replora.inject` takes in `also_train`.

    Returns:
        Part -> how many numbers were added.

    Raises:
        RepLoRAError: A part is not known.
    """
    parts = list(parts)
    if unknown := [part for part in parts if part not in PARTS]:
        raise RepLoRAError(f"also_train: {unknown[0]!r} is not known. {nearest(unknown[0], PARTS)}")
    adapters, model = adapters_of(model), unwrap(model)
    parameters = dict(model.named_parameters())
    names = {
        "biases": [n for n, p in parameters.items() if n.rpartition(".")[2] == "bias" and p.ndim == 1],
        "layer_norm_weights": [f"{n}.weight" for n, m in model.named_modules() if isinstance(m, nn.LayerNorm)],
    }
    counts: dict[str, int] = {}
    for part in parts:
        if part not in names:
            continue
        trained = set(adapters.trained)
        added = [name for name in names[part] if name not in trained and _of_the_backbone(name)]
        for name in added:
            parameters[name].requires_grad = True
        adapters.trained += added
        adapters.head += added
        counts[part] = sum(parameters[name].numel() for name in added)
        adapters.backbone_count -= counts[part]
    return counts


def _of_the_backbone(name: str) -> bool:
    """Whether a parameter is neither the adapter's nor the visual embedding's, which is a part of its own."""
    return not name.startswith("replora.") and ".visual_embedding." not in name
