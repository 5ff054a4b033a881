"""Every LoRA layer of `peft`, with every option of `LoraConfig` that changes what A and B are."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import peft
import pytest
import torch
from peft.tuners.lora.aqlm import AqlmLoraLinear
from peft.tuners.lora.awq import AwqLoraLinear
from peft.tuners.lora.gptq import GPTQLoraLinear
from torch import Tensor, nn
from torchao.quantization import Int8WeightOnlyConfig, quantize_
from transformers import MixtralConfig, MixtralForCausalLM, T5Config, T5ForConditionalGeneration

import replora
from tests.adapters.peft_zoo import Attentive, Convolved, Embedded, Narrow, OwnWeight, ids, rows
from tests.adapters.tiny_models import call, hf_bart, hf_gpt2, hf_llama, tied_llama, timm_vit, tokens


class Case(NamedTuple):
    """A model, its input, the arguments of `LoraConfig`, and what else than generators trains then."""

    build: Callable[[], nn.Module]
    inputs: Callable[[], Any]
    options: dict[str, Any]
    besides: tuple[str, ...] = ()
    fresh: bool = True  # the update is zero at the start
    merges: bool = True  # so that `peft` itself gives the same outputs
    copies: bool = True

    def stock(self) -> nn.Module:
        """The model with plain LoRA."""
        torch.manual_seed(0)
        model, config = self.build().eval(), peft.LoraConfig(**{"r": 4, "lora_alpha": 8} | self.options)
        config._register_custom_module({Opaque: wrapped})
        return peft.get_peft_model(model, config).eval()

    def out(self, model: nn.Module) -> Tensor:
        with torch.no_grad():
            return call(model, self.inputs())


def mixtral() -> nn.Module:
    config = MixtralConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=3,
        num_experts_per_tok=2,
    )
    return MixtralForCausalLM(config)


def t5() -> nn.Module:
    config = T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2, decoder_start_token_id=0)
    return T5ForConditionalGeneration(config)


def pairs_of_tokens() -> dict[str, Tensor]:
    return {"input_ids": ids(), "decoder_input_ids": ids()}


class Wide(nn.Module):
    """Two linear layers of sizes that can be quantized, in a block as models of transformers have it."""

    def __init__(self, quantize: Callable[[nn.Linear], nn.Module], flag: str = "") -> None:
        super().__init__()
        self.attention = nn.ModuleDict({"q_proj": nn.Linear(12, 64, bias=False), "v_proj": nn.Linear(12, 64)})
        self.block = nn.ModuleDict(
            {"gate_proj": nn.Linear(64, 128, bias=False), "up_proj": nn.Linear(64, 128, bias=False)}
        )
        for name, layer in list(self.block.named_children()):
            self.block[name] = quantize(layer)
        if flag:
            setattr(self, flag, True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.attention["q_proj"](x) + self.attention["v_proj"](x)
        return torch.tanh(self.block["gate_proj"](x)) * self.block["up_proj"](x)


def int8_of_bitsandbytes(layer: nn.Linear) -> nn.Module:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    quantized = bitsandbytes.nn.Linear8bitLt(layer.in_features, layer.out_features, bias=False, has_fp16_weights=False)
    quantized.load_state_dict(layer.state_dict())
    return quantized.to("cpu")


def nf4_of_bitsandbytes(layer: nn.Linear) -> nn.Module:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    quantized = bitsandbytes.nn.Linear4bit(layer.in_features, layer.out_features, bias=False, quant_type="nf4")
    quantized.load_state_dict(layer.state_dict())
    return quantized.to("cpu")


def int8_of_torchao(layer: nn.Linear) -> nn.Module:
    quantize_(layer, Int8WeightOnlyConfig())
    return layer


class Opaque(nn.Module):
    """Stands for a layer whose library needs a GPU: it multiplies, and shows no weight."""

    def __init__(self, layer: nn.Linear, wrapper: type[nn.Module]) -> None:
        super().__init__()
        self.in_features, self.out_features, self.wrapper = layer.in_features, layer.out_features, wrapper
        self.register_buffer("qweight", layer.weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.qweight.T


def wrapped(layer: Opaque, *args: Any, **options: Any) -> nn.Module:
    """The layer of `peft` around it."""
    return layer.wrapper(layer, *args, **options)


def own_weight() -> nn.Module:
    model = Narrow()
    model.first = OwnWeight()
    return model


LINEAR = ["first", "last"]
QUANTIZED = {"target_modules": ["q_proj", "v_proj", "gate_proj", "up_proj"]}
ATTENTION = ["q_proj", "v_proj"]
EXPERTS = ["experts.gate_up_proj", "experts.down_proj"]
CASES = {
    "Linear": Case(Narrow, rows, {"target_modules": LINEAR}),
    "Conv1D of transformers": Case(Embedded, ids, {"target_modules": ["mix"], "fan_in_fan_out": True}),
    "fused qkv": Case(hf_gpt2, tokens, {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    "Embedding": Case(Embedded, ids, {"target_modules": ["embedding", "embedding_extra", "mix"]}),
    "Conv1d": Case(lambda: Convolved(1), rows, {"target_modules": ["conv"]}),
    "Conv2d": Case(lambda: Convolved(2), rows, {"target_modules": ["conv", "widen"]}),
    "Conv2d of one pixel": Case(lambda: Convolved(2, kernel=1), rows, {"target_modules": ["conv"]}),
    "Conv3d": Case(lambda: Convolved(3), rows, {"target_modules": ["conv"]}),
    "MultiheadAttention": Case(Attentive, rows, {"target_modules": ["attention", "last"]}),
    "experts": Case(mixtral, tokens, {"target_modules": ATTENTION, "target_parameters": EXPERTS}),
    "parameter": Case(own_weight, rows, {"target_modules": [], "target_parameters": ["first.weight"]}),
    "ViT": Case(timm_vit, lambda: torch.ones(2, 3, 16, 16), {"target_modules": ["qkv", "fc1"]}),
    "decoder": Case(hf_llama, tokens, {"target_modules": "all-linear"}),
    "encoder-decoder": Case(hf_bart, tokens, {"target_modules": [*ATTENTION, "fc1"]}),
    "T5": Case(t5, pairs_of_tokens, {"target_modules": ["q", "v", "wi"]}),
    "rsLoRA": Case(hf_llama, tokens, {"target_modules": ATTENTION, "use_rslora": True}),
    "patterns": Case(
        hf_llama,
        tokens,
        {
            "target_modules": ATTENTION,
            "rank_pattern": {"v_proj": 2, "layers.0.q_proj": 6},
            "alpha_pattern": {"q_proj": 3},
        },
    ),
    "DoRA": Case(hf_llama, tokens, {"target_modules": ATTENTION, "use_dora": True}, ("lora_magnitude_vector",)),
    "DoRA of BART": Case(hf_bart, tokens, {"target_modules": ATTENTION, "use_dora": True}, ("lora_magnitude_vector",)),
    "DoRA of Embedding": Case(
        Embedded, ids, {"target_modules": ["embedding", "mix"], "use_dora": True}, ("lora_magnitude_vector",)
    ),
    "DoRA of Conv2d": Case(
        lambda: Convolved(2), rows, {"target_modules": ["conv"], "use_dora": True}, ("lora_magnitude_vector",)
    ),
    "bias of B": Case(Narrow, rows, {"target_modules": LINEAR, "lora_bias": True}, ("lora_B.default.bias",)),
    "biases": Case(Narrow, rows, {"target_modules": ["first"], "bias": "lora_only"}, (".bias",)),
    "head": Case(Narrow, rows, {"target_modules": ["first"], "modules_to_save": ["last"]}, ("modules_to_save",)),
    "trainable tokens": Case(
        hf_llama, tokens, {"target_modules": ATTENTION, "trainable_token_indices": [1, 2]}, ("trainable_tokens",)
    ),
    "tied": Case(
        tied_llama,
        tokens,
        {"target_modules": ["embed_tokens", "lm_head"], "ensure_weight_tying": True},
        merges=False,
        copies=False,
    ),
    "replicated": Case(
        hf_llama, tokens, {"target_modules": ATTENTION, "layer_replication": [[0, 2], [1, 2]]}, merges=False
    ),
    "aLoRA": Case(
        hf_llama,
        tokens,
        {"target_modules": ATTENTION, "alora_invocation_tokens": [9, 4], "task_type": "CAUSAL_LM"},
        merges=False,
    ),
    **{
        f"{init}": Case(
            hf_llama,
            tokens,
            {"target_modules": ATTENTION, "init_lora_weights": init},
            fresh=init in ("gaussian", "eva"),
        )
        for init in ("gaussian", "pissa", "pissa_niter_2", "olora", "orthogonal", "eva")
    },
    "int8 of bitsandbytes": Case(
        partial(Wide, int8_of_bitsandbytes, "is_loaded_in_8bit"), rows, QUANTIZED, merges=False
    ),
    "nf4 of bitsandbytes": Case(partial(Wide, nf4_of_bitsandbytes, "is_loaded_in_4bit"), rows, QUANTIZED, merges=False),
    "int8 of torchao": Case(partial(Wide, int8_of_torchao), rows, QUANTIZED, merges=False),
    **{
        kind.__name__: Case(partial(Wide, partial(Opaque, wrapper=kind)), rows, QUANTIZED, merges=False)
        for kind in (GPTQLoraLinear, AwqLoraLinear, AqlmLoraLinear)
    },
    "random": Case(hf_llama, tokens, {"target_modules": ATTENTION, "init_lora_weights": False}, fresh=False),
}


def plain(tensor: Tensor) -> Tensor:
    """A tensor as others compare with it."""
    return tensor.detach() if type(tensor) is nn.Parameter else getattr(tensor, "dequantize", tensor.detach)()


TIED = ("decoder", "encoder-decoder", "T5", "nf4 of bitsandbytes", "int8 of torchao", "DoRA of BART")


@pytest.mark.parametrize(("name", "sharing"), [*product(CASES, ["group"]), *product(TIED, ["tied"])])
def test_layers(name: str, sharing: Any) -> None:
    case = CASES[name]
    stock, model = case.stock(), case.stock()
    before = {key: p.clone() for key, p in model.named_parameters() if p.requires_grad}
    replora.reparameterize(model, sharing=sharing)
    want = case.out(stock)
    torch.testing.assert_close(case.out(model), want, rtol=0, atol=0 if case.fresh else 2e-5)
    parameters = {key: p for key, p in model.named_parameters() if p.requires_grad}
    ours = {key for key in parameters if key.startswith("replora.")}
    assert parameters.keys() - ours == {k for k in before if any(part in k for part in case.besides)}
    # Gradients reach all generators, and nothing frozen moves.
    frozen = {key: plain(p).clone() for key, p in model.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.AdamW(parameters.values(), lr=1e-2)
    model.train()
    for _ in range(3):
        optimizer.zero_grad()
        call(model, case.inputs()).float().square().mean().backward()
        optimizer.step()
    model.eval()
    assert not [key for key in ours if parameters[key].grad is None or not parameters[key].grad.any()]
    for key, parameter in model.named_parameters():
        if key in frozen:  # `peft` merges into nn.MultiheadAttention for each pass
            tolerance = 1e-7 if name == "MultiheadAttention" else 0
            torch.testing.assert_close(plain(parameter), frozen[key], rtol=0, atol=tolerance)
    trained = case.out(model)
    assert not torch.allclose(trained, want, rtol=1e-4, atol=1e-4)
    # What is saved is plain LoRA.
    state = peft.get_peft_model_state_dict(model)
    assert {k: t.shape for k, t in state.items()} == {
        k: t.shape for k, t in peft.get_peft_model_state_dict(stock).items()
    }
    peft.set_peft_model_state_dict(stock, state)
    torch.testing.assert_close(case.out(stock), trained, rtol=0, atol=1e-6)
    if case.copies:
        torch.testing.assert_close(case.out(copy.deepcopy(model)), trained, rtol=0, atol=0)
    if case.merges:
        model.merge_adapter()
        torch.testing.assert_close(case.out(model), trained, rtol=1e-4, atol=1e-4)
        model.unmerge_adapter()
        torch.testing.assert_close(case.out(model), trained, rtol=1e-5, atol=1e-5)
        merged = copy.deepcopy(model).merge_and_unload(safe_merge=True)
        torch.testing.assert_close(case.out(merged), trained, rtol=1e-4, atol=1e-4)
    replora.materialize(model)
    torch.testing.assert_close(case.out(model), trained, rtol=1e-5, atol=1e-5)
    assert {key for key, p in model.named_parameters() if p.requires_grad} == before.keys()


REFUSED: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], str]] = {
    "grouped convolution": (
        lambda: Convolved(2, groups=2),
        {"target_modules": ["conv"]},
        "conv is a convolution with groups",
    ),
    "MiCA": (Narrow, {"target_modules": LINEAR, "init_lora_weights": "mica"}, "(first|last) uses MiCALinear"),
    "KaSA": (Narrow, {"target_modules": ["first"], "kasa_config": peft.KasaConfig()}, "first uses KasaLinear"),
    "VeLoRA": (
        Narrow,
        {"target_modules": LINEAR, "velora_config": peft.VeloraConfig()},
        "(first|last) uses VeloraLinear",
    ),
    "BD-LoRA": (
        Narrow,
        {"target_modules": LINEAR, "use_bdlora": peft.BdLoraConfig(target_modules_bd_a=LINEAR, nblocks=2)},
        "(first|last) uses BdLoraLinear",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_a_and_b_is_refused_by_name_and_nothing_changes(name: str) -> None:
    build, options, says = REFUSED[name]
    model = peft.get_peft_model(build(), peft.LoraConfig(**{"r": 4} | options))
    before = {key: type(module) for key, module in model.named_modules()}
    with pytest.raises(replora.RepLoRAError, match=says):
        replora.reparameterize(model)
    assert {key: type(module) for key, module in model.named_modules()} == before
