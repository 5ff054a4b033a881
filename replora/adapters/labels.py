"""How many classes a model says it has, after its head was replaced by one of another number."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

_HEADS = ("classifier", "score", "classification_head")  # of a transformers model for classification


def match_classes(model: nn.Module, heads: Iterable[str]) -> None:
    """Let `config.num_labels` (with `id2label`) or timm's `num_classes` say what the modules `heads` give.

    What the model writes when it is saved could not be opened otherwise.
    """
    counts = [count for head in heads if (count := _classes(model, head)) is not None]
    if not counts:
        return
    own: Any = model
    if class_count(model) != counts[-1]:
        if hasattr(getattr(own, "config", None), "num_labels"):
            own.config.num_labels = counts[-1]  # and fresh id2label and label2id
            if hasattr(own, "num_labels"):
                own.num_labels = counts[-1]
        else:
            own.num_classes = counts[-1]


def class_count(model: nn.Module) -> int | None:
    """The number of classes that a transformers model for classification or a timm model says it has."""
    if _is_classifier(model):
        return int(model.config.num_labels)  # type: ignore[union-attr, arg-type]
    return getattr(model, "num_classes", None)


def _is_classifier(model: nn.Module) -> bool:
    return "Classification" in type(model).__name__ and hasattr(getattr(model, "config", None), "num_labels")


def _classes(model: nn.Module, head: str) -> int | None:
    """Outputs of the module `head`, if it is the last of a classifier."""
    linear = [module for module in model.get_submodule(head).modules() if isinstance(module, nn.Linear)]
    if not linear:
        return None
    if _is_classifier(model):
        last = head.partition(".")[0] in _HEADS and linear[-1] in _last_layers(model)
    else:
        own: Any = getattr(model, "get_classifier", lambda: ())()
        found = own if isinstance(own, tuple | list) else (own,)
        last = hasattr(model, "num_classes") and linear[-1] in found
    return linear[-1].out_features if last else None


def _last_layers(model: nn.Module) -> list[nn.Linear]:
    """The last linear layer of each head."""
    found = []
    for name in _HEADS:
        linear = [m for m in getattr(model, name, nn.Identity()).modules() if isinstance(m, nn.Linear)]
        found += linear[-1:]
    return found
