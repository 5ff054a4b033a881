"""Whether what computes A and B still stands where it was put: other code may replace LoRA layers, or remove them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from torch import nn

from replora.errors import RepLoRAError, listed


class Place(NamedTuple):
    """An entry of a dict, such as the children of a module, and what belongs there."""

    holder: dict[str, Any]
    key: str
    held: Any

    @property
    def is_kept(self) -> bool:
        """Whether it still holds that, or FSDP or another wrapper around it."""
        present = self.holder.get(self.key)
        if present is self.held:
            return True
        return isinstance(present, nn.Module) and any(inside is self.held for inside in present.modules())


class LayerPlaces(NamedTuple):
    """Where one layer stands in its model, and its matrices in it."""

    name: str
    places: tuple[Place, Place, Place]

    @property
    def is_removed(self) -> bool:
        """Whether the model is without this layer, or the layer without the adapter."""
        layer, *matrices = self.places
        return not layer.is_kept or any(place.key not in place.holder for place in matrices)


def all_removed(layers: Iterable[LayerPlaces]) -> bool:
    """Whether the adapter is gone, in whatever way."""
    return all(layer.is_removed for layer in layers)


def check_kept(adapter: str, layers: Sequence[LayerPlaces]) -> None:
    """Refuse to run a model in which other code gave a layer new matrices, which the generators know nothing of.

    Raises:
        RepLoRAError: There is such a layer.
    """
    if all(holder.get(key) is held for layer in layers for holder, key, held in layer.places):
        return  # fast, as this runs in each pass
    replaced = [
        layer.name for layer in layers if not layer.is_removed and not all(place.is_kept for place in layer.places)
    ]
    if replaced:
        raise RepLoRAError(
            f"The matrices A and B of adapter {adapter!r} were replaced in {listed(replaced)} after "
            "replora.reparameterize, so the generators no longer reach them. Call replora.materialize(model, "
            f"{adapter!r}) and then replora.reparameterize(model, {adapter!r}) again."
        )
