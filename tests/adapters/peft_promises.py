"""What PEFT's own tests demand of every method on every model, put as promises of this package.

Each function is one promise; its docstring is the promise's row in docs/peft_contract.md.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

import replora
from tests.adapters.peft_zoo import METHODS, OURS, REFUSED, ZOO, Zoo
from tests.adapters.test_contract import disturb
from tests.adapters.tiny_models import call


class Case(NamedTuple):
    """One model of the zoo with one method."""

    model: str
    method: str
    folder: Path = Path()

    @property
    def zoo(self) -> Zoo:
        return (ZOO | REFUSED)[self.model]

    @property
    def ours(self) -> bool:
        return self.method in OURS

    @property
    def config(self) -> replora.AdapterConfig:
        return METHODS[self.method](self.zoo)

    def plain(self) -> nn.Module:
        torch.manual_seed(0)
        return self.zoo.build().eval()

    def adapted(self, example: bool = True) -> nn.Module:
        """With the adapter as it is at first."""
        torch.manual_seed(1)
        given = self.zoo.inputs() if example else None
        return replora.inject(self.plain(), self.config, also_train=self.zoo.also_train, example=given)

    def trained(self, seed: int = 0) -> nn.Module:
        """With an adapter and a head that change the outputs."""
        model = self.adapted()
        disturb(model)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    scale = 0.1 if name in model.replora.head else 0.03 * (seed + 1)
                    parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
        return model

    def out(self, model: nn.Module) -> Tensor:
        with torch.no_grad():
            return call(model, self.zoo.inputs())

    def loss(self, model: nn.Module) -> Tensor:
        return call(model, self.zoo.inputs()).float().square().mean()


def close(got: Tensor, want: Tensor, tolerance: float = 2e-5) -> None:
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


def differs(got: Tensor, want: Tensor) -> bool:
    return not torch.allclose(got, want, rtol=1e-4, atol=1e-4)


def starts_as_the_backbone(case: Case) -> None:
    """A new adapter changes no output; every output is finite."""
    model = case.adapted()
    close(case.out(model), case.out(case.plain()))
    assert case.out(model).isfinite().all()


def trains_nothing_else(case: Case) -> None:
    """Adapter and head get gradients and move; nothing else does."""
    model = case.adapted().train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(replora.parameter_groups(model), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        case.loss(model).backward()
        optimizer.step()
    wanted = {name for name in model.replora.trained if name in before}
    assert {name for name, p in model.named_parameters() if p.requires_grad} == wanted
    assert {name for name, p in model.named_parameters() if p.grad is not None} == wanted
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == wanted


def trains_the_layers_asked_for(case: Case) -> None:
    """`targets` and `blocks` choose the layers, by the end of a name, by a pattern or by a role."""
    model = case.adapted()
    found = {target.module for target in replora.find_targets(case.plain(), case.zoo.targets, case.zoo.blocks)}
    assert {name.partition("[")[0] for name in replora.describe(model)["targets"]} == found
    changed = {
        name for name, module in case.plain().named_modules() if type(module) is not type(model.get_submodule(name))
    }
    assert changed >= found
    plain = case.plain()
    aliases = {id(plain.get_submodule(name)) for name in found}
    assert {id(plain.get_submodule(name)) for name in changed} == aliases


def keeps_the_layers_attributes(case: Case) -> None:
    """A wrapped layer still has its sizes, its weight and its bias."""
    model, plain = case.adapted(), case.plain()
    for name in {target.module for target in replora.find_targets(plain, case.zoo.targets, case.zoo.blocks)}:
        layer, frozen = model.get_submodule(name), plain.get_submodule(name)
        for attribute in {"in_features", "out_features"} & set(vars(frozen)):
            assert getattr(layer, attribute) == getattr(frozen, attribute)
        if isinstance(frozen, nn.Linear):
            assert layer.weight.shape == frozen.weight.shape
            assert (layer.bias is None) == (frozen.bias is None)
        assert repr(layer)


def saves_and_loads(case: Case) -> None:
    """A saved adapter gives equal outputs in a plain model and in a prepared one, and trains on from there."""
    model = case.trained()
    file = replora.save_adapter(model, case.folder / "a.safetensors")
    assert [path.name for path in case.folder.iterdir()] == ["a.safetensors"]
    assert set(load_file(file)) == set(replora.adapter_state(model))
    fresh = case.plain()
    replora.load_adapter(fresh, file)
    close(case.out(fresh), case.out(model), 0)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name, p in fresh.named_parameters() if p.requires_grad} == trained
    case.loss(fresh).backward()
    prepared = case.adapted()
    replora.load_adapter(prepared, file)
    close(case.out(prepared), case.out(model), 0)


def holds_no_frozen_tensor(case: Case) -> None:
    """The file has no frozen tensor of the backbone, under any name."""
    model = case.trained()
    file = load_file(replora.save_adapter(model, case.folder / "a.safetensors"))
    heads = tuple(f"{head}." for head in case.zoo.also_train)
    frozen = [tensor for name, tensor in case.plain().state_dict().items() if not name.startswith(heads or "-")]
    large = [tensor for tensor in frozen if tensor.numel() > 1 and tensor.is_floating_point()]
    for tensor in file.values():
        assert not any(tensor.shape == other.shape and torch.equal(tensor, other) for other in large)


def keeps_the_backbones_names(case: Case) -> None:
    """The state dict of the plain model loads into the adapted one."""
    model = case.trained()
    plain = case.plain().state_dict()
    found = model.load_state_dict(plain, strict=False)
    assert not found.unexpected_keys
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    names = {name for name, tensor in model.state_dict(keep_vars=True).items() if id(tensor) in trained}
    names |= {name for name, _ in model.named_buffers(remove_duplicate=False)}
    assert set(found.missing_keys) <= names - plain.keys()


def merges(case: Case) -> None:
    """A merge changes no output, a second one nothing at all, and unmerging restores the outputs."""
    model = case.trained()
    want, base = case.out(model), case.out(case.plain())
    assert differs(want, base)
    replora.merge(model)
    once = case.out(model)
    replora.merge(model)
    close(case.out(model), once, 0)
    close(once, want, 1e-3)
    replora.unmerge(model)
    close(case.out(model), want, 0 if case.ours else 1e-5)


def merges_for_good(case: Case) -> None:
    """After `merge_and_unload` the model is a plain one, with the same outputs; it can be saved, pickled and loaded."""
    model = case.trained()
    want = case.out(model)
    plain = replora.merge_and_unload(model)
    keys = {name: type(module) for name, module in case.plain().named_modules()}
    assert {name: type(module) for name, module in plain.named_modules()} == keys
    close(case.out(plain), want, 1e-3)
    close(case.out(pickle.loads(pickle.dumps(plain))), case.out(plain), 0)
    unique = {id(tensor): name for name, tensor in plain.state_dict(keep_vars=True).items()}
    save_file({name: plain.state_dict()[name] for name in unique.values()}, case.folder / "m.safetensors")
    fresh = case.plain()
    fresh.load_state_dict(plain.state_dict())
    if not getattr(getattr(fresh, "config", None), "tie_word_embeddings", False):
        close(case.out(fresh), case.out(plain), 0)
    if isinstance(plain, PreTrainedModel):
        plain.save_pretrained(case.folder / "model")
        close(case.out(type(plain).from_pretrained(case.folder / "model").eval()), case.out(plain), 0)


def merges_in_half_precision(case: Case) -> None:
    """Merging works in bfloat16 and float16, and keeps the type."""
    for dtype in (torch.bfloat16, torch.float16):
        model = case.trained().to(dtype)
        replora.merge_and_unload(model)
        assert {p.dtype for p in model.parameters() if p.is_floating_point()} == {dtype}


def refuses_to_merge_nan(case: Case) -> None:
    """A merge that gives NaN or infinity is refused, and leaves the model as it was."""
    for value in (float("nan"), float("inf")):
        model = case.trained()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad and name not in model.replora.head:
                    parameter.fill_(value)
        frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
        for merge in (replora.merge, replora.merge_and_unload):
            with pytest.raises(replora.RepLoRAError, match=r"not finite|computes something else"):
                merge(model)
        assert all(torch.equal(p, frozen[name]) for name, p in model.named_parameters() if name in frozen)


def switches_off(case: Case) -> None:
    """`disabled` gives the backbone (with the trained head); leaving it, also by an error, restores the adapter."""
    model = case.trained()
    want = case.out(model)
    backbone = case.plain()
    for head in case.zoo.also_train:
        backbone.get_submodule(head).load_state_dict(model.get_submodule(head).state_dict())
    with replora.disabled(model):
        close(case.out(model), case.out(backbone))
        with replora.disabled(model):
            pass
        close(case.out(model), case.out(backbone))
    close(case.out(model), want, 0)
    with pytest.raises(KeyError), replora.disabled(model):
        raise KeyError
    close(case.out(model), want, 0)


def refuses_to_switch_off_a_merged_one(case: Case) -> None:
    """A merged adapter cannot be switched off, or deleted, or trained."""
    model = replora.merge(case.trained())
    with pytest.raises(replora.RepLoRAError, match="merged"), replora.disabled(model):
        pass
    with pytest.raises(replora.RepLoRAError, match="active"):
        replora.delete_adapter(model, replora.adapter_names(model)[0])
    with pytest.raises(replora.RepLoRAError, match="cannot train"):
        call(model.train(), case.zoo.inputs())


def removes(case: Case) -> None:
    """`remove` gives the backbone back, its types, names and outputs."""
    model = case.trained()
    for head in case.zoo.also_train:
        model.get_submodule(head).load_state_dict(case.plain().get_submodule(head).state_dict())
    replora.remove(model)
    close(case.out(model), case.out(case.plain()), 0)
    assert model.state_dict().keys() == case.plain().state_dict().keys()
    assert all(p.requires_grad for p in model.parameters())


def two_files(case: Case) -> tuple[list[Path], list[Tensor]]:
    files, outputs = [], []
    for seed in (0, 1):
        model = case.trained(seed)
        files.append(replora.save_adapter(model, case.folder / f"{seed}.safetensors"))
        outputs.append(case.out(model))
    assert differs(*outputs)
    return files, outputs


def carries_several(case: Case) -> None:
    """Several adapters stand side by side; one is active, whatever its name, and switching restores its outputs."""
    files, outputs = two_files(case)
    model = case.plain()
    for name, file in zip(("default", "efaul"), files, strict=True):  # one name is part of the other
        replora.load_adapter(model, file, name=name)
        assert replora.adapter_names(model)[0] == name
    for name, want in (("default", outputs[0]), ("efaul", outputs[1]), ("default", outputs[0])):
        replora.set_adapter(model, name)
        close(case.out(model), want, 0)
        state = replora.adapter_state(model)
        assert {n for n, p in model.named_parameters() if p.requires_grad} <= set(state)
    replora.save_adapter(model, case.folder / "again.safetensors")  # the active one alone
    assert load_file(case.folder / "again.safetensors").keys() == load_file(files[0]).keys()
    close(case.out(replora.merge_and_unload(model)), outputs[0], 1e-3)


def refuses_a_name_twice(case: Case) -> None:
    """A name that is taken is refused, and nothing changes."""
    files, outputs = two_files(case)
    model = case.plain()
    replora.load_adapter(model, files[0], name="one")
    with pytest.raises(replora.RepLoRAError, match="'one' on this model already"):
        replora.load_adapter(model, files[1], name="one")
    close(case.out(model), outputs[0], 0)


def deletes(case: Case) -> None:
    """An inactive adapter can be deleted; the active one and an unknown one are refused."""
    files, outputs = two_files(case)
    model = case.plain()
    for name, file in zip(("one", "two"), files, strict=True):
        replora.load_adapter(model, file, name=name)
    for name, match in (("two", "is active"), ("three", "no adapter 'three'")):
        with pytest.raises(replora.RepLoRAError, match=match):
            replora.delete_adapter(model, name)
    replora.delete_adapter(model, "one")
    assert replora.adapter_names(model) == ["two"]
    close(case.out(model), outputs[1], 0)


def may_differ_in_layers(case: Case) -> None:
    """Adapters of one model may be on different layers, with a head or without."""
    file = replora.save_adapter(case.trained(), case.folder / "a.safetensors")
    want = case.out(case.trained())
    model = case.plain()
    every = [name for name, m in model.named_modules() if isinstance(m, nn.Linear)]
    other = replora.LoRAConfig(rank=1, targets=every[:1])
    replora.inject(model, other, example=case.zoo.inputs())
    base = case.out(case.plain())
    close(case.out(model), base, 1e-6)
    replora.load_adapter(model, file, name="other")
    close(case.out(model), want, 0)
    replora.set_adapter(model, "default")
    close(case.out(model), base, 1e-6)


def copies(case: Case) -> None:
    """Copies and pickles are equal and independent."""
    model = case.trained()
    want = case.out(model)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        close(case.out(twin), want, 0)
        with torch.no_grad():
            for p in twin.parameters():
                p.zero_() if p.requires_grad else None
        close(case.out(model), want, 0)


def half(case: Case, dtype: torch.dtype, autocast: bool) -> None:
    model = case.adapted() if autocast else case.plain().to(dtype)
    if not autocast:
        inputs = case.zoo.inputs()
        inputs = inputs.to(dtype) if isinstance(inputs, Tensor) and inputs.is_floating_point() else inputs
        replora.inject(model, case.config, also_train=case.zoo.also_train, example=inputs)
    else:
        inputs = case.zoo.inputs()
    with torch.autocast("cpu", dtype, enabled=autocast):
        output = call(model, inputs)
        assert output.isfinite().all()
    output.float().square().mean().backward()
    trained = [p for name, p in model.named_parameters() if p.requires_grad and name not in model.replora.head]
    assert {p.dtype for p in trained} == {torch.float32}
    assert all(p.grad.isfinite().all() for p in trained)


def runs_in_half_precision(case: Case) -> None:
    """A bfloat16 or float16 backbone works; the adapter's parameters are in float32."""
    for dtype in (torch.bfloat16, torch.float16):
        half(case, dtype, autocast=False)


