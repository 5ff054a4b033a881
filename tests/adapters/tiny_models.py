"""One tiny model of each family, with an input: the rows of the contract tests' table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class TinyModel(NamedTuple):
    """How to build a model and call it; `head` is what trains beside the adapter."""

    build: Callable[[], nn.Module]
    inputs: Callable[[], Any]
    head: str
    dropout_possible: bool = True


def call(model: nn.Module, inputs: Any) -> Tensor:
    """The logits."""
    output = model(**inputs) if isinstance(inputs, dict) else model(inputs)
    return output if isinstance(output, Tensor) else output.logits


def image(size: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def pixels(size: int) -> Callable[[], dict[str, Tensor]]:
    return lambda: {"pixel_values": image(size)()}


def tokens() -> dict[str, Tensor]:
    return {"input_ids": torch.tensor([[0, 7, 9, 4, 2], [0, 8, 3, 5, 2]])}


def timm_vit() -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(img_size=16, patch_size=8, embed_dim=24, depth=3, num_heads=2, num_classes=5)


def timm_swin() -> nn.Module:
    from timm.models.swin_transformer import SwinTransformer

    return SwinTransformer(
        img_size=16, patch_size=2, window_size=4, embed_dim=16, depths=(2, 1), num_heads=(2, 4), num_classes=5
    )


def timm_swin_v2() -> nn.Module:
    from timm.models.swin_transformer_v2 import SwinTransformerV2

    model = SwinTransformerV2(
        img_size=16, patch_size=2, window_size=4, embed_dim=16, depths=(2, 1), num_heads=(2, 4), num_classes=5
    )
    for name, weight in model.named_parameters():
        if "norm1.weight" in name or "norm2.weight" in name:
            nn.init.ones_(weight)  # timm starts the residual branches at zero
    return model


def timm_beit() -> nn.Module:
    from timm.models.beit import Beit

    return Beit(
        img_size=16,
        patch_size=8,
        embed_dim=24,
        depth=2,
        num_heads=2,
        num_classes=5,
        init_values=1.0,
        head_init_scale=1.0,
    )


def timm_eva02() -> nn.Module:
    from timm.models.eva import Eva

    return Eva(
        img_size=16,
        patch_size=8,
        embed_dim=24,
        depth=2,
        num_heads=2,
        num_classes=5,
        qkv_fused=True,
        swiglu_mlp=True,
        head_init_scale=1.0,
    )


def torchvision_vit() -> nn.Module:
    from torchvision.models import VisionTransformer

    model = VisionTransformer(16, 8, num_layers=2, num_heads=2, hidden_dim=24, mlp_dim=32, num_classes=5)
    nn.init.normal_(model.heads.head.weight)  # torchvision starts it at zero, where outputs tell nothing
    return model


def torchvision_swin() -> nn.Module:
    from torchvision.models import SwinTransformer

    return SwinTransformer([2, 2], 16, [2, 1], [2, 4], window_size=[4, 4], num_classes=5)


def torchvision_swin3d() -> nn.Module:
    from torchvision.models.video import SwinTransformer3d

    return SwinTransformer3d([2, 4, 4], 16, [2, 1], [2, 4], window_size=[2, 2, 2], num_classes=5)


def hf_vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(
        ViTConfig(
            hidden_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            image_size=16,
            patch_size=8,
        )
    )


def hf_videomae() -> nn.Module:
    from transformers import VideoMAEConfig, VideoMAEForVideoClassification

    return VideoMAEForVideoClassification(
        VideoMAEConfig(
            hidden_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            image_size=16,
            patch_size=8,
            num_frames=4,
            num_labels=5,
        )
    )


def hf_llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=32,
            vocab_size=50,
            pad_token_id=1,
        )
    )


def hf_gpt2() -> nn.Module:
    """Its linear layers are transformers' `Conv1D`, and its output layer is not tied."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(n_embd=24, n_layer=2, n_head=2, vocab_size=50, n_positions=16, tie_word_embeddings=False)
    config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = 0.0
    return GPT2LMHeadModel(config)


def tied_llama() -> nn.Module:
    """Its output layer is the table of its embedding."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        vocab_size=50,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


def hf_bart() -> nn.Module:
    from transformers import BartConfig, BartForConditionalGeneration

    return BartForConditionalGeneration(
        BartConfig(
            d_model=24,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=32,
            decoder_ffn_dim=32,
            vocab_size=50,
            max_position_embeddings=16,
            dropout=0.0,
        )
    )


class EncoderWithHead(nn.Module):
    """`nn.TransformerEncoder`, whose attention is `nn.MultiheadAttention`."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(24, 2, 32, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x.flatten(2).reshape(len(x), -1, 24)).mean(1))


MODELS: dict[str, TinyModel] = {
    "timm_vit": TinyModel(timm_vit, image(16), "head"),
    "timm_swin": TinyModel(timm_swin, image(16), "head"),
    "timm_swin_v2": TinyModel(timm_swin_v2, image(16), "head", dropout_possible=False),
    "timm_beit": TinyModel(timm_beit, image(16), "head", dropout_possible=False),
    "timm_eva02": TinyModel(timm_eva02, image(16), "head", dropout_possible=False),
    "torchvision_vit": TinyModel(torchvision_vit, image(16), "heads", dropout_possible=False),
    "torchvision_swin": TinyModel(torchvision_swin, image(16), "head", dropout_possible=False),
    "torchvision_swin3d": TinyModel(
        torchvision_swin3d,
        lambda: torch.randn(2, 3, 4, 16, 16, generator=torch.Generator().manual_seed(1)),
        "head",
        False,
    ),
    "torch_encoder": TinyModel(EncoderWithHead, image(16), "head", dropout_possible=False),
    "hf_vit": TinyModel(hf_vit, pixels(16), "classifier"),
    "hf_videomae": TinyModel(
        hf_videomae,
        lambda: {"pixel_values": torch.randn(2, 4, 3, 16, 16, generator=torch.Generator().manual_seed(1))},
        "classifier",
    ),
    "hf_llama": TinyModel(hf_llama, tokens, "model.norm"),
    "hf_gpt2": TinyModel(hf_gpt2, tokens, "transformer.ln_f"),
    "hf_bart": TinyModel(hf_bart, tokens, "model.decoder.layernorm_embedding"),
}
