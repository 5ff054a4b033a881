"""Causal language models from transformers: by name, from a local folder or from the hub, in 16, 32, 8 or 4 bits."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from replora.adapters.fingerprint import fingerprint
from replora.backbones.backbone import Backbone, BackboneError, file_sha256
from replora.backbones.smollm2 import SMOLLM2, smollm2_folder
from replora.datasets.common.hub import check_hub

Dtype = Literal["auto", "bf16", "fp16", "fp32"]
Quantization = Literal["none", "8bit", "4bit"]

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}

# The shapes of LLaMA (Touvron et al., 2023, table 2; widths of the MLPs from the released weights), as arguments of
# transformers' LlamaConfig: what memory and speed can be measured with where the weights are not at hand.
LLAMA_SHAPES: dict[str, dict[str, int]] = {
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    "13b": {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40},
}


@dataclass(frozen=True)
class LanguageBackbone(Backbone):
    """A causal language model: token ids (batch, T) -> logits (batch, T, vocabulary).

    Attributes:
        dtype: Data type of the frozen weights that are not quantized, such as `bfloat16`.
        quantization: `none`, `8bit` or `4bit`.
        end_ids: Tokens that end a generated text.
        pad_id: What fills up a batch.
    """

    dtype: str
    quantization: Quantization
    end_ids: tuple[int, ...]
    pad_id: int


def build_language_backbone(
    name: str = SMOLLM2,
    *,
    pretrained: bool = True,
    revision: str | None = None,
    dtype: Dtype = "auto",
    quantization: Quantization = "none",
) -> LanguageBackbone:
    """A causal language model of transformers, with PyTorch's `scaled_dot_product_attention` where it offers that.

    Args:
        name: `smollm2`, a folder as transformers saves it, or a hub id such as `yahma/llama-7b-hf`.
        pretrained: Whether to load the weights; otherwise they are random and only the configuration is read.
        revision: Branch, tag or commit of the hub repository.
        dtype: Data type of the frozen weights: `bf16`, `fp16`, `fp32`, or `auto`, that of the saved weights.
        quantization: `8bit` or `4bit` (NF4) quantize the frozen linear layers with bitsandbytes while loading.

    Raises:
        BackboneError: There is no such model, its weights are not available or not complete, it is no causal language
            model, or bitsandbytes is not installed.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    if dtype not in ("auto", *DTYPES):
        raise BackboneError(f"dtype: {dtype!r} is not known. It is auto, {', '.join(DTYPES)}.")
    options = {} if quantization == "none" else _quantized(quantization, pretrained, dtype)
    source = source_of(name)
    try:
        check_hub(source, revision)
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
        if pretrained:
            model, report = AutoModelForCausalLM.from_pretrained(
                source,
                revision=revision,
                dtype=DTYPES.get(dtype, "auto"),
                output_loading_info=True,
                **options,
            )
            if absent := sorted(report["missing_keys"]):
                raise BackboneError(
                    f"its files lack {len(absent)} of the weights of {type(model).__name__}, such as {absent[0]}, and "
                    "random ones would take their place"
                )
        else:
            wanted = DTYPES.get(dtype) or getattr(config, "dtype", None) or torch.float32
            model = AutoModelForCausalLM.from_config(config, dtype=wanted)
    except Exception as error:  # the hub's client, safetensors and transformers raise their own errors
        reason = str(error) if isinstance(error, BackboneError) else _first_line(error)
        raise BackboneError(
            f"The language model {name!r} could not be loaded ({reason}). It may be smollm2, a folder "
            "as transformers' save_pretrained writes it, or a hub id of a causal language model; without a network, "
            "smollm2 or a folder."
        ) from error
    _check_causal(model, name)
    weights = "random" if not pretrained else Path(source).name if name == SMOLLM2 else _where(name, revision)
    return as_backbone(model, name, weights, _sha256(source) if pretrained else None, quantization)