def runs_under_autocast(case: Case) -> None:
    """Autocast to bfloat16 or float16 works; the adapter's parameters are in float32."""
    for dtype in (torch.bfloat16, torch.float16):
        half(case, dtype, autocast=True)


def trains_on_frozen_inputs(case: Case) -> None:
    """`enable_input_require_grads` and gradient checkpointing of either kind give the same gradients."""
    gradients = []
    for reentrant in (None, False, True):
        model = case.trained()
        for module in model.modules():
            module.train(False)
        model.train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        model.enable_input_require_grads()
        if reentrant is not None:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        case.loss(model).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    for other in gradients[1:]:
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(other[name], gradient, rtol=1e-4, atol=1e-6)


def generates(case: Case) -> None:
    """`generate` works with keyword and positional inputs, with beams, and in half precision."""
    for dtype in (torch.float32, torch.bfloat16):
        model = case.trained().to(dtype)
        ids = case.zoo.inputs()["input_ids"]
        options = {"max_new_tokens": 3, "do_sample": False, "min_new_tokens": 3}
        want = model.generate(input_ids=ids, **options)
        assert torch.equal(model.generate(ids, **options), want)
        assert model.generate(ids, num_beams=2, **options).shape == want.shape
        with replora.merged(model):
            assert model.generate(ids, **options).shape == want.shape


