"""`save_pretrained` of an adapted model, and the checkpoints that transformers' Trainer makes by it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import replora
from tests.adapters.test_class_counts import BART, TEXT
from tests.adapters.test_contract import METHODS, adapted, build, disturb
from tests.adapters.test_experts import model_of
from tests.adapters.test_fused_layouts import CASES
from tests.adapters.test_multimodal import IMAGE, WITH_IMAGE, llava
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


def of_library(name: str, options: dict[str, Any]) -> Callable[[], torch.nn.Module]:
    cls = getattr(transformers, name)
    return lambda: cls(cls.config_class(**options))


T5 = {"d_model": 24, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 2, "d_kv": 12, "d_ff": 32, "vocab_size": 50}
WHISPER = BART | {"num_mel_bins": 8, "max_source_positions": 8}
WHISPER |= dict.fromkeys(["pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"], 1)
TOKENS = {"input_ids": torch.tensor([[5, 7, 9, 4]])}
TEXT_TO_TEXT = TOKENS | {"decoder_input_ids": torch.tensor([[1, 7]])}
SPEECH = {"input_features": torch.linspace(-1, 1, 8 * 16).view(1, 8, 16), "decoder_input_ids": torch.tensor([[1, 2]])}
# Family -> (builder, input, targets)
FAMILIES: dict[str, tuple[Callable[[], torch.nn.Module], dict[str, torch.Tensor], list[str]]] = {
    **{
        name: (case[0], TOKENS, sorted(case[1]))
        for name, case in CASES.items()
        if case[0].__qualname__.startswith("text")
    },
    **{
        kind: (partial(model_of, kind), TOKENS, ["q", "v"])
        for kind in ("qwen2_moe", "qwen3_moe", "mixtral", "olmoe", "gemma2", "phi")
    },
    **{
        name: (of_library(name, TEXT), TOKENS, ["q", "v"])
        for name in ("BertForMaskedLM", "AlbertForMaskedLM", "MPNetForMaskedLM")
    },
    "t5": (of_library("T5ForConditionalGeneration", T5), TEXT_TO_TEXT, ["q", "v"]),
    "whisper": (of_library("WhisperForConditionalGeneration", WHISPER), SPEECH, ["q", "v"]),
    "llava": (llava, {"input_ids": WITH_IMAGE, "pixel_values": IMAGE}, ["q", "v"]),
}


@pytest.mark.parametrize("method", [replora.LoRAConfig, replora.PeftMethodConfig])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_written_under_its_own_names(family: str, method: Any, tmp_path: Path) -> None:
    def output(model: torch.nn.Module) -> torch.Tensor:
        result = model(**x)
        return (result.logits if hasattr(result, "logits") else result.last_hidden_state).detach()

    builder, x, targets = FAMILIES[family]
    torch.manual_seed(0)
    model: Any = builder().eval()
    base = output(model)
    replora.inject(model, method(rank=2, targets=targets), example=x)
    disturb(model)
    want = output(model)
    for change in (replora.unmerge, replora.merge):
        change(model).save_pretrained(tmp_path)
        fresh, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
        assert not info["missing_keys"]
        torch.testing.assert_close(output(fresh.eval()), base, rtol=0, atol=1e-5)
        replora.load_adapter(fresh, tmp_path / "adapter.safetensors")
        torch.testing.assert_close(output(fresh), want, rtol=1e-3, atol=1e-4)
    replora.merge_and_unload(model).save_pretrained(tmp_path / "merged")
    torch.testing.assert_close(
        output(type(model).from_pretrained(tmp_path / "merged").eval()), want, rtol=1e-3, atol=1e-4
    )


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
@pytest.mark.parametrize("method", ["replora", "dora", "linear_probe", "bitfit", "full"])
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

    def loaded(checkpoint: str | Path) -> torch.nn.Module:
        if method in ("bitfit", "full"):
            return type(model).from_pretrained(checkpoint).eval()
        fresh, _ = build(model_name)
        replora.load_adapter(fresh, Path(checkpoint) / "adapter.safetensors")
        return fresh

    if (model_name, method) == ("hf_llama", "bitfit"):
        pytest.skip("it has no biases")
    ends = []
    for resume in (None, str(tmp_path / "run" / "checkpoint-2")):
        model, tiny = adapted(model_name, method)
        trainer(model, max_steps=4).train(resume_from_checkpoint=resume)
        ends.append({name: tensor.clone() for name, tensor in replora.adapter_state(model).items()})
    assert all(torch.equal(tensor, ends[1][name]) for name, tensor in ends[0].items())
    fresh = loaded(tmp_path / "run" / "checkpoint-4")
    torch.testing.assert_close(call(fresh, tiny.inputs()), call(model.eval(), tiny.inputs()))

    model, _ = adapted(model_name, method)
    best = trainer(model, max_steps=4, eval_strategy="steps", eval_steps=2, load_best_model_at_end=True)
    best.train()
    there = loaded(best.state.best_model_checkpoint)
    torch.testing.assert_close(call(there, tiny.inputs()), call(model.eval(), tiny.inputs()))