def as_backbone(
    model: nn.Module,
    name: str,
    weights: str = "as given",
    sha256: str | None = None,
    quantization: Quantization = "none",
) -> LanguageBackbone:
    """A model that transformers has built already, as a backbone: its generation options become ours.

    Sampling options of the model's own are put away: a model whose authors recommend sampling would else sample inside
    a beam search.
    """
    from transformers import GenerationConfig

    config: Any = model.config
    saved = getattr(model, "generation_config", None) or GenerationConfig()
    end = saved.eos_token_id if saved.eos_token_id is not None else config.eos_token_id
    end_ids = tuple(end) if isinstance(end, list | tuple) else (() if end is None else (end,))
    pad_id = next((i for i in (saved.pad_token_id, getattr(config, "pad_token_id", None), *end_ids) if _valid(i)), 0)
    if (head := model.get_output_embeddings()) is not None:  # type: ignore[operator]
        head.register_forward_pre_hook(_contiguous)
    model.train()  # as transformers builds it, dropout would be off and gradient checkpointing with it
    model.generation_config = GenerationConfig(
        do_sample=False, bos_token_id=saved.bos_token_id, eos_token_id=list(end_ids) or None, pad_token_id=pad_id
    )
    dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    return LanguageBackbone(
        model=model,
        name=name,
        head_names=(),
        weights=weights,
        sha256=sha256,
        fingerprint=fingerprint(model),
        dtype=str(dtype).removeprefix("torch."),
        quantization=quantization,
        end_ids=end_ids,
        pad_id=pad_id,
    )


@torch.no_grad()
def _check_causal(model: nn.Module, name: str) -> None:
    """Check that the logits of a position depend on no later token; transformers builds an encoder without a word.

    Raises:
        BackboneError: They do, or they are not numbers.
    """
    if any(p.is_meta for p in model.parameters()):
        return
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    ids = torch.arange(3, 9, device=device)[None]
    changed = ids.clone()
    changed[0, -1] = 2
    one, other = (model(input_ids=x).logits[0] for x in (ids, changed))
    model.train(was_training)
    if one.isnan().any():
        raise BackboneError(
            f"{name!r} computes logits that are not numbers (NaN): its weights are corrupt, or too large for "
            f"{one.dtype}. Copy the files again from their source, or set --model.dtype fp32."
        )
    difference = (one - other).float().abs().amax(dim=-1)  # of each position
    # Rounding alone may differ: kernels see other numbers in the columns that are masked.
    rounding = 1e-5 if one.dtype == torch.float32 else 1e-2
    if any(not p.is_floating_point() for p in model.parameters()):
        rounding = 0.1  # bitsandbytes splits off the columns in which any token is large; 0.009 measured
    if difference[:-1].max() > rounding * difference[-1]:
        raise BackboneError(
            f"{name!r} is no causal language model: in {type(model).__name__} the last token of a text changes the "
            "outputs at earlier ones, so it sees what it should predict. Choose a decoder such as LLaMA or GPT-2."
        )


def checkpoint_gradients(model: nn.Module) -> None:
    """Keep no activations inside the blocks; the backward pass computes them again.

    Without reentrance: the reentrant kind gives adapters behind a frozen embedding no gradient.

    Raises:
        BackboneError: The model does not offer it.
    """
    try:
        # Its name from transformers 5.20 on, and the one before.
        enable: Any = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    except (AttributeError, ValueError) as error:
        raise BackboneError(
            f"gradient_checkpointing: {type(model).__name__} does not offer it. Leave the option out, or lower "
            "--data.batch_size and raise --trainer.accumulate_grad_batches."
        ) from error


def load_tokenizer(name: str = SMOLLM2, revision: str | None = None) -> Any:
    """The tokenizer of a language backbone, padding on the left; one without a padding token pads with its end token.

    Args:
        name: `smollm2`, a folder as transformers saves it, or a hub id such as `yahma/llama-7b-hf`.
        revision: Branch, tag or commit of the hub repository.

    Raises:
        BackboneError: There is no such tokenizer, or it cannot be had.
    """
    from transformers import AutoTokenizer

    source = source_of(name)
    try:
        check_hub(source, revision)
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False)
        _name_empty_tokens(tokenizer)
        if _lost_its_begin_token(tokenizer):
            tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, add_bos_token=True)
    except Exception as error:  # the hub's client, sentencepiece and tokenizers raise their own errors
        raise BackboneError(
            f"The tokenizer of {name!r} could not be loaded ({_first_line(error)}). Without a network give a folder "
            "that holds it, or smollm2. A tokenizer.model needs sentencepiece and protobuf: "
            'pip install "replora[llm]"'
        ) from error
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise BackboneError(
                f"The tokenizer of {name!r} has neither a padding nor an end token. Set pad_token or eos_token in its "
                "tokenizer_config.json."
            )
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    return tokenizer


