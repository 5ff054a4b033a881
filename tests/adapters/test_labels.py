"""Heads of another number of classes: what is written says how many there are, and can be opened."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import replora
from tests.adapters.test_contract import METHODS, adapted, build, disturb
from tests.adapters.tiny_models import call, hf_vit, timm_vit, tokens

SMALL = {"vocab_size": 50, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def roberta() -> nn.Module:
    """Its head is a module of two layers."""
    from transformers import RobertaConfig, RobertaForSequenceClassification

    return RobertaForSequenceClassification(RobertaConfig(**SMALL, max_position_embeddings=16))


def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForSequenceClassification

    return LlamaForSequenceClassification(LlamaConfig(**SMALL, pad_token_id=1))


def pixels() -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.ones(1, 3, 16, 16)}


# Model -> (builder, input, head, its last layer)
CLASSIFIERS = {
    "hf_vit": (hf_vit, pixels, "classifier", "classifier"),
    "roberta": (roberta, tokens, "classifier", "classifier.out_proj"),
    "llama": (llama, tokens, "score", "score"),
    "timm_vit": (timm_vit, lambda: torch.ones(1, 3, 16, 16), "head", "head"),
}


def of_classes(name: str, classes: int) -> nn.Module:
    torch.manual_seed(0)
    model, last = CLASSIFIERS[name][0](), CLASSIFIERS[name][3]
    own = model.get_submodule(last)
    torch.manual_seed(classes)
    model.set_submodule(last, nn.Linear(own.in_features, classes, bias=own.bias is not None))
    return model.eval()


def said(model: nn.Module) -> int:
    config = getattr(model, "config", None)
    if config is None:
        return model.num_classes
    assert len(config.id2label) == len(config.label2id) == config.num_labels == model.num_labels
    return config.num_labels


@pytest.mark.parametrize("name", CLASSIFIERS)
@pytest.mark.parametrize("way", ["merge", "load and merge", "import and merge"])
def test_a_written_model_can_be_opened(name: str, way: str, tmp_path: Path) -> None:
    _, inputs, head, _ = CLASSIFIERS[name]
    model = replora.inject(of_classes(name, 7), METHODS["lora"], also_train=[head])
    assert said(model) == 7
    disturb(model)
    want = call(model, inputs()).detach()
    if way != "merge":
        there = of_classes(name, 3)
        if way == "load and merge":
            replora.load_adapter(there, replora.save_adapter(model, tmp_path / "a.safetensors"))
        else:
            replora.import_peft(there, replora.export_peft(model, tmp_path / "peft", base_model="base"))
            card = (tmp_path / "peft" / "README.md").read_text()
            assert name == "timm_vit" or '"base", num_labels=7, ignore_mismatched_sizes=True)' in card
        model = there
        torch.testing.assert_close(call(model, inputs()), want, rtol=1e-4, atol=1e-5)
    assert said(model) == 7
    plain = replora.merge_and_unload(model)
    if name != "timm_vit":
        plain.save_pretrained(tmp_path / "merged")
        plain = type(plain).from_pretrained(tmp_path / "merged").eval()
    assert said(plain) == 7
    torch.testing.assert_close(call(plain, inputs()), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["hf_vit", "llama", "timm_vit"])
def test_the_number_follows_the_adapter_that_acts(name: str, tmp_path: Path) -> None:
    head = CLASSIFIERS[name][2]
    model = of_classes(name, 3)
    for classes in (7, 4):
        trained = replora.inject(of_classes(name, classes), METHODS["lora"], also_train=[head])
        file = replora.save_adapter(trained, tmp_path / f"{classes}.safetensors")
        replora.load_adapter(model, file, name=str(classes))
        assert said(model) == classes
    replora.set_adapter(model, "7")
    assert said(model) == 7


def test_other_modules_that_train_are_no_heads() -> None:
    model, _ = build("hf_vit")
    before = said(model)
    replora.inject(
        model, METHODS["lora"], also_train=["vit.layers.1.mlp.fc1" if hasattr(model.vit, "layers") else "vit"]
    )
    assert said(model) == before
    model, _ = adapted("timm_vit", "lora")
    assert said(model) == 5


def test_a_folder_without_alpha_has_peft_s_and_null_is_refused(tmp_path: Path) -> None:
    import json

    model, tiny = adapted("hf_llama", "lora")
    disturb(model)
    folder = replora.export_peft(model, tmp_path / "peft")
    config = json.loads((folder / "adapter_config.json").read_text())
    config["lora_alpha"] = None
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(replora.RepLoRAError, match="lora_alpha is None"):
        replora.import_peft(build("hf_llama")[0], folder)
    del config["lora_alpha"]
    (folder / "adapter_config.json").write_text(json.dumps(config))
    there, _ = build("hf_llama")
    replora.import_peft(there, folder)
    from peft import PeftModel

    stock = PeftModel.from_pretrained(build("hf_llama")[0], folder).eval()
    torch.testing.assert_close(call(there, tiny.inputs()), call(stock, tiny.inputs()), rtol=1e-4, atol=1e-5)


def test_a_model_without_embeddings_imports(tmp_path: Path) -> None:
    from transformers import SegformerConfig, SegformerForImageClassification

    def segformer() -> nn.Module:
        torch.manual_seed(0)
        sizes = {"hidden_sizes": [8, 16], "depths": [1, 1], "num_attention_heads": [1, 2], "sr_ratios": [2, 1]}
        sizes |= {"patch_sizes": [3, 3], "strides": [2, 2], "mlp_ratios": [2, 2], "num_encoder_blocks": 2}
        return SegformerForImageClassification(SegformerConfig(**sizes)).eval()

    x = {"pixel_values": torch.randn(1, 3, 16, 16)}
    model = replora.inject(segformer(), METHODS["lora"], also_train=["classifier"], example=x)
    disturb(model)
    there = segformer()
    replora.import_peft(there, replora.export_peft(model, tmp_path / "peft", example=x))
    torch.testing.assert_close(call(there, x), call(model, x), rtol=1e-4, atol=1e-5)


def test_a_speech_model_is_no_text_to_text_model(tmp_path: Path) -> None:
    from peft import PeftConfig
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    sizes = {"d_model": 24, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 50, "num_mel_bins": 8}
    sizes |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    tokens_of = {"pad_token_id": 1, "bos_token_id": 1, "eos_token_id": 1, "decoder_start_token_id": 1}
    whisper = WhisperForConditionalGeneration(WhisperConfig(**sizes, **tokens_of, max_source_positions=8))
    x = {"input_features": torch.randn(1, 8, 16), "decoder_input_ids": torch.tensor([[1, 2]])}
    replora.inject(whisper, METHODS["lora"], example=x)
    config = PeftConfig.from_pretrained(str(replora.export_peft(whisper, tmp_path / "whisper")))
    assert config.task_type is None
    assert config.auto_mapping["base_model_class"] == "WhisperForConditionalGeneration"
    bart, _ = adapted("hf_bart", "lora")
    assert PeftConfig.from_pretrained(str(replora.export_peft(bart, tmp_path / "bart"))).task_type == "SEQ_2_SEQ_LM"
