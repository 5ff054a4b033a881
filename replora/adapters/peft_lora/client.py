"""Methods of a model of `peft`, transformers or diffusers that need to know of its generators."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch import nn

from replora.adapters.model_methods import Generate, Method, replace_methods, restore_methods
from replora.adapters.peft_lora.file import find_file, take_up, write
from replora.adapters.peft_lora.generators import Reparameterized, generators_of
from replora.adapters.peft_lora.layers import lora_pairs


class SavePretrained(Method):
    """`save_pretrained`: the plain LoRA adapter, and its generators beside it."""

    name = "save_pretrained"

    def __call__(self, save_directory: str | os.PathLike[str], *args: Any, **options: Any) -> Any:
        result = self.own(save_directory, *args, **options)
        given = self.arguments(save_directory, *args, **options)
        if not given.get("is_main_process", True):
            return result
        state = given.get("state_dict")
        selected = given.get("selected_adapters")
        for name, generators in self.adapters.generators().items():
            if is_peft_model(self.model):
                folder = Path(save_directory) if name == "default" else Path(save_directory) / name
                written = selected is None or name in selected
            else:
                folder = Path(save_directory)
                written = name in next(generators.pairs()).layer.active_adapters
            if written:
                prefix = f"replora.{name}."
                own = {k.partition(prefix)[2]: t for k, t in (state or {}).items() if prefix in k}
                write(generators, folder, own or None)
        return result


class SaveLoraAdapter(Method):
    """The same of one adapter in diffusers."""

    name = "save_lora_adapter"

    def __call__(self, save_directory: str | os.PathLike[str], *args: Any, **options: Any) -> Any:
        result = self.own(save_directory, *args, **options)
        given = self.arguments(save_directory, *args, **options)
        if generators := self.adapters.generators().get(given.get("adapter_name") or "default"):
            write(generators, save_directory)
        return result


class LoadAdapter(Method):
    """`load_adapter`: A and B of a folder, and the generators beside them."""

    name = "load_adapter"

    def __call__(self, *args: Any, **options: Any) -> Any:
        given = self.arguments(*args, **options)
        generators = self.adapters.generators().get(given.get("adapter_name") or "default")
        if generators is None:
            return self.own(*args, **options)
        generators.awaits_file = True
        try:
            result = self.own(*args, **options)
            folder = given.get("model_id") or given.get("peft_model_id")
            folder = Path(folder or "", given.get("subfolder") or "") if folder else None
            if folder is not None and folder.is_dir() and (file := find_file(folder)):
                take_up(generators, file)
        finally:
            generators.awaits_file = False
        generators.settle()
        return result


class AddAdapter(Method):
    """`add_adapter`, as which trainers of TRL make their reference: `ref`, like the adapter that trains.

    They copy that adapter's parameters into it, by the names that these have in the model.
    """

    name = "add_adapter"

    def __call__(self, *args: Any, **options: Any) -> Any:
        result = self.own(*args, **options)
        if self.arguments(*args, **options).get("adapter_name") == "ref":
            configs: Any = self.model.peft_config
            like = [one for name, one in self.adapters.generators().items() if configs.get(name) is configs["ref"]]
            if like:
                made = generators_of(lora_pairs(self.model, "ref"), like[0].options)
                made.install()
                self.adapters["ref"] = made
        return result


class DeleteAdapter(Method):
    """`delete_adapter`: its generators go with it."""

    name = "delete_adapter"

    def __call__(self, *args: Any, **options: Any) -> Any:
        result = self.own(*args, **options)
        given = self.arguments(*args, **options)
        names = given.get("adapter_names") or given["adapter_name"]
        for name in [names] if isinstance(names, str) else names:
            if name in self.adapters:
                del self.adapters[name]
        return result


class DeleteAdapters(DeleteAdapter):
    """The same in diffusers."""

    name = "delete_adapters"


class Unload(Method):
    """`unload`: the plain model keeps nothing of the generators."""

    name = "unload"

    def __call__(self, *args: Any, **options: Any) -> Any:
        result = self.own(*args, **options)
        detach(self.adapters.host[0])
        return result


class MergeAndUnload(Unload):
    """`merge_and_unload`: the same."""

    name = "merge_and_unload"


class UnloadLora(Unload):
    """The same in diffusers."""

    name = "unload_lora"


_OF_HOST = (SavePretrained, SaveLoraAdapter, LoadAdapter, AddAdapter, DeleteAdapter, DeleteAdapters, UnloadLora)


def attach(host: nn.Module, present: Reparameterized) -> None:
    """Let the model produce the factors once for each of its forward passes, and its methods know of them."""
    inner = inner_model(host)
    present.host = [host]
    present.hooks = [
        inner.register_forward_pre_hook(present.before_forward),
        inner.register_forward_hook(present.after_forward, always_call=True),
    ]
    replace_methods(inner, present, [Generate])
    replace_methods(host, present, _OF_HOST)
    if is_peft_model(host):
        replace_methods(host.get_submodule("base_model"), present, [Unload, MergeAndUnload])


def detach(host: nn.Module) -> None:
    """Undo `attach`."""
    present: Any = host.replora
    for hook in present.hooks:
        hook.remove()
    for model in {host, inner_model(host), host._modules.get("base_model") or host}:
        restore_methods(model)
    del host.replora


def is_peft_model(model: nn.Module) -> bool:
    """Whether a model is the `PeftModel` around another one."""
    return hasattr(model, "get_base_model") and hasattr(model, "peft_config")


def inner_model(host: nn.Module) -> nn.Module:
    """The model that runs in each pass; that of `PeftModel` around it runs in some only, not in those of `generate`."""
    return host.get_submodule("base_model.model") if is_peft_model(host) else host