def takes_embeddings(case: Case) -> None:
    """`inputs_embeds` in place of token ids gives the same outputs."""
    model = case.trained()
    ids = case.zoo.inputs()["input_ids"]
    # An encoder-decoder makes its decoder's inputs from the ids.
    more = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        want = model(input_ids=ids, **more).logits
        close(model(inputs_embeds=model.get_input_embeddings()(ids), **more).logits, want, 0)


def ties_weights_again(case: Case) -> None:
    """`tie_weights` and a resize to the present size change nothing, merged or not."""
    model = case.trained()
    want = case.out(model)
    for context in (None, replora.merge):
        if context:
            context(model)
        model.tie_weights()
        model.resize_token_embeddings(model.config.vocab_size)
        close(case.out(model), want, 1e-4)
    replora.unmerge(model)
    close(case.out(model), want, 0 if case.ours else 1e-5)
    assert model.state_dict().keys() == case.trained().state_dict().keys()


def writes_a_model(case: Case) -> None:
    """`save_pretrained` writes the backbone under its own names, and the adapter beside it."""
    model = case.trained()
    model.save_pretrained(case.folder)
    fresh = type(model).from_pretrained(case.folder).eval()
    replora.load_adapter(fresh, case.folder / "adapter.safetensors")
    close(case.out(fresh), case.out(model), 1e-6)


