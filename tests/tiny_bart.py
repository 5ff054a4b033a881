"""A BART of a few thousand random parameters and a tokenizer of single bytes, in a folder as transformers saves it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]  # with the numbers of BART's


def tiny_bart(seed: int = 0, **options: Any) -> nn.Module:
    """BartForConditionalGeneration in float32 whose predictions are far from uniform."""
    from transformers import BartConfig, BartForConditionalGeneration

    shape = {
        "vocab_size": 260,
        "d_model": 16,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 32,
        "max_position_embeddings": 640,
        "init_std": 0.3,
    }
    torch.manual_seed(seed)
    return BartForConditionalGeneration(BartConfig(**(shape | options))).eval()


def byte_tokenizer() -> Any:
    """One token a byte of UTF-8, between `<s>` and `</s>`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate([*SPECIAL, *letters])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    names = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=640, **names)


def write_tiny_bart(folder: Path, **options: Any) -> Path:
    """The model and the tokenizer, as `--model.backbone` takes them."""
    tiny_bart(**options).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder
