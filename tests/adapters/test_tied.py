"""`sharing: tied`: one A and one B for targets of one shape in a group; what other sharing does not constrain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn

import replora
from replora.adapters.low_rank.factors import GeneratedFactors
from tests.adapters.test_contract import build, disturb
from tests.adapters.tiny_models import call

TIED: dict[str, Any] = {"rank": 2, "hidden": 4, "sharing": "tied"}


def tied(model_name: str, **options: Any) -> nn.Module:
    return replora.inject(build(model_name)[0], replora.RepLoRAConfig(**TIED | options))


@pytest.mark.parametrize("factors", ["mlp", "none"])
def test_query_and_value_have_half_of_the_numbers_each_counted_once(factors: str, tmp_path: Path) -> None:
    """LoRA's numbers at half the rank, in the model, its adapter file and its deployed file."""
    model = tied("timm_vit", factors=factors, rank=4)
    lora = replora.parameter_counts(replora.inject(build("timm_vit")[0], replora.LoRAConfig(2)))
    counts = replora.parameter_counts(model)
    assert counts.adapter_deployed == lora.adapter_deployed == 3 * 4 * (24 + 24)
    assert (counts.adapter_trained == counts.adapter_deployed) == (factors == "none")
    disturb(model)
    query, value = (view.factors() for view in model.replora.updates[0].views)
    assert all(map(torch.equal, query, value))
    assert query[1].any()
    replora.save_adapter(model, tmp_path / "deployed.safetensors", deploy=True)
    _, state = replora.read_adapter(tmp_path / "deployed.safetensors")
    assert sum(tensor.numel() for tensor in state.values()) == counts.adapter_deployed
    there, tiny = build("timm_vit")
    replora.load_adapter(there, tmp_path / "deployed.safetensors")
    torch.testing.assert_close(call(there, tiny.inputs()), call(model, tiny.inputs()), rtol=1e-5, atol=1e-6)
    assert replora.describe(there)["tied"] == [[f"blocks.{i}.attn.qkv[{role}]" for role in "qv"] for i in range(3)]


@pytest.mark.parametrize(
    ("targets", "found"),
    [
        (("k", "v"), [("k_proj", "v_proj")]),
        (("q", "k", "v"), [("k_proj", "v_proj")]),  # q is wider
        (("q", "k", "v", "out", "gate", "up", "down"), [("q_proj", "o_proj"), ("k_proj", "v_proj"), ("gate", "up")]),
    ],
)
def test_only_targets_of_one_shape_are_tied(targets: tuple[str, ...], found: list[tuple[str, str]]) -> None:
    model = tied("hf_llama", targets=targets)
    names = [[name.rpartition(".")[2] for name in names] for names in replora.describe(model)["tied"]]
    assert sorted(names) == sorted(
        [name.replace("gate", "gate_proj").replace("up", "up_proj") for name in pair] for pair in found * 2
    )
    reparameterized = peft.get_peft_model(
        build("hf_llama")[0], peft.LoraConfig(r=2, target_modules=sorted(model.replora.targets))
    )
    replora.reparameterize(reparameterized, hidden=4, sharing="tied")
    described = replora.describe(reparameterized)
    assert sorted(map(sorted, described["tied"])) == sorted(map(sorted, replora.describe(model)["tied"]))
    # Layers of peft have their own matrices in every file.
    lora = replora.parameter_counts(replora.inject(build("hf_llama")[0], replora.LoRAConfig(2, targets=targets)))
    assert described["parameters"]["adapter_deployed"] == lora.adapter_deployed
    assert described["parameters"]["adapter_trained"] == replora.parameter_counts(model).adapter_trained


@pytest.mark.parametrize("targets", [("q", "v"), ("q",), ("fc1",), ("up", "down")])
def test_nothing_to_tie_is_refused(targets: tuple[str, ...]) -> None:
    model, _ = build("torch_encoder" if "fc1" in targets else "hf_llama")
    before = list(model.state_dict())
    targets = ("linear1", "linear2") if "fc1" in targets else targets
    of_peft = replora.PeftMethodConfig("lora", 2, reparameterize=True, sharing="tied", targets=targets)
    for config in (replora.RepLoRAConfig(**TIED, targets=targets), of_peft):
        with pytest.raises(replora.RepLoRAError, match=r"sharing: 'tied' .*\(24 -> .*or sharing: group"):
            replora.inject(model, config)
        assert list(model.state_dict()) == before


