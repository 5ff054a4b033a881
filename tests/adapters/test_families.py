"""The roles that are found in the model lists of transformers and timm: docs/families.md, made again and compared.

python -m tests.adapters.test_families    writes the page
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import timm
import torch
import transformers
from torch import nn
from transformers.models.auto import modeling_auto

import replora
from replora.adapters.roles import ROLES

PAGE = Path(__file__).parents[2] / "docs" / "families.md"
HEAD = """# Families of models and the roles found in them

The roles `q`, `k`, `v`, `out`, `fc1`, `fc2`, `gate`, `up` and `down` that `replora.find_targets` finds, for one model
of each family in transformers' list of causal language models and in timm. *Rows* are roles that are some rows of one
layer, such as the query rows of a fused projection; `tests/adapters/test_fused_layouts.py` verifies them by what they
do in the model. A family without a role takes names or patterns as targets, such as `"*.proj_in"`, if it has linear
layers. Injection verifies on an example that each target affects the output. The page is made by
`python -m tests.adapters.test_families` from models without weights, and a test compares it.
"""
LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "decoder_layers", "encoder_layers")


def language_models() -> Iterator[tuple[str, nn.Module | None]]:
    """Family and model on the meta device, of two layers; None where the default configuration builds no model."""
    for kind, name in sorted(modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items()):
        try:
            config = transformers.AutoConfig.for_model(kind)
            config = config.get_text_config()
            for option in LAYERS:
                if isinstance(getattr(config, option, None), int):
                    setattr(config, option, 2)
            kinds = getattr(config, "layer_types", None)
            if kinds:
                config.layer_types = list(kinds[:2])
            with torch.device("meta"):
                model = getattr(transformers, name)(config)
        except Exception:
            model = None
        yield kind, model


def image_models() -> Iterator[tuple[str, nn.Module | None]]:
    for family in sorted(timm.list_modules()):
        names = timm.list_models(module=family)
        if not names:
            continue
        try:
            with torch.device("meta"):
                model = timm.create_model(names[0])
        except Exception:
            model = None
        yield f"{family} ({names[0]})", model


def row(family: str, model: nn.Module) -> str:
    roles: dict[str, bool] = {}
    for role in ROLES:
        try:
            found = replora.find_targets(model, [role])
        except replora.RepLoRAError:
            continue
        roles[role] = any(target.rows is not None or target.attribute != "weight" for target in found)
    if roles:
        rows = ", ".join(role for role, partial in roles.items() if partial)
        return f"| {family} | {', '.join(roles)} | {rows} |"
    linear = any(isinstance(module, nn.Linear) for module in model.modules())
    return f"| {family} | none; {'names and patterns' if linear else 'no linear layer'} | |"


def page() -> str:
    blocks = [HEAD]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for title, models in (
            (f"transformers {transformers.__version__}: causal language models", language_models()),
            (f"timm {timm.__version__}", image_models()),
        ):
            found = list(models)
            blocks.append(f"\n## {title}\n\n| family | roles | rows |\n|---|---|---|")
            blocks += [row(family, model) for family, model in found if model is not None]
            if untried := [family for family, model in found if model is None]:
                blocks.append(f"\nNot built by their default configuration here: {', '.join(untried)}.")
    return "\n".join(blocks) + "\n"


WITH_ATTENTION = ["gpt_neox", "bloom", "falcon", "gpt_bigcode", "phi3", "deepseek_v2", "deepseek_v3", "gpt2", "phi"]
WITH_ATTENTION += ["mpt", "llama", "qwen3_moe", "mistral", "gemma", "opt"]


def test_the_page_is_that_of_the_installed_libraries() -> None:
    now = page()
    rows = [line.strip("| ").split(" | ") for line in now.splitlines() if line.startswith("| ")]
    roles = {family: found.split(", ") for family, found, *_ in rows}
    for family in WITH_ATTENTION:
        assert {"q", "k", "v"} <= set(roles[family]), family
    written = PAGE.read_text(encoding="utf-8")
    if all(
        f"## {name}" in written for name in (f"transformers {transformers.__version__}", f"timm {timm.__version__}")
    ):
        assert written == now, "write it again: python -m tests.adapters.test_families"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