def exports(case: Case) -> None:
    """The exported folder has a model card, and gives the same outputs in PEFT itself."""
    model = case.trained()
    want = case.out(model)
    folder = replora.export_peft(model, case.folder / "peft", example=case.zoo.inputs())
    assert {path.name for path in folder.iterdir()} == {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    opened = PeftModel.from_pretrained(case.plain(), folder).eval()
    with torch.no_grad():
        close(call(opened, case.zoo.inputs()), want)
    close(case.out(opened.merge_and_unload(safe_merge=True)), want, 1e-3)


def imports(case: Case) -> None:
    """A folder that PEFT wrote gives the same outputs here."""
    exported = replora.export_peft(case.trained(), case.folder / "peft", example=case.zoo.inputs())
    opened = PeftModel.from_pretrained(case.plain(), exported).eval()
    opened.save_pretrained(case.folder / "again")
    model = case.plain()
    replora.import_peft(model, case.folder / "again")
    close(case.out(model), case.out(case.trained()))


PROMISES: dict[str, Callable[[Case], None]] = {
    promise.__name__: promise
    for promise in (
        starts_as_the_backbone,
        trains_nothing_else,
        trains_the_layers_asked_for,
        keeps_the_layers_attributes,
        trains_on_frozen_inputs,
        runs_in_half_precision,
        runs_under_autocast,
        saves_and_loads,
        holds_no_frozen_tensor,
        keeps_the_backbones_names,
        writes_a_model,
        merges,
        merges_for_good,
        merges_in_half_precision,
        refuses_to_merge_nan,
        switches_off,
        refuses_to_switch_off_a_merged_one,
        removes,
        carries_several,
        may_differ_in_layers,
        refuses_a_name_twice,
        deletes,
        copies,
        generates,
        takes_embeddings,
        ties_weights_again,
        exports,
        imports,
    )
}