def _name_empty_tokens(tokenizer: Any) -> None:
    """Give the special tokens that a folder calls "" LLaMA's names; early conversions left them out (decapoda's)."""
    vocabulary = tokenizer.get_vocab()
    for kind, token in {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": None}.items():
        if getattr(tokenizer, kind) == "":
            setattr(tokenizer, kind, token if token in vocabulary else None)


def _lost_its_begin_token(tokenizer: Any) -> bool:
    """Whether it is one of LLaMA's first tokenizers, whose folders do not say that texts begin with `<s>`.

    Their class did so unasked until transformers 5; a model that was trained with it answers worse without.
    """
    silent = type(tokenizer).__name__ == "LlamaTokenizer" and "add_bos_token" not in tokenizer.init_kwargs
    return silent and tokenizer("a").input_ids[:1] != [tokenizer.bos_token_id]


def source_of(name: str) -> str:
    """What transformers is asked for: the converted folder of `smollm2`, a local folder, or a hub id.

    Raises:
        BackboneError: `name` looks like a local path that does not exist, or is a folder without config.json.
    """
    if name == SMOLLM2:
        return str(smollm2_folder())
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise BackboneError(f"backbone: {path} holds no config.json, so it is no model of transformers.")
        return str(path)
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise BackboneError(f"backbone: there is no folder {name!r} (looked in {Path.cwd()}).")
    return name


def _quantized(quantization: Quantization, pretrained: bool, dtype: Dtype) -> dict[str, Any]:
    """Arguments of `from_pretrained` for weights in 8 or 4 bits."""
    if not pretrained:
        raise BackboneError(f"quantization: {quantization} quantizes weights while they load; random ones do not load.")
    if importlib.util.find_spec("bitsandbytes") is None or importlib.util.find_spec("accelerate") is None:
        raise BackboneError(
            f"quantization: {quantization} needs bitsandbytes and accelerate, which are not installed: "
            'pip install bitsandbytes "replora[llm]". Without them: --model.quantization none'
        )
    if quantization == "4bit" and not torch.cuda.is_available():
        # bitsandbytes 0.50 repacks 4-bit weights on a CPU at the first evaluation, and its product with those passes no
        # gradient on: training would do nothing.
        raise BackboneError("quantization: 4bit trains on a GPU alone. Here: --model.quantization 8bit, or none.")
    from transformers import BitsAndBytesConfig

    compute = DTYPES.get(dtype, torch.bfloat16)
    config = (
        BitsAndBytesConfig(load_in_8bit=True)
        if quantization == "8bit"
        else BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute)
    )
    # bitsandbytes quantizes on the device that the weights are for.
    device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    return {"quantization_config": config, "device_map": {"": device}}


def _contiguous(_head: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Hidden states as one block of memory.

    transformers hands the last columns alone to the output layer. For such a view and a frozen weight, PyTorch's linear
    multiplies row by row of the batch with a copy of the weight for each, the vocabulary times the batch in size.
    """
    return tuple(x.contiguous() for x in inputs)


def _sha256(source: str) -> str | None:
    """Of the one weights file of a local folder; None for the hub's and for several files."""
    files = list(Path(source).glob("*.safetensors"))
    return file_sha256(files[0]) if len(files) == 1 else None


def _where(name: str, revision: str | None) -> str:
    return f"{name}@{revision}" if revision else name


def _valid(token: int | None) -> bool:
    return token is not None and token >= 0  # LLaMA's first configurations say -1 for "none"


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