@pytest.mark.parametrize("model_name", ["timm_vit", "hf_bart", "torch_encoder"])
@pytest.mark.parametrize("factors", ["mlp", "none"])
def test_the_gradient_is_the_sum_over_the_targets(factors: str, model_name: str) -> None:
    """Autograd's own for factors that start equal and are not tied."""
    gradients = []
    for sharing in ("tied", "group"):
        model, tiny = build(model_name)
        config = replora.RepLoRAConfig(**TIED | {"sharing": sharing, "factors": factors})
        replora.inject(model, config, example=tiny.inputs())
        (bank, *_) = model.replora.banks
        own = dict(bank.named_parameters())
        generator = torch.Generator().manual_seed(2)
        for name, parameter in own.items():
            if not name.endswith(".1"):
                parameter.data = torch.randn(parameter.shape, generator=generator)
        for name in own:
            if name.endswith(".1"):
                own[name].data = own[f"{name[:-2]}.0"].data.clone()
        call(model, tiny.inputs()).square().mean().backward()
        gradients.append({name: parameter.grad for name, parameter in own.items()})
    shared, separate = gradients
    assert separate.keys() - shared.keys() == {name for name in separate if name.endswith(".1")}
    for name, gradient in shared.items():
        want = separate[name]
        if name.endswith(".0"):
            want = want + separate[f"{name[:-2]}.1"]
        torch.testing.assert_close(gradient, want, rtol=1e-4, atol=1e-6)


class Attention(nn.Module):
    """It calls its value projection and drops what comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(6, 6) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.v_proj(x)
        return self.q_proj(x) + self.k_proj(x)


@pytest.mark.parametrize("peft_layers", [False, True])
def test_a_dead_target_does_not_hide_behind_the_one_that_it_is_tied_to(peft_layers: bool) -> None:
    options: dict[str, Any] = {"rank": 2, "sharing": "tied", "targets": ("q_proj", "v_proj")}
    config = replora.PeftMethodConfig("lora", reparameterize=True, **options) if peft_layers else None
    model = nn.Sequential(Attention(), nn.Linear(6, 2))
    with pytest.raises(replora.DeadTargetError, match=r"1 of 2 targets do not affect .*v_proj"):
        replora.inject(model, config or replora.RepLoRAConfig(**options), example=torch.randn(3, 6))


def test_different_factors_cannot_be_taken_up(tmp_path: Path) -> None:
    """Neither from a folder of peft nor from LoRA layers that have trained, and nothing is changed."""
    base, tiny = build("hf_bart")
    model = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"])).eval()
    fresh = replora.reparameterize(model, hidden=4, sharing="tied")
    replora.materialize(fresh)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    want = call(model, tiny.inputs())
    with pytest.raises(replora.RepLoRAError, match="Layers that are tied have the same B"):
        replora.reparameterize(model, hidden=4, sharing="tied")
    torch.testing.assert_close(call(model, tiny.inputs()), want, rtol=0, atol=0)
    model.save_pretrained(str(tmp_path))
    there = tied("hf_bart")
    before = {name: tensor.clone() for name, tensor in replora.adapter_state(there).items()}
    with pytest.raises(replora.PeftFormatError, match=r"different factors for .*v_proj and .*q_proj.*sharing: tied"):
        replora.import_peft(there, tmp_path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in replora.adapter_state(there).items())


def test_a_saved_folder_of_tied_layers_is_plain_lora_and_training_goes_on_from_it(tmp_path: Path) -> None:
    base, tiny = build("hf_bart")
    model = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"])).eval()
    replora.reparameterize(model, hidden=4, sharing="tied")
    with torch.no_grad():
        for parameter in model.replora.parameters():
            parameter.normal_()
    want = call(model, tiny.inputs())
    model.save_pretrained(str(tmp_path))
    stock = peft.PeftModel.from_pretrained(build("hf_bart")[0], str(tmp_path), is_trainable=True).eval()
    torch.testing.assert_close(call(stock, tiny.inputs()), want, rtol=0, atol=0)
    replora.reparameterize(stock, generators=tmp_path)
    for (name, one), (_, other) in zip(stock.replora.named_parameters(), model.replora.named_parameters(), strict=True):
        assert torch.equal(one, other), name
    replora.materialize(stock)
    replora.reparameterize(stock, hidden=4, sharing="tied")  # solved for
    torch.testing.assert_close(call(stock, tiny.inputs()), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("activation", ["tanh", "gelu", "identity"])
def test_a_shared_first_layer_constrains_nothing(activation: Any) -> None:
    """With a last matrix per target and a width of at least the rank, RepLoRA can produce any factors of LoRA."""
    rank, shapes = 8, [(64, 64), (64, 32)]
    torch.manual_seed(0)
    bank = GeneratedFactors(12, shapes, rank, 2 * rank, activation, 0.5).double()
    wanted = [(torch.randn(12, rank, n).double(), torch.randn(12, m, rank).double()) for n, m in shapes]
    first_layers = {name: p.clone() for name, p in bank.named_parameters() if ".V." not in name}
    bank.assign(wanted)
    error = max(
        float((one - other).detach().abs().max())
        for pair, want in zip(bank(), wanted, strict=True)
        for one, other in zip(pair, want, strict=True)
    )
    assert error < 1e-6
    assert all(torch.equal(p, bank.get_parameter(name)) for name, p in first_layers.items())
