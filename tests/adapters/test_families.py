"""The roles that are found in the model lists of transformers and timm: docs/families.md, made again and compared.

python -m tests.adapters.test_families    writes the page
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import timm
import torch
import transformers
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers.models.auto import modeling_auto

import replora
from replora.adapters.roles import ROLES

PAGE = Path(__file__).parents[2] / "docs" / "families.md"
HEAD = """# Families of models and the roles found in them

The roles `q`, `k`, `v`, `out`, `fc1`, `fc2`, `gate`, `up` and `down` that `replora.find_targets` finds, for one model
of each family in transformers' list of causal language models and in timm. *Rows* are roles that are some rows of one
layer, such as the query rows of a fused projection; `tests/adapters/test_fused_layouts.py` verifies them by what they
do in the model. *By weight* are roles whose layers the model does not call, but whose weight it reads: RepLoRA and LoRA
are exact there too, without dropout; methods of the `peft` library and `replora.export_peft` are refused. All other
roles are of layers that are called, but for those in *unseen*, which a pass without weights does not reach. A family
without a role takes names or patterns as targets, such as `"*.proj_in"`, if it has linear layers. Injection verifies on
an example that each target affects the output. The page is made by `python -m tests.adapters.test_families` from models
without weights, and a test compares it.
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


class Reads(TorchFunctionMode):
    """Notes the parameters that are arguments of any function, by their identities."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[int] = set()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for value in (*args, *(kwargs or {}).values()):
            self.seen |= {id(v) for v in (value if isinstance(value, list | tuple) else [value])}
        return function(*args, **kwargs or {})


def ways(model: Any, targets: dict[str, list[replora.Target]]) -> tuple[list[str], list[str]]:
    """The roles by weight, and those that are unseen: what happens in a pass of a model without weights."""
    called: set[int] = set()
    for module in {t.module for found in targets.values() for t in found}:
        layer = model.get_submodule(module)
        layer.register_forward_pre_hook(lambda layer, _: called.add(id(layer)))
    model = model.eval().bfloat16()
    with Reads() as reads, torch.no_grad(), torch.device("meta"):
        if hasattr(model, "pretrained_cfg"):
            model(torch.zeros(2, 3, *model.pretrained_cfg["input_size"][1:], dtype=torch.bfloat16))
        else:
            for options in (
                {},
                {"use_cache": False},
            ):  # some decide by values, which there are not; others need a cache
                with suppress(Exception):
                    model(input_ids=torch.zeros(1, 8, dtype=torch.long), **options)
    by_weight, unseen = [], []
    for role, found in targets.items():
        layers = [(model.get_submodule(t.module), t.attribute) for t in found]
        if any(id(layer) in called and attribute == "weight" for layer, attribute in layers):
            continue
        read = any(id(getattr(layer, attribute)) in reads.seen for layer, attribute in layers)
        (by_weight if read else unseen).append(role)
    return by_weight, unseen


def row(family: str, model: nn.Module) -> str:
    roles: dict[str, bool] = {}
    targets = {}
    for role in ROLES:
        try:
            found = replora.find_targets(model, [role])
        except replora.RepLoRAError:
            continue
        targets[role] = found
        roles[role] = any(target.rows is not None or target.attribute != "weight" for target in found)
    if roles:
        rows = ", ".join(role for role, partial in roles.items() if partial)
        by_weight, unseen = map(", ".join, ways(model, targets))
        return f"| {family} | {', '.join(roles)} | {rows} | {by_weight} | {unseen} |"
    linear = any(isinstance(module, nn.Linear) for module in model.modules())
    return f"| {family} | none; {'names and patterns' if linear else 'no linear layer'} | | | |"


def page() -> str:
    blocks = [HEAD]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for title, models in (
            (f"transformers {transformers.__version__}: causal language models", language_models()),
            (f"timm {timm.__version__}", image_models()),
        ):
            found = list(models)
            blocks.append(f"\n## {title}\n\n| family | roles | rows | by weight | unseen |\n|---|---|---|---|---|")
            blocks += [row(family, model) for family, model in found if model is not None]
            if untried := [family for family, model in found if model is None]:
                blocks.append(f"\nNot built by their default configuration here: {', '.join(untried)}.")
    return "\n".join(blocks) + "\n"


WITH_ATTENTION = ["gpt_neox", "bloom", "falcon", "gpt_bigcode", "phi3", "deepseek_v2", "deepseek_v3", "gpt2", "phi"]
WITH_ATTENTION += ["mpt", "llama", "qwen3_moe", "mistral", "gemma", "opt"]


def test_the_page_is_that_of_the_installed_libraries() -> None:
    now = page()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in now.splitlines() if line.startswith("| ")]
    roles = {family: found.split(", ") for family, found, *_ in rows}
    for family in WITH_ATTENTION:
        assert {"q", "k", "v"} <= set(roles[family]), family
    by_weight = {row[0]: row[3] for row in rows}
    assert (
        by_weight["beit (beit_base_patch16_224)"]
        == by_weight["swin_transformer_v2 (swinv2_base_window8_256)"]
        == "q, k, v"
    )
    assert by_weight["llama"] == by_weight["vision_transformer (aimv2_1b_patch14_224)"] == ""
    written = PAGE.read_text(encoding="utf-8")
    if all(
        f"## {name}" in written for name in (f"transformers {transformers.__version__}", f"timm {timm.__version__}")
    ):
        assert written == now, "write it again: python -m tests.adapters.test_families"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
