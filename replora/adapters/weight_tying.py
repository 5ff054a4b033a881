"""Weights that several modules share, as the output layer of a language model shares the table of its embedding.

A change through one of the modules reaches the others, so what may train, merge and be exported depends on it.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from replora.errors import RepLoRAError

UNTIE = (
    "untie it first: module.weight = torch.nn.Parameter(module.weight.detach().clone()) and, in transformers, "
    "model.config.tie_word_embeddings = False"
)


def shared_with(model: nn.Module, weights: Iterable[nn.Parameter], inside: Iterable[nn.Module]) -> list[str]:
    """Names of those parameters outside of the modules `inside` that are one of `weights`."""
    wanted = {id(weight) for weight in weights}
    own = {id(module) for root in inside for module in root.modules()}
    return [
        f"{name}.{attribute}"
        for name, module in model.named_modules()
        if id(module) not in own
        for attribute, parameter in module._parameters.items()
        if id(parameter) in wanted
    ]


def check_not_tied(model: nn.Module, heads: Iterable[str]) -> None:
    """Refuse modules that train as a whole but share a weight with one that does not.

    A file of the adapter would hold the weight under one of its names, and nothing could tell whether the other
    module is to have it too.

    Raises:
        RepLoRAError: There is such a module.
    """
    heads = tuple(heads)
    modules = [model.get_submodule(head) for head in heads]
    for head, module in zip(heads, modules, strict=True):
        if elsewhere := shared_with(model, module.parameters(), modules):
            raise RepLoRAError(
                f"also_train: {head!r} shares its weight with {elsewhere[0]}, which would change with it but is not "
                f"saved with the adapter. Train without {head!r}, or {UNTIE}."
            )


def declare_untied(model: nn.Module) -> None:
    """A transformers model ties its weights again when it is loaded, unless its configuration says otherwise."""
    if hasattr(getattr(model, "config", None), "tie_word_embeddings"):
        model.config.tie_word_embeddings = False  # type: ignore[union-attr]
