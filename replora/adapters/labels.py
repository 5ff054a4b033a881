"""How many classes a model says it has, after its head was replaced by one of another number."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from replora.adapters.wrappers import plain_name

_TASKS = ("Classification", "Segmentation", "Detection")  # of transformers' classes whose outputs are labels
LAST_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)  # of a head; their weight is (outputs, ...)


def match_classes(model: nn.Module, heads: Iterable[str]) -> None:
    """Let `config.num_labels` (with `id2label`) or timm's `num_classes` say what the modules `heads` give.

    What the model writes when it is saved could not be opened otherwise.
    """
    own: Any = model
    if hasattr(getattr(own, "config", None), "num_labels"):
        if (count := _labels_of(own, own.config.num_labels, tuple(heads))) is not None:
            own.config.num_labels = count  # and fresh id2label and label2id
            if hasattr(own, "num_labels"):
                own.num_labels = count
    elif isinstance(getattr(own, "num_classes", None), int) and (count := _classes_of(own, heads)) is not None:
        own.num_classes = count


def class_count(model: nn.Module) -> int | None:
    """The number of classes that a transformers model for classification or a timm model says it has."""
    if is_of_labels(model) and hasattr(getattr(model, "config", None), "num_labels"):
        return int(model.config.num_labels)  # type: ignore[union-attr, arg-type]
    return getattr(model, "num_classes", None)


def is_of_labels(model: nn.Module) -> bool:
    """Whether a model of transformers is for a task with labels."""
    return any(task in type(model).__name__ for task in _TASKS)


def _labels_of(model: Any, said: int, heads: tuple[str, ...]) -> int | None:
    """The number of labels with which the class of a transformers model would build the modules `heads` as they are.

    None if that is the number it has, or if there is none.
    """
    layers = {name: layer for head in heads for name, layer in _layers(model, head).items()}
    last = [list(found.values())[-1] for head in heads if (found := _layers(model, head))]
    if not is_of_labels(model) or all(len(layer.weight) == said for layer in last):
        return None
    try:
        with torch.device("meta"):
            plain = type(model)(model.config)
    except Exception:  # built by another call
        return None
    expected = {name: layer.weight.shape for head in heads for name, layer in _layers(plain, head).items()}
    own = {name: layer.weight.shape for name, layer in layers.items()}
    counts = [own[n][0] for n, shape in expected.items() if n in own and (said, *own[n][1:]) == shape != own[n]]
    return counts[0] if counts else None


def _classes_of(model: Any, heads: Iterable[str]) -> int | None:
    """Outputs of the classifier of a timm model, if it is in one of the modules `heads`."""
    inside = [layer for head in heads for layer in _layers(model, head).values()]
    try:
        found = model.get_classifier()
    except (AttributeError, TypeError):  # none, or the head is another module than timm's
        return None
    heads_of_timm = found if isinstance(found, tuple | list) else [found]
    last = [layer for part in heads_of_timm for layer in list(_layers(part, "").values())[-1:] if layer in inside]
    return len(last[-1].weight) if last else None


def _layers(model: nn.Module, head: str) -> dict[str, Any]:
    """The layers inside of a head that may be the last one, by their names in the model."""
    try:
        module = model.get_submodule(head)
    except AttributeError:
        return {}
    named = module.named_modules(prefix=head)
    return {plain_name(name): layer for name, layer in named if isinstance(layer, LAST_LAYERS)}
