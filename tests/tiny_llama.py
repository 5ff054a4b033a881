"""A LLaMA of a few thousand random parameters and a tokenizer of single bytes, in a folder as transformers saves it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

VOCABULARY = 260  # 256 bytes and four special tokens
END, PAD = 257, 258


def tiny_llama(seed: int = 0, layers: int = 2, **options: Any) -> nn.Module:
    """LlamaForCausalLM in float32 whose predictions are far from uniform."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.2,
        "bos_token_id": 256,
        "eos_token_id": END,
        "pad_token_id": PAD,
    }
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**(config | options))).eval()


def byte_tokenizer() -> Any:
    """One token a byte of UTF-8."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate([*letters, "<s>", "</s>", "<pad>", "<unk>"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def write_tiny_llama(folder: Path, **options: Any) -> Path:
    """The model and the tokenizer, as `--model.backbone` takes them."""
    tiny_llama(**options).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder
