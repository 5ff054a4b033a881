"""`save_pretrained` of an adapted model, and the checkpoints that transformers' Trainer makes by it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import replora
from tests.adapters.test_contract import METHODS, adapted, build, disturb
from tests.adapters.tiny_models import call

PAIRS = [
    (model_name, method)
    for model_name in ("hf_vit", "hf_videomae", "hf_llama", "hf_bart")
    for method in ("replora", "lora", "dora", "linear_probe", "bitfit", "full")
    if (model_name, method) not in (("hf_videomae", "dora"), ("hf_llama", "bitfit"))
]


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize(("model_name", "method"), PAIRS)
def test_what_is_written_is_the_backbone_and_beside_it_the_adapter(
    model_name: str, method: str, merged: bool, tmp_path: Path
) -> None:
    model, tiny = build(model_name)
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    replora.inject(model, METHODS[method], also_train=[tiny.head], example=tiny.inputs())
    disturb(model)
    want = call(model, tiny.inputs()).detach()
    if merged:
        replora.merge(model)
    model.save_pretrained(tmp_path)
    fresh, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    if method not in ("bitfit", "full"):
        assert all(torch.equal(tensor, base[name]) for name, tensor in fresh.state_dict().items())
        replora.load_adapter(fresh, tmp_path / "adapter.safetensors")
    torch.testing.assert_close(call(fresh.eval(), tiny.inputs()), want, rtol=1e-4, atol=1e-5)
    replora.remove(replora.unmerge(model))
    assert "save_pretrained" not in vars(model)


@pytest.mark.parametrize("method", ["replora", "dora"])
@pytest.mark.parametrize("model_name", ["hf_vit", "hf_llama"])
def test_weights_of_the_plain_model_load_into_the_adapted_one(model_name: str, method: str) -> None:
    model, tiny = adapted(model_name, method, seed=3)
    disturb(model)
    state = replora.adapter_state(model)
    plain, _ = build(model_name)
    found = model.load_state_dict(plain.state_dict(), strict=False)
    assert not found.unexpected_keys
    assert set(found.missing_keys) <= set(state)
    other, _ = build(model_name)
    replora.inject(other, METHODS[method], also_train=[tiny.head])
    head = {n: t for n, t in replora.adapter_state(other).items() if n.startswith(tiny.head)}
    replora.load_adapter_state(other, state | head)
    torch.testing.assert_close(call(model, tiny.inputs()), call(other, tiny.inputs()))


# transformers knows the parameters of ViT by older names as well.
@pytest.mark.parametrize("model_name", ["hf_llama", "hf_vit"])
@pytest.mark.parametrize("method", ["replora", "dora"])
def test_a_trainer_goes_on_from_its_checkpoint_and_loads_the_best(model_name: str, method: str, tmp_path: Path) -> None:
    from transformers import Trainer, TrainingArguments

    class Items(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 8

        def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
            if model_name == "hf_vit":
                pixels = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(i))
                return {"pixel_values": pixels, "labels": torch.tensor(i % 2)}
            ids = torch.arange(2, 8) + i
            return {"input_ids": ids, "labels": ids}

    def trainer(model, **options) -> Trainer:
        arguments = TrainingArguments(
            str(tmp_path / "run"),
            per_device_train_batch_size=2,
            learning_rate=1e-2,
            save_strategy="steps",
            save_steps=2,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            **options,
        )
        return Trainer(model, arguments, train_dataset=Items(), eval_dataset=Items())

    ends = []
    for resume in (None, str(tmp_path / "run" / "checkpoint-2")):
        model, tiny = adapted(model_name, method)
        trainer(model, max_steps=4).train(resume_from_checkpoint=resume)
        ends.append({name: tensor.clone() for name, tensor in replora.adapter_state(model).items()})
    assert all(torch.equal(tensor, ends[1][name]) for name, tensor in ends[0].items())
    fresh, _ = build(model_name)
    replora.load_adapter(fresh, tmp_path / "run" / "checkpoint-4" / "adapter.safetensors")
    torch.testing.assert_close(call(fresh, tiny.inputs()), call(model.eval(), tiny.inputs()))

    model, _ = adapted(model_name, method)
    best = trainer(model, max_steps=4, eval_strategy="steps", eval_steps=2, load_best_model_at_end=True)
    best.train()
    there, _ = build(model_name)
    replora.load_adapter(there, Path(best.state.best_model_checkpoint) / "adapter.safetensors")
    torch.testing.assert_close(call(there, tiny.inputs()), call(model.eval(), tiny.inputs()))
