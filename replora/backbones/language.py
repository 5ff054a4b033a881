"""Causal language models from transformers: by name, from a local folder or from the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from replora.backbones.backbone import BackboneError
from replora.backbones.smollm2 import SMOLLM2, smollm2_folder


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
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
    except Exception as error:  # the hub's client, sentencepiece and tokenizers raise their own errors
        raise BackboneError(
            f"The tokenizer of {name!r} could not be loaded ({_first_line(error)}). Without a network give a folder "
            "that holds it, or smollm2. A tokenizer.model needs sentencepiece and protobuf: "
            'pip install "replora[llm]"'
        ) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    return tokenizer


def source_of(name: str) -> str:
    """What transformers is asked for: the converted folder of `smollm2`, a local folder, or a hub id.

    Raises:
        BackboneError: `name` looks like a local path that does not exist, or holds no config.json.
    """
    if name == SMOLLM2:
        return str(smollm2_folder())
    path = Path(name).expanduser()
    looks_local = path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise BackboneError(f"backbone: {path} holds no config.json, so it is no model of transformers.")
        return str(path)
    if looks_local:
        raise BackboneError(f"backbone: there is no folder {name!r} (looked in {Path.cwd()}).")
    return name


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
