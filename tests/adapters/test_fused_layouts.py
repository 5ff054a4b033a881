"""Which rows of a fused layer are queries, keys and values: seen from what they do in the model, for each layout.

A change of the rows at one token shows what they are. Queries change the output at this token alone. Keys and values
change it at others too, and only values (beside the `up` half of a gated MLP) do so linearly.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import Tensor, nn

import replora
from replora.adapters.low_rank.layer import rows_of
from tests.adapters.test_contract import disturb

# Role -> whether its rows act on the outputs of other tokens, and whether they act linearly (None: either).
ACTS = {"q": (False, None), "k": (True, False), "v": (True, True), "gate": (False, False), "up": (False, True)}
MAMBA = {"gate": (False, False), "up": (True, False)}

TOKEN = 1  # the first of a causal model attends to itself alone, whatever its query

SIZES: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "intermediate_size": 32,
    "vocab_size": 50,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def text(name: str, **options: Any) -> Callable[[], nn.Module]:
    """A tiny model of transformers that reads tokens."""

    def build() -> nn.Module:
        config = getattr(transformers, f"{name}Config")(**SIZES | options)
        return transformers.AutoModel.from_config(config)

    return build


def timm_model(name: str, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import timm

        return timm.create_model(name, **options)

    return build


TINY_MLA = {"kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 6, "v_head_dim": 10}
CASES: dict[str, tuple[Callable[[], nn.Module], set[str]]] = {
    "gpt_neox": (text("GPTNeoX"), {"q", "k", "v"}),
    "gpt_neox_japanese": (text("GPTNeoXJapanese"), {"q", "k", "v"}),
    "bloom": (text("Bloom", n_head=6), {"q", "k", "v"}),
    "falcon_multi_query": (text("Falcon"), {"q", "k", "v"}),
    "falcon_alibi": (text("Falcon", multi_query=False, alibi=True), {"q", "k", "v"}),
    "falcon_grouped": (text("Falcon", new_decoder_architecture=True, num_kv_heads=2), {"q", "k", "v"}),
    "gpt_bigcode": (text("GPTBigCode"), {"q", "k", "v"}),
    "gpt_bigcode_all_heads": (text("GPTBigCode", multi_query=False), {"q", "k", "v"}),
    "gpt2": (text("GPT2"), {"q", "k", "v"}),
    "imagegpt": (text("ImageGPT"), {"q", "k", "v"}),
    "openai": (text("OpenAIGPT"), {"q", "k", "v"}),
    "codegen": (text("CodeGen", num_attention_heads=4, hidden_size=32, rotary_dim=4), {"q", "k", "v"}),
    "mpt": (text("Mpt", d_model=24, n_heads=6, n_layers=2), {"q", "k", "v"}),
    "dbrx": (
        text(
            "Dbrx",
            d_model=24,
            n_heads=6,
            n_layers=2,
            attn_config={"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 10000.0},
            ffn_config={"ffn_hidden_size": 16, "moe_num_experts": 2, "moe_top_k": 1, "hidden_size": 24},
        ),
        {"q", "k", "v"},
    ),
    "phi3_grouped": (text("Phi3", num_key_value_heads=2), {"q", "k", "v", "gate", "up"}),
    "persimmon": (text("Persimmon"), {"q", "k", "v"}),
    "modernbert": (text("ModernBert"), {"q", "k", "v"}),
    "deberta": (text("Deberta"), {"q", "k", "v"}),
    "deberta_relative": (text("Deberta", relative_attention=True, pos_att_type=["c2p", "p2c"]), {"q", "k", "v"}),
    "deepseek_v2": (text("DeepseekV2", q_lora_rank=8, first_k_dense_replace=2, **TINY_MLA), {"k", "v"}),
    "deepseek_v3": (text("DeepseekV3", q_lora_rank=8, first_k_dense_replace=2, **TINY_MLA), {"k", "v"}),
    "minicpm3": (text("MiniCPM3", q_lora_rank=8, num_key_value_heads=6, **TINY_MLA), {"k", "v"}),
    "jetmoe": (text("JetMoe", num_key_value_heads=3, kv_channels=4, num_local_experts=2), {"k", "v"}),
    "glm4": (text("Glm4", num_key_value_heads=2, head_dim=4), {"gate", "up"}),
    "mamba": (text("Mamba", state_size=4), {"gate", "up"}),
    "falcon_mamba": (text("FalconMamba", state_size=4), {"gate", "up"}),
    "mamba2": (text("Mamba2", num_heads=6, head_dim=8, state_size=4, n_groups=1), {"gate", "up"}),
    "maxvit": (timm_model("maxvit_rmlp_pico_rw_256.sw_in1k", img_size=64), {"q", "k", "v"}),
    "tiny_vit": (timm_model("tiny_vit_5m_224"), {"q", "k", "v"}),
    "efficientformer": (timm_model("efficientformer_l1"), {"q", "k", "v"}),
    "convit": (timm_model("convit_tiny"), {"q", "k"}),
    "tnt": (timm_model("tnt_s_legacy_patch16_224"), {"q", "k"}),
    "pvt_v2": (timm_model("pvt_v2_b0"), {"k", "v"}),
    "twins": (timm_model("twins_pcpvt_small"), {"k", "v"}),
    "volo": (timm_model("volo_d1_224"), {"k", "v"}),
}


def a_tiny(case: str) -> tuple[nn.Module, Any]:
    """The model in float64, so that small effects show, and an input."""
    torch.manual_seed(0)
    model = CASES[case][0]().double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "bias" not in name:
                parameter.normal_(0, parameter[0].numel() ** -0.5)
            elif name.endswith("gamma"):  # timm starts the residual branches near zero
                parameter.fill_(0.5)
    if hasattr(model, "config"):
        return model, {"input_ids": torch.tensor([[5, 7, 9, 4]])}
    size = model.pretrained_cfg["input_size"][1:] if "maxvit" not in case else (64, 64)
    return model, torch.randn(1, 3, *size, dtype=torch.float64)


def first_targets(model: nn.Module, case: str) -> list[replora.Target]:
    """For each role the first fused layer that plays it."""
    roles = CASES[case][1]
    found = [target for target in replora.find_targets(model, sorted(roles)) if target.rows is not None]
    first = {role: next(target for target in found if target.role == role) for role in roles}
    return list(first.values())


class Probe:
    """Outputs of the module that holds a fused layer, while some columns of that layer's output are changed."""

    def __init__(self, model: nn.Module, inputs: Any, target: replora.Target) -> None:
        self.model, self.inputs, self.target = model, inputs, target

    @torch.no_grad()
    def __call__(self, size: float) -> Tensor:
        """Output (tokens, features) of the first call, with `size` times a fixed change at one token."""
        seen: list[Tensor] = []

        def change(_layer: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
            output = output.clone()
            one = output[0].flatten(0, -2)[TOKEN]  # of the first sequence or window
            columns = rows_of(one, self.target.rows)
            columns += size * torch.randn(columns.shape, generator=torch.Generator().manual_seed(1)).to(one)
            return output

        def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
            output = output[0] if isinstance(output, tuple) else output
            seen.append(output[0].flatten(0, -2))

        hooks = [
            self.model.get_submodule(self.target.module).register_forward_hook(change),
            self.model.get_submodule(self.target.module.rpartition(".")[0]).register_forward_hook(keep),
        ]
        try:
            self.model(**self.inputs) if isinstance(self.inputs, dict) else self.model(self.inputs)
        finally:
            for hook in hooks:
                hook.remove()
        return seen[0]


@pytest.mark.parametrize("case", CASES)
def test_rows_do_what_their_role_says(case: str) -> None:
    model, inputs = a_tiny(case)
    for target in first_targets(model, case):
        probe = Probe(model, inputs, target)
        zero, one, two = probe(0.0), probe(1.0), probe(2.0)
        scale = (one - zero).abs().max()
        assert scale > 1e-9, f"{target} does nothing"
        spreads, linear = (MAMBA if "mamba" in case else ACTS)[target.role]
        others = (one - zero)[[i for i in range(len(one)) if i != TOKEN]].abs().max()
        assert (others > 1e-9 * scale) == spreads, target
        if linear is not None:
            assert ((two - zero - 2 * (one - zero)).abs().max() < 1e-6 * scale) == linear, target


@torch.no_grad()
def call(model: nn.Module, inputs: Any) -> Tensor:
    return model(**inputs)[0] if isinstance(inputs, dict) else model(inputs)


@pytest.mark.parametrize("case", CASES)
def test_an_update_of_one_role_is_a_change_of_its_rows_alone(case: str) -> None:
    model, inputs = a_tiny(case)
    before = call(model, inputs)
    for target in first_targets(model, case):
        by_hand = copy.deepcopy(model)
        adapted = replora.inject(
            copy.deepcopy(model), replora.RepLoRAConfig(rank=2, targets=[target.name]), check=False
        )
        disturb(adapted.double())
        (update,) = adapted.replora.updates
        A, B = update.views[0].factors()
        layer = by_hand.get_submodule(target.module)
        first, last, *period = target.rows
        outputs = update.shape[0]
        rows = [row for row in range(outputs) if first <= row % (period[0] if period else outputs) < last]
        with torch.no_grad():
            weight = layer.weight.T if case in ("gpt2", "imagegpt", "openai") else layer.weight
            weight[rows] += B @ A
        want = call(by_hand, inputs)
        assert not torch.allclose(want, before, rtol=0, atol=1e-6), target
        torch.testing.assert_close(call(adapted, inputs), want, rtol=1e-6, atol=1e-6)
        with replora.merged(adapted):
            torch.testing.assert_close(layer.weight, update.base, rtol=0, atol=1e-5)
            torch.testing.assert_close(call(adapted, inputs), want, rtol=1e-3, atol=1e-3)
        loss = adapted(**inputs)[0] if isinstance(inputs, dict) else adapted(inputs)
        loss.square().mean().backward()
        assert all(bool(p.grad.any()) for p in adapted.replora.parameters()), target


@pytest.mark.parametrize("case", ["gpt_neox", "bloom", "falcon_grouped", "gpt_bigcode", "phi3_grouped", "deepseek_v3"])
def test_peft_computes_the_same_from_an_export_and_back(case: str, tmp_path: Path) -> None:
    model, inputs = a_tiny(case)
    config = replora.RepLoRAConfig(rank=2, targets=["q", "k", "v"])
    adapted = replora.inject(copy.deepcopy(model).float(), config)
    disturb(adapted)
    want = call(adapted, inputs)
    replora.export_peft(adapted, tmp_path / "peft")
    opened = peft.PeftModel.from_pretrained(copy.deepcopy(model).float(), str(tmp_path / "peft")).eval()
    torch.testing.assert_close(call(opened, inputs), want, rtol=1e-4, atol=1e-4)
    start = replora.inject(copy.deepcopy(model).float(), config)
    replora.import_peft(start, tmp_path / "peft")
    torch.testing.assert_close(call(start, inputs), want, rtol=1e-4, atol=1e-4)
    replora.save_adapter(adapted, tmp_path / "adapter.safetensors")
    loaded = replora.inject(copy.deepcopy(model).float(), config)
    replora.load_adapter(loaded, tmp_path / "adapter.safetensors")
    torch.testing.assert_close(call(loaded, inputs), want, rtol=0, atol=0)
