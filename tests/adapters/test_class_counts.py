"""Heads of another number of classes, over the families of classifiers in transformers and timm, by every method.

What is saved, exported, imported and merged says how many classes there are, and stock libraries open it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import peft
import pytest
import timm
import torch
import transformers
from torch import Tensor, nn

import replora
from replora.export import Trained, merge
from tests.adapters.test_contract import disturb

SHAPE = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
TEXT = SHAPE | {"vocab_size": 50, "max_position_embeddings": 16, "pad_token_id": 1}
IMAGE = SHAPE | {"image_size": 16, "patch_size": 8}
BART = {"d_model": 24, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "vocab_size": 50}
BART |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 16}
SEGFORMER = {"hidden_sizes": [8, 16], "depths": [1, 1], "num_attention_heads": [1, 2], "sr_ratios": [2, 1]}
SEGFORMER |= {"patch_sizes": [3, 3], "strides": [2, 2], "mlp_ratios": [2, 2], "num_encoder_blocks": 2}
WAVE = SHAPE | {"conv_dim": (8, 8), "conv_stride": (5, 2), "conv_kernel": (10, 3), "num_feat_extract_layers": 2}
WAVE |= {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "classifier_proj_size": 16, "vocab_size": 20}


def tokens() -> dict[str, Tensor]:
    return {"input_ids": torch.tensor([[0, 7, 9, 4, 2]])}


def pixels(*shape: int) -> dict[str, Tensor]:
    return {"pixel_values": torch.linspace(-1, 1, 3 * 16 * 16 * (shape[0] if shape else 1)).view(1, *shape, 3, 16, 16)}


def wave() -> dict[str, Tensor]:
    return {"input_values": torch.sin(torch.arange(400.0))[None]}


class Family(NamedTuple):
    """A class of transformers: its options, an input, and the modules that train as a whole."""

    options: dict[str, Any]
    inputs: dict[str, Tensor]
    heads: tuple[str, ...] = ("classifier",)
    targets: tuple[str, ...] = ("q", "v")


FAMILIES: dict[str, Family] = {
    "BertForSequenceClassification": Family(TEXT, tokens()),
    "RobertaForSequenceClassification": Family(TEXT, tokens()),
    "RobertaForTokenClassification": Family(TEXT, tokens()),
    "ElectraForSequenceClassification": Family(TEXT, tokens()),
    "DebertaV2ForSequenceClassification": Family(TEXT, tokens()),
    "DistilBertForSequenceClassification": Family(
        {"dim": 24, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "vocab_size": 50},
        tokens(),
        ("pre_classifier", "classifier"),
    ),
    "XLNetForSequenceClassification": Family(
        {"d_model": 24, "n_layer": 2, "n_head": 2, "d_inner": 32, "vocab_size": 50},
        tokens(),
        ("logits_proj",),
        ("*.layer_1",),
    ),
    "BartForSequenceClassification": Family(BART, tokens(), ("classification_head",)),
    "LlamaForSequenceClassification": Family(TEXT, tokens(), ("score",)),
    "LlamaForTokenClassification": Family(TEXT, tokens(), ("score",)),
    "GPT2ForSequenceClassification": Family(
        {"n_embd": 24, "n_layer": 2, "n_head": 2, "vocab_size": 50, "pad_token_id": 1}, tokens(), ("score",)
    ),
    "DeiTForImageClassificationWithTeacher": Family(IMAGE, pixels(), ("cls_classifier", "distillation_classifier")),
    "BeitForImageClassification": Family(IMAGE, pixels()),
    "SegformerForImageClassification": Family(SEGFORMER, pixels()),
    "SegformerForSemanticSegmentation": Family(SEGFORMER | {"decoder_hidden_size": 16}, pixels(), ("decode_head",)),
    "VideoMAEForVideoClassification": Family(IMAGE | {"num_frames": 4}, pixels(4)),
    "Wav2Vec2ForSequenceClassification": Family(WAVE, wave(), ("projector", "classifier")),
    "Wav2Vec2ForAudioFrameClassification": Family(WAVE, wave()),
    "ASTForAudioClassification": Family(
        SHAPE | {"patch_size": 8, "max_length": 32, "num_mel_bins": 16, "frequency_stride": 8, "time_stride": 8},
        {"input_values": torch.linspace(-1, 1, 32 * 16).view(1, 32, 16)},
    ),
}
METHODS = ["lora", "replora", "dora", "bitfit", "full", "linear_probe"]


def method_of(name: str, targets: tuple[str, ...]) -> replora.AdapterConfig:
    methods: dict[str, replora.AdapterConfig] = {
        "lora": replora.LoRAConfig(2, targets=targets),
        "replora": replora.RepLoRAConfig(2, hidden=4, targets=targets),
        "dora": replora.PeftMethodConfig("dora", 2, targets=targets),
        "bitfit": replora.BitFitConfig(),
        "full": replora.FullConfig(),
        "linear_probe": replora.LinearProbeConfig(),
    }
    return methods[name]


def model_of(family: str, classes: int) -> Any:
    """A model whose configuration says 3, with last layers for so many classes; the rest is always the same."""
    cls = getattr(transformers, family)
    built = []
    for labels in (3, classes):
        torch.manual_seed(0)
        built.append(cls(cls.config_class(**FAMILIES[family].options, num_labels=labels)).eval())
    model, other = built
    for name, layer in list(model.named_modules()):
        wanted = other.get_submodule(name)
        if isinstance(layer, nn.Linear | nn.Conv2d) and wanted.weight.shape != layer.weight.shape:
            model.set_submodule(name, wanted)
    return model


def logits(model: nn.Module, family: str) -> Tensor:
    return model(**FAMILIES[family].inputs).logits.detach()


def check(model: Any, family: str, want: Tensor) -> None:
    config = model.config
    assert config.num_labels == len(config.id2label) == len(config.label2id) == 7
    assert getattr(model, "num_labels", 7) == 7
    torch.testing.assert_close(logits(model.eval(), family), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_of_transformers_says_how_many_classes_it_has(family: str, method: str, tmp_path: Path) -> None:
    if family.startswith("Llama") and method == "bitfit":
        pytest.skip("it has no biases")
    _, inputs, heads, targets = FAMILIES[family]
    config = method_of(method, targets)
    model = replora.inject(model_of(family, 7), config, also_train=heads, example=inputs)
    disturb(model)
    want = logits(model, family)
    check(model, family, want)

    file = replora.save_adapter(model, tmp_path / "adapter.safetensors")
    there = model_of(family, 3)
    replora.load_adapter(there, file)
    check(there, family, want)
    replora.merge_and_unload(there).save_pretrained(tmp_path / "merged")
    check(type(model).from_pretrained(tmp_path / "merged"), family, want)

    model.save_pretrained(tmp_path / "saved")
    saved = type(model).from_pretrained(tmp_path / "saved")
    if method not in ("bitfit", "full"):
        replora.load_adapter(saved, tmp_path / "saved" / "adapter.safetensors")
    check(saved, family, want)

    if method in ("lora", "replora", "dora"):
        folder = replora.export_peft(model, tmp_path / "peft", base_model="base", example=inputs)
        base = model_of(family, 7)
        base.config.num_labels = base.num_labels = 7
        stock = peft.PeftModel.from_pretrained(base, folder)
        check(stock.base_model.model, family, want)
        assert '"base", num_labels=7, ignore_mismatched_sizes=True)' in (folder / "README.md").read_text()
        if method != "dora":
            there = model_of(family, 3)
            replora.import_peft(there, folder)
            check(there, family, want)
    if method not in ("bitfit", "full"):
        there = model_of(family, 3)
        replora.load_adapter(there, file, name="seven")
        other = replora.inject(model_of(family, 4), config, also_train=heads, example=inputs)
        replora.load_adapter(there, replora.save_adapter(other, tmp_path / "four.safetensors"), name="four")
        assert there.config.num_labels == 4
        check(replora.set_adapter(there, "seven"), family, want)


# The last layer is one of the head's, inside of a layer, one of two, or one of a list.
SMALL = {"img_size": 32, "depth": 2}
TIMM: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": SMALL,
    "deit_tiny_distilled_patch16_224": SMALL,
    "swin_tiny_patch4_window7_224": {"img_size": 32, "window_size": 4, "depths": (1, 1), "num_heads": (2, 4)},
    "beit_base_patch16_224": SMALL | {"embed_dim": 48, "num_heads": 4},
    "cait_xxs24_224": SMALL,
    "levit_128s": {},
    "crossvit_tiny_240": {},
    "sequencer2d_s": {},
    "davit_tiny": {"depths": (1, 1, 1, 1)},
    "mobilenetv3_small_050": {},
}


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("name", TIMM)
def test_a_model_of_timm_says_how_many_classes_it_has(name: str, reset: bool, tmp_path: Path) -> None:
    def built() -> Any:
        torch.manual_seed(0)
        return timm.create_model(name, num_classes=3, **TIMM[name]).eval()

    model = built()
    named = model.pretrained_cfg["classifier"]
    heads = [named] if isinstance(named, str) else list(named)
    if reset:
        model.reset_classifier(7)
    for head in heads:
        last = [n for n, m in model.get_submodule(head).named_modules(prefix=head) if isinstance(m, nn.Linear)][-1]
        own: Any = model.get_submodule(last)
        torch.manual_seed(7)
        model.set_submodule(last, nn.Linear(own.in_features, 7, bias=own.bias is not None))
    size = TIMM[name].get("img_size") or model.pretrained_cfg["input_size"][-1]
    x = torch.linspace(-1, 1, 3 * size * size).view(1, 3, size, size)
    replora.inject(model.eval(), replora.LinearProbeConfig(), also_train=heads)
    want = model(x).detach()
    assert (model.num_classes, want.shape) == (7, (1, 7))
    there = built()
    replora.load_adapter(there, replora.save_adapter(model, tmp_path / "adapter.safetensors"))
    assert there.num_classes == 7
    torch.testing.assert_close(there(x), want)
    merge(Trained(there, name), tmp_path / "merged")
    opened: Any = timm.create_model(f"local-dir:{tmp_path / 'merged'}", pretrained=True, **TIMM[name]).eval()
    assert opened.num_classes == 7
    torch.testing.assert_close(opened(x), want)


@pytest.mark.parametrize("name", ["levit_128s", "tiny_vit_5m_224"])
def test_what_an_attention_remembers_of_the_verification_is_forgotten(name: str) -> None:
    """Both keep position biases in evaluation mode; these are 0 in a new model, and random while it is verified."""
    torch.manual_seed(0)
    model: Any = timm.create_model(name, num_classes=5).eval()
    targets = ["*.mlp.fc1"] if name.startswith("tiny") else ["*.qkv.linear"]
    x = torch.randn(1, 3, 224, 224)
    want = model(x)
    torch.testing.assert_close(replora.inject(model, replora.LoRAConfig(2, targets=targets))(x), want)
    assert not model.training
